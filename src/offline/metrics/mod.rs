//! Figures of merit, as pure functions of numbers.
//!
//! What is undefined (no rows, one class only, no gap between two models) is `None`, never 0 or NaN. Nothing here knows
//! of rows, files or reports.

pub mod binomial;
pub mod calibration;
pub mod classification;
pub mod paired;
pub mod ranking;
pub mod resample;
pub mod routing;

pub use calibration::{ReliabilityBin, brier, expected_calibration_error, reliability};
pub use classification::{ClassScores, Confusion};
pub use paired::mcnemar_greater;
pub use ranking::{auroc, mid_ranks, spearman};
pub use resample::{Bootstrap, Estimate, wilson_interval};
pub use routing::{Curve, CurvePoint, Routable};

/// The arithmetic mean; `None` of nothing.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.into_iter().fold((0.0, 0_usize), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
mod tests {
    use super::mean;

    #[test]
    fn the_mean_of_nothing_is_undefined() {
        assert_eq!(mean([]), None);
        assert_eq!(mean([1.0, 2.0, 6.0]), Some(3.0));
    }
}
