//! Typing errors, in ordinary words only.

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::index;

use super::pieces::{map_prose, pieces};

/// Words of text for each error.
const WORDS_PER_TYPO: usize = 10;
/// A text with fewer words is left alone.
const MIN_WORDS: usize = 5;
/// A shorter word becomes another word.
const MIN_LETTERS: usize = 4;
/// Rows of the keyboard: neighbours within a row are what fingers confuse.
const KEY_ROWS: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];

/// One error per ten words, at least one; `None` for short texts and texts without ordinary words.
pub(super) fn typo(text: &str, rng: &mut StdRng) -> Option<String> {
    let n_words = text.split_whitespace().count();
    if n_words < MIN_WORDS {
        return None;
    }
    let prose = pieces(text).into_iter().filter(|piece| piece.is_prose);
    let n_ordinary = prose
        .flat_map(|piece| piece.text.split_inclusive(char::is_whitespace))
        .filter(|token| is_ordinary(token))
        .count();
    let n_typos = (n_words / WORDS_PER_TYPO).max(1).min(n_ordinary);
    if n_typos == 0 {
        return None;
    }
    let mut wanted = vec![false; n_ordinary];
    for position in index::sample(rng, n_ordinary, n_typos) {
        wanted[position] = true;
    }
    let mut seen = 0;
    Some(map_prose(text, |prose| {
        let mut out = String::with_capacity(prose.len() + 4);
        for token in prose.split_inclusive(char::is_whitespace) {
            let ordinary = is_ordinary(token);
            if ordinary && wanted[seen] {
                misspell(token, rng, &mut out);
            } else {
                out.push_str(token);
            }
            seen += usize::from(ordinary);
        }
        out
    }))
}

/// Letters of an alphabet with at most a first capital, punctuation around them aside: no number, no identifier.
fn is_ordinary(token: &str) -> bool {
    let word = core(token);
    let alphabetic = |c: char| c.is_alphabetic() && c < '\u{0530}';
    word.chars().count() >= MIN_LETTERS && word.chars().all(alphabetic) && !word.chars().skip(1).any(char::is_uppercase)
}

fn core(token: &str) -> &str {
    token.trim().trim_matches(['.', ',', ';', ':', '?', '!', '"', '\'', '(', ')'])
}

/// Writes the token with one error behind the first letter of its word.
fn misspell(token: &str, rng: &mut StdRng, out: &mut String) {
    let word = core(token);
    let (before, after) = token.split_once(word).unwrap_or((token, ""));
    let mut letters: Vec<char> = word.chars().collect();
    let at = rng.random_range(1..letters.len());
    match rng.random_range(0..4) {
        // Equal neighbours and the last letter cannot be swapped to any effect: they are doubled instead.
        0 if letters.get(at + 1).is_some_and(|next| *next != letters[at]) => letters.swap(at, at + 1),
        1 => {
            letters.remove(at);
        }
        2 if let Some(key) = neighbour(letters[at], rng) => letters[at] = key,
        _ => letters.insert(at, letters[at]),
    }
    out.push_str(before);
    out.extend(letters);
    out.push_str(after);
}

fn neighbour(letter: char, rng: &mut StdRng) -> Option<char> {
    let (row, at) = KEY_ROWS.iter().find_map(|row| row.find(letter).map(|at| (row.as_bytes(), at)))?;
    let next = if at == 0 || at + 1 < row.len() && rng.random_bool(0.5) { at + 1 } else { at - 1 };
    row.get(next).map(|key| char::from(*key))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn errors_are_as_many_as_stated_and_only_in_words() {
        let text = "Please explain snake_case, camelCase, HTTP2, 12345 and \"friendship\" (briefly) to me: why x1y2?";
        for seed in 0..200 {
            let changed = typo(text, &mut StdRng::seed_from_u64(seed)).unwrap();
            let differ: Vec<(&str, &str)> =
                text.split(' ').zip(changed.split(' ')).filter(|(old, new)| old != new).collect();
            assert_eq!(differ.len(), 1, "{changed}");
            assert!(["Please", "explain", "\"friendship\"", "(briefly)"].contains(&differ[0].0), "{changed}");
        }
        let long = "ordinary words everywhere ".repeat(10);
        let changed = typo(&long, &mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(long.split(' ').zip(changed.split(' ')).filter(|(old, new)| old != new).count(), 3);
    }
}
