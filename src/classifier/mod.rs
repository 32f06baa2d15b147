//! A loaded classifier directory: tokenizer, encoder and heads that belong together.
//!
//! Two steps, because they run in different places: [`Classifier::tokenize`] on the thread that took the request, and
//! [`Classifier::classify`] for whole batches on the threads that own the encoder.

mod trial;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use ndarray::Array2;

use crate::artifact::{
    self, Artifact, ArtifactError, CalibrationFigures, ClassifierManifest, EncoderManifest, ModelAbility,
};
use crate::domain::{Classification, ClassifierRef, Structure, TierControl};
use crate::encoder::{CHANGES, Encoder, EncoderError, EncoderOptions, Isa, Precision, TextTokenizer, Tokens};
use crate::heads::{HeadOutput, HeadWeights, Heads, HeadsError};
use crate::text::{Prepared, Task, features, ngrams};

pub use trial::TRIAL;

/// Weights file of a classifier directory.
pub const HEADS: &str = "heads.safetensors";

/// Everything needed to turn prepared texts into [`Classification`]s. Immutable; shared between threads.
#[derive(Debug)]
pub struct Classifier {
    encoder: Encoder,
    heads: Heads,
    manifest: ClassifierManifest,
    reference: ClassifierRef,
    dir: PathBuf,
}

/// A text as the classifier reads it.
#[derive(Clone, Debug)]
pub struct Input {
    tokens: Tokens,
    features: [f32; features::N_FEATURES],
    ngrams: Vec<u32>,
}

/// Which classifier to load and where to run it.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Name below a root, or a directory.
    pub name: String,
    /// Where models are looked up by name.
    pub roots: Vec<PathBuf>,
    /// Sequence limit that replaces the manifest's.
    pub max_tokens: Option<usize>,
    /// Where the encoder runs.
    pub device: Device,
    /// How its products are computed.
    pub precision: Precision,
    /// The instruction set of 8-bit products; `None`: the best that the machine has.
    pub isa: Option<Isa>,
    /// Threads of a pass in 8 bits.
    pub threads: usize,
}

/// Why a classifier cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model directory is at fault.
    #[error("the model directory cannot be used")]
    Artifact(#[from] ArtifactError),
    /// The encoder is at fault.
    #[error("the encoder cannot be loaded")]
    Encoder(#[from] EncoderError),
    /// The heads are at fault.
    #[error("the heads cannot be loaded")]
    Heads(#[from] HeadsError),
    /// The heads were trained on another encoder.
    #[error("the classifier was trained on encoder weights {expected}, {name} has {found}")]
    WrongEncoder {
        /// The encoder found.
        name: String,
        /// Its weights' hash.
        found: String,
        /// The hash in the classifier's manifest.
        expected: String,
    },
    /// It answers otherwise than when it was made: label order, heads, encoder or kernels are not those of then.
    #[error("trial text {text} is {said}, which is not what it answered when it was made: {kept}")]
    OtherAnswer {
        /// Which of the manifest's trial texts, from 0.
        text: usize,
        /// What it says.
        said: String,
        /// What it said then.
        kept: String,
    },
    /// The heads read other text features than this build makes.
    #[error("the classifier reads features {expected:?}, this build makes {:?}", features::LAYOUT)]
    WrongFeatures {
        /// The layout in the classifier's manifest.
        expected: String,
    },
}

// === impl Classifier ===

impl Classifier {
    /// Loads, verifies and assembles a classifier and the encoder it names.
    ///
    /// # Errors
    /// Says which file, hash or shape is wrong.
    pub fn load(options: &LoadOptions) -> Result<Self, LoadError> {
        let artifact = Artifact::<ClassifierManifest>::load(&options.name, &options.roots)?;
        let needed = &artifact.manifest.encoder;
        if artifact.manifest.features != features::LAYOUT {
            return Err(LoadError::WrongFeatures { expected: artifact.manifest.features.clone() });
        }
        let base = Artifact::<EncoderManifest>::load(&needed.name, &encoder_roots(&artifact.dir, &options.roots))?;
        let tuned = artifact.manifest.files.contains_key(CHANGES);
        let changes = if tuned { Some(artifact.file(CHANGES)?) } else { None };
        let max_tokens = options.max_tokens.unwrap_or(needed.max_tokens);
        let encoder_options = EncoderOptions {
            device: options.device.clone(),
            max_tokens,
            precision: options.precision,
            isa: options.isa,
            threads: options.threads,
        };
        let encoder = Encoder::load(&base, changes, &encoder_options)?;
        if encoder.weights_sha256() != needed.weights_sha256 {
            return Err(LoadError::WrongEncoder {
                name: needed.name.clone(),
                found: encoder.weights_sha256().to_owned(),
                expected: needed.weights_sha256.clone(),
            });
        }
        let weights = HeadWeights::from_bytes(artifact.file(HEADS)?).map_err(HeadsError::from)?;
        let labels = &artifact.manifest.intent_labels;
        let heads = Heads::new(weights, labels, encoder.hidden_size(), features::N_FEATURES, ngrams::N_BUCKETS)?;
        let reference = ClassifierRef {
            name: Arc::from(artifact.manifest.name.as_str()),
            version: Arc::from(artifact.manifest.version.as_str()),
            sha256: Arc::from(artifact.manifest_sha256.as_str()),
        };
        let classifier = Self { encoder, heads, manifest: artifact.manifest, reference, dir: artifact.dir };
        classifier.check_trial()?;
        Ok(classifier)
    }

    /// Which classifier this is.
    pub fn reference(&self) -> &ClassifierRef {
        &self.reference
    }

    /// What it was made of and by.
    pub fn manifest(&self) -> &ClassifierManifest {
        &self.manifest
    }

    /// Where it was loaded from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The encoder behind it.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Intent labels, in the order of every probability vector.
    pub fn intent_labels(&self) -> &Arc<[Arc<str>]> {
        self.heads.labels()
    }

    /// How honest each head is, by head name, as measured at training.
    pub fn calibration(&self) -> impl Iterator<Item = (&str, &CalibrationFigures)> {
        self.manifest.calibration.iter().map(|(head, figures)| (head.as_str(), figures))
    }

    /// Language models on the scale of the difficulty head, by canonical name; empty for older classifiers.
    pub fn abilities(&self) -> &BTreeMap<String, ModelAbility> {
        &self.manifest.abilities
    }

    /// The models, weak and strong, that gain is measured between unless a caller names others.
    pub fn reference_pair(&self) -> Option<&[String; 2]> {
        self.manifest.reference_pair.as_ref()
    }

    /// What threshold keeps an asked confidence; empty for older classifiers.
    pub fn tier_control(&self) -> &TierControl {
        &self.manifest.tier_control
    }

    /// How tier probabilities were calibrated; empty: not at all.
    pub fn tier_calibrator(&self) -> &str {
        self.manifest.calibration.get("tier").map_or("", |figures| figures.method.as_str())
    }

    /// Word pieces, features and n-grams of a prepared text.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, which none is known to do.
    pub fn tokenize(&self, prepared: &Prepared) -> Result<Input, EncoderError> {
        Input::new(self.encoder.tokenizer(), prepared)
    }

    /// Classifies a batch in one forward pass, in input order.
    ///
    /// # Errors
    /// When the forward pass fails; nothing is known of any row then.
    pub fn classify(&self, inputs: &[&Input]) -> Result<Vec<Classification>, EncoderError> {
        let embeddings = embed(&self.encoder, inputs)?;
        Ok(self.judge(&embeddings, inputs))
    }

    /// The second half of [`Self::classify`]: the heads, on embeddings `[inputs, hidden]` made before.
    pub fn judge(&self, embeddings: &Array2<f32>, inputs: &[&Input]) -> Vec<Classification> {
        let features = feature_matrix(inputs);
        let ngrams: Vec<&[u32]> = inputs.iter().map(|input| input.ngrams.as_slice()).collect();
        let outputs = self.heads.apply(embeddings.view(), features.view(), &ngrams);
        inputs.iter().zip(outputs).map(|(input, output)| input.classification(output, self.tier_control())).collect()
    }
}

// === impl Input ===

impl Input {
    /// Reads a prepared text.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn new(tokenizer: &TextTokenizer, prepared: &Prepared) -> Result<Self, EncoderError> {
        let text = as_read(tokenizer, prepared);
        Ok(Self {
            tokens: tokenizer.tokenize(&text)?,
            features: features::extract(&text, &prepared.task.signals),
            ngrams: ngrams::buckets(&text),
        })
    }

    /// Word pieces that the encoder will read.
    pub fn n_tokens(&self) -> usize {
        self.tokens.ids.len()
    }

    /// An input of `n_tokens` meaningless word pieces.
    #[cfg(test)]
    pub(crate) fn of_length(n_tokens: usize) -> Self {
        Self {
            tokens: Tokens { ids: vec![0; n_tokens], n_cut: 0 },
            features: [0.0; features::N_FEATURES],
            ngrams: vec![],
        }
    }

    fn classification(&self, output: HeadOutput, tier_control: &TierControl) -> Classification {
        Classification {
            intent: output.intent,
            difficulty: output.difficulty,
            tiers: output.tiers,
            tier_control: tier_control.clone(),
            out_of_scope: output.out_of_scope,
            tokens_used: self.tokens.ids.len() as u32,
            tokens_cut: self.tokens.n_cut as u32,
        }
    }
}

/// A text as encoder and heads read it: what is asked for, with typing errors repaired unless it is no prose.
pub fn as_read<'t>(tokenizer: &TextTokenizer, prepared: &'t Prepared) -> Cow<'t, str> {
    let Task { text, signals } = &prepared.task;
    let machine_made = [Structure::Code, Structure::Json, Structure::Log];
    if machine_made.iter().any(|structure| signals.structures.contains(*structure)) {
        return Cow::Borrowed(text);
    }
    tokenizer.repair(text)
}

/// Loads an untuned encoder, in f32, by name or directory.
///
/// # Errors
/// Says which file, hash or shape is wrong.
pub fn load_encoder(
    name: &str,
    roots: &[PathBuf],
    max_tokens: usize,
    device: &Device,
) -> Result<Encoder, EncoderError> {
    let artifact = Artifact::<EncoderManifest>::load(name, roots)?;
    Encoder::load(&artifact, None, &EncoderOptions::exact(device, max_tokens))
}

/// Embeddings of a batch, `[inputs, hidden]`, in input order.
///
/// # Errors
/// When the forward pass fails.
pub fn embed(encoder: &Encoder, inputs: &[&Input]) -> Result<Array2<f32>, EncoderError> {
    let tokens: Vec<&Tokens> = inputs.iter().map(|input| &input.tokens).collect();
    encoder.embed(&tokens)
}

/// Text features of a batch, `[inputs, N_FEATURES]`, in input order.
pub fn feature_matrix(inputs: &[&Input]) -> Array2<f32> {
    let mut matrix = Array2::zeros((inputs.len(), features::N_FEATURES));
    for (mut row, input) in matrix.outer_iter_mut().zip(inputs) {
        row.assign(&ndarray::ArrayView1::from(&input.features));
    }
    matrix
}

/// An encoder is looked up beside the classifier that names it, then where all models are.
fn encoder_roots(classifier_dir: &Path, roots: &[PathBuf]) -> Vec<PathBuf> {
    let siblings = classifier_dir.parent().map(Path::to_owned);
    siblings.into_iter().chain(roots.iter().cloned()).chain(artifact::default_roots(None)).collect()
}
