//! Milliseconds a batch of the encoder, by shape, as one line of JSON: what `benches/peers/peers.py` sets beside others.
//!
//! `cargo bench --bench shapes -- PRECISION THREADS [SECONDS]`. Rows of a batch have one length, but for `mixed`, whose 32 are
//! as unlike in length as prompts are. Token ids are arbitrary: the work does not depend on them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark that cannot be set up should stop at once"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::Device;
use pointsman::artifact::{Artifact, EncoderManifest};
use pointsman::encoder::{Encoder, EncoderOptions, Tokens};

const SHAPES: [(usize, usize); 8] = [(1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (8, 16), (32, 16), (32, 64)];
/// Word pieces of 32 prompts: mostly short, a few long, as traffic is.
const MIXED: [usize; 32] = [
    4, 9, 17, 24, 8, 33, 14, 11, 51, 19, 7, 28, 16, 90, 13, 22, 10, 40, 15, 128, 18, 12, 64, 9, 21, 31, 14, 200, 11,
    26, 17, 38,
];

fn main() {
    // `cargo bench` adds a flag of its own, `cargo test --benches` another.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let argument = |index: usize, default: &str| arguments.get(index).map_or(default, |value| value).to_owned();
    let seconds: f64 = argument(2, if arguments.is_empty() { "0.05" } else { "1.2" }).parse().unwrap();
    let options = EncoderOptions {
        precision: argument(0, "auto").parse().unwrap(),
        threads: argument(1, "2").parse().unwrap(),
        ..EncoderOptions::exact(&Device::Cpu, 256)
    };
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models");
    let artifact = Artifact::<EncoderManifest>::load("all-MiniLM-L6-v2", &[models]).unwrap();
    let encoder = Encoder::load(&artifact, None, &options).unwrap();
    let shapes = SHAPES.map(|(rows, length)| (format!("{rows}x{length}"), vec![length; rows]));
    let mut table = serde_json::Map::new();
    for (name, lengths) in shapes.into_iter().chain([("mixed".to_owned(), MIXED.to_vec())]) {
        let texts: Vec<Tokens> = lengths
            .iter()
            .map(|length| Tokens { ids: (0..*length as u32).map(|at| 1_000 + at * 97 % 20_000).collect(), n_cut: 0 })
            .collect();
        let texts: Vec<&Tokens> = texts.iter().collect();
        table.insert(name, median_ms(seconds, || drop(black_box(encoder.embed(&texts).unwrap()))).into());
    }
    println!("{}", serde_json::json!({"encoder": encoder.precision_name(), "ms": table}));
}

fn median_ms(seconds: f64, mut call: impl FnMut()) -> f64 {
    (0..5).for_each(|_| call());
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.is_empty() || start.elapsed() < Duration::from_secs_f64(seconds) {
        let begun = Instant::now();
        call();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
