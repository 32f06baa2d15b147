//! From logits to honest probabilities: which map to serve is decided by cross-validation on the calibration rows.
//!
//! Temperature and vector scaling (Guo et al. 2017, arXiv 1706.04599) are linear in the logits, so the chosen one is
//! folded into the head and costs nothing. Isotonic regression (Zadrozny and Elkan 2002) is measured beside them.

use ndarray::{Array1, Array2, Axis};
use serde::Serialize;

use super::calibrate::fit_temperature;
use crate::heads::softmax;
use crate::offline::metrics::calibration::{N_BINS, expected_calibration_error, reliability};

/// `logits · scale + bias`, by label.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaling {
    pub(super) scale: Array1<f32>,
    pub(super) bias: Array1<f32>,
}

/// How a map did on rows that it was not fitted on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// `none`, `temperature`, `vector` or `isotonic`.
    pub method: &'static str,
    /// Mean negative log-likelihood.
    pub log_loss: f64,
    /// Expected calibration error of the largest probability.
    pub calibration_error: f64,
}

/// Folds of the comparison.
const N_FOLDS: usize = 5;
/// Steps of vector scaling's descent; it moves little from a good start.
const N_STEPS: usize = 300;
const STEP: f32 = 0.03;
/// Pull of vector scaling towards the temperature that it starts from, in rows: rare labels keep to it.
const PULL: f32 = 10.0;

// === impl Scaling ===

impl Scaling {
    fn temperature(temperature: f32, n_labels: usize) -> Self {
        Self { scale: Array1::from_elem(n_labels, 1.0 / temperature), bias: Array1::zeros(n_labels) }
    }

    pub(super) fn apply(&self, logits: &Array2<f32>) -> Array2<f32> {
        logits * &self.scale + &self.bias
    }

    fn fit_temperature(logits: &Array2<f32>, targets: &Array2<f32>) -> Self {
        Self::temperature(fit_temperature(logits.view(), targets), logits.ncols())
    }

    /// Descent on the log-loss from the best temperature, with Adam's steps.
    fn fit_vector(logits: &Array2<f32>, targets: &Array2<f32>) -> Self {
        let start = Self::fit_temperature(logits, targets);
        let mut fitted = start.clone();
        let n_labels = logits.ncols();
        let mut moments = [Array1::<f32>::zeros(2 * n_labels), Array1::<f32>::zeros(2 * n_labels)];
        for step in 1..=N_STEPS {
            let errors = probabilities(&fitted.apply(logits)) - targets;
            let pull = PULL / logits.nrows() as f32;
            let for_scale = (&errors * logits).mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(n_labels))
                + (&fitted.scale - &start.scale) * pull;
            let for_bias = errors.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(n_labels)) + &fitted.bias * pull;
            let rate = STEP * (1.0 - step as f32 / N_STEPS as f32);
            for (index, gradient) in for_scale.iter().chain(&for_bias).enumerate() {
                let [first, second] = moments.each_mut().map(|moments| &mut moments[index]);
                *first = 0.9 * *first + 0.1 * gradient;
                *second = 0.99 * *second + 0.01 * gradient * gradient;
                let (first, second) =
                    (*first / (1.0 - 0.9_f32.powi(step as i32)), *second / (1.0 - 0.99_f32.powi(step as i32)));
                let change = rate * first / (second.sqrt() + 1e-8);
                if index < n_labels {
                    fitted.scale[index] -= change;
                } else {
                    fitted.bias[index - n_labels] -= change;
                }
            }
        }
        fitted
    }
}

/// The map with the lowest log-loss on rows that it was not fitted on, its name, and how each did.
pub(super) fn choose(logits: &Array2<f32>, targets: &Array2<f32>) -> (Scaling, &'static str, Vec<Candidate>) {
    let none = |_: &Array2<f32>, _: &Array2<f32>| Scaling::temperature(1.0, logits.ncols());
    let linear = |fit: &dyn Fn(&Array2<f32>, &Array2<f32>) -> Scaling| {
        cross_validated(logits, targets, |seen, targets, held_out| probabilities(&fit(seen, targets).apply(held_out)))
    };
    let isotonic = cross_validated(logits, targets, |seen, targets, held_out| {
        let scaling = Scaling::fit_temperature(seen, targets);
        isotonic(&probabilities(&scaling.apply(seen)), targets, probabilities(&scaling.apply(held_out)))
    });
    let measured = [
        ("none", linear(&none)),
        ("temperature", linear(&Scaling::fit_temperature)),
        ("vector", linear(&Scaling::fit_vector)),
        ("isotonic", isotonic),
    ];
    let candidates: Vec<Candidate> =
        measured.iter().map(|(method, held_out)| figures(method, held_out, targets)).collect();
    let (scaling, method) = if candidates[2].log_loss < candidates[1].log_loss {
        (Scaling::fit_vector(logits, targets), "vector")
    } else {
        (Scaling::fit_temperature(logits, targets), "temperature")
    };
    (scaling, method, candidates)
}

/// Probabilities of every row by `predict(rows seen, their targets, rows held out)` of the other folds.
fn cross_validated(
    logits: &Array2<f32>,
    targets: &Array2<f32>,
    predict: impl Fn(&Array2<f32>, &Array2<f32>, &Array2<f32>) -> Array2<f32>,
) -> Array2<f32> {
    let mut result = Array2::zeros(logits.dim());
    for fold in 0..N_FOLDS {
        let (held_out, seen): (Vec<usize>, Vec<usize>) = (0..logits.nrows()).partition(|row| row % N_FOLDS == fold);
        let rows = |values: &Array2<f32>, rows: &[usize]| values.select(Axis(0), rows);
        let predicted = predict(&rows(logits, &seen), &rows(targets, &seen), &rows(logits, &held_out));
        for (row, predicted) in held_out.into_iter().zip(predicted.outer_iter()) {
            result.row_mut(row).assign(&predicted);
        }
    }
    result
}

fn figures(method: &'static str, probabilities: &Array2<f32>, targets: &Array2<f32>) -> Candidate {
    let losses = probabilities.iter().zip(targets).map(|(p, t)| f64::from(-t * p.max(1e-6).ln()));
    let top = probabilities.outer_iter().zip(targets.outer_iter()).map(|(p, t)| {
        let best = super::corpus::argmax(p.iter().copied());
        (f64::from(p[best]), best == super::corpus::argmax(t.iter().copied()))
    });
    Candidate {
        method,
        log_loss: losses.sum::<f64>() / probabilities.nrows().max(1) as f64,
        calibration_error: expected_calibration_error(&reliability(&top.collect::<Vec<_>>(), N_BINS))
            .unwrap_or_default(),
    }
}

fn probabilities(logits: &Array2<f32>) -> Array2<f32> {
    let mut result = Array2::zeros(logits.dim());
    for (mut row, logits) in result.outer_iter_mut().zip(logits.outer_iter()) {
        row.assign(&Array1::from(softmax(logits, 1.0)));
    }
    result
}

/// `held_out` mapped, label by label, by the rising step function that fits what was `seen`; rows brought back to sum 1.
fn isotonic(seen: &Array2<f32>, targets: &Array2<f32>, mut held_out: Array2<f32>) -> Array2<f32> {
    for label in 0..seen.ncols() {
        let mut points: Vec<(f32, f32)> =
            seen.column(label).iter().copied().zip(targets.column(label).iter().copied()).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Pool adjacent violators: blocks of (least score, sum of targets, rows), their means rising.
        let mut blocks: Vec<(f32, f32, f32)> = Vec::new();
        for (score, target) in points {
            blocks.push((score, target, 1.0));
            while let [.., (_, sum_a, n_a), (_, sum_b, n_b)] = blocks[..]
                && sum_a * n_b >= sum_b * n_a
            {
                blocks.pop();
                if let Some(last) = blocks.last_mut() {
                    (last.1, last.2) = (sum_a + sum_b, n_a + n_b);
                }
            }
        }
        for p in held_out.column_mut(label) {
            let at = blocks.partition_point(|(score, ..)| score <= p).saturating_sub(1);
            // Half a row of doubt at both ends, so that nothing is impossible.
            *p = blocks.get(at).map_or(*p, |(_, sum, n)| (sum + 0.5 / seen.ncols() as f32) / (n + 0.5));
        }
    }
    for mut row in held_out.outer_iter_mut() {
        let sum = row.sum().max(1e-9);
        row /= sum;
    }
    held_out
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// Rows whose labels are drawn from the softmax of `honest`, which `distort` then makes a liar.
    fn rows(n: usize, distort: impl Fn(&mut Array2<f32>)) -> (Array2<f32>, Array2<f32>) {
        let mut rng = StdRng::seed_from_u64(7);
        let mut logits = Array2::from_shape_fn((n, 3), |_| rng.random_range(-2.0_f32..2.0));
        let honest = probabilities(&logits);
        let mut targets = Array2::zeros((n, 3));
        for (mut target, p) in targets.outer_iter_mut().zip(honest.outer_iter()) {
            let draw = rng.random::<f32>();
            let label = if draw < p[0] {
                0
            } else if draw < p[0] + p[1] {
                1
            } else {
                2
            };
            target[label] = 1.0;
        }
        distort(&mut logits);
        (logits, targets)
    }

    #[test]
    fn one_label_that_lies_is_mended_by_a_vector_only() {
        let (logits, targets) = rows(2_000, |logits| logits.column_mut(1).mapv_inplace(|x| 2.0 * x + 1.5));
        let (scaling, method, candidates) = choose(&logits, &targets);
        assert_eq!(method, "vector", "{candidates:?}");
        assert!((scaling.scale[1] / scaling.scale[0] - 0.5).abs() < 0.1, "{scaling:?}");
        assert!(candidates[2].calibration_error < 0.04 && candidates[0].calibration_error > 0.1, "{candidates:?}");
        assert!(candidates[3].log_loss < candidates[0].log_loss, "isotonic mends it as well: {candidates:?}");
    }

    #[test]
    fn few_rows_keep_to_a_temperature() {
        let (logits, targets) = rows(60, |logits| logits.mapv_inplace(|x| 3.0 * x));
        let (scaling, _, candidates) = choose(&logits, &targets);
        assert!(candidates[1].log_loss < candidates[0].log_loss, "{candidates:?}");
        assert!(scaling.scale.iter().all(|scale| (0.15..0.6).contains(scale)), "{scaling:?}");
    }
}
