//! Whether two judges of the same rows differ by more than chance.

/// McNemar's exact test, one-sided: P(at least `only_first` of the rows on which two judges disagree fall to the first)
/// where each is as likely to fall to either; 1 where they never disagree.
pub fn mcnemar_greater(only_first: usize, only_second: usize) -> f64 {
    let n = only_first + only_second;
    // Terms of the binomial distribution by their logarithms: factorials of hundreds of rows overflow.
    let mut log_choose = 0.0;
    let mut tail = 0.0;
    for k in 0..=n {
        if k >= only_first {
            tail += (log_choose - n as f64 * std::f64::consts::LN_2).exp();
        }
        log_choose += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    tail.min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agrees_with_cases_counted_by_hand() {
        assert_eq!(mcnemar_greater(0, 0), 1.0);
        assert!((mcnemar_greater(5, 0) - 1.0 / 32.0).abs() < 1e-12);
        // C(5,4) + C(5,5) = 6 of 32.
        assert!((mcnemar_greater(4, 1) - 6.0 / 32.0).abs() < 1e-12);
        assert!((mcnemar_greater(0, 5) - 1.0).abs() < 1e-12);
        assert!(mcnemar_greater(900, 700) < 1e-6);
    }

    proptest! {
        #[test]
        fn both_sides_share_only_the_observed_split(first in 0_usize..60, second in 0_usize..60) {
            let (greater, less) = (mcnemar_greater(first, second), mcnemar_greater(second, first));
            prop_assert!((0.0..=1.0).contains(&greater));
            prop_assert!(greater + less >= 1.0 - 1e-9);
            prop_assert!(greater >= mcnemar_greater(first + 1, second) - 1e-12 || first + second == 0);
        }
    }
}
