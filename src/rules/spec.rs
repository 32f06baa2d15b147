//! The `rules` section of the policy document, as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Structure, Tier};

/// One rule.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct RuleSpec {
    /// Unique in its list; named in the reasons of decisions.
    pub name: String,
    /// A rule that is not enabled never matches, and hides a rule of the same name in a more general list.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub enabled: bool,
    /// Higher is looked at first; equal ones in document order.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// When it matches.
    pub when: ConditionSpec,
    /// What it fixes when it does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub then: EffectSpec,
    /// No rule after this one is looked at when it matches.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop: bool,
}

/// When a rule matches: everything given here must hold.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ConditionSpec {
    /// At least one of these holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any: Option<Vec<ConditionSpec>>,
    /// All of these hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<Vec<ConditionSpec>>,
    /// This does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<ConditionSpec>>,
    /// The text has at least one of these as whole words, whatever the case. A run of white space in the text equals
    /// one space in a keyword.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keywords: Option<Vec<String>>,
    /// This regular expression is found in the first 16 KiB of the text (syntax of the `regex` crate; `(?i)` ignores
    /// case). `$` is the end of what is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// The text is this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<LengthSpec>,
    /// The text's language is one of these (ISO 639-3); does not hold where the text is too short to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Vec<String>>,
    /// At least one of these structures occurs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structure: Option<Vec<Structure>>,
    /// For every key here the request's metadata has one of the values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, Vec<String>>>,
    /// The request's tenant is one of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Vec<String>>,
    /// The request's role is one of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Vec<String>>,
}

/// Bounds on the length of the text, both ends included.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct LengthSpec {
    /// Fewest white-space separated words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_words: Option<usize>,
    /// Most white-space separated words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_words: Option<usize>,
    /// Fewest UTF-8 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<usize>,
    /// Most UTF-8 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<usize>,
}

/// What a rule fixes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct EffectSpec {
    /// The intent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    /// The tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// The tier is at least this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raise_tier_to: Option<Tier>,
    /// The tier is at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_tier_at: Option<Tier>,
    /// The chain, whatever the routes say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_chain: Option<String>,
    /// Chains that must not be used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub forbid_chain: Vec<String>,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_yes(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

// === impl EffectSpec ===

impl EffectSpec {
    /// Whether it fixes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
