//! Tells prose, which may be changed, from what must stay as it is: code and addresses.

use std::sync::LazyLock;

use regex::Regex;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) is_prose: bool,
}

/// Fences (an open one runs to the end), inline code, URLs and mail addresses.
static PROTECTED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?s)```.*?(?:```|\z)|~~~.*?(?:~~~|\z)|`[^`\n]+`|https?://\S+|www\.\S+|[^\s@]+@[^\s@]+\.[^\s@]+").ok()
});

/// A line of code outside any fence.
static CODE_LINE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"[;{}]\s*$|=>|==|->|\(\)|</|^\s*(?:def \w+\(|class \w+[:({]|import \w+$|from \w+ import|#include|(?:pub )?fn \w|let \w+ ?=|let mut |const \w+ ?=|var \w+ ?=|SELECT |func \w+\(|package \w+$)",
    )
    .ok()
});

/// The parts of a text in order; put together they are the text again.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut done = 0;
    for found in PROTECTED.iter().flat_map(|pattern| pattern.find_iter(text)) {
        push_lines(text.get(done..found.start()).unwrap_or_default(), &mut pieces);
        pieces.push(Piece { text: found.as_str(), is_prose: false });
        done = found.end();
    }
    push_lines(text.get(done..).unwrap_or_default(), &mut pieces);
    pieces
}

/// The text with each part of its prose replaced.
pub(super) fn map_prose(text: &str, mut change: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for piece in pieces(text) {
        if piece.is_prose {
            out.push_str(&change(piece.text));
        } else {
            out.push_str(piece.text);
        }
    }
    out
}

/// Whether a fence is opened and never closed, so that whatever follows would belong to it.
pub(super) fn has_open_fence(text: &str) -> bool {
    text.matches("```").count() % 2 == 1 || text.matches("~~~").count() % 2 == 1
}

/// Whether what the text ends with, white space aside, may be changed.
pub(super) fn ends_in_prose(text: &str) -> bool {
    pieces(text).iter().rev().find(|piece| !piece.text.trim().is_empty()).is_some_and(|piece| piece.is_prose)
}

fn push_lines<'a>(text: &'a str, pieces: &mut Vec<Piece<'a>>) {
    for line in text.split_inclusive('\n') {
        let is_code = CODE_LINE.as_ref().is_some_and(|pattern| pattern.is_match(line));
        pieces.push(Piece { text: line, is_prose: !is_code });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_addresses_are_not_prose() {
        let text = "Fix `A_b` at https://X.org now\nlet x = 1;\n```\nFoo\n```\nThanks, a@b.org\n~~~\nopen";
        let prose: Vec<&str> =
            pieces(text).into_iter().filter(|piece| piece.is_prose).map(|piece| piece.text.trim()).collect();
        assert_eq!(prose, ["Fix", "at", "now", "", "Thanks,", ""]);
        assert_eq!(pieces(text).iter().map(|piece| piece.text).collect::<String>(), text);
        assert!(has_open_fence(text) && !ends_in_prose(text));
    }

    #[test]
    fn patterns_compile() {
        assert!(PROTECTED.is_some() && CODE_LINE.is_some());
    }
}
