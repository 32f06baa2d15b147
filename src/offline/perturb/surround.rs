//! What people and programs put before and after a prompt.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::phrases::{Phrases, is_order};
use super::pick;
use super::pieces::has_open_fence;

/// Politeness before the prompt, after it, or both.
pub(super) fn wrapper(text: &str, phrases: &Phrases, rng: &mut StdRng) -> Option<String> {
    let body = text.trim();
    let (mut before, mut after) = *pick(&[(true, false), (false, true), (true, true)], rng)?;
    if has_open_fence(body) {
        (before, after) = (true, false);
    }
    let mut out = match before {
        true if is_order(body) && rng.random_bool(0.5) => {
            let request = pick(phrases.requests, rng)?;
            format!("{request} {}", as_question(&lower_first(body)))
        }
        true => {
            let greeting = pick(phrases.greetings, rng)?;
            let body = if greeting.ends_with(", ") { lower_first(body) } else { body.to_owned() };
            format!("{greeting}{body}")
        }
        false => body.to_owned(),
    };
    if after {
        // Thanks stand in the same line only where a sentence has ended.
        let same_line = !out.contains('\n') && out.ends_with(['.', '?', '!']);
        out.push_str(if same_line { " " } else { "\n" });
        out.push_str(pick(phrases.closings, rng)?);
    }
    Some(out)
}

/// A signature, disclaimer or quoted header below the prompt.
pub(super) fn boilerplate(text: &str, phrases: &Phrases, rng: &mut StdRng) -> Option<String> {
    if has_open_fence(text) {
        return None;
    }
    Some(format!("{}\n\n{}", text.trim_end(), pick(phrases.boilerplate, rng)?))
}

/// The text with its first letter in lower case, unless its first word is more than capitalised.
pub(super) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// The text with its first letter in upper case.
pub(super) fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// A text of one line that ends like a statement, ended like a question.
fn as_question(text: &str) -> String {
    let is_one_line = !text.contains('\n');
    match text.strip_suffix('.') {
        Some(bare) if is_one_line => format!("{bare}?"),
        None if is_one_line && text.ends_with(char::is_alphanumeric) => format!("{text}?"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::super::Pool;
    use super::*;

    #[test]
    fn wrappers_keep_the_prompt_and_fit_it() {
        let phrases = Phrases::of(Pool::Testing);
        let mut requests = 0;
        for seed in 0..200 {
            let wrapped = wrapper("Explain how rain forms.", phrases, &mut StdRng::seed_from_u64(seed)).unwrap();
            assert!(wrapped.contains("xplain how rain forms"), "{wrapped}");
            requests += usize::from(wrapped.contains(" explain how rain forms?"));
            let question = wrapper("Why does it rain?", phrases, &mut StdRng::seed_from_u64(seed)).unwrap();
            assert!(question.contains("hy does it rain?"), "{question}");
            let is_asked = phrases.requests.iter().any(|request| question.starts_with(request));
            assert!(!is_asked, "only an order follows a request: {question}");
        }
        assert!(requests > 20, "{requests}");
    }

    #[test]
    fn nothing_is_put_into_an_open_fence() {
        let phrases = Phrases::of(Pool::Training);
        let rng = &mut StdRng::seed_from_u64(1);
        assert_eq!(boilerplate("Fix\n```\nx", phrases, rng), None);
        assert!(wrapper("Fix\n```\nx", phrases, rng).unwrap().ends_with("\n```\nx"));
    }

    #[test]
    fn first_letters() {
        assert_eq!(lower_first("Explain X"), "explain X");
        assert_eq!(lower_first("SQL query"), "SQL query");
        assert_eq!(upper_first("étude"), "Étude");
    }
}
