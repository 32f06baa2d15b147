//! Where policies come from, and the one in force.
//!
//! A [`PolicySource`] fetches a document's bytes; [`PolicyStore`] compiles them off the request path and swaps the
//! result in whole. A bad document is refused and the last good one stays. Readers take a snapshot and never wait.

mod embedded;
mod file;
mod store;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use embedded::EmbeddedSource;
pub use file::FileSource;
pub use store::{ActivePolicy, PolicyEvent, PolicyStore, RefreshError, StoreStatus};

/// Somewhere a policy document can be fetched from.
pub trait PolicySource: Send + Sync + std::fmt::Debug {
    /// The kind, as decisions and metrics name it: "embedded", "file".
    fn kind(&self) -> &'static str;

    /// The place, for people: a path, a URL.
    fn place(&self) -> String;

    /// How often it is worth asking; `None`: it never changes.
    fn poll_interval(&self) -> Option<Duration>;

    /// Fetches the document unless it is still at `seen`, the revision that was fetched last.
    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a>;
}

/// A fetch under way.
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Fetched, SourceError>> + Send + 'a>>;

/// What a fetch brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fetched {
    /// The source still has the revision seen last.
    Unchanged,
    /// A document.
    Document {
        /// Its exact bytes.
        bytes: Vec<u8>,
        /// What the source calls this state: a hash, an `ETag`, a key's revision.
        revision: String,
    },
}

/// Why a source brought nothing; the control plane's fault or the network's.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
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
}
