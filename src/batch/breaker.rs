//! Stops asking an encoder that fails every time; one query a second finds out whether it works again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Passes that failed since the last one that did not.
    failures: u32,
    last_probe: Option<Instant>,
}

/// Passes that fail in a row before queries are turned away unread.
const OPENS_AFTER: u32 = 5;
/// Time between two tries while it is open.
const PROBE_EVERY: Duration = Duration::from_secs(1);

// === impl Breaker ===

impl Breaker {
    /// Whether a query may be handed to the encoder now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let mut state = self.lock();
        if state.failures < OPENS_AFTER {
            return true;
        }
        let due = state.last_probe.is_none_or(|last| now.saturating_duration_since(last) >= PROBE_EVERY);
        if due {
            state.last_probe = Some(now);
        }
        due
    }

    /// Whether the next failure opens it.
    pub(super) fn is_about_to_open(&self) -> bool {
        self.lock().failures + 1 == OPENS_AFTER
    }

    pub(super) fn succeeded(&self) {
        *self.lock() = State::default();
    }

    /// A whole pass failed; true when this opened the breaker.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        state.last_probe = Some(now);
        state.failures == OPENS_AFTER
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_probes_once_a_second_and_closes() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!((1..OPENS_AFTER).all(|_| !breaker.failed(start) && breaker.admits(start)));
        assert!(breaker.is_about_to_open());
        assert!(breaker.failed(start), "this one opens it");
        assert!(!breaker.is_about_to_open());
        assert!(!breaker.admits(at(999)));
        assert!(breaker.admits(at(1_000)) && !breaker.admits(at(1_001)), "one probe");
        assert!(!breaker.failed(at(1_100)), "it was open");
        assert!(!breaker.admits(at(2_000)) && breaker.admits(at(2_100)));
        breaker.succeeded();
        assert!(breaker.admits(at(2_101)) && breaker.admits(at(2_101)));
    }
}
