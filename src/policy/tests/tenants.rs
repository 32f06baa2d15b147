//! Environments, and how far one tenant's mistake reaches.

use std::sync::Arc;

use proptest::prelude::*;

use crate::domain::{Probability, ReasonCode, Requirements, Tier};
use crate::policy::{Finding, NoCandidate, Policy, PolicyOptions, Resolution, Severity, certain};
use crate::rules::RuleOutcome;

use super::{intents, load, signals};

const DOCUMENT: &str = r#"
schema: pointsman.policy/v1
id: shared
version: "1"
providers: {a: {}, b: {}}
models:
  one: {provider: a, provider_model: x, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 9000}
  two: {provider: b, provider_model: y, price_per_million_tokens: {input_usd: 2, output_usd: 2}, context_window_tokens: 9000}
chains:
  main: [one, two]
  other: [two, one]
routes: [{intent: "*", tier: "*", chain: main}]
thresholds: {min_confidence: 0.5}
defaults: {low_confidence: {chain: other}}
environments:
  development: {thresholds: {min_confidence: 0.6}, chains: {main: [two]}}
  production: {thresholds: {min_confidence: 0.9}}
roles:
  strict: {thresholds: {min_confidence: 0.95}}
tenants:
  broken: BROKEN
  sound: {chains: {main: [two, one]}}
"#;

fn document(broken: &str) -> String {
    DOCUMENT.replace("BROKEN", broken)
}

fn policy(broken: &str) -> Result<Arc<Policy>, Vec<Finding>> {
    let options = PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() };
    Policy::load(document(broken).as_bytes(), &options).map(Arc::new).map_err(|invalid| invalid.findings)
}

fn decide(policy: &Arc<Policy>, tenant: &str, role: &str) -> Result<Resolution, NoCandidate> {
    let scope = policy.scope(tenant, role).unwrap();
    let (rules, requirements) = (RuleOutcome::default(), Requirements::default());
    scope.resolve(&signals(Some(&certain("chat", Tier::Simple)), &rules, &requirements))
}

fn selected(policy: &Arc<Policy>, tenant: &str, role: &str) -> String {
    decide(policy, tenant, role).map_or_else(|none| format!("none of {}", none.chain), |r| r.selected.model.to_string())
}

#[test]
fn a_broken_tenant_gets_the_base_policy_and_is_told_so() {
    let mistakes = [
        "{chains: {main: [gone]}}",
        "{chain: gone}",
        "{routes: [{intent: chat, tier: hard, chain: main}]}",
        "{rules: [{name: r, when: {regex: \"(\"}, then: {tier: simple}}]}",
        "{thresholds: {min_confidence: 7}}",
        "{chian: main}",
        "{chains: {main: [two]}, roles: {own: {chain: gone}}}",
    ];
    for mistake in mistakes {
        let policy = policy(mistake).unwrap_or_else(|findings| panic!("{mistake}: {findings:?}"));
        let errors: Vec<&Finding> =
            policy.warnings().iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert!(!errors.is_empty() && errors.iter().all(|e| e.tenant.as_deref() == Some("broken")), "{mistake}");
        let resolution = decide(&policy, "broken", "").unwrap();
        assert_eq!(&*resolution.selected.model, "one", "{mistake}");
        assert_eq!(resolution.reasons[0].code, ReasonCode::TenantOverrideRefused, "{mistake}");
        assert_eq!((selected(&policy, "", ""), selected(&policy, "sound", "")), ("one".into(), "two".into()));
        let sound = decide(&policy, "sound", "").unwrap();
        assert!(sound.reasons.iter().all(|reason| reason.code != ReasonCode::TenantOverrideRefused));
    }
    // Its roles stay known, so that its requests are answered.
    let policy = policy("{roles: {own: {chain: gone}}}").unwrap();
    assert_eq!(selected(&policy, "broken", "own"), "one");
    assert_eq!(selected(&policy, "broken", "strict"), "one");
}

#[test]
fn what_a_broken_tenant_forbids_stays_forbidden() {
    // What the tenant says; what it gets.
    let cases = [
        ("{allowed_providers: [b], chain: gone}", "two"),
        ("{providers: {a: {enabled: false}}, chain: gone}", "two"),
        ("{allowed_providers: [b, gone]}", "two"),
        // It forbids something that cannot be read: nothing may serve it.
        ("{allowed_providers: {b: true}}", "none of main"),
        ("{allowed_provider: [b]}", "none of main"),
        ("{providers: [a]}", "none of main"),
        ("{providers: {a: {enabled: 0}}}", "none of main"),
        ("7", "none of main"),
    ];
    for (tenant, expected) in cases {
        let policy = policy(tenant).unwrap_or_else(|findings| panic!("{tenant}: {findings:?}"));
        assert_eq!(selected(&policy, "broken", ""), expected, "{tenant}");
        assert_eq!((selected(&policy, "", ""), selected(&policy, "sound", "")), ("one".into(), "two".into()));
    }
    // In a role only that role is concerned.
    let policy = policy("{roles: {own: {allowed_providers: 7}, free: {chain: gone}}}").unwrap();
    assert_eq!(selected(&policy, "broken", "own"), "none of main");
}

#[test]
fn mistakes_in_shared_parts_refuse_the_document() {
    let whole = document("{}");
    for (from, to) in [
        ("chains:\n  main: [one", "chains:\n  main: [gone"),
        ("strict: {thresholds", "strict: {threshold"),
        ("development: {thresholds", "development: {threshold"),
        ("tenants:\n", "tenants: 5\nignored:\n"),
        ("{low_confidence: {chain: other}}", "{low_confidence: {chain: gone}}"),
    ] {
        let document = whole.replacen(from, to, 1);
        assert_ne!(document, whole);
        let invalid = Policy::load(document.as_bytes(), &PolicyOptions::default()).unwrap_err();
        assert!(invalid.findings.iter().any(Finding::refuses_document), "{to}");
    }
}

#[test]
fn a_name_that_starts_like_another_is_another() {
    let two = document("{chain: gone}").replace("  sound:", "  broken.too: {}\n  broken-too: {}\n  sound:");
    let policy = Arc::new(Policy::load(two.as_bytes(), &PolicyOptions::default()).unwrap());
    for tenant in ["broken.too", "broken-too"] {
        let reasons = decide(&policy, tenant, "").unwrap().reasons;
        assert!(reasons.iter().all(|reason| reason.code != ReasonCode::TenantOverrideRefused), "{tenant}");
    }
}

fn in_environment(name: Option<&str>) -> Arc<Policy> {
    let options = PolicyOptions { intents: Some(intents()), environment: name.map(str::to_owned) };
    Arc::new(Policy::load(document("{thresholds: {min_confidence: 0.7}}").as_bytes(), &options).unwrap())
}

#[test]
fn an_environment_stands_between_the_top_level_and_roles() {
    let cases = [
        (None, "", "", 0.5),
        (Some("development"), "", "", 0.6),
        (Some("production"), "", "", 0.9),
        (Some("production"), "", "strict", 0.95),
        (Some("production"), "broken", "", 0.7),
        (Some("development"), "broken", "strict", 0.7),
        (Some("staging"), "", "", 0.5),
    ];
    for (environment, tenant, role, expected) in cases {
        let policy = in_environment(environment);
        let scope = policy.scope(tenant, role).unwrap();
        assert_eq!(scope.min_confidence("chat"), Probability::saturating(expected), "{environment:?} {tenant}/{role}");
    }
    assert_eq!(selected(&in_environment(Some("development")), "", ""), "two");
    assert_eq!(selected(&in_environment(Some("development")), "sound", ""), "two");
    assert_eq!(selected(&in_environment(None), "", ""), "one");
    let warnings = |policy: &Policy| policy.warnings().iter().map(|f| f.code.as_str()).collect::<Vec<_>>();
    assert!(warnings(&in_environment(Some("staging"))).contains(&"UNKNOWN_ENVIRONMENT"));
    assert!(!warnings(&in_environment(Some("production"))).contains(&"UNKNOWN_ENVIRONMENT"));
}

proptest! {
    /// Whatever a tenant writes, others are decided as if it had written nothing, or the document is refused for a
    /// mistake that is not the tenant's (YAML that does not end where it should).
    #[test]
    fn no_tenant_changes_what_another_gets(text in "[a-z:{}\\[\\], 0-9\"]{0,60}") {
        let alone = load(&document("{}"));
        if let Ok(policy) = policy(&text) {
            for tenant in ["", "sound", "unknown"] {
                prop_assert_eq!(decide(&policy, tenant, "strict"), decide(&alone, tenant, "strict"));
            }
        }
    }
}
