//! The difficulty and complexity heads: fitted on models' answers and on judged tiers, calibrated, measured.
//!
//! They are two numbers because they are two things. With one for both, difficulty ordered the failures on sources that
//! were left out of training no better than by chance, or worse (models/README.md).

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, Axis};

use super::corpus::{Corpus, argmax};
use super::figures::{Prediction, calibration_figures};
use super::intent::share;
use super::objective::DifficultyData;
use super::recipe::{HeadRecipe, Recipe};
use super::{TrainError, TrainOptions, TrainReport, calibrate, fit, irt};
use crate::artifact::CalibrationFigures;
use crate::domain::Tier;
use crate::encoder::Tuning;
use crate::heads::{Mlp, TierScale};
use crate::offline::dataset::Row;
use crate::offline::evaluate::models::canonical_name;
use crate::offline::metrics::{
    calibration::{N_BINS, expected_calibration_error, reliability},
    ranking::auroc,
};
use crate::offline::split::Split;

/// Fitted difficulty and complexity heads, or those taken over from the base classifier.
pub(super) struct DifficultyHead {
    pub(super) difficulty: Mlp,
    pub(super) complexity: Mlp,
    pub(super) scale: TierScale,
    pub(super) figures: Option<CalibrationFigures>,
}

/// Abilities of all models on one scale, from training rows alone, so that held-out answers stay unseen.
pub(super) fn ability_scale(corpus: &Corpus) -> irt::Scale {
    let rows = corpus.indices(Split::Train, |_| true);
    irt::fit(&rows.iter().map(|row| &corpus.rows[*row]).collect::<Vec<_>>())
}

/// Fits and calibrates the difficulty and complexity heads, and measures them on the test split.
pub(super) fn fit_difficulty(
    options: &TrainOptions,
    corpus: &Corpus,
    inputs: &Array2<f32>,
    scale: &irt::Scale,
    report: &mut TrainReport,
) -> Result<DifficultyHead, TrainError> {
    let recipe = &options.recipe;
    let judged = |row: usize| corpus.rows[row].tier.is_some();
    let fit_latent = |explains, head: &HeadRecipe, keep: &dyn Fn(usize) -> bool| -> Result<_, TrainError> {
        let data = |split| {
            let rows = corpus.indices(split, keep);
            (inputs.select(Axis(0), &rows), difficulty_data(recipe, corpus, &scale.abilities, &rows))
        };
        let (train, calibration) = (data(Split::Train), data(Split::Calibration));
        let (train, calibration) = ((&train.0, &train.1), (&calibration.0, &calibration.1));
        Ok(fit::fit_latent(train, calibration, explains, head, recipe.seed, &options.device)?)
    };
    let fit = |keep: &dyn Fn(usize) -> bool| -> Result<(Mlp, TierScale), TrainError> {
        let tiers = fit::Explains { answers: 0.0, tiers: 1.0 };
        let (network, tier_scale) = fit_latent(tiers, &recipe.complexity, &|row| judged(row) && keep(row))?;
        let rows = corpus.indices(Split::Calibration, |row| judged(row) && keep(row));
        if rows.is_empty() {
            return Ok((network, tier_scale));
        }
        let z = latent(&network, inputs, &rows);
        Ok((network, calibrate::fit_tier_scale(&z, &true_tiers(corpus, &rows), tier_scale)))
    };
    let has_answers = !corpus.indices(Split::Train, |row| !corpus.rows[row].outcomes.is_empty()).is_empty();
    let has_tiers = !corpus.indices(Split::Train, judged).is_empty();
    // Where there is one of the two only, it has to do for both.
    let answers = fit::Explains { answers: 1.0, tiers: recipe.difficulty.tier_weight };
    let difficulty = has_answers.then(|| fit_latent(answers, &recipe.difficulty, &|row| corpus.informs(row)));
    let complexity = has_tiers.then(|| fit(&|_| true));
    let (difficulty, (network, tier_scale)) = match (difficulty.transpose()?, complexity.transpose()?) {
        (Some((difficulty, _)), Some(complexity)) => (difficulty, complexity),
        (Some(both), None) | (None, Some(both)) => (both.0.clone(), both),
        (None, None) => {
            return Err(TrainError::Unusable("too few rows: no training row has answers or a tier".into()));
        }
    };
    let judged = corpus.indices(Split::Calibration, judged);
    let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for row in judged {
        by_source.entry(corpus.rows[row].source()).or_default().push(row);
    }
    let groups: Vec<_> =
        by_source.values().map(|rows| (latent(&network, inputs, rows), true_tiers(corpus, rows))).collect();
    report.tier_control = calibrate::fit_tier_control(tier_scale, &groups);
    // A tuned encoder has seen all rows; and a run that leaves something out is about that.
    let fair = recipe.encoder.tune == Tuning::Frozen && options.tuned_as.is_none() && recipe.leave_out.is_empty();
    report.tier_cross_fitted = if fair { cross_fit_tiers(corpus, inputs, &fit)? } else { None };

    let test = corpus.indices(Split::Test, |row| corpus.rows[row].tier.is_some());
    let predictions = tier_predictions(corpus, &network, tier_scale, inputs, &test);
    let figures = calibration_figures("ordinal logistic", &predictions);
    let right: Vec<bool> = predictions.iter().map(|prediction| prediction.top().1).collect();
    report.tier_accuracy = (!right.is_empty()).then(|| share(&right).0);
    report.difficulty_auroc = difficulty_auroc(corpus, &difficulty, inputs);
    report.abilities.clone_from(&scale.measured);
    Ok(DifficultyHead { difficulty, complexity: network, scale: tier_scale, figures })
}

/// Calibration error of the tier when every judged row is predicted by heads that never saw it, and how many rows.
///
/// The test split alone is small: at 400 rows even a perfect model shows an error near 0.05 by chance.
fn cross_fit_tiers(corpus: &Corpus, inputs: &Array2<f32>, fit: &FitOn<'_>) -> Result<Option<(f64, usize)>, TrainError> {
    let judged: Vec<usize> = (0..corpus.rows.len()).filter(|row| corpus.rows[*row].tier.is_some()).collect();
    let mut confidences = Vec::new();
    if !judged.is_empty() {
        for fold in 0..N_FOLDS {
            let in_fold = |row: usize| row % N_FOLDS == fold;
            let (network, scale) = fit(&|row| !(in_fold(row) && corpus.rows[row].tier.is_some()))?;
            let rows: Vec<usize> = judged.iter().copied().filter(|row| in_fold(*row)).collect();
            let predictions = tier_predictions(corpus, &network, scale, inputs, &rows);
            confidences.extend(predictions.iter().map(Prediction::top));
        }
    }
    Ok(expected_calibration_error(&reliability(&confidences, N_BINS)).map(|error| (error, confidences.len())))
}

/// Fits on the rows that a predicate keeps.
type FitOn<'a> = dyn Fn(&dyn Fn(usize) -> bool) -> Result<(Mlp, TierScale), TrainError> + 'a;

/// Folds of a cross-fit.
const N_FOLDS: usize = 5;

fn tier_predictions(
    corpus: &Corpus,
    network: &Mlp,
    scale: TierScale,
    inputs: &Array2<f32>,
    rows: &[usize],
) -> Vec<Prediction<'static>> {
    let truths = latent(network, inputs, rows).into_iter().zip(true_tiers(corpus, rows));
    truths
        .zip(rows)
        .map(|((z, truth), row)| {
            let probabilities = scale.probabilities(z).to_vec();
            let label = Tier::ALL[argmax(probabilities.iter().copied())].as_str();
            Prediction { probabilities, truth, label, words: corpus.prepared[*row].signals.words }
        })
        .collect()
}

fn latent(network: &Mlp, inputs: &Array2<f32>, rows: &[usize]) -> Vec<f32> {
    network.forward(inputs.select(Axis(0), rows).view()).column(0).to_vec()
}

fn true_tiers(corpus: &Corpus, rows: &[usize]) -> Vec<usize> {
    rows.iter().filter_map(|row| corpus.rows[*row].tier.map(Tier::index)).collect()
}

/// What the difficulty objective knows of the given rows; those without tier and answers weigh nothing.
pub(super) fn difficulty_data(
    recipe: &Recipe,
    corpus: &Corpus,
    abilities: &BTreeMap<String, f32>,
    rows: &[usize],
) -> DifficultyData {
    let n = rows.len();
    let models: BTreeMap<&str, usize> = abilities.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut data = DifficultyData {
        scores: Array2::zeros((n, models.len().max(1))),
        answered: Array2::zeros((n, models.len().max(1))),
        abilities: if models.is_empty() { Array1::zeros(1) } else { abilities.values().copied().collect() },
        above_cut: Array2::zeros((n, 2)),
        tier_weights: Array1::zeros(n),
        answer_weights: Array1::zeros(n),
        kin: rows.iter().map(|row| corpus.originals[*row]).collect(),
    };
    for (index, row) in rows.iter().map(|row| &corpus.rows[*row]).enumerate() {
        let weight = recipe.difficulty_weight(row);
        let answers: Vec<(usize, f32)> = row
            .outcomes
            .iter()
            .filter_map(|(name, score)| Some((*models.get(canonical_name(name).as_str())?, (*score)?)))
            .collect();
        for (model, score) in &answers {
            data.scores[(index, *model)] = score.clamp(0.0, 1.0);
            data.answered[(index, *model)] = 1.0 / answers.len() as f32;
        }
        if !answers.is_empty() {
            data.answer_weights[index] = weight;
        }
        if let Some(tier) = row.tier {
            data.above_cut[(index, 0)] = f32::from(u8::from(tier > Tier::Simple));
            data.above_cut[(index, 1)] = f32::from(u8::from(tier > Tier::Medium));
            data.tier_weights[index] = weight;
        }
    }
    data
}

/// By source: how well difficulty, and prompt length, order the reference model's failures on test rows.
fn difficulty_auroc(corpus: &Corpus, network: &Mlp, inputs: &Array2<f32>) -> BTreeMap<String, (f64, f64, usize)> {
    let mut by_source: BTreeMap<&str, Vec<(usize, bool)>> = BTreeMap::new();
    for row in corpus.indices(Split::Test, |row| !corpus.rows[row].outcomes.is_empty()) {
        if let Some(failed) = weak_failed(&corpus.rows[row]) {
            by_source.entry(corpus.rows[row].source()).or_default().push((row, failed));
        }
    }
    let all: Vec<(usize, bool)> = by_source.values().flatten().copied().collect();
    by_source
        .into_iter()
        .chain([("all", all)])
        .filter_map(|(source, rows)| {
            let (indices, failed): (Vec<usize>, Vec<bool>) = rows.into_iter().unzip();
            let z = network.forward(inputs.select(Axis(0), &indices).view()).column(0).mapv(f64::from).to_vec();
            let length: Vec<f64> = indices.iter().map(|row| corpus.bytes(*row)).collect();
            Some((source.to_owned(), (auroc(&z, &failed)?, auroc(&length, &failed)?, failed.len())))
        })
        .collect()
}

/// Models whose failure tells hard prompts from easy ones, weakest evidence last.
const WEAK_MODELS: [&str; 5] = [
    irt::REFERENCE_MODEL,
    "llama-3-1-8b-instruct",
    "llama-3-8b-instruct",
    "gpt-3-5-turbo-1106",
    "mistral-7b-instruct-v0-3",
];

/// Whether the first known weak model failed; `None` when none of them answered.
fn weak_failed(row: &Row) -> Option<bool> {
    WEAK_MODELS.iter().find_map(|weak| {
        row.outcomes
            .iter()
            .find_map(|(name, score)| if canonical_name(name) == *weak { score.map(|s| s < 0.5) } else { None })
    })
}
