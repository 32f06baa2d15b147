//! Does the risk-controlled tier keep its promise: at most so many queries below the tier they need?

use serde::Serialize;

use crate::domain::{Probability, Tier, TierChoice, TierControl};
use crate::offline::metrics::binomial::{hoeffding_upper_bound, lower_bound, upper_bound};
use crate::offline::metrics::{Estimate, wilson_interval};

/// The risk-controlled tier at one `min_confidence`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RiskRow {
    /// What the operator asks for.
    pub min_confidence: f64,
    /// The cumulative probability that a tier had to reach for it.
    pub threshold: f64,
    /// Share whose chosen tier is below the true one, with its Wilson interval.
    pub under_routed: Estimate,
    /// The promise: `1 - min_confidence`.
    pub allowed: f64,
    /// Exact one-sided 95 % upper bound on the share.
    pub upper_bound: f64,
    /// Exact one-sided 95 % lower bound on the share.
    pub lower_bound: f64,
    /// Hoeffding's one-sided 95 % upper bound.
    pub hoeffding_bound: f64,
    /// What these rows say of the promise.
    pub verdict: Verdict,
    /// Share whose chosen tier is above the true one.
    pub over_routed: f64,
    /// Share given each tier, cheapest first: what the promise costs.
    pub tier_shares: [f64; 3],
}

/// What the rows at hand say of a promise.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Even the upper bound is within the allowance.
    Within,
    /// The allowance lies between the bounds: more rows would tell.
    NotShown,
    /// Even the lower bound is above the allowance.
    Violated,
}

/// The promises reported.
const MIN_CONFIDENCES: [f64; 5] = [0.6, 0.7, 0.8, 0.9, 0.95];

/// Every promise reported, over rows of tier probabilities and true tier; empty without rows.
pub(super) fn table(rows: &[([f32; 3], Tier)], control: &TierControl) -> Vec<RiskRow> {
    MIN_CONFIDENCES.iter().filter_map(|asked| row(rows, *asked, control)).collect()
}

/// One promise; `None` without rows.
pub(super) fn row(rows: &[([f32; 3], Tier)], min_confidence: f64, control: &TierControl) -> Option<RiskRow> {
    let asked = Probability::saturating(min_confidence);
    let chosen: Vec<(Tier, Tier)> = rows
        .iter()
        .map(|(probabilities, truth)| (TierChoice::controlled(*probabilities, asked, control).tier, *truth))
        .collect();
    let n = chosen.len();
    let count = |hit: &dyn Fn(Tier, Tier) -> bool| chosen.iter().filter(|(tier, truth)| hit(*tier, *truth)).count();
    let hits = count(&|tier, truth| tier < truth);
    // 1 - 0.8 is a hair under 0.2.
    let allowed = 1.0 - min_confidence + 1e-9;
    let (lower_bound, upper_bound) = (lower_bound(hits, n), upper_bound(hits, n));
    Some(RiskRow {
        min_confidence,
        threshold: control.threshold(asked).value(),
        under_routed: wilson_interval(hits, n)?,
        allowed: 1.0 - min_confidence,
        upper_bound,
        lower_bound,
        hoeffding_bound: hoeffding_upper_bound(hits, n),
        verdict: if upper_bound <= allowed {
            Verdict::Within
        } else if lower_bound > allowed {
            Verdict::Violated
        } else {
            Verdict::NotShown
        },
        over_routed: count(&|tier, truth| tier > truth) as f64 / n as f64,
        tier_shares: Tier::ALL.map(|wanted| count(&|tier, _| tier == wanted) as f64 / n as f64),
    })
}

// === impl Verdict ===

impl Verdict {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Within => "within",
            Self::NotShown => "not shown",
            Self::Violated => "violated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(n_complex: usize, n: usize) -> RiskRow {
        // Medium suffices with 0.85, so at 0.8 a complex row is under-routed and no other is.
        let truth = |i| if i < n_complex { Tier::Complex } else { Tier::Medium };
        let rows: Vec<_> = (0..n).map(|i| ([0.65, 0.2, 0.15], truth(i))).collect();
        row(&rows, 0.8, &TierControl::default()).unwrap()
    }

    #[test]
    fn a_verdict_needs_rows() {
        let few = verdict(1, 10);
        assert_eq!((few.verdict, few.under_routed.value), (Verdict::NotShown, 0.1));
        assert!(few.lower_bound < 0.1 && few.upper_bound > 0.2 && few.hoeffding_bound > few.upper_bound);
        assert_eq!(verdict(100, 1_000).verdict, Verdict::Within);
        assert_eq!(verdict(210, 1_000).verdict, Verdict::NotShown);
        assert_eq!(verdict(300, 1_000).verdict, Verdict::Violated);
        assert!(row(&[], 0.8, &TierControl::default()).is_none());
    }

    #[test]
    fn a_control_moves_the_threshold() {
        let control = TierControl::try_from(vec![[0.8, 0.6]]).unwrap();
        let row = row(&[([0.65, 0.2, 0.15], Tier::Simple)], 0.8, &control).unwrap();
        assert_eq!((row.threshold, row.tier_shares), (0.6, [1.0, 0.0, 0.0]));
    }
}
