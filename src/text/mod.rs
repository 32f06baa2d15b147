//! From a request to the text that is classified, and what can be seen in that text without a model.
//!
//! Input: a checked [`Query`](crate::domain::Query). Output: a [`Prepared`] text, cut to what the encoder can use,
//! with its [`TextSignals`] and the numbers the heads read beside the embedding. Bounded: at most [`MAX_USED_BYTES`]
//! bytes are ever cleaned, matched or tokenised, whatever the caller sends. Nothing here fails.

pub mod features;
pub mod ngrams;

mod clean;
mod courtesy;
mod language;
mod lexicon;
mod select;
mod structure;

use crate::domain::{Content, Language, TextSignals};

/// A text ready for rules, tokenizer and heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The chosen turn, cleaned and cut.
    pub text: String,
    /// What can be seen in it.
    pub signals: TextSignals,
    /// The text without courtesies, which the classifier reads; rules read all of it.
    pub task: Task,
    /// Bytes of text received, all messages together.
    pub received_bytes: usize,
    /// Bytes of the chosen turn that were cut out of its middle.
    pub bytes_cut: usize,
    /// Messages received; 0 for a bare text.
    pub turns_received: usize,
    /// Messages classified; 0 for a bare text.
    pub turns_used: usize,
}

/// What is asked for, and what can be seen in that.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// A part of the prepared text.
    pub text: String,
    /// What can be seen in it.
    pub signals: TextSignals,
}

/// Most bytes of a turn that are looked at; a longer one loses its middle.
///
/// Instructions stand at the start or the end of a prompt, pasted material between. 256 word pieces are about 1 KiB
/// of English; 8 KiB leaves the features something to count and bounds the work on hostile input.
pub const MAX_USED_BYTES: usize = 8 * 1_024;

/// The language of an ISO 639-3 code, if it is one that can be found in a text.
pub fn language(code: &str) -> Option<Language> {
    language::of_code(code)
}

/// The language of a prepared text, or `None` when it is too short or too mixed to tell.
pub fn detect_language(text: &str) -> Option<Language> {
    language::detect(text)
}

/// Chooses, cleans, cuts and describes what is to be classified.
pub fn prepare(content: &Content) -> Prepared {
    prepare_with(content, detect_language)
}

/// As [`prepare`], where `detect` tells the text's language: by far the dearest of the signals, and worth remembering.
pub fn prepare_with(content: &Content, detect: impl FnOnce(&str) -> Option<Language>) -> Prepared {
    let chosen = select::choose(content);
    let (cut, bytes_cut) = clean::cut_middle(chosen.text, MAX_USED_BYTES - clean::GAP.len());
    let mut text = clean::normalise(&select::drop_harness_noise(&cut));
    // Composition can lengthen a text in scripts whose composed forms Unicode excludes.
    text.truncate(text.floor_char_boundary(MAX_USED_BYTES));
    let signals = TextSignals { language: detect(&text), ..structure::signals(&text) };
    let task = courtesy::strip(&text);
    // Usually the same; then seen through once.
    let task_signals = if task.len() == text.len() {
        signals.clone()
    } else {
        TextSignals { language: signals.language, ..structure::signals(task) }
    };
    let task = Task { text: task.to_owned(), signals: task_signals };
    Prepared {
        text,
        signals,
        task,
        received_bytes: chosen.received_bytes,
        bytes_cut,
        turns_received: chosen.turns_received,
        turns_used: chosen.turns_used,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Message, MessageRole};

    #[test]
    fn long_texts_lose_their_middle_and_say_so() {
        let long = format!("Summarise this: {} Keep it under 50 words.", "lorem ipsum ".repeat(5_000));
        let prepared = prepare(&Content::Text(long.clone()));
        assert_eq!(prepared.received_bytes, long.len());
        assert!(prepared.bytes_cut > 50_000);
        assert!(prepared.text.len() <= MAX_USED_BYTES);
        assert!(prepared.text.starts_with("Summarise this:") && prepared.text.ends_with("Keep it under 50 words."));
    }

    #[test]
    fn a_conversation_is_classified_by_its_last_user_turn() {
        let message = |role, content: &str| Message { role, content: content.into() };
        let prepared = prepare(&Content::Messages(vec![
            message(MessageRole::System, "You are a helpful assistant."),
            message(MessageRole::User, "Write a poem"),
            message(MessageRole::Assistant, "Roses are red"),
            message(MessageRole::User, "Now translate it to French"),
        ]));
        assert_eq!(prepared.text, "Now translate it to French");
        assert_eq!((prepared.turns_received, prepared.turns_used), (4, 1));
    }

    proptest! {
        #[test]
        fn any_text_is_prepared_within_the_bound(text in "\\PC{0,400}", repeat in 1_usize..200) {
            let prepared = prepare(&Content::Text(text.repeat(repeat)));
            prop_assert!(prepared.text.len() <= MAX_USED_BYTES);
            prop_assert!(features::extract(&prepared.text, &prepared.signals).iter().all(|value| value.is_finite()));
        }
    }
}
