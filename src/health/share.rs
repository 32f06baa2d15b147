//! Token buckets that are filled by traffic: what may be a share of something else.

use std::time::Instant;

/// Tokens that others' requests earn and own requests spend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    tokens: f64,
    dripped: Instant,
}

/// Tokens kept at most, and at the start: what may come at once. Over any time, no more is spent than the share of the
/// traffic in it and this.
pub(super) const BURST: f64 = 10.0;

// === impl Share ===

impl Share {
    /// Full.
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: BURST, dripped: now }
    }

    /// Traffic came that this may be `share` of.
    pub(super) fn earn(&mut self, share: f64) {
        self.tokens = (self.tokens + share).min(BURST);
    }

    /// Time passed that by itself earns `per_second`.
    pub(super) fn drip(&mut self, per_second: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.dripped);
        self.dripped = self.dripped.max(now);
        self.earn(per_second * passed.as_secs_f64());
    }

    /// One was spent. What was spent unasked is owed, but no more than a burst of it.
    pub(super) fn spend(&mut self) {
        self.tokens = (self.tokens - 1.0).max(-BURST);
    }

    /// Whether none is left.
    pub(super) fn is_spent(&self) -> bool {
        self.tokens < 1.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whoever asks first never spends more than the share of the traffic and a burst.
        #[test]
        fn the_share_is_kept(share in 0.01_f64..1.0, asks in prop::collection::vec(any::<bool>(), 1..2_000)) {
            let mut bucket = Share::new(Instant::now());
            let mut spent = 0.0;
            for (n, asked) in asks.iter().enumerate() {
                bucket.earn(share);
                if *asked && !bucket.is_spent() {
                    bucket.spend();
                    spent += 1.0;
                }
                prop_assert!(spent <= share * (n + 1) as f64 + BURST + 1e-6);
            }
        }
    }

    #[test]
    fn time_earns_too_and_debts_are_bounded() {
        let start = Instant::now();
        let mut bucket = Share::new(start);
        for _ in 0..1_000 {
            bucket.spend();
        }
        assert!(bucket.is_spent());
        bucket.drip(1.0, start + Duration::from_secs(10));
        assert!(bucket.is_spent(), "what is owed comes first");
        bucket.drip(1.0, start + Duration::from_secs(11));
        assert!(!bucket.is_spent());
    }
}
