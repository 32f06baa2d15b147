//! The sections on running, and decisions under what is true at the moment.

use crate::domain::{ReasonCode, Requirements, Tier};
use crate::policy::{
    Circumstances, FindingCode, LimitsSpec, Policy, PolicyOptions, Resolution, SessionsSpec, Standing, State,
};
use crate::rules::{FixedBy, RuleOutcome};

use super::resolve::DOCUMENT;
use super::{classification, load, signals};

/// `open_qa` that any tier answers, in the circumstances, under rules.
fn decide(circumstances: &Circumstances, rules: &RuleOutcome, tenant: &str, role: &str) -> Resolution {
    let scope = load(DOCUMENT).scope(tenant, role).unwrap();
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.5);
    let requirements = Requirements::default();
    scope.resolve_guarded(&signals(Some(&classification), rules, &requirements), circumstances).unwrap()
}

fn models(resolution: &Resolution) -> Vec<&str> {
    let fallbacks = resolution.fallbacks.iter().map(|fallback| &*fallback.candidate.model);
    std::iter::once(&*resolution.selected.model).chain(fallbacks).collect()
}

fn says(resolution: &Resolution, code: ReasonCode) -> bool {
    resolution.reasons.iter().any(|reason| reason.code == code)
}

fn on(model: &str, tier: Tier) -> Circumstances {
    Circumstances { session: Some((model.to_owned(), tier)), ..Circumstances::default() }
}

#[test]
fn ordinary_circumstances_change_nothing() {
    let rules = RuleOutcome::default();
    let resolution = decide(&Circumstances::default(), &rules, "", "");
    assert_eq!(models(&resolution), ["tiny", "base", "wide"]);
    let scope = load(DOCUMENT).scope("", "").unwrap();
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.5);
    let requirements = Requirements::default();
    assert_eq!(scope.resolve(&signals(Some(&classification), &rules, &requirements)), Ok(resolution));
}

#[test]
fn a_session_stays_where_the_filters_and_the_rules_let_it() {
    let rules = RuleOutcome::default();
    let stays = decide(&on("top", Tier::Complex), &rules, "", "");
    assert_eq!(models(&stays), ["top", "tiny", "base", "wide"], "from outside the chain too");
    assert!(says(&stays, ReasonCode::SessionSticky) && !says(&stays, ReasonCode::FirstUsable));
    assert_eq!(models(&decide(&on("base", Tier::Simple), &rules, "", "")), ["base", "tiny", "wide"]);
    // A provider that is off for the role, a chain that is forced, a model that is gone, a tier that is too low.
    assert_eq!(models(&decide(&on("wide", Tier::Complex), &rules, "", "careful")), ["base", "tiny"]);
    assert_eq!(models(&decide(&on("tiny", Tier::Complex), &rules, "", "fixed")), ["top", "wide"]);
    assert_eq!(models(&decide(&on("gone", Tier::Complex), &rules, "", "")), ["tiny", "base", "wide"]);
    let forbid_chains = vec![FixedBy { value: "best".into(), rule: "r".into() }];
    let forbidding = RuleOutcome { forbid_chains, ..RuleOutcome::default() };
    assert_eq!(models(&decide(&on("top", Tier::Complex), &forbidding, "", "")), ["tiny", "base", "wide"]);
    let out = Standing { state: State::Open, why: "failed".to_owned(), failing: 1.0 };
    let open = Circumstances { models: [("top".to_owned(), out)].into(), ..on("top", Tier::Complex) };
    assert_eq!(models(&decide(&open, &rules, "", "")), ["tiny", "base", "wide"]);
}

#[test]
fn a_floor_raises_the_tier_as_far_as_rules_leave_it() {
    let floor = Some((Tier::Complex, "the same text came again".to_owned()));
    let raised = Circumstances { floor, ..Circumstances::default() };
    let resolution = decide(&raised, &RuleOutcome::default(), "", "");
    assert_eq!((resolution.tier, &*resolution.chain), (Tier::Complex, "best"));
    assert!(says(&resolution, ReasonCode::SessionRaised));
    assert_eq!(resolution.confidence.value(), 1.0, "a higher tier suffices too");
    let cap = Some(FixedBy { value: Tier::Medium, rule: "r".into() });
    let capped = decide(&raised, &RuleOutcome { cap, ..RuleOutcome::default() }, "", "");
    assert_eq!(capped.tier, Tier::Medium);
}

#[test]
fn limits_and_sessions_merge_value_by_value() {
    let more = "
limits: {requests_per_second: 10, burst: 20, hard_budget_usd: 5}
sessions: {stick_s: 60, retry_s: 30}
";
    let document = DOCUMENT
        .replace("  plain: {}", "  plain: {limits: {hard_budget_usd: 1}, roles: {own: {sessions: {stick_s: 5}}}}")
        + more;
    let policy = load(&document);
    let scope = policy.scope("plain", "own").unwrap();
    let expected = LimitsSpec {
        requests_per_second: Some(10.0),
        burst: Some(20),
        hard_budget_usd: Some(1.0),
        ..LimitsSpec::default()
    };
    assert_eq!((scope.limits(), scope.account()), (expected, "plain"));
    assert_eq!(scope.sessions(), SessionsSpec { stick_s: Some(5), retry_s: Some(30), raise_s: None });
    assert_eq!(policy.scope("made-up", "").unwrap().account(), "");
    // The same as one document without overrides.
    let effective = policy.effective("plain", "own").unwrap();
    assert_eq!((effective.base.limits, effective.base.sessions), (scope.limits(), scope.sessions()));
}

#[test]
fn a_tenants_limits_outlive_its_mistakes() {
    let broken = DOCUMENT.replace("  plain: {}", "  plain: {chain: gone, limits: {hard_budget_usd: 1}}");
    let policy = std::sync::Arc::new(Policy::load(broken.as_bytes(), &PolicyOptions::default()).unwrap());
    let scope = policy.scope("plain", "").unwrap();
    assert!(scope.limits().hard_budget_usd == Some(1.0) && scope.account() == "plain");
}

#[test]
fn what_makes_no_sense_is_found() {
    let cases = [
        ("health: {model: {failure_ratio: 0}}", FindingCode::OutOfRange, "health.model.failure_ratio"),
        ("health: {provider: {close_after: 0}}", FindingCode::OutOfRange, "health.provider.close_after"),
        ("health: {model: {window_ms: 1}}", FindingCode::OutOfRange, "health.model.window_ms"),
        ("health: {models: {tinny: open}}", FindingCode::UnknownModel, "health.models.tinny"),
        ("health: {providers: {d: open}}", FindingCode::UnknownProvider, "health.providers.d"),
        ("health: {models: {tiny: ajar}}", FindingCode::InvalidValue, "health"),
        ("traffic: {caps: {tiny: 0}}", FindingCode::OutOfRange, "traffic.caps.tiny"),
        ("traffic: {caps: {tinny: 0.5}}", FindingCode::UnknownModel, "traffic.caps.tinny"),
        ("traffic: {fallback_share: 2}", FindingCode::OutOfRange, "traffic.fallback_share"),
        ("limits: {requests_per_second: 0}", FindingCode::OutOfRange, "limits.requests_per_second"),
        ("limits: {soft_budget_usd: 2, hard_budget_usd: 1}", FindingCode::OutOfRange, "limits.soft_budget_usd"),
        ("limits: {budget_window_s: 59}", FindingCode::OutOfRange, "limits.budget_window_s"),
        ("sessions: {stick_s: 0}", FindingCode::OutOfRange, "sessions.stick_s"),
        ("sessions: {stikc_s: 1}", FindingCode::UnknownField, "sessions.stikc_s"),
    ];
    for (more, code, path) in cases {
        let findings = Policy::check(format!("{DOCUMENT}{more}\n").as_bytes(), &PolicyOptions::default());
        let found = findings.iter().any(|finding| finding.code == code && finding.path.starts_with(path));
        assert!(found, "{more}: {findings:?}");
    }
}

#[test]
fn the_bounds_themselves_are_allowed_and_nothing_beyond() {
    let out_of_range = |more: String| {
        let findings = Policy::check(format!("{DOCUMENT}{more}\n").as_bytes(), &PolicyOptions::default());
        findings.iter().any(|finding| finding.code == FindingCode::OutOfRange)
    };
    for (section, least, too_little, most, too_much) in [
        ("limits: {budget_window_s: #}", "60", "59", "2678400", "2678401"),
        ("limits: {reserve_s: #}", "1", "0", "2678400", "2678401"),
        ("limits: {requests_per_second: #}", "0.001", "0", "1000000", "1000000.1"),
        ("limits: {burst: #}", "1", "0", "4000000000", ""),
        ("limits: {hard_budget_usd: #}", "0", "-0.1", "1000000", "1000000.1"),
        ("limits: {hard_budget_usd: 5, soft_budget_usd: #}", "0", "-0.1", "5", "5.1"),
        ("sessions: {retry_s: #}", "1", "0", "2678400", "2678401"),
        ("sessions: {raise_s: #}", "1", "0", "2678400", "2678401"),
        ("health: {model: {window_ms: #}}", "10", "9", "3600000", "3600001"),
        ("health: {provider: {probe_after_ms: #}}", "10", "9", "3600000", "3600001"),
        ("health: {model: {probe_timeout_ms: #}}", "10", "9", "3600000", "3600001"),
        ("health: {model: {failure_ratio: #}}", "0.01", "0.009", "1", "1.01"),
        ("health: {model: {slow_factor: #}}", "1", "0.9", "1000000", "1000000.1"),
        ("health: {model: {min_outcomes: #}}", "1", "0", "4000000000", ""),
        ("traffic: {fallback_share: #}", "0", "-0.1", "1", "1.1"),
        ("traffic: {escalation_share: #}", "0", "-0.1", "10", "10.1"),
        ("traffic: {retry_min_per_second: #}", "0", "-0.1", "1000000", "1000000.1"),
        ("traffic: {caps: {tiny: #}}", "0.001", "0", "1", "1.1"),
    ] {
        for allowed in [least, most] {
            assert!(!out_of_range(section.replace('#', allowed)), "{section}: {allowed}");
        }
        for refused in [too_little, too_much].into_iter().filter(|value| !value.is_empty()) {
            assert!(out_of_range(section.replace('#', refused)), "{section}: {refused}");
        }
    }
}
