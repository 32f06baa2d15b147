//! The pre-filter: rules that look at a query before any model does.
//!
//! A policy carries rules; [`RuleSet::compile`] checks them and builds one automaton for all keywords and one for all
//! regular expressions, and [`RuleStack::evaluate`] answers what they fix. Evaluation is total, deterministic and
//! linear in the length of the text. Uses `domain` alone.

mod compile;
mod evaluate;
mod evidence;
mod imply;
mod outcome;
mod path;
mod spec;

#[cfg(test)]
mod tests;

pub use compile::{RuleError, RuleProblem, RuleSet};
pub use evaluate::{RuleInput, RuleStack};
pub use evidence::{Atom, Evidence, Replay};
pub use outcome::{FixedBy, RuleOutcome};
pub use path::{Path, Step};
pub use spec::{ConditionSpec, EffectSpec, LengthSpec, RuleSpec};

/// Deepest nesting of conditions.
pub const MAX_CONDITION_DEPTH: usize = 16;
/// Most memory one compiled regular expression may take, in bytes; bounds the time per byte of text too.
pub const MAX_REGEX_BYTES: usize = 512 * 1024;
/// Most memory all regular expressions of one rule list may take, in bytes.
pub const MAX_REGEX_SET_BYTES: usize = 16 * 1024 * 1024;
/// Regular expressions look at this much of the text's start, in bytes. Matching is linear, but an expression can take
/// microseconds a byte: 256 KiB of text would hold a request up for seconds.
pub const MAX_REGEX_TEXT_BYTES: usize = 16 * 1024;
