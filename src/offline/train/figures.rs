//! How honest a head's probabilities are on the test rows: overall, by label, by length, and bin by bin.

use std::collections::BTreeMap;

use crate::artifact::{CalibrationBin, CalibrationFigures, GroupCalibration};
use crate::offline::evaluate::length_bucket;
use crate::offline::metrics::calibration::{N_BINS, brier, expected_calibration_error, reliability};

/// What a head said of one row, and the truth.
pub(super) struct Prediction<'a> {
    pub(super) probabilities: Vec<f32>,
    pub(super) truth: usize,
    /// Name of the predicted label.
    pub(super) label: &'a str,
    pub(super) words: usize,
}

/// The figures of a head's predictions; `None` without any.
pub(super) fn calibration_figures(method: &str, predictions: &[Prediction<'_>]) -> Option<CalibrationFigures> {
    let all: Vec<&Prediction<'_>> = predictions.iter().collect();
    let overall = group(&all)?;
    let bins = reliability(&all.iter().map(|prediction| prediction.top()).collect::<Vec<_>>(), N_BINS);
    Some(CalibrationFigures {
        method: method.to_owned(),
        expected_calibration_error: overall.expected_calibration_error,
        brier_score: overall.brier_score,
        rows: overall.rows,
        bins: bins
            .into_iter()
            .filter(|bin| bin.n > 0)
            .map(|bin| CalibrationBin {
                confidence: rounded(bin.mean_confidence),
                accuracy: rounded(bin.accuracy),
                rows: bin.n as u64,
            })
            .collect(),
        by_label: groups(&all, |prediction| prediction.label),
        by_length: groups(&all, |prediction| length_bucket(prediction.words)),
    })
}

fn groups<'a>(
    all: &[&'a Prediction<'_>],
    name: impl Fn(&'a Prediction<'_>) -> &'a str,
) -> BTreeMap<String, GroupCalibration> {
    let mut groups: BTreeMap<&str, Vec<&Prediction<'_>>> = BTreeMap::new();
    for prediction in all {
        groups.entry(name(prediction)).or_default().push(prediction);
    }
    groups.into_iter().filter_map(|(name, rows)| Some((name.to_owned(), group(&rows)?))).collect()
}

fn group(rows: &[&Prediction<'_>]) -> Option<GroupCalibration> {
    let bins = reliability(&rows.iter().map(|prediction| prediction.top()).collect::<Vec<_>>(), N_BINS);
    let error = expected_calibration_error(&bins)?;
    let brier_sum: f64 = rows
        .iter()
        .map(|prediction| brier(prediction.probabilities.iter().copied().map(f64::from), Some(prediction.truth)))
        .sum();
    Some(GroupCalibration {
        expected_calibration_error: rounded(error),
        brier_score: rounded(brier_sum / rows.len() as f64),
        rows: rows.len() as u64,
    })
}

/// Four decimals are more than a few hundred rows can tell.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

// === impl Prediction ===

impl Prediction<'_> {
    /// The largest probability, and whether it is right.
    pub(super) fn top(&self) -> (f64, bool) {
        let best = super::corpus::argmax(self.probabilities.iter().copied());
        (f64::from(self.probabilities[best]), best == self.truth)
    }
}
