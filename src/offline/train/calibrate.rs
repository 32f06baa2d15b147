//! Making probabilities honest, on rows used for nothing else.

use ndarray::{Array2, ArrayView2};

use crate::heads::{OutOfScope, TierScale, sigmoid, softmax};

/// The temperature that minimises the negative log-likelihood of `labels` (indices) under `[rows, labels]` logits.
pub fn fit_temperature(logits: ArrayView2<'_, f32>, targets: &Array2<f32>) -> f32 {
    let loss = |log_temperature: f64| {
        let temperature = log_temperature.exp() as f32;
        logits
            .outer_iter()
            .zip(targets.outer_iter())
            .map(|(row, target)| {
                let probabilities = softmax(row, temperature);
                let loss: f32 = probabilities.iter().zip(target).map(|(p, t)| -t * p.max(1e-9).ln()).sum();
                f64::from(loss)
            })
            .sum::<f64>()
    };
    minimise(loss, -2.0, 3.0).exp() as f32
}

/// Cuts and slope that minimise the negative log-likelihood of the tiers at fixed latent difficulties.
pub fn fit_tier_scale(z: &[f32], tiers: &[usize], start: TierScale) -> TierScale {
    let loss = |scale: TierScale| {
        z.iter().zip(tiers).map(|(z, tier)| f64::from(-scale.probabilities(*z)[*tier].max(1e-6).ln())).sum::<f64>()
    };
    let mut scale = start;
    // Coordinate descent: three parameters, smooth and nearly separable.
    for _ in 0..20 {
        let low = minimise(
            |low| loss(with_cuts(scale, low as f32, scale.cuts[1])),
            f64::from(scale.cuts[1]) - 8.0,
            f64::from(scale.cuts[1]),
        );
        scale = with_cuts(scale, low as f32, scale.cuts[1]);
        let high = minimise(
            |high| loss(with_cuts(scale, scale.cuts[0], high as f32)),
            f64::from(scale.cuts[0]),
            f64::from(scale.cuts[0]) + 8.0,
        );
        scale = with_cuts(scale, scale.cuts[0], high as f32);
        let slope = minimise(|log| loss(TierScale { slope: log.exp() as f32, ..scale }), -3.0, 3.0);
        scale.slope = slope.exp() as f32;
    }
    scale
}

/// Logistic regression of "out of scope" on the familiarity signs, with a small ridge.
pub fn fit_out_of_scope(signs: &[[f32; 3]], out: &[bool]) -> OutOfScope {
    let n = signs.len() as f32;
    let mut model = OutOfScope { weights: [0.0; 3], bias: 0.0 };
    for _ in 0..4_000 {
        let mut gradient = [0.0_f32; 4];
        for (sign, out) in signs.iter().zip(out) {
            let error = model.probability(*sign) - f32::from(u8::from(*out));
            for (g, value) in gradient.iter_mut().zip(sign.iter().chain(&[1.0])) {
                *g += error * value / n;
            }
        }
        for (weight, g) in model.weights.iter_mut().zip(gradient) {
            *weight -= 2.0 * (g + 1e-4 * *weight);
        }
        model.bias -= 2.0 * gradient[3];
    }
    model
}

/// P(tier) for rows at latent difficulties `z`.
pub fn tier_probabilities(scale: TierScale, z: &[f32]) -> Vec<Vec<f32>> {
    z.iter().map(|z| scale.probabilities(*z).to_vec()).collect()
}

/// Difficulty in 0..1 at latent difficulty `z`.
pub fn difficulty(z: f32) -> f32 {
    sigmoid(z)
}

fn with_cuts(scale: TierScale, low: f32, high: f32) -> TierScale {
    TierScale { cuts: [low, high.max(low)], ..scale }
}

/// Golden-section search for the minimum of a unimodal function.
fn minimise(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
    for _ in 0..40 {
        let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
        if f(a) < f(b) { high = b } else { low = a }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn temperature_undoes_overconfidence() {
        let mut rng = StdRng::seed_from_u64(5);
        let honest = Array2::from_shape_fn((4_000, 3), |_| rng.random_range(-2.0_f32..2.0));
        let mut targets = Array2::zeros((4_000, 3));
        for (row, logits) in honest.outer_iter().enumerate() {
            let (p, mut draw, mut label) = (softmax(logits, 1.0), rng.random::<f32>(), 0);
            while label < 2 && draw > p[label] {
                draw -= p[label];
                label += 1;
            }
            targets[(row, label)] = 1.0;
        }
        let temperature = fit_temperature((honest * 3.0).view(), &targets);
        assert!((temperature - 3.0).abs() < 0.3, "{temperature}");
    }

    #[test]
    fn tier_scale_is_recovered() {
        let truth = TierScale { cuts: [-0.5, 1.0], slope: 2.0 };
        let mut rng = StdRng::seed_from_u64(5);
        let z: Vec<f32> = (0..6_000).map(|_| rng.random_range(-3.0..3.0)).collect();
        let tiers: Vec<usize> = z
            .iter()
            .map(|z| {
                let (p, draw) = (truth.probabilities(*z), rng.random::<f32>());
                if draw < p[0] {
                    0
                } else if draw < p[0] + p[1] {
                    1
                } else {
                    2
                }
            })
            .collect();
        let fitted = fit_tier_scale(&z, &tiers, TierScale { cuts: [0.0, 0.5], slope: 1.0 });
        assert!((fitted.cuts[0] + 0.5).abs() < 0.15 && (fitted.cuts[1] - 1.0).abs() < 0.15, "{fitted:?}");
        assert!((fitted.slope - 2.0).abs() < 0.3, "{fitted:?}");
    }

    #[test]
    fn out_of_scope_separates() {
        let signs: Vec<[f32; 3]> = (0..200).map(|i| [if i % 2 == 0 { 0.9 } else { 0.3 }, 0.5, 0.5]).collect();
        let out: Vec<bool> = (0..200).map(|i| i % 2 == 1).collect();
        let model = fit_out_of_scope(&signs, &out);
        assert!(model.probability([0.9, 0.5, 0.5]) < 0.1 && model.probability([0.3, 0.5, 0.5]) > 0.9);
    }
}
