//! Passes of the 8-bit encoder for `benches/instructions.sh` to count instructions of: nothing is timed.
//!
//! `cargo bench --bench instructions -- ROWS LENGTH PASSES`. One thread, so that every instruction is this thread's.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot be set up should stop at once")]

use std::hint::black_box;
use std::path::PathBuf;

use candle_core::Device;
use pointsman::artifact::{Artifact, EncoderManifest};
use pointsman::encoder::{Encoder, EncoderOptions, Precision, Tokens};

fn main() {
    // `cargo bench` adds a flag of its own, `cargo test --benches` another.
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let [rows, length, passes] = *arguments.first_chunk().unwrap_or(&[1, 16, 1]);
    let options = EncoderOptions { precision: Precision::Int8, threads: 1, ..EncoderOptions::exact(&Device::Cpu, 256) };
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models");
    let artifact = Artifact::<EncoderManifest>::load("all-MiniLM-L6-v2", &[models]).unwrap();
    let encoder = Encoder::load(&artifact, None, &options).unwrap();
    let ids = (0..length as u32).map(|at| 1_000 + at * 97 % 20_000).collect();
    let text = Tokens { ids, n_cut: 0 };
    let texts = vec![&text; rows];
    for _ in 0..passes {
        counted_pass(&encoder, &texts);
    }
}

/// What the instruction counter is switched on for, by name.
#[inline(never)]
fn counted_pass(encoder: &Encoder, texts: &[&Tokens]) {
    black_box(encoder.embed(black_box(texts)).unwrap());
}
