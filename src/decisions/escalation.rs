//! What is kept of one step of a cascade.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{FailureKind, NextStep, Observed, Probability, StopReason};

/// A step of a cascade: what came of a decision, and what was said to do next.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EscalationRecord {
    /// When, Unix milliseconds.
    pub time_unix_ms: u64,
    /// The decision that the cascade began with.
    pub first_decision_id: String,
    /// The decision that was followed.
    pub decision_id: String,
    /// The request's id.
    pub request_id: String,
    /// The [`Context`](super::Context) of the policy and classifier behind the step.
    pub context: Arc<str>,
    /// The tenant; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// The role; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// The model that was called; absent: the policy does not have it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What the caller saw.
    pub observed: ObservedRecord,
    /// The score that was asked of the answer.
    pub threshold: Probability,
    /// What comes next.
    pub step: StepRecord,
}

/// What the caller saw.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ObservedRecord {
    /// The score of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Probability>,
    /// What made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scorer: String,
    /// Why there is no usable answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// Tokens used so far.
    #[serde(default)]
    pub tokens_used: u64,
    /// US dollars spent so far.
    #[serde(default)]
    pub cost_usd: f64,
}

/// What comes next.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StepRecord {
    /// A model to call.
    Next {
        /// The new decision.
        decision_id: String,
        /// The model.
        model: String,
        /// Who serves it.
        provider: String,
        /// Escalations so far, this one included.
        hops: u32,
        /// Models tried before it.
        attempts: u32,
        /// Spent before it.
        spent_usd: f64,
        /// Estimated cost of its answer.
        cost_usd: f64,
        /// P(it answers well), where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        success: Option<Probability>,
    },
    /// The end.
    Stop {
        /// Why.
        reason: StopReason,
    },
}

// === impl ObservedRecord ===

impl From<&Observed> for ObservedRecord {
    fn from(observed: &Observed) -> Self {
        Self {
            score: observed.score,
            scorer: observed.scorer.clone(),
            failure: observed.failure,
            tokens_used: observed.tokens_used,
            cost_usd: observed.cost_usd,
        }
    }
}

// === impl StepRecord ===

impl From<&NextStep> for StepRecord {
    fn from(next: &NextStep) -> Self {
        match next {
            NextStep::Decision(decision) => {
                let state = decision.cascade.as_ref().map(|cascade| cascade.state).unwrap_or_default();
                Self::Next {
                    decision_id: decision.decision_id.clone(),
                    model: decision.selected.model.to_string(),
                    provider: decision.selected.provider.to_string(),
                    hops: state.hops,
                    attempts: state.attempts,
                    spent_usd: state.cost_usd,
                    cost_usd: decision.selected.estimated_cost_usd,
                    success: decision.selected.success_probability,
                }
            }
            NextStep::Stop(stop) => Self::Stop { reason: stop.reason },
        }
    }
}
