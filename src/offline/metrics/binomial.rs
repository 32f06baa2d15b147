//! One-sided bounds on a share of which some hits were seen: exact (Clopper-Pearson) and distribution-free (Hoeffding).

/// How sure the bounds are.
pub const BOUND_CONFIDENCE: f64 = 0.95;

/// The largest share that `hits` of `n` do not speak against (Clopper and Pearson 1934), at [`BOUND_CONFIDENCE`].
pub fn upper_bound(hits: usize, n: usize) -> f64 {
    // P(at most `hits`) falls as the share rises.
    if hits >= n { 1.0 } else { last_share(|share| at_most(hits, n, share) >= 1.0 - BOUND_CONFIDENCE) }
}

/// The smallest share that `hits` of `n` do not speak against (Clopper and Pearson 1934), at [`BOUND_CONFIDENCE`].
pub fn lower_bound(hits: usize, n: usize) -> f64 {
    // P(at least `hits`) rises with the share.
    match hits.checked_sub(1) {
        None => 0.0,
        Some(fewer) => last_share(|share| 1.0 - at_most(fewer, n, share) <= 1.0 - BOUND_CONFIDENCE),
    }
}

/// A share that is not exceeded with [`BOUND_CONFIDENCE`] (Hoeffding 1963); wider than [`upper_bound`], but as valid for
/// losses between 0 and 1 as for hits.
pub fn hoeffding_upper_bound(hits: usize, n: usize) -> f64 {
    let n = n.max(1) as f64;
    (hits as f64 / n + ((1.0 / (1.0 - BOUND_CONFIDENCE)).ln() / (2.0 * n)).sqrt()).min(1.0)
}

/// P(at most `hits` of `n`) where each comes true with probability `share`.
fn at_most(hits: usize, n: usize, share: f64) -> f64 {
    if share <= 0.0 {
        return 1.0;
    }
    let (ln_hit, ln_miss) = (share.ln(), (-share).ln_1p());
    let mut ln_ways = 0.0;
    let mut sum = 0.0;
    for k in 0..=hits.min(n) {
        if k > 0 {
            ln_ways += ((n - k + 1) as f64 / k as f64).ln();
        }
        // A product of 0 and minus infinity is no number: nothing is missed when all are hits.
        let ln_misses = if k == n { 0.0 } else { (n - k) as f64 * ln_miss };
        sum += (ln_ways + k as f64 * ln_hit + ln_misses).exp();
    }
    sum.min(1.0)
}

/// The last share of 0..=1 for which `holds`, where it holds up to some share and no further.
fn last_share(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if holds(middle) { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_have_closed_forms() {
        // No hit: (1 - share)^n = 0.05.
        assert!((upper_bound(0, 30) - (1.0 - 0.05_f64.powf(1.0 / 30.0))).abs() < 1e-9);
        assert!((lower_bound(30, 30) - 0.05_f64.powf(1.0 / 30.0)).abs() < 1e-9);
        assert_eq!((lower_bound(0, 30), upper_bound(30, 30), upper_bound(0, 0)), (0.0, 1.0, 1.0));
        // One of two missed: 1 - (1 - p)^2 = 0.05 below, 1 - p^2 = 0.05 above.
        assert!((lower_bound(1, 2) - (1.0 - 0.95_f64.sqrt())).abs() < 1e-9);
        assert!((upper_bound(1, 2) - 0.95_f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn hoeffding_agrees_with_the_formula() {
        assert!((hoeffding_upper_bound(20, 200) - (0.1 + (20.0_f64.ln() / 400.0).sqrt())).abs() < 1e-12);
        assert_eq!(hoeffding_upper_bound(5, 5), 1.0);
    }

    #[test]
    fn many_rows_do_not_underflow() {
        let (low, high) = (lower_bound(5_000, 50_000), upper_bound(5_000, 50_000));
        assert!(low > 0.097 && low < 0.1 && high > 0.1 && high < 0.103, "{low} {high}");
    }

    proptest! {
        #[test]
        fn bounds_enclose_the_share_and_hoeffding_is_wider(n in 1_usize..300, part in 0.0_f64..=1.0) {
            let hits = (part * n as f64) as usize;
            let share = hits as f64 / n as f64;
            let (low, high) = (lower_bound(hits, n), upper_bound(hits, n));
            prop_assert!(low <= share + 1e-9 && share <= high + 1e-9);
            prop_assert!(high <= hoeffding_upper_bound(hits, n) + 1e-9);
            prop_assert!(upper_bound(hits, n) <= upper_bound((hits + 1).min(n), n) + 1e-12);
        }
    }
}
