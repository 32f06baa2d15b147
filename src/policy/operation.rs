//! What a policy says of running: health of models, storms of retries, limits of tenants, sessions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::is_default;

/// When models and providers are taken out of service, by the outcomes that callers report.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct HealthSpec {
    /// For each model by itself.
    #[serde(default, skip_serializing_if = "is_default")]
    pub model: BreakerSpec,
    /// For each provider, over all its models; answers that were refused for their rate do not count.
    #[serde(default, skip_serializing_if = "is_default")]
    pub provider: BreakerSpec,
    /// By hand: models by name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub models: BTreeMap<String, ForcedState>,
    /// By hand: providers by name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub providers: BTreeMap<String, ForcedState>,
}

/// The state a breaker is held in by hand, whatever callers report.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ForcedState {
    /// Out of service.
    Open,
    /// In service.
    Closed,
}

/// When a breaker opens and closes.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct BreakerSpec {
    /// Over which time shares are taken. Default 30000.
    pub window_ms: u32,
    /// Fewer outcomes than this in the window open nothing by their share. Default 10.
    pub min_outcomes: u32,
    /// Opens when this share of the window's outcomes failed. Default 0.5.
    pub failure_ratio: f64,
    /// Opens when so many in a row failed. Default 5.
    pub consecutive_failures: u32,
    /// An answer is slow that takes more than this many times the model's `typical_latency_ms`. Default 5.
    pub slow_factor: f64,
    /// Opens when this share of the window's outcomes was slow or failed. Default 0.8.
    pub slow_ratio: f64,
    /// While open, one request is let through so often, alone. Default 1000.
    pub probe_after_ms: u32,
    /// A probe of which nothing was heard for so long is given up. Default 10000.
    pub probe_timeout_ms: u32,
    /// Closes after so many good answers. Default 2.
    pub close_after: u32,
}

/// Guards against storms: what failures may not add to the load.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct TrafficSpec {
    /// Fallbacks per first attempt, of each tenant and to each model. Default 0.1.
    pub fallback_share: f64,
    /// Escalations per first attempt, of each tenant and to each model. Default 1.
    pub escalation_share: f64,
    /// Fallbacks, and escalations, that each tenant and model may have per second whatever the traffic. Default 1.
    pub retry_min_per_second: f64,
    /// The most that a model may receive of all requests, as a share, by model.
    #[serde(skip_serializing_if = "is_default")]
    pub caps: BTreeMap<String, f64>,
}

/// What a tenant may ask for and spend.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct LimitsSpec {
    /// Requests per second, averaged. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// Requests that may come at once. Default: one second's worth, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Above this much spent in the window the cheapest candidate goes first. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_budget_usd: Option<f64>,
    /// What would go above this in the window is refused. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_budget_usd: Option<f64>,
    /// Length of the window; windows begin at multiples of it since 1970-01-01T00:00Z. Default 86400, a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_window_s: Option<u32>,
    /// How long a decision's estimated cost waits for its outcome. Default 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_s: Option<u32>,
    /// What becomes of the estimate when no outcome came. Default `charge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreported: Option<Unreported>,
}

/// What becomes of a reserved cost of which nothing was heard.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unreported {
    /// It counts as spent.
    #[default]
    Charge,
    /// It counts as not spent.
    Release,
}

/// How requests of one session hang together.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct SessionsSpec {
    /// Stay on the session's model so long after its last request, while it is strong enough: the provider's prompt
    /// cache is warm. Default: do not stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stick_s: Option<u32>,
    /// The same text again within this time asks for one tier more than before: the answer did not please. Default:
    /// not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_s: Option<u32>,
    /// For this long after a bad outcome of the session, ask for one tier more than the bad answer had. Default: not
    /// looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raise_s: Option<u32>,
}

// === impl BreakerSpec ===

impl Default for BreakerSpec {
    fn default() -> Self {
        Self {
            window_ms: 30_000,
            min_outcomes: 10,
            failure_ratio: 0.5,
            consecutive_failures: 5,
            slow_factor: 5.0,
            slow_ratio: 0.8,
            probe_after_ms: 1_000,
            probe_timeout_ms: 10_000,
            close_after: 2,
        }
    }
}

// === impl TrafficSpec ===

impl Default for TrafficSpec {
    fn default() -> Self {
        Self { fallback_share: 0.1, escalation_share: 1.0, retry_min_per_second: 1.0, caps: BTreeMap::new() }
    }
}

// === impl LimitsSpec ===

impl LimitsSpec {
    /// The values of `self`, else those of `general`.
    #[must_use]
    pub fn over(&self, general: &Self) -> Self {
        Self {
            requests_per_second: self.requests_per_second.or(general.requests_per_second),
            burst: self.burst.or(general.burst),
            soft_budget_usd: self.soft_budget_usd.or(general.soft_budget_usd),
            hard_budget_usd: self.hard_budget_usd.or(general.hard_budget_usd),
            budget_window_s: self.budget_window_s.or(general.budget_window_s),
            reserve_s: self.reserve_s.or(general.reserve_s),
            unreported: self.unreported.or(general.unreported),
        }
    }
}

// === impl SessionsSpec ===

impl SessionsSpec {
    /// The values of `self`, else those of `general`.
    #[must_use]
    pub fn over(&self, general: &Self) -> Self {
        Self {
            stick_s: self.stick_s.or(general.stick_s),
            retry_s: self.retry_s.or(general.retry_s),
            raise_s: self.raise_s.or(general.raise_s),
        }
    }
}
