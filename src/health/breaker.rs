//! A circuit breaker: closed, open, and half-open with one probe at a time.
//!
//! A pure state machine over times that it is given. Nobody is called by it: callers report what they saw, and what
//! they report of decisions from before it opened says nothing about now.

use std::time::{Duration, Instant};

use super::window::{Counts, Window};
use crate::policy::BreakerSpec;

/// The breaker of one model or provider.
#[derive(Debug)]
pub(super) struct Breaker {
    window: Window<Counts>,
    /// Failures since the last good answer.
    in_a_row: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    /// What was decided before this says nothing about now.
    since: Instant,
    /// From when a probe may go out.
    due: Instant,
    probe: Option<Probe>,
    /// Good answers since it opened.
    good: u32,
}

#[derive(Debug)]
struct Probe {
    decision: Box<str>,
    /// Given up from here on.
    until: Instant,
}

/// What an answer says about health.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sign {
    /// It came, and in time.
    Good,
    /// It came late.
    Slow,
    /// It did not come.
    Failed,
}

/// How a breaker stands.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Position {
    /// In service.
    Closed,
    /// Out of service; the next request may try it.
    Due,
    /// Out of service; one request is trying it.
    Probing,
    /// Out of service.
    Open,
}

/// A change of state, for logs and metrics.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// It opened; why.
    Opened(String),
    /// It closed.
    Closed,
}

// === impl Breaker ===

impl Breaker {
    /// Closed.
    pub(super) fn new(spec: &BreakerSpec, now: Instant) -> Self {
        Self { window: Window::new(millis(spec.window_ms), now), in_a_row: 0, open: None }
    }

    /// How it stands at `now`.
    pub(super) fn position(&self, now: Instant) -> Position {
        match &self.open {
            None => Position::Closed,
            Some(open) if open.probe.as_ref().is_some_and(|probe| now < probe.until) => Position::Probing,
            Some(open) if now >= open.due => Position::Due,
            Some(_) => Position::Open,
        }
    }

    /// Lets `decision` try it, if a probe is due and none is under way.
    pub(super) fn claim(&mut self, spec: &BreakerSpec, decision: &str, now: Instant) -> bool {
        let due = self.position(now) == Position::Due;
        if let Some(open) = self.open.as_mut().filter(|_| due) {
            open.probe = Some(Probe { decision: decision.into(), until: now + millis(spec.probe_timeout_ms) });
        }
        due
    }

    /// Takes what an answer says; `decided` is when the decision behind it was made.
    pub(super) fn record(
        &mut self,
        spec: &BreakerSpec,
        sign: Sign,
        (decision, decided): (&str, Instant),
        now: Instant,
    ) -> Option<Change> {
        if self.window.length() != Window::<Counts>::new(millis(spec.window_ms), now).length() {
            // The policy has another window now; shares over both would mean nothing.
            self.window = Window::new(millis(spec.window_ms), now);
        }
        if let Some(part) = self.window.at(now) {
            part.outcomes += 1;
            part.failed += u32::from(sign == Sign::Failed);
            part.slow += u32::from(sign == Sign::Slow);
        }
        match &mut self.open {
            None => {
                self.in_a_row = if sign == Sign::Failed { self.in_a_row.saturating_add(1) } else { 0 };
                let why = self.trips(spec, now)?;
                self.open = Some(Open { since: now, due: now + millis(spec.probe_after_ms), probe: None, good: 0 });
                Some(Change::Opened(why))
            }
            Some(open) => {
                if open.probe.as_ref().is_some_and(|probe| *probe.decision == *decision) {
                    open.probe = None;
                } else if decided < open.since {
                    return None;
                }
                if sign == Sign::Good {
                    open.good += 1;
                    open.due = open.due.min(now);
                } else {
                    open.good = 0;
                    open.since = now;
                    open.due = now + millis(spec.probe_after_ms);
                }
                if open.good < spec.close_after {
                    return None;
                }
                self.open = None;
                self.in_a_row = 0;
                // What opened it must not open it again.
                self.window.clear();
                Some(Change::Closed)
            }
        }
    }

    /// Share of the window's outcomes that failed or were slow.
    pub(super) fn failing(&self, now: Instant) -> f64 {
        let counts = self.window.sum(now);
        share(counts.failed + counts.slow, counts.outcomes)
    }

    fn trips(&self, spec: &BreakerSpec, now: Instant) -> Option<String> {
        if self.in_a_row >= spec.consecutive_failures {
            return Some(format!("{} answers in a row failed", self.in_a_row));
        }
        let counts = self.window.sum(now);
        if counts.outcomes < spec.min_outcomes {
            return None;
        }
        let (failed, late) =
            (share(counts.failed, counts.outcomes), share(counts.failed + counts.slow, counts.outcomes));
        let of = format!("of {} answers in {} s", counts.outcomes, self.window.length().as_secs_f64());
        if failed >= spec.failure_ratio {
            return Some(format!("{:.0} % {of} failed", failed * 100.0));
        }
        (late >= spec.slow_ratio).then(|| format!("{:.0} % {of} were slow or failed", late * 100.0))
    }
}

fn share(part: u32, whole: u32) -> f64 {
    if whole == 0 { 0.0 } else { f64::from(part) / f64::from(whole) }
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A breaker and a clock that only tests move.
    struct Rig {
        breaker: Breaker,
        spec: BreakerSpec,
        now: Instant,
    }

    impl Rig {
        fn new(spec: BreakerSpec) -> Self {
            let now = Instant::now();
            Self { breaker: Breaker::new(&spec, now), spec, now }
        }

        fn pass(&mut self, ms: u32) -> &mut Self {
            self.now += millis(ms);
            self
        }

        /// An outcome of a decision made just now.
        fn see(&mut self, sign: Sign) -> Option<Change> {
            self.see_of("d", sign)
        }

        fn see_of(&mut self, decision: &str, sign: Sign) -> Option<Change> {
            self.breaker.record(&self.spec, sign, (decision, self.now), self.now)
        }

        fn open(&mut self) -> &mut Self {
            for _ in 0..self.spec.consecutive_failures {
                self.see(Sign::Failed);
            }
            assert_eq!(self.position(), Position::Open);
            self
        }

        fn position(&self) -> Position {
            self.breaker.position(self.now)
        }

        fn claim(&mut self, decision: &str) -> bool {
            self.breaker.claim(&self.spec, decision, self.now)
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_good_answer_between_them_does_not() {
        let mut rig = Rig::new(BreakerSpec { min_outcomes: 100, ..BreakerSpec::default() });
        for sign in [Sign::Failed, Sign::Failed, Sign::Failed, Sign::Failed, Sign::Good] {
            assert_eq!(rig.see(sign), None);
        }
        for _ in 0..4 {
            assert_eq!(rig.see(Sign::Failed), None);
        }
        assert_eq!(rig.see(Sign::Failed), Some(Change::Opened("5 answers in a row failed".to_owned())));
    }

    #[test]
    fn a_share_of_failures_or_of_slow_answers_opens_it() {
        for (bad, ratio_reached) in [(Sign::Failed, 10), (Sign::Slow, 16)] {
            let mut rig = Rig::new(BreakerSpec { min_outcomes: 20, ..BreakerSpec::default() });
            let mut opened = None;
            for n in 0..20 {
                assert_eq!(opened, None);
                // Good ones in between, so that no row is long.
                let sign = if n * ratio_reached / 20 == (n + 1) * ratio_reached / 20 { Sign::Good } else { bad };
                opened = rig.see(sign);
            }
            assert!(matches!(opened, Some(Change::Opened(_))), "{bad:?}");
        }
        let mut old = Rig::new(BreakerSpec { min_outcomes: 4, ..BreakerSpec::default() });
        for sign in [Sign::Failed, Sign::Failed] {
            old.see(sign);
        }
        old.pass(40_000);
        for sign in [Sign::Good, Sign::Good, Sign::Good, Sign::Failed] {
            assert_eq!(old.see(sign), None, "what is older than the window does not count");
        }
    }

    #[test]
    fn one_probe_at_a_time_and_good_ones_close_it() {
        let mut rig = Rig::new(BreakerSpec::default());
        assert!(!rig.claim("a"), "a closed breaker needs no probe");
        rig.open();
        assert!(!rig.pass(999).claim("a"), "too early");
        assert!(rig.pass(1).claim("a"));
        assert_eq!(rig.position(), Position::Probing);
        assert!(!rig.claim("b"), "one at a time");
        assert_eq!(rig.pass(300).see_of("a", Sign::Good), None);
        assert!(rig.claim("b"), "a good answer makes the next probe due at once");
        assert_eq!(rig.pass(300).see_of("b", Sign::Good), Some(Change::Closed));
        assert_eq!(rig.position(), Position::Closed);
        assert_eq!(rig.see(Sign::Failed), None, "what opened it is forgotten");
    }

    #[test]
    fn a_failed_probe_waits_again_and_a_silent_one_is_given_up() {
        let mut rig = Rig::new(BreakerSpec::default());
        assert!(rig.open().pass(1_000).claim("a"));
        rig.pass(50).see_of("a", Sign::Slow);
        assert_eq!(rig.position(), Position::Open);
        assert!(!rig.pass(999).claim("b"));
        assert!(rig.pass(1).claim("b"));
        assert!(!rig.pass(9_999).claim("c"));
        assert!(rig.pass(1).claim("c"), "nothing was heard of b");
    }

    #[test]
    fn answers_to_decisions_from_before_it_opened_say_nothing() {
        let mut rig = Rig::new(BreakerSpec { close_after: 1, ..BreakerSpec::default() });
        let before = rig.now;
        rig.pass(10).open().pass(5_000);
        assert_eq!(rig.breaker.record(&rig.spec, Sign::Good, ("late", before), rig.now), None);
        assert_eq!(rig.position(), Position::Due);
        assert_eq!(rig.see(Sign::Good), Some(Change::Closed), "a fallback that went to it and was answered does");
    }

    #[derive(Clone, Debug)]
    enum Event {
        Pass(u32),
        Claim,
        Answer(usize, bool),
        Stray(bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1_u32..3_000).prop_map(Event::Pass),
            Just(Event::Claim),
            (0_usize..4, any::<bool>()).prop_map(|(of, good)| Event::Answer(of, good)),
            any::<bool>().prop_map(Event::Stray),
        ]
    }

    proptest! {
        /// Never two probes at once, none before it is due, and only good answers close.
        #[test]
        fn probes_go_out_one_by_one(events in prop::collection::vec(event(), 1..200)) {
            let mut rig = Rig::new(BreakerSpec { consecutive_failures: 2, probe_timeout_ms: 2_000, ..BreakerSpec::default() });
            // Probes that were let through: decision, when, answered.
            let mut probes: Vec<(String, Instant, bool)> = Vec::new();
            let mut bad_since: Option<Instant> = None;
            for (n, event) in events.into_iter().enumerate() {
                let change = match event {
                    Event::Pass(ms) => {
                        rig.pass(ms);
                        None
                    }
                    Event::Claim => {
                        let decision = format!("probe {n}");
                        if rig.claim(&decision) {
                            let under_way = probes.iter().filter(|(_, at, answered)| !answered && rig.now < *at + millis(2_000));
                            prop_assert_eq!(under_way.count(), 0, "two probes at once");
                            probes.push((decision, rig.now, false));
                        }
                        None
                    }
                    Event::Answer(of, good) => match probes.iter_mut().rev().nth(of) {
                        Some((decision, _, answered)) => {
                            *answered = true;
                            let decision = decision.clone();
                            let sign = if good { Sign::Good } else { Sign::Failed };
                            rig.see_of(&decision, sign)
                        }
                        None => None,
                    },
                    Event::Stray(good) => rig.see(if good { Sign::Good } else { Sign::Failed }),
                };
                match change {
                    Some(Change::Opened(_)) => {
                        bad_since = Some(rig.now);
                        probes.clear();
                    }
                    Some(Change::Closed) => {
                        prop_assert!(bad_since.take().is_some(), "only an open one closes");
                        probes.clear();
                    }
                    None => {}
                }
                prop_assert_eq!(rig.position() == Position::Closed, bad_since.is_none());
            }
        }
    }
}
