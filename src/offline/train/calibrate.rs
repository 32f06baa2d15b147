//! Making probabilities honest, on rows used for nothing else.

use ndarray::{Array2, ArrayView2};

use crate::domain::{Tier, TierChoice, TierControl};
use crate::heads::{OutOfScope, TierScale, softmax};
use crate::offline::metrics::binomial::upper_bound;

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

/// Thresholds that keep a promised share of under-routed queries, whatever the tier probabilities are worth.
///
/// Risk control by an upper bound (Bates et al. 2021, arXiv 2101.02703): under-routing falls as the threshold on the
/// cumulative probability rises, so the smallest threshold at which the exact 95 % bound on its share of held-out rows is
/// within the allowance keeps the promise for rows like them, unless these were drawn with a luck of one in twenty.
/// `groups` are rows of different sources, latent difficulties with true tiers: the promise is kept for each of them,
/// because nobody knows which one a query will be like. Asked confidences too high for so few rows to show anything
/// have no point.
pub fn fit_tier_control(scale: TierScale, groups: &[(Vec<f32>, Vec<usize>)]) -> TierControl {
    let mut points = Vec::new();
    for percent in LEAST_ASKED..100 {
        let allowed = (100 - percent) as f64 / 100.0;
        let thresholds: Option<Vec<f64>> = groups.iter().map(|group| least_threshold(scale, group, allowed)).collect();
        let Some(thresholds) = thresholds else { break };
        let Some(highest) = thresholds.into_iter().reduce(f64::max) else { break };
        points.push([percent as f64 / 100.0, highest]);
    }
    // The points rise by construction, so nothing is refused.
    TierControl::try_from(points).unwrap_or_default()
}

/// The smallest threshold that is shown to under-route at most the allowed share of rows like these.
fn least_threshold(scale: TierScale, (z, tiers): &(Vec<f32>, Vec<usize>), allowed: f64) -> Option<f64> {
    // A row is under-routed while the threshold is at most the probability that the tier below the true one suffices.
    let mut limits: Vec<f64> = z
        .iter()
        .zip(tiers)
        .filter_map(|(z, tier)| Some((scale.probabilities(*z), *Tier::ALL.get(tier.checked_sub(1)?)?)))
        .map(|(probabilities, below)| TierChoice::fixed(below, probabilities).suffices.value())
        .collect();
    limits.sort_unstable_by(|a, b| b.total_cmp(a));
    let n = tiers.len();
    let shown = |hits: usize| upper_bound(hits, n) <= allowed;
    // The bound rises with the hits: halve the range in which it crosses the allowance.
    let (mut most, mut too_many) = (shown(0).then_some(0)?, n + 1);
    while too_many - most > 1 {
        let middle = usize::midpoint(most, too_many);
        if shown(middle) { most = middle } else { too_many = middle }
    }
    // Just above the first row too many; four decimals, rounded up, say it as well.
    Some(limits.get(most).map_or(0.0, |limit| ((limit * 1e4).floor() + 1.0) / 1e4).min(1.0))
}

/// The least confidence, in percent, that has a threshold of its own.
const LEAST_ASKED: usize = 50;

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
    use crate::domain::Probability;

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
    fn tier_control_keeps_its_promise_even_when_probabilities_lie() {
        let (truth, believed) =
            (TierScale { cuts: [-0.5, 1.0], slope: 1.2 }, TierScale { cuts: [0.6, 1.9], slope: 4.0 });
        let mut rng = StdRng::seed_from_u64(3);
        let mut draw = |n: usize| -> (Vec<f32>, Vec<usize>) {
            (0..n)
                .map(|_| {
                    let z: f32 = rng.random_range(-3.0..3.0);
                    let [simple, medium, _] = truth.probabilities(z);
                    let drawn = rng.random::<f32>();
                    (z, usize::from(drawn >= simple) + usize::from(drawn >= simple + medium))
                })
                .unzip()
        };
        let under_routed = |control: &TierControl, asked: f64, (z, tiers): &(Vec<f32>, Vec<usize>)| {
            let asked = Probability::new(asked).unwrap();
            let choose = |z: &f32| TierChoice::controlled(believed.probabilities(*z), asked, control).tier.index();
            z.iter().zip(tiers).filter(|(z, tier)| choose(z) < **tier).count() as f64 / z.len() as f64
        };
        // Thirty calibration sets of 400 rows: each may break a promise with a chance of one in twenty.
        let test = draw(20_000);
        let (mut broken, mut mean) = ([0; 3], [0.0; 3]);
        for _ in 0..30 {
            let control = fit_tier_control(believed, &[draw(400)]);
            for (index, asked) in [0.6, 0.8, 0.95].into_iter().enumerate() {
                let share = under_routed(&control, asked, &test);
                broken[index] += usize::from(share > 1.0 - asked);
                mean[index] += share / 30.0;
            }
        }
        assert!(broken.iter().all(|n| *n <= 6), "{broken:?}");
        for (mean, asked) in mean.into_iter().zip([0.6, 0.8, 0.95]) {
            assert!(mean >= 1.0 - asked - 0.06, "{mean} at {asked}: too careful");
        }
        assert!(under_routed(&TierControl::default(), 0.95, &test) > 0.15, "the probabilities do lie");
        assert!(
            fit_tier_control(believed, &[]).is_empty() && fit_tier_control(believed, &[(vec![], vec![])]).is_empty()
        );

        // Easy rows beside the hard ones: the promise is kept for the hard ones as well.
        let hard = draw(2_000);
        let easy = (vec![-3.0; 6_000], vec![0; 6_000]);
        let control = fit_tier_control(believed, &[hard, easy]);
        assert!(under_routed(&control, 0.8, &test) < 0.21);
    }

    #[test]
    fn out_of_scope_separates() {
        let signs: Vec<[f32; 3]> = (0..200).map(|i| [if i % 2 == 0 { 0.9 } else { 0.3 }, 0.5, 0.5]).collect();
        let out: Vec<bool> = (0..200).map(|i| i % 2 == 1).collect();
        let model = fit_out_of_scope(&signs, &out);
        assert!(model.probability([0.9, 0.5, 0.5]) < 0.1 && model.probability([0.3, 0.5, 0.5]) > 0.9);
    }
}
