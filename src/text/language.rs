//! Which language a text is in, as far as it can be told.

use crate::domain::Language;

/// Shorter texts are too easily mistaken: "ok" is in every language.
const MIN_LETTERS: usize = 24;
/// Longest start of the text that is looked at, in bytes.
const MAX_BYTES: usize = 1_024;
/// Of the English prompts in `training-data/` that are long enough, 0.4 % are called another language above this
/// confidence and 20 % are left open; at 0.2 it is 2.3 % and 12 %.
const MIN_CONFIDENCE: f64 = 0.5;

/// The language of `text`, or `None` when it is too short or too mixed to tell.
pub(super) fn detect(text: &str) -> Option<Language> {
    let (start, _) = text.split_at(text.floor_char_boundary(MAX_BYTES));
    if start.chars().filter(|c| c.is_alphabetic()).take(MIN_LETTERS).count() < MIN_LETTERS
        && !start.chars().any(is_distinctive_script)
    {
        return None;
    }
    let info = whatlang::detect(start)?;
    // Between languages of one script the detector may waver; that a text is not in Latin letters is certain.
    (info.confidence() >= MIN_CONFIDENCE || info.script() != whatlang::Script::Latin)
        .then(|| Language(info.lang().code()))
}

/// The language of that code, where the detector knows it.
pub(super) fn of_code(code: &str) -> Option<Language> {
    whatlang::Lang::from_code(code).map(|language| Language(language.code()))
}

/// Scripts that name a language (or nearly) in a few characters.
fn is_distinctive_script(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{ac00}'..='\u{d7af}' | '\u{4e00}'..='\u{9fff}' | '\u{0e00}'..='\u{0e7f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_languages_apart_and_abstains_when_short() {
        let cases = [
            ("hi", None),
            ("ok thanks", None),
            ("Please explain how photosynthesis works in plants and why leaves are green.", Some("eng")),
            ("Bitte erkläre mir, warum der Himmel blau ist und abends rot wird.", Some("deu")),
            ("Расскажи подробно, как работает двигатель внутреннего сгорания и чем он хуже.", Some("rus")),
            ("日本の首都はどこですか。", Some("jpn")),
        ];
        for (text, expected) in cases {
            assert_eq!(detect(text).map(Language::as_str), expected, "{text}");
        }
    }
}
