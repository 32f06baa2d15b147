//! How well one number orders another: area under the ROC curve, rank correlation.

/// The rank of each value from 1, equal values sharing the mean of their ranks.
pub fn mid_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        // Ranks start+1 ..= start+len, so their mean is start + (len + 1) / 2.
        let rank = start as f64 + (tied.len() + 1) as f64 / 2.0;
        for index in tied {
            ranks[*index] = rank;
        }
        start += tied.len();
    }
    ranks
}

/// P(a positive row scores above a negative one), ties counting half; `None` unless both kinds occur.
pub fn auroc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let n_positive = positive.iter().filter(|p| **p).count();
    let n_negative = positive.len() - n_positive;
    if n_positive == 0 || n_negative == 0 || scores.len() != positive.len() {
        return None;
    }
    let rank_sum: f64 =
        mid_ranks(scores).iter().zip(positive).filter(|(_, positive)| **positive).map(|(rank, _)| rank).sum();
    let n_positive = n_positive as f64;
    Some((rank_sum - n_positive * (n_positive + 1.0) / 2.0) / (n_positive * n_negative as f64))
}

/// Spearman's rank correlation, ties by mid-rank; `None` where either side is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() {
        return None;
    }
    pearson(&mid_ranks(a), &mid_ranks(b))
}

fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let mean_a = super::mean(a.iter().copied())?;
    let mean_b = super::mean(b.iter().copied())?;
    let (mut covariance, mut variance_a, mut variance_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        covariance += (x - mean_a) * (y - mean_b);
        variance_a += (x - mean_a).powi(2);
        variance_b += (y - mean_b).powi(2);
    }
    let scale = (variance_a * variance_b).sqrt();
    (scale > 0.0).then(|| (covariance / scale).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(mid_ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert_eq!(mid_ranks(&[0.0, -0.0]).iter().sum::<f64>(), 3.0);
    }

    #[test]
    fn auroc_agrees_with_cases_counted_by_hand() {
        // Pairs (positive, negative): (0.8, 0.1) won, (0.8, 0.4) won, (0.4, 0.1) won, (0.4, 0.4) tied: 3.5 of 4.
        assert_eq!(auroc(&[0.1, 0.4, 0.4, 0.8], &[false, false, true, true]), Some(0.875));
        assert_eq!(auroc(&[1.0, 1.0, 1.0], &[true, false, true]), Some(0.5));
        assert_eq!(auroc(&[1.0, 2.0], &[true, true]), None);
        assert_eq!(auroc(&[], &[]), None);
    }

    #[test]
    fn spearman_agrees_with_cases_counted_by_hand() {
        // 1 - 6 * (1 + 1) / (4 * 15) = 0.8.
        assert!((spearman(&[1.0, 2.0, 3.0, 4.0], &[2.0, 1.0, 3.0, 4.0]).unwrap() - 0.8).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]), Some(-1.0));
        assert_eq!(spearman(&[1.0, 2.0], &[5.0, 5.0]), None);
    }

    proptest! {
        #[test]
        fn auroc_is_the_share_of_pairs_won(
            rows in prop::collection::vec((0_u8..6, any::<bool>()), 2..40),
        ) {
            let scores: Vec<f64> = rows.iter().map(|(score, _)| f64::from(*score)).collect();
            let positive: Vec<bool> = rows.iter().map(|(_, positive)| *positive).collect();
            let (mut won, mut n_pairs) = (0.0, 0.0);
            for (p, _) in rows.iter().filter(|row| row.1) {
                for (n, _) in rows.iter().filter(|row| !row.1) {
                    n_pairs += 1.0;
                    won += match p.cmp(n) {
                        std::cmp::Ordering::Greater => 1.0,
                        std::cmp::Ordering::Equal => 0.5,
                        std::cmp::Ordering::Less => 0.0,
                    };
                }
            }
            let value = auroc(&scores, &positive);
            prop_assert_eq!(value.is_some(), n_pairs > 0.0);
            prop_assert!(value.is_none_or(|value| (value - won / n_pairs).abs() < 1e-12));
        }

        #[test]
        fn only_the_order_matters(values in prop::collection::vec((0.0_f64..9.0, 0.0_f64..9.0), 2..40)) {
            let (a, b): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
            let bent: Vec<f64> = a.iter().map(|x| x.exp()).collect();
            prop_assert_eq!(spearman(&a, &b), spearman(&bent, &b));
        }
    }
}
