//! The intent head: fitted, calibrated, measured; and the out-of-scope model beside it.

use std::collections::BTreeMap;

use ndarray::{Array2, Axis};

use super::corpus::{Corpus, Targets, argmax};
use super::figures::{Prediction, calibration_figures};
use super::objective::IntentData;
use super::recipe::Recipe;
use super::{TrainError, TrainOptions, TrainReport, calibrate, fit, scaling};
use crate::artifact::CalibrationFigures;
use crate::heads::{IntentHead, OutOfScope, familiarity, softmax};
use crate::offline::metrics::{classification::Confusion, ranking::auroc};
use crate::offline::split::Split;
use crate::text::ngrams;

/// What the intent objective knows of the given rows; those without an intent weigh nothing.
pub(super) fn intent_data(recipe: &Recipe, corpus: &Corpus, targets: &Targets, rows: &[usize]) -> IntentData {
    let weight = |row: usize| if targets.has_intent(row) { recipe.intent_weight(&corpus.rows[row]) } else { 0.0 };
    IntentData {
        ngrams: rows.iter().map(|row| corpus.ngrams[*row].clone()).collect(),
        targets: targets.matrix.select(Axis(0), rows),
        weights: rows.iter().map(|row| weight(*row)).collect(),
        kin: rows.iter().map(|row| corpus.originals[*row]).collect(),
    }
}

/// Fits and calibrates the intent head, and measures it on the test split.
pub(super) fn fit_intent(
    options: &TrainOptions,
    corpus: &Corpus,
    targets: &Targets,
    inputs: &Array2<f32>,
    report: &mut TrainReport,
) -> Result<(IntentHead, Option<CalibrationFigures>), TrainError> {
    let recipe = &options.recipe;
    let data = |split| {
        let rows =
            corpus.indices(split, |row| targets.has_intent(row) && recipe.intent_weight(&corpus.rows[row]) > 0.0);
        (inputs.select(Axis(0), &rows), intent_data(recipe, corpus, targets, &rows))
    };
    let (train, calibration) = (data(Split::Train), data(Split::Calibration));
    if train.0.is_empty() || calibration.0.is_empty() {
        return Err(TrainError::Unusable("too few labelled rows: the training or calibration split is empty".into()));
    }
    let mut head = fit::fit_intent(
        (&train.0, &train.1),
        (&calibration.0, &calibration.1),
        ngrams::N_BUCKETS,
        &recipe.intent,
        recipe.seed,
        &options.device,
    )?;
    let buckets: Vec<&[u32]> = calibration.1.ngrams.iter().map(Vec::as_slice).collect();
    let logits = head.logits(calibration.0.view(), &buckets);
    let (scaling, method, candidates) = scaling::choose(&logits, &calibration.1.targets);
    head.rescale(&scaling.scale, &scaling.bias);
    report.intent_calibrators = candidates;

    let test = corpus.indices(Split::Test, |row| targets.has_intent(row));
    let logits = head.logits(inputs.select(Axis(0), &test).view(), &corpus.ngrams(test.iter().copied()));
    let mut confusion = Confusion::new(targets.labels.clone());
    let mut by_source: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    let mut predictions = Vec::new();
    for (row, logits) in test.iter().zip(logits.outer_iter()) {
        let probabilities = softmax(logits, 1.0);
        let (predicted, truth) = (argmax(probabilities.iter().copied()), targets.label(*row));
        confusion.add(truth, predicted);
        by_source.entry(corpus.rows[*row].source()).or_default().push(predicted == truth);
        predictions.push(Prediction {
            probabilities,
            truth,
            label: &targets.labels[predicted],
            words: corpus.prepared[*row].signals.words,
        });
    }
    report.intent_by_source = by_source.into_iter().map(|(source, right)| (source.to_owned(), share(&right))).collect();
    report.intent_f1 = confusion.per_class().into_iter().map(|class| (class.label, class.f1)).collect();
    report.intent_macro_f1 = confusion.macro_f1().unwrap_or_default();
    Ok((head, calibration_figures(method, &predictions)))
}

/// Fits what tells out of scope from in scope, and measures it and each of its signs alone on the test split.
pub(super) fn fit_out_of_scope(
    corpus: &Corpus,
    targets: &Targets,
    embeddings: &Array2<f32>,
    logits: &Array2<f32>,
    centroids: &Array2<f32>,
    report: &mut TrainReport,
) -> OutOfScope {
    let signs = |split| -> (Vec<[f32; 3]>, Vec<bool>) {
        corpus
            .indices(split, |row| targets.has_intent(row) || targets.out_of_scope[row])
            .into_iter()
            .map(|row| {
                let probabilities = softmax(logits.row(row), 1.0);
                let signs = familiarity(&probabilities, logits.row(row), centroids.view(), embeddings.row(row));
                (signs, targets.out_of_scope[row])
            })
            .unzip()
    };
    let (signs_seen, out) = signs(Split::Calibration);
    if out.iter().any(|out| *out) {
        let model = calibrate::fit_out_of_scope(&signs_seen, &out);
        let (signs, out) = signs(Split::Test);
        let by = |score: &dyn Fn([f32; 3]) -> f32| {
            auroc(&signs.iter().map(|signs| f64::from(score(*signs))).collect::<Vec<_>>(), &out)
        };
        let figures = [
            ("all three", by(&|signs| model.probability(signs))),
            ("largest probability", by(&|signs| -signs[0])),
            ("energy", by(&|signs| -signs[1])),
            ("nearest centroid", by(&|signs| -signs[2])),
        ];
        report.out_of_scope_auroc =
            figures.into_iter().filter_map(|(name, auroc)| Some((name.to_owned(), auroc?))).collect();
        model
    } else {
        // Nothing was labelled out of scope: say so with a probability that never alarms.
        OutOfScope { weights: [0.0; 3], bias: -10.0 }
    }
}

/// How many are right, as a share of how many.
pub(super) fn share(right: &[bool]) -> (f64, usize) {
    (right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64, right.len())
}
