//! What a tenant may ask for and spend, as numbers that can be counted exactly.

use std::time::Duration;

use crate::domain::{Priority, Tier};
use crate::policy::{LimitsSpec, Unreported};

/// Billionths of a US dollar: sums of them are exact, in a Redis too, up to nine million dollars.
pub type Nanos = i64;

/// A rate of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests per second.
    pub per_second: f64,
    /// Requests at once.
    pub burst: f64,
}

/// A budget over windows of time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Budget {
    /// From here on the cheapest goes first.
    pub soft: Option<Nanos>,
    /// What would go above is refused.
    pub hard: Option<Nanos>,
    /// Length of a window.
    pub window: Duration,
    /// How long an estimate waits for its outcome.
    pub reserve: Duration,
    /// What becomes of it then.
    pub unreported: Unreported,
}

/// What is kept of a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Session {
    /// The model its last request went to.
    pub model: String,
    /// The tier that was for.
    pub tier: Tier,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// What its last text was, as a hash.
    pub text: u64,
}

/// The last answer of a session that was said to be bad.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BadAnswer {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// The tier it was for.
    pub tier: Tier,
}

const NANOS_PER_USD: f64 = 1e9;
const DEFAULT_WINDOW: u32 = 24 * 60 * 60;
const DEFAULT_RESERVE: u32 = 600;
/// Shares of a burst that are kept for requests of higher priority.
const KEPT_FROM_NORMAL: f64 = 0.1;
const KEPT_FROM_LOW: f64 = 0.5;

// === impl Rate ===

impl Rate {
    /// What `limits` says; `None`: nothing.
    pub fn of(limits: &LimitsSpec) -> Option<Self> {
        let per_second = limits.requests_per_second?;
        let burst = limits.burst.map_or_else(|| per_second.max(1.0), f64::from);
        Some(Self { per_second, burst })
    }

    /// Tokens that must be there for a request of `priority`, its own included.
    pub fn needed(&self, priority: Priority) -> f64 {
        let kept = match priority {
            Priority::High => 0.0,
            Priority::Normal => KEPT_FROM_NORMAL,
            Priority::Low => KEPT_FROM_LOW,
        };
        // A bucket of one must let any request through when it is full.
        (1.0 + kept * self.burst).min(self.burst.max(1.0))
    }

    /// The same divided among so many.
    #[must_use]
    pub fn share(self, replicas: u32) -> Self {
        let n = f64::from(replicas.max(1));
        Self { per_second: self.per_second / n, burst: (self.burst / n).max(1.0) }
    }
}

// === impl Budget ===

impl Budget {
    /// What `limits` says; `None`: nothing.
    pub fn of(limits: &LimitsSpec) -> Option<Self> {
        if limits.soft_budget_usd.is_none() && limits.hard_budget_usd.is_none() {
            return None;
        }
        let seconds = |value: Option<u32>, default| Duration::from_secs(u64::from(value.unwrap_or(default)));
        Some(Self {
            soft: limits.soft_budget_usd.map(nanos),
            hard: limits.hard_budget_usd.map(nanos),
            window: seconds(limits.budget_window_s, DEFAULT_WINDOW),
            reserve: seconds(limits.reserve_s, DEFAULT_RESERVE),
            unreported: limits.unreported.unwrap_or_default(),
        })
    }

    /// The window that `now_ms` is in.
    pub fn window_at(&self, now_ms: u64) -> u64 {
        now_ms / self.window_ms()
    }

    /// Time until the next window.
    pub fn until_next(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.window_ms() - now_ms % self.window_ms())
    }

    /// Its length in milliseconds.
    pub fn window_ms(&self) -> u64 {
        u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// US dollars as [`Nanos`], rounded up: an estimate is never too small by rounding.
pub fn nanos(usd: f64) -> Nanos {
    (usd * NANOS_PER_USD).ceil() as Nanos
}

/// [`Nanos`] as US dollars.
pub fn usd(nanos: Nanos) -> f64 {
    nanos as f64 / NANOS_PER_USD
}

// === impl Session ===

impl Session {
    /// The fields as one text, for a shared store.
    pub(super) fn encode(&self) -> String {
        let Self { model, tier, at_ms, text } = self;
        // The model comes last: its name may hold anything.
        format!("{} {at_ms} {text:x} {model}", tier.index())
    }

    /// What [`Self::encode`] wrote; `None`: something else.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut fields = text.splitn(4, ' ');
        Some(Self {
            tier: tier(fields.next()?)?,
            at_ms: fields.next()?.parse().ok()?,
            text: u64::from_str_radix(fields.next()?, 16).ok()?,
            model: fields.next()?.to_owned(),
        })
    }
}

// === impl BadAnswer ===

impl BadAnswer {
    pub(super) fn encode(self) -> String {
        format!("{} {}", self.tier.index(), self.at_ms)
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let (index, at_ms) = text.split_once(' ')?;
        Some(Self { tier: tier(index)?, at_ms: at_ms.parse().ok()? })
    }
}

fn tier(index: &str) -> Option<Tier> {
    Tier::ALL.get(index.parse::<usize>().ok()?).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_session_reads_back(model in ".{0,20}", tier in 0_usize..3, at_ms: u64, text: u64) {
            let session = Session { model, tier: Tier::ALL[tier], at_ms, text };
            prop_assert_eq!(Session::decode(&session.encode()), Some(session));
            let bad = BadAnswer { at_ms, tier: Tier::ALL[tier] };
            prop_assert_eq!(BadAnswer::decode(&bad.encode()), Some(bad));
        }

        #[test]
        fn whatever_stands_there_is_read_or_refused(text in ".{0,60}") {
            if let Some(session) = Session::decode(&text) {
                prop_assert_eq!(Session::decode(&session.encode()), Some(session));
            }
        }
    }

    #[test]
    fn priorities_leave_room_for_higher_ones() {
        let rate = Rate { per_second: 10.0, burst: 20.0 };
        assert_eq!(Priority::High.max(Priority::Low), Priority::High);
        let needed = [Priority::High, Priority::Normal, Priority::Low].map(|priority| rate.needed(priority));
        assert_eq!(needed, [1.0, 3.0, 11.0]);
        let least = Rate { per_second: 0.5, burst: 1.0 };
        assert_eq!(least.needed(Priority::Low), 1.0, "a full bucket lets anything through");
        assert_eq!(rate.share(4), Rate { per_second: 2.5, burst: 5.0 });
    }

    #[test]
    fn windows_begin_at_multiples_of_their_length() {
        let limits = LimitsSpec { hard_budget_usd: Some(1.5), budget_window_s: Some(3_600), ..LimitsSpec::default() };
        let budget = Budget::of(&limits).unwrap();
        assert_eq!(budget.hard, Some(1_500_000_000));
        assert_eq!((budget.window_at(3_599_999), budget.window_at(3_600_000)), (0, 1));
        assert_eq!(budget.until_next(3_599_000), Duration::from_secs(1));
        assert_eq!(Budget::of(&LimitsSpec::default()), None);
    }
}
