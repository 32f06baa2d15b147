//! Complexity tiers and the risk decision that picks one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Probability, TierControl};

/// How capable a model a query needs, as an ordered class cut from difficulty.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// A small, cheap model answers as well as the best one.
    Simple,
    /// A mid-size model is needed.
    Medium,
    /// A frontier model is needed.
    Complex,
}

/// The tier to act on and the probability that it suffices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TierChoice {
    /// The lowest tier whose cumulative probability reaches the asked one.
    pub tier: Tier,
    /// P(the query needs no more than `tier`).
    pub suffices: Probability,
}

impl Tier {
    /// All tiers, cheapest first.
    pub const ALL: [Self; 3] = [Self::Simple, Self::Medium, Self::Complex];

    /// The name used on the wire, in policies and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Medium => "medium",
            Self::Complex => "complex",
        }
    }

    /// Position in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The tier of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.as_str() == name)
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TierChoice {
    /// The lowest tier whose cumulative probability reaches `min_confidence`.
    ///
    /// `probabilities` is a distribution over [`Tier::ALL`]. So "at most x % of queries are under-routed" is
    /// `min_confidence = 1 - x`, as far as the distribution is calibrated.
    pub fn risk_controlled(probabilities: [f32; 3], min_confidence: Probability) -> Self {
        let mut cumulative = 0.0_f64;
        for tier in Tier::ALL {
            cumulative += f64::from(probabilities[tier.index()]);
            if cumulative >= min_confidence.value() {
                return Self { tier, suffices: Probability::saturating(cumulative) };
            }
        }
        // Rounding can leave the sum a hair under 1.
        Self { tier: Tier::Complex, suffices: Probability::ONE }
    }

    /// The lowest tier whose cumulative probability reaches what `control` says keeps the promise `asked`.
    pub fn controlled(probabilities: [f32; 3], asked: Probability, control: &TierControl) -> Self {
        Self::risk_controlled(probabilities, control.threshold(asked))
    }

    /// P(the query needs no more than `tier`), for a tier chosen by something else.
    pub fn fixed(tier: Tier, probabilities: [f32; 3]) -> Self {
        let cumulative: f64 = probabilities[..=tier.index()].iter().copied().map(f64::from).sum();
        Self { tier, suffices: Probability::saturating(cumulative) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn choose(probabilities: [f32; 3], min_confidence: f64) -> (Tier, f64) {
        let choice = TierChoice::risk_controlled(probabilities, Probability::new(min_confidence).unwrap());
        (choice.tier, choice.suffices.value())
    }

    #[test]
    fn takes_the_lowest_tier_that_reaches_the_confidence() {
        assert_eq!(choose([0.5, 0.25, 0.25], 0.5), (Tier::Simple, 0.5));
        assert_eq!(choose([0.5, 0.25, 0.25], 0.6), (Tier::Medium, 0.75));
        assert_eq!(choose([0.5, 0.25, 0.25], 0.8), (Tier::Complex, 1.0));
        assert_eq!(choose([0.0, 0.0, 1.0], 0.0), (Tier::Simple, 0.0));
    }

    #[test]
    fn names_round_trip() {
        for tier in Tier::ALL {
            assert_eq!(Tier::parse(tier.as_str()), Some(tier));
        }
        assert_eq!(Tier::parse("Simple"), None);
    }

    proptest! {
        #[test]
        fn asking_for_more_confidence_never_lowers_the_tier(
            raw in [0.01_f32..1.0, 0.01_f32..1.0, 0.01_f32..1.0],
            low in 0.0_f64..=1.0,
            high in 0.0_f64..=1.0,
        ) {
            let sum: f32 = raw.iter().sum();
            let p = raw.map(|value| value / sum);
            let (low, high) = (low.min(high), low.max(high));
            prop_assert!(choose(p, low).0 <= choose(p, high).0);
            prop_assert!(choose(p, high).1 >= high || choose(p, high).0 == Tier::Complex);
        }
    }
}
