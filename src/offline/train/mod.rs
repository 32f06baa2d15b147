//! Training heads, and where asked the encoder under them.
//!
//! Rows in, a model directory out: select, split and copy rows ([`recipe`], `corpus`), put graded answers on one ability
//! scale ([`irt`]), train the encoder through all heads at once (`tune`), embed every row once ([`cache`]), fit the heads
//! on the embeddings ([`fit`]), calibrate on rows used for nothing else ([`calibrate`]), measure on the test split, write
//! the weights and `manifest.toml`.

pub mod cache;
pub mod calibrate;
pub mod fit;
pub mod irt;
pub mod recipe;

mod assemble;
mod checkpoint;
mod corpus;
mod difficulty;
mod figures;
mod held_out;
mod intent;
mod network;
mod objective;
mod optimizer;
mod scaling;
mod table;
mod tune;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Device;

use super::dataset::DatasetError;
use crate::artifact::{ArtifactError, ModelAbility};
use crate::classifier::LoadError;
use crate::domain::TierControl;
use crate::encoder::EncoderError;
use crate::heads::WeightsError;

pub use assemble::{train, write_classifier};
pub use recipe::Recipe;
pub use scaling::Candidate;

/// What to train on and where to write.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Files or folders of JSON Lines rows.
    pub data: Vec<PathBuf>,
    /// Weights, caps and label mapping.
    pub recipe: Recipe,
    /// Name or directory of the base encoder.
    pub encoder: String,
    /// Where models are looked up by name.
    pub roots: Vec<PathBuf>,
    /// Sequence limit in word pieces.
    pub max_tokens: usize,
    /// Classifier whose tuned encoder is taken as it is; only heads are fitted then.
    pub tuned_as: Option<String>,
    /// Where the encoder's training is saved after each pass and taken up again; `None`: nowhere.
    pub checkpoint_dir: Option<PathBuf>,
    /// File that gets a line for each pass of the encoder's training; `None`: none.
    pub log: Option<PathBuf>,
    /// Where embeddings are kept between runs; `None`: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// Classifier whose difficulty head is kept when no row has a tier or outcomes.
    pub base: String,
    /// Model directory to write; its last part becomes the classifier's name.
    pub out: PathBuf,
    /// Version to write into the manifest.
    pub version: String,
    /// The command line, for the manifest.
    pub command: String,
    /// Where the encoder and the training run.
    pub device: Device,
}

/// What a training run found out, all of it on the test split.
#[derive(Clone, Debug, Default)]
pub struct TrainReport {
    /// Rows used, by split.
    pub rows: BTreeMap<&'static str, usize>,
    /// Intent accuracy on the rows of each source that have an intent, with their number.
    pub intent_by_source: BTreeMap<String, (f64, usize)>,
    /// F1 of each intent over all sources.
    pub intent_f1: BTreeMap<String, f64>,
    /// Mean of the F1s.
    pub intent_macro_f1: f64,
    /// The maps to probabilities that were compared for intent, each measured on rows it was not fitted on.
    pub intent_calibrators: Vec<Candidate>,
    /// Expected calibration error of intent and tier, where measured.
    pub calibration_error: BTreeMap<String, f64>,
    /// AUROC of out of scope against in scope, by sign, where rows are labelled so.
    pub out_of_scope_auroc: BTreeMap<String, f64>,
    /// By outcome source: AUROC of difficulty and of prompt length against failures of the reference model, and rows.
    pub difficulty_auroc: BTreeMap<String, (f64, f64, usize)>,
    /// Accuracy of the most probable tier, where rows have a tier.
    pub tier_accuracy: Option<f64>,
    /// Calibration error of the tier over all judged rows, each predicted by heads that never saw it; and their number.
    pub tier_cross_fitted: Option<(f64, usize)>,
    /// Ability of each model on the fitted scale.
    pub abilities: BTreeMap<String, ModelAbility>,
    /// What threshold keeps an asked confidence in the tier, measured on the calibration split.
    pub tier_control: TierControl,
}

/// Why a training run stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Rows could not be read.
    #[error("training data cannot be read")]
    Dataset(#[from] DatasetError),
    /// The encoder could not be loaded or failed.
    #[error("the encoder cannot be used")]
    Encoder(#[from] EncoderError),
    /// The base classifier could not be loaded.
    #[error("the base classifier cannot be loaded")]
    Base(#[from] LoadError),
    /// A model directory could not be read.
    #[error("a model directory cannot be read")]
    Artifact(#[from] ArtifactError),
    /// A checkpoint is of another run, or damaged.
    #[error("the checkpoint {} cannot be taken up: {reason}; remove it to start anew", .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The data cannot train a head.
    #[error("{0}")]
    Unusable(String),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The weights could not be read or written.
    #[error("head weights")]
    Weights(#[from] WeightsError),
    /// A file could not be read or written.
    #[error("cannot access {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The manifest could not be written as TOML.
    #[error("cannot write the manifest")]
    Manifest(#[from] toml::ser::Error),
}
