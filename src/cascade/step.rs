//! The next step of a cascade on what the caller saw.

use super::continuation::Continuation;
use crate::domain::{Observed, Probability, Reason, ReasonCode, Stop, StopReason};
use crate::policy::{Advance, Guard, Halt, Progress, Scope};

/// The next step, before it is made a decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Call this next.
    Next {
        /// What to call and what comes after it.
        advance: Box<Advance>,
        /// Why, in the order the reasons applied.
        reasons: Vec<Reason>,
        /// The cascade with this step.
        continuation: Box<Continuation>,
    },
    /// Stop here.
    Stop(Stop),
}

/// Models that one cascade may try: bounds the token, and no chain needs more.
pub const MAX_ATTEMPTS: usize = 32;

/// What comes after the last decision of `continuation`, of whose answer the caller saw `observed`.
///
/// `scope` is what the policy in force now says for the cascade's tenant, role and arms. The answer has a new decision
/// in its continuation only when the caller puts one there.
pub fn step(
    mut continuation: Continuation,
    observed: &Observed,
    scope: &Scope,
    guard: &dyn Guard,
    now_ms: u64,
) -> Step {
    let unavailable = observed.failure.is_some_and(|failure| failure.is_unavailability());
    let policy = Continuation::head(scope.policy().sha256());
    let mut reasons = Vec::new();
    if policy != continuation.policy {
        let text = format!("the policy has changed since; version {} decides", scope.policy().version());
        reasons.push(Reason::new(ReasonCode::PolicyChanged, text));
        continuation.threshold = scope.score_threshold(&continuation.progress(unavailable, observed, now_ms), guard);
        continuation.policy = policy;
    }
    let threshold = continuation.threshold;
    if let (Some(score), None) = (observed.score, observed.failure)
        && score >= threshold
    {
        let text = format!("the answer scored {:.2}, at least {:.2} is asked", score.value(), threshold.value());
        return stop(StopReason::Accepted, text, Vec::new());
    }
    continuation.account(observed, unavailable);
    let why = why(observed, threshold);
    if continuation.tried.len() >= MAX_ATTEMPTS {
        return stop(StopReason::MaxHops, format!("{why}, and {MAX_ATTEMPTS} models were tried"), Vec::new());
    }
    let advance = match scope.advance(&continuation.progress(unavailable, observed, now_ms), guard) {
        Ok(advance) => advance,
        Err(Halt { reason, removed }) => {
            let text = match reason {
                StopReason::MaxHops => format!("{why}, and the policy allows {} escalations", scope.max_hops()),
                StopReason::Budget => format!("{why}, and what could come next would exceed the cascade's budget"),
                StopReason::Deadline => format!("{why}, and the time left is too short for what could come next"),
                _ if unavailable => format!("{why}, and nothing else is usable"),
                _ => format!("{why}, and nothing stronger is usable"),
            };
            return stop(reason, text, removed);
        }
    };
    let model = &advance.selected.model;
    let Some(tried) = scope.policy().tried(model, advance.selected.estimated_cost_usd) else {
        return stop(StopReason::NothingLeft, format!("{why}, and nothing else is usable"), advance.removed);
    };
    reasons.extend(advance.removed.iter().cloned());
    let code = if unavailable { ReasonCode::FallenBack } else { ReasonCode::Escalated };
    reasons.push(Reason::about(code, &**model, format!("{why}; {model} is next")));
    continuation.hops += u32::from(!unavailable);
    continuation.tried.push(tried);
    continuation.threshold = match &advance.escalation {
        Some(escalation) => escalation.score_threshold,
        None => scope.least_score(),
    };
    Step::Next { advance: Box::new(advance), reasons, continuation: Box::new(continuation) }
}

fn stop(reason: StopReason, text: String, removed: Vec<Reason>) -> Step {
    Step::Stop(Stop { reason, text, removed })
}

fn why(observed: &Observed, threshold: Probability) -> String {
    match (observed.failure, observed.score) {
        (Some(failure), _) => format!("the call ended with {}", failure.as_str()),
        (None, score) => {
            let by = if observed.scorer.is_empty() { String::new() } else { format!(" by {}", observed.scorer) };
            format!("the answer scored {:.2}{by}, below {:.2}", score.unwrap_or_default().value(), threshold.value())
        }
    }
}

// === impl Continuation ===

impl Continuation {
    /// Takes down what the last step came to. What was told before stands: neither tokens nor cost ever fall.
    fn account(&mut self, observed: &Observed, unavailable: bool) {
        self.tokens_used = self.tokens_used.max(observed.tokens_used);
        let together = std::mem::replace(&mut self.together, 1) as usize;
        let mut estimated = 0.0;
        for tried in self.tried.iter_mut().rev().take(together) {
            tried.answered = !unavailable;
            estimated += tried.cost_usd;
        }
        if observed.cost_usd > 0.0 {
            self.cost_usd = self.cost_usd.max(observed.cost_usd);
        } else if !unavailable {
            self.cost_usd += estimated;
        }
    }

    fn progress<'a>(&'a self, unavailable: bool, observed: &Observed, now_ms: u64) -> Progress<'a> {
        Progress {
            intent: &self.intent,
            tier: self.tier,
            difficulty: self.difficulty,
            chain: &self.chain,
            forbidden: &self.forbidden,
            requirements: &self.requirements,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            sticky: self.sticky,
            tried: &self.tried,
            unavailable,
            hops: self.hops,
            spent_usd: self.cost_usd,
            elapsed_ms: now_ms.saturating_sub(self.started_ms),
            time_left_ms: observed.time_left_ms,
        }
    }
}
