//! What is asked.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Texts that are sent in turn.
#[derive(Debug)]
pub struct Prompts {
    texts: Vec<String>,
    next: AtomicUsize,
    /// Put after each text with a running number, so that no two are the same, within a run or between runs.
    salt: Option<String>,
}

/// Why a file gives no prompts.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// It cannot be read.
    #[error("cannot read {0}")]
    Unreadable(String, #[source] std::io::Error),
    /// A line is not an object with a text.
    #[error("line {0} is not an object with a \"text\"")]
    Line(usize, #[source] serde_json::Error),
    /// It has no line.
    #[error("{0} has no prompt")]
    Empty(String),
}

#[derive(serde::Deserialize)]
struct Line {
    text: String,
}

/// Short prompts as people type them, 9 to 20 word pieces; no rule of the default policy decides them.
const SHORT: [&str; 20] = [
    "What is the capital of Australia and how many people live there?",
    "Write a Python function that reverses a linked list in place.",
    "Summarize the plot of Hamlet in three sentences.",
    "Translate 'where is the nearest train station' into Japanese.",
    "If a train leaves at 3 pm at 80 km/h, when does it cover 200 km?",
    "Give me five ideas for a birthday party on a small budget.",
    "Why does my Rust program say borrowed value does not live long enough?",
    "Rewrite this so that it sounds more polite: send me the report now.",
    "Is 'the food was cold but the staff were kind' positive or negative?",
    "Extract the dates from: we met on 3 May and again on 12 June.",
    "Write a short poem about the first snow in the city.",
    "How do vaccines teach the immune system to recognise a virus?",
    "What should I cook tonight with rice, eggs and spinach?",
    "Solve for x: 3x squared minus 12x plus 9 equals 0.",
    "Explain the difference between a mutex and a semaphore.",
    "Which is heavier, a kilogram of feathers or a kilogram of iron?",
    "Draft an email asking my landlord to fix the heating this week.",
    "Name three causes of the First World War.",
    "My SQL query is slow when I join two large tables, what can I do?",
    "I had a long day and just want to talk to someone.",
];

// === impl Prompts ===

impl Prompts {
    /// `source` is a file of JSON Lines with a `text` each when it exists or ends in `.jsonl`, else the one text
    /// itself; `None`: a built-in list of short prompts.
    ///
    /// # Errors
    /// When the file cannot be read or has a line without a text.
    pub fn load(source: Option<&str>, unique: bool) -> Result<Self, PromptError> {
        let texts = match source {
            None => SHORT.map(str::to_owned).to_vec(),
            Some(path) if names_a_file(path) => {
                let content =
                    std::fs::read_to_string(path).map_err(|source| PromptError::Unreadable(path.to_owned(), source))?;
                let texts = parse(&content)?;
                if texts.is_empty() {
                    return Err(PromptError::Empty(path.to_owned()));
                }
                texts
            }
            Some(text) => vec![text.to_owned()],
        };
        Ok(Self { texts, next: AtomicUsize::new(0), salt: unique.then(salt) })
    }

    /// The next text.
    pub fn next(&self) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let text = &self.texts[n % self.texts.len()];
        self.salt.as_ref().map_or_else(|| text.clone(), |salt| format!("{text} {salt}{n}"))
    }
}

fn names_a_file(source: &str) -> bool {
    let path = Path::new(source);
    path.is_file() || path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"))
}

fn parse(content: &str) -> Result<Vec<String>, PromptError> {
    content
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            let Line { text } = serde_json::from_str(line).map_err(|source| PromptError::Line(index + 1, source))?;
            Ok(text)
        })
        .collect()
}

/// Differs between runs against the same server. Digits only: they cost the fewest word pieces.
fn salt() -> String {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("{:06} ", millis / 10 % 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn texts_come_in_turn() {
        let prompts = Prompts::load(Some("What is a monad?"), false).unwrap();
        assert_eq!((prompts.next(), prompts.next()), ("What is a monad?".into(), "What is a monad?".into()));
        let short = Prompts::load(None, false).unwrap();
        assert_eq!((0..40).map(|_| short.next()).collect::<HashSet<_>>().len(), SHORT.len());
    }

    #[test]
    fn unique_texts_are() {
        let prompts = Prompts::load(None, true).unwrap();
        let texts: HashSet<String> = (0..1_000).map(|_| prompts.next()).collect();
        assert_eq!(texts.len(), 1_000);
        assert!(texts.iter().all(|text| SHORT.iter().any(|short| text.starts_with(short))));
    }

    #[test]
    fn a_file_has_a_text_a_line() {
        assert_eq!(parse("{\"id\": \"1\", \"text\": \"a\"}\n\n{\"text\": \"b\"}\n").unwrap(), ["a", "b"]);
        assert!(matches!(parse("{\"text\": \"a\"}\n{\"query\": \"b\"}"), Err(PromptError::Line(2, _))));
        assert!(matches!(Prompts::load(Some("missing.jsonl"), false), Err(PromptError::Unreadable(..))));
    }
}
