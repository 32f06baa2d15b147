//! What Pointsman answers.
//!
//! Serialises to the JSON that `pointsman route --json` prints; the wire contract has counterparts of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CascadeState, Distribution, Probability, Reason, Tier};

/// Where a query should go, why, and what to do next.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Unique id; UUID version 7, so it sorts by time.
    pub decision_id: String,
    /// The request's id.
    pub request_id: String,
    /// The candidate to call first.
    pub selected: Candidate,
    /// What to call when it is unavailable, in order.
    pub fallbacks: Vec<Fallback>,
    /// What to do when the answer is not good enough.
    pub escalation: Option<Escalation>,
    /// Whom to ask at once, where the policy says so; the selected one among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fan_out: Option<FanOut>,
    /// What kind of task it is.
    pub intent: IntentCall,
    /// How capable a model it needs.
    pub complexity: Complexity,
    /// How sure we are that the tier suffices.
    pub confidence: Confidence,
    /// What made the decision.
    pub source: Source,
    /// Why, in the order the reasons applied.
    pub reasons: Vec<Reason>,
    /// The policy behind it.
    pub policy: PolicyRef,
    /// The classifier behind it.
    pub classifier: ClassifierRef,
    /// The arms of the experiments that were running, by experiment.
    pub experiments: Vec<ExperimentArm>,
    /// What was read and what was cut.
    pub input: InputReport,
    /// Where the time went.
    pub timings: Timings,
    /// What continues from here: opaque and signed; empty: nothing can.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub continuation: String,
    /// The cascade it is a step of; `None`: it is a first decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cascade: Option<Cascade>,
}

/// What a cascade has come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cascade {
    /// The decision it began with.
    pub first_decision_id: String,
    /// How far it has come.
    #[serde(flatten)]
    pub state: CascadeState,
}

/// One option to answer with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// The policy's name for the model.
    pub model: Arc<str>,
    /// The policy's name for who serves it.
    pub provider: Arc<str>,
    /// The name to send to the provider.
    pub provider_model: Arc<str>,
    /// How the caller reaches it; opaque.
    pub access_path: &'static str,
    /// Parameters for the caller to pass on, as JSON text by key.
    pub parameters: Arc<BTreeMap<String, String>>,
    /// Estimated cost of one answer.
    pub estimated_cost_usd: f64,
    /// P(it answers well), where an ability is known.
    pub success_probability: Option<Probability>,
    /// The endpoint chosen by weight; empty: it has none.
    pub endpoint: String,
}

/// A further candidate of the chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fallback {
    /// What to call.
    pub candidate: Candidate,
    /// Why it is in the list.
    pub reason: Reason,
}

/// Several candidates to ask at once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FanOut {
    /// How one answer is made of theirs.
    pub combine: Combine,
    /// Whom to ask, the selected one first.
    pub candidates: Vec<Candidate>,
    /// Estimated cost of all their answers.
    pub estimated_cost_usd: f64,
}

/// How the answers of several candidates become one.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// The first usable answer.
    #[default]
    First,
    /// The answer that scores best.
    BestOf,
    /// The answer that most of them give; of as many, the one whose candidate comes first.
    Vote,
}

/// The next, stronger step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Escalation {
    /// What to call next.
    pub next: Candidate,
    /// Escalate when the caller's score of the answer is below this.
    pub score_threshold: Probability,
    /// Escalations the policy still allows, this one included.
    pub hops_left: u32,
    /// P(the answer will have to be escalated), where it can be told beforehand.
    pub probability: Option<Probability>,
    /// What answering is expected to cost with that, the scorer included.
    pub expected_cost_usd: Option<f64>,
}

/// The intent acted on and the evidence for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IntentCall {
    /// The chosen label.
    pub label: Arc<str>,
    /// Its calibrated probability; 1 when a rule fixed it.
    pub probability: Probability,
    /// The whole distribution, where the classifier ran.
    pub probabilities: Option<Distribution>,
    /// P(outside everything the classifier knows), where it ran.
    pub out_of_scope: Option<Probability>,
}

/// The tier acted on and the evidence for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Complexity {
    /// The tier after rules and risk control.
    pub tier: Tier,
    /// Continuous difficulty.
    pub difficulty: Probability,
    /// Distribution over [`Tier::ALL`], where the classifier ran.
    #[serde(serialize_with = "serialize_tiers")]
    pub tier_probabilities: Option<[f32; 3]>,
}

/// A calibrated probability that says of what.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Confidence {
    /// The probability.
    pub value: Probability,
    /// What it is the probability of.
    pub of: ConfidenceOf,
    /// Which calibrator made it; empty for rules.
    pub calibrator: Arc<str>,
}

/// What a confidence is the probability of.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfidenceOf {
    /// The chosen tier suffices.
    TierSuffices,
    /// A rule decided; 1 by definition.
    Rule,
    /// Nothing is known: a degraded answer.
    None,
}

/// What made a decision.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A policy rule; the encoder did not run.
    Rule,
    /// The encoder and the heads.
    Classifier,
    /// An earlier classification of the same text.
    Cache,
    /// The policy forces this answer whatever the query says.
    Override,
    /// The classifier could not be consulted in time.
    Degraded,
}

/// Which policy was applied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyRef {
    /// The document's id.
    pub id: Arc<str>,
    /// The document's version.
    pub version: Arc<str>,
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: Arc<str>,
    /// Time since the source last confirmed it.
    pub age_ms: u64,
    /// Where it came from: the kind of its source, or what stands in for that.
    pub source: Arc<str>,
    /// What the source calls this state of it.
    pub revision: Arc<str>,
    /// Unix time when it was put in force.
    pub loaded_at_unix_ms: u64,
}

/// Which classifier was consulted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassifierRef {
    /// The model directory's name.
    pub name: Arc<str>,
    /// The manifest's version.
    pub version: Arc<str>,
    /// SHA-256 of the manifest's bytes.
    pub sha256: Arc<str>,
}

/// The arm of an experiment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ExperimentArm {
    /// The policy's name for the experiment.
    pub experiment: Arc<str>,
    /// The arm.
    pub arm: Arc<str>,
    /// Probability with which it is given.
    pub propensity: Probability,
}

/// What was read of the request and what was cut.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct InputReport {
    /// Bytes of text received.
    pub received_bytes: u64,
    /// Bytes left after choosing the turn and dropping harness noise.
    pub used_bytes: u64,
    /// Word pieces the encoder read.
    pub tokens_used: u32,
    /// Word pieces cut by the sequence limit.
    pub tokens_cut: u32,
    /// Bytes cut before the tokenizer.
    pub bytes_cut: u64,
    /// Messages received.
    pub turns_received: u32,
    /// Messages classified.
    pub turns_used: u32,
    /// The language found, ISO 639-3.
    pub language: Option<&'static str>,
}

/// Where the server's time went, in microseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Timings {
    /// Choosing and cleaning the text, features and language.
    pub text_us: u64,
    /// The pre-filter.
    pub rules_us: u64,
    /// Waiting for a forward pass.
    pub queue_us: u64,
    /// Tokenizer, encoder and heads.
    pub inference_us: u64,
    /// Chain, filters, selection.
    pub policy_us: u64,
    /// All of it.
    pub total_us: u64,
}

impl Source {
    /// The name used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Classifier => "classifier",
            Self::Cache => "cache",
            Self::Override => "override",
            Self::Degraded => "degraded",
        }
    }
}

impl ConfidenceOf {
    /// The name used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TierSuffices => "tier_suffices",
            Self::Rule => "rule",
            Self::None => "none",
        }
    }
}

#[expect(clippy::ref_option, reason = "the signature serde asks for")]
fn serialize_tiers<S: serde::Serializer>(value: &Option<[f32; 3]>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(tiers) => serializer.collect_map(Tier::ALL.into_iter().zip(tiers)),
        None => serializer.serialize_none(),
    }
}
