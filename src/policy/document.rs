//! The policy document as it is written; `docs/policy.md` is the operator's description of the same.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::experiment::ExperimentSpec;
use crate::domain::{Combine, Probability, Tier};
use crate::rules::RuleSpec;

/// The schema this version reads.
pub const SCHEMA: &str = "pointsman.policy/v1";

/// A routing policy of Pointsman.
#[derive(Clone, Debug, Default, JsonSchema, PartialEq, Serialize)]
pub struct Document {
    /// The schema the document is written in.
    pub schema: SchemaName,
    /// Names the policy; the same through all its versions.
    pub id: String,
    /// Names this state of it; opaque text.
    pub version: String,
    /// What can be called.
    pub models: BTreeMap<String, ModelSpec>,
    /// What applies to every request: providers, chains, routes, rules, thresholds and escalation at the top level.
    #[serde(flatten)]
    pub base: LayerSpec,
    /// What to answer when there is no good evidence.
    #[serde(default, skip_serializing_if = "is_default")]
    pub defaults: DefaultsSpec,
    /// Overlays by name; the one that the service was started with applies to all its requests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub environments: BTreeMap<String, LayerSpec>,
    /// What applies to requests of one role.
    #[serde(default, skip_serializing_if = "is_default")]
    pub roles: BTreeMap<String, LayerSpec>,
    /// What applies to requests of one tenant.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tenants: BTreeMap<String, TenantSpec>,
    /// Comparisons on live traffic, by name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub experiments: BTreeMap<String, ExperimentSpec>,
}

/// The schemas this version reads.
#[derive(Clone, Copy, Debug, Default, Eq, JsonSchema, PartialEq, Serialize)]
pub enum SchemaName {
    /// The only one so far; its text is [`SCHEMA`].
    #[default]
    #[serde(rename = "pointsman.policy/v1")]
    V1,
}

/// What one tenant overrides.
#[derive(Clone, Debug, Default, JsonSchema, PartialEq, Serialize)]
pub struct TenantSpec {
    /// For all of the tenant's requests.
    #[serde(flatten)]
    pub layer: LayerSpec,
    /// For those of one role; the role need not be among the top-level ones.
    #[serde(default, skip_serializing_if = "is_default")]
    pub roles: BTreeMap<String, LayerSpec>,
}

/// The part of a policy that an environment, a role, a tenant, a tenant's role and an experiment's arm can override.
///
/// Precedence: top level < environment < role < tenant < the tenant's own role < arm. Each field says how it combines.
#[derive(Clone, Debug, Default, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct LayerSpec {
    /// By name. A provider is off when any layer that applies turns it off, so that one flag at the top turns it off
    /// everywhere.
    #[serde(skip_serializing_if = "is_default")]
    pub providers: BTreeMap<String, ProviderSpec>,
    /// Only these providers; every layer that has a list must allow the provider.
    #[serde(skip_serializing_if = "is_default")]
    pub allowed_providers: Option<Vec<String>>,
    /// Models to try, in order, by chain name. The most specific layer that has the name wins, also for routes of
    /// more general layers.
    #[serde(skip_serializing_if = "is_default")]
    pub chains: BTreeMap<String, Vec<String>>,
    /// Looked at from the top, the most specific layer's first; the first that fits wins.
    #[serde(skip_serializing_if = "is_default")]
    pub routes: Vec<RouteSpec>,
    /// Joined with those of the other layers; a rule replaces one of the same name in a more general layer.
    #[serde(skip_serializing_if = "is_default")]
    pub rules: Vec<RuleSpec>,
    /// Value by value the most specific wins.
    #[serde(skip_serializing_if = "is_default")]
    pub thresholds: ThresholdsSpec,
    /// Value by value the most specific wins.
    #[serde(skip_serializing_if = "is_default")]
    pub escalation: EscalationSpec,
    /// Kinds of requests to ask of several models at once. Looked at from the top, the most specific layer's first; the
    /// first that fits wins.
    #[serde(skip_serializing_if = "is_default")]
    pub fan_out: Vec<FanOutSpec>,
    /// Use this chain whatever the query says; the most specific wins.
    #[serde(skip_serializing_if = "is_default")]
    pub chain: Option<String>,
}

/// Who serves models.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ProviderSpec {
    /// Off: none of its models is used.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// What can be called.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ModelSpec {
    /// Who serves it.
    pub provider: String,
    /// The name to send to the provider.
    pub provider_model: String,
    /// How the caller reaches it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub access_path: AccessPath,
    /// What it costs.
    pub price_per_million_tokens: PriceSpec,
    /// Most tokens of input and output together.
    pub context_window_tokens: u32,
    /// What it offers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capabilities: Vec<Capability>,
    /// Typical time to a whole answer. Absent: a request with a latency cap does not get this model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_latency_ms: Option<u32>,
    /// Where it is offered, free names. Empty: a request that asks for a region does not get this model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub regions: Vec<String>,
    /// How capable it is, on the logit scale of difficulty: P(success) = 1 / (1 + exp(difficulty - ability)), where
    /// a difficulty of d in 0..1 is ln(d / (1 - d)). Absent: its P(success) is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ability: Option<f64>,
    /// For the caller to pass on to the provider.
    #[serde(default, skip_serializing_if = "is_default")]
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// Share of requests by endpoint name; shares sum to 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub endpoints: BTreeMap<String, f64>,
}

/// Prices in US dollars per million tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PriceSpec {
    /// Tokens sent.
    pub input_usd: f64,
    /// Tokens answered.
    pub output_usd: f64,
}

/// How the caller reaches a model; opaque to Pointsman.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessPath {
    /// The provider's own interface.
    #[default]
    Native,
    /// Through a gateway in front of the provider.
    Gateway,
    /// An endpoint of the operator's own.
    Direct,
}

/// What a model can offer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Tool calls.
    Tools,
    /// Images as input.
    Vision,
    /// Guaranteed JSON output.
    JsonMode,
}

/// Intent and tier to chain.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct RouteSpec {
    /// Intents it takes; `"*"` is any.
    pub intent: Vec<String>,
    /// Tiers it takes; `"*"` is any.
    pub tier: Vec<TierPattern>,
    /// The chain to use.
    pub chain: String,
}

/// One tier or all.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TierPattern {
    /// Every tier.
    #[serde(rename = "*")]
    Any,
    /// [`Tier::Simple`].
    Simple,
    /// [`Tier::Medium`].
    Medium,
    /// [`Tier::Complex`].
    Complex,
}

/// How much evidence is enough.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ThresholdsSpec {
    /// The tier is the lowest that suffices with at least this probability. Default 0.80.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_confidence: Option<Probability>,
    /// An intent less probable than this gives way to `defaults.intent`. Default 0.35.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_intent_confidence: Option<Probability>,
    /// A query with at least this probability of being out of scope gets `defaults.out_of_scope`. Default 0.90.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_scope: Option<Probability>,
    /// By intent; stronger than `min_confidence` of the same layer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by_intent: BTreeMap<String, IntentThresholdsSpec>,
}

/// Thresholds of one intent.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct IntentThresholdsSpec {
    /// As in [`ThresholdsSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_confidence: Option<Probability>,
}

/// Where to go when an answer is not good enough.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct EscalationSpec {
    /// Models, each stronger and not cheaper than the one before. Default: none, so no escalation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ladder: Option<Vec<String>>,
    /// Most escalations of one request. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_hops: Option<u32>,
    /// Escalate when the answer's score is below this. Default: computed from abilities, prices and the scorer, so that
    /// the cascade answers as well as its stronger step alone; 0.60 where that cannot be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_threshold: Option<Probability>,
    /// How good the caller's scorer is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scorer: Option<ScorerSpec>,
    /// What to do where asking the cheaper model first is expected to save nothing. Default `always`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cheap_first: Option<CheapFirst>,
    /// Most US dollars of one cascade, all its answers together. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<f64>,
    /// The same as a multiple of what the ladder's last step costs alone. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_share: Option<f64>,
    /// Longest time from the first decision to the last, in milliseconds. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration_ms: Option<u64>,
}

/// A kind of requests to ask of several models at once.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct FanOutSpec {
    /// Intents it takes; `"*"` is any.
    pub intent: Vec<String>,
    /// Tiers it takes; `"*"` is any.
    pub tier: Vec<TierPattern>,
    /// How many of the chain's usable models, the selected one included: 2 to 8, for a vote at least 3.
    pub models: u32,
    /// How the caller makes one answer of theirs.
    pub combine: Combine,
}

/// What judges answers.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ScorerSpec {
    /// Probability that it ranks a good answer above a bad one, above 0.5. Default 0.80.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auc: Option<f64>,
    /// What it costs to score an answer, in US dollars.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cost_usd: f64,
}

/// What to do where asking the cheaper model first is expected to save nothing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheapFirst {
    /// Ask the cheaper one all the same: the chain's order stands.
    #[default]
    Always,
    /// Select the stronger step at once.
    WhenItPays,
}

/// What to answer when there is no good evidence.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DefaultsSpec {
    /// The intent to act on when the classifier's is not usable. Default `other`.
    #[serde(default = "other")]
    pub intent: String,
    /// When the intent is too uncertain.
    #[serde(default, skip_serializing_if = "is_default")]
    pub low_confidence: SafeAnswerSpec,
    /// When the query looks like nothing the classifier knows.
    #[serde(default, skip_serializing_if = "is_default")]
    pub out_of_scope: SafeAnswerSpec,
    /// Languages the classifier understands (ISO 639-3). Default `[eng]`; empty: all.
    #[serde(default = "english")]
    pub supported_languages: Vec<String>,
    /// When the text is in another language.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unsupported_language: SafeAnswerSpec,
    /// When the classifier could not be consulted. Default tier `medium`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub degraded: SafeAnswerSpec,
    /// What a tenant gets that the policy does not have. Default `base`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unknown_tenant: UnknownTenant,
    /// Length of an answer where the request does not say. Default 512.
    #[serde(default = "expected_output_tokens")]
    pub expected_output_tokens: u32,
    /// The same by intent and tier; the first that takes both wins over `expected_output_tokens`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub answer_lengths: Vec<AnswerLengthSpec>,
}

/// How long answers of a kind are.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct AnswerLengthSpec {
    /// Intents it takes; `"*"` is any.
    pub intent: Vec<String>,
    /// Tiers it takes; `"*"` is any.
    pub tier: Vec<TierPattern>,
    /// Tokens of the answer.
    pub tokens: u32,
}

/// What to do without trusting the classifier.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct SafeAnswerSpec {
    /// Act on this tier instead of the classifier's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Use this chain instead of the routes'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
}

/// What a tenant gets that the policy does not have.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownTenant {
    /// The top level of the policy, with a reason that says so.
    #[default]
    Base,
    /// An error to the caller.
    Refuse,
}

/// Whether a field says what it says when it is not written, and so need not be.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(super) fn yes() -> bool {
    true
}

fn other() -> String {
    "other".to_owned()
}

fn english() -> Vec<String> {
    vec!["eng".to_owned()]
}

fn expected_output_tokens() -> u32 {
    512
}

// === impl ProviderSpec ===

impl Default for ProviderSpec {
    fn default() -> Self {
        Self { enabled: yes() }
    }
}

// === impl DefaultsSpec ===

impl Default for DefaultsSpec {
    fn default() -> Self {
        Self {
            intent: other(),
            low_confidence: SafeAnswerSpec::default(),
            out_of_scope: SafeAnswerSpec::default(),
            supported_languages: english(),
            unsupported_language: SafeAnswerSpec::default(),
            degraded: SafeAnswerSpec::default(),
            unknown_tenant: UnknownTenant::default(),
            expected_output_tokens: expected_output_tokens(),
            answer_lengths: Vec::new(),
        }
    }
}

impl DefaultsSpec {
    /// Tokens of an answer where the request does not say.
    pub fn answer_tokens(&self, intent: &str, tier: Tier) -> u32 {
        let takes = |length: &&AnswerLengthSpec| {
            let intents = length.intent.iter().any(|known| known == "*" || known == intent);
            intents && length.tier.iter().any(|pattern| pattern.takes(tier))
        };
        self.answer_lengths.iter().find(takes).map_or(self.expected_output_tokens, |length| length.tokens)
    }
}

// === impl PriceSpec ===

impl PriceSpec {
    /// The price of a million tokens in and a million out: what models are compared by.
    pub fn sum(&self) -> f64 {
        self.input_usd + self.output_usd
    }
}

// === impl AccessPath ===

impl AccessPath {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Gateway => "gateway",
            Self::Direct => "direct",
        }
    }
}

// === impl TierPattern ===

impl TierPattern {
    /// Whether it takes `tier`.
    pub fn takes(self, tier: Tier) -> bool {
        match self {
            Self::Any => true,
            Self::Simple => tier == Tier::Simple,
            Self::Medium => tier == Tier::Medium,
            Self::Complex => tier == Tier::Complex,
        }
    }
}
