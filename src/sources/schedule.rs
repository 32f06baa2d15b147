//! When to ask a source next: within its TTL, not in step with other replicas, less often while it fails.

use std::time::Duration;

/// The pauses between the looks of one poller.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    ttl: Duration,
    failures: u32,
    started: bool,
}

/// A regular pause is between these shares of the TTL: replicas that started together drift apart within a few looks,
/// and what is left of the TTL is time to fetch and compile.
const SHORTEST: f64 = 0.66;
const LONGEST: f64 = 0.90;
/// The first look again after a failure; doubled with every further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// An outage is noticed to be over within this, or within two TTLs where that is less.
const LAST_RETRY: Duration = Duration::from_secs(10);

// === impl Schedule ===

impl Schedule {
    /// Looks often enough that a change is in force within `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, failures: 0, started: false }
    }

    /// How long to wait after a look that came to `failed`; `uniform` is a random number from 0 to 1.
    ///
    /// The very first pause is anything up to the TTL, so that replicas started by one roll-out are spread at once.
    pub fn pause(&mut self, failed: bool, uniform: f64) -> Duration {
        let first = !std::mem::replace(&mut self.started, true);
        if failed {
            let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(20));
            self.failures = self.failures.saturating_add(1);
            // Half of it is random: the replicas that one outage failed together must not come back together.
            return doubled.min(LAST_RETRY).min(self.ttl * 2).mul_f64(0.5 + 0.5 * uniform);
        }
        self.failures = 0;
        let shortest = if first { 0.0 } else { SHORTEST };
        self.ttl.mul_f64(shortest + (LONGEST - shortest) * uniform)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    /// Fifty pollers that a roll-out starts at the same moment: where in the TTL each looks, `looks` looks later.
    fn phases(looks: usize) -> Vec<f64> {
        (0..50)
            .map(|_| {
                let mut schedule = Schedule::new(TTL);
                let at: Duration = (0..looks).map(|_| schedule.pause(false, rand::random())).sum();
                at.as_secs_f64() / TTL.as_secs_f64()
            })
            .collect()
    }

    #[test]
    fn fifty_pollers_started_together_do_not_poll_in_step() {
        for looks in [1, 2, 5, 20] {
            let mut phases = phases(looks);
            phases.sort_by(f64::total_cmp);
            let (first, last) = (phases[2], phases[47]);
            assert!(last - first >= 0.2, "look {looks}: 45 of 50 within {:.2} of a TTL", last - first);
            // No herd: never more than a third of them within a twentieth of the TTL.
            let densest = phases.iter().map(|low| phases.iter().filter(|at| (*low..*low + 0.05).contains(at)).count());
            assert!(densest.max().unwrap() <= 17, "look {looks}: {phases:?}");
        }
    }

    proptest! {
        #[test]
        fn a_change_is_seen_within_the_ttl_and_an_outage_backs_off(
            ttl_ms in 50_u64..60_000,
            looks in prop::collection::vec((any::<bool>(), 0.0..1.0), 1..60),
        ) {
            let ttl = Duration::from_millis(ttl_ms);
            let mut schedule = Schedule::new(ttl);
            let mut failures = 0;
            for (failed, uniform) in looks {
                let pause = schedule.pause(failed, uniform);
                prop_assert!(pause < ttl || failed);
                if failed {
                    prop_assert!(pause >= FIRST_RETRY.min(ttl * 2) / 2);
                    prop_assert!(pause <= LAST_RETRY.min(ttl * 2));
                    prop_assert!(failures > 0 || pause <= FIRST_RETRY, "the first retry is soon");
                    failures += 1;
                } else {
                    failures = 0;
                }
            }
        }
    }
}
