//! A classifier's difficulty held against outcomes, and moved where held-out outcomes say that it should be.
//!
//! The map is a straight line through latent difficulties, fitted together with the models' abilities:
//! P(a good answer) = sigmoid(ability - (mean + shift + scale * (z - mean))). Two numbers need few rows and cannot change
//! which of two queries is harder. Tiers, which are about what people call hard, stay as they are. What all models have in
//! common is laid to the queries, what a single one has to its ability: so a shift is believed only where two models or
//! more, whose abilities the policy knows, agree on it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::array;
use serde::Serialize;

use super::gain::latent;
use super::metrics::calibration::N_BINS;
use super::metrics::{Bootstrap, Estimate, ReliabilityBin, expected_calibration_error, mean, reliability};
use super::train::{TrainError, write_classifier};
use crate::artifact::{Artifact, CalibrationBin, CalibrationFigures, ClassifierManifest};
use crate::classifier::HEADS;
use crate::decisions::{DecisionRecord, Lines, SignalsRecord};
use crate::domain::Probability;
use crate::encoder::CHANGES;
use crate::heads::HeadWeights;

/// An answer of a first attempt, in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The model, as the policy names it.
    pub model: String,
    /// What the policy says of its ability.
    pub ability: Option<f64>,
    /// The classifier's latent difficulty, in logits.
    pub difficulty: f64,
    /// 0: useless, 1: as good as can be.
    pub score: f64,
}

/// What outcomes say of a classifier's difficulty.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recalibration {
    /// Answers that the line was fitted to: the earlier ones.
    pub fitted: usize,
    /// Answers that it is judged by: the later ones.
    pub held_out: usize,
    /// What difficulties are stretched by around their mean; 1: they are right.
    pub scale: Estimate,
    /// What they are raised by then, in logits; 0: they are right, or models do not agree.
    pub shift: Estimate,
    /// Whether models agree on the shift.
    pub agreed: bool,
    /// P(success) of held-out answers as it is told today.
    pub before: Honesty,
    /// The same with the line and the abilities that go with it.
    pub after: Honesty,
    /// How much lower the Brier score is with it.
    pub brier_gain: Estimate,
    /// How much lower the expected calibration error is with it.
    pub calibration_gain: Estimate,
    /// Whether there is something to move, and moving it made held-out answers better foretold.
    pub better: bool,
    #[serde(skip)]
    line: Line,
}

/// How true probabilities came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Honesty {
    /// Mean squared distance from the scores.
    pub brier: f64,
    /// Expected calibration error.
    pub calibration_error: f64,
    /// The reliability diagram.
    pub bins: Vec<ReliabilityBin>,
}

/// The map of latent difficulties: `offset + scale * z`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    offset: f64,
    scale: f64,
}

/// A fit by itself: abilities less the offset, and the scale around the mean.
#[derive(Clone, Debug)]
struct Fit {
    abilities: Vec<f64>,
    scale: f64,
    /// Information on each ability.
    information: Vec<f64>,
}

/// One answer with its model by position.
#[derive(Clone, Copy, Debug)]
struct Row {
    model: usize,
    z: f64,
    score: f64,
}

/// Answers below this many, fitted to or held out, say too little.
const FEW: usize = 100;
/// A model below this many has no word on the shift.
const FEW_OF_MODEL: usize = 30;
/// The part of the answers, the earliest ones, that is fitted to.
const FITTED_SHARE: f64 = 0.7;
/// Of abilities, as where they are fitted by themselves.
const PRIOR_PRECISION: f64 = 0.25;
/// Models that know each other's abilities to less than this agree, in logits.
const TOLERANCE: f64 = 0.25;
/// A line that is off by less is left alone.
const LEAST_MOVE: f64 = 0.02;
/// A scale below this says that difficulty tells nothing; there is no line then.
const LEAST_SCALE: f64 = 0.05;
const Z_95: f64 = 1.96;

// === impl Recalibration ===

impl Recalibration {
    /// What `answers`, in the order of time, say; `None`: too few, or they do not tell.
    pub fn of(answers: &[Answer], bootstrap: &Bootstrap) -> Option<Self> {
        let names: BTreeMap<&str, Option<f64>> =
            answers.iter().map(|answer| (answer.model.as_str(), answer.ability)).collect();
        let known: Vec<Option<f64>> = names.values().copied().collect();
        let position = |model: &str| names.keys().position(|name| *name == model);
        let rows: Vec<Row> = answers
            .iter()
            .filter_map(|answer| {
                Some(Row { model: position(&answer.model)?, z: answer.difficulty, score: answer.score })
            })
            .collect();
        let (early, late) = rows.split_at((rows.len() as f64 * FITTED_SHARE) as usize);
        if early.len() < FEW || late.len() < FEW {
            return None;
        }
        let middle = mean(early.iter().map(|row| row.z))?;
        let all: Vec<usize> = (0..early.len()).collect();
        let fit = Fit::of(early, &all, middle, Fit::start(known.len()), 50)?;
        let counts = counts(early, known.len());
        let agreed = fit.shift(&known, &counts, middle).filter(|shift| fit.agrees(*shift, &known, &counts, middle));
        let [scale, shift] = bootstrap.estimates(early.len(), |drawn| {
            let refit = Fit::of(early, drawn, middle, fit.clone(), 8);
            let shift = refit.as_ref().map(|refit| refit.shift(&known, &counts, middle).unwrap_or_default());
            [refit.map(|refit| refit.scale), shift.map(|shift| if agreed.is_some() { shift } else { 0.0 })]
        });
        let (scale, shift) = (scale?, shift?);
        let line = Line { offset: middle + shift.value - scale.value * middle, scale: scale.value };
        // Held-out answers of models that were never seen before say nothing of the line.
        let late: Vec<Row> = late.iter().copied().filter(|row| counts.get(row.model).is_some_and(|n| *n > 0)).collect();
        let alone = Fit::abilities_alone(early, known.len());
        let foretold = late.iter().filter_map(|row| {
            let today = known.get(row.model)?.or_else(|| alone.get(row.model).copied())?;
            let ability = fit.abilities.get(row.model)? + middle + shift.value;
            Some([sigmoid(today - row.z), sigmoid(ability - line.at(row.z)), row.score])
        });
        let foretold: Vec<[f64; 3]> = foretold.collect();
        let (before, after) = (Honesty::of(&foretold, 0)?, Honesty::of(&foretold, 1)?);
        let [brier_gain, calibration_gain] = bootstrap.estimates(foretold.len(), |drawn| {
            let chosen: Vec<[f64; 3]> = drawn.iter().filter_map(|row| foretold.get(*row).copied()).collect();
            let gain = |ask: fn(&Honesty) -> f64| Some(ask(&Honesty::of(&chosen, 0)?) - ask(&Honesty::of(&chosen, 1)?));
            [gain(|honesty| honesty.brier), gain(|honesty| honesty.calibration_error)]
        });
        let (brier_gain, calibration_gain) = (brier_gain?, calibration_gain?);
        let moves = is_off(scale, 1.0) || is_off(shift, 0.0);
        Some(Self {
            fitted: early.len(),
            held_out: foretold.len(),
            agreed: agreed.is_some(),
            better: moves && brier_gain.low > 0.0,
            scale,
            shift,
            before,
            after,
            brier_gain,
            calibration_gain,
            line,
        })
    }

    /// The log as it would be with the line, where a decision was made by the classifier of `manifest_sha256`.
    pub fn applied(&self, log: &Lines, manifest_sha256: &str) -> Lines {
        let records = log.records.iter().map(|record| match &record.signals {
            Some(signals) if is_of(log, record, manifest_sha256) => {
                let z = self.line.at(latent(signals.difficulty));
                let difficulty = Probability::saturating(sigmoid(z));
                let signals = Some(SignalsRecord { difficulty, ..signals.clone() });
                Arc::new(DecisionRecord { signals, ..(**record).clone() })
            }
            _ => Arc::clone(record),
        });
        Lines { records: records.collect(), ..log.clone() }
    }

    /// Writes `classifier` with the line in its difficulty head to `out`.
    ///
    /// What held-out outcomes say of P(success) goes into its manifest.
    ///
    /// # Errors
    /// When the classifier's files cannot be used, or nothing can be written there.
    pub fn write(
        &self,
        classifier: &Artifact<ClassifierManifest>,
        out: &Path,
        command: &str,
    ) -> Result<(), TrainError> {
        let mut weights = HeadWeights::from_bytes(classifier.file(HEADS)?)?;
        weights.difficulty.rescale(&array![self.line.scale as f32], &array![self.line.offset as f32]);
        let mut manifest = classifier.manifest.clone();
        if let Some(name) = out.file_name() {
            manifest.name = name.to_string_lossy().into_owned();
        }
        manifest.version = format!("{}+outcomes", manifest.version);
        manifest.training.command = format!("{}; {command}", manifest.training.command);
        manifest.calibration.insert("success".to_owned(), self.after.figures(self.held_out));
        // Kept anew when it is sealed.
        manifest.trial.clear();
        let heads = weights.to_bytes()?;
        let tuned = manifest.files.contains_key(CHANGES);
        let changes = if tuned { Some((CHANGES, classifier.file(CHANGES)?)) } else { None };
        let files: Vec<(&str, &[u8])> = [(HEADS, heads.as_slice())].into_iter().chain(changes).collect();
        write_classifier(out, manifest, &files)
    }
}

/// Whether a decision was made by the classifier of that manifest.
pub fn is_of(log: &Lines, record: &DecisionRecord, manifest_sha256: &str) -> bool {
    log.contexts.get(&record.context).is_some_and(|context| *context.classifier_sha256 == *manifest_sha256)
}

// === impl Honesty ===

impl Honesty {
    /// Of probabilities at position `told` of `[one, other, score]`; `None` without any.
    fn of(foretold: &[[f64; 3]], told: usize) -> Option<Self> {
        let pairs = foretold.iter().filter_map(|row| Some((*row.get(told)?, row[2])));
        let brier = mean(pairs.clone().map(|(p, score)| (p - score) * (p - score)))?;
        let bins = reliability(&pairs.map(|(p, score)| (p, score >= 0.5)).collect::<Vec<_>>(), N_BINS);
        Some(Self { brier, calibration_error: expected_calibration_error(&bins)?, bins })
    }

    /// As a manifest tells it.
    fn figures(&self, rows: usize) -> CalibrationFigures {
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        let bins = self.bins.iter().filter(|bin| bin.n > 0).map(|bin| CalibrationBin {
            confidence: rounded(bin.mean_confidence),
            accuracy: rounded(bin.accuracy),
            rows: bin.n as u64,
        });
        CalibrationFigures {
            method: "logistic on outcomes".to_owned(),
            expected_calibration_error: rounded(self.calibration_error),
            brier_score: rounded(self.brier),
            rows: rows as u64,
            bins: bins.collect(),
            by_label: BTreeMap::new(),
            by_length: BTreeMap::new(),
        }
    }
}

// === impl Line ===

impl Line {
    fn at(self, z: f64) -> f64 {
        self.offset + self.scale * z
    }
}

// === impl Fit ===

impl Fit {
    fn start(n_models: usize) -> Self {
        Self { abilities: vec![0.0; n_models], scale: 1.0, information: vec![0.0; n_models] }
    }

    /// The most probable abilities and scale for the `drawn` ones of `rows`, by Newton's method from `start`; `None`: it
    /// does not settle, or harder queries are answered as well as easy ones.
    fn of(rows: &[Row], drawn: &[usize], middle: f64, start: Self, most_steps: usize) -> Option<Self> {
        let mut fit = start;
        for _ in 0..most_steps {
            // The Hessian is diagonal but for the scale's row and column.
            let n = fit.abilities.len();
            let mut slopes: Vec<f64> = fit.abilities.iter().map(|ability| -ability * PRIOR_PRECISION).collect();
            let (mut own, mut mixed) = (vec![PRIOR_PRECISION; n], vec![0.0; n]);
            let (mut slope, mut curve) = (-1e-3 * (fit.scale - 1.0), 1e-3);
            for row in drawn.iter().filter_map(|row| rows.get(*row)) {
                let x = row.z - middle;
                let p = sigmoid(fit.abilities.get(row.model)? - fit.scale * x);
                let (error, weight) = (row.score - p, p * (1.0 - p));
                *slopes.get_mut(row.model)? += error;
                *own.get_mut(row.model)? += weight;
                *mixed.get_mut(row.model)? -= weight * x;
                slope -= error * x;
                curve += weight * x * x;
            }
            let of_models = slopes.iter().zip(&own).zip(&mixed);
            let (up, down) = of_models.clone().fold((slope, curve), |(up, down), ((slope, own), mixed)| {
                (up - mixed * slope / own, down - mixed * mixed / own)
            });
            // Neither can be far off at once; a step too far would not come back.
            let step = if down > 1e-9 { (up / down).clamp(-1.0, 1.0) } else { return None };
            let mut longest = step.abs();
            for (ability, ((slope, own), mixed)) in fit.abilities.iter_mut().zip(of_models) {
                let step = ((slope - mixed * step) / own).clamp(-2.0, 2.0);
                longest = longest.max(step.abs());
                *ability += step;
            }
            fit.scale += step;
            fit.information = own;
            if longest < 1e-7 {
                break;
            }
        }
        (fit.scale >= LEAST_SCALE && fit.abilities.iter().all(|ability| ability.is_finite())).then_some(fit)
    }

    /// Abilities where difficulties are taken as they are.
    fn abilities_alone(rows: &[Row], n_models: usize) -> Vec<f64> {
        let of = |model: usize| {
            let answers = rows.iter().filter(|row| row.model == model);
            let answers = answers.map(|row| super::ability::GradedAnswer { difficulty: row.z, score: row.score });
            super::ability::fit(&answers.collect::<Vec<_>>()).ability
        };
        (0..n_models).map(of).collect()
    }

    /// How much harder queries are than told, if the abilities of `known` models are what they are said to be on the
    /// whole; `None`: fewer than two are known.
    fn shift(&self, known: &[Option<f64>], counts: &[usize], middle: f64) -> Option<f64> {
        let said = self.said(known, counts, middle);
        let weight: f64 = said.iter().map(|(_, n, _)| n).sum();
        (said.len() >= 2).then(|| said.iter().map(|(shift, n, _)| shift * n).sum::<f64>() / weight)
    }

    /// Whether every known model says the same of it, as far as its answers tell.
    fn agrees(&self, shift: f64, known: &[Option<f64>], counts: &[usize], middle: f64) -> bool {
        let said = self.said(known, counts, middle);
        said.iter().all(|(own, _, information)| (own - shift).abs() <= Z_95 / information.sqrt() + TOLERANCE)
    }

    /// The shift that each known model says, its answers, and the information in them.
    fn said(&self, known: &[Option<f64>], counts: &[usize], middle: f64) -> Vec<(f64, f64, f64)> {
        let models = self.abilities.iter().zip(&self.information).zip(known).zip(counts);
        models
            .filter_map(|(((fitted, information), known), n)| {
                let shift = (*known)? - fitted - middle;
                (*n >= FEW_OF_MODEL).then_some((shift, *n as f64, *information))
            })
            .collect()
    }
}

/// Whether a figure is clearly off, and by more than nobody would notice.
fn is_off(figure: Estimate, right: f64) -> bool {
    figure.differs_from(right) && (figure.value - right).abs() > LEAST_MOVE
}

fn counts(rows: &[Row], n_models: usize) -> Vec<usize> {
    (0..n_models).map(|model| rows.iter().filter(|row| row.model == model).count()).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const ABILITIES: [(&str, f64); 3] = [("little", -0.4), ("middle", 0.9), ("big", 2.2)];

    /// Answers to `n` queries whose difficulty the classifier tells as `told(true one)`. Harder ones mostly go to better
    /// models. `policy` is what the policy says of abilities.
    fn answers(n: usize, seed: u64, told: impl Fn(f64) -> f64, policy: impl Fn(usize) -> Option<f64>) -> Vec<Answer> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..n)
            .map(|_| {
                let truth: f64 = rng.random_range(-2.5..3.0);
                let model = f64::midpoint(truth, rng.random_range(-2.0..3.5)).clamp(0.0, 2.0) as usize;
                let (name, ability) = ABILITIES[model];
                let good = rng.random::<f64>() < sigmoid(ability - truth);
                Answer {
                    model: name.to_owned(),
                    ability: policy(model),
                    difficulty: told(truth),
                    score: f64::from(u8::from(good)),
                }
            })
            .collect()
    }

    fn known(model: usize) -> Option<f64> {
        ABILITIES.get(model).map(|(_, ability)| *ability)
    }

    fn quick() -> Bootstrap {
        Bootstrap { n_draws: 100, ..Bootstrap::default() }
    }

    #[test]
    fn a_known_distortion_is_undone() {
        // Half as far apart as they are, and all taken for 0.7 logits easier.
        let distort = |truth: f64| truth * 0.5 - 0.7;
        let found = Recalibration::of(&answers(6_000, 1, distort, known), &quick()).unwrap();
        assert!(found.better && found.agreed, "{found:?}");
        assert!((found.scale.value - 2.0).abs() < 0.2 && !found.scale.differs_from(2.0), "{found:?}");
        for truth in [-2.0, -1.0, 0.0, 1.0, 2.0] {
            let undone = found.line.at(distort(truth));
            assert!((undone - truth).abs() < 0.25, "{truth} became {undone}: {found:?}");
        }
        assert!(found.brier_gain.low > 0.005 && found.after.calibration_error < 0.05, "{found:?}");
        assert!(found.before.calibration_error > 2.0 * found.after.calibration_error, "{found:?}");
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let moved = (0..20).filter(|seed| {
            let found = Recalibration::of(&answers(1_500, 100 + seed, |truth| truth, known), &quick()).unwrap();
            assert!((found.scale.value - 1.0).abs() < 0.4 && found.shift.value.abs() < 0.4, "{found:?}");
            found.better
        });
        assert!(moved.count() <= 1, "an honest classifier is moved by chance alone");
    }

    #[test]
    fn abilities_that_are_wrong_each_in_its_own_way_are_no_fault_of_the_difficulty() {
        let sloppy = |model: usize| Some(ABILITIES[model].1 + [1.4, 0.1, -0.9][model]);
        let found = Recalibration::of(&answers(6_000, 2, |truth| truth, sloppy), &quick()).unwrap();
        assert!(!found.agreed && found.shift == Estimate::exact(0.0), "{found:?}");
        assert!(!found.better, "{found:?}");
        // All of them wrong alike is: who could tell?
        let alike = |model: usize| Some(ABILITIES[model].1 + 0.8);
        let found = Recalibration::of(&answers(6_000, 2, |truth| truth, alike), &quick()).unwrap();
        assert!(found.agreed && (found.shift.value - 0.8).abs() < 0.15, "{found:?}");
        // One model cannot be held against another; what is stretched stays around its mean.
        let only = |model: usize| (model == 1).then_some(3.0);
        let found = Recalibration::of(&answers(6_000, 2, |truth| 0.5 * truth, only), &quick()).unwrap();
        assert!(!found.agreed && found.scale.low > 1.5, "{found:?}");
        let middle = -found.line.offset / (found.line.scale - 1.0);
        assert!((middle - 0.125).abs() < 0.1, "the mean of what was told stays: {middle}");
    }

    #[test]
    fn what_tells_nothing_moves_nothing() {
        assert_eq!(Recalibration::of(&answers(200, 3, |truth| truth, known), &quick()), None, "60 are held out");
        let noise = answers(4_000, 4, |_| 0.3, known);
        let found = Recalibration::of(&noise, &quick());
        assert!(found.is_none_or(|found| !found.better), "one difficulty for all has no scale");
        let backwards = Recalibration::of(&answers(4_000, 5, |truth| -truth, known), &quick());
        assert_eq!(backwards, None, "harder queries that are answered better make no line");
    }
}
