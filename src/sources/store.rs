//! The policy in force, and how it changes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Fetched, PolicySource, SourceError};
use crate::domain::PolicyRef;
use crate::policy::{InvalidPolicy, Policy, PolicyOptions};

/// A policy in force, with what every decision tells about it.
#[derive(Clone, Debug)]
pub struct ActivePolicy {
    /// The policy.
    pub policy: Arc<Policy>,
    /// When it was put in force.
    pub loaded_at: SystemTime,
    /// The source's kind.
    pub source: Arc<str>,
    /// When the source last confirmed it; shared, so that a confirmation does not swap the policy.
    confirmed_at: Arc<ArcSwap<Instant>>,
}

/// The policy in force and its source.
///
/// Readers call [`Self::snapshot`], which takes no lock. One task runs [`Self::run`].
#[derive(Debug)]
pub struct PolicyStore {
    source: Box<dyn PolicySource>,
    options: PolicyOptions,
    active: ArcSwap<ActivePolicy>,
    /// Held through a refresh: two at once could put the older document in force last.
    refresh: Mutex<Seen>,
    events: watch::Sender<StoreStatus>,
}

/// What the store has been through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreStatus {
    /// Documents accepted since the start, the one in force included.
    pub loads: u64,
    /// Documents refused since the start.
    pub rejections: u64,
    /// Fetches that brought nothing because the source failed.
    pub fetch_failures: u64,
    /// Why the last attempt failed; `None`: it did not.
    pub last_error: Option<String>,
    /// What the last attempt came to.
    pub last_event: PolicyEvent,
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
    /// Compiling it did not end as it should; a defect of this program.
    #[error("the policy could not be compiled")]
    Compile(#[source] tokio::task::JoinError),
}

#[derive(Debug, Default)]
struct Seen {
    /// The revision fetched last, accepted or not: a refused document is not compiled again on every poll.
    revision: Option<String>,
    /// Whether that revision was refused.
    refused: Option<String>,
}

// === impl PolicyStore ===

impl PolicyStore {
    /// Fetches the first policy.
    ///
    /// # Errors
    /// When the source fails or its document has errors: without a policy there is nothing to decide with.
    pub async fn start(source: Box<dyn PolicySource>, options: PolicyOptions) -> Result<Self, RefreshError> {
        // An empty answer to a first fetch is a source that has nothing.
        let Fetched::Document { bytes, revision } = source.fetch(None).await? else {
            let error = std::io::Error::new(std::io::ErrorKind::NotFound, "the source has no document");
            return Err(SourceError::Read { path: source.place(), source: error }.into());
        };
        let policy = compile(bytes, options.clone(), source.place()).await?;
        let active = ActivePolicy::new(policy, source.kind());
        let status = StoreStatus { loads: 1, ..StoreStatus::default() };
        Ok(Self {
            active: ArcSwap::from_pointee(active),
            refresh: Mutex::new(Seen { revision: Some(revision), refused: None }),
            events: watch::Sender::new(status),
            source,
            options,
        })
    }

    /// The policy in force now; the whole request should use this one.
    pub fn snapshot(&self) -> Arc<ActivePolicy> {
        self.active.load_full()
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

    /// Fetches once and puts a new, valid document in force; else the last good one stays.
    ///
    /// # Errors
    /// Why nothing new is in force, although something new is there or may be. Status tells it too.
    pub async fn refresh(&self) -> Result<PolicyEvent, RefreshError> {
        let mut seen = self.refresh.lock().await;
        let outcome = self.attempt(&mut seen).await;
        self.record(&outcome, &seen);
        outcome
    }

    /// Refreshes until cancelled: every `interval`, less up to a tenth at random so that replicas do not poll in step.
    pub async fn run(&self, interval: Duration, cancel: CancellationToken) {
        loop {
            let pause = interval.mul_f64(1.0 - 0.1 * rand::random::<f64>());
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            // A refresh is not cut short: it ends soon, and a half-done one would have to be undone.
            if let Err(error) = self.refresh().await {
                tracing::debug!(place = %self.source.place(), %error, "policy refresh");
            }
        }
    }

    async fn attempt(&self, seen: &mut Seen) -> Result<PolicyEvent, RefreshError> {
        match self.source.fetch(seen.revision.as_deref()).await? {
            Fetched::Unchanged => {
                // Only what is in force is confirmed, not a refused document that is still there.
                if seen.refused.is_none() {
                    self.active.load().confirm();
                }
                Ok(PolicyEvent::Unchanged)
            }
            Fetched::Document { bytes, revision } => {
                seen.revision = Some(revision);
                match compile(bytes, self.options.clone(), self.source.place()).await {
                    Ok(policy) => {
                        seen.refused = None;
                        Ok(self.put_in_force(policy))
                    }
                    Err(error) => {
                        seen.refused = Some(with_sources(&error));
                        Err(error)
                    }
                }
            }
        }
    }

    fn put_in_force(&self, policy: Policy) -> PolicyEvent {
        let previous = self.active.load();
        if previous.policy.sha256() == policy.sha256() {
            // The same bytes again, after an edit that was refused: nothing changes for requests.
            previous.confirm();
            return PolicyEvent::Unchanged;
        }
        tracing::info!(
            id = %policy.id(), version = %policy.version(), sha256 = %policy.sha256(),
            warnings = policy.warnings().len(), place = %self.source.place(), "policy in force"
        );
        self.active.store(Arc::new(ActivePolicy::new(policy, self.source.kind())));
        PolicyEvent::Loaded
    }

    fn record(&self, outcome: &Result<PolicyEvent, RefreshError>, seen: &Seen) {
        self.events.send_modify(|status| {
            match outcome {
                Ok(event) => {
                    status.last_event = *event;
                    status.loads += u64::from(*event == PolicyEvent::Loaded);
                    status.last_error.clone_from(&seen.refused);
                }
                Err(error) => {
                    let text = with_sources(error);
                    // Once per failure, not once per poll.
                    if status.last_error.as_deref() != Some(text.as_str()) {
                        tracing::warn!(place = %self.source.place(), error = %text, "policy not refreshed; the last good one stays");
                    }
                    let unavailable = matches!(error, RefreshError::Source(_));
                    status.last_event = if unavailable { PolicyEvent::Unavailable } else { PolicyEvent::Rejected };
                    status.fetch_failures += u64::from(unavailable);
                    status.rejections += u64::from(!unavailable);
                    status.last_error = Some(text);
                }
            }
        });
    }
}

/// Parses, validates and compiles on a thread of its own kind: a large document takes milliseconds.
async fn compile(bytes: Vec<u8>, options: PolicyOptions, place: String) -> Result<Policy, RefreshError> {
    let loaded = tokio::task::spawn_blocking(move || Policy::load(&bytes, &options)).await;
    loaded.map_err(RefreshError::Compile)?.map_err(|source| RefreshError::Invalid { place, source })
}

/// The error and all its causes in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

// === impl ActivePolicy ===

impl ActivePolicy {
    fn new(policy: Policy, source: &str) -> Self {
        Self {
            policy: Arc::new(policy),
            loaded_at: SystemTime::now(),
            source: Arc::from(source),
            confirmed_at: Arc::new(ArcSwap::from_pointee(Instant::now())),
        }
    }

    /// Time since the source last confirmed it.
    pub fn age(&self) -> Duration {
        self.confirmed_at.load().elapsed()
    }

    /// What a decision tells about it.
    pub fn policy_ref(&self) -> PolicyRef {
        PolicyRef {
            id: Arc::clone(self.policy.id()),
            version: Arc::clone(self.policy.version()),
            sha256: Arc::clone(self.policy.sha256()),
            age_ms: self.age().as_millis() as u64,
            source: Arc::clone(&self.source),
        }
    }

    fn confirm(&self) {
        self.confirmed_at.store(Arc::new(Instant::now()));
    }
}
