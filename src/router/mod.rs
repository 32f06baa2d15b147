//! One decision: `decide(query)` runs text, rules, cache, batch and policy in order.
//!
//! Total: a query that passes its checks gets a decision or an error that is the caller's or the policy's doing. When
//! the classifier cannot be consulted in time, rules and the policy's safe default answer, and the decision says so.

mod cache;
mod escalate;
mod governor;
mod journal;
mod languages;
mod loaded;
mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::batch::{BatchError, BatchOptions, Classified, Engine, Terms};
use crate::cascade::{Cascades, ContinuationError};
use crate::classifier::Classifier;
use crate::decisions::{DecisionLog, DriftMonitor, Outcome};
use crate::domain::{
    Attempt, Classification, Complexity, Confidence, ConfidenceOf, Decision, InputReport, IntentCall, InvalidQuery,
    Language, PolicyRef, Priority, Query, Reason, ReasonCode, Source, TierChoice, Timings,
};
use crate::policy::{Assignment, KeyDigest, NoCandidate, Resolution, ScopeError, Signals};
use crate::rules::RuleInput;
use crate::sources::{ActivePolicy, Origin, PolicyStale, PolicyStore, Standing};
use crate::telemetry::{Metrics, Stage, traces};
use crate::text::Prepared;
use escalate::Beginning;
pub use escalate::EscalateQuery;
use governor::{Caller, now_ms};
pub use governor::{Governor, Limited, stop_retry_after_ms};
use journal::Logged;
use languages::Languages;
use loaded::Loaded;

pub use loaded::{Fresh, Retired, Unfit};
pub use report::{NotVouched, Reporter};

/// Everything a decision needs. Shared by all requests.
#[derive(Debug)]
pub struct Router {
    loaded: ArcSwap<Loaded>,
    policies: Arc<PolicyStore>,
    languages: Languages,
    metrics: Arc<Metrics>,
    log: Option<Arc<DecisionLog>>,
    cascades: Option<Arc<Cascades>>,
    governor: Governor,
    drift: DriftMonitor,
    options: RouterOptions,
}

/// Bounds of a router.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RouterOptions {
    /// Bounds of the classification queue.
    pub batch: BatchOptions,
    /// Classifications kept for repeated texts; 0: none.
    pub cache_entries: usize,
}

/// The classifier's signals for one query, without any policy.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Signalled {
    /// What the classifier says.
    pub classification: Classification,
    /// The tier at the default confidence, and the probability that it suffices.
    pub tier: TierChoice,
    /// Whether it was known before.
    pub cached: bool,
    /// What was read.
    pub input: InputReport,
    /// Where the time went.
    pub timings: Timings,
}

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The caller's fault: a field of the request.
    #[error("the request is not valid")]
    Invalid(#[from] InvalidQuery),
    /// The caller's fault: tenant or role.
    #[error("the policy does not cover the request")]
    Scope(#[from] ScopeError),
    /// The policy was not confirmed for too long; the control plane's fault.
    #[error("the policy is too old")]
    Stale(#[from] PolicyStale),
    /// The caller's fault, or time's: what it hands back of an earlier decision.
    #[error("the continuation is not accepted")]
    Continuation(#[from] ContinuationError),
    /// The tenant has asked for, or spent, as much as it may.
    #[error("a limit is reached")]
    Limited(#[from] Limited),
    /// The policy leaves no candidate for what the caller requires.
    #[error("no candidate is left")]
    NoCandidate(#[from] NoCandidate),
    /// The caller's deadline passed before there was anything to say.
    #[error("the deadline passed before the request was looked at")]
    DeadlineExceeded,
    /// Signals were asked for and the classifier could not be consulted.
    #[error("the classifier could not be consulted")]
    Unclassified(#[from] BatchError),
}

/// Confidence at which `Classify` picks a tier, there being no policy to ask.
pub const DEFAULT_MIN_CONFIDENCE: f64 = 0.80;
/// Decisions that the last ones are compared with, and as many of them: chance alone makes a PSI of about 0.01.
const DRIFT_WINDOW: u64 = 2_000;
/// Bytes of text per token that a provider bills, for cost estimates; English averages about four.
const BYTES_PER_TOKEN: usize = 4;

/// Collects stage times.
struct Clock {
    started: Instant,
    timings: Timings,
}

/// What came of consulting the classifier.
struct Consulted {
    classification: Option<Arc<Classification>>,
    cached: bool,
    failure: Option<BatchError>,
}

// === impl Router ===

impl Router {
    /// Assembles a router and starts its encoder thread.
    ///
    /// # Errors
    /// When the system refuses another thread.
    pub fn start(
        classifier: Arc<Classifier>,
        policies: Arc<PolicyStore>,
        metrics: Arc<Metrics>,
        options: RouterOptions,
    ) -> std::io::Result<Self> {
        let engine = Arc::clone(&classifier);
        Self::start_with(engine, classifier, policies, metrics, options)
    }

    /// The same, with another engine behind the queue than the classifier itself.
    ///
    /// # Errors
    /// When the system refuses another thread.
    pub fn start_with(
        engine: Arc<dyn Engine>,
        classifier: Arc<Classifier>,
        policies: Arc<PolicyStore>,
        metrics: Arc<Metrics>,
        options: RouterOptions,
    ) -> std::io::Result<Self> {
        let loaded = Loaded::start(engine, classifier, Arc::clone(&metrics), options)?;
        let governor = Governor::new(Arc::default(), None, Arc::clone(metrics.outcomes()));
        let languages = Languages::new(options.cache_entries);
        Ok(Self {
            loaded: ArcSwap::from_pointee(loaded),
            policies,
            languages,
            metrics,
            log: None,
            cascades: None,
            governor,
            drift: DriftMonitor::new(DRIFT_WINDOW),
            options,
        })
    }

    /// Keeps decisions in `log` from now on.
    #[must_use]
    pub fn with_log(self, log: Arc<DecisionLog>) -> Self {
        Self { log: Some(log).filter(|log| log.is_on()), ..self }
    }

    /// Offers continuations from now on.
    #[must_use]
    pub fn with_cascades(self, cascades: Arc<Cascades>) -> Self {
        Self { cascades: Some(cascades), ..self }
    }

    /// Keeps limits, health and sessions by `governor` from now on.
    #[must_use]
    pub fn with_governor(self, governor: Governor) -> Self {
        Self { governor, ..self }
    }

    /// Limits, health and sessions.
    pub fn governor(&self) -> &Governor {
        &self.governor
    }

    /// The decision log, where one is kept.
    pub fn log(&self) -> Option<&Arc<DecisionLog>> {
        self.log.as_ref()
    }

    /// The classifier in use.
    pub fn classifier(&self) -> Arc<Classifier> {
        Arc::clone(&self.loaded.load().classifier)
    }

    /// The policies in use.
    pub fn policies(&self) -> &Arc<PolicyStore> {
        &self.policies
    }

    /// Decides which model should answer `query`.
    ///
    /// # Errors
    /// When the request is not valid, the policy leaves no candidate, the deadline has passed already, or the
    /// classifier is needed and too much work waits for it.
    pub async fn decide(&self, query: &Query, terms: impl Into<Terms>) -> Result<Decision, DecideError> {
        let terms = terms.into();
        query.check()?;
        let mut clock = Clock::start();
        if terms.deadline.is_some_and(|deadline| deadline <= clock.started) {
            return Err(DecideError::DeadlineExceeded);
        }
        // One snapshot and one classifier from start to end, whatever is swapped meanwhile.
        let loaded = self.loaded.load_full();
        let active = self.policies.snapshot();
        let standing = self.policies.standing(&active)?;
        let scope = active.policy.scope(&query.tenant, &query.role)?;
        // Keys are hashed only for those who look at them.
        let hashed = active.policy.has_experiments() || self.log.is_some();
        let assignment = Assignment {
            session: (hashed && !query.session_id.is_empty()).then(|| KeyDigest::of(&query.session_id)),
            request_id: &query.request_id,
            metadata: &query.metadata,
            now_ms: now_ms(),
        };
        let scope = scope.with_experiments(&assignment);

        let prepared = clock.time(Stage::Text, || self.languages.prepare(&query.content));
        let caller = Caller {
            session_id: &query.session_id,
            tenant: &query.tenant,
            priority: query.priority,
            text: &prepared.text,
            now_ms: assignment.now_ms,
        };
        let mut begun = self.governor.begin(&scope, caller).await?;
        let input = RuleInput {
            text: &prepared.text,
            signals: &prepared.signals,
            metadata: &query.metadata,
            tenant: &query.tenant,
            role: &query.role,
        };
        let (rules, matches) = clock.time(Stage::Rules, || match self.log {
            Some(_) => scope.rules().observe(&input),
            None => (scope.rules().evaluate(&input), Vec::new()),
        });
        let needed = !scope.decisive(&rules);
        let consulted = if needed {
            self.consult(&loaded, &prepared, query, terms, &mut clock).await
        } else {
            Consulted { classification: None, cached: false, failure: None }
        };
        if let Some(overloaded @ BatchError::Overloaded { .. }) = consulted.failure {
            return Err(DecideError::Unclassified(overloaded));
        }
        let signals = Signals {
            classification: consulted.classification.as_deref(),
            rules: &rules,
            language: prepared.signals.language,
            degraded: needed && consulted.classification.is_none(),
            requirements: &query.requirements,
            input_tokens: estimate_tokens(&prepared),
            output_tokens: query.expected_output_tokens,
            sticky_key: if query.session_id.is_empty() { &query.request_id } else { &query.session_id },
        };
        let decision_id = uuid::Uuid::now_v7().to_string();
        let started = Instant::now();
        let resolved = self.governor.decide(&scope, &signals, &mut begun, (&decision_id, caller)).await?;
        clock.mark(Stage::Policy, started, started.elapsed());
        if let Some(stability) = consulted.classification.as_deref().and_then(|found| self.drift.record(found)) {
            self.metrics.set_stability(&stability);
        }
        let circumstances = &begun.circumstances;
        let shadows = self.shadows(&scope, &assignment, &input, (&signals, circumstances), &resolved);
        let logged = self.log.as_ref().map(|log| {
            let (classifier, prepared, scope, assignment) = (&*loaded.classifier, &prepared, &scope, &assignment);
            let request = Logged { query, classifier, prepared, scope, assignment, matches, shadows, circumstances };
            (log, request, Outcome::from(&resolved), consulted.classification.clone(), signals.degraded)
        });
        let difficulty = signals.classification.filter(|_| !signals.degraded).map(|found| found.difficulty);
        let now_ms = assignment.now_ms;
        let decided = resolved.map(|resolution| {
            let chain = Arc::clone(&resolution.chain);
            let mut decision = Decision {
                experiments: scope.arms().to_vec(),
                ..assemble(
                    query,
                    &prepared,
                    consulted,
                    (resolution, decision_id),
                    (active.policy_ref(), &loaded.classifier),
                    clock,
                )
            };
            mark(&mut decision, standing, &active);
            self.governor.conclude(&active.policy, &begun, &mut decision, Attempt::First);
            let (scope, rules) = (&scope, &rules);
            let beginning = Beginning { query, prepared: &prepared, scope, rules, chain: &chain, difficulty, now_ms };
            match self.continuation(&decision, &beginning) {
                Ok(token) => decision.continuation = token,
                Err(reason) => decision.reasons.push(reason),
            }
            decision
        });
        if let Some((log, request, outcome, classification, degraded)) = logged {
            let decision_id = decided.as_ref().map_or(String::new(), |decision| decision.decision_id.clone());
            journal::keep(log, request, outcome, classification.as_deref(), degraded, decision_id);
        }
        let decision = decided?;
        self.metrics.record_decision(&decision);
        let known = active.policy.spec().tenants.contains_key(&query.tenant);
        self.metrics.record_cost(if known { &query.tenant } else { "" }, decision.selected.estimated_cost_usd);
        log_decision(&decision, query);
        Ok(decision)
    }

    /// The classifier's signals for `query`, without any policy.
    ///
    /// # Errors
    /// When the request is not valid or the classifier cannot be consulted.
    pub async fn classify(&self, query: &Query, terms: impl Into<Terms>) -> Result<Signalled, DecideError> {
        query.check()?;
        let loaded = self.loaded.load_full();
        let mut clock = Clock::start();
        let prepared = clock.time(Stage::Text, || self.languages.prepare(&query.content));
        let consulted = self.consult(&loaded, &prepared, query, terms.into(), &mut clock).await;
        let Some(classification) = consulted.classification else {
            return Err(consulted.failure.unwrap_or(BatchError::Failed).into());
        };
        let min_confidence = crate::domain::Probability::saturating(DEFAULT_MIN_CONFIDENCE);
        Ok(Signalled {
            tier: classification.choose_tier(min_confidence),
            cached: consulted.cached,
            input: input_report(&prepared, Some(&classification)),
            timings: clock.stop(),
            classification: Arc::unwrap_or_clone(classification),
        })
    }

    /// Whether there is room for a call of many queries, which is taken in or refused as a whole.
    ///
    /// # Errors
    /// When too much work waits.
    pub fn has_room(&self, priority: Priority) -> Result<(), BatchError> {
        self.loaded.load().has_room(priority)
    }

    /// Classifies a few texts, so that the first request does not pay for cold caches and the cost of a pass is known.
    ///
    /// # Errors
    /// When the classifier does not work.
    pub async fn warm_up(&self) -> Result<(), DecideError> {
        Ok(self.loaded.load_full().warm_up().await?)
    }

    /// A classifier that may take the place of the one in use: started, warmed and looked over.
    ///
    /// # Errors
    /// When it does not answer, answers nonsense, or does not fit the policy in force.
    pub async fn try_out(&self, classifier: Arc<Classifier>) -> Result<Fresh, Unfit> {
        let engine = Arc::clone(&classifier);
        Fresh::try_out(engine, classifier, &self.loaded.load_full(), Arc::clone(&self.metrics), self.options).await
    }

    /// From now on `fresh` classifies. Requests that have begun end with the classifier they began with; the old one
    /// is given back, to be dropped where waiting for its thread does no harm.
    pub fn adopt(&self, fresh: Fresh) -> Retired {
        Retired::new(self.loaded.swap(fresh.into_loaded()))
    }

    async fn consult(
        &self,
        loaded: &Loaded,
        prepared: &Prepared,
        query: &Query,
        terms: Terms,
        clock: &mut Clock,
    ) -> Consulted {
        let key = loaded.cache.as_ref().map(|cache| (cache, cache::key(&prepared.task.text)));
        if let Some((cache, key)) = &key {
            let found = cache.get(key, &self.metrics);
            if let Some(classification) = found {
                return Consulted { classification: Some(classification), cached: true, failure: None };
            }
        }
        match loaded.classify(prepared, query.priority, terms).await {
            Ok(Classified { classification, queued, began, inference }) => {
                clock.mark(Stage::Queue, began.checked_sub(queued).unwrap_or(began), queued);
                clock.mark(Stage::Inference, began, inference);
                let classification = Arc::new(classification);
                if let Some((cache, key)) = key {
                    cache.insert(key, Arc::clone(&classification));
                }
                Consulted { classification: Some(classification), cached: false, failure: None }
            }
            Err(failure) => Consulted { classification: None, cached: false, failure: Some(failure) },
        }
    }
}

/// Puts a decision together.
fn assemble(
    query: &Query,
    prepared: &Prepared,
    consulted: Consulted,
    (resolution, decision_id): (Resolution, String),
    (policy, classifier): (PolicyRef, &Classifier),
    clock: Clock,
) -> Decision {
    let classification = consulted.classification.as_deref();
    let mut reasons = resolution.reasons;
    if consulted.cached {
        reasons.push(Reason::new(ReasonCode::Cached, "the same text was classified before"));
    }
    if let Some(failure) = consulted.failure {
        // The policy knows that the classifier is missing, only we know why: one reason says both.
        match reasons.iter_mut().find(|reason| reason.code == ReasonCode::Degraded) {
            Some(reason) => reason.text = format!("{failure}; {}", reason.text),
            None => reasons.push(Reason::new(ReasonCode::Degraded, failure.to_string())),
        }
    }
    let input = input_report(prepared, classification);
    if input.bytes_cut > 0 || input.tokens_cut > 0 {
        let text =
            format!("{} bytes and {} word pieces of the middle were not read", input.bytes_cut, input.tokens_cut);
        reasons.push(Reason::new(ReasonCode::InputTruncated, text));
    }
    let calibrated = resolution.confidence_of == ConfidenceOf::TierSuffices;
    Decision {
        decision_id,
        retry_after_ms: 0,
        request_id: query.request_id.clone(),
        selected: resolution.selected,
        fallbacks: resolution.fallbacks,
        escalation: resolution.escalation,
        fan_out: resolution.fan_out,
        intent: IntentCall {
            label: resolution.intent,
            probability: resolution.intent_probability,
            probabilities: classification.map(|classification| classification.intent.clone()),
            out_of_scope: classification.map(|classification| classification.out_of_scope),
        },
        complexity: Complexity {
            tier: resolution.tier,
            difficulty: resolution.difficulty,
            tier_probabilities: classification.map(|classification| classification.tiers),
        },
        confidence: Confidence {
            value: resolution.confidence,
            of: resolution.confidence_of,
            calibrator: Arc::from(if calibrated { classifier.tier_calibrator() } else { "" }),
        },
        source: if consulted.cached && resolution.source == Source::Classifier {
            Source::Cache
        } else {
            resolution.source
        },
        reasons,
        policy,
        classifier: classifier.reference().clone(),
        experiments: Vec::new(),
        input,
        timings: clock.stop(),
        continuation: String::new(),
        cascade: None,
    }
}

// === impl Clock ===

impl Clock {
    fn start() -> Self {
        Self { started: Instant::now(), timings: Timings::default() }
    }

    fn time<T>(&mut self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.mark(stage, started, started.elapsed());
        result
    }

    fn mark(&mut self, stage: Stage, started: Instant, took: Duration) {
        traces::stage(stage, started, took);
        let timings = &mut self.timings;
        *match stage {
            Stage::Text => &mut timings.text_us,
            Stage::Rules => &mut timings.rules_us,
            Stage::Queue => &mut timings.queue_us,
            Stage::Inference => &mut timings.inference_us,
            Stage::Policy => &mut timings.policy_us,
            Stage::Total => &mut timings.total_us,
        } = Stage::micros(took);
    }

    fn stop(mut self) -> Timings {
        self.timings.total_us = Stage::micros(self.started.elapsed());
        self.timings
    }
}

/// Says in the decision how far its policy can be relied on.
fn mark(decision: &mut Decision, standing: Standing, active: &ActivePolicy) {
    let age_s = decision.policy.age_ms / 1_000;
    let (code, text) = match (standing, active.origin) {
        (Standing::Confirmed, _) => return,
        (Standing::Stale, _) => {
            decision.source = Source::Degraded;
            (ReasonCode::PolicyStale, format!("the policy's source has not confirmed it for {age_s} s"))
        }
        (Standing::StandIn, Origin::Embedded) => {
            let text = "the policy's source has given nothing usable since the start; the embedded default stands in";
            (ReasonCode::PolicyStandIn, text.to_owned())
        }
        (Standing::StandIn, Origin::Copy | Origin::Source) => {
            let text = "the policy's source has given nothing usable since the start; the copy on disk stands in";
            (ReasonCode::PolicyStandIn, format!("{text}, confirmed {age_s} s ago"))
        }
    };
    decision.reasons.push(Reason::new(code, text));
}

fn input_report(prepared: &Prepared, classification: Option<&Classification>) -> InputReport {
    InputReport {
        received_bytes: prepared.received_bytes as u64,
        used_bytes: prepared.text.len() as u64,
        tokens_used: classification.map_or(0, |classification| classification.tokens_used),
        tokens_cut: classification.map_or(0, |classification| classification.tokens_cut),
        bytes_cut: prepared.bytes_cut as u64,
        turns_received: prepared.turns_received as u32,
        turns_used: prepared.turns_used as u32,
        language: prepared.signals.language.map(Language::as_str),
    }
}

/// Tokens a provider would bill for the whole request, all messages together.
fn estimate_tokens(prepared: &Prepared) -> u32 {
    u32::try_from(prepared.received_bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// What was decided, without a word of the text.
fn log_decision(decision: &Decision, query: &Query) {
    tracing::info!(
        request_id = %decision.request_id,
        decision_id = %decision.decision_id,
        tenant = %query.tenant,
        role = %query.role,
        model = %decision.selected.model,
        intent = %decision.intent.label,
        tier = decision.complexity.tier.as_str(),
        difficulty = decision.complexity.difficulty.value(),
        confidence = decision.confidence.value.value(),
        source = decision.source.as_str(),
        policy_version = %decision.policy.version,
        bytes = decision.input.received_bytes,
        tokens = decision.input.tokens_used,
        total_us = decision.timings.total_us,
        "decided"
    );
}
