//! What is kept of each model and each provider.

use std::collections::HashMap;
use std::time::Instant;

use super::breaker::{Breaker, Position};
use super::share::Share;
use super::stats::Stats;
use crate::domain::Attempt;
use crate::policy::{BreakerSpec, ForcedState, TrafficSpec};

/// Fallbacks and escalations, of an account or to a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retries {
    pub(super) fallbacks: Share,
    pub(super) escalations: Share,
}

/// Models or providers by name.
#[derive(Debug, Default)]
pub(super) struct Targets {
    by_name: HashMap<String, Target>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Target {
    /// Made with the first outcome.
    breaker: Option<Breaker>,
    pub(super) stats: Stats,
    /// Retries that may go to it.
    pub(super) retries: Retries,
    /// Requests that may go to it, where its traffic is capped.
    pub(super) cap: Share,
}

// === impl Retries ===

impl Retries {
    /// Full.
    pub(super) fn new(now: Instant) -> Self {
        Self { fallbacks: Share::new(now), escalations: Share::new(now) }
    }

    /// Time passed.
    pub(super) fn drip(&mut self, traffic: &TrafficSpec, now: Instant) {
        self.fallbacks.drip(traffic.retry_min_per_second, now);
        self.escalations.drip(traffic.retry_min_per_second, now);
    }

    /// A first attempt was made.
    pub(super) fn earn(&mut self, traffic: &TrafficSpec) {
        self.fallbacks.earn(traffic.fallback_share);
        self.escalations.earn(traffic.escalation_share);
    }

    /// A retry was made.
    pub(super) fn spend(&mut self, attempt: Attempt) {
        match attempt {
            Attempt::First => {}
            Attempt::Fallback => self.fallbacks.spend(),
            Attempt::Escalation => self.escalations.spend(),
        }
    }
}

// === impl Targets ===

impl Targets {
    /// The one of that name; new ones are well.
    pub(super) fn get(&mut self, name: &str, now: Instant) -> &mut Target {
        if !self.by_name.contains_key(name) {
            self.by_name.insert(name.to_owned(), Target::new(now));
        }
        self.by_name.entry(name.to_owned()).or_insert_with(|| Target::new(now))
    }

    /// Forgets all others.
    pub(super) fn keep(&mut self, known: impl Fn(&String) -> bool) {
        self.by_name.retain(|name, _| known(name));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Target)> {
        self.by_name.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&String, &mut Target)> {
        self.by_name.iter_mut()
    }
}

// === impl Target ===

impl Target {
    fn new(now: Instant) -> Self {
        Self { breaker: None, stats: Stats::new(now), retries: Retries::new(now), cap: Share::new(now) }
    }

    pub(super) fn breaker(&mut self, spec: &BreakerSpec, now: Instant) -> &mut Breaker {
        self.breaker.get_or_insert_with(|| Breaker::new(spec, now))
    }

    /// How its breaker stands.
    pub(super) fn position(&self, now: Instant) -> Position {
        self.breaker.as_ref().map_or(Position::Closed, |breaker| breaker.position(now))
    }

    /// How it stands and why, by hand or by outcomes.
    pub(super) fn verdict(&self, forced: Option<ForcedState>, now: Instant) -> (Position, &'static str) {
        match forced {
            Some(ForcedState::Open) => (Position::Open, "is held out of service by the policy"),
            Some(ForcedState::Closed) => (Position::Closed, "is held in service by the policy"),
            None => match self.position(now) {
                Position::Closed => (Position::Closed, "is in service"),
                Position::Due => (Position::Due, "failed lately and is due to be tried"),
                Position::Probing => (Position::Probing, "failed lately and is being tried by another request"),
                Position::Open => (Position::Open, "failed lately"),
            },
        }
    }

    /// Share of its last answers that failed or were slow; `None`: none is known.
    pub(super) fn failing(&self, now: Instant) -> Option<f64> {
        self.breaker.as_ref().map(|breaker| breaker.failing(now))
    }
}
