//! Cutting by bytes and normalising characters.

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Share of the budget that the start of an over-long text keeps; the rest goes to its end.
const HEAD_SHARE: f64 = 0.6;
/// Marks the place where text was cut out.
pub(super) const GAP: &str = "\n…\n";

/// Keeps at most about `max_bytes` of `text`: its start and its end. Also returns the number of bytes cut.
///
/// Cuts at character borders; the mark for the gap comes on top of `max_bytes`.
pub(super) fn cut_middle(text: &str, max_bytes: usize) -> (Cow<'_, str>, usize) {
    if text.len() <= max_bytes {
        return (Cow::Borrowed(text), 0);
    }
    let head_end = text.floor_char_boundary((max_bytes as f64 * HEAD_SHARE) as usize);
    let tail_start = text.ceil_char_boundary(text.len() - (max_bytes - head_end));
    let (head, _) = text.split_at(head_end);
    let (_, tail) = text.split_at(tail_start);
    (Cow::Owned(format!("{head}{GAP}{tail}")), tail_start - head_end)
}

/// NFC, without control and zero-width characters, runs of blank lines and spaces folded, ends trimmed.
pub(super) fn normalise(text: &str) -> String {
    let composed: Cow<'_, str> = if is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) };
    let mut out = String::with_capacity(composed.len());
    let (mut newlines, mut spaces) = (0, 0);
    for c in composed.chars() {
        match c {
            '\n' => {
                newlines += 1;
                spaces = 0;
                if newlines <= 2 {
                    out.push('\n');
                }
            }
            // Indentation carries meaning in code and tables; long runs carry nothing.
            ' ' | '\t' => {
                spaces += 1;
                if spaces <= 8 {
                    out.push(c);
                }
            }
            c if is_dropped(c) => {}
            c => {
                (newlines, spaces) = (0, 0);
                out.push(c);
            }
        }
    }
    out.trim().to_owned()
}

fn is_dropped(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_character_borders() {
        let text = "äöü".repeat(1_000);
        let (cut, dropped) = cut_middle(&text, 101);
        assert_eq!(cut.len() - GAP.len() + dropped, text.len());
        assert!(cut.len() <= 101 + GAP.len());
        assert_eq!(cut_middle("short", 101), (Cow::Borrowed("short"), 0));
    }

    #[test]
    fn normalises_what_carries_no_meaning() {
        assert_eq!(normalise("  a\u{200b}b\u{0}c\r\n\n\n\n\nd   "), "abc\n\nd");
        assert_eq!(normalise("e\u{301}"), "é");
        assert_eq!(normalise("\u{feff}\u{202e}"), "");
        assert_eq!(normalise(&format!("a{}b", " ".repeat(500))), format!("a{}b", " ".repeat(8)));
    }
}
