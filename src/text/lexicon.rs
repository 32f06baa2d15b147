//! Words that hint at a kind of task. Hints only: they are inputs of the learned heads, not rules.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

/// Groups of hint words, each one number for the heads. The order is part of the feature layout.
const GROUPS: [(&str, &[&str]); 16] = [
    (
        "summarise",
        &[
            "summar",
            "tl;dr",
            "tldr",
            "key points",
            "key takeaways",
            "in a nutshell",
            "condense",
            "recap",
            "the gist",
            "digest",
            "main points",
            "abstract",
            "minutes",
            "headline",
        ],
    ),
    (
        "extract",
        &[
            "extract",
            "list all",
            "list every",
            "pull out",
            "find all",
            "identify all",
            "parse",
            "names mentioned",
            "as json",
            "in json",
            "which names",
            "all the dates",
            "fields",
        ],
    ),
    (
        "classify",
        &[
            "classify",
            "categor",
            "sentiment",
            "positive or negative",
            "label",
            "spam",
            "true or false",
            "which of the following",
            "is this a",
            "tag ",
            "yes or no",
            "entail",
            "toxic",
            "tell me which",
            "identify which",
        ],
    ),
    (
        "rewrite",
        &[
            "rewrite",
            "rephrase",
            "paraphrase",
            "proofread",
            "grammar",
            "more formal",
            "polite",
            "reword",
            "fix the typos",
            "sound more",
            "shorten",
            "polish",
            "tone",
            "edit this",
            "make this",
            "simplify",
            "correct the",
        ],
    ),
    (
        "translate",
        &[
            "translat",
            "in french",
            "in spanish",
            "in german",
            "in italian",
            "in japanese",
            "in chinese",
            "into english",
            "to english",
            "to french",
            "to spanish",
            "to german",
            "how do you say",
            "auf deutsch",
            "en español",
            "en français",
            "po polsku",
        ],
    ),
    (
        "code",
        &[
            "code",
            "function",
            "python",
            "javascript",
            "typescript",
            "rust",
            "java",
            "sql",
            "regex",
            "bash",
            "script",
            "html",
            "css",
            "compile",
            "bug",
            "exception",
            "api",
            "algorithm",
            "docker",
            "kubernetes",
            "git ",
            "class ",
            "c++",
            "query",
            "stack trace",
        ],
    ),
    (
        "math",
        &[
            "calculate",
            "solve",
            "equation",
            "integral",
            "derivative",
            "probability",
            "percent",
            "how many",
            "how much",
            "sum of",
            "average",
            "area",
            "prove",
            "matrix",
            "triangle",
            "polynomial",
            "find the value",
            "simplify the",
            "evaluate",
            "remainder",
        ],
    ),
    (
        "reason",
        &[
            "why",
            "should i",
            "puzzle",
            "logic",
            "deduce",
            "conclude",
            "trade-off",
            "tradeoff",
            "plan",
            "decide",
            "if all",
            "who is lying",
            "riddle",
            "step by step",
            "weigh",
            "argument",
            "premise",
            "implies",
            "which option",
        ],
    ),
    (
        "create",
        &[
            "poem",
            "story",
            "haiku",
            "lyrics",
            "song",
            "dialogue",
            "speech",
            "slogan",
            "limerick",
            "essay",
            "scene",
            "sonnet",
            "screenplay",
            "narrat",
            "write a",
            "letter",
            "fairy tale",
            "monologue",
        ],
    ),
    (
        "brainstorm",
        &[
            "ideas",
            "suggest",
            "brainstorm",
            "recommend",
            "list some",
            "give me a list",
            "options for",
            "ways to",
            "names for",
            "tips",
            "what can i",
            "what are some",
            "things to",
            "examples of",
            "activities",
        ],
    ),
    (
        "chat",
        &[
            "hello",
            "hi ",
            "hey",
            "thanks",
            "thank you",
            "how are you",
            "i feel",
            "lol",
            "haha",
            "good morning",
            "good night",
            "what do you think",
            "your favorite",
            "your favourite",
            "are you",
            "i'm so",
            "i love",
            "nice to",
            "pretend",
            "act as",
            "bye",
        ],
    ),
    (
        "device",
        &[
            "alarm",
            "timer",
            "remind me",
            "turn off",
            "turn on",
            "call ",
            "play ",
            "book a",
            "order ",
            "volume",
            "schedule",
            "text my",
            "navigate",
            "set the",
            "open the",
            "send a message",
            "add to",
        ],
    ),
    (
        "passage",
        &[
            "passage",
            "paragraph",
            "context",
            "article",
            "according to",
            "based on the",
            "the text",
            "the following",
            "given the",
            "the above",
            "excerpt",
            "reference text",
            "document",
            "email below",
        ],
    ),
    (
        "rigour",
        &[
            "prove",
            "rigor",
            "formal",
            "theorem",
            "derive",
            "optimi",
            "complexity",
            "distributed",
            "architecture",
            "trade-off",
            "constraints",
            "edge cases",
            "comprehensive",
            "in depth",
            "detailed analysis",
            "regulat",
            "statut",
            "differential",
            "asymptotic",
        ],
    ),
    (
        "ease",
        &[
            "simple",
            "quick",
            "short",
            "briefly",
            "one sentence",
            "basic",
            "easy",
            "eli5",
            "one word",
            "just ",
            "beginner",
            "in a few words",
        ],
    ),
    ("question", &["what", "who", "when", "where", "which", "how", "is ", "are ", "does", "did", "can "]),
];

/// Number of hint groups.
pub(super) const N_GROUPS: usize = GROUPS.len();

struct Lexicon {
    matcher: AhoCorasick,
    group_of_pattern: Vec<usize>,
}

static LEXICON: LazyLock<Option<Lexicon>> = LazyLock::new(|| {
    let patterns: Vec<&str> = GROUPS.iter().flat_map(|(_, words)| words.iter().copied()).collect();
    let group_of_pattern =
        GROUPS.iter().enumerate().flat_map(|(group, (_, words))| words.iter().map(move |_| group)).collect();
    let matcher =
        AhoCorasick::builder().ascii_case_insensitive(true).match_kind(MatchKind::Standard).build(patterns).ok()?;
    Some(Lexicon { matcher, group_of_pattern })
});

/// Names of the groups, for the feature layout.
pub(super) fn group_names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().map(|(name, _)| *name)
}

/// How many hints of each group start at a word border of `text`.
pub(super) fn count_hints(text: &str) -> [u16; N_GROUPS] {
    let mut counts = [0_u16; N_GROUPS];
    let Some(lexicon) = LEXICON.as_ref() else { return counts };
    let bytes = text.as_bytes();
    for found in lexicon.matcher.find_overlapping_iter(text) {
        let starts_word = found.start() == 0 || !bytes[found.start() - 1].is_ascii_alphanumeric();
        if starts_word {
            let count = &mut counts[lexicon.group_of_pattern[found.pattern().as_usize()]];
            *count = count.saturating_add(1);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_count_at_word_borders_only() {
        let index = |name: &str| GROUPS.iter().position(|(group, _)| *group == name).unwrap();
        let counts = count_hints("Translate this, then translate that; mistranslate nothing.");
        assert_eq!(counts[index("translate")], 2);
        assert_eq!(count_hints("nothing")[index("code")], 0);
    }
}
