//! Compares scored rows with what is known of them: [`run`] turns rows and scores into an [`Evaluation`].
//!
//! Each section covers the rows that carry its kind of truth: `intent`, `tier`, `outcomes`. Rows that could not be
//! scored stay visible: every section says how many of its rows have no scores, and the counts say why. The same rows
//! and options give the same evaluation, intervals included.

pub mod cascade;
pub mod compare;
pub mod detail;
pub mod difficulty;
pub mod intent;
pub mod models;
pub mod risk;
pub mod routing;
pub mod tier;

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

pub use cascade::{CascadeSection, CascadeSpec, CostFigures, CostPoint, ServiceFigures};
pub use compare::{Compared, Comparison, PairedFigure};
pub use detail::{Mistake, TokenBucket};
pub use difficulty::{DifficultyFigures, DifficultySection};
pub use intent::{IntentFigures, IntentSection};
pub use models::{ModelPair, PairChoice};
pub use risk::{RiskRow, Verdict};
pub use routing::{RouterFigures, RouterScore, RoutingGroup, RoutingSection};
pub use tier::{ServedTier, TierFigures, TierSection};

use super::dataset::Row;
use super::metrics::Bootstrap;
use super::scored::{ScoredRow, Scores};
use crate::artifact::ModelAbility;
use crate::domain::TierControl;

/// What to evaluate and how carefully.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// The models to route between; `None`: the reference pair, or else the pair that most rows know.
    pub pair: Option<ModelPair>,
    /// How the classifier turns an asked confidence into a threshold, where it is known.
    pub tier_control: TierControl,
    /// Pairs to simulate cascades between.
    pub cascades: Vec<CascadeSpec>,
    /// Abilities of models on the scale of the scored difficulties, where they are known.
    pub abilities: BTreeMap<String, ModelAbility>,
    /// How intervals are made.
    pub bootstrap: Bootstrap,
    /// Seeded random routers drawn as a baseline.
    pub n_random_routers: usize,
}

/// Everything measured; sections without rows are absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// What was compared and what could not be.
    pub counts: Counts,
    /// How intervals were made.
    pub bootstrap: Bootstrap,
    /// Rows that carry `intent`.
    pub intent: Option<IntentSection>,
    /// Rows that carry `tier`.
    pub tier: Option<TierSection>,
    /// Rows that carry `outcomes`.
    pub difficulty: Option<DifficultySection>,
    /// Rows that carry outcomes of both models of the pair.
    pub routing: Option<RoutingSection>,
    /// Simulated cascades, one for each pair that was asked for and is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cascades: Vec<CascadeSection>,
    /// The model against another one, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// What a reader must know to read the figures right.
    pub notes: Vec<String>,
}

/// Rows in, rows compared, and where the rest went.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Input rows.
    pub n_rows: usize,
    /// Input rows with scores.
    pub n_scored: usize,
    /// Input rows whose scoring failed.
    pub n_errors: usize,
    /// Input rows that the scored file does not mention.
    pub n_missing: usize,
    /// Scored rows that no input row has the id of.
    pub n_unknown: usize,
    /// Scored rows whose id occurred before; the first one counts.
    pub n_repeated: usize,
    /// Scored rows whose text was cut.
    pub n_truncated: usize,
    /// Failed rows by message.
    pub errors: BTreeMap<String, usize>,
}

/// A row with its scores, if it has any.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What is known.
    pub row: &'a Row,
    /// What the classifier says.
    pub scores: Option<&'a Scores>,
}

/// What rows are broken down by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GroupBy {
    /// Where the row comes from.
    Source,
    /// Where it comes from and the source's own label: a source may hold tasks that have nothing in common.
    Task,
    /// Words of the text.
    Length,
}

/// A name that sorts where it should.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct GroupKey {
    order: usize,
    name: String,
}

/// Upper bounds of the length buckets, in words.
const LENGTH_BUCKETS: [(usize, &str); 5] = [
    (8, "1-8 words"),
    (24, "9-24 words"),
    (64, "25-64 words"),
    (200, "65-200 words"),
    (usize::MAX, "201 words and more"),
];

/// The length bucket of a text of so many words.
pub fn length_bucket(words: usize) -> &'static str {
    LENGTH_BUCKETS.iter().find(|(most, _)| words <= *most).map_or("", |(_, name)| name)
}

/// Compares `scored` with `rows`, matched by id.
pub fn run(rows: &[Row], scored: &[ScoredRow], options: &EvalOptions) -> Evaluation {
    let (cases, counts) = join(rows, scored);
    let mut notes = Vec::new();
    let outcomes = models::canonical_outcomes(&cases);
    let pair = models::choose_pair(&outcomes, options.pair.as_ref(), &mut notes);
    let mut cascades = Vec::new();
    for spec in &options.cascades {
        match cascade::section(&outcomes, spec, &options.abilities, &options.bootstrap) {
            Some(section) => cascades.push(section),
            None => notes.push(format!(
                "No cascade from {} to {}: no scored row has outcomes of both, or the classifier does not know their \
                 abilities.",
                spec.pair.weak, spec.pair.strong
            )),
        }
    }
    Evaluation {
        cascades,
        intent: intent::section(&cases, &options.bootstrap),
        tier: tier::section(&cases, &options.tier_control, &options.bootstrap),
        difficulty: difficulty::section(&outcomes, pair.as_ref().map(|(pair, _)| pair), &options.bootstrap),
        routing: pair.and_then(|(pair, choice)| routing::section(&outcomes, &pair, choice, options)),
        comparison: None,
        bootstrap: options.bootstrap,
        counts,
        notes,
    }
}

/// The pair whose outcomes [`run`] compares on these rows; `None` where it would find none.
pub fn pair_of(rows: &[Row], requested: Option<&ModelPair>) -> Option<ModelPair> {
    let cases: Vec<Case<'_>> = rows.iter().map(|row| Case { row, scores: None }).collect();
    let pair = models::choose_pair(&models::canonical_outcomes(&cases), requested, &mut Vec::new());
    pair.map(|(pair, _)| pair)
}

/// Words of a text, as every length figure counts them.
pub fn n_words(text: &str) -> usize {
    text.split_whitespace().count()
}

// === impl EvalOptions ===

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            pair: None,
            tier_control: TierControl::default(),
            cascades: Vec::new(),
            abilities: BTreeMap::new(),
            bootstrap: Bootstrap::default(),
            n_random_routers: 200,
        }
    }
}

fn join<'a>(rows: &'a [Row], scored: &'a [ScoredRow]) -> (Vec<Case<'a>>, Counts) {
    let mut counts = Counts { n_rows: rows.len(), ..Counts::default() };
    let mut by_id: HashMap<&str, &Result<Scores, String>> = HashMap::with_capacity(scored.len());
    for scored in scored {
        // The first of equal ids counts.
        if by_id.contains_key(scored.id.as_str()) {
            counts.n_repeated += 1;
        } else {
            by_id.insert(&scored.id, &scored.result);
        }
    }
    let mut used = std::collections::HashSet::with_capacity(rows.len());
    let cases = rows
        .iter()
        .map(|row| {
            used.insert(row.id.as_str());
            let scores = match by_id.get(row.id.as_str()) {
                Some(Ok(scores)) => {
                    counts.n_scored += 1;
                    counts.n_truncated += usize::from(scores.truncated);
                    Some(scores)
                }
                Some(Err(error)) => {
                    counts.n_errors += 1;
                    *counts.errors.entry(error.clone()).or_default() += 1;
                    None
                }
                None => {
                    counts.n_missing += 1;
                    None
                }
            };
            Case { row, scores }
        })
        .collect();
    counts.n_unknown = by_id.keys().filter(|id| !used.contains(*id)).count();
    (cases, counts)
}

// === impl GroupBy ===

impl GroupBy {
    /// Splits items by the group of their rows: sources by name, lengths from short to long.
    fn split<'a, T: Copy>(self, items: &[T], row: impl Fn(T) -> &'a Row) -> Vec<(String, Vec<T>)> {
        let mut groups: BTreeMap<GroupKey, Vec<T>> = BTreeMap::new();
        for item in items {
            groups.entry(self.key(row(*item))).or_default().push(*item);
        }
        groups.into_iter().map(|(key, items)| (key.name, items)).collect()
    }

    fn key(self, row: &Row) -> GroupKey {
        match self {
            Self::Source => GroupKey { order: 0, name: row.source().to_owned() },
            Self::Task => {
                let task = row.task.as_ref().map_or_else(String::new, |task| format!(": {task}"));
                GroupKey { order: 0, name: format!("{}{task}", row.source()) }
            }
            Self::Length => {
                let n_words = n_words(&row.text);
                let order = LENGTH_BUCKETS.iter().position(|(most, _)| n_words <= *most).unwrap_or_default();
                GroupKey { order, name: LENGTH_BUCKETS[order].1.to_owned() }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::{Probability, Tier};

    /// A row with only an id and a text.
    pub(crate) fn row(id: &str, text: &str) -> Row {
        serde_json::from_value(serde_json::json!({ "id": id, "text": text })).unwrap()
    }

    /// Scores of a sure classifier.
    pub(crate) fn scores(intent: &str, tier_probs: [f32; 3], difficulty: f64) -> Scores {
        Scores {
            intent: intent.to_owned(),
            intent_probs: BTreeMap::from([(intent.to_owned(), 0.75), ("zz".to_owned(), 0.25)]),
            difficulty: Probability::new(difficulty).unwrap(),
            tier: Tier::Medium,
            tier_probs: tier_probs.into(),
            confidence: Probability::saturating(f64::from(tier_probs[0] + tier_probs[1])),
            tokens: 5,
            truncated: false,
            gain: None,
        }
    }

    /// Options quick enough for tests.
    pub(crate) fn quick() -> EvalOptions {
        EvalOptions {
            bootstrap: Bootstrap { n_draws: 40, ..Bootstrap::default() },
            n_random_routers: 20,
            ..EvalOptions::default()
        }
    }

    #[test]
    fn rows_without_scores_are_counted_never_dropped() {
        let rows = [row("a/1", "x"), row("a/2", "y"), row("a/3", "z")];
        let scored = [
            ScoredRow { id: "a/1".into(), result: Ok(scores("code", [0.5, 0.25, 0.25], 0.5)) },
            ScoredRow { id: "a/2".into(), result: Err("empty text".into()) },
            ScoredRow { id: "a/2".into(), result: Ok(scores("code", [0.5, 0.25, 0.25], 0.5)) },
            ScoredRow { id: "b/9".into(), result: Err("unheard of".into()) },
        ];
        let counts = run(&rows, &scored, &quick()).counts;
        assert_eq!(
            (counts.n_rows, counts.n_scored, counts.n_errors, counts.n_missing, counts.n_unknown, counts.n_repeated),
            (3, 1, 1, 1, 1, 1)
        );
        assert_eq!(counts.errors, BTreeMap::from([("empty text".to_owned(), 1)]));
    }

    #[test]
    fn nothing_known_is_an_empty_evaluation() {
        let evaluation = run(&[row("a/1", "x")], &[], &EvalOptions::default());
        assert!(evaluation.intent.is_none() && evaluation.tier.is_none());
        assert!(evaluation.difficulty.is_none() && evaluation.routing.is_none());
    }

    #[test]
    fn lengths_sort_from_short_to_long() {
        let rows = [row("a/1", &"w ".repeat(300)), row("a/2", "one"), row("b/1", &"w ".repeat(9))];
        let groups = GroupBy::Length.split(&[0, 1, 2], |index: usize| &rows[index]);
        let names: Vec<&str> = groups.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["1-8 words", "9-24 words", "201 words and more"]);
        assert_eq!(GroupBy::Source.split(&[0, 1, 2], |index: usize| &rows[index])[0].1, [0, 1]);
    }

    #[test]
    fn tasks_of_one_source_are_kept_apart() {
        let mut rows = [row("a/1", "x"), row("a/2", "x"), row("a/3", "x")];
        rows[0].task = Some("sums".to_owned());
        let groups = GroupBy::Task.split(&[0, 1, 2], |index: usize| &rows[index]);
        assert_eq!(groups, [("a".to_owned(), vec![1, 2]), ("a: sums".to_owned(), vec![0])]);
    }
}
