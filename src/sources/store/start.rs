//! The first policy: from the source, else from the copy on disk, else the embedded one.
//!
//! A service that cannot start because something else is away makes one outage into two. So a remote source that is
//! away or has nothing usable is stood in for, loudly, until it answers. A local file that is missing or wrong is the
//! mistake of whoever is starting the service, and stops the start, unless there is a good copy of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};

use super::active::Confirmed;
use super::keep::{Found, Keeper, find};
use super::{
    ActivePolicy, Admitted, Content, History, HistoryEntry, Origin, PolicyStore, Progress, RefreshError, Refusal,
    StoreSettings, StoreStatus, admit,
};
use crate::policy::{DEFAULT_DOCUMENT, PolicyOptions, sha256_hex};
use crate::sources::copies::{Copies, Copy, CopyError};
use crate::sources::{Fetched, PolicySource, SourceError, with_sources};

/// A source that is slow is not waited for when there is a copy to begin with.
const PATIENCE: Duration = Duration::from_millis(700);

// === impl PolicyStore ===

impl PolicyStore {
    /// Fetches the first policy, with what is set by default.
    ///
    /// # Errors
    /// As [`Self::start_with`].
    pub async fn start(source: Box<dyn PolicySource>, options: PolicyOptions) -> Result<Self, RefreshError> {
        Self::start_with(source, options, StoreSettings::default()).await
    }

    /// Fetches the first policy.
    ///
    /// # Errors
    /// When the source is local, fails or has a document that is refused, and there is no copy: without a policy
    /// there is nothing to decide with.
    pub async fn start_with(
        source: Box<dyn PolicySource>,
        options: PolicyOptions,
        settings: StoreSettings,
    ) -> Result<Self, RefreshError> {
        let start = Start { source: &*source, options: &options, settings: &settings };
        let mut found = start.find().await;
        let kept = match found.current.take() {
            Some((copy, age)) => start.use_copy(&copy, age, &mut found).await,
            None => None,
        };
        let mut progress = start.progress(&found);
        let mut status = StoreStatus { loads: 1, ..StoreStatus::default() };
        let active = match start.fetch(kept.is_some(), &mut progress).await {
            Ok(admitted) => admitted.into_active(&*source, &mut progress),
            Err(error) => {
                status.count(&error);
                status.last_error = Some(with_sources(&error));
                let stand_in = match kept {
                    Some(kept) => start.copy_in_force(kept, &mut progress),
                    None if source.is_remote() => start.embedded().await?,
                    None => return Err(error),
                };
                tracing::error!(
                    place = %source.place(), error = %with_sources(&error), origin = ?stand_in.origin,
                    version = %stand_in.policy.version(), age_s = stand_in.age().as_secs(),
                    "the policy's source gives nothing to begin with; a stand-in is in force"
                );
                stand_in
            }
        };
        status.history = progress.history.entries().into();
        let store = Self {
            active: ArcSwap::from_pointee(active),
            progress: Mutex::new(progress),
            events: watch::Sender::new(status),
            keys: settings.keys,
            staleness: settings.staleness,
            source,
            options,
        };
        if let Some(error) = &found.error {
            store.tell_copy_failure(error);
        }
        if store.snapshot().origin == Origin::Source {
            store.keep(&mut *store.progress.lock().await).await;
        }
        Ok(store)
    }
}

/// What a start has to go by.
struct Start<'a> {
    source: &'a dyn PolicySource,
    options: &'a PolicyOptions,
    settings: &'a StoreSettings,
}

/// A copy that can be put in force.
struct Kept {
    admitted: Admitted,
    copy: Arc<Copy>,
    age: Duration,
}

// === impl Start ===

impl Start<'_> {
    async fn find(&self) -> Found {
        let Some(dir) = self.settings.copies.clone() else { return Found::default() };
        let (kind, place) = (self.source.kind(), self.source.place());
        let copies = Copies::new(dir.clone());
        let found = tokio::task::spawn_blocking(move || find(&copies, kind, &place)).await;
        found.unwrap_or_else(|error| {
            let error = CopyError::Disk { dir, source: std::io::Error::other(error) };
            Found { error: Some(error), ..Found::default() }
        })
    }

    /// Checks the copy as if the source had given it now.
    async fn use_copy(&self, copy: &Arc<Copy>, age: Duration, found: &mut Found) -> Option<Kept> {
        let header = &copy.header;
        let (document, signature) = (copy.document.to_vec(), header.signature.clone());
        match self.admit(document, signature, header.revision.clone()).await {
            Ok(admitted) => Some(Kept { admitted, copy: Arc::clone(copy), age }),
            Err(error) => {
                let dir = self.settings.copies.clone().unwrap_or_default();
                found.error = Some(CopyError::Unusable { dir, problem: with_sources(&error) });
                None
            }
        }
    }

    /// What was known before the first look: the history, and that nothing was seen yet.
    fn progress(&self, found: &Found) -> Progress {
        let mut history = History::new(self.settings.history);
        for copy in &found.history {
            // What was accepted once is not compiled again before somebody goes back to it.
            history.note(HistoryEntry {
                version: Arc::from(copy.header.version.as_str()),
                sha256: sha256_hex(&copy.document).into(),
                revision: Arc::from(copy.header.revision.as_str()),
                loaded_at: SystemTime::UNIX_EPOCH + Duration::from_millis(copy.header.loaded_at_unix_ms),
                document: Arc::clone(&copy.document),
                signature: copy.header.signature.as_deref().map(Arc::from),
            });
        }
        let written = found.history.iter().map(|copy| sha256_hex(&copy.document)).collect();
        let keeper = self.settings.copies.clone().map(|dir| Keeper::new(dir, written));
        Progress { revision: None, content: None, refused: None, history, keeper }
    }

    /// The first look. It is unconditional: a copy on disk is no reason to trust what a source calls unchanged.
    async fn fetch(&self, hurry: bool, progress: &mut Progress) -> Result<Admitted, RefreshError> {
        let fetch = self.source.fetch(None);
        let fetched = if hurry {
            let too_late = || SourceError::TimedOut { place: self.source.place(), after: PATIENCE };
            tokio::time::timeout(PATIENCE, fetch).await.unwrap_or_else(|_| Err(too_late()))?
        } else {
            fetch.await?
        };
        let Fetched::Document { bytes, signature, revision } = fetched else {
            return Err(SourceError::Absent { place: self.source.place() }.into());
        };
        progress.revision = Some(revision.clone());
        progress.content = Some(Content { sha256: sha256_hex(&bytes), signature: signature.clone() });
        let admitted = self.admit(bytes, signature, revision).await;
        if let Err(error) = &admitted {
            let untrusted = matches!(error, RefreshError::Untrusted { .. });
            progress.refused = Some(Refusal { text: with_sources(error), untrusted });
        }
        admitted
    }

    async fn admit(
        &self,
        bytes: Vec<u8>,
        signature: Option<String>,
        revision: String,
    ) -> Result<Admitted, RefreshError> {
        let (keys, place) = (self.settings.keys.clone(), self.source.place());
        admit(bytes, signature, revision, self.options.clone(), keys, place).await
    }

    fn copy_in_force(&self, kept: Kept, progress: &mut Progress) -> ActivePolicy {
        let loaded_at_unix_ms = kept.copy.header.loaded_at_unix_ms;
        ActivePolicy {
            loaded_at: SystemTime::UNIX_EPOCH + Duration::from_millis(loaded_at_unix_ms),
            origin: Origin::Copy,
            confirmed: Arc::new(ArcSwap::from_pointee(Confirmed::before(kept.age))),
            ..kept.admitted.into_active(self.source, progress)
        }
    }

    /// The embedded policy is written for the default classifier's intents; under others its wildcard routes answer.
    async fn embedded(&self) -> Result<ActivePolicy, RefreshError> {
        let (document, place) = (DEFAULT_DOCUMENT.as_bytes().to_vec(), "the embedded default".to_owned());
        let options = PolicyOptions::default();
        let admitted = admit(document, None, "embedded".to_owned(), options, None, place).await?;
        // It was never in force at the source: nobody goes back to it.
        Ok(ActivePolicy {
            policy: Arc::new(admitted.policy),
            loaded_at: SystemTime::now(),
            source: Arc::from(self.source.kind()),
            revision: Arc::from("embedded"),
            origin: Origin::Embedded,
            signed_by: None,
            fixed: false,
            confirmed: Arc::new(ArcSwap::from_pointee(Confirmed::before(Duration::ZERO))),
        })
    }
}
