//! A policy in a file.
//!
//! Found by reading and hashing, not by file system events: so editors that replace the file, symbolic links that are
//! switched (as Kubernetes does for mounted configuration) and network file systems all work alike. A document is at
//! most 1 MiB, so reading it a few times a second costs nothing that matters. Signatures are in the file of the same
//! name with `.sig` behind it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::{Fetch, Fetched, PolicySource, SourceError, Write, WriteError, disk};
use crate::policy::{MAX_DOCUMENT_BYTES, sha256_hex};

/// The document at a path.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
}

/// A document to put in the place of another.
struct Replacement {
    path: PathBuf,
    signature_path: PathBuf,
    document: Vec<u8>,
    signature: Option<String>,
    expected: Option<String>,
}

const SIGNATURE_SUFFIX: &str = ".sig";
/// A change has to be seen within a second, on a busy machine too.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

// === impl FileSource ===

impl FileSource {
    /// The document at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn signature_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(SIGNATURE_SUFFIX);
        name.into()
    }
}

impl PolicySource for FileSource {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn poll_interval(&self) -> Option<Duration> {
        Some(POLL_INTERVAL)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a> {
        Box::pin(async move {
            let mut bytes = read(&self.path).await?;
            let signature = loop {
                let signature = match read(&self.signature_path()).await {
                    Ok(signature) => String::from_utf8_lossy(&signature).into_owned(),
                    Err(error) if error.is_absent() => break None,
                    Err(error) => return Err(error),
                };
                // Two files are not read in one step: a document that was replaced meanwhile may have lost the
                // signature that was read.
                let again = read(&self.path).await?;
                if again == bytes {
                    break Some(signature);
                }
                bytes = again;
            };
            let revision = revision(&bytes, signature.as_deref());
            if seen == Some(revision.as_str()) {
                return Ok(Fetched::Unchanged);
            }
            Ok(Fetched::Document { bytes, signature, revision })
        })
    }

    fn write<'a>(&'a self, document: &'a [u8], signature: Option<&'a str>, expected: Option<&'a str>) -> Write<'a> {
        let write = Replacement {
            // Where the path is a link, what it points to is replaced and the link stays.
            path: std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone()),
            signature_path: self.signature_path(),
            document: document.to_vec(),
            signature: signature.map(str::to_owned),
            expected: expected.map(str::to_owned),
        };
        Box::pin(async move {
            let path = write.path.display().to_string();
            let written = tokio::task::spawn_blocking(move || write.run()).await;
            written.unwrap_or_else(|error| Err(WriteError::Write { path, source: std::io::Error::other(error) }))
        })
    }
}

// === impl Replacement ===

impl Replacement {
    /// Compares and replaces under a lock on the directory, so that of several servers that share the file one wins.
    /// An editor takes no lock: what it saves between the two steps is lost.
    fn run(self) -> Result<String, WriteError> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source| WriteError::Write { path, source }
        };
        let lock = std::fs::File::open(disk::directory_of(&self.path)).map_err(failed(&self.path))?;
        lock.lock().map_err(failed(&self.path))?;

        let present = |path: &Path| match std::fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SourceError::Read { path: path.display().to_string(), source }),
        };
        let (document, signature) = (present(&self.path)?, present(&self.signature_path)?);
        let signature = signature.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if document.map(|document| revision(&document, signature.as_deref())) != self.expected {
            return Err(WriteError::Conflict);
        }
        if let Some(new) = &self.signature {
            // Two files cannot be replaced in one step. For the moment between them the signatures of both documents
            // are there, so that whichever document a reader gets is signed.
            let both = format!("{}\n{}\n", new.trim_end(), signature.as_deref().unwrap_or_default().trim_end());
            disk::replace(&self.signature_path, both.as_bytes()).map_err(failed(&self.signature_path))?;
        }
        disk::replace(&self.path, &self.document).map_err(failed(&self.path))?;
        match &self.signature {
            Some(new) => {
                let line = format!("{}\n", new.trim_end());
                disk::replace(&self.signature_path, line.as_bytes()).map_err(failed(&self.signature_path))?;
                Ok(revision(&self.document, Some(&line)))
            }
            None if signature.is_some() => {
                std::fs::remove_file(&self.signature_path).map_err(failed(&self.signature_path))?;
                Ok(revision(&self.document, None))
            }
            None => Ok(revision(&self.document, None)),
        }
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    let place = || path.display().to_string();
    let failed = |source| SourceError::Read { path: place(), source };
    let file = File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a document of just the limit from a longer one.
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(SourceError::TooLarge { place: place(), limit: MAX_DOCUMENT_BYTES });
    }
    Ok(bytes)
}

fn revision(document: &[u8], signature: Option<&str>) -> String {
    let hash = sha256_hex(document);
    match signature {
        None => hash,
        Some(signature) => format!("{hash}+{}", sha256_hex(signature.as_bytes())),
    }
}
