//! What a run leaves behind for the checker.

use std::time::{Duration, Instant};

use pointsman::rpc::proto;
use tonic::Code;

use super::document::{Doc, Terms};

/// Everything that was asked, answered and changed.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) calls: Vec<Call>,
    pub(super) reports: Vec<Report>,
    /// Policies in the order in which they were put where the service finds them.
    pub(super) installs: Vec<Install>,
    /// Versions of the model, likewise, and from when on each can have been in use.
    pub(super) models: Vec<(String, Instant)>,
    /// Times in which this process did not run as it should have, and for how long each.
    pub(super) pauses: Vec<(Instant, Duration)>,
    /// The encoder failed at some time, so that an answer may be degraded with no deadline.
    pub(super) broken: bool,
    /// Another model answers than the scripted one from some time on.
    pub(super) reloaded: bool,
}

/// One query and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Of the request; unique.
    pub(super) id: String,
    pub(super) sent: Instant,
    pub(super) received: Instant,
    pub(super) deadline: Option<Duration>,
    pub(super) tenant: &'static str,
    pub(super) asked: Asked,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// [`super::document::query`] of so many words, with the rule's word or without.
    Route { words: usize, ruled: bool },
    /// On from a decision.
    Step { cascade: Cascade, unavailable: bool, score: Option<f64> },
}

/// A cascade as its caller knows it.
#[derive(Clone, Debug)]
pub(super) struct Cascade {
    /// Models asked so far, the last one last, and whether its answer came and was not good enough.
    pub(super) tried: Vec<(usize, bool)>,
    pub(super) hops: u32,
    pub(super) tier: usize,
    pub(super) first_decision: String,
    /// The request behind the decision that is followed.
    pub(super) from: String,
}

#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Decision(Box<proto::Decision>),
    Stop(proto::StopReason),
    Refused(Code, String),
    /// Given up by the caller: whether anything was decided is not known.
    Dropped,
    /// Never answered.
    Lost(String),
}

/// What a caller told of a model.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) sent: Instant,
    pub(super) received: Instant,
    /// The request behind the decision.
    pub(super) call: String,
    pub(super) model: usize,
    pub(super) failed: bool,
    /// US dollars; `None`: not told, the estimate stands.
    pub(super) cost_usd: Option<f64>,
}

/// A policy put where the service finds it.
#[derive(Clone, Debug)]
pub(super) struct Install {
    pub(super) doc: Doc,
    pub(super) sha256: String,
    /// Not in force before.
    pub(super) from: Instant,
    /// In force by then, or a later one is; `None`: it may never have been.
    pub(super) by: Option<Instant>,
}

/// What a seed comes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) seed: u64,
    pub(super) terms: Terms,
    /// Policies over HTTP instead of a file that can be written.
    pub(super) http: bool,
    pub(super) encoder_faults: bool,
    pub(super) reloads: bool,
    pub(super) length: Duration,
}

// === impl History ===

impl History {
    /// How much longer than planned anything between these two moments may have taken.
    pub(super) fn paused(&self, from: Instant, to: Instant) -> Duration {
        let within = self.pauses.iter().filter(|(at, length)| *at <= to && *at + *length >= from);
        within.map(|(_, length)| *length).sum()
    }
}

// === impl Report ===

impl Report {
    /// Another says the same of the same decision: the service takes it once.
    pub(super) fn repeats(&self, earlier: &Self) -> bool {
        let said = |report: &Self| (report.failed, report.cost_usd.unwrap_or_default());
        (&self.call, self.model) == (&earlier.call, earlier.model) && said(self) == said(earlier)
    }
}

// === impl Call ===

impl Call {
    pub(super) fn decision(&self) -> Option<&proto::Decision> {
        match &self.outcome {
            Outcome::Decision(decision) => Some(decision),
            _ => None,
        }
    }
}
