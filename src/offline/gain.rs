//! The expected gain of a strong model over a weak one: two abilities and a prompt's difficulty in, one number out.
//!
//! Difficulty alone orders prompts by how many models fail them. Where the choice is between two models, what counts
//! is the difference: prompts that both answer, and prompts that both fail, gain nothing from the stronger one.

use std::collections::BTreeMap;

use super::evaluate::ModelPair;
use super::evaluate::models::{REFERENCE_STRONG, REFERENCE_WEAK, canonical_name};
use crate::artifact::ModelAbility;
use crate::domain::Probability;

/// A pair of models as a caller writes it: `WEAK,STRONG`.
#[derive(Clone, Debug, PartialEq)]
pub struct PairSpec {
    /// The cheaper model.
    pub weak: Side,
    /// The better model.
    pub strong: Side,
}

/// One model of a pair.
#[derive(Clone, Debug, PartialEq)]
pub enum Side {
    /// Its canonical name.
    Named(String),
    /// Its ability in logits.
    Ability(f64),
}

/// A pair of models on the scale of the difficulty head.
#[derive(Clone, Debug, PartialEq)]
pub struct AbilityPair {
    /// The cheaper model.
    pub weak: Contender,
    /// The better model.
    pub strong: Contender,
}

/// A model of a pair, its ability known.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// Its name, where the caller or the classifier gave one.
    pub name: Option<String>,
    /// In logits.
    pub ability: f64,
}

/// Why a pair cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PairError {
    /// Not two parts.
    #[error("write two models with a comma between them, the weak one first: names, or abilities in logits like 0,2")]
    NotAPair,
    /// A number that no model has.
    #[error("{0} is not an ability: it must lie within -{MOST_ABILITY}..={MOST_ABILITY} logits")]
    NotAnAbility(f64),
    /// The classifier knows abilities, but not this model's.
    #[error(
        "the classifier knows no ability of {name}, but of {known}; write one of those, or the ability itself in \
         logits (measure it with: pointsman ability fit)"
    )]
    UnknownModel {
        /// The model asked for, canonically spelt.
        name: String,
        /// Models of that family, or how many others there are.
        known: String,
    },
    /// The classifier was trained without outcomes, or before they were kept.
    #[error(
        "the classifier knows no abilities, so {name} says nothing to it; write abilities in logits like 0,2, or train \
         the classifier again on rows with outcomes"
    )]
    NoAbilities {
        /// The model asked for, canonically spelt.
        name: String,
    },
}

/// Abilities taken where neither the caller nor the classifier names any: the scale is anchored at the weak reference
/// model, and the strong one of the published tables stands about two logits above it.
pub const DEFAULT_ABILITIES: (f64, f64) = (0.0, 2.0);

/// Beyond this, every answer is right or wrong to all digits.
const MOST_ABILITY: f64 = 30.0;

// === impl PairSpec ===

impl PairSpec {
    /// The pair by name, where both sides are names.
    pub fn models(&self) -> Option<ModelPair> {
        match (&self.weak, &self.strong) {
            (Side::Named(weak), Side::Named(strong)) => Some(ModelPair { weak: weak.clone(), strong: strong.clone() }),
            _ => None,
        }
    }

    /// Whether both sides are abilities.
    pub fn is_numbers(&self) -> bool {
        matches!((&self.weak, &self.strong), (Side::Ability(_), Side::Ability(_)))
    }
}

impl From<ModelPair> for PairSpec {
    fn from(pair: ModelPair) -> Self {
        Self { weak: Side::Named(pair.weak), strong: Side::Named(pair.strong) }
    }
}

impl std::str::FromStr for PairSpec {
    type Err = PairError;

    fn from_str(value: &str) -> Result<Self, PairError> {
        let (weak, strong) = value.split_once(',').ok_or(PairError::NotAPair)?;
        Ok(Self { weak: weak.parse()?, strong: strong.parse()? })
    }
}

// === impl Side ===

impl std::str::FromStr for Side {
    type Err = PairError;

    fn from_str(value: &str) -> Result<Self, PairError> {
        let value = value.trim();
        match value.parse::<f64>() {
            Ok(ability) if ability.is_finite() && ability.abs() <= MOST_ABILITY => Ok(Self::Ability(ability)),
            Ok(ability) => Err(PairError::NotAnAbility(ability)),
            Err(_) if value.is_empty() || value.contains(',') => Err(PairError::NotAPair),
            Err(_) => Ok(Self::Named(canonical_name(value))),
        }
    }
}

impl Side {
    fn contender(&self, abilities: &BTreeMap<String, ModelAbility>) -> Result<Contender, PairError> {
        match self {
            Self::Ability(ability) => Ok(Contender { name: None, ability: *ability }),
            Self::Named(name) => match abilities.get(name) {
                Some(known) => Ok(Contender { name: Some(name.clone()), ability: known.ability }),
                None if abilities.is_empty() => Err(PairError::NoAbilities { name: name.clone() }),
                None => {
                    let family = name.split('-').next().unwrap_or_default();
                    let like: Vec<&str> =
                        abilities.keys().map(String::as_str).filter(|known| known.starts_with(family)).collect();
                    let known = match like[..] {
                        [] => format!("{} models that its manifest names", abilities.len()),
                        _ => like.join(", "),
                    };
                    Err(PairError::UnknownModel { name: name.clone(), known })
                }
            },
        }
    }
}

// === impl AbilityPair ===

impl AbilityPair {
    /// The pair that `asked` names, on the scale of `abilities`.
    ///
    /// # Errors
    /// Says which model is unknown and what to write instead.
    pub fn of(asked: &PairSpec, abilities: &BTreeMap<String, ModelAbility>) -> Result<Self, PairError> {
        Ok(Self { weak: asked.weak.contender(abilities)?, strong: asked.strong.contender(abilities)? })
    }

    /// The reference pair of a classifier, or [`DEFAULT_ABILITIES`] where it has none.
    pub fn reference(pair: Option<&[String; 2]>, abilities: &BTreeMap<String, ModelAbility>) -> Self {
        let known = pair.and_then(|[weak, strong]| {
            let side = |name: &String| Side::Named(name.clone()).contender(abilities).ok();
            Some(Self { weak: side(weak)?, strong: side(strong)? })
        });
        known.unwrap_or_else(|| {
            let assumed = |name: &str, ability| Contender { name: Some(format!("{name}, assumed")), ability };
            let (weak, strong) = DEFAULT_ABILITIES;
            Self { weak: assumed(REFERENCE_WEAK, weak), strong: assumed(REFERENCE_STRONG, strong) }
        })
    }

    /// P(the strong model answers well) - P(the weak one does); negative where the weak one is the more able.
    pub fn gain(&self, difficulty: Probability) -> f64 {
        let z = latent(difficulty);
        let (strong, weak) = ((self.strong.ability - z) / 2.0, (self.weak.ability - z) / 2.0);
        // sigmoid(2s) - sigmoid(2w) without the cancellation that would make ties of very easy prompts.
        (strong - weak).sinh() / (2.0 * strong.cosh() * weak.cosh())
    }
}

impl std::fmt::Display for AbilityPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} over {}", self.strong, self.weak)
    }
}

impl std::fmt::Display for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (ability {:.2})", self.ability),
            None => write!(f, "a model of ability {:.2}", self.ability),
        }
    }
}

/// Difficulty on the scale of abilities, in logits; finite for certainties too.
pub fn latent(difficulty: Probability) -> f64 {
    let p = difficulty.value();
    (p.ln() - (1.0 - p).ln()).clamp(-MOST_LATENT, MOST_LATENT)
}

/// Where `1 - p` runs out of digits.
const MOST_LATENT: f64 = 36.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn numbers(weak: f64, strong: f64) -> AbilityPair {
        let spec = PairSpec { weak: Side::Ability(weak), strong: Side::Ability(strong) };
        AbilityPair::of(&spec, &BTreeMap::new()).unwrap()
    }

    fn abilities() -> BTreeMap<String, ModelAbility> {
        [("mixtral-8x7b-instruct", 0.0), ("gpt-4-1106", 1.5)]
            .map(|(name, ability)| (name.to_owned(), ModelAbility { ability, standard_error: 0.1, answers: 9 }))
            .into()
    }

    #[test]
    fn sides_are_names_or_numbers() {
        let pair: PairSpec = "mistralai/Mixtral-8x7B-Instruct-v0.1, 1.5".parse().unwrap();
        assert_eq!(pair.weak, Side::Named("mixtral-8x7b-instruct".into()));
        assert_eq!(pair.strong, Side::Ability(1.5));
        assert!(pair.models().is_none() && !pair.is_numbers());
        let pair = AbilityPair::of(&pair, &abilities()).unwrap();
        assert_eq!(pair.to_string(), "a model of ability 1.50 over mixtral-8x7b-instruct (ability 0.00)");
        for (bad, part) in [("a", "comma"), ("a,", "comma"), ("a,b,c", "comma"), ("0,NaN", "NaN"), ("0,99", "30")] {
            let error = bad.parse::<PairSpec>().unwrap_err().to_string();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn unknown_models_are_told_with_the_way_out() {
        let pair: PairSpec = "mixtral-8x7b-chat,gpt-9".parse().unwrap();
        let error = AbilityPair::of(&pair, &abilities()).unwrap_err().to_string();
        assert!(error.contains("gpt-9") && error.contains("gpt-4-1106") && error.contains("ability fit"), "{error}");
        let error = AbilityPair::of(&pair, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("train") && error.contains("0,2"), "{error}");
    }

    #[test]
    fn the_reference_pair_is_the_classifiers_or_the_assumed_one() {
        let pair = ["mixtral-8x7b-instruct".to_owned(), "gpt-4-1106".to_owned()];
        let known = AbilityPair::reference(Some(&pair), &abilities());
        assert_eq!((known.weak.ability, known.strong.ability), (0.0, 1.5));
        let assumed = AbilityPair::reference(None, &BTreeMap::new());
        assert_eq!((assumed.weak.ability, assumed.strong.ability), DEFAULT_ABILITIES);
        assert!(assumed.to_string().contains("assumed"));
    }

    #[test]
    fn gain_is_largest_between_the_two_models() {
        let pair = numbers(-1.0, 2.0);
        let at = |z: f64| pair.gain(Probability::new(sigmoid(z)).unwrap());
        assert!((at(0.5) - (sigmoid(1.5) - sigmoid(-1.5))).abs() < 1e-12);
        assert!(at(0.5) > at(0.0) && at(0.5) > at(1.0), "difficulty alone would send the hardest first");
        assert!(at(12.0) < 1e-3 && at(-12.0) < 1e-3);
        for certain in [Probability::ZERO, Probability::ONE] {
            assert!(pair.gain(certain) >= 0.0 && pair.gain(certain) < 1e-12);
        }
        assert!((numbers(2.0, -1.0).gain(Probability::new(0.5).unwrap()) + at(0.0)).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn gain_follows_its_definition_and_has_no_ties(z in -12.0_f64..12.0, weak in -4.0_f64..4.0, more in 0.1_f64..4.0) {
            let pair = numbers(weak, weak + more);
            let at = |z: f64| pair.gain(Probability::new(sigmoid(z)).unwrap());
            let expected = sigmoid(weak + more - z) - sigmoid(weak - z);
            prop_assert!((at(z) - expected).abs() < 1e-9);
            // A step of a millionth of a logit away from the peak is seen.
            let peak = weak + more / 2.0;
            let step = if z < peak { -1e-6 } else { 1e-6 };
            prop_assert!(at(z + step) < at(z));
        }
    }
}
