//! The decision cache: what the classifier said of texts seen before.
//!
//! Bounded. It keeps classifications, not finished decisions: policy and requirements are applied anew to each request
//! (microseconds), so a hit can never outlive the policy version, tenant or requirements it was made under. One
//! router has one classifier, so the text's hash is the whole key.

use std::sync::Arc;

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::domain::Classification;
use crate::telemetry::{CacheResult, Metrics};

/// SHA-256 of a prepared text.
pub(super) type Key = [u8; 32];

#[derive(Debug)]
pub(super) struct ClassificationCache {
    entries: Cache<Key, Arc<Classification>>,
}

/// The key of a prepared text.
pub(super) fn key(text: &str) -> Key {
    Sha256::digest(text.as_bytes()).into()
}

impl ClassificationCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: Cache::new(capacity) }
    }

    pub(super) fn get(&self, key: &Key, metrics: &Metrics) -> Option<Arc<Classification>> {
        let found = self.entries.get(key);
        let result = if found.is_some() { CacheResult::Hit } else { CacheResult::Miss };
        metrics.record_cache(result, self.entries.len());
        found
    }

    pub(super) fn insert(&self, key: Key, classification: Arc<Classification>) {
        self.entries.insert(key, classification);
    }
}
