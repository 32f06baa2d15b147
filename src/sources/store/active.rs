//! A policy in force, what decisions tell about it, and whether it is still to be trusted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::domain::PolicyRef;
use crate::policy::Policy;
use crate::sources::copies::unix_ms_of;

/// A policy in force, with what every decision tells about it.
#[derive(Clone, Debug)]
pub struct ActivePolicy {
    /// The policy.
    pub policy: Arc<Policy>,
    /// When it was put in force.
    pub loaded_at: SystemTime,
    /// The source's kind.
    pub source: Arc<str>,
    /// What the source calls it.
    pub revision: Arc<str>,
    /// Who had it in force.
    pub origin: Origin,
    /// The key that signed it, where keys are asked for.
    pub signed_by: Option<Arc<str>>,
    /// Whether its source never changes, so that it never ages.
    pub(super) fixed: bool,
    /// When the source last confirmed it; shared, so that a confirmation does not swap the policy.
    pub(super) confirmed: Arc<ArcSwap<Confirmed>>,
}

/// Who gave a policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The configured source.
    Source,
    /// The copy on disk; the source has not given anything usable since the start.
    Copy,
    /// What is compiled in; neither the source nor a copy has given anything usable since the start.
    Embedded,
}

/// When a source said that a policy is the current one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmed {
    /// Counted by a clock that no correction of the time of day moves.
    at: Instant,
    /// How long before that it was, for a copy from an earlier run.
    before: Duration,
}

/// When a policy is too old to go on with, and what then.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Staleness {
    /// The oldest a policy may get without being confirmed; `None`: any age.
    pub max: Option<Duration>,
    /// What to do with an older one.
    pub then: WhenStale,
}

/// What to do with a policy that was not confirmed for too long.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WhenStale {
    /// Decide with it as ever; only the age tells.
    #[default]
    Serve,
    /// Decide with it and mark every decision as degraded.
    MarkDegraded,
    /// Decide nothing.
    Refuse,
}

/// How far a policy can be relied on now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// The source has confirmed it recently enough.
    Confirmed,
    /// It is not the source's answer but a copy or the embedded default.
    StandIn,
    /// It was not confirmed for too long.
    Stale,
}

/// The policy was not confirmed for too long, and nothing is to be decided with it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the policy's source has not confirmed it for {} s; at most {} s are allowed", age.as_secs(), max.as_secs())]
pub struct PolicyStale {
    /// Its age.
    pub age: Duration,
    /// The oldest it may be.
    pub max: Duration,
}

// === impl ActivePolicy ===

impl ActivePolicy {
    /// Time since the source last confirmed it.
    pub fn age(&self) -> Duration {
        if self.fixed { Duration::ZERO } else { self.confirmed.load().age() }
    }

    /// What a decision tells about it.
    pub fn policy_ref(&self) -> PolicyRef {
        let source = match self.origin {
            Origin::Source => Arc::clone(&self.source),
            Origin::Copy => Arc::from("copy"),
            Origin::Embedded => Arc::from("embedded"),
        };
        PolicyRef {
            id: Arc::clone(self.policy.id()),
            version: Arc::clone(self.policy.version()),
            sha256: Arc::clone(self.policy.sha256()),
            age_ms: u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX),
            source,
            revision: Arc::clone(&self.revision),
            loaded_at_unix_ms: unix_ms_of(self.loaded_at),
        }
    }

    pub(super) fn confirm(&self) {
        self.confirmed.store(Arc::new(Confirmed::before(Duration::ZERO)));
    }
}

// === impl Confirmed ===

impl Confirmed {
    /// Confirmed that long ago.
    pub(super) fn before(before: Duration) -> Self {
        Self { at: Instant::now(), before }
    }

    fn age(&self) -> Duration {
        self.before.saturating_add(self.at.elapsed())
    }
}

// === impl Staleness ===

impl Staleness {
    /// Whether `active` was not confirmed for longer than allowed.
    pub fn is_stale(&self, active: &ActivePolicy) -> bool {
        // The embedded default was never confirmed by anybody: as a stand-in it is older than any limit.
        self.max.is_some_and(|max| active.age() > max || active.origin == Origin::Embedded)
    }

    /// How far `active` can be relied on now.
    ///
    /// # Errors
    /// When it is too old and nothing is to be decided with it.
    pub fn standing(&self, active: &ActivePolicy) -> Result<Standing, PolicyStale> {
        let stale = self.max.filter(|_| self.is_stale(active));
        match (stale, self.then) {
            (Some(max), WhenStale::Refuse) => Err(PolicyStale { age: active.age(), max }),
            (Some(_), WhenStale::MarkDegraded) => Ok(Standing::Stale),
            (Some(_), WhenStale::Serve) | (None, _) if active.origin != Origin::Source => Ok(Standing::StandIn),
            (Some(_), WhenStale::Serve) | (None, _) => Ok(Standing::Confirmed),
        }
    }
}
