//! Health as the router uses it, under a policy.

use proptest::prelude::*;

use super::share::BURST;
use super::*;
use crate::policy::PolicyOptions;
use crate::telemetry::Metrics;

const POLICY: &str = r#"
schema: pointsman.policy/v1
id: health
version: "1"
models:
  a: {provider: one, provider_model: a, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 1000, typical_latency_ms: 100}
  b: {provider: one, provider_model: b, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 1000}
  c: {provider: two, provider_model: c, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 1000}
chains: {all: [a, b, c]}
routes: [{intent: "*", tier: "*", chain: all}]
health:
  provider: {consecutive_failures: 8, min_outcomes: 30}
tenants: {known: {}}
"#;

/// Health with a clock that only the test moves.
struct Rig {
    health: Health,
    policy: Policy,
    now: Instant,
    decisions: u64,
}

impl Rig {
    fn new(more: &str) -> Self {
        let document = format!("{POLICY}{more}");
        let policy = Policy::load(document.as_bytes(), &PolicyOptions::default()).unwrap();
        let health = Health::new(Arc::clone(Metrics::new().outcomes()));
        Self { health, policy, now: Instant::now(), decisions: 0 }
    }

    fn pass(&mut self, ms: u64) -> &mut Self {
        self.now += Duration::from_millis(ms);
        self
    }

    fn circumstances(&self) -> Circumstances {
        self.health.circumstances(&self.policy, "", self.now)
    }

    fn state(&self, model: &str) -> Option<State> {
        self.circumstances().models.get(model).map(|standing| standing.state)
    }

    /// A decision for `model`; false: it was to be decided again.
    fn choose(&mut self, model: &str) -> bool {
        self.decisions += 1;
        let circumstances = self.circumstances();
        let decision_id = &format!("d{}", self.decisions);
        let chosen = Chosen { decision_id, account: "", model, attempt: Attempt::First };
        if circumstances.probes.contains(model) && !self.health.claim(&self.policy, chosen, self.now) {
            return false;
        }
        self.health.count(&self.policy, chosen, self.now);
        true
    }

    /// What came of the last decision, as `model` answered.
    fn see(&self, model: &str, failure: Option<FailureKind>, attempt: Attempt, latency_ms: u64) {
        self.see_of(&format!("d{}", self.decisions), model, failure, attempt, latency_ms);
    }

    fn see_of(&self, decision: &str, model: &str, failure: Option<FailureKind>, attempt: Attempt, latency_ms: u64) {
        let report = OutcomeReport {
            time_unix_ms: 0,
            decision_id: decision.to_owned(),
            model: model.to_owned(),
            score: None,
            scorer: String::new(),
            failure,
            tokens: 10,
            cost_usd: 0.01,
            latency_ms,
            attempt: None,
        };
        let behind = Behind { account: "", attempt: Some(attempt), counted: false, age: Duration::ZERO };
        assert!(self.health.observe(&self.policy, &report, behind, self.now));
    }

    /// Answers of as many decisions failed.
    fn fail(&mut self, model: &str, times: usize) {
        for _ in 0..times {
            self.decisions += 1;
            self.see(model, Some(FailureKind::ProviderError), Attempt::First, 10);
        }
    }

    /// What a step of a cascade tells.
    fn hear(&self, decision: &str, model: &str, failure: Option<FailureKind>) {
        let told = Told { decision_id: decision, model, account: "", failure, age: Duration::ZERO };
        self.health.hear(&self.policy, told, self.now);
    }
}

#[test]
fn a_failing_model_goes_out_and_comes_back_by_a_probe() {
    let mut rig = Rig::new("");
    assert!(rig.circumstances().is_ordinary());
    rig.fail("a", 5);
    assert_eq!((rig.state("a"), rig.state("b")), (Some(State::Open), None));
    rig.pass(1_000);
    assert!(rig.circumstances().probes.contains("a") && rig.state("a").is_none());
    assert!(rig.choose("a"));
    assert_eq!(rig.state("a"), Some(State::Probation), "one probe at a time");
    rig.see("a", None, Attempt::First, 50);
    assert!(rig.choose("a"));
    rig.see("a", None, Attempt::First, 50);
    assert!(rig.circumstances().is_ordinary());
}

#[test]
fn two_requests_that_saw_the_same_probe_due_do_not_both_try() {
    let mut rig = Rig::new("");
    rig.fail("a", 5);
    rig.pass(1_000);
    assert!(rig.circumstances().probes.contains("a"));
    let chosen = |decision_id| Chosen { decision_id, account: "", model: "a", attempt: Attempt::First };
    assert!(rig.health.claim(&rig.policy, chosen("x"), rig.now));
    assert!(!rig.health.claim(&rig.policy, chosen("y"), rig.now));
}

#[test]
fn a_provider_takes_its_models_with_it() {
    let mut rig = Rig::new("");
    for _ in 0..4 {
        rig.fail("a", 1);
        rig.fail("b", 1);
    }
    let circumstances = rig.circumstances();
    let states: Vec<_> = circumstances.models.iter().map(|(name, standing)| (name.as_str(), standing.state)).collect();
    assert_eq!(states, [("a", State::Open), ("b", State::Open)]);
    assert!(circumstances.models["b"].why.starts_with("its provider"));
    // A limit on the rate is the model's own.
    let limited = Rig::new("");
    let each = |rig: &Rig, model: &str, failure, latency_ms| {
        (0..20).for_each(|n| rig.see_of(&format!("{model}{n}"), model, failure, Attempt::First, latency_ms));
    };
    each(&limited, "a", Some(FailureKind::RateLimited), 10);
    assert_eq!((limited.state("a"), limited.state("b")), (Some(State::Open), None));
    // A refusal is an answer.
    let refusing = Rig::new("");
    each(&refusing, "a", Some(FailureKind::Refused), 10);
    assert_eq!(refusing.state("a"), None);
    // Slow is what takes many times what it typically takes; without a typical latency nothing is.
    let slow = Rig::new("");
    for model in ["a", "c"] {
        each(&slow, model, None, 600);
    }
    assert_eq!((slow.state("a"), slow.state("c")), (Some(State::Open), None));
    rig.pass(1_000);
    assert!(rig.choose("b"), "the provider's probe goes by any of its models");
    assert_eq!(rig.state("a"), Some(State::Probation));
}

#[test]
fn a_decision_speaks_once_of_a_model() {
    let mut rig = Rig::new("");
    for _ in 0..20 {
        rig.see("a", Some(FailureKind::Timeout), Attempt::First, 10);
        rig.hear("d0", "a", Some(FailureKind::Timeout));
    }
    assert_eq!(rig.state("a"), None, "one failed call, told forty times");
    let card = rig.health.scorecard(&rig.policy, rig.now);
    assert_eq!(card.models[0].figures.outcomes, 20, "figures are of what was reported");
    rig.fail("a", 3);
    rig.see("b", None, Attempt::Fallback, 10);
    rig.hear("another", "a", Some(FailureKind::Timeout));
    assert_eq!(rig.state("a"), Some(State::Open), "five decisions in a row");
}

#[test]
fn failures_that_only_cascades_tell_of_count_beside_reports() {
    let mut rig = Rig::new("");
    let told = |rig: &Rig, n: usize| (0..n).for_each(|n| rig.hear(&format!("t{n}"), "a", Some(FailureKind::Timeout)));
    told(&rig, 30);
    assert_eq!(rig.state("a"), None, "who tells of failures alone cannot be weighed");
    rig.see("c", None, Attempt::First, 10);
    rig.pass(600_001);
    told(&rig, 30);
    assert_eq!(rig.state("a"), None, "that was long ago");
    rig.decisions += 1;
    rig.see("c", None, Attempt::First, 10);
    told(&rig, 5);
    assert_eq!(rig.state("a"), Some(State::Open), "and what did not count before does now");
    // Out of service, whoever tries it may tell.
    rig.pass(700_000);
    assert!(rig.choose("a"));
    rig.hear(&format!("d{}", rig.decisions), "a", Some(FailureKind::ProviderError));
    assert_eq!(rig.state("a"), Some(State::Open), "the probe failed");
    for _ in 0..2 {
        rig.pass(1_000);
        assert!(rig.choose("a"));
        rig.hear(&format!("d{}", rig.decisions), "a", Some(FailureKind::BadFormat));
    }
    assert_eq!(rig.state("a"), None, "bad answers are answers");
    rig.hear("x", "nobody", Some(FailureKind::Timeout));
    let card = rig.health.scorecard(&rig.policy, rig.now);
    assert_eq!(card.models[0].figures.outcomes, 0, "cascades tell neither latency nor cost");
}

#[test]
fn the_policy_can_hold_a_state_by_hand() {
    let mut rig = Rig::new("");
    rig.policy = Policy::load(
        POLICY.replace("health:\n", "health:\n  models: {a: closed}\n  providers: {two: open}\n").as_bytes(),
        &PolicyOptions::default(),
    )
    .unwrap();
    rig.fail("a", 7);
    assert_eq!((rig.state("a"), rig.state("c")), (None, Some(State::Open)));
    let card = rig.health.scorecard(&rig.policy, rig.now);
    let of = |name: &str| card.models.iter().find(|card| card.name == name).unwrap();
    assert_eq!((of("a").breaker, of("a").forced), ("closed", true));
    assert_eq!(of("a").figures.success, Some(0.0));
}

#[test]
fn retries_end_when_their_share_is_used_up_and_come_back_with_traffic() {
    let mut rig = Rig::new("traffic: {fallback_share: 0.1, retry_min_per_second: 0}\n");
    for _ in 0..10 {
        rig.see("b", None, Attempt::Fallback, 10);
    }
    let circumstances = rig.circumstances();
    assert!(circumstances.fallbacks_spent && !circumstances.escalations_spent);
    assert_eq!(circumstances.no_fallback, ["b".to_owned()].into());
    assert!(circumstances.models.is_empty() && circumstances.no_escalation.is_empty());
    assert!(!rig.health.circumstances(&rig.policy, "known", rig.now).fallbacks_spent, "each tenant has its own");
    for _ in 0..11 {
        assert!(rig.choose("a"));
    }
    assert!(rig.circumstances().is_ordinary(), "eleven first attempts pay for one retry");
}

#[test]
fn names_that_the_policy_does_not_have_are_not_kept() {
    let rig = Rig::new("");
    let report = OutcomeReport {
        time_unix_ms: 0,
        decision_id: "d".to_owned(),
        model: "nobody".to_owned(),
        score: None,
        scorer: String::new(),
        failure: None,
        tokens: 0,
        cost_usd: 0.0,
        latency_ms: 1,
        attempt: None,
    };
    let behind = Behind { account: "", attempt: None, counted: false, age: Duration::ZERO };
    assert!(!rig.health.observe(&rig.policy, &report, behind, rig.now));
    assert_eq!(rig.health.scorecard(&rig.policy, rig.now).models.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A capped model never gets more than its share and a burst, whoever asks for it when.
    #[test]
    fn no_model_gets_more_than_its_cap(asks in prop::collection::vec(0_usize..3, 1..500)) {
        let mut rig = Rig::new("traffic: {caps: {c: 0.3}}\n");
        let mut received = 0.0;
        for (n, ask) in asks.into_iter().enumerate() {
            let capped = rig.state("c") == Some(State::Capped);
            let model = if ask < 2 && !capped { "c" } else { "a" };
            prop_assert!(rig.choose(model));
            received += f64::from(u8::from(model == "c"));
            prop_assert!(received <= 0.3 * (n + 1) as f64 + BURST + 1e-6);
        }
    }
}
