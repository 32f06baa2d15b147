//! What the breaker of a model may be at any time, from what reports and steps of cascades told of it.
//!
//! The service sees reports and decisions in an order that callers cannot know to the millisecond. So a breaker is
//! followed as the set of all the states that it may be in: what none of them explains is wrong.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::document::{CLOSES_AFTER, MODELS, OPENS_AFTER, PROBE_AFTER_MS, PROBE_TIMEOUT_MS, account};
use super::history::{Asked, Call, History, Outcome};

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

/// What was told of a model's answer.
struct Telling<'a> {
    sent: Instant,
    received: Instant,
    /// Behind the decision.
    call: &'a Call,
    failed: bool,
    /// Whether it may be left out while the breaker is closed, and otherwise.
    may_not_count: [bool; 2],
    /// Whether it may count while the breaker is closed.
    may_count_closed: bool,
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
        for telling in tellings(model, history) {
            let Some((.., worlds)) = sets.last() else { continue };
            let mut next: Vec<World> = Vec::new();
            for world in worlds.iter().flat_map(|world| world.after(&telling, model)) {
                if !next.contains(&world) {
                    next.push(world);
                }
            }
            if let Some((_, until, _)) = sets.last_mut() {
                *until = Some(telling.received);
            }
            sets.push((telling.sent, None, next));
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
    /// What it may be after something was told.
    fn after(self, telling: &Telling<'_>, model: usize) -> Vec<Self> {
        let closed = matches!(self, Self::Closed { .. });
        let mut worlds = Vec::new();
        if !closed || telling.may_count_closed {
            worlds = self.after_counting(telling, model);
        }
        if telling.may_not_count[usize::from(!closed)] {
            worlds.push(self);
        }
        worlds
    }

    fn after_counting(self, telling: &Telling<'_>, model: usize) -> Vec<Self> {
        let at = (telling.sent, telling.received);
        let opened = || Self::Open { since: at, due: at.0 + Duration::from_millis(PROBE_AFTER_MS), good: 0 };
        match self {
            Self::Closed { .. } if !telling.failed => vec![Self::Closed { row: 0 }],
            Self::Closed { row } if row + 1 < OPENS_AFTER => vec![Self::Closed { row: row + 1 }],
            Self::Closed { .. } => vec![opened()],
            Self::Open { since, due, good } => {
                // What was decided before it opened says nothing, but for the probe that is under way.
                let may_count = telling.call.received + ROUNDING >= since.0 || is_probe(telling.call, model);
                let may_not = telling.call.sent <= since.1 + ROUNDING;
                let counted = match (telling.failed, good + 1 >= CLOSES_AFTER) {
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

/// What was told of a model, in order. A decision speaks of it once: what comes later is left out.
fn tellings(model: usize, history: &History) -> Vec<Telling<'_>> {
    let calls: HashMap<&str, &Call> = history.calls.iter().map(|call| (call.id.as_str(), call)).collect();
    let mut tellings = Vec::new();
    for report in history.reports.iter().filter(|report| report.model == model) {
        tellings.extend(calls.get(report.call.as_str()).map(|call| Telling {
            sent: report.sent,
            received: report.received,
            call,
            failed: report.failed,
            may_not_count: [false; 2],
            may_count_closed: true,
        }));
    }
    for step in &history.calls {
        let Asked::Step { cascade, unavailable, .. } = &step.asked else { continue };
        let asked = cascade.tried.last().is_some_and(|(asked, _)| *asked == model);
        let Some(call) = calls.get(cascade.from.as_str()).filter(|_| asked) else { continue };
        // Failures that steps alone tell of count of those who report good answers too.
        let good = || history.reports.iter().filter(|report| !report.failed);
        let may_weigh = good().any(|report| report.sent <= step.received);
        let weighs = good().any(|report| {
            let of = calls.get(report.call.as_str()).is_some_and(|call| account(call.tenant) == account(step.tenant));
            of && report.received < step.sent
        });
        let heard = matches!(step.outcome, Outcome::Decision(_) | Outcome::Stop(_));
        tellings.push(Telling {
            sent: step.sent,
            received: step.received,
            call,
            failed: *unavailable,
            may_not_count: [!heard || *unavailable && !weighs, !heard],
            may_count_closed: !*unavailable || may_weigh,
        });
    }
    // Of one model they are made one after the other.
    tellings.sort_by_key(|telling| telling.sent);
    let mut spoken = HashSet::new();
    tellings.retain(|telling| spoken.insert(telling.call.id.as_str()));
    tellings
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
    let tellings = tellings(model, history);
    for (i, first) in probes.iter().enumerate() {
        for second in probes.iter().skip(i + 1) {
            let end = first.received.max(second.received);
            if end >= first.sent + Duration::from_millis(PROBE_TIMEOUT_MS) {
                continue;
            }
            // An answer in between, of whichever decision, may have made another one due.
            let answered = tellings.iter().any(|told| told.sent <= end && told.received >= first.sent);
            if !answered {
                return Some((first, second));
            }
        }
    }
    None
}
