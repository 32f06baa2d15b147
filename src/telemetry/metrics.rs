//! The Prometheus metrics of the service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::TransportMetrics;
use super::outcomes::OutcomeMetrics;
use crate::domain::{Decision, ExperimentArm, FailureKind, NextStep, PolicyRef};

/// Every metric. Cheap to share behind an `Arc`; recording never blocks for long.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: Family<DecisionLabels, Counter>,
    stages: Family<StageLabels, Histogram>,
    requests: Family<RequestLabels, Counter>,
    in_flight: Gauge,
    shed: Counter,
    queue_entries: Gauge,
    queue_tokens: Gauge,
    batch_sequences: Histogram,
    batch_tokens: Histogram,
    batch_failures: Counter,
    skipped: Counter,
    wasted: Counter,
    cache: Family<CacheLabels, Counter>,
    cache_entries: Gauge,
    policy: Family<PolicyLabels, Gauge>,
    policy_age: Gauge<f64, AtomicU64>,
    policy_loads: Gauge,
    policy_rejected: Family<ReasonLabels, Counter>,
    policy_fetch_failed: Family<ReasonLabels, Counter>,
    policy_stale: Gauge,
    policy_copy_failed: Counter,
    tenant_cost_usd: Family<TenantLabels, Counter<f64, AtomicU64>>,
    tenant_decisions: Family<TenantLabels, Counter>,
    experiment_arms: Family<ArmLabels, Counter>,
    shadows: Family<ShadowLabels, Counter>,
    logged: Family<LogLabels, Counter>,
    outcomes: Arc<OutcomeMetrics>,
    escalations: Family<EscalationLabels, Counter>,
    stability: Family<SignalLabels, Gauge<f64, AtomicU64>>,
    transport: TransportMetrics,
}

/// What became of a decision that was to be logged.
#[derive(Clone, Copy, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
pub enum LogFate {
    /// It is in the file.
    Written,
    /// Dropped: the disk is slower than decisions come.
    QueueFull,
    /// Dropped: the file cannot be written.
    Failed,
    /// Dropped: the log was closed before.
    Closed,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TenantLabels {
    tenant: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ArmLabels {
    experiment: String,
    arm: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ShadowLabels {
    experiment: String,
    arm: String,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EscalationLabels {
    cause: &'static str,
    step: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct SignalLabels {
    signal: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LogLabels {
    fate: LogFate,
}

/// A part of answering one request.
#[derive(Clone, Copy, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
pub enum Stage {
    /// Choosing and cleaning the text.
    Text,
    /// The pre-filter.
    Rules,
    /// Waiting for a forward pass.
    Queue,
    /// Tokenizer, encoder and heads.
    Inference,
    /// Chain, filters, selection.
    Policy,
    /// All of it.
    Total,
}

/// What a look into the decision cache came to.
#[derive(Clone, Copy, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
pub enum CacheResult {
    /// It was there.
    Hit,
    /// It was not.
    Miss,
}

/// State of the policy store at the time of a scrape.
#[derive(Clone, Debug)]
pub struct PolicyGauges {
    /// The policy in force.
    pub policy: PolicyRef,
    /// Documents accepted.
    pub loads: u64,
    /// Documents refused, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Looks at the source that failed, by reason.
    pub fetch_failed: BTreeMap<&'static str, u64>,
    /// Whether it was not confirmed for longer than allowed.
    pub stale: bool,
    /// Copies on disk that could not be read or written.
    pub copy_failures: u64,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DecisionLabels {
    intent: String,
    tier: &'static str,
    model: String,
    source: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StageLabels {
    stage: Stage,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    method: &'static str,
    code: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CacheLabels {
    result: CacheResult,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PolicyLabels {
    id: String,
    version: String,
    sha256: String,
    source: String,
}

/// From 10 microseconds to 2.6 seconds, doubling.
const LATENCY_BUCKETS: u16 = 19;

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let latency = || Histogram::new(doubling(10e-6, LATENCY_BUCKETS));
        let mut registry = Registry::with_prefix("pointsman");
        let outcomes = Arc::new(OutcomeMetrics::register(&mut registry));
        let mut metrics = Self {
            registry,
            decisions: Family::default(),
            stages: Family::new_with_constructor(latency as fn() -> Histogram),
            requests: Family::default(),
            in_flight: Gauge::default(),
            shed: Counter::default(),
            queue_entries: Gauge::default(),
            queue_tokens: Gauge::default(),
            batch_sequences: Histogram::new(doubling(1.0, 9)),
            batch_tokens: Histogram::new(doubling(8.0, 11)),
            batch_failures: Counter::default(),
            skipped: Counter::default(),
            wasted: Counter::default(),
            cache: Family::default(),
            cache_entries: Gauge::default(),
            policy: Family::default(),
            policy_age: Gauge::default(),
            policy_loads: Gauge::default(),
            policy_rejected: Family::default(),
            policy_fetch_failed: Family::default(),
            policy_stale: Gauge::default(),
            policy_copy_failed: Counter::default(),
            tenant_cost_usd: Family::default(),
            tenant_decisions: Family::default(),
            experiment_arms: Family::default(),
            shadows: Family::default(),
            logged: Family::default(),
            outcomes,
            escalations: Family::default(),
            stability: Family::default(),
            transport: TransportMetrics::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("decisions", "Decisions by intent, tier, selected model and source", self.decisions.clone());
        r.register_with_unit("stage_duration", "Time by stage of a decision", Unit::Seconds, self.stages.clone());
        r.register("requests", "Requests by method and gRPC status", self.requests.clone());
        r.register("requests_in_flight", "Requests being answered", self.in_flight.clone());
        r.register("requests_shed", "Requests refused by admission control", self.shed.clone());
        r.register("queue_entries", "Queries waiting for a forward pass", self.queue_entries.clone());
        r.register("queue_tokens", "Word pieces waiting for a forward pass", self.queue_tokens.clone());
        r.register("batch_sequences", "Queries per forward pass", self.batch_sequences.clone());
        r.register("batch_tokens", "Word pieces per forward pass", self.batch_tokens.clone());
        r.register("batch_failures", "Forward passes that failed", self.batch_failures.clone());
        r.register(
            "skipped_inferences",
            "Queries dropped unread: expired or cancelled in the queue",
            self.skipped.clone(),
        );
        r.register(
            "wasted_inferences",
            "Queries classified though they had expired or been cancelled when the pass began; stays 0",
            self.wasted.clone(),
        );
        r.register("decision_cache_lookups", "Look-ups in the decision cache", self.cache.clone());
        r.register("decision_cache_entries", "Entries in the decision cache", self.cache_entries.clone());
        r.register("policy_info", "The policy in force", self.policy.clone());
        r.register_with_unit(
            "policy_age",
            "Time since the source confirmed the policy",
            Unit::Seconds,
            self.policy_age.clone(),
        );
        r.register("policy_loads", "Policy documents accepted since the start", self.policy_loads.clone());
        r.register(
            "decision_cost_usd",
            "Estimated cost in US dollars of the selected models' answers, by tenant of the policy",
            self.tenant_cost_usd.clone(),
        );
        r.register("tenant_decisions", "Decisions by tenant of the policy", self.tenant_decisions.clone());
        r.register("experiment_decisions", "Decisions by experiment and arm", self.experiment_arms.clone());
        r.register(
            "shadow_decisions",
            "Shadow decisions by whether they select the served model",
            self.shadows.clone(),
        );
        r.register("decision_log_lines", "Lines of the decision log by what became of them", self.logged.clone());
        r.register(
            "escalations",
            "Steps of cascades by what caused them and what came of it",
            self.escalations.clone(),
        );
        r.register(
            "signal_stability_index",
            "Population stability index of the last 2,000 classifications against the first since the start, by signal",
            self.stability.clone(),
        );
        r.register("policy_rejected", "Policy documents refused, by the first error", self.policy_rejected.clone());
        r.register(
            "policy_fetch_failed",
            "Looks at the policy's source that failed, by what failed",
            self.policy_fetch_failed.clone(),
        );
        r.register(
            "policy_stale",
            "1 while the policy has gone unconfirmed for longer than allowed",
            self.policy_stale.clone(),
        );
        r.register(
            "policy_copy_failed",
            "Policy copies on disk that could not be read or written",
            self.policy_copy_failed.clone(),
        );
        self.transport.register(r);
    }

    /// What happens before and beside decisions.
    pub fn transport(&self) -> &TransportMetrics {
        &self.transport
    }

    /// Those of outcomes, health, limits and shared state.
    pub fn outcomes(&self) -> &Arc<OutcomeMetrics> {
        &self.outcomes
    }

    /// Counts a decision and its stage times.
    pub fn record_decision(&self, decision: &Decision) {
        let labels = DecisionLabels {
            intent: decision.intent.label.to_string(),
            tier: decision.complexity.tier.as_str(),
            model: decision.selected.model.to_string(),
            source: decision.source.as_str(),
        };
        self.decisions.get_or_create(&labels).inc();
        for told in &decision.experiments {
            let labels = ArmLabels { experiment: told.experiment.to_string(), arm: told.arm.to_string() };
            self.experiment_arms.get_or_create(&labels).inc();
        }
        let timings = &decision.timings;
        for (stage, us) in [
            (Stage::Text, timings.text_us),
            (Stage::Rules, timings.rules_us),
            (Stage::Queue, timings.queue_us),
            (Stage::Inference, timings.inference_us),
            (Stage::Policy, timings.policy_us),
            (Stage::Total, timings.total_us),
        ] {
            if us > 0 || stage == Stage::Total {
                self.stages.get_or_create(&StageLabels { stage }).observe(us as f64 * 1e-6);
            }
        }
    }

    /// Counts what a decision for `tenant` is expected to cost. The caller passes only tenants of the policy, or the
    /// empty name: what callers make up must not become series.
    pub fn record_cost(&self, tenant: &str, usd: f64) {
        let labels = TenantLabels { tenant: tenant.to_owned() };
        self.tenant_cost_usd.get_or_create(&labels).inc_by(usd);
        self.tenant_decisions.get_or_create(&labels).inc();
    }

    /// Counts what a shadow would have selected: `same`, `other`, or `undecided` where it needs the classifier and the
    /// request did not.
    pub fn record_shadow(&self, told: &ExperimentArm, agrees: Option<bool>) {
        let result = match agrees {
            Some(true) => "same",
            Some(false) => "other",
            None => "undecided",
        };
        let labels = ShadowLabels { experiment: told.experiment.to_string(), arm: told.arm.to_string(), result };
        self.shadows.get_or_create(&labels).inc();
    }

    /// Sets how far each signal is from what it was.
    pub fn set_stability(&self, stability: &[(&'static str, f64)]) {
        for (signal, index) in stability {
            self.stability.get_or_create(&SignalLabels { signal }).set(*index);
        }
    }

    /// Counts a step of a cascade: what was called in place or after, or why it stopped.
    pub fn record_escalation(&self, failure: Option<FailureKind>, next: &NextStep) {
        let step = match next {
            NextStep::Decision(_) if failure.is_some_and(FailureKind::is_unavailability) => "fallback",
            NextStep::Decision(_) => "stronger",
            NextStep::Stop(stop) => stop.reason.as_str(),
        };
        let labels = EscalationLabels { cause: failure.map_or("score", FailureKind::as_str), step };
        self.escalations.get_or_create(&labels).inc();
    }

    /// Counts what became of `n` lines in the log.
    pub fn record_logged(&self, fate: LogFate, n: u64) {
        if n > 0 {
            self.logged.get_or_create(&LogLabels { fate }).inc_by(n);
        }
    }

    /// Counts a finished request.
    pub fn record_request(&self, method: &'static str, code: String) {
        self.requests.get_or_create(&RequestLabels { method, code }).inc();
    }

    /// One more request is being answered.
    pub fn request_started(&self) {
        self.in_flight.inc();
    }

    /// One request fewer is being answered.
    pub fn request_ended(&self) {
        self.in_flight.dec();
    }

    /// A request was refused by admission control.
    pub fn record_shed(&self) {
        self.shed.inc();
    }

    /// How much waits for a forward pass.
    pub fn set_queue(&self, entries: usize, tokens: usize) {
        self.queue_entries.set(entries as i64);
        self.queue_tokens.set(tokens as i64);
    }

    /// A forward pass was run.
    pub fn record_batch(&self, sequences: usize, tokens: usize) {
        self.batch_sequences.observe(sequences as f64);
        self.batch_tokens.observe(tokens as f64);
    }

    /// A forward pass failed.
    pub fn record_batch_failure(&self) {
        self.batch_failures.inc();
    }

    /// A query was dropped from the queue unread.
    pub fn record_skipped(&self) {
        self.skipped.inc();
    }

    /// `n` queries went into a pass though nobody would read their answers.
    pub fn record_wasted(&self, n: u64) {
        self.wasted.inc_by(n);
    }

    /// A look into the decision cache, and how many entries it has.
    pub fn record_cache(&self, result: CacheResult, entries: usize) {
        self.cache.get_or_create(&CacheLabels { result }).inc();
        self.cache_entries.set(entries as i64);
    }

    /// All metrics in the OpenMetrics text format, with the policy's state as of now.
    ///
    /// # Errors
    /// When formatting fails, which writing into a string does not.
    pub fn encode(&self, policy: Option<&PolicyGauges>) -> Result<String, std::fmt::Error> {
        if let Some(gauges) = policy {
            // One series at a time: the policy in force.
            self.policy.clear();
            let PolicyRef { id, version, sha256, source, age_ms, .. } = &gauges.policy;
            let labels = PolicyLabels {
                id: id.to_string(),
                version: version.to_string(),
                sha256: sha256.to_string(),
                source: source.to_string(),
            };
            self.policy.get_or_create(&labels).set(1);
            self.policy_age.set(*age_ms as f64 * 1e-3);
            self.policy_loads.set(gauges.loads as i64);
            // The store counts; here its counts become counters.
            for (family, counts) in
                [(&self.policy_rejected, &gauges.rejected), (&self.policy_fetch_failed, &gauges.fetch_failed)]
            {
                for (reason, count) in counts {
                    family.get_or_create(&ReasonLabels { reason }).inner().store(*count, Ordering::Relaxed);
                }
            }
            self.policy_stale.set(i64::from(gauges.stale));
            self.policy_copy_failed.inner().store(gauges.copy_failures, Ordering::Relaxed);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Stage {
    /// The name used in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Rules => "rules",
            Self::Queue => "queue",
            Self::Inference => "inference",
            Self::Policy => "policy",
            Self::Total => "total",
        }
    }

    /// Microseconds of a duration, as timings hold them.
    pub fn micros(duration: Duration) -> u64 {
        u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
    }
}

fn doubling(start: f64, n: u16) -> impl Iterator<Item = f64> {
    prometheus_client::metrics::histogram::exponential_buckets(start, 2.0, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_in_force_is_one_series() {
        let metrics = Metrics::new();
        let gauges = |version: &str| PolicyGauges {
            policy: PolicyRef {
                id: "p".into(),
                version: version.into(),
                sha256: "00".into(),
                age_ms: 1_500,
                source: "file".into(),
                revision: "r".into(),
                loaded_at_unix_ms: 0,
            },
            loads: 2,
            rejected: [("SYNTAX", 1)].into(),
            fetch_failed: [("TIMED_OUT", 3)].into(),
            stale: true,
            copy_failures: 4,
        };
        metrics.encode(Some(&gauges("1"))).unwrap();
        let text = metrics.encode(Some(&gauges("2"))).unwrap();
        assert!(
            text.contains("pointsman_policy_info{id=\"p\",version=\"2\"") && !text.contains("version=\"1\""),
            "{text}"
        );
        assert!(text.contains("pointsman_policy_age_seconds 1.5"), "{text}");
        for line in [
            "pointsman_policy_rejected_total{reason=\"SYNTAX\"} 1",
            "pointsman_policy_fetch_failed_total{reason=\"TIMED_OUT\"} 3",
            "pointsman_policy_stale 1",
            "pointsman_policy_copy_failed_total 4",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn shed_and_cache_count() {
        let metrics = Metrics::new();
        metrics.record_shed();
        metrics.record_cache(CacheResult::Hit, 7);
        metrics.record_request("Route", "OK".into());
        let text = metrics.encode(None).unwrap();
        for line in [
            "pointsman_requests_shed_total 1",
            "pointsman_decision_cache_lookups_total{result=\"Hit\"} 1",
            "pointsman_decision_cache_entries 7",
            "pointsman_requests_total{method=\"Route\",code=\"OK\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
