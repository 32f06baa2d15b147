//! Finds code, tables, lists, formulae, logs and questions in a text.

use std::sync::LazyLock;

use regex::Regex;

use crate::domain::{Structure, Structures, TextSignals};

struct Patterns {
    code: Regex,
    list: Regex,
    url: Regex,
    math: Regex,
    log: Regex,
    options: Regex,
    question_word: Regex,
}

static PATTERNS: LazyLock<Option<Patterns>> = LazyLock::new(|| {
    let compile = |pattern: &str| Regex::new(pattern).ok();
    Some(Patterns {
        code: compile(
            r"(?m)```|^\s*(?:def |class |import |from \w+ import|#include|fn |pub fn|let mut |const \w+ ?=|var \w+ ?=|public (?:static|class)|SELECT .+ FROM|func \w+\(|return .+;?$|package \w+;?$)|\w+\([^)\n]*\)\s*[{;]|=>|</\w+>",
        )?,
        list: compile(r"(?m)^\s*(?:[-*•]|\d{1,2}[.)])\s+\S")?,
        url: compile(r"https?://|www\.\w")?,
        math: compile(
            r"\$[^$\n]+\$|\\(?:frac|sqrt|sum|int|begin|left|cdot|leq|geq)|\b\d+\s*[+*^×÷=]\s*\d|\b\d+\s+[-/]\s+\d|\b[a-z]\s*[=^<>]\s*-?\d|[∑∫√≤≥≠π]|\bx\^|\d\s*[a-z]\s*[-+=]\s*\d",
        )?,
        log: compile(
            r"(?m)^\s*(?:\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\d\d:\d\d:\d\d)|\b(?:ERROR|WARN|INFO|DEBUG|FATAL)\b[\s:\]]|Traceback \(most recent|^\s+at [\w.$]+\(|panicked at",
        )?,
        options: compile(r"(?m)^\s*\(?[A-Ja-j1-9][.):]\s*\S")?,
        question_word: compile(
            r"(?i)\A\W*(?:what|who|whom|whose|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|would|will|has|have)\b",
        )?,
    })
});

/// Fewest lines that look like answer options to call them so.
const MIN_OPTIONS: usize = 3;
/// Fewest rows of the same shape to call them a table.
const MIN_TABLE_ROWS: usize = 2;

/// Everything that can be seen in `text` without a model.
pub(super) fn signals(text: &str) -> TextSignals {
    TextSignals {
        bytes: text.len(),
        words: text.split_whitespace().count(),
        lines: text.lines().filter(|line| !line.trim().is_empty()).count(),
        language: None,
        structures: structures(text),
    }
}

/// How many lines look like answer options ("B) ...").
pub(super) fn n_options(text: &str) -> usize {
    PATTERNS.as_ref().map_or(0, |patterns| patterns.options.find_iter(text).count())
}

fn structures(text: &str) -> Structures {
    let Some(patterns) = PATTERNS.as_ref() else { return Structures::default() };
    let found = [
        (Structure::Code, patterns.code.is_match(text)),
        (Structure::Table, has_table(text)),
        (Structure::List, patterns.list.is_match(text)),
        (Structure::Url, patterns.url.is_match(text)),
        (Structure::Math, patterns.math.is_match(text)),
        (Structure::Json, has_json(text)),
        (Structure::Log, patterns.log.is_match(text)),
        (Structure::Options, patterns.options.find_iter(text).nth(MIN_OPTIONS - 1).is_some()),
        (Structure::Question, text.contains(['?', '？']) || patterns.question_word.is_match(text)),
    ];
    found.into_iter().filter_map(|(structure, present)| present.then_some(structure)).collect()
}

fn has_table(text: &str) -> bool {
    let separators = |line: &str, separator: char| line.chars().filter(|c| *c == separator).count();
    ['|', '\t', ','].into_iter().any(|separator| {
        let fewest = if separator == ',' { 2 } else { 1 };
        let mut run = (0, 0);
        for line in text.lines() {
            let n = separators(line, separator);
            let looks_like_prose = separator == ',' && line.split(',').any(|cell| cell.split_whitespace().count() > 4);
            run = match run {
                _ if n < fewest || looks_like_prose => (0, 0),
                (rows, width) if rows > 0 && n == width => (rows + 1, width),
                _ => (1, n),
            };
            if run.0 >= MIN_TABLE_ROWS && (separator != ',' || run.0 > MIN_TABLE_ROWS) {
                return true;
            }
        }
        false
    })
}

fn has_json(text: &str) -> bool {
    let keyed = text.contains("{\"") || text.contains("{ \"") || text.contains("{\n") || text.contains("[{");
    keyed && text.contains("\":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[Structure]) {
        assert_eq!(structures(text), expected.iter().copied().collect::<Structures>(), "{text}");
    }

    #[test]
    fn finds_structures() {
        use Structure::{Code, Json, List, Log, Math, Options, Question, Table, Url};
        check("tell me a joke", &[]);
        check("What is the capital of France?", &[Question]);
        check("why is the sky blue", &[Question]);
        check("fix this\n```\nprint(1)\n```", &[Code]);
        check("def f(x):\n    return x + 1", &[Code]);
        check("Solve x^2 = 4", &[Math]);
        check("see https://example.org", &[Url]);
        check("name | age\nann | 3\nbob | 4", &[Table]);
        check("a,b,c\n1,2,3\n4,5,6", &[Table]);
        check("Buy:\n- milk\n- eggs", &[List]);
        check("{\"a\": 1}", &[Json]);
        check("2024-01-01 10:00:00 ERROR: disk full", &[Log]);
        check("Pick one\nA. red\nB. blue\nC. green", &[Options]);
        check("First I went home, then I ate, then I slept.\nThen, well, nothing, really.", &[]);
    }

    #[test]
    fn patterns_compile() {
        assert!(PATTERNS.is_some());
    }
}
