//! Benchmarks of what reads a policy and no model: `cargo bench --bench policy`; see `benches/README.md`.
//!
//! Loading, scope, experiments, rules, resolving and replaying, with the embedded policy and with a large one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark that cannot be set up should stop at once"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pointsman::domain::{Classification, Distribution, Language, Probability, Requirements, TextSignals};
use pointsman::policy::{Assignment, DEFAULT_DOCUMENT, KeyDigest, Policy, PolicyOptions, Scope, Signals};
use pointsman::rules::{RuleInput, RuleOutcome};

const SHORT: &str = "My SQL query is slow when I join two large tables, what can I do about it?";
const SENTENCE: &str = "The committee met on Tuesday to discuss the budget for the coming year and the new library. ";
const INTENTS: [&str; 14] = [
    "open_qa",
    "closed_qa",
    "summarization",
    "extraction",
    "classification",
    "rewrite",
    "translation",
    "code",
    "math",
    "reasoning",
    "creative_writing",
    "brainstorming",
    "chat",
    "other",
];

/// The parts of a decision that read the policy.
fn decisions(criterion: &mut Criterion) {
    let options = PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() };
    let (large, experiments) = (large_policy(false), large_policy(true));
    let mut group = criterion.benchmark_group("policy");
    for (name, document, tenant) in [
        ("default", DEFAULT_DOCUMENT, ""),
        ("large", large.as_str(), "tenant-250"),
        ("large-experiments", experiments.as_str(), "tenant-250"),
    ] {
        group.bench_function(BenchmarkId::new("load", name), |bencher| {
            bencher.iter(|| Policy::load(black_box(document.as_bytes()), &options).unwrap());
        });
        let policy = Arc::new(Policy::load(document.as_bytes(), &options).unwrap());
        let (classification, metadata) = (classification(), BTreeMap::new());
        let request =
            Assignment { session: Some(KeyDigest::of("session")), request_id: "r", metadata: &metadata, now_ms: 0 };
        let scope = || policy.scope(black_box(tenant), "").unwrap().with_experiments(black_box(&request));
        group.bench_function(BenchmarkId::new("scope", name), |bencher| bencher.iter(scope));
        let (settled, no_rules) = (scope(), RuleOutcome::default());
        group.bench_function(BenchmarkId::new("resolve", name), |bencher| {
            bencher.iter(|| resolve(&settled, &no_rules, black_box(&classification)));
        });
        let text_signals = signals_of(SHORT);
        let input = RuleInput { text: SHORT, signals: &text_signals, metadata: &metadata, tenant, role: "" };
        group.bench_function(BenchmarkId::new("scope-rules-resolve", name), |bencher| {
            bencher.iter(|| {
                let scope = scope();
                let rules = scope.rules().evaluate(black_box(&input));
                resolve(&scope, &rules, &classification)
            });
        });
    }
    group.finish();
}

/// 1,000 rules, half keywords and half expressions, on a text of a kilobyte that matches none and one that matches.
fn rules(criterion: &mut Criterion) {
    let mut yaml = large_policy(false);
    yaml.push_str("rules:\n");
    for n in 0..500 {
        writeln!(
            yaml,
            "  - {{name: word-{n}, when: {{keywords: [word{n}, \"phrase {n} here\"]}}, then: {{tier: simple}}}}"
        )
        .unwrap();
        writeln!(yaml, "  - {{name: expression-{n}, when: {{regex: 'ticket-{n}-[a-z]+'}}, then: {{tier: simple}}}}")
            .unwrap();
    }
    let policy = Arc::new(Policy::load(yaml.as_bytes(), &PolicyOptions::default()).unwrap());
    let scope = policy.scope("", "").unwrap();
    let plain = SENTENCE.repeat(11);
    let hit = plain.replacen("budget", "ticket-250-abc", 1);
    let metadata = BTreeMap::new();
    let mut group = criterion.benchmark_group("rules-1000");
    for (name, text) in [("no-match", &plain), ("match", &hit)] {
        let text_signals = signals_of(text);
        let input = RuleInput { text, signals: &text_signals, metadata: &metadata, tenant: "", role: "" };
        assert_eq!(scope.rules().evaluate(&input).matched.len(), usize::from(name == "match"));
        group.bench_function(name, |bencher| bencher.iter(|| scope.rules().evaluate(black_box(&input))));
    }
    group.finish();
}

fn resolve(scope: &Scope, rules: &RuleOutcome, classification: &Classification) -> pointsman::policy::Resolution {
    let signals = Signals {
        classification: Some(classification),
        rules,
        language: Some(Language("eng")),
        degraded: false,
        requirements: &Requirements::default(),
        input_tokens: 20,
        output_tokens: None,
        sticky_key: "benchmark",
    };
    scope.resolve(&signals).unwrap()
}

fn intents() -> Arc<[Arc<str>]> {
    INTENTS.iter().map(|name| Arc::from(*name)).collect()
}

/// Code with 0.87, of medium difficulty.
fn classification() -> Classification {
    let probabilities = INTENTS.iter().map(|name| if *name == "code" { 0.87 } else { 0.01 }).collect();
    Classification {
        intent: Distribution::new(intents(), probabilities).unwrap(),
        difficulty: Probability::saturating(0.4),
        tiers: [0.3, 0.6, 0.1],
        tier_control: pointsman::domain::TierControl::default(),
        out_of_scope: Probability::ZERO,
        tokens_used: 20,
        tokens_cut: 0,
    }
}

fn signals_of(text: &str) -> TextSignals {
    let words = text.split_whitespace().count();
    TextSignals { bytes: text.len(), words, lines: 1, language: Some(Language("eng")), ..TextSignals::default() }
}

/// 200 models, 50 chains of four, 150 routes and 500 tenants with a chain of their own each; two experiments where asked for.
fn large_policy(experiments: bool) -> String {
    let mut yaml = String::from("schema: pointsman.policy/v1\nid: large\nversion: \"1\"\nmodels:\n");
    for n in 0..200 {
        writeln!(
            yaml,
            "  model-{n}: {{provider: provider-{}, provider_model: model-{n}, context_window_tokens: 128000, ability: {}, \
             price_per_million_tokens: {{input_usd: {}, output_usd: {}}}, capabilities: [tools, json_mode]}}",
            n % 20,
            f64::from(n) / 50.0,
            f64::from(n + 1) / 100.0,
            f64::from(n + 1) / 20.0,
        )
        .unwrap();
    }
    yaml.push_str("chains:\n");
    for n in 0..50 {
        writeln!(yaml, "  chain-{n}: [model-{}, model-{}, model-{}, model-{}]", n * 4, n * 4 + 1, n * 4 + 2, n * 4 + 3)
            .unwrap();
    }
    yaml.push_str("routes:\n");
    for (index, (intent, tier)) in
        INTENTS.iter().flat_map(|intent| ["simple", "medium", "complex"].map(|tier| (intent, tier))).enumerate()
    {
        writeln!(yaml, "  - {{intent: {intent}, tier: {tier}, chain: chain-{index}}}").unwrap();
    }
    yaml.push_str("  - {intent: \"*\", tier: \"*\", chain: chain-49}\n");
    yaml.push_str("escalation: {ladder: [model-10, model-60, model-110, model-190]}\ntenants:\n");
    for n in 0..500 {
        writeln!(
            yaml,
            "  tenant-{n}: {{chains: {{chain-{}: [model-{}, model-{}]}}, providers: {{provider-{}: {{enabled: false}}}}}}",
            n % 50,
            n % 200,
            (n + 7) % 200,
            (n + 3) % 20,
        )
        .unwrap();
    }
    yaml.push_str("defaults: {intent: other}\n");
    if experiments {
        yaml.push_str(
            "experiments:\n  one: {arms: {a: {weight: 0.5}, b: {weight: 0.5, thresholds: {min_confidence: 0.9}}}}\n",
        );
        yaml.push_str(
            "  two: {sticky_by: tenant, arms: {a: {weight: 0.5}, b: {weight: 0.5, escalation: {max_hops: 1}}}}\n",
        );
    }
    yaml
}

criterion_group!(benches, decisions, rules);
criterion_main!(benches);
