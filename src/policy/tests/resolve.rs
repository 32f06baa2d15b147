//! What a policy decides on given signals, case by case.

use crate::domain::{Classification, ConfidenceOf, Language, Probability, ReasonCode, Requirements, Source, Tier};
use crate::policy::{Policy, Resolution, ScopeError, Signals};
use crate::rules::{FixedBy, RuleOutcome};

use std::sync::Arc;

use super::{classification, load, signals};

/// Three providers, four models; overrides at every level.
pub(super) const DOCUMENT: &str = r#"
schema: pointsman.policy/v1
id: test
version: "1"
providers: {a: {}, b: {}, c: {}}
models:
  tiny: {provider: a, provider_model: t, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 4000, ability: 0, typical_latency_ms: 100, regions: [us], endpoints: {x: 0.25, y: 0.75}, parameters: {temperature: 0.5, stop: [a]}}
  base: {provider: b, provider_model: b, price_per_million_tokens: {input_usd: 2, output_usd: 2}, context_window_tokens: 8000, ability: 1, typical_latency_ms: 200, regions: [us, eu], capabilities: [tools]}
  wide: {provider: c, provider_model: w, price_per_million_tokens: {input_usd: 3, output_usd: 3}, context_window_tokens: 100000, capabilities: [tools, vision, json_mode], regions: [eu]}
  top: {provider: a, provider_model: o, price_per_million_tokens: {input_usd: 9, output_usd: 9}, context_window_tokens: 100000, ability: 3, typical_latency_ms: 900, regions: [us], capabilities: [tools, vision, json_mode]}
chains:
  cheap: [tiny, base, wide]
  good: [base, top]
  best: [top, wide]
  safe: [base, wide]
routes:
  - {intent: code, tier: [medium, complex], chain: good}
  - {intent: "*", tier: complex, chain: best}
  - {intent: "*", tier: "*", chain: cheap}
rules: []
thresholds: {min_confidence: 0.8, by_intent: {math: {min_confidence: 0.95}}}
escalation: {ladder: [tiny, base, top], max_hops: 2, score_threshold: 0.7}
defaults:
  intent: other
  low_confidence: {chain: good}
  out_of_scope: {tier: complex}
  unsupported_language: {tier: medium, chain: safe}
  degraded: {tier: medium, chain: safe}
  expected_output_tokens: 100
roles:
  careful: {thresholds: {min_confidence: 0.95}, chains: {cheap: [base, tiny]}, providers: {c: {enabled: false}}}
  fixed: {chain: best}
tenants:
  acme:
    thresholds: {min_confidence: 0.6}
    routes: [{intent: chat, tier: "*", chain: acme-chat}]
    chains: {acme-chat: [wide, base]}
    escalation: {max_hops: 1}
    roles:
      careful: {thresholds: {min_confidence: 0.99}, allowed_providers: [b, c]}
      own: {chain: good}
  globex: {thresholds: {min_confidence: 0.7}}
  plain: {}
  onlyb: {allowed_providers: [b]}
"#;

fn policy() -> Arc<Policy> {
    load(DOCUMENT)
}

/// Resolves for a tenant and role, everything else at its default.
fn resolve(tenant: &str, role: &str, classification: &Classification) -> Resolution {
    let scope = policy().scope(tenant, role).unwrap();
    scope.resolve(&signals(Some(classification), &RuleOutcome::default(), &Requirements::default())).unwrap()
}

fn models(resolution: &Resolution) -> Vec<&str> {
    let fallbacks = resolution.fallbacks.iter().map(|fallback| &*fallback.candidate.model);
    std::iter::once(&*resolution.selected.model).chain(fallbacks).collect()
}

fn codes(resolution: &Resolution) -> Vec<ReasonCode> {
    resolution.reasons.iter().map(|reason| reason.code).collect()
}

fn by_rule<T>(value: T) -> FixedBy<T> {
    FixedBy { value, rule: Arc::from("r") }
}

#[test]
fn overrides_have_a_stated_precedence() {
    // Tenant, role and the threshold that applies: the tier is `simple` just above it and not just below.
    let cases = [
        ("", "", 0.80),              // top level
        ("plain", "", 0.80),         // the tenant says nothing
        ("", "careful", 0.95),       // role over top level
        ("plain", "careful", 0.95),  // role, where the tenant says nothing
        ("acme", "", 0.60),          // tenant over top level
        ("acme", "own", 0.60),       // tenant, where its own role says nothing
        ("globex", "careful", 0.70), // tenant over role
        ("acme", "careful", 0.99),   // the tenant's own role over everything
    ];
    for (tenant, role, threshold) in cases {
        for (simple, expected) in [(threshold + 0.005, true), (threshold - 0.005, false)] {
            let tiers = [simple, 1.0 - simple, 0.0];
            let tier = resolve(tenant, role, &classification("open_qa", tiers, 0.3)).tier;
            assert_eq!(tier == Tier::Simple, expected, "{tenant}/{role} at {simple}");
        }
    }
}

#[test]
fn a_layers_intent_threshold_is_stronger_than_its_general_one() {
    let tiers = [0.9, 0.1, 0.0];
    assert_eq!(resolve("", "", &classification("chat", tiers, 0.3)).tier, Tier::Simple);
    assert_eq!(resolve("", "", &classification("math", tiers, 0.3)).tier, Tier::Medium, "0.95 for math");
    assert_eq!(resolve("acme", "", &classification("math", tiers, 0.3)).tier, Tier::Simple, "the tenant's 0.60");
}

#[test]
fn chains_routes_and_providers_are_overridden() {
    let simple = classification("open_qa", [1.0, 0.0, 0.0], 0.3);
    assert_eq!(models(&resolve("", "", &simple)), ["tiny", "base", "wide"]);
    assert_eq!(models(&resolve("", "careful", &simple)), ["base", "tiny"]);
    assert_eq!(models(&resolve("onlyb", "", &simple)), ["base"]);
    let chat = classification("chat", [1.0, 0.0, 0.0], 0.3);
    assert_eq!(models(&resolve("acme", "", &chat)), ["wide", "base"], "the tenant's route comes first");
    assert_eq!(models(&resolve("acme", "careful", &chat)), ["base"], "c is disabled by the role");
    let fixed = resolve("", "fixed", &simple);
    assert_eq!((&*fixed.chain, fixed.source), ("best", Source::Override));
    assert_eq!(&*resolve("acme", "own", &simple).chain, "good");
    assert_eq!(resolve("", "", &simple).escalation.unwrap().hops_left, 2);
    assert_eq!(resolve("acme", "", &simple).escalation.unwrap().hops_left, 1);
}

#[test]
fn a_role_that_is_not_known_is_refused_and_a_tenant_by_the_default() {
    let policy = policy();
    let error = policy.scope("acme", "typo").unwrap_err();
    assert_eq!(error.to_string(), "role \"typo\" is not in the policy; known roles: careful, fixed, own");
    assert!(policy.scope("onlyb", "own").is_err(), "another tenant's role");
    let known = classification("chat", [1.0, 0.0, 0.0], 0.3);
    assert_eq!(codes(&resolve("nobody", "", &known))[0], ReasonCode::UnknownTenant);
    assert!(!codes(&resolve("", "", &known)).contains(&ReasonCode::UnknownTenant));
    let refusing = load(&DOCUMENT.replace("expected_output_tokens: 100", "unknown_tenant: refuse"));
    assert_eq!(refusing.scope("nobody", "").unwrap_err(), ScopeError::UnknownTenant("nobody".to_owned()));
    assert!(refusing.scope("", "").is_ok() && refusing.scope("acme", "").is_ok());
}

/// Requirements, models left, models removed and why.
type Filtered<'a> = (Requirements, &'a [&'a str], &'a [(&'a str, &'a str)]);

#[test]
fn each_filter_removes_with_its_reason() {
    let scope = policy().scope("", "").unwrap();
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.5);
    let any = Requirements::default;
    // Of chain `cheap` [tiny, base, wide].
    let cases: [Filtered<'_>; 10] = [
        (any(), &["tiny", "base", "wide"], &[]),
        (Requirements { tools: true, ..any() }, &["base", "wide"], &[("tiny", "CAPABILITY_MISSING")]),
        (
            Requirements { json_mode: true, ..any() },
            &["wide"],
            &[("tiny", "CAPABILITY_MISSING"), ("base", "CAPABILITY_MISSING")],
        ),
        (Requirements { data_regions: vec!["eu".into()], ..any() }, &["base", "wide"], &[("tiny", "REGION_MISMATCH")]),
        (Requirements { context_tokens: Some(5_000), ..any() }, &["base", "wide"], &[("tiny", "CONTEXT_TOO_SMALL")]),
        (
            Requirements { allowed_providers: vec!["b".into()], ..any() },
            &["base"],
            &[("tiny", "PROVIDER_NOT_ALLOWED"), ("wide", "PROVIDER_NOT_ALLOWED")],
        ),
        // 100 tokens in, 100 out.
        (Requirements { max_cost_usd: Some(400e-6), ..any() }, &["tiny", "base"], &[("wide", "COST_CAP_EXCEEDED")]),
        (Requirements { max_latency_ms: Some(200), ..any() }, &["tiny", "base"], &[("wide", "LATENCY_CAP_EXCEEDED")]),
        // sigmoid(ability - 0): 0.50, 0.73; wide has no ability and stays.
        (Requirements { min_quality: Some(0.6), ..any() }, &["base", "wide"], &[("tiny", "QUALITY_BELOW_FLOOR")]),
        (
            Requirements { max_latency_ms: Some(150), tools: true, ..any() },
            &[],
            &[("tiny", "CAPABILITY_MISSING"), ("base", "LATENCY_CAP_EXCEEDED"), ("wide", "LATENCY_CAP_EXCEEDED")],
        ),
    ];
    for (requirements, left, removed) in cases {
        let rules = RuleOutcome::default();
        let signals = signals(Some(&classification), &rules, &requirements);
        let (found, reasons) = match scope.resolve(&signals) {
            Ok(resolution) => (models(&resolution).iter().map(ToString::to_string).collect(), resolution.reasons),
            Err(none) => (Vec::new(), none.removed),
        };
        assert_eq!(found, *left, "{requirements:?}");
        let models = ["tiny", "base", "wide"];
        let told: Vec<(&str, &str)> = reasons
            .iter()
            .filter(|reason| models.contains(&reason.subject.as_str()) && reason.code != ReasonCode::FirstUsable)
            .map(|reason| (reason.subject.as_str(), reason.code.as_str()))
            .collect();
        assert_eq!(told, *removed, "{requirements:?}");
    }
}

#[test]
fn nothing_left_says_which_filter_removed_what() {
    let scope = policy().scope("onlyb", "").unwrap();
    let classification = classification("open_qa", [0.0, 0.0, 1.0], 0.5);
    let rules = RuleOutcome::default();
    let none = scope.resolve(&signals(Some(&classification), &rules, &Requirements::default())).unwrap_err();
    assert_eq!(
        none.to_string(),
        "no candidate is left in chain \"best\": top (PROVIDER_NOT_ALLOWED) provider a is not among those allowed by \
         tenant onlyb; wide (PROVIDER_NOT_ALLOWED) provider c is not among those allowed by tenant onlyb"
    );
}

/// Name, classification, rules, language, degraded; then intent, tier, chain, source and what confidence is of.
type Case<'a> = (
    &'a str,
    Option<&'a Classification>,
    &'a RuleOutcome,
    Option<Language>,
    bool,
    (&'a str, Tier, &'a str, Source, ConfidenceOf),
);

#[test]
fn intent_and_tier_follow_the_evidence() {
    use ConfidenceOf::{Rule as ByRule, TierSuffices};
    use Source::{Classifier, Degraded, Rule};

    let scope = policy().scope("", "").unwrap();
    let sure = classification("code", [0.1, 0.8, 0.1], 0.5);
    let mut unsure = classification("code", [0.9, 0.05, 0.05], 0.5);
    unsure.intent = crate::domain::Distribution::new(super::intents(), vec![1.0 / 14.0; 14]).unwrap();
    let alien = Classification { out_of_scope: Probability::ONE, ..sure.clone() };
    let none = RuleOutcome::default();
    let raised = RuleOutcome { floor: Some(by_rule(Tier::Complex)), ..none.clone() };
    let capped = RuleOutcome { cap: Some(by_rule(Tier::Simple)), ..none.clone() };
    let intent_only = RuleOutcome { intent: Some(by_rule(Arc::from("chat"))), ..none.clone() };
    let fixed = RuleOutcome { cap: Some(by_rule(Tier::Simple)), ..intent_only.clone() };
    let forced = RuleOutcome { force_chain: Some(by_rule(Arc::from("best"))), ..none.clone() };
    let forbidden = RuleOutcome { forbid_chains: vec![by_rule(Arc::from("good"))], ..none.clone() };
    let french = Some(Language("fra"));

    #[rustfmt::skip]
    let cases: [Case<'_>; 15] = [
        ("classified", Some(&sure), &none, None, false, ("code", Tier::Medium, "good", Classifier, TierSuffices)),
        ("unsure", Some(&unsure), &none, None, false, ("other", Tier::Simple, "good", Classifier, TierSuffices)),
        ("alien", Some(&alien), &none, None, false, ("other", Tier::Complex, "best", Classifier, ConfidenceOf::None)),
        ("french", Some(&sure), &none, french, false, ("other", Tier::Medium, "safe", Classifier, ConfidenceOf::None)),
        ("french by rule", Some(&sure), &intent_only, french, false, ("chat", Tier::Medium, "safe", Classifier, ConfidenceOf::None)),
        ("degraded", None, &none, None, true, ("other", Tier::Medium, "safe", Degraded, ConfidenceOf::None)),
        ("not consulted", None, &none, None, false, ("other", Tier::Medium, "safe", Degraded, ConfidenceOf::None)),
        ("degraded beats stale", Some(&sure), &none, None, true, ("other", Tier::Medium, "safe", Degraded, ConfidenceOf::None)),
        ("degraded, raised", None, &raised, None, true, ("other", Tier::Complex, "safe", Degraded, ByRule)),
        ("rule", None, &fixed, None, false, ("chat", Tier::Simple, "cheap", Rule, ByRule)),
        ("rule while degraded", None, &fixed, None, true, ("chat", Tier::Simple, "cheap", Rule, ByRule)),
        ("raised", Some(&sure), &raised, None, false, ("code", Tier::Complex, "good", Classifier, TierSuffices)),
        ("capped", Some(&sure), &capped, None, false, ("code", Tier::Simple, "cheap", Classifier, TierSuffices)),
        ("forced", None, &forced, None, false, ("other", Tier::Medium, "best", Rule, ByRule)),
        ("forbidden", Some(&sure), &forbidden, None, false, ("code", Tier::Medium, "cheap", Classifier, TierSuffices)),
    ];
    let requirements = Requirements::default();
    for (name, classification, rules, language, degraded, expected) in cases {
        let signals = Signals { language, degraded, ..signals(classification, rules, &requirements) };
        let found = scope.resolve(&signals).unwrap();
        let found = (&*found.intent, found.tier, &*found.chain, found.source, found.confidence_of);
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn reasons_tell_the_story_in_order() {
    use ReasonCode::*;

    let scope = policy().scope("", "").unwrap();
    let sure = classification("code", [0.1, 0.8, 0.1], 0.5);
    let rules = RuleOutcome {
        floor: Some(by_rule(Tier::Medium)),
        forbid_chains: vec![by_rule(Arc::from("good"))],
        matched: vec![Arc::from("r")],
        ..RuleOutcome::default()
    };
    let requirements = Requirements { tools: true, ..Requirements::default() };
    let low = Classification { tiers: [0.9, 0.05, 0.05], ..sure };
    let resolution = scope.resolve(&signals(Some(&low), &rules, &requirements)).unwrap();
    let expected = [
        RuleMatched,
        IntentClassified,
        TierRiskControlled,
        TierRaised,
        ChainForbidden,
        RouteMatched,
        CapabilityMissing,
        FirstUsable,
    ];
    assert_eq!(codes(&resolution), expected, "{:#?}", resolution.reasons);
    assert!((resolution.confidence.value() - 0.95).abs() < 1e-6, "P(medium suffices)");
}

#[test]
fn degraded_answers_say_what_they_rest_on() {
    use ReasonCode::*;

    let scope = policy().scope("", "").unwrap();
    let (rules, requirements) = (RuleOutcome::default(), Requirements::default());
    let resolution = scope.resolve(&Signals { degraded: true, ..signals(None, &rules, &requirements) }).unwrap();
    assert_eq!(codes(&resolution), [Degraded, TierDefault, ChainDefault, FirstUsable]);
    assert_eq!((resolution.confidence, resolution.intent_probability), (Probability::ZERO, Probability::ZERO));
    assert!((resolution.difficulty.value() - 0.5).abs() < 1e-9, "the middle of medium");
    assert_eq!(resolution.selected.success_probability, None);
}

#[test]
fn candidates_carry_what_the_caller_needs() {
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.5);
    let resolution = resolve("", "", &classification);
    let selected = &resolution.selected;
    assert_eq!((&*selected.provider, &*selected.provider_model, selected.access_path), ("a", "t", "native"));
    let parameters: Vec<String> = selected.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(parameters, ["stop=[\"a\"]", "temperature=0.5"]);
    assert!((selected.estimated_cost_usd - 200e-6).abs() < 1e-12);
    assert!((selected.success_probability.unwrap().value() - 0.5).abs() < 1e-9);
    assert_eq!(resolution.fallbacks[1].candidate.success_probability, None, "no ability");
    assert_eq!(resolution.fallbacks[0].reason.code, ReasonCode::NextInChain);
}

#[test]
fn cost_goes_by_the_usual_length_of_such_answers() {
    let lengths =
        "answer_lengths: [{intent: code, tier: \"*\", tokens: 900}, {intent: \"*\", tier: complex, tokens: 400}]";
    let policy =
        load(&DOCUMENT.replace("expected_output_tokens: 100", &format!("expected_output_tokens: 100\n  {lengths}")));
    let scope = policy.scope("", "").unwrap();
    let rules = RuleOutcome::default();
    let cost = |intent: &str, tiers: [f32; 3], said: Option<u32>, cap: Option<f64>| {
        let requirements = Requirements { max_cost_usd: cap, ..Requirements::default() };
        let classification = classification(intent, tiers, 0.5);
        let signals = Signals { output_tokens: said, ..signals(Some(&classification), &rules, &requirements) };
        scope.resolve(&signals).map(|found| (found.selected.estimated_cost_usd * 1e6).round() as u64).ok()
    };
    let (simple, complex) = ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]);
    // 100 tokens in; tiny costs 1, base 2, top 9 for a million in and out.
    assert_eq!(cost("open_qa", simple, None, None), Some(100 + 100));
    assert_eq!(cost("open_qa", complex, None, None), Some(9 * (100 + 400)));
    assert_eq!(cost("code", simple, None, None), Some(100 + 900));
    assert_eq!(cost("code", complex, None, None), Some(2 * (100 + 900)), "the first that takes both");
    assert_eq!(cost("code", simple, Some(10), None), Some(100 + 10), "what the request says wins");
    assert_eq!(cost("code", simple, None, Some(999e-6)), None, "a cap is held against the usual length");
}

#[test]
fn endpoints_are_sticky_and_weighted() {
    let scope = policy().scope("", "").unwrap();
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.5);
    let (rules, requirements) = (RuleOutcome::default(), Requirements::default());
    let endpoint = |key: &str| {
        let signals = Signals { sticky_key: key, ..signals(Some(&classification), &rules, &requirements) };
        scope.resolve(&signals).unwrap().selected.endpoint
    };
    let x = (0..2_000).filter(|i| endpoint(&format!("session-{i}")) == "x").count();
    assert!((400..600).contains(&x), "{x} of 2,000 for a weight of 0.25");
    assert_eq!(endpoint("same"), endpoint("same"));
}

#[test]
fn escalation_goes_to_the_next_usable_stronger_step() {
    let next = |document: &str, intent: &str, tiers: [f32; 3], requirements: &Requirements| {
        let scope = load(document).scope("", "").unwrap();
        let classification = classification(intent, tiers, 0.5);
        let rules = RuleOutcome::default();
        let resolution = scope.resolve(&signals(Some(&classification), &rules, requirements)).unwrap();
        resolution.escalation.map(|escalation| (escalation.next.model.to_string(), escalation.hops_left))
    };
    let any = Requirements::default();
    let (simple, complex) = ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]);
    let step = |model: &str, hops: u32| Some((model.to_owned(), hops));
    assert_eq!(next(DOCUMENT, "open_qa", simple, &any), step("base", 2));
    assert_eq!(next(DOCUMENT, "code", complex, &any), step("top", 1), "one stronger step is left");
    assert_eq!(next(DOCUMENT, "open_qa", complex, &any), None, "already the top");
    let no_b = DOCUMENT.replace("b: {}", "b: {enabled: false}");
    assert_eq!(next(&no_b, "open_qa", simple, &any), step("top", 1), "unusable steps are passed over");
    let no_hops = DOCUMENT.replace("max_hops: 2", "max_hops: 0");
    assert_eq!(next(&no_hops, "open_qa", simple, &any), None);
    let tools_in_eu = Requirements { vision: true, data_regions: vec!["eu".into()], ..any.clone() };
    assert_eq!(
        next(DOCUMENT, "open_qa", simple, &tools_in_eu),
        None,
        "wide stands beside the ladder; top is not in eu"
    );
    let vision = Requirements { vision: true, ..any };
    assert_eq!(next(DOCUMENT, "open_qa", simple, &vision), step("top", 1), "dearer than wide, which has no ability");
}
