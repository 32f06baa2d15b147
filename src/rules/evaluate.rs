//! Evaluates rules against one query.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex::SetMatches;

use crate::domain::TextSignals;

use super::MAX_REGEX_TEXT_BYTES;
use super::compile::{Condition, Rule, RuleSet, fold, joins_words};
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
        let mut outcome = RuleOutcome::default();
        if self.layers.is_empty() {
            return outcome;
        }
        let evaluation = Evaluation {
            input: *input,
            folded: OnceCell::new(),
            scans: self.layers.iter().map(|set| Scan::new(set)).collect(),
        };
        let mut heads: Vec<&[Rule]> = self.layers.iter().map(|set| set.rules.as_slice()).collect();
        while let Some((layer, rule)) = next_rule(&mut heads) {
            if !self.hidden(layer, rule) && evaluation.holds(&rule.when, layer) {
                outcome.apply(rule);
                if rule.stop {
                    break;
                }
            }
        }
        outcome
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

// === impl Evaluation ===

impl Evaluation<'_> {
    fn holds(&self, condition: &Condition, layer: usize) -> bool {
        let input = &self.input;
        let one_of = |values: &[String], value: &str| values.iter().any(|allowed| allowed == value);
        match condition {
            Condition::All(parts) => parts.iter().all(|part| self.holds(part, layer)),
            Condition::Any(parts) => parts.iter().any(|part| self.holds(part, layer)),
            Condition::Not(part) => !self.holds(part, layer),
            Condition::Tenant(tenants) => one_of(tenants, input.tenant),
            Condition::Role(roles) => one_of(roles, input.role),
            Condition::Length(bounds) => within(bounds, input.signals),
            Condition::Language(languages) => {
                input.signals.language.is_some_and(|language| one_of(languages, language.as_str()))
            }
            Condition::Structure(wanted) => {
                let found = input.signals.structures;
                crate::domain::Structure::ALL.iter().any(|s| wanted.contains(*s) && found.contains(*s))
            }
            Condition::Metadata(pairs) => {
                pairs.iter().all(|(key, values)| input.metadata.get(key).is_some_and(|value| one_of(values, value)))
            }
            Condition::Keywords(ids) => self.scans.get(layer).is_some_and(|scan| {
                let found =
                    scan.keywords.get_or_init(|| scan.find_keywords(self.folded.get_or_init(|| fold(input.text))));
                ids.iter().any(|id| found.get(*id as usize).copied().unwrap_or(false))
            }),
            Condition::Regex(id) => self.scans.get(layer).is_some_and(|scan| {
                scan.regexes.get_or_init(|| scan.set.regexes.matches(start_of(input.text))).matched(*id)
            }),
        }
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
