//! From the promise an operator asks for to the probability that keeps it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Probability;

/// For each asked confidence, the cumulative tier probability that a tier must reach.
///
/// A tier is a step: taking the lowest tier whose probability to suffice reaches 0.80 under-routes far fewer than 20 %
/// of queries. The map says which threshold under-routes as many as asked for and no more, measured on held-out rows.
/// The empty map leaves thresholds as they are asked for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "Vec<[f64; 2]>", into = "Vec<[f64; 2]>")]
pub struct TierControl(Arc<[[f64; 2]]>);

/// Numbers offered as a [`TierControl`] are none.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "a tier control holds [asked, threshold] pairs within 0..=1, asked rising and threshold not falling; not {0:?}"
)]
pub struct NotATierControl(pub [f64; 2]);

// === impl TierControl ===

impl TierControl {
    /// The cumulative probability that keeps the promise `asked`; interpolated between the map's points, which the
    /// ends `0 -> 0` and `1 -> 1` complete.
    pub fn threshold(&self, asked: Probability) -> Probability {
        if self.0.is_empty() {
            return asked;
        }
        let mut below = [0.0, 0.0];
        for above in self.0.iter().copied().chain([[1.0, 1.0]]) {
            if asked.value() <= above[0] {
                let width = above[0] - below[0];
                let part = if width > 0.0 { (asked.value() - below[0]) / width } else { 1.0 };
                // At a point of the map its very threshold, without rounding.
                let threshold = if part >= 1.0 { above[1] } else { below[1] + part * (above[1] - below[1]) };
                return Probability::saturating(threshold);
            }
            below = above;
        }
        Probability::ONE
    }

    /// Whether thresholds are as they are asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Vec<[f64; 2]>> for TierControl {
    type Error = NotATierControl;

    fn try_from(points: Vec<[f64; 2]>) -> Result<Self, NotATierControl> {
        let mut before: Option<[f64; 2]> = None;
        for point in &points {
            let within = point.iter().all(|value| (0.0..=1.0).contains(value));
            if !within || before.is_some_and(|before| point[0] <= before[0] || point[1] < before[1]) {
                return Err(NotATierControl(*point));
            }
            before = Some(*point);
        }
        Ok(Self(points.into()))
    }
}

impl From<TierControl> for Vec<[f64; 2]> {
    fn from(control: TierControl) -> Self {
        control.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(control: &TierControl, asked: f64) -> f64 {
        control.threshold(Probability::new(asked).unwrap()).value()
    }

    #[test]
    fn points_are_met_and_joined() {
        let control = TierControl::try_from(vec![[0.5, 0.1], [0.8, 0.4]]).unwrap();
        assert_eq!((at(&control, 0.5), at(&control, 0.8)), (0.1, 0.4));
        assert!((at(&control, 0.65) - 0.25).abs() < 1e-12 && (at(&control, 0.9) - 0.7).abs() < 1e-12);
        assert_eq!((at(&control, 0.0), at(&control, 1.0)), (0.0, 1.0));
        assert_eq!(at(&TierControl::default(), 0.8), 0.8);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [vec![[0.5, 1.5]], vec![[0.5, 0.5], [0.5, 0.6]], vec![[0.5, 0.5], [0.6, 0.4]], vec![[f64::NAN, 0.0]]]
        {
            assert!(TierControl::try_from(bad.clone()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn more_confidence_never_needs_less(
            mut thresholds in prop::collection::vec(0.0_f64..=1.0, 0..12), low in 0.0_f64..=1.0, high in 0.0_f64..=1.0,
        ) {
            thresholds.sort_by(f64::total_cmp);
            let points = thresholds.iter().enumerate().map(|(i, t)| [(i + 1) as f64 / 20.0, *t]).collect::<Vec<_>>();
            let control = TierControl::try_from(points).unwrap();
            prop_assert!(at(&control, low.min(high)) <= at(&control, low.max(high)));
        }
    }
}
