//! Looks for what no correct service can have answered.
//!
//! It knows the documents as they were written, what was reported and when, and nothing of how the service works: a
//! small model of versions, breakers and budgets has to explain every answer. Where the order of two things cannot be
//! known from outside, both orders are allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tonic::Code;

use super::breakers::{Timeline, probes_together};
use super::content::Moment;
use super::document::{MODELS, RETRY_BURST, TENANTS, account, cost_usd, model};
use super::history::{Asked, Call, History, Outcome, Spec};

/// How much later than promised anything may be seen from outside, besides pauses.
pub(super) const SLACK: Duration = Duration::from_millis(100);
const MUCH_TOO_LATE: Duration = Duration::from_millis(900);
/// Rounding of dollars.
const ROUNDING: f64 = 1e-6;
/// Requests of one caller's tenants that may be under way at a time.
const AT_ONCE: f64 = 8.0;

/// Everything that is wrong with a run.
pub(super) fn check(history: &History, spec: &Spec) -> Vec<String> {
    let began = history.installs[0].from;
    let breakers: Vec<Timeline> = (0..MODELS.len()).map(|model| Timeline::of(model, history, began)).collect();
    let checker = Checker { history, spec, moment: Moment { history, spec, breakers: &breakers } };
    let mut wrong = Vec::new();
    checker.calls(&mut wrong);
    checker.versions(&mut wrong);
    checker.models(&mut wrong);
    checker.budget(&mut wrong);
    checker.retries(&mut wrong);
    for (known, (name, ..)) in MODELS.iter().enumerate() {
        if let Some((first, second)) = probes_together(known, history) {
            wrong.push(format!("{name} is out of service and tried by two at once: {} and {}", first.id, second.id));
        }
    }
    wrong
}

struct Checker<'a> {
    history: &'a History,
    spec: &'a Spec,
    moment: Moment<'a>,
}

// === impl Checker ===

impl Checker<'_> {
    /// Answered, once, by the deadline.
    fn calls(&self, wrong: &mut Vec<String>) {
        let mut decisions = BTreeSet::new();
        let (mut n_late, mut n_deadlines) = (0, 0);
        for call in &self.history.calls {
            let took = call.received - call.sent;
            let late = SLACK + self.history.paused(call.sent, call.received);
            // A busy machine makes some late; a deadline that is not kept makes all of them so, or one very much.
            let over = call.deadline.is_some_and(|deadline| took > deadline + late + MUCH_TOO_LATE);
            n_late += usize::from(call.deadline.is_some_and(|deadline| took > deadline + late));
            n_deadlines += usize::from(call.deadline.is_some());
            match &call.outcome {
                Outcome::Lost(why) => wrong.push(format!("{} was never answered: {why}", call.id)),
                Outcome::Refused(Code::DeadlineExceeded, _) => {
                    let early = call.deadline.is_none_or(|deadline| took + Duration::from_millis(1) < deadline);
                    if early {
                        wrong.push(format!("{} is too late after {took:?} of {:?}", call.id, call.deadline));
                    }
                }
                Outcome::Decision(_) | Outcome::Stop(_) | Outcome::Refused(..) if over => {
                    wrong.push(format!("{} is answered after {took:?} of {:?}", call.id, call.deadline));
                }
                Outcome::Decision(decision) => {
                    // A step of a cascade has the id of its first request.
                    let own = matches!(call.asked, Asked::Step { .. }) || decision.request_id == call.id;
                    if !own {
                        wrong.push(format!("{} has the answer of {}", call.id, decision.request_id));
                    }
                    if !decisions.insert(decision.decision_id.clone()) {
                        wrong.push(format!("{} has a decision that another has: {}", call.id, decision.decision_id));
                    }
                }
                Outcome::Dropped | Outcome::Stop(_) | Outcome::Refused(..) => {}
            }
        }
        if n_late > 2 + n_deadlines / 20 {
            wrong.push(format!("{n_late} of {n_deadlines} with a deadline are answered {SLACK:?} after it"));
        }
    }

    /// Every answer by one policy that was in force while it was made, and none by an older one than was seen before.
    fn versions(&self, wrong: &mut Vec<String>) {
        let mut calls: Vec<&Call> = self.history.calls.iter().collect();
        calls.sort_by_key(|call| call.sent);
        // The oldest policy that can be behind each answer so far, by when it was received.
        let mut seen: Vec<(Instant, usize)> = Vec::new();
        for call in calls {
            let least = seen.iter().filter(|(at, _)| *at < call.sent).map(|(_, index)| *index).max().unwrap_or(0);
            let in_force = |index: &usize| self.in_force(*index, call) && *index >= least;
            let installs = &self.history.installs;
            let possible: Vec<usize> = (0..installs.len()).filter(in_force).collect();
            match &call.outcome {
                Outcome::Decision(decision) => {
                    let policy = decision.policy.clone().unwrap_or_default();
                    let same = |index: &&usize| {
                        let install = &installs[**index];
                        install.doc.version == policy.version && install.sha256 == policy.sha256
                    };
                    let Some(index) = possible.iter().find(same) else {
                        let versions: Vec<&str> = possible.iter().map(|i| installs[*i].doc.version.as_str()).collect();
                        let text =
                            format!("{} is by version {}, and in force was {versions:?}", call.id, policy.version);
                        wrong.push(text);
                        continue;
                    };
                    seen.push((call.received, *index));
                    if let Err(why) = self.moment.explain(call, decision, &installs[*index].doc) {
                        let (version, off) = (&policy.version, &installs[*index].doc.off);
                        wrong.push(format!("{} by version {version} (off: {off:?}): {why}", call.id));
                    }
                }
                Outcome::Stop(reason) => {
                    let verdicts = possible.iter().map(|i| self.moment.explain_stop(call, *reason, &installs[*i].doc));
                    let verdicts: Vec<_> = verdicts.collect();
                    if !verdicts.iter().any(Result::is_ok) {
                        wrong.push(format!("{} ends: {verdicts:?}", call.id));
                    }
                }
                Outcome::Refused(code, message) => {
                    let explained = self.explain_refusal(call, *code, message, &possible);
                    if !explained {
                        wrong.push(format!("{} is refused for no cause: {code:?} {message}", call.id));
                    }
                }
                Outcome::Dropped | Outcome::Lost(_) => {}
            }
        }
    }

    fn in_force(&self, index: usize, call: &Call) -> bool {
        let installs = &self.history.installs;
        let later = installs.iter().skip(index + 1).filter_map(|install| install.by).min();
        // What is in force for sure by some time may be seen a pause later.
        let late = self.history.paused(call.sent.checked_sub(SLACK * 10).unwrap_or(call.sent), call.received);
        installs[index].from <= call.received && later.is_none_or(|later| call.sent <= later + late)
    }

    fn explain_refusal(&self, call: &Call, code: Code, message: &str, possible: &[usize]) -> bool {
        match code {
            Code::DeadlineExceeded => true,
            // Nobody is left who may answer.
            Code::FailedPrecondition => match call.asked {
                Asked::Route { .. } => {
                    let empty = |index: &usize| {
                        let doc = &self.history.installs[*index].doc;
                        (0..3).any(|tier| doc.chain(tier, call.tenant).is_empty())
                    };
                    possible.iter().any(empty)
                }
                Asked::Step { .. } => false,
            },
            Code::ResourceExhausted if message.contains("budget") => call.tenant == "thrifty",
            // So few callers are no overload, unless the encoder stalls.
            Code::ResourceExhausted => {
                let before = call.sent.checked_sub(SLACK * 10).unwrap_or(call.sent);
                let stalled = self.history.paused(before, call.received) > SLACK / 5;
                self.spec.encoder_faults || self.spec.reloads || stalled
            }
            _ => false,
        }
    }

    /// One model of the classifier after the other.
    fn models(&self, wrong: &mut Vec<String>) {
        let mut calls: Vec<&Call> = self.history.calls.iter().filter(|call| call.decision().is_some()).collect();
        calls.sort_by_key(|call| call.sent);
        let mut seen: Vec<(Instant, usize)> = Vec::new();
        for call in calls {
            let Some(classifier) = call.decision().and_then(|decision| decision.classifier.as_ref()) else { continue };
            let least = seen.iter().filter(|(at, _)| *at < call.sent).map(|(_, index)| *index).max().unwrap_or(0);
            let known = self.history.models.iter().position(|(version, _)| *version == classifier.version);
            match known {
                Some(index) if index >= least && self.history.models[index].1 <= call.received => {
                    seen.push((call.received, index));
                }
                _ => wrong.push(format!("{} is by classifier {}", call.id, classifier.version)),
            }
        }
    }

    /// No more is reserved and spent than the budget, and nothing is refused while there is room.
    fn budget(&self, wrong: &mut Vec<String>) {
        let hard = self.spec.terms.thrifty_usd;
        let calls: Vec<&Call> = self.history.calls.iter().filter(|call| call.tenant == "thrifty").collect();
        let dearest = cost_usd(MODELS.len() - 1);
        for call in &calls {
            let before = calls.iter().filter(|other| other.id != call.id);
            let (mut least, mut most) = (0.0, 0.0);
            for other in before {
                let (low, high) = self.charge(other, call);
                least += low;
                most += high;
            }
            match &call.outcome {
                Outcome::Decision(_) => {
                    let sum = least + charged(call);
                    if sum > hard + ROUNDING {
                        wrong.push(format!("{} overspends: ${sum:.6} of ${hard:.6}", call.id));
                    }
                }
                Outcome::Refused(Code::ResourceExhausted, message)
                    if message.contains("budget") && most + dearest < hard - ROUNDING =>
                {
                    wrong.push(format!("{} finds no room: ${most:.6} of ${hard:.6}", call.id));
                }
                Outcome::Stop(pointsman::rpc::proto::StopReason::Budget) if most + dearest < hard - ROUNDING => {
                    wrong.push(format!("{} finds no room: ${most:.6} of ${hard:.6}", call.id));
                }
                _ => {}
            }
        }
    }

    /// The least and the most that `other` may have been charged with when `call` was decided.
    fn charge(&self, other: &Call, call: &Call) -> (f64, f64) {
        if other.sent > call.received {
            return (0.0, 0.0);
        }
        let may_be_charged = match &other.outcome {
            Outcome::Decision(_) => charged(other),
            Outcome::Refused(Code::ResourceExhausted | Code::FailedPrecondition, _) | Outcome::Stop(_) => {
                return (0.0, 0.0);
            }
            // Nobody knows what became of it.
            Outcome::Refused(..) | Outcome::Dropped | Outcome::Lost(_) => return (0.0, cost_usd(MODELS.len() - 1)),
        };
        let mut reports: Vec<_> = self.history.reports.iter().filter(|report| report.call == other.id).collect();
        reports.sort_by_key(|report| report.sent);
        // What is charged after none, one, two of them.
        let mut after = vec![may_be_charged];
        for (i, report) in reports.iter().enumerate() {
            if reports[..i].iter().any(|earlier| report.repeats(earlier)) {
                after.push(after[i]);
                continue;
            }
            let so_far = if i == 0 { 0.0 } else { after[i] };
            let estimate = if i == 0 { may_be_charged } else { 0.0 };
            after.push(so_far + report.cost_usd.unwrap_or(estimate));
        }
        let least = reports.iter().filter(|report| report.received < call.sent).count();
        let most = reports.iter().filter(|report| report.sent <= call.received).count();
        let charges = &after[least..=most];
        let low = charges.iter().copied().fold(f64::INFINITY, f64::min);
        let high = charges.iter().copied().fold(0.0, f64::max);
        (if other.received < call.sent { low } else { 0.0 }, high)
    }

    /// No more retries than their share of the traffic and a burst.
    fn retries(&self, wrong: &mut Vec<String>) {
        let Some(share) = self.spec.terms.retries else { return };
        for tenant in TENANTS {
            // Whoever the policy does not know has one account with those who do not say.
            let of = |call: &&Call| account(call.tenant) == account(tenant);
            let calls = || self.history.calls.iter().filter(of);
            let firsts = calls().filter(|call| matches!(call.asked, Asked::Route { .. })).count() as f64;
            for wanted in [true, false] {
                let granted = calls().filter(|call| {
                    let step = matches!(call.asked, Asked::Step { unavailable, .. } if unavailable == wanted);
                    step && call.decision().is_some()
                });
                let (granted, most) = (granted.count() as f64, RETRY_BURST + share * firsts + AT_ONCE);
                if granted > most {
                    let what = if wanted { "fallbacks" } else { "escalations" };
                    wrong.push(format!("{granted} {what} of {tenant:?}, at most {most} for {firsts} requests"));
                }
            }
        }
    }
}

fn charged(call: &Call) -> f64 {
    let selected = call.decision().and_then(|decision| decision.selected.as_ref());
    selected.and_then(|selected| model(&selected.model)).map_or(0.0, cost_usd)
}

/// How much of what can happen happened, for a run that finds nothing to be worth something.
#[derive(Debug, Default)]
pub(super) struct Coverage(pub(super) BTreeMap<&'static str, usize>);

// === impl Coverage ===

impl Coverage {
    pub(super) fn add(&mut self, history: &History) {
        let mut count = |what, n: usize| *self.0.entry(what).or_default() += n;
        count("policies", history.installs.len());
        count("reports", history.reports.len());
        count("models", history.models.len());
        for call in &history.calls {
            count("calls", 1);
            match &call.outcome {
                Outcome::Decision(decision) => {
                    let has = |code: &str| decision.reasons.iter().any(|reason| reason.code == code);
                    count("probes", usize::from(has("BREAKER_PROBE")));
                    count("last resorts", usize::from(has("LAST_RESORT")));
                    count("removed by a breaker", usize::from(has("BREAKER_OPEN")));
                    count("provider off", usize::from(has("PROVIDER_DISABLED")));
                    count("policy changed in a cascade", usize::from(has("POLICY_CHANGED")));
                    count("steps", usize::from(decision.cascade.is_some()));
                    count("degraded", usize::from(decision.source() == pointsman::rpc::proto::Source::Degraded));
                }
                Outcome::Stop(_) => count("stops", 1),
                Outcome::Refused(Code::DeadlineExceeded, _) => count("too late", 1),
                Outcome::Refused(Code::FailedPrecondition, _) => count("nobody left", 1),
                Outcome::Refused(Code::ResourceExhausted, message) if message.contains("budget") => {
                    count("over budget", 1);
                }
                Outcome::Refused(..) => count("shed", 1),
                Outcome::Dropped => count("dropped", 1),
                Outcome::Lost(_) => count("lost", 1),
            }
        }
    }
}
