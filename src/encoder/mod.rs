//! The text encoder: tokens to `[batch, hidden]` f32 embeddings, rows L2-normalised.
//!
//! The graph is written once, in candle, over ragged batches: sequences are concatenated, never padded, so the cost of
//! a batch is its tokens and no mask exists. Loaded from verified bytes in Hugging Face layout (`config.json`,
//! `tokenizer.json`, `model.safetensors`). Source of the default weights: `models/README.md`.

pub mod hub;

mod attention;
mod bert;
mod gradient;
mod int8;
mod layers;
mod noise;
mod ops;
mod spelling;
mod tokenizer;
mod tuning;

use std::time::Duration;

use candle_core::{DType, Device};
use ndarray::Array2;

pub use bert::RaggedBatch;
pub use int8::{Isa, Stage};
pub use noise::Noise;
pub use tokenizer::{TextTokenizer, Tokens};
pub use tuning::{CHANGES, TunableEncoder, Tuning};

use crate::artifact::{Artifact, ArtifactError, EncoderManifest, sha256_hex};

/// Weights file of an encoder directory.
pub const WEIGHTS: &str = "model.safetensors";
/// Configuration file of an encoder directory.
pub const CONFIG: &str = "config.json";
/// Tokenizer file of an encoder directory.
pub const TOKENIZER: &str = "tokenizer.json";
/// What the 8-bit layers look at to see which columns hold large numbers. The same few do for any text: one sentence
/// serves nearly as well.
const SAMPLE: [&str; 4] = [
    "What is the capital of France, and how many people live there?",
    "def add(a, b): return a + b  # why does this raise TypeError: unsupported operand?",
    "Summarize the following report in three sentences: on 3 May the company said that 1,250 workers would be moved.",
    "ok thanks!!",
];

/// A loaded encoder. Immutable; shared by reference between threads.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: TextTokenizer,
    bert: bert::Bert,
    device: Device,
    weights_sha256: String,
    changes_sha256: Option<String>,
    name: String,
}

/// How an encoder is to be run.
#[derive(Clone, Debug)]
pub struct EncoderOptions {
    /// Where.
    pub device: Device,
    /// Sequence limit in word pieces, the two special ones included.
    pub max_tokens: usize,
    /// How its products are computed.
    pub precision: Precision,
    /// The instruction set of the 8-bit kernels; `None`: the best that the machine has.
    pub isa: Option<Isa>,
    /// Threads of a pass in 8 bits, the caller's among them.
    pub threads: usize,
}

/// How the products of the layers are computed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Precision {
    /// In 8 bits where there are kernels for the device and the encoder's shapes, else in f32.
    #[default]
    Auto,
    /// In 32-bit floating point.
    F32,
    /// In 8-bit integers.
    Int8,
}

/// Why an encoder cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// The model directory is at fault.
    #[error("the encoder's model directory cannot be used")]
    Artifact(#[from] ArtifactError),
    /// `config.json` is not a BERT configuration.
    #[error("config.json is not a BERT configuration")]
    Config(#[source] serde_json::Error),
    /// `tokenizer.json` cannot be used.
    #[error("tokenizer.json cannot be used: {0}")]
    Tokenizer(String),
    /// The configuration asks for something this encoder does not do.
    #[error("unsupported encoder: {0}")]
    Unsupported(String),
    /// A setting names something that is not there.
    #[error("{0}")]
    Setting(String),
    /// A tensor is missing or an operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The device is not there.
    #[error("device {device:?} cannot be used: {reason}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why not.
        reason: String,
    },
}

// === impl EncoderOptions ===

impl EncoderOptions {
    /// On `device` in f32 with the longest sequences: what models are trained with and compared to.
    pub fn exact(device: &Device, max_tokens: usize) -> Self {
        Self { device: device.clone(), max_tokens, precision: Precision::F32, isa: None, threads: 1 }
    }
}

impl std::str::FromStr for Precision {
    type Err = EncoderError;

    fn from_str(name: &str) -> Result<Self, EncoderError> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => Err(EncoderError::Setting(format!("{name:?} is neither auto nor f32 nor int8"))),
        }
    }
}

impl std::str::FromStr for Isa {
    type Err = EncoderError;

    fn from_str(name: &str) -> Result<Self, EncoderError> {
        Self::named(name).ok_or_else(|| {
            let all: Vec<&str> = Self::all().into_iter().map(Self::name).collect();
            EncoderError::Setting(format!("this machine has no {name:?}; it has {}", all.join(", ")))
        })
    }
}

// === impl Encoder ===

impl Encoder {
    /// Builds the encoder from a verified directory, with the content of [`CHANGES`] added where a classifier has
    /// tuned it.
    ///
    /// # Errors
    /// When a file is missing, malformed, or describes something other than a BERT encoder, and when the precision asked
    /// for is not to be had.
    pub fn load(
        artifact: &Artifact<EncoderManifest>,
        changes: Option<&[u8]>,
        options: &EncoderOptions,
    ) -> Result<Self, EncoderError> {
        let EncoderOptions { device, max_tokens, .. } = options;
        let max_tokens = *max_tokens;
        // What stays comes before what goes, so that its memory can be given back.
        let tokenizer = TextTokenizer::from_bytes(artifact.file(TOKENIZER)?, max_tokens)?;
        let mut bert = open_bert(artifact, device)?;
        if !(3..=bert.max_positions()).contains(&max_tokens) {
            return Err(EncoderError::Unsupported(format!(
                "a sequence limit of {max_tokens} tokens; this encoder takes 3 to {}",
                bert.max_positions()
            )));
        }
        if let Some(changes) = changes {
            bert.apply_changes(changes, device)?;
        }
        let can = device.is_cpu() && bert.fits_int8();
        match options.precision {
            Precision::Int8 if !can => {
                return Err(EncoderError::Unsupported("8-bit products on this device or of these shapes".into()));
            }
            Precision::Int8 | Precision::Auto if can => {
                let sample = SAMPLE.iter().map(|text| tokenizer.tokenize(text)).collect::<Result<Vec<_>, _>>()?;
                bert.quantise(options, &RaggedBatch::new(&sample.iter().collect::<Vec<_>>()))?;
            }
            Precision::Int8 | Precision::Auto | Precision::F32 => {}
        }
        let weights_sha256 = artifact.manifest.files.get(WEIGHTS).map(|entry| entry.sha256.clone()).unwrap_or_default();
        Ok(Self {
            tokenizer,
            bert,
            device: device.clone(),
            weights_sha256,
            changes_sha256: changes.map(sha256_hex),
            name: artifact.manifest.name.clone(),
        })
    }

    /// The tokenizer that belongs to this encoder.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Length of an embedding.
    pub fn hidden_size(&self) -> usize {
        self.bert.hidden_size()
    }

    /// Name of the model directory's encoder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the weights file.
    pub fn weights_sha256(&self) -> &str {
        &self.weights_sha256
    }

    /// Tells apart encoders whose embeddings differ: the weights' hash, and that of the changes to them.
    pub fn fingerprint(&self) -> String {
        let short = |sha: &str| sha.get(..16).unwrap_or(sha).to_owned();
        let changes = self.changes_sha256.as_deref().map(|sha| format!("+{}", short(sha)));
        short(&self.weights_sha256) + &changes.unwrap_or_default()
    }

    /// Where it runs: `cpu` or `cuda:N`.
    pub fn device_name(&self) -> String {
        match self.device.location() {
            candle_core::DeviceLocation::Cpu => "cpu".into(),
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    /// How its products are computed: `f32`, or `int8` and on which instruction set.
    pub fn precision_name(&self) -> String {
        self.bert.isa().map_or_else(|| "f32".into(), |isa| format!("int8/{}", isa.name()))
    }

    /// Embeds a batch of tokenised texts in one pass: `[texts, hidden]` f32, rows L2-normalised, in input order.
    ///
    /// # Errors
    /// When a tensor operation fails, which on a CPU means a bug and on a GPU can mean exhausted memory.
    pub fn embed(&self, texts: &[&Tokens]) -> Result<Array2<f32>, EncoderError> {
        if texts.is_empty() {
            return Ok(Array2::zeros((0, self.hidden_size())));
        }
        let batch = RaggedBatch::new(texts);
        let embeddings = self.bert.forward(&batch, &self.device, &mut Noise::none())?.to_vec2::<f32>()?;
        let mut in_order = Array2::zeros((texts.len(), self.hidden_size()));
        for (row, &index) in embeddings.iter().zip(batch.order()) {
            in_order.row_mut(index).assign(&ndarray::ArrayView1::from(row.as_slice()));
        }
        Ok(in_order)
    }

    /// What the stages of a pass over a batch take, by one thread and in the order of [`Stage::ALL`]; nothing in f32.
    ///
    /// # Errors
    /// As of [`Self::embed`].
    pub fn stage_times(&self, texts: &[&Tokens]) -> Result<Option<[Duration; Stage::ALL.len()]>, EncoderError> {
        Ok(self.bert.stage_times(&RaggedBatch::new(texts)).transpose()?)
    }
}

/// The graph with the weights of a verified directory.
fn open_bert(artifact: &Artifact<EncoderManifest>, device: &Device) -> Result<bert::Bert, EncoderError> {
    let config: candle_transformers::models::bert::Config =
        serde_json::from_slice(artifact.file(CONFIG)?).map_err(EncoderError::Config)?;
    let vb = candle_nn::VarBuilder::from_slice_safetensors(artifact.file(WEIGHTS)?, DType::F32, device)?;
    bert::Bert::load(&config, &vb)
}

/// As many threads as there are cores.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Opens the device named `cpu` or `cuda:N`.
///
/// # Errors
/// When the name is unknown, the build has no CUDA, or the GPU is not there.
pub fn open_device(name: &str) -> Result<Device, EncoderError> {
    let fail = |reason: String| EncoderError::Device { device: name.to_owned(), reason };
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        Some(("cuda", ordinal)) => {
            let ordinal = ordinal.parse().map_err(|_| fail("the number after cuda: must be a GPU's index".into()))?;
            Device::new_cuda(ordinal).map_err(|error| {
                fail(if cfg!(feature = "cuda") {
                    error.to_string()
                } else {
                    "this build has no CUDA; build with --features cuda".into()
                })
            })
        }
        _ => Err(fail("use cpu or cuda:N".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_plainly() {
        assert!(open_device("cpu").is_ok());
        for bad in ["gpu", "cuda", "cuda:x", "cpu:0", ""] {
            assert!(matches!(open_device(bad), Err(EncoderError::Device { .. })), "{bad}");
        }
        #[cfg(not(feature = "cuda"))]
        assert!(open_device("cuda:0").unwrap_err().to_string().contains("--features cuda"));
    }
}
