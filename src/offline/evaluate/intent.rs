//! Intent: is the label right, and does its probability say how often?

use std::collections::BTreeSet;

use serde::Serialize;

use super::compare::{self, PairedFigure, judge_both};
use super::detail::{self, Mistake, Said, TokenBucket};
use super::{Case, GroupBy};
use crate::offline::metrics::calibration::N_BINS;
use crate::offline::metrics::{
    Bootstrap, ClassScores, Confusion, Estimate, ReliabilityBin, brier, expected_calibration_error, mean, reliability,
};

/// What was measured on the rows that carry an intent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IntentSection {
    /// Rows with an intent and scores.
    pub n: usize,
    /// Rows with an intent but no scores; in no figure below.
    pub n_not_scored: usize,
    /// Rows right only because a label of their soft distribution weighs at least [`SOFT_CREDIT`].
    pub n_soft_credited: usize,
    /// That weight.
    pub soft_credit: f32,
    /// Share right, fair second labels credited.
    pub accuracy: Estimate,
    /// Share that equals the row's first label.
    pub strict_accuracy: f64,
    /// Mean F1 over the labels that occur, fair second labels credited.
    pub macro_f1: Estimate,
    /// Expected calibration error of the top label's probability.
    pub ece: f64,
    /// Mean squared error of the whole distribution, 0..2.
    pub brier: f64,
    /// Every label.
    pub classes: Vec<ClassScores>,
    /// Truth by prediction.
    pub confusion: Confusion,
    /// Confidence against accuracy.
    pub reliability: Vec<ReliabilityBin>,
    /// By where rows come from.
    pub by_source: Vec<IntentFigures>,
    /// By words.
    pub by_length: Vec<IntentFigures>,
    /// By word pieces read.
    pub by_tokens: Vec<TokenBucket>,
    /// The most confident mistakes.
    pub worst: Vec<Mistake>,
}

/// The figures of a part of the rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IntentFigures {
    /// Which part.
    pub group: String,
    /// Rows of it.
    pub n: usize,
    /// Share right.
    pub accuracy: f64,
    /// Mean F1 over the labels that occur.
    pub macro_f1: f64,
    /// Expected calibration error.
    pub ece: f64,
}

/// The weight from which a row's second label is as right as its first.
pub const SOFT_CREDIT: f32 = 0.4;

/// One scored row, labels as positions.
#[derive(Clone, Copy)]
struct Judged<'a> {
    case: Case<'a>,
    /// The prediction where that is fair, else the row's label.
    truth: usize,
    prediction: usize,
    confidence: f64,
    strict: bool,
    brier: f64,
}

/// `None` where no scored row carries an intent.
pub(super) fn section(cases: &[Case<'_>], bootstrap: &Bootstrap) -> Option<IntentSection> {
    let labelled: Vec<Case<'_>> = cases.iter().copied().filter(|case| case.row.intent.is_some()).collect();
    let labels = labels(&labelled);
    let judged: Vec<Judged<'_>> = labelled.iter().filter_map(|case| judge(*case, &labels)).collect();
    let confusion = confusion(&judged, &labels);
    let bins = bins(&judged);

    let accuracy = bootstrap.estimate(judged.len(), |rows| mean(rows.iter().map(|row| right(&judged[*row]))))?;
    let mut scratch = Confusion::new(labels.clone());
    let [macro_f1] = bootstrap.estimates(judged.len(), |rows| {
        scratch.clear();
        for row in rows {
            scratch.add(judged[*row].truth, judged[*row].prediction);
        }
        [scratch.macro_f1()]
    });
    let said: Vec<Said<'_>> = judged.iter().map(|row| row.said(&labels)).collect();
    Some(IntentSection {
        n: judged.len(),
        n_not_scored: labelled.len() - judged.len(),
        n_soft_credited: judged.iter().filter(|row| row.truth == row.prediction && !row.strict).count(),
        soft_credit: SOFT_CREDIT,
        accuracy,
        strict_accuracy: mean(judged.iter().map(|row| f64::from(u8::from(row.strict))))?,
        macro_f1: macro_f1?,
        ece: expected_calibration_error(&bins)?,
        brier: mean(judged.iter().map(|row| row.brier))?,
        classes: confusion.per_class(),
        confusion,
        reliability: bins,
        by_source: breakdown(GroupBy::Source, &judged, &labels),
        by_length: breakdown(GroupBy::Length, &judged, &labels),
        by_tokens: detail::by_tokens(&said),
        worst: detail::worst(&said),
    })
}

/// The intent figures of two models.
pub(super) fn paired(sides: [&[Case<'_>]; 2], bootstrap: &Bootstrap) -> Vec<PairedFigure> {
    let labelled =
        sides.map(|cases| cases.iter().copied().filter(|case| case.row.intent.is_some()).collect::<Vec<_>>());
    let labels = labels(&labelled.concat());
    let [first, second] = &labelled;
    let sides = judge_both([first, second], |case| judge(*case, &labels));
    let accuracy = compare::figure("intent accuracy", &sides, bootstrap, |judged, rows| {
        mean(rows.iter().map(|row| right(&judged[*row])))
    });
    let macro_f1 = compare::figure("intent macro-F1", &sides, bootstrap, |judged, rows| {
        let pairs = rows.iter().map(|row| (judged[*row].truth, judged[*row].prediction));
        Confusion::tally(labels.clone(), pairs).macro_f1()
    });
    let ece = compare::figure("intent ECE", &sides, bootstrap, |judged, rows| {
        let rows: Vec<Judged<'_>> = rows.iter().map(|row| judged[*row]).collect();
        expected_calibration_error(&bins(&rows))
    });
    let ece = ece.map(|figure| PairedFigure { lower_is_better: true, ..figure });
    [accuracy, macro_f1, ece].into_iter().flatten().collect()
}

fn breakdown(by: GroupBy, judged: &[Judged<'_>], labels: &[String]) -> Vec<IntentFigures> {
    by.split(judged, |row| row.case.row)
        .into_iter()
        .filter_map(|(group, rows)| {
            let confusion = confusion(&rows, labels);
            Some(IntentFigures {
                group,
                n: rows.len(),
                accuracy: confusion.accuracy()?,
                macro_f1: confusion.macro_f1()?,
                ece: expected_calibration_error(&bins(&rows))?,
            })
        })
        .collect()
}

/// Every label that a row has or a score knows, by name.
fn labels(cases: &[Case<'_>]) -> Vec<String> {
    let mut labels = BTreeSet::new();
    for case in cases {
        labels.extend(case.row.intent.iter().cloned());
        // Every scored row of one model has the same keys, but files can be joined.
        labels.extend(case.scores.iter().flat_map(|scores| scores.intent_probs.keys().cloned()));
    }
    labels.into_iter().collect()
}

fn judge<'a>(case: Case<'a>, labels: &[String]) -> Option<Judged<'a>> {
    let (scores, intent) = (case.scores?, case.row.intent.as_ref()?);
    let position = |label: &String| labels.binary_search(label).ok();
    let strict = *intent == scores.intent;
    let fair = strict || case.row.soft.get(&scores.intent).is_some_and(|weight| *weight >= SOFT_CREDIT);
    let truth = if fair { &scores.intent } else { intent };
    let in_scores = scores.intent_probs.keys().position(|label| label == truth);
    Some(Judged {
        case,
        truth: position(truth)?,
        prediction: position(&scores.intent)?,
        confidence: f64::from(scores.intent_probs.get(&scores.intent).copied()?),
        strict,
        brier: brier(scores.intent_probs.values().map(|p| f64::from(*p)), in_scores),
    })
}

// === impl Judged ===

impl<'a> Judged<'a> {
    fn said(&self, labels: &'a [String]) -> Said<'a> {
        let name = |label: usize| labels.get(label).map_or("", String::as_str);
        let (truth, prediction) = (name(self.truth), name(self.prediction));
        Said { case: self.case, truth, prediction, confidence: self.confidence }
    }
}

fn right(row: &Judged<'_>) -> f64 {
    f64::from(u8::from(row.truth == row.prediction))
}

fn confusion(judged: &[Judged<'_>], labels: &[String]) -> Confusion {
    Confusion::tally(labels.to_vec(), judged.iter().map(|row| (row.truth, row.prediction)))
}

fn bins(judged: &[Judged<'_>]) -> Vec<ReliabilityBin> {
    let predictions: Vec<(f64, bool)> =
        judged.iter().map(|row| (row.confidence, row.truth == row.prediction)).collect();
    reliability(&predictions, N_BINS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{quick, row, scores};
    use super::*;

    #[test]
    fn fair_second_labels_are_credited_and_said_so() {
        let labelled = |id: &str, intent: &str, soft: &[(&str, f32)]| {
            let mut row = row(id, "text");
            row.intent = Some(intent.to_owned());
            row.soft = soft.iter().map(|(label, weight)| ((*label).to_owned(), *weight)).collect();
            row
        };
        let rows = [
            labelled("s/1", "code", &[]),
            labelled("s/2", "math", &[("math", 0.6), ("code", 0.4)]),
            labelled("t/1", "math", &[("math", 0.7), ("code", 0.3)]),
            labelled("t/2", "math", &[]),
        ];
        let scores = scores("code", [1.0, 0.0, 0.0], 0.1);
        let cases: Vec<Case<'_>> =
            rows.iter().enumerate().map(|(index, row)| Case { row, scores: (index < 3).then_some(&scores) }).collect();
        let section = section(&cases, &quick().bootstrap).unwrap();
        assert_eq!((section.n, section.n_not_scored, section.n_soft_credited), (3, 1, 1));
        assert!((section.accuracy.value - 2.0 / 3.0).abs() < 1e-12);
        assert!((section.strict_accuracy - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(section.confusion.labels, ["code", "math", "zz"]);
        assert_eq!(section.confusion.counts, [[2, 0, 0], [1, 0, 0], [0, 0, 0]]);
        // Confidence 0.75, accuracy 2/3.
        assert!((section.ece - (0.75 - 2.0 / 3.0)).abs() < 1e-6);
        // Right rows: 2 * 0.25^2. The wrong one: 0.75^2 + 0.25^2 and its label, unknown to the scores, 1.
        assert!((section.brier - (2.0 * 0.125 + 1.625) / 3.0).abs() < 1e-6);
        let by_source: BTreeMap<&str, (usize, f64)> =
            section.by_source.iter().map(|g| (g.group.as_str(), (g.n, g.accuracy))).collect();
        assert_eq!(by_source, BTreeMap::from([("s", (2, 1.0)), ("t", (1, 0.0))]));
    }
}
