//! When a cascade pays: what a weak model, a scorer and a strong model cost together against the strong one alone.
//!
//! The scorer is modelled by signal detection: on the scale of its evidence good answers are normal around `d/2` and bad
//! ones around `-d/2`, both with variance 1, so that its AUC is `Phi(d / sqrt 2)`; a score is the probability that the
//! answer is good, given the evidence and what was known before. `docs/cascade.md` has the formula and what it assumes.

/// A model that may answer: how probably well, and at what price.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prospect {
    /// P(it answers well).
    pub success: f64,
    /// Cost of an answer in US dollars.
    pub cost_usd: f64,
}

/// What judges answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scorer {
    /// How far apart good and bad answers are on the scale of its evidence.
    separation: f64,
    /// Cost of a score in US dollars.
    cost_usd: f64,
}

/// What asking the weak model first comes to, in expectation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CascadeEstimate {
    /// Escalate answers that score below this.
    pub threshold: f64,
    /// P(the weak model's answer is kept).
    pub kept: f64,
    /// P(the final answer is good).
    pub quality: f64,
    /// Cost in US dollars: the weak model, the scorer, and the strong model as often as it is asked.
    pub cost_usd: f64,
}

/// A scorer that is never wrong has no finite separation; this one is wrong about once in a thousand pairs.
const BEST_AUC: f64 = 0.999;
/// Beyond this the normal distribution has nothing to tell from 0 or 1.
const FARTHEST: f64 = 9.0;

// === impl Scorer ===

impl Scorer {
    /// A scorer that ranks a good answer above a bad one with probability `auc`, for `cost_usd` an answer.
    pub fn new(auc: f64, cost_usd: f64) -> Self {
        Self { separation: std::f64::consts::SQRT_2 * quantile(auc.clamp(0.5, BEST_AUC)), cost_usd }
    }

    /// What asking `weak` first and `strong` where the score is low comes to, at the lowest threshold at which the
    /// answers are expected to be as good as those of `strong` alone.
    pub fn at_parity(&self, weak: Prospect, strong: Prospect) -> CascadeEstimate {
        if weak.success >= strong.success {
            return self.at_evidence(weak, strong, -FARTHEST, 0.0);
        }
        // Kept answers must be good as often as the strong model's: P(good | kept) = P(strong is good).
        let worse = |x: f64| {
            let (good, bad) = self.kept(x);
            weak.success * (1.0 - strong.success) * good < strong.success * (1.0 - weak.success) * bad
        };
        let (mut low, mut high) = (-FARTHEST, FARTHEST);
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            *(if worse(middle) { &mut low } else { &mut high }) = middle;
        }
        let threshold = sigmoid(logit(weak.success) + self.separation * high);
        self.at_evidence(weak, strong, high, threshold)
    }

    /// The same at a given threshold.
    pub fn at_threshold(&self, weak: Prospect, strong: Prospect, threshold: f64) -> CascadeEstimate {
        // A scorer that knows nothing gives every answer the score that was expected before.
        let x = if threshold <= 0.0 {
            -FARTHEST
        } else if self.separation > 0.0 {
            (logit(threshold) - logit(weak.success)) / self.separation
        } else {
            (threshold - weak.success).signum() * FARTHEST
        };
        self.at_evidence(weak, strong, x.clamp(-FARTHEST, FARTHEST), threshold)
    }

    /// Evidence of an answer that is `right`, 0..1, with `noise` of a standard normal distribution.
    pub fn evidence(&self, right: f64, noise: f64) -> f64 {
        self.separation * (right - 0.5) + noise
    }

    /// P(an answer is good) on `evidence`, where `success` was expected before.
    pub fn score(&self, success: f64, evidence: f64) -> f64 {
        sigmoid(logit(success) + self.separation * evidence)
    }

    fn at_evidence(&self, weak: Prospect, strong: Prospect, x: f64, threshold: f64) -> CascadeEstimate {
        let (good, bad) = self.kept(x);
        let kept = weak.success * good + (1.0 - weak.success) * bad;
        CascadeEstimate {
            threshold,
            kept,
            quality: weak.success * good + (1.0 - kept) * strong.success,
            cost_usd: weak.cost_usd + self.cost_usd + (1.0 - kept) * strong.cost_usd,
        }
    }

    /// P(evidence above `x`) of good and of bad answers.
    fn kept(&self, x: f64) -> (f64, f64) {
        (normal(self.separation / 2.0 - x), normal(-self.separation / 2.0 - x))
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(1e-9, 1.0 - 1e-9);
    (p / (1.0 - p)).ln()
}

/// The cumulative distribution of the standard normal; relative error below 2e-7 (Numerical Recipes' rational form of erfc).
fn normal(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let coefficients = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ];
    let polynomial = coefficients.iter().fold(0.0, |sum, coefficient| sum * t + coefficient);
    let tail = 0.5 * t * (-z * z + polynomial).exp();
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// The inverse of [`normal`] for `0.5..1`, by bisection: used once a policy, not once a decision.
fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (0.0, FARTHEST);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        *(if normal(middle) < p { &mut low } else { &mut high }) = middle;
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prospect(success: f64, cost_usd: f64) -> Prospect {
        Prospect { success, cost_usd }
    }

    #[test]
    fn the_normal_distribution_is_the_usual_one() {
        for (x, p) in [(0.0, 0.5), (1.0, 0.841_344_746), (-1.959_963_985, 0.025), (-4.0, 3.167_124e-5)] {
            assert!((normal(x) - p).abs() < 1e-6 * p.max(0.1), "{x}: {} is not {p}", normal(x));
        }
        assert!((quantile(0.975) - 1.959_964).abs() < 1e-4);
    }

    #[test]
    fn a_good_scorer_makes_cheap_first_pay_and_a_bad_one_does_not() {
        let (weak, strong) = (prospect(0.8, 1.0), prospect(0.9, 10.0));
        let sharp = Scorer::new(0.95, 0.0).at_parity(weak, strong);
        let blunt = Scorer::new(0.6, 0.0).at_parity(weak, strong);
        assert!(sharp.cost_usd < 4.0 && sharp.kept > 0.75, "{sharp:?}");
        assert!(blunt.cost_usd > sharp.cost_usd && blunt.kept < sharp.kept, "{blunt:?}");
        let hopeless = Scorer::new(0.95, 0.0).at_parity(prospect(0.05, 2.0), strong);
        assert!(hopeless.cost_usd > strong.cost_usd, "asked first for nothing: {hopeless:?}");
        let dear_scorer = Scorer::new(0.95, 8.0).at_parity(weak, strong);
        assert!((dear_scorer.cost_usd - sharp.cost_usd - 8.0).abs() < 1e-9);
    }

    #[test]
    fn probabilities_without_doubt_are_finite_evidence() {
        assert!((logit(0.8) - 4.0_f64.ln()).abs() < 1e-12);
        assert!((logit(1.0) + logit(0.0)).abs() < 1e-6 && (20.0..22.0).contains(&logit(1.0)));
    }

    #[test]
    fn a_scorer_that_knows_nothing_keeps_all_answers_or_none() {
        let (weak, strong) = (prospect(0.7, 1.0), prospect(0.9, 10.0));
        let kept = |threshold| Scorer { separation: 0.0, cost_usd: 0.0 }.at_threshold(weak, strong, threshold).kept;
        assert!(kept(0.6) > 0.999 && kept(0.8) < 0.001, "{} {}", kept(0.6), kept(0.8));
    }

    #[test]
    fn nothing_is_escalated_to_what_is_no_better() {
        let same = Scorer::new(0.8, 0.0).at_parity(prospect(0.9, 1.0), prospect(0.9, 2.0));
        assert_eq!(same.threshold, 0.0);
        assert!(same.kept > 0.999 && (same.cost_usd - 1.0).abs() < 1e-6, "{same:?}");
    }

    #[test]
    fn a_simulated_scorer_gives_what_is_expected() {
        use rand::{RngExt as _, SeedableRng as _};
        let mut rng = rand::rngs::SmallRng::seed_from_u64(7);
        let (weak, strong) = (prospect(0.7, 1.0), prospect(0.88, 9.0));
        let scorer = Scorer::new(0.85, 0.1);
        let expected = scorer.at_parity(weak, strong);
        let (n, mut good, mut cost, mut kept) = (200_000, 0_u32, 0.0, 0_u32);
        for _ in 0..n {
            let is_good = rng.random::<f64>() < weak.success;
            // Box and Muller.
            let noise = (-2.0 * rng.random::<f64>().max(1e-300).ln()).sqrt()
                * (2.0 * std::f64::consts::PI * rng.random::<f64>()).cos();
            let evidence = noise + scorer.separation * if is_good { 0.5 } else { -0.5 };
            let score = sigmoid(logit(weak.success) + scorer.separation * evidence);
            cost += weak.cost_usd + 0.1;
            if score >= expected.threshold {
                kept += 1;
                good += u32::from(is_good);
            } else {
                cost += strong.cost_usd;
                good += u32::from(rng.random::<f64>() < strong.success);
            }
        }
        let n = f64::from(n);
        assert!((f64::from(kept) / n - expected.kept).abs() < 0.005);
        assert!((f64::from(good) / n - strong.success).abs() < 0.005, "as good as the strong model alone");
        assert!((cost / n - expected.cost_usd).abs() < 0.05);
    }

    proptest! {
        #[test]
        fn parity_is_kept_and_within_bounds(
            weak in 0.001_f64..0.999, strong in 0.001_f64..0.999, auc in 0.501_f64..1.0, dear in 1.0_f64..100.0,
        ) {
            let (weak, strong) = (prospect(weak, 1.0), prospect(strong, dear));
            let scorer = Scorer::new(auc, 0.0);
            let estimate = scorer.at_parity(weak, strong);
            prop_assert!((0.0..=1.0).contains(&estimate.threshold) && (0.0..=1.0).contains(&estimate.kept));
            prop_assert!(estimate.quality >= strong.success.min(weak.success) - 1e-3, "{:?}", estimate);
            prop_assert!(estimate.quality >= strong.success - 2e-3, "{:?} below {:?}", estimate, strong);
            prop_assert!(estimate.cost_usd <= 1.0 + dear + 1e-9 && estimate.cost_usd >= 1.0);
            let again = scorer.at_threshold(weak, strong, estimate.threshold);
            prop_assert!((again.kept - estimate.kept).abs() < 1e-3, "{:?} {:?}", again, estimate);
        }
    }
}
