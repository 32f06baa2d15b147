//! The same thing said in other words, by rule.

use std::collections::HashMap;
use std::sync::LazyLock;

use rand::RngExt as _;
use rand::rngs::StdRng;
use regex::Regex;

use super::phrases::{Opening, Phrases, is_order};
use super::pieces::{map_prose, pieces};
use super::surround::{lower_first, upper_first};
use super::{Pool, pick};

/// A pool's synonyms, ready to be found: what stands for each phrase in lower case.
struct Synonyms {
    pattern: Regex,
    other: HashMap<String, &'static str>,
}

/// Share of the synonyms found that are exchanged.
const EXCHANGED_SHARE: f64 = 0.6;

static SYNONYMS: [LazyLock<Option<Synonyms>>; 2] =
    [LazyLock::new(|| Synonyms::of(Pool::Training)), LazyLock::new(|| Synonyms::of(Pool::Testing))];

/// Another opening where there is a rule for it, then synonyms; `None` where neither finds anything.
pub(super) fn paraphrase(text: &str, pool: Pool, rng: &mut StdRng) -> Option<String> {
    let phrases = Phrases::of(pool);
    let reopened = reopen(text, phrases, rng);
    let is_reopened = reopened.is_some();
    let text = reopened.unwrap_or_else(|| text.to_owned());
    let exchanged = synonyms(pool).and_then(|synonyms| synonyms.exchange(&text, !is_reopened, rng));
    exchanged.or_else(|| is_reopened.then_some(text))
}

fn synonyms(pool: Pool) -> Option<&'static Synonyms> {
    let [training, testing] = &SYNONYMS;
    match pool {
        Pool::Training => training.as_ref(),
        Pool::Testing => testing.as_ref(),
    }
}

/// The first sentence turned from a question into an order or the other way round.
fn reopen(text: &str, phrases: &Phrases, rng: &mut StdRng) -> Option<String> {
    let body = text.trim_start();
    if !pieces(body).first().is_some_and(|piece| piece.is_prose) {
        return None;
    }
    if let Some((Opening { to, is_question, .. }, rest)) =
        phrases.openings.iter().find_map(|opening| strip_opening(body, opening.from).map(|rest| (opening, rest)))
    {
        return Some(end_sentence(&format!("{}{rest}", upper_first(to)), *is_question));
    }
    if let Some(rest) = phrases.asks.iter().find_map(|ask| strip_opening(body, &format!("{} ", ask.to_lowercase()))) {
        // "Can you swim?" asks; "Can you explain it?" orders.
        return is_order(rest).then(|| end_sentence(&upper_first(rest), false));
    }
    if is_order(body) {
        let ask = pick(phrases.asks, rng)?;
        return Some(end_sentence(&format!("{ask} {}", lower_first(body)), !ask.starts_with("I ")));
    }
    None
}

/// What follows an opening, in whatever case it is written.
fn strip_opening<'a>(text: &'a str, opening: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(opening.len())?;
    (start.eq_ignore_ascii_case(opening) && !rest.trim().is_empty()).then_some(rest)
}

/// The text with its first sentence ended as a question or as a statement.
fn end_sentence(text: &str, is_question: bool) -> String {
    let (line, rest) = text.split_once('\n').map_or((text, None), |(line, rest)| (line, Some(rest)));
    let mark = if is_question { '?' } else { '.' };
    // The end of a sentence stands after a word and before a space: no decimal point, no "e.g.".
    let end = line.char_indices().find(|(at, c)| {
        let (before, after) = line.split_at(*at);
        let after_word = before.chars().rev().take_while(|c| c.is_alphanumeric()).count() > 1;
        matches!(c, '.' | '?') && after_word && after.chars().nth(1).is_none_or(char::is_whitespace)
    });
    let line = match end {
        Some((at, _)) => {
            let (before, after) = line.split_at(at);
            format!("{before}{mark}{}", after.chars().skip(1).collect::<String>())
        }
        // Many leave the mark out: so does the paraphrase, but for a text that becomes a question.
        None if is_question && rest.is_none() && line.ends_with(char::is_alphanumeric) => format!("{line}{mark}"),
        None => line.to_owned(),
    };
    rest.map_or_else(|| line.clone(), |rest| format!("{line}\n{rest}"))
}

// === impl Synonyms ===

impl Synonyms {
    fn of(pool: Pool) -> Option<Self> {
        let pairs = Phrases::of(pool).synonyms;
        let mut other = HashMap::new();
        for (a, b) in pairs {
            other.insert(a.to_lowercase(), *b);
            other.insert(b.to_lowercase(), *a);
        }
        // Longer phrases first, or they would never be found; a typographic apostrophe is as good as a plain one.
        let mut phrases: Vec<String> = other.keys().map(|phrase| regex::escape(phrase).replace('\'', "['’]")).collect();
        phrases.sort_by_key(|phrase| (std::cmp::Reverse(phrase.len()), phrase.clone()));
        let pattern = Regex::new(&format!(r"(?i)\b(?:{})\b", phrases.join("|"))).ok()?;
        Some(Self { pattern, other })
    }

    /// Exchanges some of what is found; at least one when `at_least_one`. `None` when nothing is exchanged.
    fn exchange(&self, text: &str, at_least_one: bool, rng: &mut StdRng) -> Option<String> {
        let prose = pieces(text).into_iter().filter(|piece| piece.is_prose);
        let n_found: usize = prose.map(|piece| self.pattern.find_iter(piece.text).count()).sum();
        if n_found == 0 {
            return None;
        }
        let sure = at_least_one.then(|| rng.random_range(0..n_found));
        let mut seen = 0;
        let exchanged = map_prose(text, |prose| {
            let replaced = self.pattern.replace_all(prose, |found: &regex::Captures<'_>| {
                let phrase = &found[0];
                let wanted = sure == Some(seen) || rng.random_bool(EXCHANGED_SHARE);
                seen += 1;
                let other = self.other.get(&phrase.to_lowercase().replace('’', "'")).filter(|_| wanted);
                other.map_or_else(|| phrase.to_owned(), |other| in_case_of(phrase, other))
            });
            replaced.into_owned()
        });
        (exchanged != text).then_some(exchanged)
    }
}

/// A replacement written as what it replaces: all capitals, a first capital, or neither.
fn in_case_of(phrase: &str, other: &str) -> String {
    let mut letters = phrase.chars().filter(|c| c.is_alphabetic());
    if letters.clone().count() > 1 && letters.all(char::is_uppercase) {
        other.to_uppercase()
    } else if phrase.starts_with(char::is_uppercase) {
        upper_first(other)
    } else {
        other.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    fn all_of(text: &str, pool: Pool) -> BTreeSet<String> {
        (0..64).filter_map(|seed| paraphrase(text, pool, &mut StdRng::seed_from_u64(seed))).collect()
    }

    #[test]
    fn questions_and_orders_take_each_others_place() {
        let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
        let cases: [(&str, Pool, &[&str]); 7] = [
            ("What is the capital of Peru?", Pool::Training, &["Tell me the capital of Peru."]),
            ("how do I boil an egg", Pool::Testing, &["I want to know how to boil an egg"]),
            (
                "Explain gravity. Use 3.5 pages.",
                Pool::Training,
                &[
                    "Can you explain gravity? Use 3.5 pages.",
                    "Would you explain gravity? Use 3.5 pages.",
                    "I would like you to explain gravity. Use 3.5 pages.",
                ],
            ),
            ("Could you explain gravity?", Pool::Testing, &["Explain gravity."]),
            ("Could you eat a horse?", Pool::Testing, &[]),
            ("I don’t know", Pool::Training, &["I do not know"]),
            ("What is that?", Pool::Testing, &["What's that?"]),
        ];
        for (text, pool, expected) in cases {
            assert_eq!(all_of(text, pool), set(expected), "{text}");
        }
    }

    #[test]
    fn synonyms_keep_the_case() {
        assert_eq!(in_case_of("WHAT IS", "what's"), "WHAT'S");
        assert_eq!(in_case_of("Big", "large"), "Large");
        assert_eq!(in_case_of("big", "large"), "large");
    }

    #[test]
    fn patterns_compile() {
        assert!(synonyms(Pool::Training).is_some() && synonyms(Pool::Testing).is_some());
    }
}
