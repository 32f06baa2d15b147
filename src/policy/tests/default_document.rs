//! The embedded policy is useful as it is.

use std::collections::BTreeMap;

use crate::domain::{ConfidenceOf, ReasonCode, Requirements, Source, TextSignals, Tier};
use crate::policy::{DEFAULT_DOCUMENT, Policy, PolicyOptions, render_findings};
use crate::rules::{RuleInput, RuleOutcome};

use super::{classification, intents, load, signals};

#[test]
fn has_no_findings_at_all() {
    let options = PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() };
    let findings = Policy::check(DEFAULT_DOCUMENT.as_bytes(), &options);
    assert!(findings.is_empty(), "{}", render_findings(&findings, "default.yaml"));
}

#[test]
fn rules_match_what_they_are_for_and_nothing_near_it() {
    let scope = load(DEFAULT_DOCUMENT).scope("", "").unwrap();
    let cases = [
        ("hi", Some("greeting-or-thanks")),
        ("Good morning everyone", Some("greeting-or-thanks")),
        ("thank you!!", Some("greeting-or-thanks")),
        ("hello world program", None),
        ("thanks translate this", None),
        ("hi, what is 2+2", None),
        ("Turn off the kitchen lights", Some("device-command")),
        ("please dim the lights in the living room", Some("device-command")),
        ("mute tv", Some("device-command")),
        ("turn on the charm in my cover letter", None),
        ("turn down the job offer politely", None),
        ("how do I turn off the heating", None),
        ("Prove that the square root of 2 is irrational", Some("proof-needs-strength")),
        ("give me a formal proof of Gauss's lemma", Some("proof-needs-strength")),
        ("prove me wrong: pineapple belongs on pizza", None),
        ("improve the introduction", None),
    ];
    let metadata = BTreeMap::new();
    for (text, expected) in cases {
        let words = text.split_whitespace().count();
        let signals = TextSignals { bytes: text.len(), words, lines: 1, ..TextSignals::default() };
        let input = RuleInput { text, signals: &signals, metadata: &metadata, tenant: "", role: "" };
        let matched = scope.rules().evaluate(&input).matched;
        assert_eq!(matched.first().map(|name| &**name), expected, "{text}");
    }
}

#[test]
fn greeting_is_decided_by_rule() {
    let scope = load(DEFAULT_DOCUMENT).scope("", "").unwrap();
    let text = "Hello there!";
    let text_signals = TextSignals { bytes: text.len(), words: 2, lines: 1, ..TextSignals::default() };
    let metadata = BTreeMap::new();
    let input = RuleInput { text, signals: &text_signals, metadata: &metadata, tenant: "", role: "" };
    let rules = scope.rules().evaluate(&input);
    assert!(scope.decisive(&rules));
    let resolution = scope.resolve(&signals(None, &rules, &Requirements::default())).unwrap();
    assert_eq!(&*resolution.intent, "chat");
    assert_eq!(resolution.tier, Tier::Simple);
    assert_eq!((resolution.source, resolution.confidence_of), (Source::Rule, ConfidenceOf::Rule));
    assert_eq!(&*resolution.chain, "small");
    assert_eq!(resolution.reasons[0].code, ReasonCode::RuleMatched);
    assert_eq!(resolution.reasons[0].subject, "greeting-or-thanks");
}

#[test]
fn hard_code_goes_to_a_strong_chain_and_escalates() {
    let scope = load(DEFAULT_DOCUMENT).scope("", "").unwrap();
    let classification = classification("code", [0.1, 0.2, 0.7], 0.9);
    let rules = RuleOutcome::default();
    let resolution = scope.resolve(&signals(Some(&classification), &rules, &Requirements::default())).unwrap();
    assert_eq!((&*resolution.chain, &*resolution.selected.model), ("coding-hard", "claude-sonnet"));
    assert_eq!(resolution.fallbacks.len(), 2);
    let escalation = resolution.escalation.unwrap();
    assert_eq!((&*escalation.next.model, escalation.hops_left), ("claude-opus", 1));
    // sigmoid(3.1 - logit(0.9))
    let success = resolution.selected.success_probability.unwrap().value();
    assert!((success - 0.711).abs() < 0.001, "{success}");
    assert!((resolution.selected.estimated_cost_usd - (100.0 * 3.0 + 512.0 * 15.0) / 1e6).abs() < 1e-12);
}

#[test]
fn every_intent_and_tier_has_an_answer_for_every_tenant_and_role() {
    let policy = load(DEFAULT_DOCUMENT);
    for (tenant, role) in [("", ""), ("", "batch"), ("", "code-reviewer"), ("example-eu", ""), ("example-eu", "batch")]
    {
        let scope = policy.scope(tenant, role).unwrap();
        for intent in super::INTENTS {
            for tiers in [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] {
                let classification = classification(intent, tiers, 0.5);
                let rules = RuleOutcome::default();
                let resolution = scope.resolve(&signals(Some(&classification), &rules, &Requirements::default()));
                let resolution = resolution.unwrap_or_else(|none| panic!("{tenant}/{role} {intent}: {none}"));
                assert!(!resolution.fallbacks.is_empty(), "{tenant}/{role} {intent} has no fallback");
            }
        }
    }
}
