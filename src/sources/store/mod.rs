//! The policy in force, and how it changes.

mod active;
mod change;
mod history;
mod keep;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

pub use active::{ActivePolicy, Origin, PolicyStale, Staleness, Standing, WhenStale};
pub use change::ChangeError;
pub use history::HistoryEntry;

use self::active::Confirmed;
use self::history::History;
use self::keep::Keeper;
use super::{Fetched, PolicySource, Schedule, SignatureError, SourceError, TrustedKeys, with_sources};
use crate::policy::{InvalidPolicy, Policy, PolicyOptions, sha256_hex};

/// The policy in force and its source.
///
/// Readers call [`Self::snapshot`], which takes no lock. One task runs [`Self::run`].
#[derive(Debug)]
pub struct PolicyStore {
    source: Box<dyn PolicySource>,
    options: PolicyOptions,
    keys: Option<TrustedKeys>,
    staleness: Staleness,
    active: ArcSwap<ActivePolicy>,
    /// Held through a refresh or a change: two at once could put the older document in force last.
    progress: Mutex<Progress>,
    events: watch::Sender<StoreStatus>,
}

/// What an operator can choose.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Where accepted documents are copied to; `None`: nowhere.
    pub copies: Option<PathBuf>,
    /// Who may sign documents; `None`: signatures are not looked at.
    pub keys: Option<TrustedKeys>,
    /// Documents kept to go back to, the one in force included.
    pub history: usize,
    /// What to do when the source stays away.
    pub staleness: Staleness,
}

/// What the store has been through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreStatus {
    /// Documents accepted since the start, the one in force included.
    pub loads: u64,
    /// Documents refused since the start.
    pub rejections: u64,
    /// The same by the first error's code.
    pub rejections_by_reason: BTreeMap<&'static str, u64>,
    /// Fetches that brought nothing because the source failed.
    pub fetch_failures: u64,
    /// The same by what failed.
    pub fetch_failures_by_reason: BTreeMap<&'static str, u64>,
    /// Why the last attempt failed; `None`: it did not.
    pub last_error: Option<String>,
    /// What the last attempt came to.
    pub last_event: PolicyEvent,
    /// Copies that could not be read or written.
    pub copy_failures: u64,
    /// Why the last one could not; `None`: it could.
    pub copy_error: Option<String>,
    /// What can be gone back to, oldest first, the one in force included.
    pub history: Arc<[HistoryEntry]>,
}

/// What an attempt to refresh came to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PolicyEvent {
    /// A document was put in force.
    #[default]
    Loaded,
    /// The source still has what was seen last.
    Unchanged,
    /// A document was refused; the last good one stays.
    Rejected,
    /// The source failed; the last good document stays.
    Unavailable,
}

/// Why no new policy is in force.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The source brought nothing.
    #[error("the policy source failed")]
    Source(#[from] SourceError),
    /// The source brought a document with errors.
    #[error("the policy of {place} is refused")]
    Invalid {
        /// Where it came from.
        place: String,
        /// Every finding.
        source: InvalidPolicy,
    },
    /// The source brought a document that nobody who is trusted has signed.
    #[error("the policy of {place} is not trusted")]
    Untrusted {
        /// Where it came from.
        place: String,
        /// Why not.
        source: SignatureError,
    },
    /// Compiling it did not end as it should; a defect of this program.
    #[error("the policy could not be compiled")]
    Compile(#[source] tokio::task::JoinError),
}

/// What was seen of the source, and what is to come of it.
#[derive(Debug)]
struct Progress {
    /// What the source called what was fetched last, accepted or not.
    revision: Option<String>,
    /// What was fetched last: a refused document is not compiled again on every look.
    content: Option<Content>,
    /// Why it was refused, if it was.
    refused: Option<Refusal>,
    history: History,
    keeper: Option<Keeper>,
}

/// A document and its signatures, as far as it takes to tell whether they are the same as before.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Content {
    sha256: String,
    signature: Option<String>,
}

#[derive(Debug)]
struct Refusal {
    text: String,
    /// Refused for its signature: a key that is added may make it good as it is.
    untrusted: bool,
}

/// A document that may be put in force.
#[derive(Debug)]
struct Admitted {
    policy: Policy,
    signed_by: Option<Arc<str>>,
    signature: Option<String>,
    revision: String,
}

/// Documents kept where nothing else is said.
const DEFAULT_HISTORY: usize = 10;

// === impl StoreSettings ===

impl Default for StoreSettings {
    fn default() -> Self {
        Self { copies: None, keys: None, history: DEFAULT_HISTORY, staleness: Staleness::default() }
    }
}

// === impl PolicyStore ===

impl PolicyStore {
    /// The policy in force now; the whole request should use this one.
    pub fn snapshot(&self) -> Arc<ActivePolicy> {
        self.active.load_full()
    }

    /// How far `active` can be relied on now.
    ///
    /// # Errors
    /// When it is too old and nothing is to be decided with it.
    pub fn standing(&self, active: &ActivePolicy) -> Result<Standing, PolicyStale> {
        self.staleness.standing(active)
    }

    /// Whether `active` was not confirmed for longer than allowed.
    pub fn is_stale(&self, active: &ActivePolicy) -> bool {
        self.staleness.is_stale(active)
    }

    /// What the store has been through.
    pub fn status(&self) -> StoreStatus {
        self.events.borrow().clone()
    }

    /// Tells every attempt to refresh; for metrics.
    pub fn subscribe(&self) -> watch::Receiver<StoreStatus> {
        self.events.subscribe()
    }

    /// The source.
    pub fn source(&self) -> &dyn PolicySource {
        &*self.source
    }

    /// What happens when the source stays away.
    pub fn staleness(&self) -> Staleness {
        self.staleness
    }

    /// Fetches once and puts a new, valid document in force; else the last good one stays.
    ///
    /// # Errors
    /// Why nothing new is in force, although something new is there or may be. Status tells it too.
    pub async fn refresh(&self) -> Result<PolicyEvent, RefreshError> {
        let mut progress = self.progress.lock().await;
        self.look(&mut progress).await
    }

    /// Refreshes until cancelled: so often that a change is in force within `ttl`, and when the source tells of one.
    pub async fn run(&self, ttl: Duration, cancel: CancellationToken) {
        let mut schedule = Schedule::new(ttl);
        let mut changed = self.source.changed();
        let mut failed = self.status().last_event == PolicyEvent::Unavailable;
        loop {
            let pause = schedule.pause(failed, rand::random());
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // A source that tells of changes and cannot be read is asked again by schedule, not at once.
                () = &mut changed, if !failed => changed = self.source.changed(),
            }
            // A refresh is not cut short: it ends soon, and a half-done one would have to be undone.
            failed = matches!(self.refresh().await, Err(RefreshError::Source(_)));
        }
    }

    /// One look at the source, with everything that is to be told of it.
    async fn look(&self, progress: &mut Progress) -> Result<PolicyEvent, RefreshError> {
        let outcome = self.attempt(progress).await;
        self.record(&outcome, progress);
        if outcome.is_ok() && progress.refused.is_none() {
            self.keep(progress).await;
        }
        outcome
    }

    async fn attempt(&self, progress: &mut Progress) -> Result<PolicyEvent, RefreshError> {
        // What was refused for its signature is asked for again, since the keys may have changed.
        let again = progress.refused.as_ref().is_some_and(|refusal| refusal.untrusted);
        let seen = progress.revision.as_deref().filter(|_| !again);
        let (bytes, signature, revision) = match self.source.fetch(seen).await? {
            Fetched::Unchanged => return Ok(self.unchanged(progress)),
            Fetched::Document { bytes, signature, revision } => (bytes, signature, revision),
        };
        let content = Content { sha256: sha256_hex(&bytes), signature: signature.clone() };
        let same = progress.content.as_ref() == Some(&content);
        if same && !again {
            progress.revision = Some(revision);
            return Ok(self.unchanged(progress));
        }
        let admitted = self.admit(bytes, signature, revision.clone()).await;
        // Noted only now: a change that its caller gave up in between must not make the document look known.
        progress.revision = Some(revision);
        progress.content = Some(content);
        match admitted {
            Ok(admitted) => {
                progress.refused = None;
                Ok(self.put_in_force(admitted, progress))
            }
            Err(error) => {
                let untrusted = matches!(error, RefreshError::Untrusted { .. });
                let refusal = Refusal { text: with_sources(&error), untrusted };
                let known = progress.refused.as_ref().is_some_and(|refused| refused.text == refusal.text);
                progress.refused = Some(refusal);
                // The same document for the same reason is one refusal, however often it is looked at.
                if same && known { Ok(PolicyEvent::Unchanged) } else { Err(error) }
            }
        }
    }

    /// The source has what it had; only what is in force is confirmed by that, not a refused document.
    fn unchanged(&self, progress: &Progress) -> PolicyEvent {
        if progress.refused.is_none() {
            let active = self.active.load();
            active.confirm();
            if active.origin != Origin::Source {
                tracing::info!(place = %self.source.place(), "the policy's source confirms the copy in force");
                self.active.store(Arc::new(ActivePolicy { origin: Origin::Source, ..ActivePolicy::clone(&active) }));
            }
        }
        PolicyEvent::Unchanged
    }

    /// Checks who signed a document, and parses, validates and compiles it on a thread of its own kind: a large one
    /// takes milliseconds.
    async fn admit(
        &self,
        bytes: Vec<u8>,
        signature: Option<String>,
        revision: String,
    ) -> Result<Admitted, RefreshError> {
        let (options, keys, place) = (self.options.clone(), self.keys.clone(), self.source.place());
        admit(bytes, signature, revision, options, keys, place).await
    }

    fn put_in_force(&self, admitted: Admitted, progress: &mut Progress) -> PolicyEvent {
        let previous = self.active.load();
        let same = previous.policy.sha256() == admitted.policy.sha256();
        if same && previous.origin == Origin::Source && *previous.revision == *admitted.revision {
            // The same bytes again, after an edit that was refused: nothing changes for requests.
            previous.confirm();
            return PolicyEvent::Unchanged;
        }
        let (place, policy) = (self.source.place(), &admitted.policy);
        tracing::info!(
            id = %policy.id(), version = %policy.version(), sha256 = %policy.sha256(), revision = %admitted.revision,
            warnings = policy.warnings().len(), %place, "policy in force"
        );
        let active = admitted.into_active(&*self.source, progress);
        if !same && previous.policy.version() == active.policy.version() && previous.policy.id() == active.policy.id() {
            tracing::warn!(version = %active.policy.version(), %place, "the document changed and its version did not");
        }
        self.active.store(Arc::new(active));
        if same { PolicyEvent::Unchanged } else { PolicyEvent::Loaded }
    }

    fn record(&self, outcome: &Result<PolicyEvent, RefreshError>, progress: &Progress) {
        self.events.send_modify(|status| {
            match outcome {
                Ok(event) => {
                    status.last_event = *event;
                    status.loads += u64::from(*event == PolicyEvent::Loaded);
                    status.last_error = progress.refused.as_ref().map(|refusal| refusal.text.clone());
                    let entries = progress.history.entries();
                    if !status.history.iter().map(|entry| &entry.sha256).eq(entries.iter().map(|entry| &entry.sha256)) {
                        status.history = entries.into();
                    }
                }
                Err(error) => {
                    let text = with_sources(error);
                    // Once per failure, not once per poll.
                    if status.last_error.as_deref() != Some(text.as_str()) {
                        let place = self.source.place();
                        tracing::warn!(%place, error = %text, "policy not refreshed; the last good one stays");
                    }
                    status.count(error);
                    status.last_error = Some(text);
                }
            }
        });
    }
}

// === impl StoreStatus ===

impl StoreStatus {
    fn count(&mut self, error: &RefreshError) {
        let unavailable = matches!(error, RefreshError::Source(_));
        self.last_event = if unavailable { PolicyEvent::Unavailable } else { PolicyEvent::Rejected };
        let (total, by_reason) = if unavailable {
            (&mut self.fetch_failures, &mut self.fetch_failures_by_reason)
        } else {
            (&mut self.rejections, &mut self.rejections_by_reason)
        };
        *total += 1;
        *by_reason.entry(error.reason()).or_default() += 1;
    }
}

// === impl RefreshError ===

impl RefreshError {
    /// A stable name, for metrics: the code of the first error, or of what failed.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Source(error) => error.reason(),
            Self::Untrusted { source, .. } => source.reason(),
            Self::Compile(_) => "INTERNAL",
            Self::Invalid { source, .. } => {
                let first = source.findings.iter().find(|finding| finding.refuses_document());
                first.map_or("INVALID", |finding| finding.code.as_str())
            }
        }
    }
}

// === impl Admitted ===

impl Admitted {
    /// As the source's answer of just now, noted in the history.
    fn into_active(self, source: &dyn PolicySource, progress: &mut Progress) -> ActivePolicy {
        let loaded_at = SystemTime::now();
        let revision: Arc<str> = Arc::from(self.revision);
        progress.history.note(HistoryEntry {
            version: Arc::clone(self.policy.version()),
            sha256: Arc::clone(self.policy.sha256()),
            revision: Arc::clone(&revision),
            loaded_at,
            document: Arc::from(self.policy.document().as_bytes()),
            signature: self.signature.as_deref().map(Arc::from),
        });
        ActivePolicy {
            policy: Arc::new(self.policy),
            loaded_at,
            source: Arc::from(source.kind()),
            revision,
            origin: Origin::Source,
            signed_by: self.signed_by,
            fixed: source.poll_interval().is_none(),
            confirmed: Arc::new(ArcSwap::from_pointee(Confirmed::before(Duration::ZERO))),
        }
    }
}

async fn admit(
    bytes: Vec<u8>,
    signature: Option<String>,
    revision: String,
    options: PolicyOptions,
    keys: Option<TrustedKeys>,
    place: String,
) -> Result<Admitted, RefreshError> {
    let work = move || {
        let signed_by = keys.map(|keys| keys.verify(&bytes, signature.as_deref())).transpose();
        let signed_by = match signed_by {
            Ok(signed_by) => signed_by,
            Err(source) => return Err(RefreshError::Untrusted { place, source }),
        };
        match Policy::load(&bytes, &options) {
            Ok(policy) => Ok(Admitted { policy, signed_by, signature, revision }),
            Err(source) => Err(RefreshError::Invalid { place, source }),
        }
    };
    tokio::task::spawn_blocking(work).await.map_err(RefreshError::Compile)?
}
