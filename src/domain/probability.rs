//! Probabilities and distributions that cannot hold nonsense.

use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

/// A finite number in `0..=1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Probability(f64);

/// A calibrated probability for every label of a fixed, ordered set; sums to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    labels: Arc<[Arc<str>]>,
    probabilities: Vec<f32>,
}

/// A value offered as a probability was not one.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{0} is not a probability: it must be finite and within 0..=1")]
pub struct NotAProbability(pub f64);

/// The numbers offered as a distribution were not one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotADistribution {
    /// As many numbers as labels are needed, and at least one.
    #[error("{labels} labels but {values} probabilities")]
    Length {
        /// Labels of the set.
        labels: usize,
        /// Numbers offered.
        values: usize,
    },
    /// A number was negative, not finite, or the sum was not 1.
    #[error("probabilities must be finite, >= 0 and sum to 1 (sum {0})")]
    Values(f32),
}

// === impl Probability ===

impl Probability {
    /// Impossible.
    pub const ZERO: Self = Self(0.0);
    /// Certain.
    pub const ONE: Self = Self(1.0);

    /// Checks that `value` is finite and within `0..=1`.
    ///
    /// # Errors
    /// Says which value was refused.
    pub fn new(value: f64) -> Result<Self, NotAProbability> {
        if value.is_finite() && (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(NotAProbability(value)) }
    }

    /// The nearest probability; NaN becomes 0.
    pub fn saturating(value: f64) -> Self {
        if value.is_nan() { Self::ZERO } else { Self(value.clamp(0.0, 1.0)) }
    }

    /// As a plain number.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl Serialize for Distribution {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> serde::Deserialize<'de> for Probability {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        Self::new(value).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Probability {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Probability".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0, "maximum": 1})
    }
}

// === impl Distribution ===

/// How far from 1 a sum of `f32` probabilities may be.
const SUM_TOLERANCE: f32 = 1e-3;

impl Distribution {
    /// Pairs labels with their probabilities.
    ///
    /// # Errors
    /// When lengths differ, a number is negative or not finite, or the sum is not 1 within 0.001.
    pub fn new(labels: Arc<[Arc<str>]>, probabilities: Vec<f32>) -> Result<Self, NotADistribution> {
        if labels.is_empty() || labels.len() != probabilities.len() {
            return Err(NotADistribution::Length { labels: labels.len(), values: probabilities.len() });
        }
        let sum: f32 = probabilities.iter().sum();
        let valid = probabilities.iter().all(|p| p.is_finite() && *p >= 0.0) && (sum - 1.0).abs() <= SUM_TOLERANCE;
        if !valid {
            return Err(NotADistribution::Values(sum));
        }
        Ok(Self { labels, probabilities })
    }

    /// The distribution over one label.
    pub fn certain(label: &str) -> Self {
        Self { labels: Arc::from([Arc::from(label)]), probabilities: vec![1.0] }
    }

    /// The labels, in the order of [`Self::probabilities`].
    pub fn labels(&self) -> &Arc<[Arc<str>]> {
        &self.labels
    }

    /// One number a label.
    pub fn probabilities(&self) -> &[f32] {
        &self.probabilities
    }

    /// Label and probability pairs, in label order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, f32)> {
        self.labels.iter().zip(self.probabilities.iter().copied())
    }

    /// The most probable label and its probability; the first of equals.
    pub fn top(&self) -> (&Arc<str>, f32) {
        let mut best = 0;
        for (index, p) in self.probabilities.iter().enumerate() {
            if *p > self.probabilities[best] {
                best = index;
            }
        }
        (&self.labels[best], self.probabilities[best])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Arc<[Arc<str>]> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn probability_refuses_what_is_not_one() {
        for bad in [f64::NAN, f64::INFINITY, -0.1, 1.000_1] {
            assert!(Probability::new(bad).is_err(), "{bad}");
        }
        assert_eq!(Probability::new(0.25).unwrap().value(), 0.25);
        assert_eq!(Probability::saturating(7.0), Probability::ONE);
        assert_eq!(Probability::saturating(f64::NAN), Probability::ZERO);
    }

    #[test]
    fn distribution_checks_length_and_sum() {
        assert!(matches!(
            Distribution::new(labels(&["a", "b"]), vec![1.0]),
            Err(NotADistribution::Length { labels: 2, values: 1 })
        ));
        assert!(matches!(Distribution::new(labels(&["a", "b"]), vec![0.9, 0.9]), Err(NotADistribution::Values(_))));
        assert!(Distribution::new(labels(&["a", "b"]), vec![f32::NAN, 1.0]).is_err());
        let valid = Distribution::new(labels(&["a", "b", "c"]), vec![0.2, 0.4, 0.4]).unwrap();
        assert_eq!(valid.top(), (&Arc::from("b"), 0.4), "the first of equals wins");
    }
}
