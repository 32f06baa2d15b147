//! Repairs typing errors with the words that the encoder knows.
//!
//! A misspelt word falls into word pieces that mean nothing, and the verdict on the text moves. Where an unknown word is
//! one error away from a known one (a letter too many, too few, wrong, or two swapped; Damerau 1964), the known one
//! is read in its place. Words are found by what is left of them without one letter, as in Garbe's symmetric delete
//! algorithm, so that a look-up costs about a microsecond however many words there are.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The words an encoder knows as wholes.
#[derive(Debug)]
pub(super) struct Spelling {
    /// Every known word, whatever its length.
    known: HashSet<Box<str>>,
    /// Words that may be put in place of others, most frequent first.
    words: Vec<Box<str>>,
    /// Hash of a word, whole or without one letter, and the word's place in `words`; sorted.
    index: Vec<(u64, u32)>,
}

/// Letters of words that are repaired and that others are repaired to; shorter ones are one error from too many.
const LENGTHS: std::ops::RangeInclusive<usize> = 4..=18;
/// Words looked up in one text, to bound the work on long nonsense.
const MAX_LOOKUPS: usize = 48;

impl Spelling {
    /// `vocabulary` is in order of frequency, as BERT's is.
    pub(super) fn new<'a>(vocabulary: impl Iterator<Item = &'a str>) -> Self {
        let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
        let all: Vec<Box<str>> = vocabulary.filter(is_word).map(Into::into).collect();
        let words: Vec<Box<str>> = all.iter().filter(|word| LENGTHS.contains(&word.len())).cloned().collect();
        let mut index: Vec<(u64, u32)> = Vec::new();
        for (place, word) in words.iter().enumerate() {
            index.extend(keys(word).map(|key| (key, place as u32)));
        }
        index.sort_unstable();
        index.dedup();
        Self { known: all.into_iter().collect(), words, index }
    }

    /// `text` with its misspelt words repaired; other words and everything between them stay as they are.
    pub(super) fn repair<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut repaired: Option<String> = None;
        let mut n_lookups = 0;
        let mut start = 0;
        for token in text.split_inclusive(char::is_whitespace) {
            let word = token.trim_matches(|c: char| !c.is_alphanumeric() && c != '_');
            if n_lookups < MAX_LOOKUPS
                && is_ordinary(word)
                && let Some(better) = self.look_up(word, &mut n_lookups)
            {
                let out = repaired.get_or_insert_with(|| text.split_at(start).0.to_owned());
                let (before, after) = token.split_once(word).unwrap_or((token, ""));
                out.extend([before, better, after]);
            } else if let Some(out) = &mut repaired {
                out.push_str(token);
            }
            start += token.len();
        }
        repaired.map_or(Cow::Borrowed(text), Cow::Owned)
    }

    /// The most frequent known word that is one error away from an unknown one.
    fn look_up(&self, word: &str, n_lookups: &mut usize) -> Option<&str> {
        let word = word.to_ascii_lowercase();
        if self.known.contains(word.as_str()) {
            return None;
        }
        *n_lookups += 1;
        keys(&word)
            .flat_map(|key| {
                let from = self.index.partition_point(|(other, _)| *other < key);
                self.index.iter().skip(from).take_while(move |(other, _)| *other == key).map(|(_, place)| *place)
            })
            .filter(|place| {
                self.words.get(*place as usize).is_some_and(|known| is_one_error(word.as_bytes(), known.as_bytes()))
            })
            .min()
            .and_then(|place| self.words.get(place as usize))
            .map(AsRef::as_ref)
    }
}

/// Letters alone, in whatever case: numbers and identifiers are nobody's errors. Names may be taken for errors, but a verdict
/// that hangs on case would flip with it.
fn is_ordinary(word: &str) -> bool {
    LENGTHS.contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// Hashes of a word and of what is left of it without one letter.
fn keys(word: &str) -> impl Iterator<Item = u64> + '_ {
    let without = |left_out: Option<usize>| {
        let mut hasher = DefaultHasher::new();
        for (at, byte) in word.bytes().enumerate() {
            if Some(at) != left_out {
                byte.hash(&mut hasher);
            }
        }
        hasher.finish()
    };
    std::iter::once(without(None)).chain((0..word.len()).map(move |at| without(Some(at))))
}

/// Whether one letter added, left out or changed, or two neighbours swapped, lead from one to the other.
fn is_one_error(a: &[u8], b: &[u8]) -> bool {
    let head = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (a.get(head..).unwrap_or_default(), b.get(head..).unwrap_or_default());
    match (a, b) {
        ([_, a @ ..], b) if a == b => true,
        (a, [_, b @ ..]) if a == b => true,
        ([_, a @ ..], [_, b @ ..]) if a == b => true,
        ([a1, a2, a @ ..], [b1, b2, b @ ..]) => a1 == b2 && a2 == b1 && a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spelling() -> Spelling {
        Spelling::new(
            ["the", "this", "there", "translate", "write", "poem", "about", "white", "[CLS]", "##ing"].into_iter(),
        )
    }

    #[test]
    fn one_error_is_repaired_and_nothing_else_changes() {
        let spelling = spelling();
        for (text, repaired) in [
            ("tranlsate this,  please!", "translate this,  please!"),
            ("Wriite a (peom) abuot it", "write a (poem) about it"),
            ("trnaslate", "translate"),
            ("TRNASLATE IT", "translate IT"),
        ] {
            assert_eq!(spelling.repair(text), repaired);
        }
        for text in ["translate this", "tokio", "a PXM", "poem2 abxut_", "tranlsatee", "", "  "] {
            assert_eq!(spelling.repair(text), text);
        }
    }

    #[test]
    fn the_more_frequent_word_wins() {
        assert_eq!(spelling().repair("a whrite b"), "a write b");
    }

    #[test]
    fn long_nonsense_costs_little() {
        let text = "qwpoe ".repeat(1_000);
        assert_eq!(spelling().repair(&text), text);
    }

    proptest! {
        /// Against the plain definition, by trying every edit.
        #[test]
        fn one_error_means_one_edit(a in "[ab]{0,5}", b in "[ab]{0,5}") {
            let bytes = a.as_bytes();
            let mut edits = std::collections::HashSet::new();
            for at in 0..=bytes.len() {
                for c in [b'a', b'b'] {
                    edits.insert([&bytes[..at], &[c], &bytes[at..]].concat());
                    if at < bytes.len() {
                        edits.insert([&bytes[..at], &[c], &bytes[at + 1..]].concat());
                    }
                }
                if at < bytes.len() {
                    edits.insert([&bytes[..at], &bytes[at + 1..]].concat());
                }
                if at + 1 < bytes.len() {
                    edits.insert([&bytes[..at], &[bytes[at + 1], bytes[at]], &bytes[at + 2..]].concat());
                }
            }
            // The word itself needs no error; whether it also counts as one is nobody's question.
            prop_assume!(a != b);
            prop_assert_eq!(is_one_error(bytes, b.as_bytes()), edits.contains(b.as_bytes()));
        }

        #[test]
        fn a_repaired_text_needs_no_repair(text in "[a-z]{3,8}( [a-z]{3,8}){0,5}") {
            let spelling = spelling();
            let once = spelling.repair(&text).into_owned();
            prop_assert_eq!(spelling.repair(&once), once.as_str());
        }
    }
}
