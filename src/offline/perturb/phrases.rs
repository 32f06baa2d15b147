//! The phrases of both pools, written for this project, and a few words about sentences.

use super::Pool;

/// What one pool writes into texts.
#[derive(Debug)]
pub(super) struct Phrases {
    /// Openings that an order follows, as a question.
    pub(super) requests: &'static [&'static str],
    /// Openings that anything may follow, with what separates them from it.
    pub(super) greetings: &'static [&'static str],
    /// Ends.
    pub(super) closings: &'static [&'static str],
    /// Blocks below a text.
    pub(super) boilerplate: &'static [&'static str],
    /// What to put before an order, to ask for it.
    pub(super) asks: &'static [&'static str],
    /// Openings of questions and orders, and another way to say them.
    pub(super) openings: &'static [Opening],
    /// Words that may stand for each other, either way.
    pub(super) synonyms: &'static [(&'static str, &'static str)],
}

/// An opening in lower case, what may stand for it, and how the sentence then ends.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) is_question: bool,
}

const TRAINING: Phrases = Phrases {
    requests: &[
        "Could you please",
        "Can you please",
        "Would you mind helping me: can you",
        "Hi, could you",
        "If possible, can you",
        "Would you be so kind and",
        "Hey there, can you quickly",
        "Good morning, could you",
    ],
    greetings: &[
        "Hi, I need help with this: ",
        "Hello! ",
        "Hey, quick question: ",
        "Hi there,\n\n",
        "Please help me with the following.\n\n",
        "I was wondering about something. ",
        "Good evening. ",
        "Sorry to bother you, but here is what I need: ",
        "ok so ",
        "Dear assistant, ",
    ],
    closings: &[
        "Thanks in advance!",
        "Thank you.",
        "Thanks!",
        "I appreciate your help.",
        "Many thanks",
        "Please and thank you.",
        "Cheers",
        "That would help me a lot.",
    ],
    boilerplate: &[
        "Sent from my iPhone",
        "--\nAnna Weber\nProject Coordinator\nTel. +49 30 5550 1234",
        "This email and any attachments are confidential and intended solely for the addressee.",
        "Best regards,\nTom",
        "On Mon, 3 Feb 2025 at 09:14, Julia Stein wrote:\n> Thanks, I will look at it tomorrow.",
        "Please consider the environment before printing this email.",
        "Kind regards,\nPriya Nair\nCustomer Success",
        "Get Outlook for Android",
        "You are receiving this message because you subscribed to notifications. Unsubscribe at any time.",
        "From: Support Desk\nSent: Tuesday, 11:02\nTo: All staff\nSubject: RE: open points",
        "Yours sincerely\n\nM. Okafor",
        "-----Original Message-----\nFrom: Lena\nSubject: FW: your request",
    ],
    asks: &["Can you", "Would you", "I would like you to"],
    openings: &[
        Opening { from: "how do i ", to: "show me how to ", is_question: false },
        Opening { from: "how can i ", to: "show me how to ", is_question: false },
        Opening { from: "how to ", to: "what do I have to do to ", is_question: true },
        Opening { from: "what is the ", to: "tell me the ", is_question: false },
        Opening { from: "what's the ", to: "tell me the ", is_question: false },
        Opening { from: "what are the ", to: "tell me the ", is_question: false },
        Opening { from: "what are some ", to: "give me some ", is_question: false },
        Opening { from: "tell me the ", to: "do you know the ", is_question: true },
        Opening { from: "give me ", to: "may I have ", is_question: true },
        Opening { from: "why ", to: "for what reason ", is_question: true },
    ],
    synonyms: &[
        ("do not", "don't"),
        ("cannot", "can't"),
        ("is not", "isn't"),
        ("was not", "wasn't"),
        ("have not", "haven't"),
        ("would not", "wouldn't"),
        ("I am", "I'm"),
        ("we are", "we're"),
        ("I will", "I'll"),
        ("who is", "who's"),
        ("where is", "where's"),
        ("big", "large"),
        ("buy", "purchase"),
        ("choose", "pick"),
        ("important", "essential"),
        ("quickly", "fast"),
        ("difficult", "hard"),
        ("also", "as well"),
        ("for example", "for instance"),
        ("many", "lots of"),
        ("text", "passage"),
        ("mistakes", "errors"),
        ("following", "below"),
        ("ideas", "suggestions"),
        ("in order to", "so as to"),
    ],
};

const TESTING: Phrases = Phrases {
    requests: &[
        "Could you kindly",
        "May I ask you to",
        "Hello, would you please",
        "When you have a minute, could you",
        "Hey, mind if I ask you to",
        "Is there any chance you could",
        "Would it be possible for you to",
        "I hope you are well. Could you",
    ],
    greetings: &[
        "Hello, I have a request. ",
        "Good afternoon, ",
        "Hi again! ",
        "I'm a bit stuck here, maybe you can help: ",
        "Here is my question.\n\n",
        "Hey :) ",
        "Excuse me, ",
        "So, one more thing. ",
        "I'd be grateful for some help with this one:\n",
        "Hiya, ",
    ],
    closings: &[
        "Thanks so much for your help!",
        "Thank you very much in advance.",
        "thx",
        "Any help is welcome.",
        "Much appreciated!",
        "Have a nice day!",
        "Looking forward to your answer.",
        "Thanks a million :)",
    ],
    boilerplate: &[
        "Sent from my Galaxy",
        "Regards,\nDaniel Moreau\nHead of Operations | Office 4.12 | ext. 771",
        "The information in this message may be privileged. If you are not the intended recipient, please delete it.",
        "Cheers,\nSam",
        "Am 12.03.2025 um 17:40 schrieb K. Lindqvist:\n> Could we talk about it on Friday?",
        "Think before you print.",
        "With warm wishes,\nElena Petrova (she/her)",
        "Sent with a mobile mail app. Please excuse my brevity.",
        "To stop receiving these emails, change your settings in your profile.",
        "From: Facilities\nDate: Thursday, 8:30\nCc: Reception\nSubject: Re: Re: update",
        "All the best\nJ. Tanaka\nhas no office hours on Wednesdays",
        "---------- Forwarded message ----------\nFrom: Noah\nTo: me",
    ],
    asks: &["Could you", "Are you able to", "I want you to"],
    openings: &[
        Opening { from: "how do i ", to: "I want to know how to ", is_question: false },
        Opening { from: "how can i ", to: "I want to know how to ", is_question: false },
        Opening { from: "how to ", to: "how does one ", is_question: true },
        Opening { from: "what is the ", to: "I need to know the ", is_question: false },
        Opening { from: "what's the ", to: "I need to know the ", is_question: false },
        Opening { from: "what are the ", to: "which are the ", is_question: true },
        Opening { from: "what are some ", to: "name some ", is_question: false },
        Opening { from: "tell me the ", to: "I need to know the ", is_question: false },
        Opening { from: "give me ", to: "I need ", is_question: false },
        Opening { from: "why ", to: "how come ", is_question: true },
    ],
    synonyms: &[
        ("does not", "doesn't"),
        ("did not", "didn't"),
        ("will not", "won't"),
        ("are not", "aren't"),
        ("should not", "shouldn't"),
        ("could not", "couldn't"),
        ("I have", "I've"),
        ("you are", "you're"),
        ("they are", "they're"),
        ("what is", "what's"),
        ("how is", "how's"),
        ("small", "little"),
        ("begin", "start"),
        ("kids", "children"),
        ("answer", "reply"),
        ("approximately", "about"),
        ("clearly", "plainly"),
        ("main", "principal"),
        ("several", "a number of"),
        ("because", "since"),
        ("article", "piece"),
        ("problem", "issue"),
        ("needs to", "has to"),
        ("tips", "hints"),
        ("rather than", "instead of"),
    ],
};

/// Verbs that open an order.
const ORDERS: [&str; 66] = [
    "add",
    "analyse",
    "analyze",
    "answer",
    "build",
    "calculate",
    "categorize",
    "change",
    "check",
    "classify",
    "compare",
    "complete",
    "compose",
    "compute",
    "convert",
    "correct",
    "create",
    "debug",
    "define",
    "derive",
    "describe",
    "design",
    "determine",
    "develop",
    "discuss",
    "draft",
    "edit",
    "estimate",
    "evaluate",
    "explain",
    "extract",
    "find",
    "fix",
    "generate",
    "give",
    "help",
    "identify",
    "implement",
    "improve",
    "invent",
    "label",
    "list",
    "make",
    "name",
    "outline",
    "paraphrase",
    "predict",
    "propose",
    "prove",
    "provide",
    "recommend",
    "refactor",
    "rephrase",
    "rewrite",
    "shorten",
    "show",
    "simplify",
    "solve",
    "sort",
    "suggest",
    "summarise",
    "summarize",
    "tell",
    "translate",
    "turn",
    "write",
];

/// Words that open a question.
const QUESTIONS: [&str; 24] = [
    "what", "what's", "who", "whose", "when", "where", "which", "why", "how", "is", "are", "was", "were", "do", "does",
    "did", "can", "could", "should", "would", "will", "has", "have", "am",
];

// === impl Phrases ===

impl Phrases {
    pub(super) fn of(pool: Pool) -> &'static Self {
        match pool {
            Pool::Training => &TRAINING,
            Pool::Testing => &TESTING,
        }
    }
}

/// Whether a text opens with the verb of an order.
pub(super) fn is_order(text: &str) -> bool {
    ORDERS.contains(&first_word(text).as_str())
}

/// Whether a text opens like a question.
pub(super) fn is_question(text: &str) -> bool {
    QUESTIONS.contains(&first_word(text).as_str())
}

fn first_word(text: &str) -> String {
    let word = text.split_whitespace().next().unwrap_or_default();
    word.trim_end_matches([',', ':']).to_lowercase().replace('’', "'")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Everything that a pool can write.
    fn written(phrases: &Phrases) -> BTreeSet<String> {
        let lists = [phrases.requests, phrases.greetings, phrases.closings, phrases.boilerplate, phrases.asks];
        let plain = lists.into_iter().flatten().copied();
        let openings = phrases.openings.iter().map(|opening| opening.to);
        let synonyms = phrases.synonyms.iter().flat_map(|(a, b)| [*a, *b]);
        plain.chain(openings).chain(synonyms).map(|phrase| phrase.trim().to_lowercase()).collect()
    }

    #[test]
    fn the_pools_share_no_phrase() {
        let (training, testing) = (written(&TRAINING), written(&TESTING));
        assert_eq!(training.intersection(&testing).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn each_pool_has_enough() {
        for phrases in [&TRAINING, &TESTING] {
            assert!(phrases.requests.len() + phrases.greetings.len() + phrases.closings.len() >= 25);
            assert!(phrases.boilerplate.len() >= 12);
        }
    }

    #[test]
    fn openings_tell_orders_from_questions() {
        assert!(is_order("Explain this") && !is_order("Explanation") && !is_order(""));
        assert!(is_question("What’s up") && is_question("how") && !is_question("Tell me what"));
    }
}
