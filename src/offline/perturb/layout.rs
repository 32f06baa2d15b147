//! Punctuation and white space.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::phrases::is_question;
use super::pick;
use super::pieces::{ends_in_prose, map_prose, pieces};

#[derive(Clone, Copy, Debug)]
enum Edit {
    DropFinal,
    AddFinal,
    DoubleFinal,
    DropComma,
}

/// Marks that end a sentence.
const FINAL: [char; 6] = ['.', '?', '!', '。', '？', '！'];

/// Share of the gaps between words that are doubled.
const DOUBLED_SHARE: f64 = 0.2;
/// Words of a hard-wrapped line.
const WRAP_WORDS: std::ops::Range<usize> = 6..14;

/// One change of punctuation out of those that the text has room for.
pub(super) fn punctuation(text: &str, rng: &mut StdRng) -> Option<String> {
    let body = text.trim_end();
    let last = body.chars().next_back()?;
    let mut edits = Vec::new();
    if ends_in_prose(text) {
        if FINAL.contains(&last) {
            edits.push(Edit::DropFinal);
        }
        if matches!(last, '?' | '!') {
            edits.push(Edit::DoubleFinal);
        }
        if last.is_alphanumeric() {
            edits.push(Edit::AddFinal);
        }
    }
    let n_commas: usize = pieces(text).iter().filter(|piece| piece.is_prose).map(|piece| n_commas(piece.text)).sum();
    if n_commas > 0 {
        edits.push(Edit::DropComma);
    }
    let tail = text.strip_prefix(body).unwrap_or_default();
    Some(match pick(&edits, rng)? {
        Edit::DropFinal => format!("{}{tail}", body.trim_end_matches(FINAL)),
        Edit::AddFinal => format!("{body}{}{tail}", if is_question(text) { '?' } else { '.' }),
        Edit::DoubleFinal => format!("{body}{last}{tail}"),
        Edit::DropComma => drop_comma(text, rng.random_range(0..n_commas)),
    })
}

/// Doubled spaces or hard-wrapped lines, and now and then white space at the ends of lines.
pub(super) fn whitespace(text: &str, rng: &mut StdRng) -> String {
    let mut out = if rng.random_bool(0.5) { wrap_lines(text, rng) } else { text.to_owned() };
    if out == text {
        out = double_spaces(text, rng);
    }
    // A single word has no gap: only its end is left.
    if out == text || rng.random_bool(0.5) {
        out = map_prose(&out, |line| line.strip_suffix('\n').map_or_else(|| line.to_owned(), |l| format!("{l}  \n")));
        if ends_in_prose(&out) {
            out.push_str("  \n");
        }
    }
    out
}

/// Commas between words; one within a number is part of it.
fn n_commas(prose: &str) -> usize {
    prose.matches(", ").count()
}

/// The text without the comma at a position among those that [`n_commas`] counts.
fn drop_comma(text: &str, which: usize) -> String {
    let mut seen = 0;
    map_prose(text, |prose| {
        let (first, n) = (seen, n_commas(prose));
        seen += n;
        if !(first..first + n).contains(&which) {
            return prose.to_owned();
        }
        let parts = prose.split(", ").enumerate();
        parts.fold(String::with_capacity(prose.len()), |mut out, (index, part)| {
            if index > 0 {
                out.push_str(if first + index - 1 == which { " " } else { ", " });
            }
            out.push_str(part);
            out
        })
    })
}

fn double_spaces(text: &str, rng: &mut StdRng) -> String {
    let is_gap = |c: char, next: Option<&char>| c == ' ' && next.is_some_and(|next| !next.is_whitespace());
    // At least one gap is doubled, whatever the dice say.
    let n_gaps = pieces(text).iter().filter(|piece| piece.is_prose).map(|piece| piece.text.matches(' ').count()).sum();
    let sure = if n_gaps == 0 { 0 } else { rng.random_range(0..n_gaps) };
    let mut gap = 0;
    map_prose(text, |prose| {
        let mut out = String::with_capacity(prose.len() + 8);
        let mut chars = prose.chars().peekable();
        while let Some(c) = chars.next() {
            out.push(c);
            if c == ' ' {
                if gap == sure || rng.random_bool(DOUBLED_SHARE) && is_gap(c, chars.peek()) {
                    out.push(' ');
                }
                gap += 1;
            }
        }
        out
    })
}

/// Long lines of prose broken as a mail program breaks them; rows of tables stay whole.
fn wrap_lines(text: &str, rng: &mut StdRng) -> String {
    map_prose(text, |line| {
        if line.contains(['|', '\t']) {
            return line.to_owned();
        }
        let mut out = String::with_capacity(line.len());
        let (mut words, mut width) = (0, rng.random_range(WRAP_WORDS));
        for word in line.split_inclusive(' ') {
            words += 1;
            match word.strip_suffix(' ') {
                Some(bare) if words >= width && !bare.is_empty() => {
                    out.push_str(bare);
                    out.push('\n');
                    (words, width) = (0, rng.random_range(WRAP_WORDS));
                }
                _ => out.push_str(word),
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    fn all_of(change: impl Fn(&mut StdRng) -> String) -> BTreeSet<String> {
        (0..64).map(|seed| change(&mut StdRng::seed_from_u64(seed))).collect()
    }

    #[test]
    fn punctuation_has_one_edit_at_a_time() {
        let of = |text: &str| all_of(|rng| punctuation(text, rng).unwrap());
        assert_eq!(
            of("Is it so, or not?"),
            ["Is it so or not?", "Is it so, or not", "Is it so, or not??"].map(String::from).into()
        );
        assert_eq!(of("why is it so"), ["why is it so?".to_owned()].into());
        assert_eq!(of("Tell me\n"), ["Tell me.\n".to_owned()].into());
        assert_eq!(of("Pay 1,000 now."), ["Pay 1,000 now".to_owned()].into());
    }

    #[test]
    fn white_space_is_all_that_changes() {
        let text =
            "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen\n| a | b |";
        for changed in all_of(|rng| whitespace(text, rng)) {
            assert_ne!(changed, text);
            assert!(changed.split_whitespace().eq(text.split_whitespace()), "{changed}");
        }
        assert_eq!(all_of(|rng| whitespace("Hello", rng)), ["Hello  \n".to_owned()].into());
    }
}
