//! Chooses the turn to classify and drops what a harness wrapped around it.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use crate::domain::{Content, MessageRole};

/// The chosen turn, as received.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    pub(super) text: &'a str,
    pub(super) received_bytes: usize,
    pub(super) turns_received: usize,
    pub(super) turns_used: usize,
}

/// The bare text, or the last user message that has any.
pub(super) fn choose(content: &Content) -> Chosen<'_> {
    match content {
        Content::Text(text) => Chosen { text, received_bytes: text.len(), turns_received: 0, turns_used: 0 },
        Content::Messages(messages) => {
            let last = messages.iter().rev().find(|m| m.role == MessageRole::User && !m.content.trim().is_empty());
            Chosen {
                text: last.map_or("", |message| &message.content),
                received_bytes: messages.iter().map(|message| message.content.len()).sum(),
                turns_received: messages.len(),
                turns_used: usize::from(last.is_some()),
            }
        }
    }
}

/// Blocks that agent frameworks inject into the user turn; their text says nothing about what the person wants.
static INJECTED_BLOCK: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let tags = [
        "system-reminder",
        "system_reminder",
        "environment_details",
        "environment_context",
        "user_info",
        "additional_data",
        "attached_files",
        "open_and_recently_viewed_files",
        "custom_instructions",
        "automatically_added_context",
    ];
    let alternatives: Vec<String> = tags.iter().map(|tag| format!("<{tag}>.*?</{tag}>")).collect();
    Regex::new(&format!("(?s){}", alternatives.join("|"))).ok()
});

/// A persona line in front of the real request, as many integrations paste it.
static PERSONA_PREFIX: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)\A\s*(?:system\s*:\s*)?you are an? (?:very )?(?:helpful|friendly|knowledgeable|useful)[^.\n]{0,80}(?:assistant|ai|chatbot)[^.\n]{0,60}[.\n]\s*",
    )
    .ok()
});

/// Removes injected blocks and persona lines; keeps the text as it is when nothing else would be left.
pub(super) fn drop_harness_noise(text: &str) -> Cow<'_, str> {
    let mut kept = Cow::Borrowed(text);
    for pattern in [&INJECTED_BLOCK, &PERSONA_PREFIX].into_iter().filter_map(|pattern| pattern.as_ref()) {
        if let Cow::Owned(shorter) = pattern.replace_all(&kept, " ")
            && !shorter.trim().is_empty()
        {
            kept = Cow::Owned(shorter);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harness_noise_goes_and_requests_stay() {
        let cases = [
            ("What is 2+2?", "What is 2+2?"),
            ("<system-reminder>Today is Monday.\nBe nice.</system-reminder>\nWhat is 2+2?", "What is 2+2?"),
            ("You are a helpful assistant.\n\nWhat is 2+2?", "What is 2+2?"),
            ("System: You are a friendly AI assistant that answers briefly. Fix my code", "Fix my code"),
            ("You are a helpful assistant.", "You are a helpful assistant."),
            ("You are a pirate. Tell me a story.", "You are a pirate. Tell me a story."),
            ("<system-reminder>only noise</system-reminder>", "<system-reminder>only noise</system-reminder>"),
        ];
        for (input, expected) in cases {
            assert_eq!(drop_harness_noise(input).trim(), expected);
        }
    }

    #[test]
    fn patterns_compile() {
        assert!(INJECTED_BLOCK.is_some() && PERSONA_PREFIX.is_some());
    }
}
