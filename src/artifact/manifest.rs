//! The two kinds of manifest: an encoder's and a classifier's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{describe_tensors, sha256_hex};
use crate::domain::TierControl;

/// What both kinds of manifest have.
pub trait Manifest: DeserializeOwned {
    /// The value of the `schema` field.
    const SCHEMA: &'static str;

    /// Every file of the directory but the manifest itself.
    fn files(&self) -> &BTreeMap<String, FileEntry>;
}

/// One file of a model directory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content, lower-case hexadecimal.
    pub sha256: String,
    /// Type and shape of each tensor, where it is a weights file: `f16[384, 1536]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, String>,
}

/// `manifest.toml` of an encoder directory in Hugging Face layout.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderManifest {
    /// [`Manifest::SCHEMA`].
    pub schema: String,
    /// Name of the encoder.
    pub name: String,
    /// Version of this directory.
    pub version: String,
    /// SPDX identifier of the weights' licence.
    pub license: String,
    /// Where the weights come from.
    pub source: String,
    /// SHA-256 of the weights file that was converted into this one.
    pub upstream_sha256: String,
    /// `config.json`, `tokenizer.json`, `model.safetensors`.
    pub files: BTreeMap<String, FileEntry>,
}

/// `manifest.toml` of a classifier directory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierManifest {
    /// [`Manifest::SCHEMA`].
    pub schema: String,
    /// Name of the classifier.
    pub name: String,
    /// Version of this directory.
    pub version: String,
    /// The encoder it was trained on.
    pub encoder: EncoderNeeded,
    /// Layout of the text features it was trained on.
    pub features: String,
    /// Intent labels, in the order of the head's outputs.
    pub intent_labels: Vec<String>,
    /// The models, weak and strong, that gain is measured between unless a caller names others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_pair: Option<[String; 2]>,
    /// What threshold keeps an asked `min_confidence`, as `[asked, threshold]` pairs. Older classifiers have none.
    #[serde(default, skip_serializing_if = "TierControl::is_empty")]
    pub tier_control: TierControl,
    /// How honest each head is, by head name.
    pub calibration: BTreeMap<String, CalibrationFigures>,
    /// How it was made.
    pub training: TrainingRecord,
    /// Language models on the scale of the difficulty head, by canonical name. Older classifiers have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub abilities: BTreeMap<String, ModelAbility>,
    /// What it said of a few texts when it was made. Older classifiers have none; `pointsman seal` adds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trial: Vec<TrialAnswer>,
    /// `heads.safetensors`, and `encoder-changes.safetensors` where the encoder was tuned.
    pub files: BTreeMap<String, FileEntry>,
}

/// What a classifier said of a text when it was made.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrialAnswer {
    /// The text.
    pub text: String,
    /// The most probable intent.
    pub intent: String,
    /// Its probability.
    pub probability: f64,
    /// The difficulty.
    pub difficulty: f64,
}

/// The encoder that a classifier was trained on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderNeeded {
    /// Name of its model directory.
    pub name: String,
    /// SHA-256 of its weights file.
    pub weights_sha256: String,
    /// Longest input in word pieces, special ones included.
    pub max_tokens: usize,
}

/// Measured figures of one head's calibrator, on rows used for nothing else.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationFigures {
    /// How the scores are mapped to probabilities, for example `temperature`.
    pub method: String,
    /// Expected calibration error of the top label, 15 equal-width bins.
    pub expected_calibration_error: f64,
    /// Mean squared error of the whole probability vector.
    pub brier_score: f64,
    /// Rows measured on.
    pub rows: u64,
    /// The reliability diagram: bins of equal width that hold any row, least confident first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bins: Vec<CalibrationBin>,
    /// By predicted label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_label: BTreeMap<String, GroupCalibration>,
    /// By length of the text in words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_length: BTreeMap<String, GroupCalibration>,
}

/// Rows of similar confidence.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationBin {
    /// Their mean probability of the top label.
    pub confidence: f64,
    /// The share of them whose top label was right.
    pub accuracy: f64,
    /// How many.
    pub rows: u64,
}

/// The figures of some of the rows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCalibration {
    /// As of all rows.
    pub expected_calibration_error: f64,
    /// As of all rows.
    pub brier_score: f64,
    /// How many.
    pub rows: u64,
}

/// How capable a language model is: P(it answers well) = sigmoid(ability - latent difficulty).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelAbility {
    /// In logits; the weak model of the reference pair has 0.
    pub ability: f64,
    /// Its standard error in logits, the difficulties taken as known.
    pub standard_error: f64,
    /// Graded answers behind it.
    pub answers: u64,
}

/// How a classifier was made.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRecord {
    /// The command line.
    pub command: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Rows trained on, by source.
    pub rows_by_source: BTreeMap<String, u64>,
}

/// Just the `schema` field, read first so that a later format gives a clear message.
#[derive(Deserialize)]
pub(super) struct SchemaOnly {
    pub(super) schema: String,
}

impl Manifest for EncoderManifest {
    const SCHEMA: &'static str = "pointsman.encoder/v1";

    fn files(&self) -> &BTreeMap<String, FileEntry> {
        &self.files
    }
}

impl Manifest for ClassifierManifest {
    const SCHEMA: &'static str = "pointsman.classifier/v1";

    fn files(&self) -> &BTreeMap<String, FileEntry> {
        &self.files
    }
}

impl EncoderManifest {
    /// The `schema` value to write.
    pub fn schema() -> String {
        Self::SCHEMA.to_owned()
    }
}

impl ClassifierManifest {
    /// The `schema` value to write.
    pub fn schema() -> String {
        Self::SCHEMA.to_owned()
    }
}

impl FileEntry {
    /// Describes `bytes`; a weights file gets its tensors listed.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            sha256: sha256_hex(bytes),
            tensors: describe_tensors(bytes).unwrap_or_default(),
        }
    }
}
