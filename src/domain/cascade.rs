//! What a caller tells of an answer, and how a cascade goes on.

use serde::{Deserialize, Serialize};

use super::outcome::MAX_COST_USD;
use super::{Decision, FailureKind, InvalidQuery, Probability, Reason};

/// What came of calling a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The caller's score of the answer; `None`: there is none.
    pub score: Option<Probability>,
    /// Name of what made the score; empty: not told.
    pub scorer: String,
    /// Why no usable answer was obtained; `None`: there is an answer.
    pub failure: Option<FailureKind>,
    /// Tokens used so far by the whole cascade; 0: not told.
    pub tokens_used: u64,
    /// US dollars spent so far by the whole cascade; 0: not told.
    pub cost_usd: f64,
    /// How long the caller can still wait; `None`: not told.
    pub time_left_ms: Option<u64>,
}

/// What a cascade is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CascadeState {
    /// Models tried before this step.
    pub attempts: u32,
    /// Escalations, this one included: steps made because an answer was not good enough.
    pub hops: u32,
    /// Tokens used so far, as far as the caller told.
    pub tokens_used: u64,
    /// US dollars spent so far: what the caller told, estimates where it told nothing.
    pub cost_usd: f64,
}

/// The next step, or the end.
#[derive(Clone, Debug, PartialEq)]
pub enum NextStep {
    /// Call this next.
    Decision(Box<Decision>),
    /// Stop here.
    Stop(Stop),
}

/// Why a cascade ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Stop {
    /// Machine-readable.
    pub reason: StopReason,
    /// For people.
    pub text: String,
    /// What removed the candidates that might have come next.
    pub removed: Vec<Reason>,
}

/// Why a cascade ends.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The answer is good enough.
    Accepted,
    /// The policy's maximum number of escalations was reached.
    MaxHops,
    /// The budget is spent.
    Budget,
    /// The time is up.
    Deadline,
    /// The answer is not good enough and there is nothing stronger to try.
    NothingStronger,
    /// The model is unavailable and so is everything in its place.
    NothingLeft,
}

/// Longest name of a scorer, in bytes.
pub const MAX_SCORER_BYTES: usize = 64;

// === impl Observed ===

impl Observed {
    /// Checks what the wire contract asks of it.
    ///
    /// # Errors
    /// Names the first field that breaks it.
    pub fn check(&self) -> Result<(), InvalidQuery> {
        let refuse = |field, problem: String| Err(InvalidQuery { field, problem });
        match (self.score, self.failure) {
            (None, None) => {
                let problem = "has neither score nor failure; tell what came of the answer";
                return refuse("observed", problem.to_owned());
            }
            (Some(_), Some(failure)) if failure.is_unavailability() => {
                let problem = format!("there is no answer to score after {}", failure.as_str());
                return refuse("observed.score", problem);
            }
            _ => {}
        }
        if self.scorer.len() > MAX_SCORER_BYTES {
            let problem = format!("{} bytes, at most {MAX_SCORER_BYTES} are allowed", self.scorer.len());
            return refuse("observed.scorer", problem);
        }
        if !(0.0..=MAX_COST_USD).contains(&self.cost_usd) {
            return refuse("observed.cost_usd", format!("{} is not within 0..={MAX_COST_USD}", self.cost_usd));
        }
        Ok(())
    }
}

// === impl StopReason ===

impl StopReason {
    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::MaxHops => "max_hops",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::NothingStronger => "nothing_stronger",
            Self::NothingLeft => "nothing_left",
        }
    }
}
