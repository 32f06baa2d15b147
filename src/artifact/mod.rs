//! Model directories: finding them, and reading their files once, hashed and checked against the manifest.
//!
//! Every consumer parses the very bytes whose hash was checked; nothing is read twice, so a file that changes under a
//! running process cannot slip past the check.

pub mod manifest;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use manifest::{
    CalibrationBin, CalibrationFigures, ClassifierManifest, EncoderManifest, FileEntry, GroupCalibration, ModelAbility,
    TrialAnswer,
};

/// File name of the manifest in every model directory.
pub const MANIFEST: &str = "manifest.toml";

/// A model directory whose manifest was parsed and whose files were read and verified.
#[derive(Debug)]
pub struct Artifact<M> {
    /// Where it was found.
    pub dir: PathBuf,
    /// The parsed manifest.
    pub manifest: M,
    /// SHA-256 of the manifest's bytes, lower-case hexadecimal.
    pub manifest_sha256: String,
    files: BTreeMap<String, Vec<u8>>,
}

/// Why a model directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// No directory of that name has a manifest.
    #[error("model {name:?} not found; looked in {}", display_list(.looked_in))]
    NotFound {
        /// The name or path asked for.
        name: String,
        /// Every place that was tried.
        looked_in: Vec<PathBuf>,
    },
    /// A file could not be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The manifest is not valid TOML or lacks a field.
    #[error("{} is not a valid manifest", .path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What and where.
        #[source]
        source: toml::de::Error,
    },
    /// The manifest describes another kind of directory or a later version of the format.
    #[error("{} has schema {found:?}; this build reads {expected:?}", .path.display())]
    WrongSchema {
        /// The manifest.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A needed file is not listed in the manifest.
    #[error("the manifest in {} does not list {file:?}", .dir.display())]
    NotListed {
        /// The directory.
        dir: PathBuf,
        /// The file.
        file: String,
    },
    /// A file name tries to leave the directory.
    #[error("the manifest in {} lists {file:?}, which is not a plain file name", .dir.display())]
    BadFileName {
        /// The directory.
        dir: PathBuf,
        /// The entry.
        file: String,
    },
    /// A file has another length than the manifest says.
    #[error("{} has {found} bytes, the manifest says {expected}", .path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Length on disk.
        found: u64,
        /// Length in the manifest.
        expected: u64,
    },
    /// A file has other content than the manifest says.
    #[error("{} has sha256 {found}, the manifest says {expected}", .path.display())]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// Hash of the bytes on disk.
        found: String,
        /// Hash in the manifest.
        expected: String,
    },
    /// A tensor of a weights file has another type or shape than the manifest says, or is missing.
    #[error("{}: tensor {tensor:?} is {found}, the manifest says {expected}", .path.display())]
    WrongTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the file has.
        found: String,
        /// What the manifest says.
        expected: String,
    },
    /// A weights file is not valid safetensors.
    #[error("{} is not a valid safetensors file", .path.display())]
    BadWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: safetensors::SafeTensorError,
    },
}

// === impl Artifact ===

impl<M: manifest::Manifest> Artifact<M> {
    /// Finds `name` (a directory, or a name below one of `roots`), reads and verifies everything in its manifest.
    ///
    /// # Errors
    /// Says which directory, file or hash is wrong.
    pub fn load(name: &str, roots: &[PathBuf]) -> Result<Self, ArtifactError> {
        let dir = locate(name, roots)?;
        let path = dir.join(MANIFEST);
        let bytes = read(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        let schema: manifest::SchemaOnly =
            toml::from_str(&text).map_err(|source| ArtifactError::BadManifest { path: path.clone(), source })?;
        if schema.schema != M::SCHEMA {
            return Err(ArtifactError::WrongSchema { path, found: schema.schema, expected: M::SCHEMA });
        }
        let manifest: M = toml::from_str(&text).map_err(|source| ArtifactError::BadManifest { path, source })?;
        let mut files = BTreeMap::new();
        for (file, entry) in manifest.files() {
            if !is_plain_name(file) {
                return Err(ArtifactError::BadFileName { dir, file: file.clone() });
            }
            files.insert(file.clone(), read_verified(&dir.join(file), entry)?);
        }
        Ok(Self { manifest_sha256: sha256_hex(&bytes), dir, manifest, files })
    }

    /// The verified bytes of `file`.
    ///
    /// # Errors
    /// When the manifest does not list it.
    pub fn file(&self, file: &str) -> Result<&[u8], ArtifactError> {
        self.files
            .get(file)
            .map(Vec::as_slice)
            .ok_or_else(|| ArtifactError::NotListed { dir: self.dir.clone(), file: file.to_owned() })
    }
}

/// The directories that hold models by name: what the operator says, else `./models` and beside the executable.
pub fn default_roots(configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(dir) = configured {
        return vec![dir.to_owned()];
    }
    let mut roots = vec![PathBuf::from("models")];
    if let Ok(executable) = std::env::current_exe() {
        // `target/release/pointsman` finds the checkout's models; an installed binary finds its neighbour's.
        roots.extend(executable.ancestors().skip(1).take(3).map(|ancestor| ancestor.join("models")));
    }
    roots
}

/// SHA-256 of `bytes`, lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Type and shape of every tensor of a safetensors file, as the manifest writes them: `f16[384, 1536]`.
///
/// # Errors
/// When `bytes` is not a safetensors file.
pub fn describe_tensors(bytes: &[u8]) -> Result<BTreeMap<String, String>, safetensors::SafeTensorError> {
    let tensors = safetensors::SafeTensors::deserialize(bytes)?;
    Ok(tensors
        .iter()
        .map(|(name, view)| {
            let dtype = format!("{:?}", view.dtype()).to_lowercase();
            (name.to_owned(), format!("{dtype}{:?}", view.shape()))
        })
        .collect())
}

fn locate(name: &str, roots: &[PathBuf]) -> Result<PathBuf, ArtifactError> {
    let as_path = Path::new(name);
    let candidates: Vec<PathBuf> =
        std::iter::once(as_path.to_owned()).chain(roots.iter().map(|root| root.join(name))).collect();
    candidates
        .iter()
        .find(|dir| dir.join(MANIFEST).is_file())
        .cloned()
        .ok_or_else(|| ArtifactError::NotFound { name: name.to_owned(), looked_in: candidates })
}

fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!((components.next(), components.next()), (Some(std::path::Component::Normal(_)), None))
}

fn read(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    std::fs::read(path).map_err(|source| ArtifactError::Unreadable { path: path.to_owned(), source })
}

fn read_verified(path: &Path, entry: &FileEntry) -> Result<Vec<u8>, ArtifactError> {
    let bytes = read(path)?;
    let path = || path.to_owned();
    if bytes.len() as u64 != entry.bytes {
        return Err(ArtifactError::WrongSize { path: path(), found: bytes.len() as u64, expected: entry.bytes });
    }
    let found = sha256_hex(&bytes);
    if found != entry.sha256 {
        return Err(ArtifactError::WrongHash { path: path(), found, expected: entry.sha256.clone() });
    }
    if !entry.tensors.is_empty() {
        let tensors = describe_tensors(&bytes).map_err(|source| ArtifactError::BadWeights { path: path(), source })?;
        for (tensor, expected) in &entry.tensors {
            let found = tensors.get(tensor).map_or("missing", String::as_str);
            if found != expected {
                return Err(ArtifactError::WrongTensor {
                    path: path(),
                    tensor: tensor.clone(),
                    found: found.to_owned(),
                    expected: expected.clone(),
                });
            }
        }
    }
    Ok(bytes)
}

fn display_list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A valid encoder directory with one small file in it.
    fn write_model(dir: &Path) {
        let bytes = b"{}";
        std::fs::write(dir.join("config.json"), bytes).unwrap();
        let manifest = EncoderManifest {
            schema: EncoderManifest::schema(),
            name: "tiny".into(),
            version: "1".into(),
            license: "Apache-2.0".into(),
            source: "test".into(),
            upstream_sha256: String::new(),
            files: BTreeMap::from([("config.json".to_owned(), FileEntry::of(bytes))]),
        };
        std::fs::write(dir.join(MANIFEST), toml::to_string(&manifest).unwrap()).unwrap();
    }

    fn load(dir: &Path) -> Result<Artifact<EncoderManifest>, ArtifactError> {
        Artifact::load(dir.to_str().unwrap(), &[])
    }

    #[test]
    fn a_valid_directory_loads() {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path());
        let artifact = load(dir.path()).unwrap();
        assert_eq!(artifact.file("config.json").unwrap(), b"{}");
        assert!(matches!(artifact.file("other"), Err(ArtifactError::NotListed { .. })));
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        let broken = |breaking: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            write_model(dir.path());
            breaking(dir.path());
            load(dir.path()).unwrap_err()
        };
        let edit_manifest = |from: &'static str, to: &'static str| {
            move |dir: &Path| {
                let path = dir.join(MANIFEST);
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.contains(from), "{text}");
                std::fs::write(path, text.replace(from, to)).unwrap();
            }
        };
        let flipped = broken(&|dir| std::fs::write(dir.join("config.json"), b"[]").unwrap());
        assert!(matches!(flipped, ArtifactError::WrongHash { .. }), "{flipped}");
        let truncated = broken(&|dir| std::fs::write(dir.join("config.json"), b"{").unwrap());
        assert!(matches!(truncated, ArtifactError::WrongSize { found: 1, expected: 2, .. }), "{truncated}");
        let missing = broken(&|dir| std::fs::remove_file(dir.join("config.json")).unwrap());
        assert!(matches!(missing, ArtifactError::Unreadable { .. }), "{missing}");
        let other_kind = broken(&edit_manifest("pointsman.encoder/v1", "pointsman.encoder/v9"));
        assert!(matches!(other_kind, ArtifactError::WrongSchema { .. }), "{other_kind}");
        let unknown_field = broken(&edit_manifest("license =", "licence ="));
        assert!(matches!(unknown_field, ArtifactError::BadManifest { .. }), "{unknown_field}");
        let outside = broken(&edit_manifest("\"config.json\"", "\"../config.json\""));
        assert!(matches!(outside, ArtifactError::BadFileName { .. }), "{outside}");
    }

    #[test]
    fn a_missing_model_says_where_it_was_sought() {
        let error = Artifact::<EncoderManifest>::load("nope", &[PathBuf::from("/a"), PathBuf::from("/b")]).unwrap_err();
        assert_eq!(error.to_string(), "model \"nope\" not found; looked in nope, /a/nope, /b/nope");
    }
}
