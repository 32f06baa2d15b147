//! When requests are due.

use std::fmt;
use std::time::{Duration, Instant};

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// By schedule, whatever the server does.
    Open {
        /// Requests a second.
        rate: f64,
    },
    /// Each caller sends its next request when its last one is answered.
    Closed {
        /// Callers.
        concurrency: usize,
    },
}

/// Evenly spaced times, each worked out from the start, so that rounding does not add up.
#[derive(Clone, Debug)]
pub struct Schedule {
    start: Instant,
    interval_s: f64,
    next: u64,
    n_requests: u64,
}

// === impl Load ===

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { rate } => write!(f, "open loop, {rate} a second"),
            Self::Closed { concurrency } => write!(f, "closed loop, concurrency {concurrency}"),
        }
    }
}

// === impl Schedule ===

impl Schedule {
    /// `rate` requests a second for `duration`; the first is due at `start`.
    pub fn new(start: Instant, rate: f64, duration: Duration) -> Self {
        let n_requests = (duration.as_secs_f64() * rate).ceil().max(1.0) as u64;
        Self { start, interval_s: 1.0 / rate, next: 0, n_requests }
    }

    /// The same schedule, ended after `n_requests`.
    #[must_use]
    pub fn at_most(self, n_requests: u64) -> Self {
        Self { n_requests: self.n_requests.min(n_requests), ..self }
    }
}

impl Iterator for Schedule {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        if self.next >= self.n_requests {
            return None;
        }
        let due = self.start + Duration::from_secs_f64(self.interval_s * self.next as f64);
        self.next += 1;
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_evenly_spaced_and_do_not_drift() {
        let start = Instant::now();
        let due: Vec<Duration> = Schedule::new(start, 300.0, Duration::from_secs(100)).map(|due| due - start).collect();
        assert_eq!(due.len(), 30_000);
        assert_eq!(due[0], Duration::ZERO);
        // A third of a second has no finite decimals: summed intervals would have drifted by now.
        assert!(due[29_700].abs_diff(Duration::from_secs(99)) < Duration::from_nanos(10));
        let gaps = due.windows(2).map(|pair| pair[1].abs_diff(pair[0]));
        assert!({ gaps }.all(|gap| gap.abs_diff(Duration::from_nanos(3_333_333)) < Duration::from_nanos(10)));
    }

    #[test]
    fn a_schedule_is_bounded() {
        let schedule = || Schedule::new(Instant::now(), 1_000.0, Duration::from_secs(1));
        assert_eq!(schedule().at_most(7).count(), 7);
        assert_eq!(schedule().at_most(7_000).count(), 1_000);
        assert_eq!(Schedule::new(Instant::now(), 0.1, Duration::from_secs(1)).count(), 1, "never none");
    }
}
