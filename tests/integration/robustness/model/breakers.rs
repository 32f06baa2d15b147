//! What the breaker of a model may be at any time, from what was reported of it.
//!
//! The service sees reports and decisions in an order that callers cannot know to the millisecond. So a breaker is
//! followed as the set of all the states that it may be in: what none of them explains is wrong.

use std::time::{Duration, Instant};

use super::document::{CLOSES_AFTER, MODELS, OPENS_AFTER, PROBE_AFTER_MS, PROBE_TIMEOUT_MS};
use super::history::{Call, History, Outcome};

/// One state that a breaker may be in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum World {
    Closed {
        /// Failures in a row.
        row: u32,
    },
    Open {
        /// The last bad answer was taken between these.
        since: (Instant, Instant),
        /// No probe is due before this.
        due: Instant,
        good: u32,
    },
}

/// A breaker through the time of a run.
#[derive(Debug)]
pub(super) struct Timeline {
    /// From when on and until when each set of states is possible.
    sets: Vec<(Instant, Option<Instant>, Vec<World>)>,
    /// When a request may have been let through to try it.
    claims: Vec<(Instant, Instant)>,
}

/// The service keeps the time of a decision in milliseconds.
const ROUNDING: Duration = Duration::from_millis(3);
/// With more than this everything is possible.
const MOST_WORLDS: usize = 64;

// === impl Timeline ===

impl Timeline {
    pub(super) fn of(model: usize, history: &History, began: Instant) -> Self {
        let mut sets = vec![(began, None, vec![World::Closed { row: 0 }])];
        let mut reports: Vec<_> = history.reports.iter().filter(|report| report.model == model).collect();
        // Reports of one model are made one after the other.
        reports.sort_by_key(|report| report.sent);
        for report in reports {
            let call = history.calls.iter().find(|call| call.id == report.call);
            let Some(call) = call else { continue };
            let Some((.., worlds)) = sets.last() else { continue };
            let mut next: Vec<World> = Vec::new();
            for world in
                worlds.iter().flat_map(|world| world.after(report.failed, call, model, (report.sent, report.received)))
            {
                if !next.contains(&world) {
                    next.push(world);
                }
            }
            if let Some((_, until, _)) = sets.last_mut() {
                *until = Some(report.received);
            }
            sets.push((report.sent, None, next));
        }
        let mut timeline = Self { sets, claims: Vec::new() };
        // Of those who got no decision nobody knows.
        let may_claim = |call: &&Call| match call.outcome {
            Outcome::Decision(_) => is_probe(call, model),
            Outcome::Stop(_) => false,
            Outcome::Refused(..) | Outcome::Dropped | Outcome::Lost(_) => timeline.may_be_due(call),
        };
        let claims = history.calls.iter().filter(may_claim).map(|call| (call.sent, call.received)).collect();
        timeline.claims = claims;
        timeline
    }

    fn within(&self, from: Instant, to: Instant) -> impl Iterator<Item = &World> {
        let overlapping =
            self.sets.iter().filter(move |(start, end, _)| *start <= to && end.is_none_or(|end| end >= from));
        overlapping.flat_map(|(.., worlds)| worlds)
    }

    fn is_lost(&self) -> bool {
        self.sets.iter().any(|(.., worlds)| worlds.len() > MOST_WORLDS)
    }

    /// It may have served as usual.
    pub(super) fn may_be_closed(&self, call: &Call) -> bool {
        self.is_lost() || self.within(call.sent, call.received).any(|world| matches!(world, World::Closed { .. }))
    }

    /// It may have been out of service.
    pub(super) fn may_be_open(&self, call: &Call) -> bool {
        self.is_lost() || self.within(call.sent, call.received).any(|world| matches!(world, World::Open { .. }))
    }

    /// A probe may have been due.
    fn may_be_due(&self, call: &Call) -> bool {
        let due = |world: &World| matches!(world, World::Open { due, .. } if *due <= call.received + ROUNDING);
        self.is_lost() || self.within(call.sent, call.received).any(due)
    }

    /// A probe may have been due, or one under way. One goes on while others' bad answers come in.
    pub(super) fn may_be_tried(&self, call: &Call) -> bool {
        let over = |at: Instant| at + Duration::from_millis(PROBE_TIMEOUT_MS) + ROUNDING;
        let mut claims = self.claims.iter();
        self.may_be_due(call) || claims.any(|(from, to)| *from <= call.received && over(*to) >= call.sent)
    }

    /// It may be named as one that answers in another's place.
    pub(super) fn may_stand_in(&self, call: &Call) -> bool {
        self.may_be_closed(call) || self.may_be_tried(call)
    }
}

// === impl World ===

impl World {
    /// What it may be after a report.
    fn after(self, failed: bool, call: &Call, model: usize, at: (Instant, Instant)) -> Vec<Self> {
        let opened = || Self::Open { since: at, due: at.0 + Duration::from_millis(PROBE_AFTER_MS), good: 0 };
        match self {
            Self::Closed { .. } if !failed => vec![Self::Closed { row: 0 }],
            Self::Closed { row } if row + 1 < OPENS_AFTER => vec![Self::Closed { row: row + 1 }],
            Self::Closed { .. } => vec![opened()],
            Self::Open { since, due, good } => {
                // What was decided before it opened says nothing, but for the probe that is under way.
                let may_count = call.received + ROUNDING >= since.0 || is_probe(call, model);
                let may_not = call.sent <= since.1 + ROUNDING;
                let counted = match (failed, good + 1 >= CLOSES_AFTER) {
                    (true, _) => opened(),
                    (false, true) => Self::Closed { row: 0 },
                    (false, false) => Self::Open { since, due: due.min(at.0), good: good + 1 },
                };
                let mut worlds = Vec::new();
                worlds.extend(may_count.then_some(counted));
                worlds.extend(may_not.then_some(self));
                worlds
            }
        }
    }
}

/// Whether the call was let through to try a model that is out of service.
pub(super) fn is_probe(call: &Call, model: usize) -> bool {
    let name = MODELS[model].0;
    call.decision().is_some_and(|decision| {
        decision.reasons.iter().any(|reason| reason.code == "BREAKER_PROBE" && reason.subject == name)
    })
}

/// Two requests that tried the same model at once.
pub(super) fn probes_together(model: usize, history: &History) -> Option<(&Call, &Call)> {
    let mut probes: Vec<&Call> = history.calls.iter().filter(|call| is_probe(call, model)).collect();
    probes.sort_by_key(|call| call.sent);
    let reports: Vec<_> = history.reports.iter().filter(|report| report.model == model).collect();
    for (i, first) in probes.iter().enumerate() {
        for second in probes.iter().skip(i + 1) {
            let end = first.received.max(second.received);
            if end >= first.sent + Duration::from_millis(PROBE_TIMEOUT_MS) {
                continue;
            }
            // An answer in between, of whichever decision, may have made another one due.
            let answered = reports.iter().any(|report| report.sent <= end && report.received >= first.sent);
            if !answered {
                return Some((first, second));
            }
        }
    }
    None
}
