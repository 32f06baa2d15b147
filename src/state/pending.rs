//! A decision of which the outcome is awaited.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::account::{Budget, Nanos};
use crate::domain::{Attempt, OutcomeReport, Tier};
use crate::policy::{KeyDigest, Unreported};

/// What an outcome needs to know of its decision; a shared store holds it as JSON.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Pending {
    /// Who is asked for whom; in memory one for all decisions that it is the same in.
    #[serde(flatten)]
    pub outline: Arc<Outline>,
    /// When it was made, Unix milliseconds.
    pub at_ms: u64,
    /// The score below which an answer does not do. It follows from the query's difficulty, so that hardly two decisions
    /// have the same.
    pub threshold: Option<f64>,
    /// The session it is of and how long, in seconds, a bad answer counts there.
    pub session: Option<Box<(String, u32)>>,
    /// Length of the budget's window in milliseconds and what becomes of the estimate; `None`: no budget.
    pub budget: Option<(u64, Unreported)>,
    /// The estimated cost that is reserved.
    pub reserved: Nanos,
    /// The window it is reserved in.
    pub window: u64,
}

/// What few decisions are alone with.
#[derive(Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Outline {
    /// Whose traffic it is: a tenant of the policy, or nothing.
    pub account: Arc<str>,
    /// The tenant as the request named it; empty: none. Older servers wrote none.
    #[serde(default)]
    pub tenant: Arc<str>,
    /// The selected model.
    pub selected: Arc<str>,
    /// The models to ask at once with it.
    pub beside: Vec<Arc<str>>,
    /// Its fallbacks.
    pub fallbacks: Vec<Arc<str>>,
    /// The model to escalate to.
    pub escalation: Option<Arc<str>>,
    /// Why the selected model is called.
    pub attempt: Attempt,
    /// The tier it is for.
    pub tier: Tier,
}

/// A decision to be kept until its outcome.
#[derive(Clone, Debug)]
pub struct Booking<'a> {
    /// The decision.
    pub decision_id: &'a str,
    /// What its outcome needs to know. `window` is filled in.
    pub pending: Pending,
    /// The budget it is charged to.
    pub budget: Option<Budget>,
    /// What is kept of the session, by its key, and for how many seconds.
    pub session: Option<(super::Session, u32)>,
}

// === impl Pending ===

impl Pending {
    /// Why `model` was called for this decision; `None`: it is not among its candidates.
    pub fn attempt_of(&self, model: &str) -> Option<Attempt> {
        let Outline { selected, beside, fallbacks, escalation, attempt, .. } = &*self.outline;
        if **selected == *model || beside.iter().any(|beside| **beside == *model) {
            Some(*attempt)
        } else if fallbacks.iter().any(|fallback| **fallback == *model) {
            Some(Attempt::Fallback)
        } else {
            escalation.as_deref().filter(|escalation| *escalation == model).map(|_| Attempt::Escalation)
        }
    }

    /// Whether an answer was not good enough, as far as is known.
    pub fn is_bad(&self, report: &OutcomeReport) -> bool {
        let low = report.score.zip(self.threshold).is_some_and(|(score, threshold)| score < threshold);
        low || report.failure.is_some_and(|failure| !failure.is_unavailability())
    }
}

/// What tells a report from another: everything but the time it came.
pub fn fingerprint(report: &OutcomeReport) -> u64 {
    // Names and numbers: there is nothing that JSON could not hold.
    let text = serde_json::to_string(&OutcomeReport { time_unix_ms: 0, ..report.clone() }).unwrap_or_default();
    KeyDigest::of(&text).0.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// What a report says was spent; `None`: nothing is said, the estimate stands.
pub(super) fn spent(report: &OutcomeReport) -> Option<f64> {
    let unreachable = report.failure.is_some_and(crate::domain::FailureKind::is_unavailability);
    (report.cost_usd > 0.0 || unreachable).then_some(report.cost_usd)
}
