//! How far a figure could be off by chance: the percentile bootstrap, and the Wilson interval of a share.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

/// A figure with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Measured on all rows.
    pub value: f64,
    /// 2.5th percentile over resamples.
    pub low: f64,
    /// 97.5th percentile over resamples.
    pub high: f64,
}

/// How to resample: the same seed gives the same interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Resamples drawn.
    pub n_draws: usize,
    /// Seed of the generator.
    pub seed: u64,
}

/// The normal quantile of a two-sided 95 % interval.
const Z_95: f64 = 1.959_963_984_540_054;

/// Resamples in which a figure must be defined for its interval to mean anything.
const MIN_DEFINED_SHARE: f64 = 0.9;

// === impl Estimate ===

impl Estimate {
    /// A figure known without sampling error.
    pub fn exact(value: f64) -> Self {
        Self { value, low: value, high: value }
    }

    /// Whether the interval excludes `other`.
    pub fn differs_from(&self, other: f64) -> bool {
        other < self.low || other > self.high
    }
}

// === impl Bootstrap ===

impl Default for Bootstrap {
    fn default() -> Self {
        Self { n_draws: 1_000, seed: 20_240_618 }
    }
}

impl Bootstrap {
    /// The figure of `n` rows with its percentile interval.
    ///
    /// `figure` is given the positions of the rows to use, with repetitions. `None` where it is undefined on all rows,
    /// or on so many resamples that an interval over the others would mislead.
    pub fn estimate(&self, n: usize, figure: impl Fn(&[usize]) -> Option<f64>) -> Option<Estimate> {
        let [estimate] = self.estimates(n, |rows| [figure(rows)]);
        estimate
    }

    /// [`Self::estimate`] for several figures on the same resamples, so that their differences are paired.
    pub fn estimates<const K: usize>(
        &self,
        n: usize,
        mut figures: impl FnMut(&[usize]) -> [Option<f64>; K],
    ) -> [Option<Estimate>; K] {
        if n == 0 {
            return [None; K];
        }
        let mut rows: Vec<usize> = (0..n).collect();
        let values = figures(&rows);
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut samples: [Vec<f64>; K] = std::array::from_fn(|_| Vec::with_capacity(self.n_draws));
        for _ in 0..self.n_draws {
            for row in &mut rows {
                *row = rng.random_range(0..n);
            }
            for (sample, value) in samples.iter_mut().zip(figures(&rows)) {
                sample.extend(value);
            }
        }
        std::array::from_fn(|figure| {
            let value = values[figure]?;
            let sample = &mut samples[figure];
            if (sample.len() as f64) < MIN_DEFINED_SHARE * self.n_draws as f64 {
                return None;
            }
            sample.sort_unstable_by(f64::total_cmp);
            // Without resamples the figure stands alone.
            let edge = |share| quantile(sample, share).unwrap_or(value);
            Some(Estimate { value, low: edge(0.025), high: edge(0.975) })
        })
    }
}

/// The quantile of ascending values, interpolated linearly between neighbours; `None` of nothing.
pub fn quantile(ascending: &[f64], share: f64) -> Option<f64> {
    let last = ascending.len().checked_sub(1)?;
    let position = share.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    let (low, high) = (*ascending.get(below)?, *ascending.get(above)?);
    Some(low + (high - low) * (position - below as f64))
}

/// The 95 % interval of a share of which `hits` of `n` were seen (Wilson 1927); honest for small `n` and at 0 and 1.
pub fn wilson_interval(hits: usize, n: usize) -> Option<Estimate> {
    if n == 0 {
        return None;
    }
    let n = n as f64;
    let share = hits as f64 / n;
    let z2 = Z_95 * Z_95;
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Some(Estimate { value: share, low: (centre - half).clamp(0.0, share), high: (centre + half).clamp(share, 1.0) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mean_of(values: &[f64]) -> impl Fn(&[usize]) -> Option<f64> {
        |rows| crate::offline::metrics::mean(rows.iter().map(|row| values[*row]))
    }

    #[test]
    fn the_interval_of_a_mean_is_the_textbook_one() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let estimate = Bootstrap::default().estimate(values.len(), mean_of(&values)).unwrap();
        // Standard error 0.5 / 20 = 0.025, so 0.5 +- 0.049.
        assert_eq!(estimate.value, 0.5);
        assert!((estimate.low - 0.451).abs() < 0.008 && (estimate.high - 0.549).abs() < 0.008, "{estimate:?}");
    }

    #[test]
    fn the_seed_fixes_the_interval() {
        let values = [0.1, 0.5, 0.2, 0.9, 0.4];
        let run = |seed| Bootstrap { n_draws: 50, seed }.estimate(5, mean_of(&values));
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn undefined_figures_have_no_interval() {
        assert_eq!(Bootstrap::default().estimate(0, |_| Some(1.0)), None);
        assert_eq!(Bootstrap::default().estimate(5, |_| None), None);
        // Defined on all rows, but on too few resamples.
        let fragile = Bootstrap::default().estimate(2, |rows| (rows[0] != rows[1]).then_some(1.0));
        assert_eq!(fragile, None);
    }

    #[test]
    fn wilson_agrees_with_the_published_example() {
        // Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
        let interval = wilson_interval(81, 263).unwrap();
        assert!((interval.low - 0.2553).abs() < 5e-5 && (interval.high - 0.3662).abs() < 5e-5, "{interval:?}");
        assert_eq!(wilson_interval(0, 0), None);
        assert!(wilson_interval(0, 10).unwrap().high > 0.2);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[0.0, 1.0, 2.0, 3.0], 0.5), Some(1.5));
        assert_eq!(quantile(&[0.0, 1.0, 2.0, 3.0], 1.0), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    proptest! {
        #[test]
        fn quantiles_rise_with_the_share(
            mut values in prop::collection::vec(-9.0_f64..9.0, 1..30), a in 0.0_f64..=1.0, b in 0.0_f64..=1.0,
        ) {
            values.sort_unstable_by(f64::total_cmp);
            prop_assert!(quantile(&values, a.min(b)) <= quantile(&values, a.max(b)));
        }
    }
}
