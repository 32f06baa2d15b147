//! Evaluates rules against one query.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex::SetMatches;

use crate::domain::TextSignals;

use super::MAX_REGEX_TEXT_BYTES;
use super::compile::{Condition, Rule, RuleSet, fold, joins_words};
use super::evidence::Atom;
use super::outcome::RuleOutcome;
use super::spec::LengthSpec;

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct RuleInput<'a> {
    /// The text to classify.
    pub text: &'a str,
    /// What the text shows.
    pub signals: &'a TextSignals,
    /// The caller's pairs.
    pub metadata: &'a BTreeMap<String, String>,
    /// The tenant; empty: none.
    pub tenant: &'a str,
    /// The role; empty: none.
    pub role: &'a str,
}

/// Rule lists that apply together, the most general first.
///
/// A rule is hidden by one of the same name in a more specific list. Rules are looked at by priority; of equal ones
/// the more specific list's come first, then document order decides.
#[derive(Clone, Default)]
pub struct RuleStack {
    layers: Vec<Arc<RuleSet>>,
}

/// What conditions ask. `None`: not known, which happens only when a logged decision is replayed.
pub(super) trait Facts {
    /// What the text shows.
    fn signals(&self) -> &TextSignals;
    /// The request's tenant.
    fn tenant(&self) -> &str;
    /// The request's role.
    fn role(&self) -> &str;
    /// Whether the text has a keyword of list `layer`.
    fn keyword(&self, layer: usize, id: usize) -> Option<bool>;
    /// Whether an expression of list `layer` is found in the text.
    fn regex(&self, layer: usize, id: usize) -> Option<bool>;
    /// Whether the metadata has one of `values` under `key`.
    fn metadata(&self, key: &str, values: &[String]) -> Option<bool>;
}

/// One list's automata over one text, each run at most once and only when a condition asks.
struct Scan<'a> {
    set: &'a RuleSet,
    keywords: OnceCell<Vec<bool>>,
    regexes: OnceCell<SetMatches>,
}

struct Evaluation<'a> {
    input: RuleInput<'a>,
    folded: OnceCell<String>,
    scans: Vec<Scan<'a>>,
}

// === impl RuleStack ===

impl RuleStack {
    /// Stacks lists, the most general first.
    pub fn new(layers: impl IntoIterator<Item = Arc<RuleSet>>) -> Self {
        Self { layers: layers.into_iter().filter(|set| !set.names.is_empty()).collect() }
    }

    /// What the rules fix for `input`.
    pub fn evaluate(&self, input: &RuleInput<'_>) -> RuleOutcome {
        if self.layers.is_empty() {
            return RuleOutcome::default();
        }
        self.decide(&Evaluation::new(&self.layers, input)).0
    }

    /// What the rules fix for `input`, and every question of theirs to the text whose answer is yes, sorted.
    ///
    /// Every automaton runs, so that a log of the answers has them all.
    pub fn observe(&self, input: &RuleInput<'_>) -> (RuleOutcome, Vec<Atom>) {
        if self.layers.is_empty() {
            return <(RuleOutcome, Vec<Atom>)>::default();
        }
        let evaluation = Evaluation::new(&self.layers, input);
        let outcome = self.decide(&evaluation).0;
        let mut atoms = evaluation.holding();
        atoms.sort_unstable();
        atoms.dedup();
        (outcome, atoms)
    }

    /// What the rules fix by `facts`, and the rules of which it cannot be told whether they match.
    ///
    /// Those are taken not to match.
    pub(super) fn decide(&self, facts: &impl Facts) -> (RuleOutcome, Vec<Arc<str>>) {
        let (mut outcome, mut unknown) = <(RuleOutcome, Vec<Arc<str>>)>::default();
        let mut heads: Vec<&[Rule]> = self.layers.iter().map(|set| set.rules.as_slice()).collect();
        while let Some((layer, rule)) = next_rule(&mut heads) {
            if self.hidden(layer, rule) {
                continue;
            }
            match holds(&rule.when, facts, layer) {
                Some(false) => {}
                None => unknown.push(Arc::clone(&rule.name)),
                Some(true) => {
                    outcome.apply(rule);
                    if rule.stop {
                        break;
                    }
                }
            }
        }
        (outcome, unknown)
    }

    /// The lists, the most general first.
    pub(super) fn layers(&self) -> &[Arc<RuleSet>] {
        &self.layers
    }

    fn hidden(&self, layer: usize, rule: &Rule) -> bool {
        self.layers.iter().skip(layer + 1).any(|set| set.names.contains(&rule.name))
    }
}

impl fmt::Debug for RuleStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.layers.iter().map(|set| set.len())).finish()
    }
}

/// Takes the next rule of all lists: by priority, then the more specific (later) list.
fn next_rule<'a>(heads: &mut [&'a [Rule]]) -> Option<(usize, &'a Rule)> {
    let (layer, rule) = heads
        .iter()
        .enumerate()
        .filter_map(|(layer, rules)| rules.first().map(|rule| (layer, rule)))
        .max_by_key(|(layer, rule)| (rule.priority, *layer))?;
    if let Some(head) = heads.get_mut(layer) {
        *head = head.get(1..).unwrap_or_default();
    }
    Some((layer, rule))
}

/// Whether a condition of list `layer` holds; `None` where that hangs on something that is not known.
fn holds(condition: &Condition, facts: &impl Facts, layer: usize) -> Option<bool> {
    let one_of = |values: &[String], value: &str| values.iter().any(|allowed| allowed == value);
    let signals = facts.signals();
    match condition {
        Condition::All(parts) => all(parts.iter().map(|part| holds(part, facts, layer))),
        Condition::Any(parts) => any(parts.iter().map(|part| holds(part, facts, layer))),
        Condition::Not(part) => holds(part, facts, layer).map(|holds| !holds),
        Condition::Tenant(tenants) => Some(one_of(tenants, facts.tenant())),
        Condition::Role(roles) => Some(one_of(roles, facts.role())),
        Condition::Length(bounds) => Some(within(bounds, signals)),
        Condition::Language(languages) => {
            Some(signals.language.is_some_and(|language| one_of(languages, language.as_str())))
        }
        Condition::Structure(wanted) => {
            let found = signals.structures;
            Some(crate::domain::Structure::ALL.iter().any(|s| wanted.contains(*s) && found.contains(*s)))
        }
        Condition::Metadata(pairs) => all(pairs.iter().map(|(key, values)| facts.metadata(key, values))),
        Condition::Keywords(ids) => any(ids.iter().map(|id| facts.keyword(layer, *id as usize))),
        Condition::Regex(id) => facts.regex(layer, *id),
    }
}

/// False when one is, else unknown when one is; looks no further than it must.
fn all(parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut result = Some(true);
    for part in parts {
        match part {
            Some(false) => return Some(false),
            Some(true) => {}
            None => result = None,
        }
    }
    result
}

/// True when one is, else unknown when one is.
fn any(mut parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut result = Some(false);
    loop {
        match parts.next() {
            None => return result,
            Some(Some(true)) => return Some(true),
            Some(Some(false)) => {}
            Some(None) => result = None,
        }
    }
}

// === impl Evaluation ===

impl<'a> Evaluation<'a> {
    fn new(layers: &'a [Arc<RuleSet>], input: &RuleInput<'a>) -> Self {
        Self { input: *input, folded: OnceCell::new(), scans: layers.iter().map(|set| Scan::new(set)).collect() }
    }

    fn keywords<'s>(&'s self, scan: &'s Scan<'a>) -> &'s [bool] {
        scan.keywords.get_or_init(|| scan.find_keywords(self.folded.get_or_init(|| fold(self.input.text))))
    }

    fn regexes<'s>(&'s self, scan: &'s Scan<'a>) -> &'s SetMatches {
        scan.regexes.get_or_init(|| scan.set.regexes.matches(start_of(self.input.text)))
    }

    /// What holds of everything that could be asked of the text.
    fn holding(&self) -> Vec<Atom> {
        let mut atoms = Vec::new();
        for scan in &self.scans {
            if !scan.set.keyword_atoms.is_empty() {
                let found = self.keywords(scan).iter().zip(&scan.set.keyword_atoms);
                atoms.extend(found.filter(|(found, _)| **found).map(|(_, atom)| *atom));
            }
            if !scan.set.regex_atoms.is_empty() {
                atoms.extend(self.regexes(scan).iter().filter_map(|id| scan.set.regex_atoms.get(id)));
            }
        }
        atoms
    }
}

impl Facts for Evaluation<'_> {
    fn signals(&self) -> &TextSignals {
        self.input.signals
    }

    fn tenant(&self) -> &str {
        self.input.tenant
    }

    fn role(&self) -> &str {
        self.input.role
    }

    fn keyword(&self, layer: usize, id: usize) -> Option<bool> {
        let scan = self.scans.get(layer)?;
        self.keywords(scan).get(id).copied()
    }

    fn regex(&self, layer: usize, id: usize) -> Option<bool> {
        let scan = self.scans.get(layer)?;
        Some(self.regexes(scan).matched(id))
    }

    fn metadata(&self, key: &str, values: &[String]) -> Option<bool> {
        Some(self.input.metadata.get(key).is_some_and(|value| values.contains(value)))
    }
}

/// The first [`MAX_REGEX_TEXT_BYTES`], less what would split a character.
fn start_of(text: &str) -> &str {
    let cut = (0..=text.len().min(MAX_REGEX_TEXT_BYTES)).rev().find(|end| text.is_char_boundary(*end));
    cut.and_then(|end| text.get(..end)).unwrap_or(text)
}

fn within(bounds: &LengthSpec, signals: &TextSignals) -> bool {
    let fits = |value: usize, min: Option<usize>, max: Option<usize>| {
        min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max)
    };
    fits(signals.words, bounds.min_words, bounds.max_words) && fits(signals.bytes, bounds.min_bytes, bounds.max_bytes)
}

// === impl Scan ===

impl<'a> Scan<'a> {
    fn new(set: &'a RuleSet) -> Self {
        Self { set, keywords: OnceCell::new(), regexes: OnceCell::new() }
    }

    fn find_keywords(&self, folded: &str) -> Vec<bool> {
        let mut found = vec![false; self.set.boundaries.len()];
        let Some(automaton) = &self.set.keywords else { return found };
        for hit in automaton.find_overlapping_iter(folded) {
            let id = hit.pattern().as_usize();
            let (Some(slot), Some((at_start, at_end))) = (found.get_mut(id), self.set.boundaries.get(id)) else {
                continue;
            };
            if !*slot {
                let before = folded.get(..hit.start()).and_then(|text| text.chars().next_back());
                let after = folded.get(hit.end()..).and_then(|text| text.chars().next());
                let joined =
                    (*at_start && before.is_some_and(joins_words)) || (*at_end && after.is_some_and(joins_words));
                *slot = !joined;
            }
        }
        found
    }
}
