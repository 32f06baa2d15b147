//! What a router buys between a weak and a strong model: cost-quality curve, APGR, CPT.
//!
//! Definitions of `RouteLLM` (arXiv 2406.18665) and its published evaluation code: a query goes to the strong model when
//! the router's score reaches a threshold; thresholds are the ten-quantile edges of the router's own scores on the rows
//! at hand, from 100 % to 0 % strong calls. APGR is the area between the curve of quality over strong share and the
//! weak model's quality, as a share of the same area of the strong model. CPT(p) is the smallest strong share at which
//! p of the quality gap is recovered.

use serde::Serialize;

use super::mean;
use super::resample::quantile;

/// One query as a router between two models sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routable {
    /// The router's score: higher goes to the strong model first.
    pub score: f64,
    /// Quality of the weak model's answer, 0..1.
    pub weak: f64,
    /// Quality of the strong model's answer, 0..1.
    pub strong: f64,
}

/// One setting of a router's threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Share of queries sent to the strong model.
    pub strong_share: f64,
    /// Mean quality of the answers.
    pub quality: f64,
}

/// Quality over strong share, from no strong calls to strong calls only.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// By ascending strong share; the first is all weak, the last all strong (or, for the oracle, as good as it gets).
    pub points: Vec<CurvePoint>,
    /// Quality of always calling the weak model.
    pub weak: f64,
    /// Quality of always calling the strong model.
    pub strong: f64,
}

/// Steps between the thresholds: ten, as `RouteLLM` publishes.
const N_STEPS: usize = 10;

// === impl Curve ===

impl Curve {
    /// The curve of the rows' scores; `None` without rows.
    pub fn of(rows: &[Routable]) -> Option<Self> {
        let (weak, strong) = (mean(rows.iter().map(|row| row.weak))?, mean(rows.iter().map(|row| row.strong))?);
        let mut ascending = rows.to_vec();
        ascending.sort_unstable_by(|a, b| a.score.total_cmp(&b.score));
        let scores: Vec<f64> = ascending.iter().map(|row| row.score).collect();
        let n = rows.len() as f64;

        // gained[i]: quality gained over always-weak when all rows but the first i go to the strong model.
        let mut gained = vec![0.0; rows.len() + 1];
        for (index, row) in ascending.iter().enumerate().rev() {
            gained[index] = gained[index + 1] + row.strong - row.weak;
        }
        let at =
            |kept: usize| CurvePoint { strong_share: (rows.len() - kept) as f64 / n, quality: weak + gained[kept] / n };

        // The top edge is exclusive, so that the curve ends at no strong calls; equal scores move together.
        let mut points = vec![at(rows.len())];
        for step in (0..N_STEPS).rev() {
            let threshold = quantile(&scores, step as f64 / N_STEPS as f64)?;
            points.push(at(scores.partition_point(|score| *score < threshold)));
        }
        points.dedup();
        Some(Self { points, weak, strong })
    }

    /// The best any router could do with a budget of strong calls: the largest gains first, and never a loss.
    ///
    /// It has a point for every row, so no [`Self::of`] the same rows lies above it anywhere.
    pub fn oracle(rows: &[Routable]) -> Option<Self> {
        let (weak, strong) = (mean(rows.iter().map(|row| row.weak))?, mean(rows.iter().map(|row| row.strong))?);
        let mut gains: Vec<f64> = rows.iter().map(|row| row.strong - row.weak).collect();
        gains.sort_unstable_by(|a, b| b.total_cmp(a));
        let n = rows.len() as f64;
        let mut quality = weak;
        let mut points = vec![CurvePoint { strong_share: 0.0, quality }];
        for (index, gain) in gains.iter().enumerate() {
            quality += gain.max(0.0) / n;
            points.push(CurvePoint { strong_share: (index + 1) as f64 / n, quality });
        }
        Some(Self { points, weak, strong })
    }

    /// Random routing in expectation: the straight line from weak to strong.
    pub fn random(rows: &[Routable]) -> Option<Self> {
        let (weak, strong) = (mean(rows.iter().map(|row| row.weak))?, mean(rows.iter().map(|row| row.strong))?);
        let points =
            vec![CurvePoint { strong_share: 0.0, quality: weak }, CurvePoint { strong_share: 1.0, quality: strong }];
        Some(Self { points, weak, strong })
    }

    /// Average performance gap recovered: 0 is always weak, 1 always strong, 0.5 random. `None` where the strong model
    /// is not better.
    pub fn apgr(&self) -> Option<f64> {
        let area: f64 = self
            .points
            .windows(2)
            .map(|pair| (pair[1].strong_share - pair[0].strong_share) * f64::midpoint(pair[0].quality, pair[1].quality))
            .sum();
        Some((area - self.weak) / self.gap()?)
    }

    /// The smallest strong share, interpolated linearly, at which the share `recovered` of the gap is recovered.
    pub fn cpt(&self, recovered: f64) -> Option<f64> {
        let level = self.weak + recovered * self.gap()?;
        let mut previous = *self.points.first()?;
        for point in &self.points {
            if point.quality >= level {
                let rise = point.quality - previous.quality;
                let part = if rise > 0.0 { (level - previous.quality) / rise } else { 0.0 };
                return Some(previous.strong_share + part * (point.strong_share - previous.strong_share));
            }
            previous = *point;
        }
        // The last point is the strong model's quality, so only rounding gets here.
        Some(previous.strong_share)
    }

    /// At most `n` of the points, spread over the curve, for drawing.
    pub fn thinned(&self, n: usize) -> Vec<CurvePoint> {
        let (len, n) = (self.points.len(), n.max(2));
        if len <= n {
            return self.points.clone();
        }
        (0..n).filter_map(|i| self.points.get(i * (len - 1) / (n - 1)).copied()).collect()
    }

    fn gap(&self) -> Option<f64> {
        let gap = self.strong - self.weak;
        (gap > 1e-12).then_some(gap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(raw: &[(f64, f64, f64)]) -> Vec<Routable> {
        raw.iter().map(|(score, weak, strong)| Routable { score: *score, weak: *weak, strong: *strong }).collect()
    }

    fn shares(curve: &Curve) -> Vec<(f64, f64)> {
        curve.points.iter().map(|point| (point.strong_share, point.quality)).collect()
    }

    #[test]
    fn agrees_with_a_case_worked_by_hand() {
        // The weak model fails on the two rows scored highest; the strong one never fails.
        let rows = rows(&[(0.3, 0.0, 1.0), (0.1, 1.0, 1.0), (0.4, 0.0, 1.0), (0.2, 1.0, 1.0)]);
        let curve = Curve::of(&rows).unwrap();
        assert_eq!(shares(&curve), [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)]);
        // Area 0.25 * 0.625 + 0.25 * 0.875 + 0.5 = 0.875; (0.875 - 0.5) / (1 - 0.5).
        assert_eq!(curve.apgr(), Some(0.75));
        assert_eq!(curve.cpt(0.5), Some(0.25));
        assert!((curve.cpt(0.8).unwrap() - 0.4).abs() < 1e-12);
        assert_eq!(Curve::oracle(&rows).unwrap().apgr(), Some(0.75), "this router is the oracle");
    }

    #[test]
    fn ten_thresholds_are_used_however_many_rows() {
        let raw: Vec<(f64, f64, f64)> = (0..1_000).map(|i| (f64::from(i), 0.0, 1.0)).collect();
        let curve = Curve::of(&rows(&raw)).unwrap();
        assert_eq!(curve.points.len(), 11);
        assert!((curve.points[1].strong_share - 0.1).abs() < 1e-9);
        assert!((curve.apgr().unwrap() - 0.5).abs() < 1e-9, "equal gain everywhere is worth no router");
    }

    #[test]
    fn a_router_that_can_tell_nothing_is_random() {
        let rows = rows(&[(0.7, 0.0, 1.0), (0.7, 1.0, 1.0), (0.7, 0.0, 0.0)]);
        let curve = Curve::of(&rows).unwrap();
        assert_eq!(curve.points.len(), 2);
        assert!((curve.apgr().unwrap() - 0.5).abs() < 1e-12);
        let random = Curve::random(&rows).unwrap();
        assert!((random.apgr().unwrap() - 0.5).abs() < 1e-12);
        assert!((random.cpt(0.8).unwrap() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn the_oracle_skips_losses() {
        // Gains 1, 0, 0, -1 and 1: always-strong 0.6, weak 0.4, oracle 0.8 from 40 % strong calls on.
        let rows = rows(&[(0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]);
        let oracle = Curve::oracle(&rows).unwrap();
        let last = oracle.points.last().unwrap();
        assert!((last.quality - 0.8).abs() < 1e-12 && (oracle.strong - 0.6).abs() < 1e-12);
        // Area above weak: 0.5 * 0.4 * 0.4 + 0.6 * 0.4 = 0.32, over a gap of 0.2.
        assert!((oracle.apgr().unwrap() - 1.6).abs() < 1e-9);
        assert!((oracle.cpt(0.5).unwrap() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn no_gap_no_figure() {
        let curve = Curve::of(&rows(&[(0.1, 1.0, 1.0), (0.2, 1.0, 0.0)])).unwrap();
        assert_eq!((curve.apgr(), curve.cpt(0.5)), (None, None));
        assert_eq!(Curve::of(&[]), None);
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let raw: Vec<(f64, f64, f64)> = (0..500).map(|i| (0.0, 0.0, f64::from(i % 2))).collect();
        let curve = Curve::oracle(&rows(&raw)).unwrap();
        let thin = curve.thinned(51);
        assert_eq!(thin.len(), 51);
        assert_eq!((thin.first(), thin.last()), (curve.points.first(), curve.points.last()));
    }

    fn any_rows() -> impl Strategy<Value = Vec<Routable>> {
        let row = (0_u8..20, 0_u8..=4, 0_u8..=4).prop_map(|(score, weak, strong)| Routable {
            score: f64::from(score) / 20.0,
            weak: f64::from(weak) / 4.0,
            strong: f64::from(strong) / 4.0,
        });
        prop::collection::vec(row, 1..80)
    }

    proptest! {
        #[test]
        fn no_router_beats_the_oracle(rows in any_rows()) {
            let (curve, oracle) = (Curve::of(&rows).unwrap(), Curve::oracle(&rows).unwrap());
            if let (Some(router), Some(best)) = (curve.apgr(), oracle.apgr()) {
                prop_assert!(router <= best + 1e-9);
                prop_assert!(curve.cpt(0.5).unwrap() >= oracle.cpt(0.5).unwrap() - 1e-9);
                prop_assert!(curve.cpt(0.5).unwrap() <= curve.cpt(0.8).unwrap() + 1e-9);
            }
        }

        #[test]
        fn curves_run_from_all_weak_to_all_strong(rows in any_rows()) {
            let curve = Curve::of(&rows).unwrap();
            let (first, last) = (curve.points[0], *curve.points.last().unwrap());
            prop_assert_eq!(first.strong_share, 0.0);
            prop_assert!((first.quality - curve.weak).abs() < 1e-9);
            prop_assert_eq!(last.strong_share, 1.0);
            prop_assert!((last.quality - curve.strong).abs() < 1e-9);
            prop_assert!(curve.points.windows(2).all(|pair| pair[0].strong_share <= pair[1].strong_share));
        }

        #[test]
        fn only_the_order_of_scores_matters(rows in any_rows()) {
            // Doubling is exact in binary, so quantile edges scale along.
            let scaled: Vec<Routable> = rows.iter().map(|row| Routable { score: row.score * 2.0, ..*row }).collect();
            prop_assert_eq!(Curve::of(&rows), Curve::of(&scaled));
        }
    }
}
