//! The `rules` section of the policy document, as it is written.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::domain::{Structure, Tier};

/// One rule.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct RuleSpec {
    /// Unique in its list; named in the reasons of decisions.
    pub name: String,
    /// A rule that is not enabled never matches, and hides a rule of the same name in a more general list.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Higher is looked at first; equal ones in document order.
    #[serde(default)]
    pub priority: i32,
    /// When it matches.
    pub when: ConditionSpec,
    /// What it fixes when it does.
    #[serde(default)]
    pub then: EffectSpec,
    /// No rule after this one is looked at when it matches.
    #[serde(default)]
    pub stop: bool,
}

/// When a rule matches: everything given here must hold.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct ConditionSpec {
    /// At least one of these holds.
    pub any: Option<Vec<ConditionSpec>>,
    /// All of these hold.
    pub all: Option<Vec<ConditionSpec>>,
    /// This does not hold.
    pub not: Option<Box<ConditionSpec>>,
    /// The text has at least one of these as whole words, whatever the case. A run of white space in the text equals
    /// one space in a keyword.
    pub keywords: Option<Vec<String>>,
    /// This regular expression is found in the first 16 KiB of the text (syntax of the `regex` crate; `(?i)` ignores
    /// case). `$` is the end of what is looked at.
    pub regex: Option<String>,
    /// The text is this long.
    pub length: Option<LengthSpec>,
    /// The text's language is one of these (ISO 639-3); does not hold where the text is too short to tell.
    pub language: Option<Vec<String>>,
    /// At least one of these structures occurs.
    pub structure: Option<Vec<Structure>>,
    /// For every key here the request's metadata has one of the values.
    pub metadata: Option<BTreeMap<String, Vec<String>>>,
    /// The request's tenant is one of these.
    pub tenant: Option<Vec<String>>,
    /// The request's role is one of these.
    pub role: Option<Vec<String>>,
}

/// Bounds on the length of the text, both ends included.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
pub struct LengthSpec {
    /// Fewest white-space separated words.
    pub min_words: Option<usize>,
    /// Most white-space separated words.
    pub max_words: Option<usize>,
    /// Fewest UTF-8 bytes.
    pub min_bytes: Option<usize>,
    /// Most UTF-8 bytes.
    pub max_bytes: Option<usize>,
}

/// What a rule fixes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct EffectSpec {
    /// The intent.
    pub intent: Option<String>,
    /// The tier.
    pub tier: Option<Tier>,
    /// The tier is at least this.
    pub raise_tier_to: Option<Tier>,
    /// The tier is at most this.
    pub cap_tier_at: Option<Tier>,
    /// The chain, whatever the routes say.
    pub force_chain: Option<String>,
    /// Chains that must not be used.
    #[serde(default)]
    pub forbid_chain: Vec<String>,
}

fn yes() -> bool {
    true
}

// === impl EffectSpec ===

impl EffectSpec {
    /// Whether it fixes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
