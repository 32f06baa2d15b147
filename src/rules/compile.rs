//! Checks rules and builds what evaluates them quickly.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use regex::{RegexBuilder, RegexSet, RegexSetBuilder};

use crate::domain::{Structures, Tier};

use super::evidence::Atom;
use super::outcome::FixedBy;
use super::path::{Path, Step};
use super::spec::{ConditionSpec, EffectSpec, LengthSpec, RuleSpec};
use super::{MAX_CONDITION_DEPTH, MAX_REGEX_BYTES, MAX_REGEX_SET_BYTES};

/// The rules of one list, compiled.
#[derive(Default)]
pub struct RuleSet {
    /// The enabled ones, highest priority first, equal ones in document order.
    pub(super) rules: Vec<Rule>,
    /// All names, disabled rules too: these hide rules of the same name in more general lists.
    pub(super) names: HashSet<Arc<str>>,
    /// One automaton over every distinct keyword, lower-cased.
    pub(super) keywords: Option<AhoCorasick>,
    /// Per keyword: whether its first and last characters need a word boundary beside them.
    pub(super) boundaries: Vec<(bool, bool)>,
    /// Every distinct regular expression.
    pub(super) regexes: RegexSet,
    /// What keywords and expressions are called in a log, by their index.
    pub(super) keyword_atoms: Vec<Atom>,
    pub(super) regex_atoms: Vec<Atom>,
    metadata_keys: BTreeSet<String>,
}

/// One rule, ready to be evaluated.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    pub(super) priority: i32,
    pub(super) when: Condition,
    pub(super) effect: Effect,
    pub(super) stop: bool,
}

/// [`ConditionSpec`], with automata in place of texts.
#[derive(Debug)]
pub(super) enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    /// Indices into [`RuleSet::keywords`].
    Keywords(Vec<u32>),
    /// Index into [`RuleSet::regexes`].
    Regex(usize),
    Length(LengthSpec),
    Language(Vec<String>),
    Structure(Structures),
    Metadata(Vec<(String, Vec<String>)>),
    Tenant(Vec<String>),
    Role(Vec<String>),
}

/// [`EffectSpec`] with shared names.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) intent: Option<Arc<str>>,
    pub(super) tier: Option<Tier>,
    pub(super) raise_tier_to: Option<Tier>,
    pub(super) cap_tier_at: Option<Tier>,
    pub(super) force_chain: Option<Arc<str>>,
    pub(super) forbid_chains: Vec<Arc<str>>,
}

/// What is wrong with a rule and where inside it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct RuleError {
    /// From the rule, for example `when.all[1].regex`.
    pub at: Path,
    /// What is wrong.
    pub problem: RuleProblem,
}

/// What can be wrong with a rule.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RuleProblem {
    /// Reasons could not tell it from another.
    #[error("a rule needs a name")]
    NoName,
    /// Reasons could not tell the two apart.
    #[error("another rule of this list has the name {0:?}; give each its own")]
    DuplicateName(String),
    /// Matching would change nothing.
    #[error("the rule has no effect: say in `then` what it fixes, or set `stop: true`")]
    NoEffect,
    /// It would hold always or never, by a convention nobody remembers.
    #[error(
        "the condition is empty: give at least one of any, all, not, keywords, regex, length, language, structure, metadata, tenant, role"
    )]
    EmptyCondition,
    /// Likewise.
    #[error("the list is empty; name at least one value or remove it")]
    EmptyList,
    /// It would be found in every text, or between any two characters.
    #[error("a keyword must have at least one character that is not white space")]
    EmptyKeyword,
    /// The expression does not parse or is too big.
    #[error("{0}")]
    Regex(String),
    /// All expressions together are too big.
    #[error("the regular expressions of this list take more than {MAX_REGEX_SET_BYTES} bytes compiled; simplify them")]
    RegexSetTooBig,
    /// No length fits.
    #[error("min_{0} {1} is greater than max_{0} {2}; no text is that long")]
    LengthRange(&'static str, usize, usize),
    /// Not the form the language detector answers in.
    #[error("{0:?} is not an ISO 639-3 code; three lower-case letters are expected, for example \"eng\"")]
    Language(String),
    /// One rule contradicts itself.
    #[error("tier, raise_tier_to and cap_tier_at of one rule leave no tier; drop one of them")]
    NoTierLeft,
    /// One rule contradicts itself.
    #[error("chain {0:?} is forced and forbidden by the same rule; drop one of them")]
    ForcedAndForbidden(String),
    /// Evaluation recurses.
    #[error("conditions are nested deeper than {MAX_CONDITION_DEPTH} levels; flatten them")]
    TooDeep,
}

#[derive(Default)]
struct Compiler {
    keywords: HashMap<String, u32>,
    keyword_list: Vec<String>,
    regexes: HashMap<String, usize>,
    regex_list: Vec<String>,
    metadata_keys: BTreeSet<String>,
    errors: Vec<RuleError>,
}

// === impl RuleSet ===

impl RuleSet {
    /// Compiles a list of rules.
    ///
    /// # Errors
    /// Everything that is wrong, with the index of the rule it is wrong with.
    pub fn compile(specs: &[RuleSpec]) -> Result<Self, Vec<(usize, RuleError)>> {
        let mut compiler = Compiler::default();
        let mut errors = Vec::new();
        let mut names: HashSet<Arc<str>> = HashSet::new();
        let mut rules = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            let name: Arc<str> = Arc::from(spec.name.as_str());
            if spec.name.trim().is_empty() {
                compiler.fail(&Path::default().then("name"), RuleProblem::NoName);
            } else if !names.insert(Arc::clone(&name)) {
                compiler.fail(&Path::default().then("name"), RuleProblem::DuplicateName(spec.name.clone()));
            }
            let when = compiler.condition(&spec.when, &Path::default().then("when"), 0);
            compiler.check_effect(spec);
            errors.extend(compiler.errors.drain(..).map(|error| (index, error)));
            if spec.enabled {
                let effect = Effect::from(&spec.then);
                rules.push(Rule { name, priority: spec.priority, when, effect, stop: spec.stop });
            }
        }
        // Stable: document order stays within one priority.
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.priority));
        if !errors.is_empty() {
            return Err(errors);
        }
        let regexes = RegexSetBuilder::new(&compiler.regex_list).size_limit(MAX_REGEX_SET_BYTES).build();
        let keywords = if compiler.keyword_list.is_empty() {
            Ok(None)
        } else {
            AhoCorasick::new(&compiler.keyword_list).map(Some)
        };
        match (regexes, keywords) {
            (Ok(regexes), Ok(keywords)) => {
                let Compiler { keyword_list, regex_list, metadata_keys, .. } = compiler;
                Ok(Self {
                    rules,
                    names,
                    keywords,
                    boundaries: keyword_list.iter().map(|keyword| needs_boundaries(keyword)).collect(),
                    regexes,
                    keyword_atoms: keyword_list.iter().map(|keyword| Atom::keyword(keyword)).collect(),
                    regex_atoms: regex_list.iter().map(|regex| Atom::regex(regex)).collect(),
                    metadata_keys,
                })
            }
            // The automaton over keywords fails only beyond 2^31 states, which no document of 1 MiB reaches.
            (_, _) => Err(vec![(0, RuleError { at: Path::default(), problem: RuleProblem::RegexSetTooBig })]),
        }
    }

    /// Enabled rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether no rule is enabled.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Every question that its rules ask of a text.
    pub fn atoms(&self) -> impl Iterator<Item = Atom> {
        self.keyword_atoms.iter().chain(&self.regex_atoms).copied()
    }

    /// Every metadata key that its rules read.
    pub fn metadata_keys(&self) -> &BTreeSet<String> {
        &self.metadata_keys
    }
}

impl fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleSet").field("rules", &self.rules).finish_non_exhaustive()
    }
}

// === impl Rule ===

impl Rule {
    pub(super) fn fixes<T>(&self, value: T) -> FixedBy<T> {
        FixedBy { value, rule: Arc::clone(&self.name) }
    }
}

// === impl Effect ===

impl From<&EffectSpec> for Effect {
    fn from(spec: &EffectSpec) -> Self {
        Self {
            intent: spec.intent.as_deref().map(Arc::from),
            tier: spec.tier,
            raise_tier_to: spec.raise_tier_to,
            cap_tier_at: spec.cap_tier_at,
            force_chain: spec.force_chain.as_deref().map(Arc::from),
            forbid_chains: spec.forbid_chain.iter().map(|chain| Arc::from(chain.as_str())).collect(),
        }
    }
}

// === impl Compiler ===

impl Compiler {
    fn fail(&mut self, at: &Path, problem: RuleProblem) {
        self.errors.push(RuleError { at: at.clone(), problem });
    }

    fn check_effect(&mut self, spec: &RuleSpec) {
        let then = Path::default().then("then");
        let effect = &spec.then;
        if effect.is_empty() && !spec.stop {
            self.fail(&then, RuleProblem::NoEffect);
        }
        let lowest = effect.tier.max(effect.raise_tier_to).unwrap_or(Tier::Simple);
        let highest = effect.tier.into_iter().chain(effect.cap_tier_at).min().unwrap_or(Tier::Complex);
        if lowest > highest {
            self.fail(&then, RuleProblem::NoTierLeft);
        }
        if let Some(chain) = &effect.force_chain
            && effect.forbid_chain.contains(chain)
        {
            self.fail(&then.then("force_chain"), RuleProblem::ForcedAndForbidden(chain.clone()));
        }
    }

    fn condition(&mut self, spec: &ConditionSpec, at: &Path, depth: usize) -> Condition {
        if depth >= MAX_CONDITION_DEPTH {
            self.fail(at, RuleProblem::TooDeep);
            return Condition::All(Vec::new());
        }
        let mut parts = Vec::new();
        if let Some(inner) = &spec.all {
            parts.push(Condition::All(self.conditions(inner, &at.then("all"), depth)));
        }
        if let Some(inner) = &spec.any {
            parts.push(Condition::Any(self.conditions(inner, &at.then("any"), depth)));
        }
        if let Some(inner) = &spec.not {
            parts.push(Condition::Not(Box::new(self.condition(inner, &at.then("not"), depth + 1))));
        }
        // Cheap tests first: the text is scanned only when these leave the question open.
        if let Some(tenants) = self.list(spec.tenant.as_deref(), at, "tenant") {
            parts.push(Condition::Tenant(tenants));
        }
        if let Some(roles) = self.list(spec.role.as_deref(), at, "role") {
            parts.push(Condition::Role(roles));
        }
        if let Some(length) = &spec.length {
            self.check_length(length, &at.then("length"));
            parts.push(Condition::Length(*length));
        }
        if let Some(structures) = self.list(spec.structure.as_deref(), at, "structure") {
            parts.push(Condition::Structure(structures.into_iter().collect()));
        }
        if let Some(languages) = self.list(spec.language.as_deref(), at, "language") {
            for (index, language) in languages.iter().enumerate() {
                if language.len() != 3 || !language.bytes().all(|b| b.is_ascii_lowercase()) {
                    self.fail(&at.then("language").then(index), RuleProblem::Language(language.clone()));
                }
            }
            parts.push(Condition::Language(languages));
        }
        if let Some(metadata) = &spec.metadata {
            if metadata.is_empty() || metadata.values().any(Vec::is_empty) {
                self.fail(&at.then("metadata"), RuleProblem::EmptyList);
            }
            self.metadata_keys.extend(metadata.keys().cloned());
            parts.push(Condition::Metadata(metadata.clone().into_iter().collect()));
        }
        if let Some(keywords) = self.list(spec.keywords.as_deref(), at, "keywords") {
            let at = at.then("keywords");
            let ids = keywords.iter().enumerate().map(|(i, keyword)| self.keyword(keyword, &at, i)).collect();
            parts.push(Condition::Keywords(ids));
        }
        if let Some(regex) = &spec.regex {
            parts.push(Condition::Regex(self.regex(regex, &at.then("regex"))));
        }
        if parts.is_empty() {
            self.fail(at, RuleProblem::EmptyCondition);
        }
        // The cheap ones were pushed after `all`, `any` and `not`; those may hold a scan.
        parts.sort_by_key(|part| matches!(part, Condition::All(_) | Condition::Any(_) | Condition::Not(_)));
        match (parts.len(), parts.pop()) {
            (1, Some(only)) => only,
            (_, last) => Condition::All(parts.into_iter().chain(last).collect()),
        }
    }

    fn conditions(&mut self, specs: &[ConditionSpec], at: &Path, depth: usize) -> Vec<Condition> {
        if specs.is_empty() {
            self.fail(at, RuleProblem::EmptyList);
        }
        specs.iter().enumerate().map(|(index, spec)| self.condition(spec, &at.then(index), depth + 1)).collect()
    }

    fn list<T: Clone>(&mut self, list: Option<&[T]>, at: &Path, key: &str) -> Option<Vec<T>> {
        let list = list?;
        if list.is_empty() {
            self.fail(&at.then(key), RuleProblem::EmptyList);
        }
        Some(list.to_vec())
    }

    fn check_length(&mut self, length: &LengthSpec, at: &Path) {
        if *length == LengthSpec::default() {
            self.fail(at, RuleProblem::EmptyList);
        }
        for (unit, min, max) in
            [("words", length.min_words, length.max_words), ("bytes", length.min_bytes, length.max_bytes)]
        {
            if let (Some(min), Some(max)) = (min, max)
                && min > max
            {
                self.fail(at, RuleProblem::LengthRange(unit, min, max));
            }
        }
    }

    fn keyword(&mut self, keyword: &str, at: &Path, index: usize) -> u32 {
        let folded = fold(keyword);
        let folded = folded.trim();
        if folded.is_empty() {
            self.fail(&at.then(index), RuleProblem::EmptyKeyword);
            return 0;
        }
        if let Some(id) = self.keywords.get(folded) {
            return *id;
        }
        let id = self.keyword_list.len() as u32;
        self.keywords.insert(folded.to_owned(), id);
        self.keyword_list.push(folded.to_owned());
        id
    }

    fn regex(&mut self, pattern: &str, at: &Path) -> usize {
        if let Some(id) = self.regexes.get(pattern) {
            return *id;
        }
        if let Err(error) = RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build() {
            self.fail(at, RuleProblem::Regex(explain(&error)));
            return 0;
        }
        let id = self.regex_list.len();
        self.regexes.insert(pattern.to_owned(), id);
        self.regex_list.push(pattern.to_owned());
        id
    }
}

// === impl Step, Path ===

impl From<Step> for Path {
    fn from(step: Step) -> Self {
        Self(vec![step])
    }
}

/// Lower-cases and turns every run of white space into one space: the form in which keywords are compared.
pub(super) fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    let mut in_space = false;
    for c in text.chars() {
        if c.is_whitespace() {
            if !in_space {
                folded.push(' ');
            }
            in_space = true;
        } else {
            folded.extend(c.to_lowercase());
            in_space = false;
        }
    }
    folded
}

/// Whether `c` joins with its neighbours to a word.
///
/// Scripts written without spaces between words have no boundary to ask for: there a keyword is found anywhere.
pub(super) fn joins_words(c: char) -> bool {
    let unspaced = matches!(c,
        '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' // Thai, Lao, Burmese, Khmer
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' // kana, Han
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}');
    !unspaced && (c.is_alphanumeric() || c == '_')
}

fn needs_boundaries(keyword: &str) -> (bool, bool) {
    let at_start = keyword.chars().next().is_some_and(joins_words);
    let at_end = keyword.chars().next_back().is_some_and(joins_words);
    (at_start, at_end)
}

fn explain(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("the regular expression takes more than {limit} bytes compiled; use smaller repetitions")
        }
        // The crate's text draws the pattern over several lines; its last line says what is wrong.
        other => {
            let text = other.to_string();
            let problem = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            format!("the regular expression is not valid: {problem}")
        }
    }
}
