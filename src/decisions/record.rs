//! What is kept of one decision, and of what many have in common.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    Classification, ClassifierRef, ExperimentArm, Probability, Requirements, Source, Structure, TextSignals, Tier,
    TierControl,
};
use crate::policy::{NoCandidate, Policy, Resolution};
use crate::rules::Atom;

/// One decision with every signal it rests on; no text unless that was asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DecisionRecord {
    /// When, Unix milliseconds.
    pub time_unix_ms: u64,
    /// The decision's id; empty: there was no candidate.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub decision_id: String,
    /// The request's id.
    pub request_id: String,
    /// The [`Context`] of the policy and classifier behind it.
    pub context: Arc<str>,
    /// The tenant; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// The role; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// First half of the SHA-256 of the session id, hexadecimal; absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// SHA-256 of the text that was classified, hexadecimal.
    pub text_sha256: String,
    /// The text; only where the operator asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What the text showed.
    pub input: InputRecord,
    /// Length of the answer, where the request said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u32>,
    /// What the request required.
    #[serde(default)]
    pub requirements: Requirements,
    /// The pairs that the policy's rules or experiments read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The other keys the request had; their values are not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata_keys: Vec<String>,
    /// The parts of the policy that applied, the most specific first.
    pub layers: Vec<String>,
    /// What those parts' rules asked of the text with the answer yes; all else that they asked had the answer no.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Atom>,
    /// What the classifier said; absent: it was not consulted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<SignalsRecord>,
    /// The classifier was needed and could not be consulted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
    /// Arms of the experiments that served it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experiments: Vec<ExperimentArm>,
    /// What was decided.
    pub outcome: Outcome,
    /// What shadows would have decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<ShadowRecord>,
}

/// What the text showed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct InputRecord {
    /// Bytes of the text that was classified.
    pub bytes: usize,
    /// Its white-space separated words.
    pub words: usize,
    /// Its lines with any text.
    pub lines: usize,
    /// Its language, ISO 639-3; absent: too short to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Structures in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub structures: Vec<Structure>,
    /// Tokens of the whole request, estimated.
    pub tokens: u32,
}

/// What the classifier said.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SignalsRecord {
    /// Probability of each intent, in the order of [`Context::intents`].
    pub intents: Vec<f32>,
    /// The difficulty.
    pub difficulty: Probability,
    /// Distribution over tiers, the cheapest first.
    pub tiers: [f32; 3],
    /// P(out of scope).
    pub out_of_scope: Probability,
}

/// What was decided.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Outcome {
    /// A model was selected.
    Selected {
        /// The model.
        model: String,
        /// Who serves it.
        provider: String,
        /// The chain it is from.
        chain: String,
        /// Models to call when it is unavailable, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fallbacks: Vec<String>,
        /// Models to ask at once, the selected one first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fan_out: Vec<String>,
        /// The model to escalate to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        escalation: Option<String>,
        /// The intent acted on.
        intent: String,
        /// The tier acted on.
        tier: Tier,
        /// What made the decision; a cached classification counts as the classifier.
        source: Source,
        /// Estimated cost of one answer.
        cost_usd: f64,
        /// P(it answers well), where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        success: Option<Probability>,
    },
    /// The filters left no candidate.
    NoCandidate {
        /// The chain; empty: the rules forbid every chain the routes offer.
        chain: String,
        /// Why each model was removed: its name and the reason's code.
        removed: Vec<(String, String)>,
    },
    /// The policy does not have the role, or refuses the tenant. Never logged; what a replay can come to.
    Refused,
}

/// What a shadow would have decided.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ShadowRecord {
    /// The experiment and its arm.
    #[serde(flatten)]
    pub arm: ExperimentArm,
    /// What it comes to; absent: it needs the classifier, which the request itself did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// What all decisions under one policy and classifier have in common.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Context {
    /// What records call it.
    pub id: Arc<str>,
    /// The policy's id.
    pub policy_id: Arc<str>,
    /// The policy's version.
    pub policy_version: Arc<str>,
    /// SHA-256 of the policy's document.
    pub policy_sha256: Arc<str>,
    /// The environment whose overlay applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The classifier's name.
    pub classifier: Arc<str>,
    /// SHA-256 of its manifest.
    pub classifier_sha256: Arc<str>,
    /// Its intents, in order.
    pub intents: Arc<[Arc<str>]>,
    /// What threshold keeps an asked confidence.
    #[serde(default)]
    pub tier_control: TierControl,
    /// What the policy's rules ask of texts, by the part of the policy they are in.
    #[serde(default)]
    pub asked: BTreeMap<String, Vec<Atom>>,
    /// Metadata keys whose values are kept.
    #[serde(default)]
    pub metadata_keys: Vec<String>,
}

// === impl InputRecord ===

impl InputRecord {
    /// What is kept of a text's signals.
    pub fn new(signals: &TextSignals, tokens: u32) -> Self {
        let structures = Structure::ALL.into_iter().filter(|structure| signals.structures.contains(*structure));
        Self {
            bytes: signals.bytes,
            words: signals.words,
            lines: signals.lines,
            language: signals.language.map(|language| language.as_str().to_owned()),
            structures: structures.collect(),
            tokens,
        }
    }

    /// The text's signals again.
    pub fn signals(&self) -> TextSignals {
        TextSignals {
            bytes: self.bytes,
            words: self.words,
            lines: self.lines,
            language: self.language.as_deref().and_then(crate::text::language),
            structures: self.structures.iter().copied().collect(),
        }
    }
}

// === impl SignalsRecord ===

impl From<&Classification> for SignalsRecord {
    fn from(classification: &Classification) -> Self {
        Self {
            intents: classification.intent.probabilities().to_vec(),
            difficulty: classification.difficulty,
            tiers: classification.tiers,
            out_of_scope: classification.out_of_scope,
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// The selected model.
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Selected { model, .. } => Some(model),
            Self::NoCandidate { .. } | Self::Refused => None,
        }
    }

    /// The model, or what stands for having none.
    pub fn name(&self) -> &str {
        match self {
            Self::Selected { model, .. } => model,
            Self::NoCandidate { .. } => "(no candidate)",
            Self::Refused => "(refused)",
        }
    }

    /// The tier acted on.
    pub fn tier(&self) -> Option<Tier> {
        match self {
            Self::Selected { tier, .. } => Some(*tier),
            Self::NoCandidate { .. } | Self::Refused => None,
        }
    }
}

impl From<&Result<Resolution, NoCandidate>> for Outcome {
    fn from(resolved: &Result<Resolution, NoCandidate>) -> Self {
        match resolved {
            Ok(found) => Self::Selected {
                model: found.selected.model.to_string(),
                provider: found.selected.provider.to_string(),
                chain: found.chain.to_string(),
                fallbacks: found.fallbacks.iter().map(|fallback| fallback.candidate.model.to_string()).collect(),
                fan_out: found.fan_out.as_ref().map_or_else(Vec::new, |fan_out| {
                    fan_out.candidates.iter().map(|candidate| candidate.model.to_string()).collect()
                }),
                escalation: found.escalation.as_ref().map(|escalation| escalation.next.model.to_string()),
                intent: found.intent.to_string(),
                tier: found.tier,
                source: found.source,
                cost_usd: found.selected.estimated_cost_usd,
                success: found.selected.success_probability,
            },
            Err(none) => Self::NoCandidate {
                chain: none.chain.clone(),
                removed: none
                    .removed
                    .iter()
                    .map(|reason| (reason.subject.clone(), reason.code.as_str().to_owned()))
                    .collect(),
            },
        }
    }
}

// === impl Context ===

impl Context {
    /// What decisions of `policy` and `classifier` have in common.
    pub fn new(
        policy: &Policy,
        classifier: &ClassifierRef,
        intents: &Arc<[Arc<str>]>,
        tier_control: &TierControl,
    ) -> Self {
        let environment = policy.environment();
        let name = format!("{}\n{}\n{}", policy.sha256(), classifier.sha256, environment.unwrap_or_default());
        let digest = crate::policy::KeyDigest::of(&name);
        Self {
            id: hex::encode(digest.0.get(..8).unwrap_or_default()).into(),
            policy_id: Arc::clone(policy.id()),
            policy_version: Arc::clone(policy.version()),
            policy_sha256: Arc::clone(policy.sha256()),
            environment: environment.map(str::to_owned),
            classifier: Arc::clone(&classifier.name),
            classifier_sha256: Arc::clone(&classifier.sha256),
            intents: Arc::clone(intents),
            tier_control: tier_control.clone(),
            asked: policy.asked(),
            metadata_keys: policy.metadata_keys().into_iter().collect(),
        }
    }
}
