//! The metrics of what callers report, of health, limits and shared state.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

use super::metrics::LogFate;
use crate::domain::{Attempt, Complexity, OutcomeReport, Tier};

type Amount = Counter<f64, AtomicU64>;

/// Metrics of outcomes and of what follows from them.
#[derive(Debug)]
pub struct OutcomeMetrics {
    outcomes: Family<OutcomeLabels, Counter>,
    latency: Family<ModelLabels, Histogram>,
    score: Family<ModelLabels, Histogram>,
    cost: Family<ModelLabels, Amount>,
    judged: Counter,
    expected_over: Amount,
    expected_under: Amount,
    scored_first: Counter,
    observed_under: Counter,
    breakers: Family<NameLabels, Gauge>,
    transitions: Family<TransitionLabels, Counter>,
    over_cap: Family<ModelLabels, Counter>,
    retries_spent: Family<RetryLabels, Counter>,
    limited: Family<LimitLabels, Counter>,
    soft: Family<TenantLabels, Counter>,
    spent: Family<TenantLabels, Gauge<f64, AtomicU64>>,
    sessions: Family<WhatLabels, Counter>,
    state_away: Gauge,
    state_failures: Counter,
    state_latency: Histogram,
    logged: Family<FateLabels, Counter>,
}

/// State of one breaker at the time of a scrape.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BreakerGauge {
    /// `model` or `provider`.
    pub scope: &'static str,
    /// The policy's name for it.
    pub name: String,
    /// `closed`, `half_open` or `open`.
    pub state: &'static str,
}

/// What a session did to a decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SessionEffect {
    /// It stayed on its model.
    Stuck,
    /// It asked for a stronger tier.
    Raised,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabels {
    model: String,
    attempt: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ModelLabels {
    model: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct NameLabels {
    scope: &'static str,
    name: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TransitionLabels {
    scope: &'static str,
    name: String,
    to: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RetryLabels {
    retry: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct WhatLabels {
    effect: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TenantLabels {
    tenant: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LimitLabels {
    tenant: String,
    limit: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FateLabels {
    fate: LogFate,
}

/// From 10 milliseconds to 164 seconds, doubling: answers of language models.
const LATENCY_BUCKETS: u16 = 15;
/// From 50 microseconds to 102 milliseconds, doubling: a store in the same network.
const STATE_BUCKETS: u16 = 12;

// === impl OutcomeMetrics ===

impl OutcomeMetrics {
    /// All at zero, in `registry`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let doubling = |start, n| prometheus_client::metrics::histogram::exponential_buckets(start, 2.0, n);
        let latency: fn() -> Histogram =
            || Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.01, 2.0, LATENCY_BUCKETS));
        let score: fn() -> Histogram =
            || Histogram::new(prometheus_client::metrics::histogram::linear_buckets(0.1, 0.1, 10));
        let own = Self {
            outcomes: Family::default(),
            latency: Family::new_with_constructor(latency),
            score: Family::new_with_constructor(score),
            cost: Family::default(),
            judged: Counter::default(),
            expected_over: Counter::default(),
            expected_under: Counter::default(),
            scored_first: Counter::default(),
            observed_under: Counter::default(),
            breakers: Family::default(),
            transitions: Family::default(),
            over_cap: Family::default(),
            retries_spent: Family::default(),
            limited: Family::default(),
            soft: Family::default(),
            spent: Family::default(),
            sessions: Family::default(),
            state_away: Gauge::default(),
            state_failures: Counter::default(),
            state_latency: Histogram::new(doubling(50e-6, STATE_BUCKETS)),
            logged: Family::default(),
        };
        let r = registry;
        r.register("outcomes", "Reported outcomes by model, attempt and result", own.outcomes.clone());
        let text = "Reported time to an answer, by model";
        r.register_with_unit("answer_duration", text, Unit::Seconds, own.latency.clone());
        r.register("answer_score", "Reported scores of answers, by model", own.score.clone());
        r.register("answer_cost_usd", "Reported cost of answers in US dollars, by model", own.cost.clone());
        r.register(
            "judged_decisions",
            "Decisions whose tier the classifier had a distribution for",
            own.judged.clone(),
        );
        r.register(
            "expected_over_routed",
            "Judged decisions for which a lower tier would have sufficed: sum of its probability",
            own.expected_over.clone(),
        );
        r.register(
            "expected_under_routed",
            "Judged decisions whose tier does not suffice: sum of the probability",
            own.expected_under.clone(),
        );
        r.register(
            "judged_first_answers",
            "First answers that were scored or said to be bad",
            own.scored_first.clone(),
        );
        r.register(
            "observed_under_routed",
            "First answers that were scored below the decision's threshold or said to be bad",
            own.observed_under.clone(),
        );
        r.register("breaker_state", "0 closed, 1 half-open, 2 open", own.breakers.clone());
        r.register("breaker_transitions", "Breakers that opened or closed", own.transitions.clone());
        r.register("over_cap", "Requests that a model received above its share of the traffic", own.over_cap.clone());
        r.register(
            "retry_budget_spent",
            "Decisions for tenants whose fallbacks, or escalations, have used up their share",
            own.retries_spent.clone(),
        );
        r.register("limited_requests", "Requests refused by a tenant's limits", own.limited.clone());
        r.register("soft_budget_decisions", "Decisions made cheaper by a soft budget", own.soft.clone());
        r.register("budget_spent_usd", "Spent or reserved in the tenant's current window", own.spent.clone());
        r.register("session_decisions", "Decisions that a session changed", own.sessions.clone());
        r.register("state_away", "1 while the shared state is away", own.state_away.clone());
        r.register(
            "state_failures",
            "Calls to the shared state that failed or took too long",
            own.state_failures.clone(),
        );
        let text = "Time of calls to the shared state";
        r.register_with_unit("state_duration", text, Unit::Seconds, own.state_latency.clone());
        r.register("outcome_log_lines", "Outcomes by what became of them in the outcome log", own.logged.clone());
        own
    }

    /// Counts an outcome of a model of the policy; `threshold` is the score below which its answer does not do.
    pub fn record_outcome(&self, report: &OutcomeReport, attempt: Option<Attempt>, threshold: Option<f64>) {
        let model = || ModelLabels { model: report.model.clone() };
        let low = report.score.zip(threshold).map(|(score, threshold)| score < threshold);
        let result = match (report.failure, low) {
            (Some(failure), _) => failure.as_str(),
            (None, Some(true)) => "low_score",
            (None, _) => "ok",
        };
        let attempt_name = attempt.map_or("unknown", Attempt::as_str);
        let labels = OutcomeLabels { model: report.model.clone(), attempt: attempt_name, result };
        self.outcomes.get_or_create(&labels).inc();
        let bad = report.failure.map(|failure| !failure.is_unavailability());
        if report.latency_ms > 0 && bad != Some(false) {
            self.latency.get_or_create(&model()).observe(report.latency_ms as f64 * 1e-3);
        }
        if let Some(score) = report.score {
            self.score.get_or_create(&model()).observe(score);
        }
        self.cost.get_or_create(&model()).inc_by(report.cost_usd);
        // A model that could not be reached says nothing of the routing.
        if attempt == Some(Attempt::First)
            && bad != Some(false)
            && let Some(is_bad) = bad.or(low)
        {
            self.scored_first.inc();
            self.observed_under.inc_by(u64::from(is_bad));
        }
    }

    /// Counts what the classifier expects of a decision's tier, where it gave a distribution over tiers.
    pub fn record_expectation(&self, complexity: &Complexity) {
        let Some(tiers) = complexity.tier_probabilities else { return };
        let below = |tier: &Tier| *tier < complexity.tier;
        let above = |tier: &Tier| *tier > complexity.tier;
        let sum = |takes: &dyn Fn(&Tier) -> bool| -> f64 {
            Tier::ALL.iter().zip(tiers).filter(|(tier, _)| takes(tier)).map(|(_, p)| f64::from(p)).sum()
        };
        self.judged.inc();
        self.expected_over.inc_by(sum(&below).max(0.0));
        self.expected_under.inc_by(sum(&above).max(0.0));
    }

    /// A breaker opened or closed.
    pub fn record_breaker(&self, scope: &'static str, name: &str, to: &'static str) {
        self.transitions.get_or_create(&TransitionLabels { scope, name: name.to_owned(), to }).inc();
    }

    /// The states of all breakers, for the scrape that follows.
    pub fn set_breakers(&self, gauges: Vec<BreakerGauge>) {
        self.breakers.clear();
        for BreakerGauge { scope, name, state } in gauges {
            let value = match state {
                "closed" => 0,
                "half_open" => 1,
                _ => 2,
            };
            self.breakers.get_or_create(&NameLabels { scope, name }).set(value);
        }
    }

    /// A model received a request above its cap.
    pub fn record_over_cap(&self, model: &str) {
        self.over_cap.get_or_create(&ModelLabels { model: model.to_owned() }).inc();
    }

    /// A tenant's fallbacks, or escalations, had used up their share when it asked.
    pub fn record_retry_budget_spent(&self, retry: &'static str) {
        self.retries_spent.get_or_create(&RetryLabels { retry }).inc();
    }

    /// A request was refused by the limits of a tenant of the policy.
    pub fn record_limited(&self, tenant: &str, limit: &'static str) {
        self.limited.get_or_create(&LimitLabels { tenant: tenant.to_owned(), limit }).inc();
    }

    /// A decision was made cheaper for a tenant of the policy.
    pub fn record_soft_budget(&self, tenant: &str) {
        self.soft.get_or_create(&TenantLabels { tenant: tenant.to_owned() }).inc();
    }

    /// What a tenant of the policy has spent and reserved in its window.
    pub fn set_spent(&self, tenant: &str, usd: f64) {
        self.spent.get_or_create(&TenantLabels { tenant: tenant.to_owned() }).set(usd);
    }

    /// A session changed a decision.
    pub fn record_session(&self, effect: SessionEffect) {
        let effect = match effect {
            SessionEffect::Stuck => "stuck",
            SessionEffect::Raised => "raised",
        };
        self.sessions.get_or_create(&WhatLabels { effect }).inc();
    }

    /// Whether the shared state is away.
    pub fn set_state_away(&self, away: bool) {
        self.state_away.set(i64::from(away));
    }

    /// A call to the shared state ended after `seconds`.
    pub fn record_state_call(&self, seconds: f64, failed: bool) {
        self.state_latency.observe(seconds);
        self.state_failures.inc_by(u64::from(failed));
    }

    /// What became of `n` outcomes in the outcome log.
    pub fn record_logged(&self, fate: LogFate, n: u64) {
        if n > 0 {
            self.logged.get_or_create(&FateLabels { fate }).inc_by(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{FailureKind, Probability};

    #[test]
    fn under_and_over_routing_are_told_from_what_is_known() {
        let mut registry = Registry::with_prefix("p");
        let metrics = OutcomeMetrics::register(&mut registry);
        let report = |score, failure| OutcomeReport {
            time_unix_ms: 0,
            decision_id: "d".to_owned(),
            model: "m".to_owned(),
            score,
            scorer: String::new(),
            failure,
            tokens: 0,
            cost_usd: 0.5,
            latency_ms: 100,
            attempt: None,
        };
        let first = Some(Attempt::First);
        metrics.record_outcome(&report(Some(0.9), None), first, Some(0.6));
        metrics.record_outcome(&report(Some(0.5), None), first, Some(0.6));
        metrics.record_outcome(&report(None, Some(FailureKind::Refused)), first, Some(0.6));
        // These say nothing of the routing: not judged, not reached, not the first.
        metrics.record_outcome(&report(None, None), first, Some(0.6));
        metrics.record_outcome(&report(None, Some(FailureKind::Timeout)), first, Some(0.6));
        metrics.record_outcome(&report(Some(0.1), None), Some(Attempt::Fallback), Some(0.6));
        metrics.record_expectation(&Complexity {
            tier: Tier::Medium,
            difficulty: Probability::ZERO,
            tier_probabilities: Some([0.5, 0.25, 0.25]),
        });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "p_judged_first_answers_total 3",
            "p_observed_under_routed_total 2",
            "p_expected_over_routed_total 0.5",
            "p_expected_under_routed_total 0.25",
            "p_answer_cost_usd_total{model=\"m\"} 3",
            "p_outcomes_total{model=\"m\",attempt=\"first\",result=\"low_score\"} 1",
            "p_outcomes_total{model=\"m\",attempt=\"first\",result=\"timeout\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
