//! Two models on the same rows: the difference of their figures, with how far chance could move it.
//!
//! Only rows that both models scored are compared. Each resample draws the same rows for both, so that what makes rows
//! easy or hard for either cancels out.

use serde::Serialize;

use super::models::canonical_outcomes;
use super::{Case, EvalOptions, difficulty, intent, join, models, routing, tier};
use crate::offline::dataset::Row;
use crate::offline::metrics::{Bootstrap, Estimate};
use crate::offline::scored::ScoredRow;

/// What tells two models apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What the first model is called.
    pub first: String,
    /// What the second model is called.
    pub second: String,
    /// Rows that both scored.
    pub n: usize,
    /// Rows that only the first scored; in no figure.
    pub n_only_first: usize,
    /// Rows that only the second scored; in no figure.
    pub n_only_second: usize,
    /// Every figure that the rows allow.
    pub figures: Vec<PairedFigure>,
}

/// One figure of both models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairedFigure {
    /// Which one.
    pub name: &'static str,
    /// Rows behind it.
    pub n: usize,
    /// Of the first model.
    pub first: f64,
    /// Of the second model.
    pub second: f64,
    /// First less second, with its paired bootstrap interval.
    pub difference: Estimate,
    /// Whether a smaller value is better.
    pub lower_is_better: bool,
}

/// Names what is compared: the two models and what each scored.
#[derive(Clone, Copy, Debug)]
pub struct Compared<'a> {
    /// What to call the model.
    pub name: &'a str,
    /// Its scores.
    pub scored: &'a [ScoredRow],
}

/// Compares two models on the `rows` that both scored.
pub fn run(rows: &[Row], first: Compared<'_>, second: Compared<'_>, options: &EvalOptions) -> Comparison {
    let sides = [first, second].map(|side| join(rows, side.scored).0);
    let scored_by = |side: usize, row: usize| sides[side][row].scores.is_some();
    let count =
        |wanted: [bool; 2]| (0..rows.len()).filter(|row| [scored_by(0, *row), scored_by(1, *row)] == wanted).count();
    let common = [0, 1].map(|side| -> Vec<Case<'_>> {
        let both = |row: &usize| scored_by(0, *row) && scored_by(1, *row);
        (0..rows.len()).filter(both).map(|row| sides[side][row]).collect()
    });
    let cases = [common[0].as_slice(), common[1].as_slice()];
    let bootstrap = &options.bootstrap;
    let mut figures = intent::paired(cases, bootstrap);
    figures.extend(tier::paired(cases, bootstrap));
    let outcomes = cases.map(canonical_outcomes);
    let outcomes = [outcomes[0].as_slice(), outcomes[1].as_slice()];
    if let Some((pair, _)) = models::choose_pair(outcomes[0], options.pair.as_ref(), &mut Vec::new()) {
        figures.extend(difficulty::paired(outcomes, &pair, bootstrap));
        figures.extend(routing::paired(outcomes, &pair, bootstrap));
    }
    Comparison {
        first: first.name.to_owned(),
        second: second.name.to_owned(),
        n: common[0].len(),
        n_only_first: count([true, false]),
        n_only_second: count([false, true]),
        figures,
    }
}

/// Judges both sides of every row; rows that one side cannot judge are left out of both.
pub(super) fn judge_both<T, J>(sides: [&[T]; 2], judge: impl Fn(&T) -> Option<J>) -> [Vec<J>; 2] {
    let [first, second] = sides;
    let (first, second) = first.iter().zip(second).filter_map(|(a, b)| Some((judge(a)?, judge(b)?))).unzip();
    [first, second]
}

/// One figure of both sides on the same resamples; `None` where it is undefined.
pub(super) fn figure<J>(
    name: &'static str,
    sides: &[Vec<J>; 2],
    bootstrap: &Bootstrap,
    figure: impl Fn(&[J], &[usize]) -> Option<f64>,
) -> Option<PairedFigure> {
    let n = sides[0].len();
    let [first, second, difference] = bootstrap.estimates(n, |rows| {
        let [first, second] = [0, 1].map(|side| figure(&sides[side], rows));
        [first, second, first.zip(second).map(|(first, second)| first - second)]
    });
    let (first, second) = (first?.value, second?.value);
    Some(PairedFigure { name, n, first, second, difference: difference?, lower_is_better: false })
}

// === impl PairedFigure ===

impl PairedFigure {
    /// The better model where chance does not explain the difference: 0 is the first, 1 the second.
    pub fn better(&self) -> Option<usize> {
        let first_is_higher = self.difference.value > 0.0;
        self.difference.differs_from(0.0).then(|| usize::from(first_is_higher == self.lower_is_better))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{quick, row, scores};
    use super::*;
    use crate::domain::Tier;

    #[test]
    fn differences_are_those_of_common_rows() {
        let rows: Vec<Row> = (0..40)
            .map(|i| {
                let mut row = row(&format!("s/{i}"), "text");
                row.intent = Some("code".to_owned());
                row.tier = Some(Tier::Simple);
                let weak = if i < 20 { 1.0 } else { 0.0 };
                row.outcomes = [("weak".to_owned(), Some(weak)), ("strong".to_owned(), Some(1.0))].into();
                row
            })
            .collect();
        // Both know the tier. The first knows every intent and what is difficult; the second half and nothing.
        let scored = |good: bool| -> Vec<ScoredRow> {
            let of = |i: usize| match (good, i) {
                (true, 39) => Err("too long".to_owned()),
                (true, _) => Ok(scores("code", [0.75, 0.25, 0.0], i as f64 / 40.0)),
                (false, _) => Ok(scores(["code", "chat"][i % 2], [0.75, 0.25, 0.0], 0.5)),
            };
            rows.iter().enumerate().map(|(i, row)| ScoredRow { id: row.id.clone(), result: of(i) }).collect()
        };
        let (good, bad) = (scored(true), scored(false));
        let compared = |name| Compared { name, scored: if name == "good" { &good } else { &bad } };
        let comparison = run(&rows, compared("good"), compared("bad"), &quick());
        assert_eq!((comparison.n, comparison.n_only_first, comparison.n_only_second), (39, 0, 1));
        let better: Vec<(&str, Option<usize>)> =
            comparison.figures.iter().map(|figure| (figure.name, figure.better())).collect();
        assert_eq!(
            better,
            [
                ("intent accuracy", Some(0)),
                ("intent macro-F1", Some(0)),
                // Sure by three quarters: all right is a quarter off, half right is as much. Not told apart.
                ("intent ECE", None),
                ("tier accuracy", None),
                ("difficulty AUROC", Some(0)),
                ("APGR", Some(0)),
            ]
        );
        let accuracy = &comparison.figures[0];
        assert_eq!((accuracy.n, accuracy.first, accuracy.second), (39, 1.0, 20.0 / 39.0));
        assert!((accuracy.difference.value - 19.0 / 39.0).abs() < 1e-12);
        assert_eq!(comparison.figures[3].difference, Estimate::exact(0.0));

        let swapped = run(&rows, compared("bad"), compared("good"), &quick());
        assert_eq!(swapped.figures[0].difference.value, -accuracy.difference.value, "the same resamples");
        assert!((swapped.figures[0].difference.high + accuracy.difference.low).abs() < 1e-12);
    }
}
