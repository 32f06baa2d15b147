//! Evidence about a query: what the text shows and what the classifier says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Distribution, Probability, Tier, TierChoice, TierControl};

/// What can be seen in a text without any model, in microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextSignals {
    /// Length in UTF-8 bytes.
    pub bytes: usize,
    /// White-space separated words.
    pub words: usize,
    /// Lines with any text.
    pub lines: usize,
    /// The language, where the text is long enough to tell.
    pub language: Option<Language>,
    /// Which structures occur.
    pub structures: Structures,
}

/// A structure that can occur in a text.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Structure {
    /// Program text: a fenced block, or lines that look like code.
    Code,
    /// A table in Markdown, tabs or commas.
    Table,
    /// A bulleted or numbered list.
    List,
    /// A URL.
    Url,
    /// Formulae: LaTeX, or operators between numbers or variables.
    Math,
    /// A JSON object or array.
    Json,
    /// Log lines or a stack trace.
    Log,
    /// Answer options to choose from.
    Options,
    /// A question mark, or a question word in front.
    Question,
}

/// A set of [`Structure`].
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Structures(u16);

/// What the classifier says of one query, all of it calibrated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// Probability of each intent.
    pub intent: Distribution,
    /// How capable a model has to be to answer well, continuous.
    pub difficulty: Probability,
    /// Distribution over [`Tier::ALL`].
    pub tiers: [f32; Tier::ALL.len()],
    /// What threshold keeps an asked confidence; the same for all queries of a classifier.
    #[serde(skip)]
    pub tier_control: TierControl,
    /// Probability that the query is outside everything the classifier knows.
    pub out_of_scope: Probability,
    /// Word pieces read, special ones included.
    pub tokens_used: u32,
    /// Word pieces cut by the sequence limit.
    pub tokens_cut: u32,
}

/// A language as ISO 639-3 code.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Language(pub &'static str);

// === impl Classification ===

impl Classification {
    /// The tier to act on when under-routing is to stay below `1 - asked` over queries.
    pub fn choose_tier(&self, asked: Probability) -> TierChoice {
        TierChoice::controlled(self.tiers, asked, &self.tier_control)
    }
}

// === impl Structures ===

impl Structures {
    /// Adds `structure`.
    pub fn insert(&mut self, structure: Structure) {
        self.0 |= 1 << structure as u16;
    }

    /// Whether `structure` occurs.
    pub fn contains(self, structure: Structure) -> bool {
        self.0 & (1 << structure as u16) != 0
    }
}

impl FromIterator<Structure> for Structures {
    fn from_iter<I: IntoIterator<Item = Structure>>(structures: I) -> Self {
        let mut set = Self::default();
        structures.into_iter().for_each(|structure| set.insert(structure));
        set
    }
}

impl std::fmt::Debug for Structures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(Structure::ALL.iter().filter(|structure| self.contains(**structure))).finish()
    }
}

impl Structure {
    /// Every structure.
    pub const ALL: [Self; 9] = [
        Self::Code,
        Self::Table,
        Self::List,
        Self::Url,
        Self::Math,
        Self::Json,
        Self::Log,
        Self::Options,
        Self::Question,
    ];
}

impl Language {
    /// The three letters.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}
