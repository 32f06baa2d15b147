//! Counts over the last while: a ring of parts, the oldest of which falls out whole.

use std::time::{Duration, Instant};

/// What a part of a window can be.
pub(super) trait Part: Default {
    /// As if nothing had been counted.
    fn clear(&mut self);
}

/// The last `parts * width` of time, less up to one part.
#[derive(Debug)]
pub(super) struct Window<P> {
    parts: Vec<(u64, P)>,
    width: Duration,
    began: Instant,
}

/// Outcomes as a breaker counts them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    /// All of them.
    pub(super) outcomes: u32,
    /// Those that failed.
    pub(super) failed: u32,
    /// Those that were slow and did not fail.
    pub(super) slow: u32,
}

/// Parts of a window: what falls out at once is a tenth of it.
const PARTS: usize = 10;

// === impl Window ===

impl<P: Part> Window<P> {
    /// The `length` up to `now`; nothing is counted yet.
    pub(super) fn new(length: Duration, now: Instant) -> Self {
        let parts = std::iter::repeat_with(|| (0, P::default())).take(PARTS).collect();
        Self { parts, width: (length / PARTS as u32).max(Duration::from_millis(1)), began: now }
    }

    /// How long it is.
    pub(super) fn length(&self) -> Duration {
        self.width * PARTS as u32
    }

    /// The part that `now` belongs to; `None` only before anything began.
    pub(super) fn at(&mut self, now: Instant) -> Option<&mut P> {
        let index = self.index(now);
        let slot = usize::try_from(index).ok()? % PARTS;
        let (held, part) = self.parts.get_mut(slot)?;
        if *held != index {
            part.clear();
            *held = index;
        }
        Some(part)
    }

    /// The parts that are not over at `now`.
    pub(super) fn parts(&self, now: Instant) -> impl Iterator<Item = &P> {
        let index = self.index(now);
        let oldest = (index + 1).saturating_sub(PARTS as u64);
        // A part that was never used has index 0 and holds nothing.
        self.parts.iter().filter(move |(held, _)| (oldest..=index).contains(held)).map(|(_, part)| part)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.parts.iter_mut().for_each(|(_, part)| part.clear());
    }

    fn index(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_nanos();
        u64::try_from(passed / self.width.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Window<Counts> {
    /// All parts together.
    pub(super) fn sum(&self, now: Instant) -> Counts {
        self.parts(now).fold(Counts::default(), |sum, part| Counts {
            outcomes: sum.outcomes + part.outcomes,
            failed: sum.failed + part.failed,
            slow: sum.slow + part.slow,
        })
    }
}

// === impl Counts ===

impl Part for Counts {
    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_falls_out() {
        let start = Instant::now();
        let mut window: Window<Counts> = Window::new(Duration::from_secs(10), start);
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        for second in [0.0, 0.5, 1.0, 5.0] {
            window.at(at(second)).unwrap().outcomes += 1;
        }
        assert_eq!(window.sum(at(5.0)).outcomes, 4);
        assert_eq!(window.sum(at(10.0)).outcomes, 2, "the first second is over");
        assert_eq!(window.sum(at(14.9)).outcomes, 1);
        assert_eq!(window.sum(at(15.0)).outcomes, 0);
        // A part that is used again holds nothing of its last time.
        window.at(at(20.0)).unwrap().outcomes += 1;
        assert_eq!(window.sum(at(20.0)).outcomes, 1);
        assert_eq!(window.sum(at(1e6)).outcomes, 0);
    }
}
