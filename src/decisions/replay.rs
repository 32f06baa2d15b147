//! Decides a logged request again, under the same or another policy.

use std::collections::HashSet;
use std::sync::Arc;

use super::record::{Context, DecisionRecord, Outcome, SignalsRecord};
use crate::domain::{Classification, Distribution};
use crate::policy::{Assignment, KeyDigest, Policy, Scope, Signals};
use crate::rules::Evidence;

/// What a replay is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Baseline<'a> {
    /// What was decided and logged.
    Logged,
    /// What this policy decides.
    Policy(&'a Arc<Policy>),
}

/// Why a decision cannot be made again from its record alone.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, thiserror::Error)]
pub enum NotReplayable {
    /// The log lacks what the decision's policy and classifier have in common.
    #[error("the log has no context line for it")]
    NoContext,
    /// A rule asks the text something that was not asked then, or the metadata for a value that was not kept.
    #[error("rule {0} asks something that the log does not have")]
    Rule(String),
    /// An experiment sticks to a metadata key whose value was not kept.
    #[error("metadata {0} is needed and was not kept")]
    Metadata(String),
    /// The classifier is needed and was not consulted then.
    #[error("the classifier is needed and was not consulted then")]
    NotClassified,
    /// The record contradicts its context.
    #[error("the record does not go with its context")]
    Inconsistent,
}

/// What `policy` decides on the request of `record`, at the time it came.
///
/// # Errors
/// When the record does not hold what that takes.
pub fn replay(record: &DecisionRecord, context: &Context, policy: &Arc<Policy>) -> Result<Outcome, NotReplayable> {
    let Ok(scope) = policy.scope(&record.tenant, &record.role) else { return Ok(Outcome::Refused) };
    let scope = match assignment(record, policy)? {
        Some(assignment) => scope.with_experiments(&assignment),
        None => scope,
    };
    decide(&scope, record, context)
}

/// What `policy` decides on the request of `record` under every choice of its experiments' arms, each with the
/// probability of that choice; one choice without experiments.
///
/// # Errors
/// When the record does not hold what that takes.
pub fn replay_arms(
    record: &DecisionRecord,
    context: &Context,
    policy: &Arc<Policy>,
) -> Result<Vec<(f64, Outcome)>, NotReplayable> {
    let Ok(scope) = policy.scope(&record.tenant, &record.role) else { return Ok(vec![(1.0, Outcome::Refused)]) };
    let choices = match assignment(record, policy)? {
        Some(assignment) => scope.arm_choices(&assignment),
        None => vec![Vec::new()],
    };
    let decided = choices.into_iter().map(|arms| {
        let probability = arms.iter().map(|arm| arm.propensity.value()).product();
        Ok((probability, decide(&scope.clone().with_arms(arms), record, context)?))
    });
    decided.collect()
}

fn decide(scope: &Scope, record: &DecisionRecord, context: &Context) -> Result<Outcome, NotReplayable> {
    let asked = record.layers.iter().filter_map(|layer| context.asked.get(layer));
    let asked: HashSet<_> = asked.flatten().copied().collect();
    let holding: HashSet<_> = record.matches.iter().copied().collect();
    let text_signals = record.input.signals();
    let replayed = scope.rules().replay(&Evidence {
        signals: &text_signals,
        metadata: &record.metadata,
        hidden_metadata: &record.metadata_keys,
        tenant: &record.tenant,
        role: &record.role,
        asked: &asked,
        holding: &holding,
    });
    if let Some(rule) = replayed.unknown.first() {
        return Err(NotReplayable::Rule(rule.to_string()));
    }
    let rules = replayed.outcome;
    let needed = !scope.decisive(&rules);
    let classification = match &record.signals {
        Some(signals) if needed => Some(classification(signals, context)?),
        None if needed && !record.degraded => return Err(NotReplayable::NotClassified),
        _ => None,
    };
    let resolved = scope.resolve(&Signals {
        classification: classification.as_ref(),
        rules: &rules,
        language: text_signals.language,
        degraded: needed && classification.is_none(),
        requirements: &record.requirements,
        input_tokens: record.input.tokens,
        output_tokens: record.output_tokens,
        // Which endpoint is called is no part of an outcome.
        sticky_key: "",
    });
    Ok(Outcome::from(&resolved))
}

/// What the policy's experiments look at; `None`: it has none.
fn assignment<'a>(record: &'a DecisionRecord, policy: &Policy) -> Result<Option<Assignment<'a>>, NotReplayable> {
    if !policy.has_experiments() {
        return Ok(None);
    }
    let hidden = |key: &str| record.metadata_keys.iter().any(|hidden| hidden == key);
    if let Some(key) = policy.experiment_keys().find(|key| hidden(key)) {
        return Err(NotReplayable::Metadata(key.to_owned()));
    }
    let session = match &record.session {
        None => None,
        Some(text) => {
            let mut digest = [0; 16];
            hex::decode_to_slice(text, &mut digest).map_err(|_| NotReplayable::Inconsistent)?;
            Some(KeyDigest(digest))
        }
    };
    Ok(Some(Assignment {
        session,
        request_id: &record.request_id,
        metadata: &record.metadata,
        now_ms: record.time_unix_ms,
    }))
}

fn classification(signals: &SignalsRecord, context: &Context) -> Result<Classification, NotReplayable> {
    let intent = Distribution::new(Arc::clone(&context.intents), signals.intents.clone());
    Ok(Classification {
        intent: intent.map_err(|_| NotReplayable::Inconsistent)?,
        difficulty: signals.difficulty,
        tiers: signals.tiers,
        tier_control: context.tier_control.clone(),
        out_of_scope: signals.out_of_scope,
        tokens_used: 0,
        tokens_cut: 0,
    })
}
