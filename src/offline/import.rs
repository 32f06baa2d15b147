//! Turns an encoder in Hugging Face layout into a model directory: converted weights and a manifest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::artifact::{self, EncoderManifest, FileEntry, sha256_hex};
use crate::encoder::{CONFIG, TOKENIZER, WEIGHTS};

/// What to import and how.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// `config.json`, `tokenizer.json`, `model.safetensors`, by name; see [`read_folder`].
    pub files: BTreeMap<&'static str, Vec<u8>>,
    /// Model directory to write; its last part becomes the encoder's name.
    pub out: PathBuf,
    /// Number format of the written weights: `f16` halves the file, `f32` keeps every bit.
    pub dtype: DType,
    /// SPDX identifier of the weights' licence.
    pub license: String,
    /// Where the weights come from, for the manifest.
    pub source: String,
}

/// Why an encoder could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file that an encoder needs was not given.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A file could not be read or written.
    #[error("cannot access {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The weights could not be converted.
    #[error("cannot convert the weights")]
    Convert(#[from] candle_core::Error),
    /// The manifest could not be written as TOML.
    #[error("cannot write the manifest")]
    Manifest(#[from] toml::ser::Error),
}

/// Reads an encoder's files from a folder.
///
/// # Errors
/// Names the file that could not be read.
pub fn read_folder(folder: &Path) -> Result<BTreeMap<&'static str, Vec<u8>>, ImportError> {
    [WEIGHTS, CONFIG, TOKENIZER].into_iter().map(|name| Ok((name, read(&folder.join(name))?))).collect()
}

/// Converts an encoder's floating-point tensors and writes a model directory.
///
/// # Errors
/// Names the file that could not be converted or written.
pub fn import_encoder(options: &ImportOptions) -> Result<EncoderManifest, ImportError> {
    let given = |name| options.files.get(name).ok_or(ImportError::Missing(name));
    let upstream = given(WEIGHTS)?;
    let files = [
        (WEIGHTS, convert(upstream, options.dtype)?),
        (CONFIG, given(CONFIG)?.clone()),
        (TOKENIZER, given(TOKENIZER)?.clone()),
    ];
    let name = options.out.file_name().map_or_else(|| "encoder".into(), |name| name.to_string_lossy().into_owned());
    let manifest = EncoderManifest {
        schema: EncoderManifest::schema(),
        name,
        version: "1".into(),
        license: options.license.clone(),
        source: options.source.clone(),
        upstream_sha256: sha256_hex(upstream),
        files: files.iter().map(|(name, bytes)| ((*name).to_owned(), FileEntry::of(bytes))).collect(),
    };
    std::fs::create_dir_all(&options.out).map_err(io_error(&options.out))?;
    for (name, bytes) in &files {
        write(&options.out.join(name), bytes)?;
    }
    write(&options.out.join(artifact::MANIFEST), toml::to_string(&manifest)?.as_bytes())?;
    Ok(manifest)
}

/// The file with its floating-point tensors in `dtype`; index tensors, which the graph makes itself, are dropped.
fn convert(bytes: &[u8], dtype: DType) -> candle_core::Result<Vec<u8>> {
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
    let converted: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .filter(|(_, tensor)| tensor.dtype().is_float())
        .map(|(name, tensor)| Ok((name, tensor.to_dtype(dtype)?)))
        .collect::<candle_core::Result<_>>()?;
    Ok(safetensors::serialize(converted, None)?)
}

fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    std::fs::read(path).map_err(io_error(path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImportError> {
    std::fs::write(path, bytes).map_err(io_error(path))
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> ImportError {
    let path = path.to_owned();
    |source| ImportError::Io { path, source }
}
