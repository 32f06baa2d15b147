//! The numbers that the heads read beside the embedding.
//!
//! Prompt length alone is a strong baseline for difficulty, and a mean-pooled embedding hardly tells length, so
//! length and structure are given to the heads directly. Nothing here sees the case of letters or how the text is
//! closed: people type the same request in many ways. The layout is versioned: a trained head names the version it was
//! trained with and loads with no other.

use super::{lexicon, structure};
use crate::domain::{Structure, TextSignals};

/// Changes whenever a number changes its place or meaning.
pub const LAYOUT: &str = "text-features/v4";
/// How many numbers there are.
pub const N_FEATURES: usize = N_SHAPE + Structure::ALL.len() + 2 * lexicon::N_GROUPS;

/// Numbers about length, characters and sentences.
const N_SHAPE: usize = 17;
/// How much of the start and of the end counts as "where instructions stand", in bytes.
const EDGE_BYTES: usize = 160;

/// The features of a prepared text: `[N_FEATURES]`, all finite, most within 0..=1 or logarithmic.
pub fn extract(text: &str, signals: &TextSignals) -> [f32; N_FEATURES] {
    let mut features = [0.0; N_FEATURES];
    let (shape, rest) = features.split_at_mut(N_SHAPE);
    let (structures, hints) = rest.split_at_mut(Structure::ALL.len());
    shape.copy_from_slice(&shape_features(text, signals));
    for (value, structure) in structures.iter_mut().zip(Structure::ALL) {
        *value = f32::from(u8::from(signals.structures.contains(structure)));
    }
    let (edge_hints, all_hints) = hints.split_at_mut(lexicon::N_GROUPS);
    for (value, count) in edge_hints.iter_mut().zip(edge_counts(text)) {
        *value = f32::from(u8::from(count > 0));
    }
    for (value, count) in all_hints.iter_mut().zip(lexicon::count_hints(text)) {
        *value = log1p(f32::from(count));
    }
    features
}

/// A name for each feature, in order.
pub fn names() -> Vec<String> {
    let shape = [
        "log_bytes",
        "log_words",
        "log_lines",
        "log_sentences",
        "mean_word_length",
        "words_per_sentence",
        "digit_share",
        "punctuation_share",
        "non_ascii_share",
        "symbol_share",
        "log_numbers",
        "log_longest_word",
        "distinct_word_share",
        "log_questions",
        "log_options",
        "log_commas",
        "one_word",
    ];
    let structures = Structure::ALL.iter().map(|structure| format!("structure_{structure:?}").to_lowercase());
    let edge = lexicon::group_names().map(|name| format!("edge_hint_{name}"));
    let all = lexicon::group_names().map(|name| format!("log_hints_{name}"));
    shape.into_iter().map(str::to_owned).chain(structures).chain(edge).chain(all).collect()
}

#[derive(Default)]
struct Counts {
    chars: usize,
    digits: usize,
    punctuation: usize,
    non_ascii: usize,
    symbols: usize,
    questions: usize,
    commas: usize,
    sentences: usize,
    numbers: usize,
}

fn shape_features(text: &str, signals: &TextSignals) -> [f32; N_SHAPE] {
    let text = text.trim_end_matches(['.', '!', '?', '…', '。', '？', ':', ' ']);
    let counts = count(text);
    let words = signals.words.max(1);
    let share = |n: usize| n as f32 / counts.chars.max(1) as f32;
    let longest = text.split_whitespace().map(str::len).max().unwrap_or(0);
    let sentences = counts.sentences.max(1);
    [
        log1p(text.len() as f32),
        log1p(words as f32),
        log1p(signals.lines as f32),
        log1p(sentences as f32),
        (counts.chars as f32 / words as f32).min(40.0) / 10.0,
        log1p(words as f32 / sentences as f32),
        share(counts.digits),
        share(counts.punctuation),
        share(counts.non_ascii),
        share(counts.symbols),
        log1p(counts.numbers as f32),
        log1p(longest as f32),
        distinct_share(text),
        log1p(counts.questions as f32),
        log1p(structure::n_options(text) as f32),
        log1p(counts.commas as f32),
        flag(words == 1),
    ]
}

fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    let mut previous = ' ';
    for c in text.chars() {
        counts.chars += 1;
        counts.non_ascii += usize::from(!c.is_ascii());
        counts.punctuation += usize::from(c.is_ascii_punctuation());
        counts.symbols +=
            usize::from(matches!(c, '{' | '}' | '(' | ')' | '=' | '<' | '>' | '\\' | '_' | '$' | '^' | ';'));
        counts.questions += usize::from(matches!(c, '?' | '？'));
        counts.commas += usize::from(c == ',');
        counts.sentences += usize::from(matches!(c, '.' | '!' | '?' | '。' | '？') && previous.is_alphanumeric());
        if c.is_ascii_digit() {
            counts.digits += 1;
            counts.numbers += usize::from(!previous.is_ascii_digit());
        }
        previous = c;
    }
    counts
}

/// Share of distinct words among the first hundred.
fn distinct_share(text: &str) -> f32 {
    let mut words: Vec<&str> = text.split_whitespace().take(100).collect();
    let n = words.len().max(1);
    words.sort_unstable();
    words.dedup();
    words.len() as f32 / n as f32
}

fn edge_counts(text: &str) -> [u16; lexicon::N_GROUPS] {
    if text.len() <= 2 * EDGE_BYTES {
        return lexicon::count_hints(text);
    }
    let (head, _) = text.split_at(text.floor_char_boundary(EDGE_BYTES));
    let (_, tail) = text.split_at(text.ceil_char_boundary(text.len() - EDGE_BYTES));
    let (mut counts, tail) = (lexicon::count_hints(head), lexicon::count_hints(tail));
    for (count, more) in counts.iter_mut().zip(tail) {
        *count = count.saturating_add(more);
    }
    counts
}

fn log1p(value: f32) -> f32 {
    value.ln_1p()
}

fn flag(value: bool) -> f32 {
    f32::from(u8::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Content;

    #[test]
    fn every_feature_has_a_name() {
        assert_eq!(names().len(), N_FEATURES);
    }

    #[test]
    fn length_and_structure_show() {
        let features = |text: &str| {
            let prepared = super::super::prepare(&Content::Text(text.into()));
            let values = extract(&prepared.text, &prepared.signals);
            names().into_iter().zip(values).collect::<std::collections::BTreeMap<_, _>>()
        };
        let question = features("What is 12 + 30?");
        assert!((question["log_numbers"] - 2.0_f32.ln_1p()).abs() < 1e-6);
        assert_eq!(question, features("what is 12 + 30"));
        assert_eq!(question["structure_math"], 1.0);
        let long = features(&"Please summarise the passage below. ".repeat(20));
        assert!(long["log_bytes"] > question["log_bytes"]);
        assert_eq!(long["edge_hint_summarise"], 1.0);
        assert_eq!(question["edge_hint_summarise"], 0.0);
    }
}
