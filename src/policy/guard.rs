//! Where filters that are no part of the document come in: breakers, caps, budgets.
//!
//! The policy asks a [`Guard`] after its own filters. A guard sees all candidates of one question together, so that it
//! can decide to leave one of them whatever their state.

use std::fmt::Debug;
use std::sync::Arc;

use crate::domain::ReasonCode;

/// A candidate that the document's filters have left.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The policy's name for the model.
    pub model: &'a Arc<str>,
    /// The policy's name for who serves it.
    pub provider: &'a Arc<str>,
    /// Estimated cost of one answer.
    pub estimated_cost_usd: f64,
}

/// What the candidates are wanted for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Purpose {
    /// To be selected or named as fallbacks in a first decision.
    Route,
    /// In place of one that is unavailable.
    Fallback,
    /// As a stronger step, also where it is only foretold in a decision.
    Escalation,
}

/// Removes candidates for reasons that change from one moment to the next.
pub trait Guard: Debug + Send + Sync {
    /// For each of `offers`, in order, why it must not be used now; `None`, also where the answer is too short: it may.
    ///
    /// Asked for what is only foretold, too: it must change nothing. Who decides tells the guard's owner what was
    /// selected.
    fn review(&self, purpose: Purpose, offers: &[Offer<'_>]) -> Vec<Option<(ReasonCode, String)>>;
}

/// The guard that removes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unguarded;

// === impl Unguarded ===

impl Guard for Unguarded {
    fn review(&self, _: Purpose, _: &[Offer<'_>]) -> Vec<Option<(ReasonCode, String)>> {
        Vec::new()
    }
}
