//! The fuzz targets on stable: every seed, every input that once broke something, and changed copies of them.
//!
//! The longer runs are libFuzzer's; `docs/fuzzing.md` tells how.

#[path = "../../../fuzz/src/targets.rs"]
#[allow(unreachable_pub, reason = "the crate that libFuzzer runs has them in its interface")]
mod targets;

use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::support::root;

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A seed with a few changes: bits, runs doubled or cut, parts of another seed.
fn changed(seeds: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(1..32)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let run = bytes[at..end].to_vec();
                bytes.splice(at..at, run);
            }
            4 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..=other.len());
                bytes.splice(at..end, other[from..].iter().take(64).copied().collect::<Vec<_>>());
            }
            _ => {
                let sign = [b'"', b'{', b'[', b':', b'-', b'\n', 0, 0x80, 0xff, b'&'][rng.random_range(0..10)];
                bytes.insert(at, sign);
            }
        }
    }
    bytes
}

/// Runs a target until `time` is over; gives the number of inputs.
fn drive(name: &str, target: targets::Target, time: Duration, seed: u64) -> usize {
    let seeds =
        [files(&root().join("fuzz/seeds").join(name)), files(&root().join("fuzz/regressions").join(name))].concat();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    seeds.iter().for_each(|seed| target(seed));
    let (mut rng, started, mut n) = (StdRng::seed_from_u64(seed), Instant::now(), seeds.len());
    while started.elapsed() < time {
        let bytes = changed(&seeds, &mut rng);
        if std::panic::catch_unwind(|| target(&bytes)).is_err() {
            let path = std::env::temp_dir().join(format!("pointsman-fuzz-{name}"));
            std::fs::write(&path, &bytes).unwrap();
            panic!("{name} breaks at an input kept in {}; put it into fuzz/regressions/{name}", path.display());
        }
        n += 1;
    }
    n
}

#[test]
fn targets_hold_over_seeds_and_changed_copies() {
    for (name, target) in targets::TARGETS {
        let n = drive(name, target, Duration::from_secs(2), 1);
        println!("{name}: {n} inputs");
        assert!(n > 100, "{name}: only {n} inputs in two seconds");
    }
}

/// `cargo test --test integration robustness::fuzz -- --ignored --nocapture`
#[test]
#[ignore = "a minute for each target"]
fn targets_hold_for_a_minute_each() {
    for (name, target) in targets::TARGETS {
        println!("{name}: {} inputs", drive(name, target, Duration::from_secs(60), rand::random()));
    }
}
