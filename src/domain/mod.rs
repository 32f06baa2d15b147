//! The vocabulary of Pointsman: what a query, a signal and a decision are.
//!
//! Plain types with their invariants and no I/O. Everything else uses these words; nothing here uses anything else.

pub mod cascade;
pub mod control;
pub mod decision;
pub mod outcome;
pub mod probability;
pub mod query;
pub mod reason;
pub mod signal;
pub mod tier;

pub use cascade::{CascadeState, NextStep, Observed, Stop, StopReason};
pub use control::TierControl;
pub use decision::{
    Candidate, Cascade, ClassifierRef, Combine, Complexity, Confidence, ConfidenceOf, Decision, Escalation,
    ExperimentArm, Fallback, FanOut, InputReport, IntentCall, PolicyRef, Source, Timings,
};
pub use outcome::{Attempt, FailureKind, OutcomeReport};
pub use probability::{Distribution, Probability};
pub use query::{Content, InvalidQuery, Message, MessageRole, Priority, Query, Requirements};
pub use reason::{Reason, ReasonCode};
pub use signal::{Classification, Language, Structure, Structures, TextSignals};
pub use tier::{Tier, TierChoice};
