//! What harmless changes of a prompt change in the verdict on it, and whether a new model is as steady as an old one.
//!
//! Every row is scored as it is and once for each kind of [`Perturbation`] that has something to change; a flip is a
//! verdict on the copy that differs from the verdict on the row. Labels are not needed. Phrases are those of
//! [`Pool::Testing`], which no model is trained on.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;

use super::dataset::Row;
use super::metrics::{Bootstrap, Estimate, mcnemar_greater, mean, wilson_interval};
use super::perturb::{Perturbation, Pool, perturb, seed_of};
use super::scored::{ScoredRow, Scores};

/// A row's text or a changed copy of it.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Position of the row.
    row: usize,
    /// How it was changed; `None`: not at all.
    kind: Option<Perturbation>,
    id: String,
    text: String,
}

/// What changed in one model's verdicts: for each kind, the change by position of the row.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    n_rows: usize,
    n_not_scored: usize,
    by_kind: BTreeMap<Perturbation, BTreeMap<usize, Change>>,
}

/// What one change of one text changed.
#[derive(Clone, Copy, Debug)]
struct Change {
    intent_flipped: bool,
    /// The tier of the copy against that of the row.
    tier: Ordering,
    /// Absolute change of difficulty.
    difficulty: f64,
    /// Absolute change of the probability of the row's intent.
    intent_probability: f64,
}

/// How steady a model is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Robustness {
    /// Rows changed.
    pub n_rows: usize,
    /// Rows and copies without scores; in no figure.
    pub n_not_scored: usize,
    /// Every kind that changed a row.
    pub kinds: Vec<KindFigures>,
}

/// What one kind of change changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KindFigures {
    /// Which kind.
    pub kind: Perturbation,
    /// Rows that it changed.
    pub n: usize,
    /// Rows whose most probable intent changed.
    pub intent: Flips,
    /// Rows whose tier changed.
    pub tier: Flips,
    /// Share of rows that moved to a more capable tier.
    pub tier_up: Estimate,
    /// Share of rows that moved to a less capable tier.
    pub tier_down: Estimate,
    /// Mean absolute change of difficulty.
    pub difficulty_change: Estimate,
    /// Mean absolute change of the probability of the row's intent.
    pub intent_probability_change: Estimate,
}

/// How many verdicts flipped, and how many may.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flips {
    /// Share of rows, with its Wilson interval.
    pub rate: Estimate,
    /// The share allowed, where one is set.
    pub limit: Option<f64>,
    /// Whether the share is within the limit.
    pub within_limit: Option<bool>,
}

/// A verdict that can flip.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The most probable intent.
    Intent,
    /// The tier routed.
    Tier,
}

/// One verdict under one kind of change, of a new model against an old one, on the rows that both scored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GateRow {
    /// Which kind.
    pub kind: Perturbation,
    /// Which verdict.
    pub verdict: Verdict,
    /// Rows compared.
    pub n: usize,
    /// Share that the new model flips.
    pub new_rate: f64,
    /// Share that the old model flips.
    pub old_rate: f64,
    /// Rows that only the new model flips.
    pub only_new: usize,
    /// Rows that only the old model flips.
    pub only_old: usize,
    /// P(as many by chance were both equally steady): McNemar's exact test, one-sided.
    pub p: f64,
    /// The share allowed, where one is set.
    pub limit: Option<f64>,
    /// Whether the new model may follow the old one.
    pub passes: bool,
}

/// Below this chance a difference counts.
pub const SIGNIFICANT: f64 = 0.05;
/// Seed of every change; another gives other typing errors and other phrases of the same pool.
const SEED: u64 = 20_261_121;

/// The rows, each followed by its changed copies: what a model is to score.
pub fn trials(rows: &[Row]) -> Vec<Trial> {
    let mut trials = Vec::with_capacity(rows.len() * (1 + Perturbation::ALL.len()));
    for (index, row) in rows.iter().enumerate() {
        let trial = |kind: Option<Perturbation>, text: String| Trial { row: index, kind, id: row.id.clone(), text };
        trials.push(trial(None, row.text.clone()));
        trials.extend(Perturbation::ALL.into_iter().filter_map(|kind| {
            let changed = perturb(kind, Pool::Testing, &row.text, seed_of(SEED, kind, &row.id))?;
            Some(trial(Some(kind), changed))
        }));
    }
    trials
}

/// What a model is to score, in the order of the trials.
pub fn texts(trials: &[Trial]) -> impl Iterator<Item = (&str, &str)> {
    trials.iter().map(|trial| (trial.id.as_str(), trial.text.as_str()))
}

/// The figures of one model.
pub fn figures(changes: &Changes, bootstrap: &Bootstrap) -> Robustness {
    let kinds = changes.by_kind.iter().filter_map(|(kind, changes)| {
        let changes: Vec<Change> = changes.values().copied().collect();
        KindFigures::of(*kind, &changes, bootstrap)
    });
    Robustness { n_rows: changes.n_rows, n_not_scored: changes.n_not_scored, kinds: kinds.collect() }
}

/// Holds a new model to an old one: it fails where it flips more than the old one and that is either more than chance
/// explains ([`SIGNIFICANT`]) or both are beyond the limit already.
pub fn gate(new: &Changes, old: &Changes) -> Vec<GateRow> {
    let mut rows = Vec::new();
    for (kind, new) in &new.by_kind {
        let Some(old) = old.by_kind.get(kind) else { continue };
        let pairs: Vec<(&Change, &Change)> = new.iter().filter_map(|(row, new)| Some((new, old.get(row)?))).collect();
        rows.extend(Verdict::ALL.into_iter().filter(|_| !pairs.is_empty()).map(|verdict| verdict.gate(*kind, &pairs)));
    }
    rows
}

// === impl Changes ===

impl Changes {
    /// Compares the scores of each trial, in order, with those of its row.
    pub fn of(trials: &[Trial], scored: &[ScoredRow]) -> Self {
        let mut changes = Self::default();
        let mut original: Option<&Scores> = None;
        for (trial, scored) in trials.iter().zip(scored) {
            let scores = scored.result.as_ref().ok();
            changes.n_not_scored += usize::from(scores.is_none());
            match (trial.kind, original, scores) {
                (None, _, _) => {
                    changes.n_rows += 1;
                    original = scores;
                }
                (Some(kind), Some(original), Some(scores)) => {
                    changes.by_kind.entry(kind).or_default().insert(trial.row, Change::between(original, scores));
                }
                _ => {}
            }
        }
        changes
    }
}

// === impl Change ===

impl Change {
    fn between(original: &Scores, copy: &Scores) -> Self {
        let probability = |scores: &Scores| {
            scores.intent_probs.get(&original.intent).map_or(0.0, |probability| f64::from(*probability))
        };
        Self {
            intent_flipped: copy.intent != original.intent,
            tier: copy.tier.cmp(&original.tier),
            difficulty: (copy.difficulty.value() - original.difficulty.value()).abs(),
            intent_probability: (probability(copy) - probability(original)).abs(),
        }
    }
}

// === impl KindFigures ===

impl KindFigures {
    fn of(kind: Perturbation, changes: &[Change], bootstrap: &Bootstrap) -> Option<Self> {
        let n = changes.len();
        let share =
            |hit: &dyn Fn(&Change) -> bool| wilson_interval(changes.iter().filter(|change| hit(change)).count(), n);
        let flips = |verdict: Verdict| Some(Flips::new(share(&|change| verdict.flipped(change))?, limit(kind)));
        let [difficulty, intent_probability] = bootstrap.estimates(n, |rows| {
            let of = |value: fn(&Change) -> f64| mean(rows.iter().map(|row| value(&changes[*row])));
            [of(|change| change.difficulty), of(|change| change.intent_probability)]
        });
        Some(Self {
            kind,
            n,
            intent: flips(Verdict::Intent)?,
            tier: flips(Verdict::Tier)?,
            tier_up: share(&|change| change.tier.is_gt())?,
            tier_down: share(&|change| change.tier.is_lt())?,
            difficulty_change: difficulty?,
            intent_probability_change: intent_probability?,
        })
    }
}

// === impl Flips ===

impl Flips {
    fn new(rate: Estimate, limit: Option<f64>) -> Self {
        Self { rate, limit, within_limit: limit.map(|limit| rate.value <= limit) }
    }
}

/// The share of verdicts that may flip. A change of meaning is possible where words change: no limit is set there.
fn limit(kind: Perturbation) -> Option<f64> {
    match kind {
        Perturbation::Lower | Perturbation::Upper | Perturbation::Punctuation | Perturbation::Wrapper => Some(0.03),
        Perturbation::Typo => Some(0.06),
        Perturbation::Boilerplate | Perturbation::Whitespace | Perturbation::Paraphrase => None,
    }
}

// === impl Verdict ===

impl Verdict {
    const ALL: [Self; 2] = [Self::Intent, Self::Tier];

    /// The name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Tier => "tier",
        }
    }

    fn flipped(self, change: &Change) -> bool {
        match self {
            Self::Intent => change.intent_flipped,
            Self::Tier => change.tier.is_ne(),
        }
    }

    fn gate(self, kind: Perturbation, pairs: &[(&Change, &Change)]) -> GateRow {
        let count = |wanted: (bool, bool)| {
            pairs.iter().filter(|(new, old)| (self.flipped(new), self.flipped(old)) == wanted).count()
        };
        let (both, only_new, only_old) = (count((true, true)), count((true, false)), count((false, true)));
        let rate = |flipped: usize| flipped as f64 / pairs.len() as f64;
        let (new_rate, old_rate, limit) = (rate(both + only_new), rate(both + only_old), limit(kind));
        let p = mcnemar_greater(only_new, only_old);
        let both_beyond_limit = limit.is_some_and(|limit| new_rate > limit && old_rate > limit);
        let fails = only_new > only_old && (p < SIGNIFICANT || both_beyond_limit);
        GateRow {
            kind,
            verdict: self,
            n: pairs.len(),
            new_rate,
            old_rate,
            only_new,
            only_old,
            p,
            limit,
            passes: !fails,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{Probability, Tier};
    use crate::offline::evaluate::tests::{row, scores};

    /// Changes of a model that, of 100 rows in lower case, flips the tier of the given ones upward.
    pub(crate) fn changes(flipped: std::ops::Range<usize>) -> Changes {
        let rows: Vec<Row> = (0..100).map(|i| row(&format!("own/{i}"), "Tell Me A Joke")).collect();
        let trials: Vec<Trial> =
            trials(&rows).into_iter().filter(|t| t.kind.is_none_or(|kind| kind == Perturbation::Lower)).collect();
        let scored: Vec<ScoredRow> = trials
            .iter()
            .map(|trial| {
                let mut scores = scores("chat", [0.5, 0.25, 0.25], 0.5);
                if trial.kind.is_some() && flipped.contains(&trial.row) {
                    scores.tier = Tier::Complex;
                    scores.difficulty = Probability::new(0.75).unwrap();
                }
                let result = if trial.row == 99 { Err("too long".to_owned()) } else { Ok(scores) };
                ScoredRow { id: trial.id.clone(), result }
            })
            .collect();
        Changes::of(&trials, &scored)
    }

    #[test]
    fn figures_agree_with_what_was_flipped() {
        let robustness = figures(&changes(0..9), &Bootstrap { n_draws: 50, ..Bootstrap::default() });
        assert_eq!((robustness.n_rows, robustness.n_not_scored, robustness.kinds.len()), (100, 2, 1));
        let lower = &robustness.kinds[0];
        assert_eq!((lower.kind, lower.n), (Perturbation::Lower, 99));
        assert_eq!((lower.intent.rate.value, lower.intent.within_limit), (0.0, Some(true)));
        assert_eq!((lower.tier.rate.value, lower.tier.within_limit), (9.0 / 99.0, Some(false)));
        assert_eq!((lower.tier_up.value, lower.tier_down.value), (9.0 / 99.0, 0.0));
        assert!((lower.difficulty_change.value - 0.25 * 9.0 / 99.0).abs() < 1e-12);
        assert_eq!(lower.intent_probability_change.value, 0.0);
    }

    #[test]
    fn the_gate_asks_for_more_than_chance_or_a_limit_passed_by_both() {
        let passes = |new, old| {
            let rows = gate(&changes(new), &changes(old));
            assert_eq!(rows.len(), 2, "intent and tier");
            assert!(rows[0].passes, "no intent is ever flipped");
            rows[1].passes
        };
        assert!(passes(0..2, 0..2), "the same");
        assert!(passes(0..2, 0..1), "one more is chance");
        assert!(!passes(0..6, 0..0), "six more are not");
        assert!(passes(0..3, 50..53), "others, but as many");
        assert!(!passes(0..6, 0..5), "chance, but both are beyond the limit");
        assert!(passes(0..5, 0..6), "beyond the limit, but better than before");
    }
}
