//! What differs between two policies: by path in the document, and by effect on what would be selected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::document::Document;
use super::resolve::Signals;
use super::snapshot::Policy;
use crate::domain::{Classification, Distribution, Probability, Requirements, Tier, TierControl};
use crate::rules::{Path, RuleOutcome};

/// What differs between two policies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PolicyDiff {
    /// By path. Written values count, not how they are written: order of keys, spelling and spelt-out defaults do not.
    pub changes: Vec<Change>,
    /// By effect, for requests that no text rule matches and that require nothing.
    pub effects: Vec<Effect>,
    /// There are more kinds of requests than are looked at; further effects may exist.
    pub truncated: bool,
}

/// One difference between two documents.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Where; rules are addressed by name.
    pub path: String,
    /// The value before; `None`: it was absent.
    pub from: Option<Value>,
    /// The value after; `None`: it is removed.
    pub to: Option<Value>,
}

/// Requests of one kind that get another model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effect {
    /// The tenants it concerns, sorted; the empty name is a request without one or with one the policies do not have.
    pub tenants: Vec<String>,
    /// The role; empty: none.
    pub role: String,
    /// The intent; `*`: any that neither document names.
    pub intent: String,
    /// The tier.
    pub tier: Tier,
    /// What was answered.
    pub from: Answer,
    /// What is answered.
    pub to: Answer,
}

/// What a policy answers to a kind of request.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A chain's first usable model.
    Model {
        /// The chain.
        chain: String,
        /// The selected model.
        model: String,
    },
    /// No candidate is left in the chain.
    NoCandidate {
        /// The chain; empty: none is left either.
        chain: String,
    },
    /// The role or the tenant is refused.
    Refused,
}

/// Stands for every intent that no document names.
const ANY_OTHER: &str = "*";
/// Kinds of requests that are decided under both documents: some seconds at most, whatever the documents hold.
const MAX_QUESTIONS: usize = 500_000;

/// What differs between two policies, the second being the newer one.
pub fn diff(from: &Arc<Policy>, to: &Arc<Policy>) -> PolicyDiff {
    let (effects, truncated) = effects(from, to);
    PolicyDiff { changes: changes(from.spec(), to.spec()), effects, truncated }
}

/// What differs between two documents, in document order.
pub fn changes(from: &Document, to: &Document) -> Vec<Change> {
    // Documents hold nothing that JSON cannot.
    let value = |document: &Document| serde_json::to_value(document).unwrap_or_default();
    let mut changes = Vec::new();
    compare(&value(from), &value(to), &Path::default(), &mut changes);
    changes
}

fn compare(from: &Value, to: &Value, at: &Path, changes: &mut Vec<Change>) {
    match (from, to) {
        (Value::Object(before), Value::Object(after)) => compare_maps(before, after, at, changes),
        (Value::Array(before), Value::Array(after)) if before != after => {
            let named = |list: &[Value]| {
                let pairs: Option<Vec<(String, Value)>> =
                    list.iter().map(|value| Some((value.get("name")?.as_str()?.to_owned(), value.clone()))).collect();
                pairs.filter(|pairs| !pairs.is_empty())
            };
            match (named(before), named(after)) {
                (Some(before), Some(after)) => compare_named(before, after, at, changes),
                _ if before.iter().chain(after).all(Value::is_object) => compare_lists(before, after, at, changes),
                _ => push(at, Some(from), Some(to), changes),
            }
        }
        _ if from != to => push(at, Some(from), Some(to), changes),
        _ => {}
    }
}

fn compare_maps(before: &Map<String, Value>, after: &Map<String, Value>, at: &Path, changes: &mut Vec<Change>) {
    for (key, old) in before {
        let at = at.then(key.as_str());
        match after.get(key) {
            Some(new) => compare(old, new, &at, changes),
            None => push(&at, Some(old), None, changes),
        }
    }
    for (key, new) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
        push(&at.then(key.as_str()), None, Some(new), changes);
    }
}

/// Lists of rules: a rule is the same by its name, wherever it stands.
fn compare_named(before: Vec<(String, Value)>, after: Vec<(String, Value)>, at: &Path, changes: &mut Vec<Change>) {
    let order = |list: &[(String, Value)], other: &[(String, Value)]| -> Vec<Value> {
        let shared = list.iter().filter(|(name, _)| other.iter().any(|(known, _)| known == name));
        shared.map(|(name, _)| Value::String(name.clone())).collect()
    };
    let (old, new) = (order(&before, &after), order(&after, &before));
    if old != new {
        push(at, Some(&Value::Array(old)), Some(&Value::Array(new)), changes);
    }
    compare_maps(&before.into_iter().collect(), &after.into_iter().collect(), at, changes);
}

/// Lists of routes: what is alike at both ends is left out, so that an insertion is one change.
fn compare_lists(before: &[Value], after: &[Value], at: &Path, changes: &mut Vec<Change>) {
    let start = before.iter().zip(after).take_while(|(old, new)| old == new).count();
    let (old, new) = (before.get(start..).unwrap_or_default(), after.get(start..).unwrap_or_default());
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    for index in 0..old.len().max(new.len()) {
        let at = at.then(start + index);
        match (old.get(index), new.get(index)) {
            (Some(old), Some(new)) => compare(old, new, &at, changes),
            (old, new) => push(&at, old, new, changes),
        }
    }
}

fn push(at: &Path, from: Option<&Value>, to: Option<&Value>, changes: &mut Vec<Change>) {
    changes.push(Change { path: at.to_string(), from: from.cloned(), to: to.cloned() });
}

/// What is answered differently, alike tenants together; and whether some kinds of requests were left out.
pub fn effects(from: &Arc<Policy>, to: &Arc<Policy>) -> (Vec<Effect>, bool) {
    let both = [from.spec(), to.spec()];
    let mut roles: BTreeSet<&str> = BTreeSet::from([""]);
    let mut tenants: BTreeSet<&str> = BTreeSet::from([""]);
    for document in both {
        roles.extend(document.roles.keys().map(String::as_str));
        tenants.extend(document.tenants.keys().map(String::as_str));
        let own = document.tenants.values().flat_map(|tenant| tenant.roles.keys());
        roles.extend(own.map(String::as_str));
    }
    let intents: BTreeSet<&str> = both.into_iter().flat_map(named_intents).collect();
    let mut found: BTreeMap<(&str, &str, Tier, Answer, Answer), Vec<String>> = BTreeMap::new();
    let (mut asked, mut truncated) = (0, false);
    'all: for tenant in tenants {
        for role in &roles {
            if asked >= MAX_QUESTIONS {
                truncated = true;
                break 'all;
            }
            asked += intents.len() * Tier::ALL.len();
            let (old, new) = (from.scope(tenant, role).ok(), to.scope(tenant, role).ok());
            if old.is_none() && new.is_none() {
                continue;
            }
            for (intent, tier) in intents.iter().flat_map(|intent| Tier::ALL.map(|tier| (*intent, tier))) {
                let answer = |scope: &Option<super::scope::Scope>| {
                    scope.as_ref().map_or(Answer::Refused, |scope| scope.answer(intent, tier))
                };
                let (old, new) = (answer(&old), answer(&new));
                if old != new {
                    found.entry((role, intent, tier, old, new)).or_default().push(tenant.to_owned());
                }
            }
        }
    }
    let effect = |((role, intent, tier, from, to), tenants): ((&str, &str, Tier, Answer, Answer), Vec<String>)| {
        Effect { tenants, role: role.to_owned(), intent: intent.to_owned(), tier, from, to }
    };
    (found.into_iter().map(effect).collect(), truncated)
}

/// The intents that a document treats apart, and one that stands for all others.
pub fn named_intents(document: &Document) -> BTreeSet<&str> {
    let tenants = document.tenants.values();
    let layers = [&document.base]
        .into_iter()
        .chain(document.environments.values())
        .chain(document.roles.values())
        .chain(tenants.flat_map(|tenant| tenant.roles.values().chain([&tenant.layer])));
    let named = layers.flat_map(|layer| {
        let routes = layer.routes.iter().flat_map(|route| &route.intent);
        routes.chain(layer.thresholds.by_intent.keys()).map(String::as_str)
    });
    named.chain([document.defaults.intent.as_str(), ANY_OTHER]).collect()
}

// === impl Scope ===

impl super::scope::Scope {
    /// What is answered to an ordinary request of certain intent and tier.
    fn answer(&self, intent: &str, tier: Tier) -> Answer {
        let (classification, rules, requirements) =
            (certain(intent, tier), RuleOutcome::default(), Requirements::default());
        let signals = Signals {
            classification: Some(&classification),
            rules: &rules,
            language: None,
            degraded: false,
            requirements: &requirements,
            input_tokens: 0,
            output_tokens: Some(0),
            sticky_key: "",
        };
        match self.resolve(&signals) {
            Ok(found) => Answer::Model { chain: found.chain.to_string(), model: found.selected.model.to_string() },
            Err(none) => Answer::NoCandidate { chain: none.chain },
        }
    }
}

/// A classification without any doubt.
pub fn certain(intent: &str, tier: Tier) -> Classification {
    let mut tiers = [0.0; Tier::ALL.len()];
    tiers[tier.index()] = 1.0;
    Classification {
        intent: Distribution::certain(intent),
        difficulty: Probability::saturating((tier.index() as f64 + 0.5) / Tier::ALL.len() as f64),
        tiers,
        tier_control: TierControl::default(),
        out_of_scope: Probability::ZERO,
        tokens_used: 0,
        tokens_cut: 0,
    }
}
