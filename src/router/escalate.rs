//! The steps of a cascade: from a first decision to its continuation, and from what came of it to the next decision.

use std::sync::Arc;

use super::governor::{Begun, Plan};
use super::{Clock, DecideError, Router, estimate_tokens, mark, now_ms};
use crate::cascade::{Cascades, Continuation, Opening, Step, step};
use crate::decisions::{EscalationRecord, ObservedRecord, StepRecord};
use crate::domain::{
    Attempt, Candidate, Cascade, CascadeState, Complexity, Confidence, ConfidenceOf, Decision, FailureKind,
    InputReport, IntentCall, NextStep, Observed, Probability, Query, Reason, ReasonCode, Stop, StopReason, Tier,
};
use crate::policy::{Advance, Scope, sticky_hash};
use crate::rules::RuleOutcome;
use crate::sources::{ActivePolicy, Standing};
use crate::telemetry::Stage;
use crate::text::Prepared;

/// Asks for the next step of a cascade.
#[derive(Clone, Debug, PartialEq)]
pub struct EscalateQuery {
    /// The token of the decision that was followed.
    pub continuation: String,
    /// The tenant of the request.
    pub tenant: String,
    /// What came of it.
    pub observed: Observed,
    /// Whether its caller may report outcomes, so that breakers take what it tells of models.
    pub reports: bool,
}

/// What a continuation takes from a first decision besides the decision itself.
pub(super) struct Beginning<'a> {
    pub(super) query: &'a Query,
    pub(super) prepared: &'a Prepared,
    pub(super) scope: &'a Scope,
    pub(super) rules: &'a RuleOutcome,
    pub(super) chain: &'a Arc<str>,
    /// The classifier's, where it was consulted.
    pub(super) difficulty: Option<Probability>,
    pub(super) now_ms: u64,
}

// === impl Router ===

impl Router {
    /// Says what comes after an answer that is missing or not good enough.
    ///
    /// # Errors
    /// When the continuation or the observation is not valid, or the policy does not cover the request any more.
    pub async fn escalate(&self, query: &EscalateQuery) -> Result<NextStep, DecideError> {
        let clock = Clock::start();
        query.observed.check()?;
        let Some(cascades) = &self.cascades else { return Err(crate::cascade::ContinuationError::Forged.into()) };
        let now_ms = now_ms();
        let before = cascades.open(&query.continuation, Opening { tenant: &query.tenant, now_ms })?;
        let active = self.policies.snapshot();
        let standing = self.policies.standing(&active)?;
        let scope = active.policy.scope(&before.tenant, &before.role)?.with_arms(before.arms.iter().cloned());
        if query.reports {
            let asked = before.tried.iter().rev().take(before.together as usize);
            let models = asked.filter_map(|tried| scope.policy().model_name(tried.model));
            self.governor.hear(&scope, before.decision, models, query.observed.failure, now_ms);
        }
        let mut begun = self.governor.begin_step(&scope, &before.tenant, now_ms);
        let stepped = step(before.clone(), &query.observed, &scope, &begun.circumstances, now_ms);
        let unavailable = query.observed.failure.is_some_and(FailureKind::is_unavailability);
        let attempt = if unavailable { Attempt::Fallback } else { Attempt::Escalation };
        let id = uuid::Uuid::now_v7();
        let next = match stepped {
            Step::Stop(stop) => NextStep::Stop(stop),
            Step::Next { advance, .. } if !self.book_step(&mut begun, id, &advance, before.tier, attempt).await => {
                let text = "the tenant's budget has no room for another answer".to_owned();
                NextStep::Stop(Stop { reason: StopReason::Budget, text, removed: advance.removed })
            }
            Step::Next { advance, reasons, continuation } => {
                let mut decision = self.next_decision(
                    cascades,
                    &scope,
                    (*advance, reasons),
                    (*continuation, id),
                    (&active, standing, clock),
                    now_ms,
                );
                self.governor.conclude(&active.policy, &begun, &mut decision, attempt);
                NextStep::Decision(Box::new(decision))
            }
        };
        self.metrics.record_escalation(query.observed.failure, &next);
        self.keep_step(&before, &query.observed, &scope, &next, now_ms);
        log_step(&before, &next);
        Ok(next)
    }

    /// Reserves the cost of a step; false: the tenant's budget has no room for it.
    async fn book_step(
        &self,
        begun: &mut Begun,
        id: uuid::Uuid,
        advance: &Advance,
        tier: Tier,
        attempt: Attempt,
    ) -> bool {
        let Advance { selected, fallbacks, escalation, .. } = advance;
        let plan = Plan { selected, fan_out: None, fallbacks, escalation: escalation.as_ref(), tier };
        self.governor.book(begun, &id.to_string(), &plan, attempt).await
    }

    /// The token that continues from a first decision, or the reason why there is none.
    pub(super) fn continuation(&self, decision: &Decision, beginning: &Beginning<'_>) -> Result<String, Reason> {
        let Some(cascades) = &self.cascades else { return Ok(String::new()) };
        let Beginning { query, prepared, scope, rules, chain, difficulty, now_ms } = *beginning;
        let sticky = if query.session_id.is_empty() { &query.request_id } else { &query.session_id };
        let id = decision.decision_id.parse().unwrap_or_default();
        let asked: Vec<&Candidate> = match &decision.fan_out {
            // The selected one last: the one that a step is made from.
            Some(fan_out) => fan_out.candidates.iter().rev().collect(),
            None => vec![&decision.selected],
        };
        let tried =
            asked.iter().filter_map(|candidate| scope.policy().tried(&candidate.model, candidate.estimated_cost_usd));
        let continuation = Continuation {
            started_ms: now_ms,
            first_decision: id,
            decision: id,
            tenant: query.tenant.clone(),
            role: query.role.clone(),
            request_id: query.request_id.clone(),
            sticky: sticky_hash(sticky),
            requirements: query.requirements.clone(),
            input_tokens: estimate_tokens(prepared),
            output_tokens: query.expected_output_tokens,
            intent: Arc::clone(&decision.intent.label),
            intent_probability: decision.intent.probability,
            tier: decision.complexity.tier,
            difficulty,
            confidence: decision.confidence.value,
            confidence_of: decision.confidence.of,
            source: decision.source,
            chain: Arc::clone(chain),
            forbidden: rules.forbid_chains.iter().map(|forbidden| Arc::clone(&forbidden.value)).collect(),
            tried: tried.collect(),
            together: u32::try_from(asked.len()).unwrap_or(1),
            hops: 0,
            tokens_used: 0,
            cost_usd: 0.0,
            threshold: threshold(decision, scope),
            policy: Continuation::head(&decision.policy.sha256),
            classifier: Continuation::head(&decision.classifier.sha256),
            arms: decision.experiments.clone(),
        };
        cascades.seal(&continuation, now_ms).ok_or_else(too_large)
    }

    fn next_decision(
        &self,
        cascades: &Cascades,
        scope: &Scope,
        (advance, mut reasons): (Advance, Vec<Reason>),
        (mut continuation, id): (Continuation, uuid::Uuid),
        (active, standing, mut clock): (&ActivePolicy, Standing, Clock),
        now_ms: u64,
    ) -> Decision {
        continuation.decision = id;
        let in_use = self.classifier();
        let classifier = in_use.reference();
        if continuation.classifier != Continuation::head(&classifier.sha256) {
            let text = "the classifier has changed since the first decision, whose signals are used";
            reasons.insert(0, Reason::new(ReasonCode::ClassifierChanged, text));
        }
        let token = cascades.seal(&continuation, now_ms).unwrap_or_else(|| {
            reasons.push(too_large());
            String::new()
        });
        let calibrated = continuation.confidence_of == ConfidenceOf::TierSuffices;
        clock.mark(Stage::Policy, clock.started, clock.started.elapsed());
        let mut decision = Decision {
            decision_id: id.to_string(),
            request_id: continuation.request_id,
            selected: advance.selected,
            fallbacks: advance.fallbacks,
            escalation: advance.escalation,
            fan_out: None,
            intent: IntentCall {
                label: continuation.intent,
                probability: continuation.intent_probability,
                probabilities: None,
                out_of_scope: None,
            },
            complexity: Complexity {
                tier: continuation.tier,
                difficulty: continuation.difficulty.unwrap_or_else(|| crate::policy::middle_of(continuation.tier)),
                tier_probabilities: None,
            },
            confidence: Confidence {
                value: continuation.confidence,
                of: continuation.confidence_of,
                calibrator: Arc::from(if calibrated { in_use.tier_calibrator() } else { "" }),
            },
            source: continuation.source,
            reasons,
            policy: active.policy_ref(),
            classifier: classifier.clone(),
            experiments: scope.arms().to_vec(),
            // The text is not seen again.
            input: InputReport::default(),
            retry_after_ms: 0,
            timings: clock.stop(),
            continuation: token,
            cascade: Some(Cascade {
                first_decision_id: continuation.first_decision.to_string(),
                state: CascadeState {
                    attempts: u32::try_from(continuation.tried.len()).unwrap_or(u32::MAX).saturating_sub(1),
                    hops: continuation.hops,
                    tokens_used: continuation.tokens_used,
                    cost_usd: continuation.cost_usd,
                },
            }),
        };
        mark(&mut decision, standing, active);
        decision
    }

    /// Puts a step into the log.
    fn keep_step(&self, before: &Continuation, observed: &Observed, scope: &Scope, next: &NextStep, now_ms: u64) {
        let Some(log) = &self.log else { return };
        let classifier = &self.classifier();
        let context =
            log.context(scope.policy(), classifier.reference(), classifier.intent_labels(), classifier.tier_control());
        let model = before.tried.last().and_then(|last| scope.policy().model_name(last.model));
        log.record_escalation(
            EscalationRecord {
                time_unix_ms: now_ms,
                first_decision_id: before.first_decision.to_string(),
                decision_id: before.decision.to_string(),
                request_id: before.request_id.clone(),
                context: Arc::clone(&context.id),
                tenant: before.tenant.clone(),
                role: before.role.clone(),
                model: model.map(ToString::to_string),
                observed: ObservedRecord::from(observed),
                threshold: before.threshold,
                step: StepRecord::from(next),
            },
            context,
        );
    }
}

fn threshold(decision: &Decision, scope: &Scope) -> Probability {
    decision.escalation.as_ref().map_or_else(|| scope.least_score(), |escalation| escalation.score_threshold)
}

fn too_large() -> Reason {
    let text = "what the next step would need to know is longer than a continuation may be";
    Reason::new(ReasonCode::ContinuationTooLarge, text)
}

fn log_step(before: &Continuation, next: &NextStep) {
    let (model, stop) = match next {
        NextStep::Decision(decision) => (&*decision.selected.model, ""),
        NextStep::Stop(Stop { reason, .. }) => ("", reason.as_str()),
    };
    tracing::info!(
        request_id = %before.request_id,
        first_decision_id = %before.first_decision,
        after = %before.decision,
        tenant = %before.tenant,
        hops = before.hops,
        attempts = before.tried.len(),
        model,
        stop,
        "escalated"
    );
}
