//! What surrounds a decision: limits before it, health and sessions in it, reservations after it, outcomes later.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::decisions::OutcomeLog;
use crate::domain::{
    Attempt, Candidate, Decision, Escalation, FailureKind, Fallback, FanOut, OutcomeReport, Priority, Reason,
    ReasonCode, Stop, StopReason, Tier,
};
use crate::health::{Behind, Chosen, Health, Told};
use crate::policy::{
    Circumstances, KeyDigest, NoCandidate, Policy, Resolution, Scope, SessionsSpec, Signals, Standing,
    State as ModelState,
};
use crate::recent::Recent;
use crate::state::{Asked, Booking, Budget, Outline, Pending, Rate, Session, State, fingerprint, nanos, usd};
use crate::telemetry::{OutcomeMetrics, SessionEffect};

/// Health and state, as decisions use them.
#[derive(Debug)]
pub struct Governor {
    health: Health,
    state: Arc<State>,
    log: Option<Arc<OutcomeLog>>,
    metrics: Arc<OutcomeMetrics>,
    /// What tells reports that were taken from others.
    taken: Recent<u64, ()>,
}

/// A tenant has asked for, or spent, as much as it may.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{subject}: {text}")]
pub struct Limited {
    /// Whose limit.
    pub subject: String,
    /// For people.
    pub text: String,
    /// When it may come again; no two callers are told the same.
    pub retry_after: Duration,
}

/// Who asks, as far as limits and sessions care.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    pub(super) session_id: &'a str,
    pub(super) tenant: &'a str,
    pub(super) priority: Priority,
    /// The text, to know it again.
    pub(super) text: &'a str,
    pub(super) now_ms: u64,
}

/// What is known before a decision.
#[derive(Debug)]
pub(super) struct Begun {
    account: String,
    tenant: Arc<str>,
    budget: Option<Budget>,
    sessions: SessionsSpec,
    /// The session's key and the text's hash.
    session: Option<(String, u64)>,
    pub(super) circumstances: Circumstances,
    now_ms: u64,
    away: bool,
}

/// What a decision tells its caller to call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    pub(super) selected: &'a Candidate,
    /// Asked at once with it.
    pub(super) fan_out: Option<&'a FanOut>,
    pub(super) fallbacks: &'a [Fallback],
    pub(super) escalation: Option<&'a Escalation>,
    pub(super) tier: Tier,
}

/// Hints to wait are random within this, and longer where a limit says so.
const LEAST_WAIT: Duration = Duration::from_millis(100);
const MOST_WAIT: Duration = Duration::from_millis(1_000);
/// Reports remembered, to know them again when they are sent again: about 10 MB.
const MAX_TAKEN: usize = 100_000;

// === impl Governor ===

impl Governor {
    /// Everything in service, nobody known.
    pub fn new(state: Arc<State>, log: Option<Arc<OutcomeLog>>, metrics: Arc<OutcomeMetrics>) -> Self {
        Self { health: Health::new(Arc::clone(&metrics)), state, log, metrics, taken: Recent::new(MAX_TAKEN) }
    }

    /// Health of models and providers.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Budgets, rates and sessions.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Admits a request and gathers what is true at its moment.
    pub(super) async fn begin(&self, scope: &Scope, caller: Caller<'_>) -> Result<Begun, Limited> {
        let (limits, sessions, account) = (scope.limits(), scope.sessions(), scope.account());
        let budget = Budget::of(&limits);
        let keeps = !caller.session_id.is_empty() && sessions != SessionsSpec::default();
        let session = keeps.then(|| {
            // Of the tenant as it is said: what callers make up must not meet in one session.
            let key = KeyDigest::of(&format!("{}\n{}", caller.tenant, caller.session_id));
            (hex::encode(key.0), text_hash(caller.text))
        });
        let asked = Asked {
            account,
            priority: caller.priority,
            rate: Rate::of(&limits),
            budget,
            session: session.as_ref().map(|(key, _)| key.as_str()),
        };
        let told = self.state.ask(asked, caller.now_ms).await;
        if let Some(wait) = told.wait {
            self.metrics.record_limited(account, "rate");
            let text = "more requests per second than the policy's `limits` allow";
            return Err(limited(caller.tenant, text.to_owned(), wait));
        }
        let mut circumstances = self.health.circumstances(scope.policy(), account, Instant::now());
        if let Some(budget) = &budget {
            self.metrics.set_spent(account, usd(told.booked));
            if budget.hard.is_some_and(|hard| told.booked >= hard) {
                return Err(self.spent(account, caller, budget));
            }
            let soft = budget.soft.is_some_and(|soft| told.booked >= soft);
            if soft && caller.priority != Priority::High {
                circumstances.cheapest_first = true;
                self.metrics.record_soft_budget(account);
            }
        }
        if let Some((_, text)) = &session {
            let since = |at_ms: u64| caller.now_ms.saturating_sub(at_ms);
            let within = |at_ms: u64, seconds: Option<u32>| {
                seconds.is_some_and(|seconds| since(at_ms) <= u64::from(seconds) * 1_000)
            };
            let again = told.session.as_ref().filter(|kept| kept.text == *text && within(kept.at_ms, sessions.retry_s));
            let bad = told.bad.filter(|bad| within(bad.at_ms, sessions.raise_s));
            let asked_again =
                again.map(|kept| (above(kept.tier), "the same text came again, so its answer did not do"));
            let was_bad = bad.map(|bad| (above(bad.tier), "an earlier answer of the session was not good enough"));
            let floor = asked_again.into_iter().chain(was_bad).max_by_key(|(tier, _)| *tier);
            circumstances.floor = floor.map(|(tier, why)| (tier, why.to_owned()));
            let warm = told.session.filter(|kept| within(kept.at_ms, sessions.stick_s));
            circumstances.session = warm.map(|kept| (kept.model, kept.tier));
        }
        let (account, tenant) = (account.to_owned(), caller.tenant.into());
        Ok(Begun { account, tenant, budget, sessions, session, circumstances, now_ms: caller.now_ms, away: told.away })
    }

    /// What is true at the moment of a step of a cascade. Limits on requests are for first ones; a step pays for itself
    /// when it is booked. A step tries nothing that is out of service.
    pub(super) fn begin_step(&self, scope: &Scope, tenant: &str, now_ms: u64) -> Begun {
        let account = scope.account().to_owned();
        let mut circumstances = self.health.circumstances(scope.policy(), &account, Instant::now());
        for model in std::mem::take(&mut circumstances.probes) {
            circumstances.models.insert(model, probation());
        }
        let (budget, sessions) = (Budget::of(&scope.limits()), SessionsSpec::default());
        Begun { account, tenant: tenant.into(), budget, sessions, session: None, circumstances, now_ms, away: false }
    }

    /// Decides, lets the decision try what it may, and reserves its cost.
    ///
    /// # Errors
    /// When the budget has no room for any candidate.
    pub(super) async fn decide(
        &self,
        scope: &Scope,
        signals: &Signals<'_>,
        begun: &mut Begun,
        (decision_id, caller): (&str, Caller<'_>),
    ) -> Result<Result<Resolution, NoCandidate>, Limited> {
        loop {
            let resolved = self.resolve(scope, signals, begun, decision_id);
            let Ok(resolution) = &resolved else { return Ok(resolved) };
            if self.book(begun, decision_id, &Plan::from(resolution), Attempt::First).await {
                return Ok(resolved);
            }
            // What does not fit may fit when it is cheaper.
            let was_cheapest = std::mem::replace(&mut begun.circumstances.cheapest_first, true);
            if let Some(budget) = begun.budget.filter(|_| was_cheapest) {
                return Err(self.spent(&begun.account, caller, &budget));
            }
        }
    }

    fn resolve(
        &self,
        scope: &Scope,
        signals: &Signals<'_>,
        begun: &mut Begun,
        decision_id: &str,
    ) -> Result<Resolution, NoCandidate> {
        // Each round takes a probe away, so there are no more rounds than probes and one.
        loop {
            let resolution = scope.resolve_guarded(signals, &begun.circumstances)?;
            if self.claim(scope.policy(), begun, decision_id, &resolution.selected.model) {
                return Ok(resolution);
            }
        }
    }

    /// Whether the decision may have `model`; if not, the circumstances say so now: decide again.
    fn claim(&self, policy: &Policy, begun: &mut Begun, decision_id: &str, model: &str) -> bool {
        let circumstances = &mut begun.circumstances;
        if !circumstances.probes.contains(model) {
            return true;
        }
        let chosen = Chosen { decision_id, account: &begun.account, model, attempt: Attempt::First };
        if self.health.claim(policy, chosen, Instant::now()) {
            return true;
        }
        circumstances.probes.remove(model);
        circumstances.models.insert(model.to_owned(), probation());
        false
    }

    /// Reserves what a decision is expected to cost; false: the budget has no room for it.
    pub(super) async fn book(&self, begun: &mut Begun, decision_id: &str, plan: &Plan<'_>, attempt: Attempt) -> bool {
        let Plan { selected, fan_out, fallbacks, escalation, tier } = *plan;
        let beside = fan_out.into_iter().flat_map(|fan_out| &fan_out.candidates);
        let beside = beside.filter(|candidate| candidate.model != selected.model);
        let cost = fan_out.map_or(selected.estimated_cost_usd, |fan_out| fan_out.estimated_cost_usd);
        let SessionsSpec { stick_s, retry_s, raise_s } = begun.sessions;
        let outline = Arc::new(Outline {
            account: begun.account.as_str().into(),
            tenant: Arc::clone(&begun.tenant),
            selected: Arc::clone(&selected.model),
            beside: beside.map(|candidate| Arc::clone(&candidate.model)).collect(),
            fallbacks: fallbacks.iter().map(|fallback| Arc::clone(&fallback.candidate.model)).collect(),
            escalation: escalation.map(|escalation| Arc::clone(&escalation.next.model)),
            attempt,
            tier,
        });
        let pending = Pending {
            outline,
            at_ms: begun.now_ms,
            threshold: escalation.map(|escalation| escalation.score_threshold.value()),
            session: begun.session.as_ref().map(|(key, _)| Box::new((key.clone(), raise_s.unwrap_or_default()))),
            budget: begun.budget.map(|budget| (budget.window_ms(), budget.unreported)),
            reserved: nanos(cost),
            window: 0,
        };
        let session = begun.session.as_ref().map(|(_, text)| {
            let session = Session { model: selected.model.to_string(), tier, at_ms: begun.now_ms, text: *text };
            (session, stick_s.max(retry_s).unwrap_or_default())
        });
        let session = session.filter(|(_, seconds)| *seconds > 0);
        let booked =
            self.state.book(Booking { decision_id, pending, budget: begun.budget, session }, begun.now_ms).await;
        begun.away |= booked.away;
        booked.fits
    }

    /// Counts a decision that is given to the caller, and adds to it what its moment has to say.
    pub(super) fn conclude(&self, policy: &Policy, begun: &Begun, decision: &mut Decision, attempt: Attempt) {
        let model = Arc::clone(&decision.selected.model);
        let chosen = Chosen { decision_id: &decision.decision_id, account: &begun.account, model: &model, attempt };
        self.health.count(policy, chosen, Instant::now());
        if attempt == Attempt::First {
            self.metrics.record_expectation(&decision.complexity);
        }
        let says = |code| decision.reasons.iter().any(|reason| reason.code == code);
        for (code, effect) in
            [(ReasonCode::SessionSticky, SessionEffect::Stuck), (ReasonCode::SessionRaised, SessionEffect::Raised)]
        {
            if says(code) {
                self.metrics.record_session(effect);
            }
        }
        decision.retry_after_ms = retry_after_ms(&decision.reasons);
        if begun.away {
            let text = "the shared state is away; limits are kept by this server alone, as its share";
            decision.reasons.push(Reason::new(ReasonCode::StateAway, text));
        }
    }

    fn spent(&self, account: &str, caller: Caller<'_>, budget: &Budget) -> Limited {
        self.metrics.record_limited(account, "budget");
        let hard = budget.hard.map_or(0.0, usd);
        let text = format!("the budget of ${hard} in {} s is spent or reserved", budget.window.as_secs());
        limited(caller.tenant, text, budget.until_next(caller.now_ms))
    }

    /// Takes what a caller saw: settles its cost, judges the model, and writes it down. False: the policy does not have
    /// the model, or the same was told before. `tenant` is known to be the decision's where it is not empty.
    pub async fn report(&self, policy: &Policy, mut report: OutcomeReport, tenant: &str) -> bool {
        let fingerprint = fingerprint(&report);
        if self.taken.get(&fingerprint).is_some() {
            return false;
        }
        let pending = self.state.settle(&report).await;
        let known = pending.as_ref();
        let attempt = report.attempt.or_else(|| known.and_then(|known| known.attempt_of(&report.model)));
        report.attempt = attempt;
        let counted = known.is_some_and(|Pending { outline, .. }| {
            outline.attempt != Attempt::First && *outline.selected == *report.model
        });
        let named = if policy.spec().tenants.contains_key(tenant) { tenant } else { "" };
        let account = known.map_or(named, |known| &known.outline.account);
        let behind = Behind { account, attempt, counted, age: age(&report, known) };
        let in_policy = self.health.observe(policy, &report, behind, Instant::now());
        if in_policy {
            self.metrics.record_outcome(&report, attempt, known.and_then(|known| known.threshold));
        }
        if let Some(log) = &self.log {
            log.record(report);
        }
        // Last: a call that ends halfway may be made again.
        self.taken.insert(fingerprint, ());
        in_policy
    }

    /// Takes what a step of a cascade tells of the models that were called.
    pub(super) fn hear<'a>(
        &self,
        scope: &Scope,
        decision: uuid::Uuid,
        models: impl Iterator<Item = &'a Arc<str>>,
        failure: Option<FailureKind>,
        now_ms: u64,
    ) {
        let age = Duration::from_millis(now_ms.saturating_sub(made_ms(decision).unwrap_or(now_ms)));
        let decision_id = &decision.to_string();
        for model in models {
            let told = Told { decision_id, model, account: scope.account(), failure, age };
            self.health.hear(scope.policy(), told, Instant::now());
        }
    }
}

/// How long to wait where these reasons say that trying again at once would do harm; 0: they do not.
fn retry_after_ms(reasons: &[Reason]) -> u32 {
    let storms = [ReasonCode::LastResort, ReasonCode::RetryBudgetSpent];
    let harmful = reasons.iter().any(|reason| storms.contains(&reason.code));
    if harmful { u32::try_from(jitter(Duration::ZERO).as_millis()).unwrap_or(u32::MAX) } else { 0 }
}

/// The same for a cascade that ends: with nothing left now, something may be left later.
pub fn stop_retry_after_ms(stop: &Stop) -> u32 {
    let wait = retry_after_ms(&stop.removed);
    let later = stop.reason == StopReason::NothingLeft && wait == 0;
    if later { u32::try_from(jitter(Duration::ZERO).as_millis()).unwrap_or(u32::MAX) } else { wait }
}

fn probation() -> Standing {
    let why = "failed lately and is being tried by another request".to_owned();
    Standing { state: ModelState::Probation, why, failing: 1.0 }
}

/// How long ago the decision behind a report was made: from its record, else its id, else the time its answer took.
fn age(report: &OutcomeReport, known: Option<&Pending>) -> Duration {
    let by_id = || made_ms(uuid::Uuid::parse_str(&report.decision_id).ok()?);
    match known.map(|known| known.at_ms).or_else(by_id) {
        Some(at_ms) => Duration::from_millis(report.time_unix_ms.saturating_sub(at_ms)),
        None => Duration::from_millis(report.latency_ms),
    }
}

/// When the decision of that id was made, Unix milliseconds; `None`: the id is not one of this service's.
fn made_ms(id: uuid::Uuid) -> Option<u64> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    Some(seconds * 1_000 + u64::from(nanos) / 1_000_000)
}

impl<'a> From<&'a Resolution> for Plan<'a> {
    fn from(resolution: &'a Resolution) -> Self {
        Self {
            selected: &resolution.selected,
            fan_out: resolution.fan_out.as_ref(),
            fallbacks: &resolution.fallbacks,
            escalation: resolution.escalation.as_ref(),
            tier: resolution.tier,
        }
    }
}

fn above(tier: Tier) -> Tier {
    Tier::ALL.into_iter().find(|other| *other > tier).unwrap_or(tier)
}

/// A text known again by eight bytes; it cannot be read from them.
fn text_hash(text: &str) -> u64 {
    let digest = KeyDigest::of(text).0;
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

fn limited(tenant: &str, text: String, wait: Duration) -> Limited {
    let subject = if tenant.is_empty() { "requests without a tenant".to_owned() } else { format!("tenant {tenant:?}") };
    Limited { subject, text, retry_after: jitter(wait) }
}

/// `wait` and a random while, so that callers do not come back all at once.
fn jitter(wait: Duration) -> Duration {
    wait + rand::random_range(LEAST_WAIT..=MOST_WAIT)
}

/// Unix time in milliseconds.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_decision_is_in_its_id() {
        let report = |decision_id: String, time_unix_ms| OutcomeReport {
            time_unix_ms,
            decision_id,
            model: "m".to_owned(),
            score: None,
            scorer: String::new(),
            failure: None,
            tokens: 0,
            cost_usd: 0.0,
            latency_ms: 40,
            attempt: None,
        };
        let now = now_ms();
        let fresh = age(&report(uuid::Uuid::now_v7().to_string(), now + 3_000), None);
        assert!((Duration::from_millis(2_900)..=Duration::from_millis(3_000)).contains(&fresh), "{fresh:?}");
        assert_eq!(age(&report("of another make".to_owned(), now), None), Duration::from_millis(40));
    }

    #[test]
    fn no_two_callers_are_told_the_same() {
        let waits: std::collections::BTreeSet<Duration> = (0..50).map(|_| jitter(Duration::from_secs(1))).collect();
        assert!(waits.len() > 40);
        assert!(waits.iter().all(|wait| (1_100..=2_000).contains(&wait.as_millis())));
    }
}
