//! Encoder benchmarks.

fn main() {}
