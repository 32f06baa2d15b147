//! What rules asked of a text, in a form that outlives the text: enough to evaluate rules again without it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::compile::RuleSet;
use super::evaluate::{Facts, RuleStack};
use super::outcome::RuleOutcome;
use crate::domain::TextSignals;

/// A question to a text, named by the hash of what is asked: a keyword or a regular expression.
///
/// Rules of another policy that ask the same thing have the same answer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Atom(u64);

/// What is known of a query whose text is not.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What the text showed.
    pub signals: &'a TextSignals,
    /// The pairs that are known.
    pub metadata: &'a BTreeMap<String, String>,
    /// Keys that the request had and whose values are not known.
    pub hidden_metadata: &'a [String],
    /// The tenant; empty: none.
    pub tenant: &'a str,
    /// The role; empty: none.
    pub role: &'a str,
    /// Questions that were asked of the text.
    pub asked: &'a HashSet<Atom>,
    /// Those of them whose answer was yes.
    pub holding: &'a HashSet<Atom>,
}

/// What rules fix by evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// What they fix, the unknown ones left out.
    pub outcome: RuleOutcome,
    /// Rules that ask what is not known.
    pub unknown: Vec<Arc<str>>,
}

struct Known<'a> {
    evidence: &'a Evidence<'a>,
    layers: &'a [Arc<RuleSet>],
}

// === impl RuleStack ===

impl RuleStack {
    /// What the rules fix by `evidence`.
    pub fn replay(&self, evidence: &Evidence<'_>) -> Replay {
        let (outcome, unknown) = self.decide(&Known { evidence, layers: self.layers() });
        Replay { outcome, unknown }
    }
}

// === impl Atom ===

impl Atom {
    pub(super) fn keyword(folded: &str) -> Self {
        Self::of("keyword", folded)
    }

    pub(super) fn regex(pattern: &str) -> Self {
        Self::of("regex", pattern)
    }

    fn of(kind: &str, what: &str) -> Self {
        let hash = Sha256::new().chain_update(kind).chain_update([0]).chain_update(what).finalize();
        Self(hash.iter().take(8).fold(0, |head, byte| (head << 8) | u64::from(*byte)))
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Atom> for String {
    fn from(atom: Atom) -> Self {
        atom.to_string()
    }
}

impl TryFrom<String> for Atom {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

// === impl Known ===

impl Known<'_> {
    fn answer(&self, atom: Option<&Atom>) -> Option<bool> {
        let atom = atom.filter(|atom| self.evidence.asked.contains(atom))?;
        Some(self.evidence.holding.contains(atom))
    }
}

impl Facts for Known<'_> {
    fn signals(&self) -> &TextSignals {
        self.evidence.signals
    }

    fn tenant(&self) -> &str {
        self.evidence.tenant
    }

    fn role(&self) -> &str {
        self.evidence.role
    }

    fn keyword(&self, layer: usize, id: usize) -> Option<bool> {
        self.answer(self.layers.get(layer)?.keyword_atoms.get(id))
    }

    fn regex(&self, layer: usize, id: usize) -> Option<bool> {
        self.answer(self.layers.get(layer)?.regex_atoms.get(id))
    }

    fn metadata(&self, key: &str, values: &[String]) -> Option<bool> {
        match self.evidence.metadata.get(key) {
            Some(value) => Some(values.contains(value)),
            None if self.evidence.hidden_metadata.iter().any(|hidden| hidden == key) => None,
            None => Some(false),
        }
    }
}
