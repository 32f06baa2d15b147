//! Tier: is the most probable one right, and does the risk-controlled one keep its promise?

use serde::Serialize;

use super::compare::{self, PairedFigure, judge_both};
use super::detail::{self, Mistake, Said, TokenBucket};
use super::risk::{self, RiskRow};
use super::{Case, GroupBy};
use crate::domain::{Tier, TierControl};
use crate::offline::metrics::calibration::N_BINS;
use crate::offline::metrics::{
    Bootstrap, ClassScores, Confusion, Estimate, ReliabilityBin, brier, expected_calibration_error, mean, reliability,
    wilson_interval,
};

/// What was measured on the rows that carry a tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierSection {
    /// Rows with a tier and scores.
    pub n: usize,
    /// Rows with a tier but no scores; in no figure below.
    pub n_not_scored: usize,
    /// Share whose most probable tier is the true one.
    pub accuracy: Estimate,
    /// Mean F1 of the most probable tier.
    pub macro_f1: f64,
    /// Expected calibration error of the most probable tier's probability.
    pub ece: f64,
    /// Mean squared error of the whole distribution, 0..2.
    pub brier: f64,
    /// Every tier.
    pub classes: Vec<ClassScores>,
    /// Truth by most probable tier.
    pub confusion: Confusion,
    /// Confidence against accuracy.
    pub reliability: Vec<ReliabilityBin>,
    /// What the scored file's own `tier` and `confidence` are worth.
    pub served: ServedTier,
    /// The risk-controlled tier at several promises, the asked confidence being the threshold.
    pub risk: Vec<RiskRow>,
    /// The same with the thresholds of the classifier's own control; empty where none is known.
    pub risk_with_control: Vec<RiskRow>,
    /// By where rows come from.
    pub by_source: Vec<TierFigures>,
    /// By words.
    pub by_length: Vec<TierFigures>,
    /// By word pieces read.
    pub by_tokens: Vec<TokenBucket>,
    /// The most confident mistakes of the most probable tier.
    pub worst: Vec<Mistake>,
}

/// The tier that the scored file chose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ServedTier {
    /// Share that equals the true tier.
    pub exact: f64,
    /// Share below it: the answer may be too weak.
    pub under_routed: Estimate,
    /// Share above it: the answer costs too much.
    pub over_routed: f64,
    /// Expected calibration error of `confidence` as P(the tier suffices).
    pub suffices_ece: f64,
}

/// The figures of a part of the rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierFigures {
    /// Which part.
    pub group: String,
    /// Rows of it.
    pub n: usize,
    /// Share whose most probable tier is right.
    pub accuracy: f64,
    /// Expected calibration error.
    pub ece: f64,
    /// Under-routed share at `min_confidence` 0.8.
    pub under_routed_at_80: f64,
}

/// One scored row.
#[derive(Clone, Copy)]
struct Judged<'a> {
    case: Case<'a>,
    truth: Tier,
    probabilities: [f32; 3],
    top: Tier,
    confidence: f64,
    served: Tier,
    suffices: f64,
}

/// `None` where no scored row carries a tier.
pub(super) fn section(cases: &[Case<'_>], control: &TierControl, bootstrap: &Bootstrap) -> Option<TierSection> {
    let labelled: Vec<Case<'_>> = cases.iter().copied().filter(|case| case.row.tier.is_some()).collect();
    let judged: Vec<Judged<'_>> = labelled.iter().filter_map(|case| judge(*case)).collect();
    let confusion = confusion(&judged);
    let bins = bins(&judged);
    let said: Vec<Said<'_>> = judged.iter().map(Judged::said).collect();
    Some(TierSection {
        n: judged.len(),
        n_not_scored: labelled.len() - judged.len(),
        accuracy: bootstrap.estimate(judged.len(), |rows| {
            mean(rows.iter().map(|row| f64::from(u8::from(judged[*row].top == judged[*row].truth))))
        })?,
        macro_f1: confusion.macro_f1()?,
        ece: expected_calibration_error(&bins)?,
        brier: mean(
            judged.iter().map(|row| brier(row.probabilities.iter().map(|p| f64::from(*p)), Some(row.truth.index()))),
        )?,
        classes: confusion.per_class(),
        confusion,
        reliability: bins,
        served: served(&judged)?,
        risk: risk::table(&risk_rows(&judged), &TierControl::default()),
        risk_with_control: if control.is_empty() { Vec::new() } else { risk::table(&risk_rows(&judged), control) },
        by_source: breakdown(GroupBy::Source, &judged),
        by_length: breakdown(GroupBy::Length, &judged),
        by_tokens: detail::by_tokens(&said),
        worst: detail::worst(&said),
    })
}

/// The tier accuracy of two models.
pub(super) fn paired(sides: [&[Case<'_>]; 2], bootstrap: &Bootstrap) -> Option<PairedFigure> {
    let sides = judge_both(sides, |case| judge(*case));
    compare::figure("tier accuracy", &sides, bootstrap, |judged, rows| {
        mean(rows.iter().map(|row| f64::from(u8::from(judged[*row].top == judged[*row].truth))))
    })
}

// === impl Judged ===

impl<'a> Judged<'a> {
    fn said(&self) -> Said<'a> {
        Said { case: self.case, truth: self.truth.as_str(), prediction: self.top.as_str(), confidence: self.confidence }
    }
}

fn judge(case: Case<'_>) -> Option<Judged<'_>> {
    let (scores, truth) = (case.scores?, case.row.tier?);
    let (top, confidence) = scores.tier_probs.top();
    Some(Judged {
        case,
        truth,
        probabilities: scores.tier_probs.as_array(),
        top,
        confidence: f64::from(confidence),
        served: scores.tier,
        suffices: scores.confidence.value(),
    })
}

fn served(judged: &[Judged<'_>]) -> Option<ServedTier> {
    let n = judged.len();
    let share = |hit: fn(&Judged<'_>) -> bool| judged.iter().filter(|row| hit(row)).count();
    let suffices: Vec<(f64, bool)> = judged.iter().map(|row| (row.suffices, row.truth <= row.served)).collect();
    Some(ServedTier {
        exact: share(|row| row.served == row.truth) as f64 / n as f64,
        under_routed: wilson_interval(share(|row| row.served < row.truth), n)?,
        over_routed: share(|row| row.served > row.truth) as f64 / n as f64,
        suffices_ece: expected_calibration_error(&reliability(&suffices, N_BINS))?,
    })
}

fn risk_rows(judged: &[Judged<'_>]) -> Vec<([f32; 3], Tier)> {
    judged.iter().map(|row| (row.probabilities, row.truth)).collect()
}

fn breakdown(by: GroupBy, judged: &[Judged<'_>]) -> Vec<TierFigures> {
    by.split(judged, |row| row.case.row)
        .into_iter()
        .filter_map(|(group, rows)| {
            Some(TierFigures {
                group,
                n: rows.len(),
                accuracy: confusion(&rows).accuracy()?,
                ece: expected_calibration_error(&bins(&rows))?,
                under_routed_at_80: risk::row(&risk_rows(&rows), 0.8, &TierControl::default())?.under_routed.value,
            })
        })
        .collect()
}

fn confusion(judged: &[Judged<'_>]) -> Confusion {
    let labels = Tier::ALL.map(|tier| tier.as_str().to_owned()).to_vec();
    Confusion::tally(labels, judged.iter().map(|row| (row.truth.index(), row.top.index())))
}

fn bins(judged: &[Judged<'_>]) -> Vec<ReliabilityBin> {
    let predictions: Vec<(f64, bool)> = judged.iter().map(|row| (row.confidence, row.top == row.truth)).collect();
    reliability(&predictions, N_BINS)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{quick, row, scores};
    use super::*;

    #[test]
    fn under_routing_falls_as_the_promise_rises() {
        let tiers = [Tier::Simple, Tier::Medium, Tier::Complex, Tier::Complex];
        let rows = tiers.map(|tier| {
            let mut row = row("s/1", "text");
            row.tier = Some(tier);
            row
        });
        // Risk control picks simple up to 0.65, medium up to 0.85, complex beyond.
        let scores = scores("code", [0.65, 0.2, 0.15], 0.1);
        let cases: Vec<Case<'_>> = rows.iter().map(|row| Case { row, scores: Some(&scores) }).collect();
        let section = section(&cases, &TierControl::default(), &quick().bootstrap).unwrap();
        let under: Vec<f64> = section.risk.iter().map(|row| row.under_routed.value).collect();
        assert_eq!(under, [0.75, 0.5, 0.5, 0.0, 0.0]);
        assert!(section.risk_with_control.is_empty());
        assert_eq!(section.risk[1].tier_shares, [0.0, 1.0, 0.0]);
        assert_eq!(section.accuracy.value, 0.25);
        // The scored file says medium throughout, sufficient with probability 0.85; it suffices for 2 of 4.
        assert_eq!((section.served.exact, section.served.over_routed), (0.25, 0.25));
        assert_eq!(section.served.under_routed.value, 0.5);
        assert!((section.served.suffices_ece - 0.35).abs() < 1e-6);
        assert_eq!(section.by_source[0].under_routed_at_80, 0.5);
    }
}
