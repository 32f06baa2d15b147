//! Where policies come from, and the one in force.
//!
//! A [`PolicySource`] fetches a document's bytes; [`PolicyStore`] compiles them off the request path and swaps the
//! result in whole. A bad document is refused and the last good one stays, across restarts too where copies are kept.
//! Readers take a snapshot and never wait.

mod copies;
mod disk;
mod embedded;
mod etcd;
mod file;
mod http;
mod schedule;
mod signature;
mod store;
mod tls;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use copies::CopyError;
pub use embedded::EmbeddedSource;
pub use etcd::{EtcdPlace, EtcdSource};
pub use file::FileSource;
pub use http::HttpSource;
pub use schedule::Schedule;
pub use signature::{SignatureError, SigningKey, TrustedKeys};
pub use store::{
    ActivePolicy, ChangeError, HistoryEntry, Origin, PolicyEvent, PolicyStale, PolicyStore, RefreshError, Staleness,
    Standing, StoreSettings, StoreStatus, WhenStale,
};
pub use tls::{TlsError, TlsFiles};

/// How soon a change at a remote source is in force, where nothing else is said.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5);

/// Somewhere a policy document can be fetched from.
pub trait PolicySource: Send + Sync + std::fmt::Debug {
    /// The kind, as decisions and metrics name it: "embedded", "file".
    fn kind(&self) -> &'static str;

    /// The place, for people: a path, a URL.
    fn place(&self) -> String;

    /// How soon a change should be in force, which is how often it is worth asking; `None`: it never changes.
    fn poll_interval(&self) -> Option<Duration>;

    /// Whether it can be away for reasons that a start should not wait for.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether [`Self::write`] can replace the document.
    fn is_writable(&self) -> bool {
        false
    }

    /// Fetches the document unless it is still at `seen`, the revision that was fetched last.
    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a>;

    /// Ends when there may be something newer than what was fetched last; never, where the source cannot tell.
    fn changed(&self) -> Changed<'_> {
        Box::pin(std::future::pending())
    }

    /// Replaces the document, if it is still at `expected` (`None`: there is none yet), and gives the new revision.
    fn write<'a>(&'a self, _document: &'a [u8], _signature: Option<&'a str>, _expected: Option<&'a str>) -> Write<'a> {
        Box::pin(std::future::ready(Err(WriteError::ReadOnly { kind: self.kind() })))
    }
}

/// A fetch under way.
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Fetched, SourceError>> + Send + 'a>>;
/// Waiting for a change.
pub type Changed<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
/// A replacement under way.
pub type Write<'a> = Pin<Box<dyn Future<Output = Result<String, WriteError>> + Send + 'a>>;

/// What a fetch brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fetched {
    /// The source still has the revision seen last.
    Unchanged,
    /// A document.
    Document {
        /// Its exact bytes.
        bytes: Vec<u8>,
        /// The signatures that came with it, one a line.
        signature: Option<String>,
        /// What the source calls this state: a hash, an `ETag`, a key's revision.
        revision: String,
    },
}

/// Why a source brought nothing; the control plane's fault or the network's.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file could not be read or written.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file that shows who is asking could not be used.
    #[error("cannot use the secret in {path}")]
    Secret {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The document is larger than a policy may be; it was not read to the end.
    #[error("{place} has more than {limit} bytes, which is no policy document")]
    TooLarge {
        /// Where it is.
        place: String,
        /// The limit.
        limit: usize,
    },
    /// The source answers and has no document.
    #[error("{place} has no document")]
    Absent {
        /// Where it should be.
        place: String,
    },
    /// No connection, or none that held to the end of the answer.
    #[error("cannot reach {place}")]
    Unreachable {
        /// Where.
        place: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The whole answer was not there in time.
    #[error("{place} did not answer within {} ms", after.as_millis())]
    TimedOut {
        /// Where.
        place: String,
        /// The time it had.
        after: Duration,
    },
    /// The server says no.
    #[error("{place} answers with HTTP status {status}")]
    Refused {
        /// Where.
        place: String,
        /// What it says.
        status: u16,
    },
    /// The server says that it is somewhere else.
    #[error("{place} redirects (HTTP status {status}), which is not followed: configure the address that has it")]
    Redirected {
        /// Where.
        place: String,
        /// What it says.
        status: u16,
    },
    /// An answer that is none.
    #[error("{place} answers with {problem}")]
    BadAnswer {
        /// Where.
        place: String,
        /// What it says.
        problem: String,
    },
}

/// Why a source was not changed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// This kind of source is changed elsewhere.
    #[error("a policy that comes from {kind} cannot be changed through Pointsman; change it where it comes from")]
    ReadOnly {
        /// The kind of source.
        kind: &'static str,
    },
    /// Somebody else was faster.
    #[error("the source was changed meanwhile")]
    Conflict,
    /// It could not be reached.
    #[error("the source failed")]
    Source(#[from] SourceError),
    /// A file could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

// === impl SourceError ===

impl SourceError {
    /// A stable name, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "UNREADABLE",
            Self::Secret { .. } => "SECRET_UNREADABLE",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::Absent { .. } => "ABSENT",
            Self::Unreachable { .. } => "UNREACHABLE",
            Self::TimedOut { .. } => "TIMED_OUT",
            Self::Refused { .. } => "REFUSED",
            Self::Redirected { .. } => "REDIRECTED",
            Self::BadAnswer { .. } => "BAD_ANSWER",
        }
    }

    /// Whether the source works and just has nothing, so that a first document may be written.
    fn is_absent(&self) -> bool {
        match self {
            Self::Absent { .. } => true,
            Self::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
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
