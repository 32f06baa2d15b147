//! The committed encoder against golden vectors of the upstream f32 model (`tests/golden/make_golden.py`).

use std::path::PathBuf;

use candle_core::Device;
use pointsman::artifact::{Artifact, EncoderManifest};
use pointsman::classifier::load_encoder;
use pointsman::encoder::{Encoder, EncoderOptions, Precision, Tokens};

struct Golden {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

fn goldens() -> Vec<Golden> {
    let rows: Vec<serde_json::Value> = serde_json::from_str(include_str!("../golden/embeddings.json")).unwrap();
    let numbers = |value: &serde_json::Value| value.as_array().unwrap().clone();
    rows.iter()
        .map(|row| Golden {
            text: row["text"].as_str().unwrap().to_owned(),
            ids: numbers(&row["ids"]).iter().map(|id| id.as_u64().unwrap() as u32).collect(),
            embedding: numbers(&row["embedding"]).iter().map(|x| x.as_f64().unwrap() as f32).collect(),
        })
        .collect()
}

fn encoder() -> Encoder {
    let roots = [PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models")];
    load_encoder("all-MiniLM-L6-v2", &roots, 256, &Device::Cpu).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn tokens_and_embeddings_match_the_upstream_model() {
    let (encoder, goldens) = (encoder(), goldens());
    assert!(goldens.len() >= 20);
    let tokens: Vec<Tokens> =
        goldens.iter().map(|golden| encoder.tokenizer().tokenize(&golden.text).unwrap()).collect();
    for (golden, tokens) in goldens.iter().zip(&tokens) {
        assert_eq!((&tokens.ids, tokens.n_cut), (&golden.ids, 0), "{}", golden.text);
        let embedding = encoder.embed(&[tokens]).unwrap();
        let similarity = cosine(embedding.row(0).as_slice().unwrap(), &golden.embedding);
        assert!(similarity >= 0.9999, "cosine {similarity} for {:?}", golden.text);
    }
}

#[test]
fn a_batch_gives_what_single_texts_give() {
    let (encoder, goldens) = (encoder(), goldens());
    let tokens: Vec<Tokens> =
        goldens.iter().map(|golden| encoder.tokenizer().tokenize(&golden.text).unwrap()).collect();
    // Out of order and with repeated lengths, so that sorting and runs are both exercised.
    let batch: Vec<&Tokens> = tokens.iter().rev().chain(tokens.iter().take(5)).collect();
    let together = encoder.embed(&batch).unwrap();
    for (row, tokens) in together.outer_iter().zip(&batch) {
        let alone = encoder.embed(&[tokens]).unwrap();
        let difference = row.iter().zip(alone.row(0)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-5, "batch and single differ by {difference}");
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-5, "norm {norm}");
    }
    assert_eq!(encoder.embed(&[]).unwrap().dim(), (0, 384));
}

#[test]
fn long_texts_are_cut_in_the_middle_and_say_so() {
    let encoder = encoder();
    let text = format!("start {} end", "middle ".repeat(1_000));
    let tokens = encoder.tokenizer().tokenize(&text).unwrap();
    assert_eq!((tokens.ids.len(), tokens.n_cut), (256, 1_002 - 254));
    let words = |ids: &[u32]| ids.to_vec();
    let start = encoder.tokenizer().tokenize("start").unwrap().ids[1];
    let end = encoder.tokenizer().tokenize("end").unwrap().ids[1];
    assert_eq!((words(&tokens.ids)[1], words(&tokens.ids)[254]), (start, end));
}

/// What serving in bytes costs in direction: `cargo test --release --test integration prompts_point -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes unoptimised"]
fn prompts_point_where_floats_do() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let artifact = Artifact::<EncoderManifest>::load("all-MiniLM-L6-v2", &[root.join("models")]).unwrap();
    let load = |options: EncoderOptions| Encoder::load(&artifact, None, &options).unwrap();
    let exact = load(EncoderOptions::exact(&Device::Cpu, 256));
    let own =
        load(EncoderOptions { precision: Precision::Int8, threads: 2, ..EncoderOptions::exact(&Device::Cpu, 256) });
    let mut texts = Vec::new();
    for file in std::fs::read_dir(root.join("training-data/prompts")).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            texts.push(exact.tokenizer().tokenize(row["text"].as_str().unwrap()).unwrap());
        }
    }
    let step = texts.len() / 2_000;
    let texts: Vec<&Tokens> = texts.iter().step_by(step).collect();
    let mut cosines = Vec::new();
    for texts in texts.chunks(16) {
        let (own, exact) = (own.embed(texts).unwrap(), exact.embed(texts).unwrap());
        cosines.extend(own.outer_iter().zip(exact.outer_iter()).map(|(a, b)| a.dot(&b)));
    }
    let (n, mean) = (cosines.len(), cosines.iter().sum::<f32>() / cosines.len() as f32);
    let least = cosines.into_iter().fold(1.0, f32::min);
    println!("{n} prompts: cosine at least {least:.4}, on average {mean:.5}");
    assert!(n >= 2_000 && least >= 0.995 && mean >= 0.999);
}
