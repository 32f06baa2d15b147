//! Takes greetings, polite openings and thanks off a text: they say nothing about the task.
//!
//! "Hi, could you please translate this? Thanks!" and "Translate this." ask for the same. Only whole phrases at the
//! ends go, a question is taken for an order only where a verb of tasks follows, and a text that is nothing but
//! courtesy stays as it is. Rules still see every word.

use std::sync::LazyLock;

use regex::Regex;

struct Patterns {
    /// Phrases that may go from the start whatever follows.
    greeting: Regex,
    /// "Could you please", "I would like you to": goes where a verb of tasks follows.
    request: Regex,
    /// A verb of tasks at the start.
    verb: Regex,
    /// Thanks and the like at the end.
    closing: Regex,
}

/// Courtesies taken off one end; a text with more is made of them.
const MAX_PHRASES: usize = 4;
/// Fewest words that are still a task.
const MIN_WORDS: usize = 2;
/// How far into a text an opening, or from its end a closing, can reach.
const WINDOW_BYTES: usize = 160;

static PATTERNS: LazyLock<Option<Patterns>> = LazyLock::new(|| {
    let compile = |pattern: &str| Regex::new(pattern).ok();
    Some(Patterns {
        greeting: compile(
            r"(?ix)\A\s*(?:
                (?:hi|hello|hey|hiya|howdy|greetings|good\s+(?:morning|afternoon|evening|day)|dear\s+\w+)
                    (?:\s+(?:there|all|again|team|everyone|everybody|folks|assistant|friend))?\s*(?:[,.!:;\n—–-]+\s*|$)
              | (?:thanks|thank\s+you|sorry\s+to\s+(?:bother|trouble)\s+you|excuse\s+me|pardon\s+me|quick\s+(?:one|question|request)
                    |one\s+(?:quick|more)\s+(?:thing|question)|(?:just\s+)?a\s+(?:quick|small|little)\s+(?:question|request|favou?r))
                    (?:\s+(?:in\s+advance|for\s+(?:your\s+)?help(?:ing)?|again))?\s*[,.!:;\n—–-]+\s*
              | (?:ok|okay|so|well|alright|all\s+right|right|now\s+then|hmm+|um+|uh+)\s*[,.!…]+\s*
              | if\s+(?:you\s+(?:have\s+(?:a\s+)?(?:moment|minute|second|time)|don['’]t\s+mind|would|can|could)|(?:it|that)['’]?s\s+(?:ok(?:ay)?|alright|possible|no\s+trouble|not\s+too\s+much\s+trouble))\s*,\s*
            )",
        )?,
        request: compile(
            r"(?ix)\A\s*(?:
                (?:please|kindly|pls|plz)\s*,?\s+
              | (?:can|could|would|will)\s+(?:you|u)\s+(?:(?:please|kindly|possibly|perhaps|maybe|just|quickly|also|then|,)\s*)*
                    (?:be\s+(?:so\s+kind\s+as|able)\s+to\s+|help\s+(?:me|us)\s+(?:to\s+|and\s+)?|try\s+to\s+|go\s+ahead\s+and\s+)?
              | (?:i|we)(?:['’]d|\s+would)?\s+(?:really\s+)?(?:need|want|like|love)\s+(?:for\s+)?(?:you|your\s+help)\s+(?:to\s+|with\s+)?
              | (?:i|we)(?:['’]d|\s+would)\s+(?:be\s+(?:very\s+|so\s+|really\s+)?(?:grateful|thankful|glad|happy)|(?:really\s+|very\s+much\s+)?appreciate\s+it)\s+if\s+you\s+(?:could|would|can)\s+
              | (?:i|we)\s+(?:was|were|am|are|['’]m)?\s*(?:just\s+)?wonder(?:ing)?\s+(?:if|whether)\s+(?:you|it)\s+(?:could|would|can|might|(?:would|might)\s+be\s+possible\s+to)\s+(?:please\s+)?(?:help\s+me\s+(?:to\s+)?)?
              | (?:is|would)\s+it\s+(?:be\s+)?(?:possible|ok(?:ay)?)\s+(?:for\s+you\s+)?to\s+
              | (?:do|would)\s+you\s+(?:think\s+you\s+(?:can|could)|mind\s+(?:trying\s+to\s+)?)\s*(?:please\s+)?
              | (?:your\s+(?:task|job)\s+(?:here\s+)?is\s+to|you\s+(?:should|must|need\s+to|are\s+to|have\s+to)|go\s+ahead\s+and|help\s+me\s+(?:to\s+|and\s+)?|help\s+us\s+(?:to\s+)?)\s*
            )+",
        )?,
        verb: compile(
            r"(?ix)\A(?:(?:quickly|briefly|also|just|now|then|carefully|kindly|please)\s+)?(?:
                act|add|adjust|adapt|analy[sz]e|annotate|answer|apply|arrange|assess|assign|assume|brainstorm|break|build|calculate|capitali[sz]e|categori[sz]e|
                change|check|choose|cite|clarify|classify|clean|code|come|comment|compare|complete|compose|compute|condense|confirm|construct|
                consider|continue|contrast|convert|copy|correct|count|craft|create|critique|cut|debug|decide|decode|deduce|define|derive|describe|
                design|detect|determine|develop|devise|diagnose|differentiate|discuss|distinguish|divide|draft|draw|edit|elaborate|encode|enumerate|estimate|
                evaluate|examine|expand|explain|explore|express|extend|extract|factor|figure|fill|filter|find|finish|fix|format|formulate|generate|get|
                give|go|group|guess|highlight|identify|imagine|implement|improve|infer|integrate|interpret|invent|judge|justify|keep|label|let|list|locate|look|
                make|map|mark|match|merge|modify|multiply|name|normali[sz]e|optimi[sz]e|order|organi[sz]e|outline|paraphrase|parse|perform|pick|plan|polish|
                port|predict|prepare|pretend|produce|proofread|propose|prove|provide|pull|punctuate|put|quote|rank|rate|read|reason|rearrange|recap|recommend|reconstruct|
                record|reduce|refactor|remove|rename|render|reorder|rephrase|replace|reply|report|respond|restate|restructure|return|reverse|review|revise|rewrite|
                reword|round|run|say|score|search|select|separate|share|shorten|show|simplify|sketch|solve|sort|specify|spell|split|spot|state|
                structure|suggest|sum|summari[sz]e|tabulate|tag|take|teach|tell|test|tidy|trace|transcribe|transform|translate|transpose|trim|turn|underline|
                update|use|verify|walk|weigh|work|write
            )\b",
        )?,
        closing: compile(
            r"(?ix)(?:[\s,.!?;:—–-]|\A)+(?:
                (?:(?:many|much|with)\s+)?(?:thanks|thank\s+you|thx|cheers|ty)(?:\s+(?:so\s+much|very\s+much|a\s+(?:lot|million|bunch|ton)|in\s+advance|again|for\s+(?:your|the|any|all\s+your)\s+(?:help|time|effort|assistance)))*
              | (?:please|pls|plz)(?:\s+and\s+thank\s+you)?
              | (?:much|greatly|really)\s+appreciated|(?:i\s+|i['’]d\s+|would\s+)?(?:really\s+|very\s+much\s+)?appreciate\s+(?:it|that|your\s+help|the\s+help)
              | any\s+(?:help|hints?|pointers?|advice)\s+(?:is|would\s+be|are)\s+(?:much\s+|greatly\s+|very\s+)?(?:appreciated|welcome|great|nice)
              | (?:take\s+your\s+time|no\s+rush|no\s+hurry|have\s+a\s+(?:nice|good|great|lovely)\s+(?:day|one|evening|weekend))
              | (?:that|this|it)\s+would\s+(?:be\s+(?:great|lovely|wonderful|very\s+helpful|really\s+helpful|helpful|perfect|awesome)|help\s+(?:me\s+)?(?:a\s+lot|out))
              | if\s+(?:you\s+(?:can|could|don['’]t\s+mind|have\s+(?:a\s+)?(?:moment|minute|time))|(?:that|it)['’]?s\s+(?:ok(?:ay)?|possible|alright))
              | when(?:ever)?\s+you\s+(?:can|get\s+(?:a\s+)?(?:moment|minute|chance|time)|have\s+(?:a\s+)?(?:moment|minute|time))
              | (?:kind|best|warm)\s+(?:regards|wishes)
            )[\s.!,;:)🙂🙏😊-]*\z",
        )?,
    })
});

/// The text without courtesies at its ends.
pub(super) fn strip(text: &str) -> &str {
    let Some(patterns) = PATTERNS.as_ref() else { return text };
    let mut rest = text;
    let mut asked = false;
    for _ in 0..MAX_PHRASES {
        let (window, _) = rest.split_at(rest.floor_char_boundary(WINDOW_BYTES));
        if let Some(found) = patterns.greeting.find(window) {
            rest = after(rest, found.end());
            continue;
        }
        let Some(found) = patterns.request.find(window) else { break };
        let order = after(rest, found.end());
        if !patterns.verb.is_match(order) {
            break;
        }
        (rest, asked) = (order, true);
    }
    for _ in 0..MAX_PHRASES {
        let start = rest.ceil_char_boundary(rest.len().saturating_sub(WINDOW_BYTES));
        let (_, window) = rest.split_at(start);
        let Some(found) = patterns.closing.find(window) else { break };
        let (kept, closing) = rest.split_at(start + found.start());
        // The mark that ends the task's own sentence stays with it.
        let mark = closing.chars().next().filter(|c| matches!(c, '.' | '!' | '?')).map_or(0, char::len_utf8);
        let (kept, _) = rest.split_at(kept.len() + mark);
        rest = kept;
    }
    if asked && let Some(order) = rest.strip_suffix('?') {
        // "Could you list them?" is an order, and ends like one; a question further on in the text is its own.
        if !order.contains(['?', '\n']) {
            rest = order;
        }
    }
    let rest = rest.trim();
    if rest.split_whitespace().nth(MIN_WORDS - 1).is_some() { rest } else { text }
}

fn after(text: &str, at: usize) -> &str {
    text.split_at(at).1.trim_start()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn courtesies_at_the_ends_go() {
        for (text, stripped) in [
            ("Could you please translate this into German?", "translate this into German"),
            ("Hi there! Can you summarise the report below? Thanks in advance!", "summarise the report below"),
            ("I would like you to write a haiku about rain, please.", "write a haiku about rain"),
            ("I was wondering if you could explain entropy", "explain entropy"),
            ("Hey, what is the capital of Peru? Thanks!", "what is the capital of Peru?"),
            ("Please list three rivers. Much appreciated.", "list three rivers."),
            ("Good morning, quick question: why is the sky blue?", "why is the sky blue?"),
        ] {
            assert_eq!(strip(text), stripped);
        }
    }

    #[test]
    fn what_is_asked_stays() {
        for text in [
            "Can you swim?",
            "Will you marry me?",
            "Thanks a lot!",
            "Hello there",
            "Could you please?",
            "Translate 'thank you' into French",
            "hi",
            "You are a pirate. Tell me about your ship.",
            "Is it possible to travel faster than light?",
            "What does the word please mean",
            "",
        ] {
            assert_eq!(strip(text), text);
        }
        assert_eq!(strip("Can you check this?\nIs 91 prime?"), "check this?\nIs 91 prime?");
    }

    proptest! {
        #[test]
        fn what_is_left_is_a_part_and_has_words(text in "(?:(?:hi|please|thanks|could you|write|a poem|é)[ ,.!?]{1,2}){0,9}") {
            let rest = strip(&text);
            prop_assert!(text.contains(rest));
            prop_assert!(rest.split_whitespace().count() >= MIN_WORDS.min(text.split_whitespace().count()));
        }
    }
}
