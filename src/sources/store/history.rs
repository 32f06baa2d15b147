//! The documents that were in force, to go back to.

use std::sync::Arc;
use std::time::SystemTime;

/// A document that was in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HistoryEntry {
    /// The document's version.
    pub version: Arc<str>,
    /// Its SHA-256.
    pub sha256: Arc<str>,
    /// What the source called it when it was loaded.
    pub revision: Arc<str>,
    /// When it was first put in force.
    pub loaded_at: SystemTime,
    /// Its bytes.
    pub(in crate::sources) document: Arc<[u8]>,
    /// The signatures that came with it.
    pub(in crate::sources) signature: Option<Arc<str>>,
}

/// The last documents in force, each once, and which of them is.
#[derive(Clone, Debug)]
pub(super) struct History {
    entries: Vec<HistoryEntry>,
    current: usize,
    keep: usize,
}

// === impl History ===

impl History {
    /// Keeps up to `keep` documents, the one in force included.
    pub(super) fn new(keep: usize) -> Self {
        Self { entries: Vec::new(), current: 0, keep: keep.max(1) }
    }

    /// Notes what is in force now.
    ///
    /// A document that was in force before keeps its place, so that going back twice goes back two steps. A new one
    /// comes right after the one it replaces, so that going back from it does not end at one that was given up.
    pub(super) fn note(&mut self, entry: HistoryEntry) {
        if let Some(index) = self.entries.iter().position(|known| known.sha256 == entry.sha256) {
            self.current = index;
            return;
        }
        if self.current + 1 < self.entries.len() {
            let replaced = self.entries.remove(self.current);
            self.entries.push(replaced);
        }
        self.entries.push(entry);
        let excess = self.entries.len().saturating_sub(self.keep);
        self.entries.drain(..excess);
        self.current = self.entries.len() - 1;
    }

    /// Oldest first.
    pub(super) fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// The one before the one in force.
    pub(super) fn before(&self) -> Option<&HistoryEntry> {
        self.entries.get(self.current.checked_sub(1)?)
    }

    /// The newest with this version.
    pub(super) fn version(&self, version: &str) -> Option<&HistoryEntry> {
        self.entries.iter().rev().find(|entry| &*entry.version == version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> HistoryEntry {
        HistoryEntry {
            version: name.into(),
            sha256: name.into(),
            revision: name.into(),
            loaded_at: SystemTime::UNIX_EPOCH,
            document: Arc::from(name.as_bytes()),
            signature: None,
        }
    }

    fn check(noted: &str, expected: &str, before: Option<&str>) {
        let mut history = History::new(4);
        noted.split(' ').for_each(|name| history.note(entry(name)));
        let order: Vec<&str> = history.entries().iter().map(|entry| &*entry.version).collect();
        assert_eq!(order.join(" "), expected, "after {noted}");
        assert_eq!(history.before().map(|entry| &*entry.version), before, "after {noted}");
    }

    #[test]
    fn going_back_is_a_step_each_time_and_never_to_what_was_given_up() {
        check("a", "a", None);
        check("a b c", "a b c", Some("b"));
        check("a b c b", "a b c", Some("a"));
        check("a b c b a", "a b c", None);
        check("a b c b d", "a c b d", Some("b"));
        check("a b c d e", "b c d e", Some("d"));
        check("a b a b", "a b", Some("a"));
    }
}
