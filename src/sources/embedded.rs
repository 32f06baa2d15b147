//! The policy that is built in.

use std::time::Duration;

use super::{Fetch, Fetched, PolicySource};
use crate::policy::DEFAULT_DOCUMENT;

/// [`DEFAULT_DOCUMENT`]; never changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbeddedSource;

// === impl EmbeddedSource ===

impl PolicySource for EmbeddedSource {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn place(&self) -> String {
        "embedded default".to_owned()
    }

    fn poll_interval(&self) -> Option<Duration> {
        None
    }

    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a> {
        let fetched = match seen {
            Some(_) => Fetched::Unchanged,
            None => Fetched::Document {
                bytes: DEFAULT_DOCUMENT.as_bytes().to_vec(),
                signature: None,
                revision: "embedded".to_owned(),
            },
        };
        Box::pin(std::future::ready(Ok(fetched)))
    }
}
