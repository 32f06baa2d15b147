//! The `min_confidence` that keeps what the policy asks: found by deciding the log again at each level.
//!
//! A query is under-routed where a tier below the highest was acted on and the answer was not good. `min_confidence` is
//! the promise that at most the rest of 1 is; what threshold on tier probabilities keeps it is the classifier's
//! `TierControl`, so the levels are tried as the service would: by a policy that asks them.

use std::sync::Arc;

use serde::Serialize;

use super::{FEW, Graded, ModelFinding};
use crate::decisions::{Lines, Outcome, replay};
use crate::domain::{Probability, Source, Tier};
use crate::offline::metrics::{Bootstrap, Estimate, mean};
use crate::policy::{MIN_CONFIDENCE, Policy, PolicyOptions, to_yaml};

/// A `min_confidence` that would have kept what is asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ThresholdFinding {
    /// What the policy asks.
    pub asked: f64,
    /// Decisions it was held against.
    pub n: usize,
    /// Share of queries that were under-routed.
    pub under_routed: Estimate,
    /// The lowest level at which no more would have been than is asked.
    pub suggested: Estimate,
}

/// How much of an answer to a query was missed by a tier too low.
struct Missed {
    /// As it was decided.
    seen: f64,
    /// As each level would have decided.
    at: Vec<f64>,
}

/// Levels tried, in hundredths.
const LEVELS: std::ops::RangeInclusive<u32> = 50..=99;
/// Decisions beyond this many add seconds and no certainty.
const MOST: usize = 4_000;

/// What `first` attempts say of `policy`'s `min_confidence`, given what they say of its `models`; `None`: too few were
/// routed by their tier, or no level keeps what is asked.
pub(super) fn find(
    first: &[&Graded<'_>],
    log: &Lines,
    policy: &Policy,
    models: &[ModelFinding],
    bootstrap: &Bootstrap,
) -> Option<ThresholdFinding> {
    let asked = policy.spec().base.thresholds.min_confidence.map_or(MIN_CONFIDENCE, Probability::value);
    let levels: Vec<(f64, Arc<Policy>)> = LEVELS.filter_map(|percent| at_level(policy, percent)).collect();
    let by_tier: Vec<&&Graded<'_>> = first.iter().filter(|answer| is_by_tier(&answer.record.outcome)).collect();
    let stride = by_tier.len().div_ceil(MOST).max(1);
    let rows: Vec<Missed> = by_tier
        .iter()
        .step_by(stride)
        .filter_map(|answer| {
            let seen = missed(answer.record.outcome.tier()?, answer.score);
            let context = log.contexts.get(&answer.record.context)?;
            let at = |level: &Arc<Policy>| {
                let outcome = replay(answer.record, context, level).ok()?;
                let (model, tier) = (outcome.model()?, outcome.tier()?);
                let same = *model == answer.outcome.model;
                let good = if same { answer.score } else { expected(model, answer.difficulty, policy, models)? };
                Some(missed(tier, good))
            };
            Some(Missed { seen, at: levels.iter().map(|(_, level)| at(level)).collect::<Option<_>>()? })
        })
        .collect();
    if rows.len() < FEW {
        return None;
    }
    let [under_routed, suggested] = bootstrap.estimates(rows.len(), |drawn| {
        let chosen = || drawn.iter().filter_map(|row| rows.get(*row));
        let share = |position: usize| mean(chosen().filter_map(|row| row.at.get(position).copied()));
        let keeps = |position: usize| share(position).is_some_and(|share| share <= 1.0 - asked + 1e-9);
        let lowest = levels.iter().enumerate().find(|(position, _)| keeps(*position));
        [mean(chosen().map(|row| row.seen)), lowest.map(|(_, (level, _))| *level)]
    });
    Some(ThresholdFinding { asked, n: rows.len(), under_routed: under_routed?, suggested: suggested? })
}

fn at_level(policy: &Policy, percent: u32) -> Option<(f64, Arc<Policy>)> {
    let level = f64::from(percent) / 100.0;
    let mut document = policy.spec().clone();
    document.base.thresholds.min_confidence = Some(Probability::saturating(level));
    let text = to_yaml(&serde_json::to_value(document).ok()?);
    Some((level, Arc::new(Policy::load(text.as_bytes(), &PolicyOptions::default()).ok()?)))
}

/// Whether the classifier's tier decided.
fn is_by_tier(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Selected { source: Source::Classifier, .. })
}

fn missed(tier: Tier, good: f64) -> f64 {
    if tier == Tier::Complex { 0.0 } else { 1.0 - good }
}

/// P(a good answer) of a model that was not asked; `None`: nobody knows its ability.
fn expected(model: &str, difficulty: f64, policy: &Policy, models: &[ModelFinding]) -> Option<f64> {
    let found = models.iter().find(|found| found.model == *model && found.is_taken_up());
    let ability = found.map(|found| found.fit.ability);
    let ability = ability.or_else(|| policy.spec().models.get(model)?.ability)?;
    Some(super::sigmoid(ability - difficulty))
}
