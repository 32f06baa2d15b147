//! Benchmarks of a step of a cascade: `cargo bench --bench cascade`; see `benches/README.md`.
//!
//! Opening the token, asking the policy, sealing the next token: all that `Escalate` does but for gRPC and the log.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark that cannot be set up should stop at once"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pointsman::cascade::{Cascades, Continuation, KeyRing, Opening, Step, step};
use pointsman::domain::{ConfidenceOf, Observed, Probability, Requirements, Source, Tier};
use pointsman::policy::{DEFAULT_DOCUMENT, Policy, PolicyOptions, Unguarded};

const NOW_MS: u64 = 1_800_000_000_000;

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cascade");
    let large = large_policy();
    for (name, document, model) in [("default", DEFAULT_DOCUMENT, "gpt-5-mini"), ("large", large.as_str(), "m10")] {
        let policy = Arc::new(Policy::load(document.as_bytes(), &PolicyOptions::default()).unwrap());
        let cascades = Cascades::new(KeyRing::random().unwrap(), Duration::from_secs(900));
        let before = continuation(&policy, model);
        let token = cascades.seal(&before, NOW_MS).unwrap();
        let open = || cascades.open(black_box(&token), Opening { tenant: "", now_ms: NOW_MS }).unwrap();
        let observed = Observed { score: Some(Probability::saturating(0.2)), ..Observed::default() };
        group.bench_function(BenchmarkId::new("seal", name), |bencher| {
            bencher.iter(|| cascades.seal(black_box(&before), NOW_MS).unwrap());
        });
        group.bench_function(BenchmarkId::new("open", name), |bencher| bencher.iter(open));
        group.bench_function(BenchmarkId::new("open-step-seal", name), |bencher| {
            bencher.iter(|| {
                let scope = policy.scope("", "").unwrap();
                let Step::Next { continuation, .. } = step(open(), &observed, &scope, &Unguarded, NOW_MS) else {
                    unreachable!("there is a stronger step")
                };
                cascades.seal(&continuation, NOW_MS).unwrap()
            });
        });
    }
    group.finish();
}

fn continuation(policy: &Policy, model: &str) -> Continuation {
    let id = uuid::Uuid::from_u128(1 << 100);
    Continuation {
        started_ms: NOW_MS,
        first_decision: id,
        decision: id,
        tenant: String::new(),
        role: String::new(),
        request_id: id.to_string(),
        sticky: 7,
        requirements: Requirements::default(),
        input_tokens: 40,
        output_tokens: None,
        intent: "open_qa".into(),
        intent_probability: Probability::saturating(0.9),
        tier: Tier::Medium,
        difficulty: Some(Probability::saturating(0.5)),
        confidence: Probability::saturating(0.9),
        confidence_of: ConfidenceOf::TierSuffices,
        source: Source::Classifier,
        chain: "general".into(),
        forbidden: vec![],
        tried: policy.tried(model, 0.001).into_iter().collect(),
        together: 1,
        hops: 0,
        tokens_used: 0,
        cost_usd: 0.0,
        threshold: Probability::saturating(0.6),
        policy: Continuation::head(policy.sha256()),
        classifier: 0,
        arms: vec![],
    }
}

/// 200 models, all of them in one chain and every tenth on the ladder; thresholds are computed.
fn large_policy() -> String {
    let mut yaml = String::from("schema: pointsman.policy/v1\nid: large\nversion: \"1\"\nmodels:\n");
    for n in 0..200 {
        writeln!(
            yaml,
            "  m{n}: {{provider: p{}, provider_model: m, context_window_tokens: 128000, ability: {}, \
             price_per_million_tokens: {{input_usd: {n}, output_usd: {n}}}}}",
            n % 20,
            f64::from(n) / 50.0,
        )
        .unwrap();
    }
    let names = |step: usize| (0..200).step_by(step).map(|n| format!("m{n}")).collect::<Vec<_>>().join(", ");
    writeln!(yaml, "chains: {{general: [{}]}}", names(1)).unwrap();
    writeln!(yaml, "routes: [{{intent: \"*\", tier: \"*\", chain: general}}]").unwrap();
    writeln!(yaml, "escalation: {{ladder: [{}], max_hops: 5}}", names(10)).unwrap();
    yaml
}

criterion_group!(benches, steps);
criterion_main!(benches);
