//! Health of models and providers by what callers report: breakers, guards against storms, the scorecard.
//!
//! Each server judges by the outcomes reported to it. What it knows goes into a decision as [`Circumstances`] and comes
//! back by [`Health::count`] (a decision was made) and [`Health::observe`] (an answer turned out so). Times come in as
//! arguments; nothing here waits, calls anybody or spawns.

mod breaker;
mod share;
mod stats;
mod targets;
mod window;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

pub use stats::{Figures, Percentiles, STATS_WINDOW};

use crate::domain::{Attempt, FailureKind, OutcomeReport};
use crate::policy::{Circumstances, Policy, Standing, State, TrafficSpec};
use crate::recent::Recent;
use crate::telemetry::{BreakerGauge, OutcomeMetrics};
use breaker::{Change, Position, Sign};
use targets::{Retries, Target, Targets};

/// Health of everything that the policy names. Shared by all requests.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<OutcomeMetrics>,
    inner: Mutex<Inner>,
    /// Decisions with a model whose breaker they have spoken of, as hashes.
    spoken: Recent<u64, ()>,
    hasher: RandomState,
}

/// What a decision selected.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// The decision.
    pub decision_id: &'a str,
    /// Whose traffic it is: a tenant of the policy, or nothing.
    pub account: &'a str,
    /// The selected model.
    pub model: &'a str,
    /// Why it is called.
    pub attempt: Attempt,
}

/// What is known of the decision behind an outcome.
#[derive(Clone, Copy, Debug)]
pub struct Behind<'a> {
    /// Whose traffic it is.
    pub account: &'a str,
    /// Why the model was called.
    pub attempt: Option<Attempt>,
    /// It was asked for as a retry, and so has been counted.
    pub counted: bool,
    /// How long ago the decision was made.
    pub age: Duration,
}

/// What a caller says of a model when it asks for the next step of a cascade.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The decision that was followed.
    pub decision_id: &'a str,
    /// The model that was called.
    pub model: &'a str,
    /// Whose traffic it is.
    pub account: &'a str,
    /// Why there was no usable answer; `None`: there was one.
    pub failure: Option<FailureKind>,
    /// How long ago the decision was made.
    pub age: Duration,
}

/// Health of everything, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct Scorecard {
    /// How far figures look back.
    pub window_s: u64,
    /// By model, in name order.
    pub models: Vec<Card>,
    /// By provider, in name order.
    pub providers: Vec<Card>,
    /// US dollars per first attempt, retries included; absent: none was reported.
    pub cost_per_request_usd: Option<f64>,
    /// Fallbacks per first attempt.
    pub fallback_frequency: Option<f64>,
    /// Escalations per first attempt.
    pub escalation_rate: Option<f64>,
}

/// Health of one model or provider.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// The policy's name for it.
    pub name: String,
    /// `closed`, `half_open` or `open`.
    pub breaker: &'static str,
    /// Whether the policy holds it there.
    pub forced: bool,
    /// Share of the breaker's window that failed or was slow.
    pub failing: f64,
    /// What it did.
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Debug)]
struct Inner {
    /// The policy that names are from.
    policy_sha256: Arc<str>,
    models: Targets,
    providers: Targets,
    accounts: HashMap<String, Account>,
}

/// What is kept of the traffic of a tenant, or of all that the policy does not have.
#[derive(Debug)]
struct Account {
    retries: Retries,
    /// When it last reported a good answer.
    told_good: Option<Instant>,
}

/// How much of its answers is taken to fail where nothing is known of them, or the policy holds the breaker.
const UNKNOWN_FAILING: f64 = 1.0;
/// For how long after a report of a good answer an account is taken to report those that are good too.
const REPORTS_FOR: Duration = Duration::from_secs(600);
/// What is reported longer after the answer than this says nothing about now.
const NEWS_FOR: Duration = Duration::from_secs(600);
/// Decisions remembered to have spoken of a model: about 10 MB.
const MAX_SPOKEN: usize = 100_000;

// === impl Health ===

impl Health {
    /// Nothing is known, so everything is in service.
    pub fn new(metrics: Arc<OutcomeMetrics>) -> Self {
        let inner = Inner {
            policy_sha256: Arc::from(""),
            models: Targets::default(),
            providers: Targets::default(),
            accounts: HashMap::new(),
        };
        let spoken = Recent::new(MAX_SPOKEN);
        Self { metrics, inner: Mutex::new(inner), spoken, hasher: RandomState::new() }
    }

    /// What `policy`'s candidates may do at `now` for `account`.
    pub fn circumstances(&self, policy: &Policy, account: &str, now: Instant) -> Circumstances {
        let mut inner = self.inner(policy, now);
        let mut circumstances = Circumstances::default();
        inner.breakers(policy, now, &mut circumstances);
        let traffic = &policy.spec().traffic;
        for name in traffic.caps.keys() {
            let target = inner.models.get(name, now);
            if target.cap.is_spent() && !circumstances.models.contains_key(name) {
                let why = "has had its share of the traffic".to_owned();
                circumstances.models.insert(name.clone(), Standing { state: State::Capped, why, failing: 0.0 });
                circumstances.probes.remove(name);
            }
        }
        for (name, target) in inner.models.iter_mut() {
            target.retries.drip(traffic, now);
            if target.retries.fallbacks.is_spent() {
                circumstances.no_fallback.insert(name.clone());
            }
            if target.retries.escalations.is_spent() {
                circumstances.no_escalation.insert(name.clone());
            }
        }
        let own = &inner.account(account, traffic, now).retries;
        circumstances.fallbacks_spent = own.fallbacks.is_spent();
        circumstances.escalations_spent = own.escalations.is_spent();
        for (spent, what) in
            [(circumstances.fallbacks_spent, "fallback"), (circumstances.escalations_spent, "escalation")]
        {
            if spent {
                self.metrics.record_retry_budget_spent(what);
            }
        }
        circumstances
    }

    /// Lets a decision try what is out of service, where that is due; false: another one does.
    pub fn claim(&self, policy: &Policy, chosen: Chosen<'_>, now: Instant) -> bool {
        self.inner(policy, now).claim(policy, chosen, now)
    }

    /// Counts a decision that is given to its caller.
    pub fn count(&self, policy: &Policy, chosen: Chosen<'_>, now: Instant) {
        let mut inner = self.inner(policy, now);
        let traffic = &policy.spec().traffic;
        if chosen.attempt == Attempt::First {
            inner.account(chosen.account, traffic, now).retries.earn(traffic);
            inner.models.iter_mut().for_each(|(_, target)| target.retries.earn(traffic));
            for (name, cap) in &traffic.caps {
                inner.models.get(name, now).cap.earn(*cap);
            }
        } else {
            inner.retried(chosen.account, (chosen.model, chosen.attempt), traffic, now);
        }
        inner.receives(chosen.model, traffic, &self.metrics, now);
    }

    /// Takes an outcome. One of a model that the policy does not have is not counted; false tells. Of its model's
    /// breaker a decision speaks once.
    pub fn observe(&self, policy: &Policy, report: &OutcomeReport, behind: Behind<'_>, now: Instant) -> bool {
        let Some(model) = policy.spec().models.get(&report.model) else { return false };
        let mut inner = self.inner(policy, now);
        let typical = model.typical_latency_ms.map(f64::from);
        let late = |factor: f64| typical.is_some_and(|typical| report.latency_ms as f64 > typical * factor);
        let failed = report.failure.is_some_and(FailureKind::is_unavailability);
        let sign = |factor: f64| match failed {
            true => Sign::Failed,
            false if late(factor) => Sign::Slow,
            false => Sign::Good,
        };
        inner.models.get(&report.model, now).stats.record(report, behind.attempt, now);
        inner.providers.get(&model.provider, now).stats.record(report, behind.attempt, now);
        if !failed {
            inner.account(behind.account, &policy.spec().traffic, now).told_good = Some(now);
        }
        let late = behind.age.saturating_sub(Duration::from_millis(report.latency_ms));
        if late <= NEWS_FOR && self.speaks(&report.decision_id, &report.model) {
            let decided = now.checked_sub(behind.age).unwrap_or(now);
            let evidence = (report.decision_id.as_str(), decided);
            self.judge(&mut inner, policy, (&report.model, report.failure), sign, evidence, now);
        }
        if let Some(attempt) = behind.attempt.filter(|attempt| *attempt != Attempt::First && !behind.counted) {
            let traffic = &policy.spec().traffic;
            inner.retried(behind.account, (&report.model, attempt), traffic, now);
            inner.receives(&report.model, traffic, &self.metrics, now);
        }
        true
    }

    /// Takes for the breakers what a step of a cascade tells of a model, where the same decision has not spoken of it
    /// before.
    ///
    /// Who never says that an answer was good would open any breaker by its few failures, and none would close it: while
    /// a model is in service, failures count only of accounts that report good answers too.
    pub fn hear(&self, policy: &Policy, told: Told<'_>, now: Instant) {
        if !policy.spec().models.contains_key(told.model) {
            return;
        }
        let mut inner = self.inner(policy, now);
        let failed = told.failure.is_some_and(FailureKind::is_unavailability);
        if failed && !inner.weighs(&told, now) || !self.speaks(told.decision_id, told.model) {
            return;
        }
        let sign = |_: f64| if failed { Sign::Failed } else { Sign::Good };
        let evidence = (told.decision_id, now.checked_sub(told.age).unwrap_or(now));
        self.judge(&mut inner, policy, (told.model, told.failure), sign, evidence, now);
    }

    /// Whether `decision_id` may speak of the breaker of `model`; it does so once.
    fn speaks(&self, decision_id: &str, model: &str) -> bool {
        let key = self.hasher.hash_one((decision_id, model));
        let new = self.spoken.get(&key).is_none();
        if new {
            self.spoken.insert(key, ());
        }
        new
    }

    /// Gives the breakers of a model and of its provider a sign, as each one's `slow_factor` reads it.
    fn judge(
        &self,
        inner: &mut Inner,
        policy: &Policy,
        (name, failure): (&str, Option<FailureKind>),
        sign: impl Fn(f64) -> Sign,
        evidence: (&str, Instant),
        now: Instant,
    ) {
        let Some(model) = policy.spec().models.get(name) else { return };
        let (of_model, of_provider) = (&policy.spec().health.model, &policy.spec().health.provider);
        let breaker = inner.models.get(name, now).breaker(of_model, now);
        self.tell("model", name, breaker.record(of_model, sign(of_model.slow_factor), evidence, now));
        // A limit on the rate is of one model and one account there; the provider is well.
        if failure != Some(FailureKind::RateLimited) {
            let breaker = inner.providers.get(&model.provider, now).breaker(of_provider, now);
            let change = breaker.record(of_provider, sign(of_provider.slow_factor), evidence, now);
            self.tell("provider", &model.provider, change);
        }
    }

    /// Health of everything that the policy names and anything is known of.
    pub fn scorecard(&self, policy: &Policy, now: Instant) -> Scorecard {
        let mut inner = self.inner(policy, now);
        let health = &policy.spec().health;
        let models = cards(&mut inner.models, &health.models, now);
        let providers = cards(&mut inner.providers, &health.providers, now);
        let sum = |ask: fn(&Figures) -> f64| models.iter().map(|card| ask(&card.figures)).sum::<f64>();
        let (fallbacks, escalations) = (sum(|f| f.fallbacks as f64), sum(|f| f.escalations as f64));
        let first = sum(|f| f.outcomes as f64) - fallbacks - escalations;
        let per_first = |value: f64| (first > 0.0).then(|| value / first);
        Scorecard {
            window_s: STATS_WINDOW.as_secs(),
            cost_per_request_usd: per_first(sum(|f| f.cost_usd)),
            fallback_frequency: per_first(fallbacks),
            escalation_rate: per_first(escalations),
            models,
            providers,
        }
    }

    /// Breakers as metrics, as of `now`.
    pub fn gauges(&self, policy: &Policy, now: Instant) -> Vec<BreakerGauge> {
        let card = self.scorecard(policy, now);
        let of = |scope: &'static str, cards: Vec<Card>| {
            cards.into_iter().map(move |card| BreakerGauge { scope, name: card.name, state: card.breaker })
        };
        of("model", card.models).chain(of("provider", card.providers)).collect()
    }

    /// The state under `policy`'s names: what it no longer has is forgotten.
    fn inner(&self, policy: &Policy, now: Instant) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.policy_sha256 != *policy.sha256() {
            inner.follow(policy, now);
        }
        inner
    }

    fn tell(&self, scope: &'static str, name: &str, change: Option<Change>) {
        match change {
            None => {}
            Some(Change::Opened(why)) => {
                tracing::warn!(scope, name, why, "breaker opened");
                self.metrics.record_breaker(scope, name, "open");
            }
            Some(Change::Closed) => {
                tracing::info!(scope, name, "breaker closed");
                self.metrics.record_breaker(scope, name, "closed");
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    fn follow(&mut self, policy: &Policy, now: Instant) {
        let spec = policy.spec();
        self.policy_sha256 = Arc::clone(policy.sha256());
        self.models.keep(|name| spec.models.contains_key(name));
        self.providers.keep(|name| spec.models.values().any(|model| model.provider == *name));
        self.accounts.retain(|name, _| name.is_empty() || spec.tenants.contains_key(name));
        // Known from the start, so that what is never called is seen too.
        for (name, model) in &spec.models {
            self.models.get(name, now);
            self.providers.get(&model.provider, now);
        }
    }

    /// Adds what breakers say, by hand and by outcomes, of models and of their providers.
    fn breakers(&mut self, policy: &Policy, now: Instant, circumstances: &mut Circumstances) {
        let spec = policy.spec();
        let troubled = |targets: &Targets| targets.iter().any(|(_, target)| target.position(now) != Position::Closed);
        let forced = !spec.health.models.is_empty() || !spec.health.providers.is_empty();
        if !forced && !troubled(&self.models) && !troubled(&self.providers) {
            return;
        }
        for (name, model) in &spec.models {
            let own = (self.models.get(name, now), spec.health.models.get(name), "");
            let theirs =
                (self.providers.get(&model.provider, now), spec.health.providers.get(&model.provider), "its provider ");
            let mut worst = (Position::Closed, String::new(), 0.0_f64);
            for (target, forced, whose) in [own, theirs] {
                let (position, text) = target.verdict(forced.copied(), now);
                if position > worst.0 {
                    let failing = target.failing(now).filter(|_| forced.is_none()).unwrap_or(UNKNOWN_FAILING);
                    worst = (position, format!("{whose}{text}"), failing);
                }
            }
            let (position, why, failing) = worst;
            let state = match position {
                Position::Closed => continue,
                Position::Due => {
                    circumstances.probes.insert(name.clone());
                    continue;
                }
                Position::Probing => State::Probation,
                Position::Open => State::Open,
            };
            circumstances.models.insert(name.clone(), Standing { state, why, failing });
        }
    }

    /// Lets a decision try a model, if its breaker and its provider's both let it; neither is taken alone.
    fn claim(&mut self, policy: &Policy, chosen: Chosen<'_>, now: Instant) -> bool {
        let health = &policy.spec().health;
        let Some(model) = policy.spec().models.get(chosen.model) else { return true };
        let lets = |position: Position| matches!(position, Position::Closed | Position::Due);
        let own = self.models.get(chosen.model, now);
        let theirs = self.providers.get(&model.provider, now);
        let own_free = health.models.contains_key(chosen.model) || lets(own.position(now));
        let theirs_free = health.providers.contains_key(&model.provider) || lets(theirs.position(now));
        if !own_free || !theirs_free {
            return false;
        }
        own.breaker(&health.model, now).claim(&health.model, chosen.decision_id, now);
        theirs.breaker(&health.provider, now).claim(&health.provider, chosen.decision_id, now);
        true
    }

    fn account(&mut self, account: &str, traffic: &TrafficSpec, now: Instant) -> &mut Account {
        let new = || Account { retries: Retries::new(now), told_good: None };
        let account = self.accounts.entry(account.to_owned()).or_insert_with(new);
        account.retries.drip(traffic, now);
        account
    }

    /// Whether a failure that a cascade tells of counts: where it cannot stand alone, or the model is out of service.
    fn weighs(&mut self, told: &Told<'_>, now: Instant) -> bool {
        let told_good = self.accounts.get(told.account).and_then(|account| account.told_good);
        let reports = told_good.is_some_and(|at| now.saturating_duration_since(at) <= REPORTS_FOR);
        reports || self.models.get(told.model, now).position(now) != Position::Closed
    }

    fn retried(&mut self, account: &str, (model, attempt): (&str, Attempt), traffic: &TrafficSpec, now: Instant) {
        self.account(account, traffic, now).retries.spend(attempt);
        self.models.get(model, now).retries.spend(attempt);
    }

    /// A capped model receives a request.
    fn receives(&mut self, model: &str, traffic: &TrafficSpec, metrics: &OutcomeMetrics, now: Instant) {
        if traffic.caps.contains_key(model) {
            let cap = &mut self.models.get(model, now).cap;
            if cap.is_spent() {
                metrics.record_over_cap(model);
            }
            cap.spend();
        }
    }
}

fn cards(
    targets: &mut Targets,
    forced: &std::collections::BTreeMap<String, crate::policy::ForcedState>,
    now: Instant,
) -> Vec<Card> {
    let card = |(name, target): (&String, &mut Target)| {
        let forced = forced.get(name).copied();
        Card {
            name: name.clone(),
            breaker: match target.verdict(forced, now).0 {
                Position::Closed => "closed",
                Position::Due | Position::Probing => "half_open",
                Position::Open => "open",
            },
            forced: forced.is_some(),
            failing: target.failing(now).unwrap_or_default(),
            figures: target.stats.figures(now),
        }
    };
    let mut cards: Vec<Card> = targets.iter_mut().map(card).collect();
    cards.sort_by(|a, b| a.name.cmp(&b.name));
    cards
}

#[cfg(test)]
mod tests;
