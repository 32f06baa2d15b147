//! Copies of the policy in force on disk: what is written when, and that no request ever waits for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{PolicyStore, Progress};
use crate::sources::copies::{Copies, Copy, CopyError, Current, Format, Header, unix_ms_of};
use crate::sources::with_sources;

/// Copies, and what of them is still to be written.
#[derive(Debug)]
pub(super) struct Keeper {
    copies: Copies,
    /// Copies that were written or read here, so that they are as they should be; by SHA-256.
    written: Vec<String>,
    /// What `current.json` says is in force, and when that was written.
    told: Option<(String, Instant)>,
    /// A write that has not ended: on a disk that hangs there is one at a time, not one more a look.
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    write: JoinHandle<Result<(), CopyError>>,
    history: Vec<String>,
    sha256: String,
}

/// How far the time of the last confirmation on disk may be behind; after a restart a policy looks that much older.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// A disk that hangs holds up nothing but the next look at the source, and that no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(dir: PathBuf, written: Vec<String>) -> Self {
        Self { copies: Copies::new(dir), written, told: None, running: None }
    }

    /// Waits for the write under way, up to [`PATIENCE`].
    async fn finish(&mut self) -> Result<(), CopyError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let dir = self.copies.dir().to_owned();
        let ended = tokio::time::timeout(PATIENCE, &mut running.write).await;
        let Ok(ended) = ended else { return Err(CopyError::TimedOut { dir }) };
        let running = self.running.take();
        ended.unwrap_or_else(|error| Err(CopyError::Disk { dir, source: std::io::Error::other(error) }))?;
        if let Some(Running { history, sha256, .. }) = running {
            self.written = history;
            self.told = Some((sha256, Instant::now()));
        }
        Ok(())
    }
}

// === impl PolicyStore ===

impl PolicyStore {
    /// Writes what is in force and was not written yet; a failure is told and tried again.
    pub(super) async fn keep(&self, progress: &mut Progress) {
        let Some(keeper) = &mut progress.keeper else { return };
        let sha256 = self.snapshot().policy.sha256().to_string();
        let told = keeper.told.as_ref().is_some_and(|(told, at)| *told == sha256 && at.elapsed() < TELL_EVERY);
        if told {
            return;
        }
        if let Err(error) = keeper.finish().await {
            self.tell_copy_failure(&error);
            return;
        }
        let entries = progress.history.entries();
        let history: Vec<String> = entries.iter().map(|entry| entry.sha256.to_string()).collect();
        let all: Vec<(Copy, bool)> = entries
            .iter()
            .map(|entry| {
                let header = Header {
                    format: Format::V1,
                    kind: self.source.kind().to_owned(),
                    place: self.source.place(),
                    version: entry.version.to_string(),
                    revision: entry.revision.to_string(),
                    signature: entry.signature.as_deref().map(str::to_owned),
                    loaded_at_unix_ms: unix_ms_of(entry.loaded_at),
                };
                let written = keeper.written.iter().any(|written| **written == *entry.sha256);
                (Copy { header, document: Arc::clone(&entry.document) }, written)
            })
            .collect();
        let confirmed_at_unix_ms = unix_ms_of(SystemTime::now());
        let current = Current { sha256: sha256.clone(), confirmed_at_unix_ms, history: history.clone() };
        let copies = keeper.copies.clone();
        let write = move || {
            for (copy, written) in &all {
                // What was written may have been taken away since.
                if !written || !copies.has(copy) {
                    copies.write_copy(copy)?;
                }
            }
            copies.set_current(&current)
        };
        keeper.running = Some(Running { write: tokio::task::spawn_blocking(write), history, sha256 });
        match keeper.finish().await {
            Ok(()) => self.events.send_modify(|status| status.copy_error = None),
            Err(error) => self.tell_copy_failure(&error),
        }
    }

    pub(super) fn tell_copy_failure(&self, error: &CopyError) {
        let text = with_sources(error);
        self.events.send_modify(|status| {
            // Once per failure, not once per look.
            if status.copy_error.as_deref() != Some(text.as_str()) {
                tracing::error!(error = %text, "no usable policy copy on disk; a restart without the source would not find it");
            }
            status.copy_failures += 1;
            status.copy_error = Some(text);
        });
    }
}

/// What a start finds on disk.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The copy in force last, and since when it was not confirmed.
    pub(super) current: Option<(Arc<Copy>, Duration)>,
    /// All readable copies of this source, oldest first.
    pub(super) history: Vec<Arc<Copy>>,
    /// What is wrong.
    pub(super) error: Option<CopyError>,
}

/// Reads all copies of the documents of `kind` and `place`.
pub(super) fn find(copies: &Copies, kind: &str, place: &str) -> Found {
    let current = match copies.current() {
        Ok(Some(current)) => current,
        Ok(None) => return Found::default(),
        Err(error) => return Found { error: Some(error), ..Found::default() },
    };
    let mut found = Found::default();
    for sha256 in &current.history {
        let in_force = *sha256 == current.sha256;
        match copies.read_copy(sha256) {
            Ok(copy) if copy.header.kind == kind && copy.header.place == place => {
                let copy = Arc::new(copy);
                if in_force {
                    let age = crate::sources::copies::age_of(current.confirmed_at_unix_ms);
                    found.current = Some((Arc::clone(&copy), age));
                }
                found.history.push(copy);
            }
            Ok(copy) => {
                let place = format!("{} {}", copy.header.kind, copy.header.place);
                found.error = Some(CopyError::Foreign { dir: copies.dir().to_owned(), place });
            }
            Err(error) => found.error = Some(error),
        }
    }
    found
}
