//! Changes of a prompt that leave its meaning alone: what a person might as well have typed.
//!
//! A classifier's verdict should survive them. They serve twice, for training copies and for the table of
//! `pointsman robustness`, and [`Pool`] keeps the two apart: phrases that one writes the other never does. Pure: the same
//! kind, pool, text and seed give the same result. Code fences, inline code, URLs, addresses and lines that look like code
//! pass through byte by byte.

mod layout;
mod paraphrase;
mod phrases;
mod pieces;
mod surround;
mod typo;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use phrases::Phrases;

/// One kind of change.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Perturbation {
    /// All lower case.
    Lower,
    /// All upper case.
    Upper,
    /// Final punctuation dropped, added or doubled, or a comma dropped.
    Punctuation,
    /// A greeting, polite opening or thanks around the prompt.
    Wrapper,
    /// One typing error per ten words.
    Typo,
    /// A signature, disclaimer or quoted header below the prompt.
    Boilerplate,
    /// Double spaces, line breaks, trailing spaces.
    Whitespace,
    /// Contractions, synonyms, and a question for an order or the other way round.
    Paraphrase,
}

/// Whose phrases are used. What one pool writes, the other never writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pool {
    /// Copies to train on.
    Training,
    /// Copies to measure on.
    Testing,
}

/// `text` changed in one way, or `None` where there is nothing to change: no letters, or no place for this kind.
///
/// A result is never empty and never equal to `text`. Make `seed` with [`seed_of`], so that rows differ.
pub fn perturb(kind: Perturbation, pool: Pool, text: &str, seed: u64) -> Option<String> {
    if !text.chars().any(char::is_alphabetic) {
        return None;
    }
    let rng = &mut StdRng::seed_from_u64(seed);
    let phrases = Phrases::of(pool);
    let changed = match kind {
        Perturbation::Lower => Some(pieces::map_prose(text, str::to_lowercase)),
        Perturbation::Upper => Some(pieces::map_prose(text, str::to_uppercase)),
        Perturbation::Punctuation => layout::punctuation(text, rng),
        Perturbation::Whitespace => Some(layout::whitespace(text, rng)),
        Perturbation::Typo => typo::typo(text, rng),
        Perturbation::Wrapper => surround::wrapper(text, phrases, rng),
        Perturbation::Boilerplate => surround::boilerplate(text, phrases, rng),
        Perturbation::Paraphrase => paraphrase::paraphrase(text, pool, rng),
    };
    changed.filter(|changed| changed != text)
}

/// The seed for one kind of change of one row: a hash, so that neither rows nor kinds share their luck.
pub fn seed_of(seed: u64, kind: Perturbation, row_id: &str) -> u64 {
    let digest = Sha256::new()
        .chain_update(seed.to_be_bytes())
        .chain_update(kind.as_str().as_bytes())
        .chain_update(b"\0")
        .chain_update(row_id.as_bytes())
        .finalize();
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

// === impl Perturbation ===

impl Perturbation {
    /// Every kind, in the order of tables.
    pub const ALL: [Self; 8] = [
        Self::Lower,
        Self::Upper,
        Self::Punctuation,
        Self::Wrapper,
        Self::Typo,
        Self::Boilerplate,
        Self::Whitespace,
        Self::Paraphrase,
    ];

    /// The name in tables and recipes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lower => "lower",
            Self::Upper => "upper",
            Self::Punctuation => "punctuation",
            Self::Wrapper => "wrapper",
            Self::Typo => "typo",
            Self::Boilerplate => "boilerplate",
            Self::Whitespace => "whitespace",
            Self::Paraphrase => "paraphrase",
        }
    }
}

fn pick<'a, T>(items: &'a [T], rng: &mut StdRng) -> Option<&'a T> {
    if items.is_empty() { None } else { items.get(rng.random_range(0..items.len())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FENCE: &str = "```python\nDef  Foo(A, B):\n    Return  A==B, don't\n```";

    #[test]
    fn each_kind_changes_an_ordinary_prompt() {
        let text = "What is the best way to learn Spanish, if I do not have much time each day?";
        for pool in [Pool::Training, Pool::Testing] {
            for kind in Perturbation::ALL {
                let changed = perturb(kind, pool, text, seed_of(7, kind, "own/1"));
                assert!(changed.is_some(), "{kind:?} {pool:?}");
            }
        }
    }

    #[test]
    fn nothing_to_change_is_none() {
        for kind in Perturbation::ALL {
            assert_eq!(perturb(kind, Pool::Testing, "2 + 2 = ?", 1), None);
            assert_eq!(perturb(kind, Pool::Testing, "", 1), None);
        }
        assert_eq!(perturb(Perturbation::Lower, Pool::Testing, "tell me a joke", 1), None);
        assert_eq!(perturb(Perturbation::Typo, Pool::Testing, "tell me a joke", 1), None, "fewer than five words");
    }

    #[test]
    fn rows_and_kinds_do_not_share_seeds() {
        let seed = seed_of(1, Perturbation::Typo, "a/1");
        assert_eq!(seed, seed_of(1, Perturbation::Typo, "a/1"));
        assert_ne!(seed, seed_of(2, Perturbation::Typo, "a/1"));
        assert_ne!(seed, seed_of(1, Perturbation::Lower, "a/1"));
        assert_ne!(seed, seed_of(1, Perturbation::Typo, "a/2"));
    }

    proptest! {
        #[test]
        fn any_text_is_changed_within_bounds(
            text in "\\PC{0,200}", kind in prop::sample::select(&Perturbation::ALL[..]),
            testing in any::<bool>(), seed in any::<u64>(),
        ) {
            let pool = if testing { Pool::Testing } else { Pool::Training };
            let changed = perturb(kind, pool, &text, seed);
            prop_assert_eq!(&changed, &perturb(kind, pool, &text, seed));
            if let Some(changed) = changed {
                prop_assert!(!changed.trim().is_empty());
                prop_assert_ne!(&changed, &text);
                prop_assert!(changed.len() <= 4 * text.len() + 600, "{} from {}", changed.len(), text.len());
            }
        }

        #[test]
        fn code_and_addresses_pass_untouched(
            before in "([A-Za-z']{1,9}[ ,.?]{1,2}){1,12}", after in "([A-Za-z]{1,9} ){0,6}",
            kind in prop::sample::select(&Perturbation::ALL[..]), seed in any::<u64>(),
        ) {
            let text = format!("{before}\n{FENCE}\n{after} see https://Example.org/A,b and `Do not`.");
            if let Some(changed) = perturb(kind, Pool::Training, &text, seed) {
                for kept in [FENCE, "https://Example.org/A,b", "`Do not`"] {
                    prop_assert!(changed.contains(kept), "{kind:?}: {changed}");
                }
            }
        }
    }
}
