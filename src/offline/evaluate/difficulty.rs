//! Difficulty: does it tell prompts that models fail from those they answer, and better than prompt length does?

use serde::Serialize;

use super::compare::{self, PairedFigure, judge_both};
use super::models::{ModelPair, OutcomeCase};
use super::{GroupBy, n_words};
use crate::offline::metrics::{Bootstrap, Estimate, auroc, mean, spearman};

/// What was measured on the rows that carry outcomes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DifficultySection {
    /// The model whose failures are to be foreseen; `None`: no pair was found.
    pub weak: Option<String>,
    /// An answer scored below this is a failure.
    pub failure_below: f64,
    /// Rows with outcomes but no scores; in no figure below.
    pub n_not_scored: usize,
    /// All rows; mixes sources, whose base rates differ.
    pub overall: DifficultyFigures,
    /// By where rows come from.
    pub by_source: Vec<DifficultyFigures>,
    /// By where rows come from and the source's own label.
    pub by_task: Vec<DifficultyFigures>,
    /// By words.
    pub by_length: Vec<DifficultyFigures>,
}

/// The figures of a part of the rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DifficultyFigures {
    /// Which part.
    pub group: String,
    /// Rows of it.
    pub n: usize,
    /// Rows of it with an outcome of the weak model.
    pub n_weak: usize,
    /// Share of those that the weak model fails.
    pub weak_failure_rate: Option<f64>,
    /// AUROC of difficulty against the weak model's failures.
    pub auroc: Option<Estimate>,
    /// The same of prompt length in bytes.
    pub auroc_bytes: Option<Estimate>,
    /// The same of prompt length in words.
    pub auroc_words: Option<Estimate>,
    /// AUROC of difficulty less that of length in bytes, on the same resamples.
    pub auroc_over_bytes: Option<Estimate>,
    /// Rank correlation of difficulty with the mean failure of all models of the row.
    pub spearman: Option<Estimate>,
    /// The same of prompt length in bytes.
    pub spearman_bytes: Option<Estimate>,
}

/// An answer scored below this is a failure.
pub const FAILURE_BELOW: f64 = 0.5;

/// One scored row.
#[derive(Clone, Copy)]
struct Judged<'a> {
    row: &'a crate::offline::dataset::Row,
    difficulty: f64,
    n_bytes: f64,
    n_words: f64,
    weak_fails: Option<bool>,
    mean_failure: f64,
}

/// `None` where no scored row carries outcomes.
pub(super) fn section(
    rows: &[OutcomeCase<'_>],
    pair: Option<&ModelPair>,
    bootstrap: &Bootstrap,
) -> Option<DifficultySection> {
    let weak = pair.map(|pair| pair.weak.as_str());
    let judged: Vec<Judged<'_>> = rows.iter().filter_map(|row| judge(row, weak)).collect();
    if judged.is_empty() {
        return None;
    }
    let breakdown = |by: GroupBy| {
        let groups = by.split(&judged, |judged| judged.row);
        groups.into_iter().map(|(group, judged)| figures(group, &judged, bootstrap)).collect()
    };
    Some(DifficultySection {
        weak: weak.map(str::to_owned),
        failure_below: FAILURE_BELOW,
        n_not_scored: rows.len() - judged.len(),
        overall: figures("all".to_owned(), &judged, bootstrap),
        by_source: breakdown(GroupBy::Source),
        by_task: breakdown(GroupBy::Task),
        by_length: breakdown(GroupBy::Length),
    })
}

/// The AUROC of two models' difficulty against the weak model's failures.
pub(super) fn paired(sides: [&[OutcomeCase<'_>]; 2], pair: &ModelPair, bootstrap: &Bootstrap) -> Option<PairedFigure> {
    let sides = judge_both(sides, |row| {
        let judged = judge(row, Some(&pair.weak))?;
        Some((judged.difficulty, judged.weak_fails?))
    });
    compare::figure("difficulty AUROC", &sides, bootstrap, |judged, rows| {
        let (difficulty, fails): (Vec<f64>, Vec<bool>) = rows.iter().map(|row| judged[*row]).unzip();
        auroc(&difficulty, &fails)
    })
}

fn judge<'a>(row: &OutcomeCase<'a>, weak: Option<&str>) -> Option<Judged<'a>> {
    let text = &row.case.row.text;
    Some(Judged {
        row: row.case.row,
        difficulty: row.case.scores?.difficulty.value(),
        n_bytes: text.len() as f64,
        n_words: n_words(text) as f64,
        weak_fails: weak.and_then(|weak| row.outcomes.get(weak)).map(|outcome| *outcome < FAILURE_BELOW),
        mean_failure: 1.0 - mean(row.outcomes.values().copied())?,
    })
}

fn figures(group: String, judged: &[Judged<'_>], bootstrap: &Bootstrap) -> DifficultyFigures {
    let known: Vec<(&Judged<'_>, bool)> =
        judged.iter().filter_map(|row| row.weak_fails.map(|fails| (row, fails))).collect();
    let [auroc, auroc_bytes, auroc_words, auroc_over_bytes] = bootstrap.estimates(known.len(), |rows| {
        let fails: Vec<bool> = rows.iter().map(|row| known[*row].1).collect();
        let of = |score: fn(&Judged<'_>) -> f64| {
            let scores: Vec<f64> = rows.iter().map(|row| score(known[*row].0)).collect();
            auroc(&scores, &fails)
        };
        let (difficulty, bytes) = (of(|row| row.difficulty), of(|row| row.n_bytes));
        let over_bytes = difficulty.zip(bytes).map(|(difficulty, bytes)| difficulty - bytes);
        [difficulty, bytes, of(|row| row.n_words), over_bytes]
    });
    let [spearman, spearman_bytes] = bootstrap.estimates(judged.len(), |rows| {
        let failures: Vec<f64> = rows.iter().map(|row| judged[*row].mean_failure).collect();
        let of = |score: fn(&Judged<'_>) -> f64| {
            let scores: Vec<f64> = rows.iter().map(|row| score(&judged[*row])).collect();
            spearman(&scores, &failures)
        };
        [of(|row| row.difficulty), of(|row| row.n_bytes)]
    });
    DifficultyFigures {
        group,
        n: judged.len(),
        n_weak: known.len(),
        weak_failure_rate: mean(known.iter().map(|(_, fails)| f64::from(u8::from(*fails)))),
        auroc,
        auroc_bytes,
        auroc_words,
        auroc_over_bytes,
        spearman,
        spearman_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Case;
    use super::super::models::canonical_outcomes;
    use super::super::tests::{quick, row, scores};
    use super::*;

    #[test]
    fn difficulty_is_set_beside_prompt_length() {
        // Difficulty follows failure; length runs against it.
        let rows: Vec<_> = (0..20_usize)
            .map(|i| {
                let mut row = row(&format!("s/{i}"), &"word ".repeat(60 - i));
                let weak = if i < 10 { 1.0 } else { 0.0 };
                row.outcomes = [("weak".to_owned(), Some(weak)), ("strong".to_owned(), Some(1.0))].into();
                row
            })
            .collect();
        let scores: Vec<_> = (0..20).map(|i| scores("code", [1.0, 0.0, 0.0], f64::from(i) / 20.0)).collect();
        let cases: Vec<Case<'_>> =
            rows.iter().zip(&scores).map(|(row, scores)| Case { row, scores: Some(scores) }).collect();
        let pair = ModelPair { weak: "weak".into(), strong: "strong".into() };
        let section = section(&canonical_outcomes(&cases), Some(&pair), &quick().bootstrap).unwrap();
        assert_eq!((section.overall.n, section.overall.n_weak), (20, 20));
        assert_eq!(section.overall.weak_failure_rate, Some(0.5));
        assert_eq!(section.overall.auroc.unwrap().value, 1.0);
        assert_eq!(section.overall.auroc_bytes.unwrap().value, 0.0);
        assert_eq!(section.overall.auroc_over_bytes.unwrap().low, 1.0);
        assert!(section.overall.spearman.unwrap().value > 0.8);
        assert_eq!(section.by_length.len(), 1);
    }
}
