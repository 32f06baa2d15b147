//! The decision log, and what can be asked of it: what would another policy have decided?
//!
//! A [`DecisionRecord`] holds every signal that a decision rests on and not the text. [`DecisionLog`] keeps the last ones
//! in memory and writes all of them to files, without ever making a request wait. [`replay`] decides a record again under
//! another policy, and [`simulate`] tells what that changes over many of them.

mod drift;
mod escalation;
mod files;
mod line;
mod log;
mod outcomes;
mod record;
mod replay;
mod simulate;
mod writer;

#[cfg(test)]
mod tests;

pub use drift::{DriftMonitor, SignalCounts, Stability, psi};
pub use escalation::{EscalationRecord, ObservedRecord, StepRecord};
pub use files::FileOptions;
pub use line::{Line, Lines, read_lines};
pub use log::{DECISIONS, DecisionLog, LogError, LogOptions};
pub use outcomes::{OUTCOMES, OutcomeLines, OutcomeLog, read_outcomes};
pub use record::{Context, DecisionRecord, InputRecord, Outcome, ShadowRecord, SignalsRecord};
pub use replay::{Baseline, NotReplayable, replay, replay_arms};
pub use simulate::{
    ChangedDecision, LineCounts, Mix, PolicyName, QualityChange, SimulationReport, TenantEffect, Transition, simulate,
};
