//! Asking several candidates at once.

use crate::domain::{Combine, ReasonCode, Requirements};
use crate::policy::{Policy, PolicyOptions, Resolution};
use crate::rules::RuleOutcome;

use super::resolve::DOCUMENT;
use super::{classification, load, signals};

fn resolve(fan_out: &str, requirements: &Requirements) -> Resolution {
    let scope = load(&DOCUMENT.replace("rules: []", &format!("rules: []\nfan_out: {fan_out}"))).scope("", "").unwrap();
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.5);
    scope.resolve(&signals(Some(&classification), &RuleOutcome::default(), requirements)).unwrap()
}

#[test]
fn the_first_of_the_chain_are_asked_at_once() {
    let any = Requirements::default();
    let found = resolve(
        "[{intent: code, tier: '*', models: 2, combine: first}, {intent: '*', tier: simple, models: 3, combine: vote}]",
        &any,
    );
    let fan_out = found.fan_out.unwrap();
    let names: Vec<&str> = fan_out.candidates.iter().map(|candidate| &*candidate.model).collect();
    assert_eq!((fan_out.combine, names), (Combine::Vote, vec!["tiny", "base", "wide"]));
    let sum: f64 = fan_out.candidates.iter().map(|candidate| candidate.estimated_cost_usd).sum();
    assert!((fan_out.estimated_cost_usd - sum).abs() < 1e-12);
    assert_eq!(found.reasons.last().unwrap().code, ReasonCode::FanOut);
    let other = resolve("[{intent: '*', tier: complex, models: 2, combine: first}]", &any);
    assert_eq!(other.fan_out, None, "another tier");
}

#[test]
fn a_cost_cap_holds_for_all_of_them_together() {
    // tiny costs 200 millionths, base 400, wide 600.
    let capped = |cap| Requirements { max_cost_usd: Some(cap), ..Requirements::default() };
    let spec = "[{intent: '*', tier: '*', models: 3, combine: best_of}]";
    let names = |found: &Resolution| found.fan_out.as_ref().map(|fan_out| fan_out.candidates.len());
    assert_eq!(names(&resolve(spec, &capped(0.0013))), Some(3));
    assert_eq!(names(&resolve(spec, &capped(0.0007))), Some(2));
    let alone = resolve(spec, &capped(0.0005));
    assert_eq!(names(&alone), None);
    assert_eq!(alone.reasons.last().unwrap().code, ReasonCode::FanOut, "it says why not");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (spec, code) in [
        ("[{intent: '*', tier: '*', models: 1, combine: first}]", "OUT_OF_RANGE"),
        ("[{intent: '*', tier: '*', models: 2, combine: vote}]", "OUT_OF_RANGE"),
        ("[{intent: '*', tier: '*', models: 9, combine: best_of}]", "OUT_OF_RANGE"),
        ("[{intent: [], tier: '*', models: 2, combine: first}]", "INVALID_VALUE"),
        ("[{intent: '*', tier: '*', models: 2, combine: blend}]", "INVALID_VALUE"),
    ] {
        let document = DOCUMENT.replace("rules: []", &format!("rules: []\nfan_out: {spec}"));
        let findings = Policy::check(document.as_bytes(), &PolicyOptions::default());
        assert!(findings.iter().any(|finding| finding.code.as_str() == code), "{spec}: {findings:?}");
    }
}

#[test]
fn a_false_economy_is_skipped_where_the_policy_says_so() {
    let document = |more: &str| DOCUMENT.replace("score_threshold: 0.7}", &format!("score_threshold: 0.7{more}}}"));
    let select = |document: &str, difficulty: f64| {
        let scope = load(document).scope("", "").unwrap();
        let classification = classification("open_qa", [1.0, 0.0, 0.0], difficulty);
        let found =
            scope.resolve(&signals(Some(&classification), &RuleOutcome::default(), &Requirements::default())).unwrap();
        let skipped = found.reasons.iter().any(|reason| reason.code == ReasonCode::FalseEconomy);
        (found.selected.model.to_string(), skipped)
    };
    // tiny costs half of base, and answers a hard query well one time in five.
    assert_eq!(select(&document(""), 0.8), ("tiny".into(), false), "the chain's order stands");
    assert_eq!(select(&document(", cheap_first: when_it_pays"), 0.8), ("base".into(), true));
    assert_eq!(select(&document(", cheap_first: when_it_pays"), 0.05), ("tiny".into(), false), "it pays");
    let capped = document(", cheap_first: when_it_pays")
        .replace("rules: []", "rules: [{name: trial, when: {length: {min_words: 0}}, then: {cap_tier_at: simple}}]");
    let scope = load(&capped).scope("", "").unwrap();
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.8);
    let rules = RuleOutcome {
        cap: Some(crate::rules::FixedBy { value: crate::domain::Tier::Simple, rule: "trial".into() }),
        ..RuleOutcome::default()
    };
    let found = scope.resolve(&signals(Some(&classification), &rules, &Requirements::default())).unwrap();
    assert_eq!(&*found.selected.model, "tiny", "what a rule caps stays capped");
}
