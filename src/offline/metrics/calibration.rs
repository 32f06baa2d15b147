//! Whether stated probabilities come true: reliability bins, expected calibration error, Brier score.

use serde::Serialize;

/// Rows whose confidence falls into one interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// Lower edge; belongs to the bin below, except 0.
    pub low: f64,
    /// Upper edge, inclusive.
    pub high: f64,
    /// Rows in it.
    pub n: usize,
    /// Their mean confidence; 0 without rows.
    pub mean_confidence: f64,
    /// The share that was right; 0 without rows.
    pub accuracy: f64,
}

/// Bins of equal width used for every reported calibration error.
pub const N_BINS: usize = 15;

/// Sorts (confidence, right?) pairs into `n_bins` bins of equal width over `0..=1`.
///
/// Bins are `(low, high]`, as in Guo et al. 2017 (arXiv 1706.04599).
pub fn reliability(predictions: &[(f64, bool)], n_bins: usize) -> Vec<ReliabilityBin> {
    let width = 1.0 / n_bins as f64;
    let mut bins: Vec<ReliabilityBin> = (0..n_bins)
        .map(|bin| ReliabilityBin {
            low: bin as f64 * width,
            high: (bin + 1) as f64 * width,
            n: 0,
            mean_confidence: 0.0,
            accuracy: 0.0,
        })
        .collect();
    for (confidence, right) in predictions {
        let index = ((confidence * n_bins as f64).ceil() as usize).clamp(1, n_bins.max(1)) - 1;
        if let Some(bin) = bins.get_mut(index) {
            bin.n += 1;
            bin.mean_confidence += confidence;
            bin.accuracy += f64::from(u8::from(*right));
        }
    }
    for bin in bins.iter_mut().filter(|bin| bin.n > 0) {
        bin.mean_confidence /= bin.n as f64;
        bin.accuracy /= bin.n as f64;
    }
    bins
}

/// The mean distance of confidence and accuracy over bins, weighted by their rows.
pub fn expected_calibration_error(bins: &[ReliabilityBin]) -> Option<f64> {
    let n: usize = bins.iter().map(|bin| bin.n).sum();
    let error: f64 = bins.iter().map(|bin| bin.n as f64 * (bin.accuracy - bin.mean_confidence).abs()).sum();
    (n > 0).then(|| error / n as f64)
}

/// The squared distance of one distribution from the truth, summed over labels: 0 is perfect, 2 is certain and wrong.
///
/// A `truth` outside the distribution counts as a label of probability 0.
pub fn brier(probabilities: impl IntoIterator<Item = f64>, truth: Option<usize>) -> f64 {
    let outside = if truth.is_none() { 1.0 } else { 0.0 };
    let inside: f64 = probabilities
        .into_iter()
        .enumerate()
        .map(|(label, p)| if Some(label) == truth { (1.0 - p).powi(2) } else { p.powi(2) })
        .sum();
    inside + outside
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agrees_with_a_case_counted_by_hand() {
        // Two bins: (0, 0.5] holds 0.25 (wrong), 0.5 (right); (0.5, 1] holds 0.75 (right), 1.0 (right).
        let bins = reliability(&[(0.25, false), (0.5, true), (0.75, true), (1.0, true)], 2);
        assert_eq!((bins[0].n, bins[0].mean_confidence, bins[0].accuracy), (2, 0.375, 0.5));
        assert_eq!((bins[1].n, bins[1].mean_confidence, bins[1].accuracy), (2, 0.875, 1.0));
        assert_eq!(expected_calibration_error(&bins), Some(0.125));
    }

    #[test]
    fn brier_spans_0_to_2() {
        assert_eq!(brier([1.0, 0.0], Some(0)), 0.0);
        assert_eq!(brier([1.0, 0.0], Some(1)), 2.0);
        assert_eq!(brier([0.5, 0.25, 0.25], Some(0)), 0.375);
        assert_eq!(brier([1.0], None), 2.0);
    }

    #[test]
    fn edges_fall_into_bins() {
        let bins = reliability(&[(0.0, false), (1.0, true)], N_BINS);
        assert_eq!((bins[0].n, bins[N_BINS - 1].n), (1, 1));
        assert_eq!(expected_calibration_error(&bins), Some(0.0));
        assert_eq!(expected_calibration_error(&reliability(&[], N_BINS)), None);
    }

    proptest! {
        #[test]
        fn every_row_falls_into_its_bin(rows in prop::collection::vec((0.0_f64..=1.0, any::<bool>()), 0..80)) {
            let bins = reliability(&rows, N_BINS);
            prop_assert_eq!(bins.iter().map(|bin| bin.n).sum::<usize>(), rows.len());
            for bin in bins.iter().filter(|bin| bin.n > 0) {
                prop_assert!(bin.mean_confidence >= bin.low - 1e-9 && bin.mean_confidence <= bin.high + 1e-9);
            }
            if let Some(error) = expected_calibration_error(&bins) {
                prop_assert!((0.0..=1.0).contains(&error));
            }
        }
    }
}
