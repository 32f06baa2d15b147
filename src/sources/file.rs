//! A policy in a file.
//!
//! Found by reading and hashing, not by file system events: so editors that replace the file, symbolic links that are
//! switched (as Kubernetes does for mounted configuration) and network file systems all work alike. A document is at
//! most 1 MiB, so reading it a few times a second costs nothing that matters.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::{Fetch, Fetched, PolicySource, SourceError};
use crate::policy::{MAX_DOCUMENT_BYTES, sha256_hex};

/// The document at a path.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
}

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

    async fn read(&self) -> Result<Vec<u8>, SourceError> {
        let failed = |source| SourceError::Read { path: self.place(), source };
        let file = File::open(&self.path).await.map_err(failed)?;
        let mut bytes = Vec::new();
        // One byte more than allowed tells a document of just the limit from a longer one.
        let limit = MAX_DOCUMENT_BYTES as u64 + 1;
        file.take(limit).read_to_end(&mut bytes).await.map_err(failed)?;
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(SourceError::TooLarge { place: self.place(), limit: MAX_DOCUMENT_BYTES });
        }
        Ok(bytes)
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

    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a> {
        Box::pin(async move {
            let bytes = self.read().await?;
            let revision = sha256_hex(&bytes);
            if seen == Some(revision.as_str()) {
                return Ok(Fetched::Unchanged);
            }
            Ok(Fetched::Document { bytes, revision })
        })
    }
}
