//! The policy: the versioned document that maps signals to candidates, and what is decided with it.
//!
//! [`Policy::load`] takes a document's bytes through `parse` (YAML to typed values, every finding with its line)
//! and `validate` (references, numbers, what cannot be meant) to an immutable snapshot. [`Policy::scope`] picks what
//! applies to a tenant and role, and [`Scope::resolve`] turns signals into candidates. `docs/policy.md` is the
//! operator's view. Uses `domain` and `rules`; no I/O.

mod assign;
mod check_operation;
mod circumstances;
mod decode;
mod diff;
mod document;
mod economy;
mod edit;
mod effective;
mod experiment;
mod experiments;
mod explain;
mod fan_out;
mod finding;
mod guard;
mod isolate;
mod ladder;
mod lint;
mod operation;
mod parse;
mod resolve;
mod schema;
mod scope;
mod select;
mod snapshot;
mod tree;
mod validate;
mod yaml;

#[cfg(test)]
mod tests;

pub use assign::{Assignment, KeyDigest};
pub use circumstances::{Circumstances, Standing, State};
pub use diff::{Answer, Change, Effect, PolicyDiff, certain, changes, diff, effects, named_intents};
pub use document::{
    AccessPath, AnswerLengthSpec, Capability, CheapFirst, DefaultsSpec, Document, EscalationSpec, FanOutSpec,
    LayerSpec, ModelSpec, PriceSpec, ProviderSpec, RouteSpec, SCHEMA, SafeAnswerSpec, SchemaName, ScorerSpec,
    TenantSpec, ThresholdsSpec, TierPattern, UnknownTenant,
};
pub use economy::{CascadeEstimate, Prospect, Scorer};
pub use edit::{EditError, set_provider_enabled};
pub use experiment::{ArmSpec, CONTROL, ExperimentKind, ExperimentSpec, RampSpec, StickyBy, Timestamp};
pub use explain::{CandidateOutcome, CandidateVerdict, Explanation, FilterVerdict};
pub use finding::{Finding, FindingCode, Severity, render_findings};
pub use guard::{Arrangement, Guard, Offer, Purpose, Unguarded};
pub use ladder::{Advance, Halt, Progress, Tried};
pub use operation::{BreakerSpec, ForcedState, HealthSpec, LimitsSpec, SessionsSpec, TrafficSpec, Unreported};
pub use resolve::{NoCandidate, Resolution, Signals, middle_of};
pub use schema::json_schema;
pub use scope::{MIN_CONFIDENCE, Scope, ScopeError};
pub use select::sticky_hash;
pub(crate) use snapshot::sha256_hex;
pub use snapshot::{InvalidPolicy, Policy, PolicyOptions};
pub use yaml::to_yaml;

/// The policy that is in force when no other is given.
pub const DEFAULT_DOCUMENT: &str = include_str!("default.yaml");
/// Largest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;
/// Deepest nesting of lists and mappings in a document.
pub const MAX_DOCUMENT_DEPTH: usize = 64;
