//! Benchmarks of what reads a text: `cargo bench`, or `cargo bench -- --quick`; see `benches/README.md`.
//!
//! `classifier` needs the committed models. Everything runs on the threads that rayon finds; set `RAYON_NUM_THREADS`
//! or pin the process for another number.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark that cannot be set up should stop at once"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use candle_core::Device;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pointsman::classifier::{Classifier, Input, LoadOptions, embed};
use pointsman::domain::Content;
use pointsman::encoder::{Encoder, Precision, Stage, Tokens, available_threads};
use pointsman::text::{self, features};

/// A prompt of about 20 word pieces and one of about 260, which is just cut.
const SHORT: &str = "My SQL query is slow when I join two large tables, what can I do about it?";
const SENTENCE: &str = "The committee met on Tuesday to discuss the budget for the coming year and the new library. ";
/// Lengths of a mixed batch, in word pieces: mostly short, a few long, as traffic is.
const MIXED: [usize; 32] = [
    12, 9, 17, 24, 8, 33, 14, 11, 51, 19, 7, 28, 16, 90, 13, 22, 10, 40, 15, 128, 18, 12, 64, 9, 21, 31, 14, 200, 11,
    26, 17, 38,
];

fn tokenizer(criterion: &mut Criterion) {
    let classifier = classifier();
    let tokenizer = classifier.encoder().tokenizer();
    let long = SENTENCE.repeat(15);
    let mut group = criterion.benchmark_group("tokenizer");
    for (name, text) in [("short", SHORT), ("long", long.as_str())] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| tokenizer.tokenize(black_box(text)).unwrap()));
    }
    group.finish();
}

/// Cleaning, signals and features: everything that is read from a text without a model.
fn texts(criterion: &mut Criterion) {
    let long = Content::Text(SENTENCE.repeat(15));
    let mut group = criterion.benchmark_group("text");
    for (name, content) in [("short", Content::Text(SHORT.into())), ("long", long)] {
        group.bench_function(BenchmarkId::new("prepare", name), |bencher| {
            bencher.iter(|| text::prepare(black_box(&content)));
        });
        let prepared = text::prepare(&content);
        group.bench_function(BenchmarkId::new("features", name), |bencher| {
            bencher.iter(|| features::extract(black_box(&prepared.text), &prepared.signals));
        });
    }
    group.finish();
}

fn encoder(criterion: &mut Criterion) {
    let classifier = classifier();
    let encoder = classifier.encoder();
    let mut group = criterion.benchmark_group("encoder");
    let uniform = [(1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (8, 16), (32, 16)];
    for (n_texts, n_tokens) in uniform {
        bench_batch(&mut group, encoder, &format!("{n_texts}x{n_tokens}"), &vec![n_tokens; n_texts]);
    }
    bench_batch(&mut group, encoder, "mixed-32", &MIXED);
    group.finish();
}

/// A layer, stage by stage, by one thread; `embed` and `pool` are once a pass.
fn layers(criterion: &mut Criterion) {
    const N_LAYERS: u32 = 6;
    let classifier = classifier();
    let encoder = classifier.encoder();
    let mut group = criterion.benchmark_group("layer");
    for (n_texts, n_tokens) in [(1, 8), (1, 32), (1, 128), (32, 16)] {
        let tokens = vec![tokens(encoder, n_tokens); n_texts];
        let batch: Vec<&Tokens> = tokens.iter().collect();
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            let n_times = if [Stage::Embed, Stage::Pool].contains(&stage) { 1 } else { N_LAYERS };
            group.bench_function(BenchmarkId::new(stage.name(), format!("{n_texts}x{n_tokens}")), |bencher| {
                bencher.iter_custom(|n_passes| {
                    let pass = || encoder.stage_times(black_box(&batch)).unwrap().expect("8-bit layers")[index];
                    (0..n_passes).map(|_| pass()).sum::<Duration>() / n_times
                });
            });
        }
    }
    group.finish();
}

fn bench_batch(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    encoder: &Encoder,
    name: &str,
    lengths: &[usize],
) {
    let tokens: Vec<Tokens> = lengths.iter().map(|&length| tokens(encoder, length)).collect();
    let batch: Vec<&Tokens> = tokens.iter().collect();
    group.throughput(Throughput::Elements(lengths.iter().sum::<usize>() as u64));
    group.bench_function(name, |bencher| bencher.iter(|| encoder.embed(black_box(&batch)).unwrap()));
}

fn heads(criterion: &mut Criterion) {
    let classifier = classifier();
    let mut group = criterion.benchmark_group("heads");
    for n_rows in [1, 32] {
        let input = input(&classifier, SHORT);
        let inputs = vec![&input; n_rows];
        let embeddings = embed(classifier.encoder(), &inputs).unwrap();
        group.throughput(Throughput::Elements(n_rows as u64));
        group.bench_function(n_rows.to_string(), |bencher| {
            bencher.iter(|| classifier.judge(black_box(&embeddings), &inputs));
        });
    }
    group.finish();
}

fn classifier() -> Classifier {
    let options = LoadOptions {
        name: "default".into(),
        roots: vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models")],
        max_tokens: None,
        device: Device::Cpu,
        precision: Precision::Auto,
        isa: None,
        threads: available_threads(),
    };
    Classifier::load(&options).expect("the committed default classifier")
}

fn input(classifier: &Classifier, text: &str) -> Input {
    classifier.tokenize(&text::prepare(&Content::Text(text.into()))).unwrap()
}

/// `n` word pieces of English.
fn tokens(encoder: &Encoder, n: usize) -> Tokens {
    let mut tokens = encoder.tokenizer().tokenize(&SENTENCE.repeat(n.div_ceil(16))).unwrap();
    let last = tokens.ids.len() - 1;
    tokens.ids.swap(n - 1, last);
    tokens.ids.truncate(n);
    tokens
}

criterion_group!(benches, tokenizer, texts, encoder, layers, heads);
criterion_main!(benches);
