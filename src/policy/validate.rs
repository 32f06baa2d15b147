//! Finds everything that is wrong with a document that could be read. What is merely odd is in `lint`.

use std::collections::{BTreeMap, HashSet};

use crate::domain::Combine;
use crate::rules::{Path, RuleProblem, RuleSet};

use super::document::{
    DefaultsSpec, Document, EscalationSpec, FanOutSpec, LayerSpec, ModelSpec, RouteSpec, SafeAnswerSpec, TierPattern,
};
use super::experiments::check_experiment;
use super::finding::{Finding, FindingCode, did_you_mean};
use super::isolate::isolate;
use super::lint::lint;
use super::parse::Parsed;
use super::snapshot::PolicyOptions;

/// A layer of a document with where it is and what its names can refer to.
pub(super) struct Place<'a> {
    pub(super) path: Path,
    pub(super) layer: &'a LayerSpec,
    /// The layers that apply whenever this one does, the most general first, this one last.
    pub(super) visible: Vec<&'a LayerSpec>,
}

/// Collects findings with their lines.
pub(super) struct Reporter<'a> {
    parsed: &'a Parsed,
    findings: Vec<Finding>,
}

/// How far from 1 the sum of weights may be.
pub(super) const WEIGHT_TOLERANCE: f64 = 0.001;
/// Most models to ask at once: beyond, the cost grows and the answer hardly does.
const MAX_FAN_OUT: u32 = 8;

/// Every finding of a document, those of reading it included, in document order.
pub(super) fn validate(parsed: &Parsed, options: &PolicyOptions) -> Vec<Finding> {
    let mut checker = Checker { document: &parsed.document, options, report: Reporter::new(parsed) };
    checker.check();
    let mut report = checker.report;
    // Guesses at what was meant need the whole document.
    if parsed.broken.is_empty() {
        lint(&parsed.document, options, &mut report);
    }
    report.finish()
}

/// Every layer of a document; the first is its top level.
pub(super) fn places(document: &Document) -> Vec<Place<'_>> {
    let root = Path::default();
    let base = &document.base;
    let mut places = vec![Place { path: root.clone(), layer: base, visible: vec![base] }];
    for (name, layer) in &document.environments {
        let path = root.then("environments").then(name.as_str());
        places.push(Place { path, layer, visible: vec![base, layer] });
    }
    for (name, layer) in &document.roles {
        let path = root.then("roles").then(name.as_str());
        places.push(Place { path, layer, visible: vec![base, layer] });
    }
    for (name, tenant) in &document.tenants {
        let path = root.then("tenants").then(name.as_str());
        for (role, layer) in &tenant.roles {
            let shared = document.roles.get(role);
            let visible = [Some(base), shared, Some(&tenant.layer), Some(layer)];
            let path = path.then("roles").then(role.as_str());
            places.push(Place { path, layer, visible: visible.into_iter().flatten().collect() });
        }
        places.push(Place { path, layer: &tenant.layer, visible: vec![base, &tenant.layer] });
    }
    for (name, experiment) in &document.experiments {
        let path = root.then("experiments").then(name.as_str()).then("arms");
        for (arm, spec) in &experiment.arms {
            let path = path.then(arm.as_str());
            places.push(Place { path, layer: &spec.layer, visible: vec![base, &spec.layer] });
        }
    }
    places
}

// === impl Reporter ===

impl<'a> Reporter<'a> {
    fn new(parsed: &'a Parsed) -> Self {
        Self { parsed, findings: parsed.findings.clone() }
    }

    pub(super) fn add(&mut self, code: FindingCode, path: &Path, message: impl Into<String>) {
        // A part that could not be read was reported; its stand-in says nothing.
        if !self.is_broken(path) {
            self.findings.push(Finding::new(code, path, self.parsed.tree.line_of(path), message));
        }
    }

    pub(super) fn is_broken(&self, path: &Path) -> bool {
        self.parsed.broken.iter().any(|broken| path.starts_with(broken))
    }

    pub(super) fn lacks(&self, section: &str) -> bool {
        self.is_broken(&Path::default().then(section))
    }

    fn finish(mut self) -> Vec<Finding> {
        isolate(self.parsed, &mut self.findings);
        self.findings.sort_by(|a, b| (a.line, a.severity, &a.path, a.code).cmp(&(b.line, b.severity, &b.path, b.code)));
        self.findings.dedup();
        self.findings
    }
}

struct Checker<'a> {
    document: &'a Document,
    options: &'a PolicyOptions,
    report: Reporter<'a>,
}

// === impl Checker ===

impl Checker<'_> {
    fn check(&mut self) {
        let root = Path::default();
        let document = self.document;
        for (field, value) in [("id", &document.id), ("version", &document.version)] {
            if value.trim().is_empty() {
                self.report.add(FindingCode::InvalidValue, &root.then(field), "must not be empty");
            }
        }
        let models = root.then("models");
        if document.models.is_empty() {
            self.report.add(FindingCode::InvalidValue, &models, "lists no model; a policy needs at least one");
        }
        self.names(&models, document.models.keys());
        self.names(&root.then("roles"), document.roles.keys());
        self.names(&root.then("tenants"), document.tenants.keys());
        self.names(&root.then("environments"), document.environments.keys());
        self.names(&root.then("experiments"), document.experiments.keys());
        for (name, model) in &document.models {
            self.model(model, &models.then(name.as_str()));
        }
        for place in places(document) {
            self.layer(&place);
        }
        if !document.base.routes.iter().any(is_default) {
            let message = "no route takes every intent and tier; end with {intent: \"*\", tier: \"*\", chain: ...}";
            self.report.add(FindingCode::NoDefaultRoute, &root.then("routes"), message);
        }
        self.defaults(&document.defaults, &root.then("defaults"));
        for (name, experiment) in &document.experiments {
            check_experiment(experiment, &root.then("experiments").then(name.as_str()), &mut self.report);
        }
    }

    fn model(&mut self, model: &ModelSpec, at: &Path) {
        for (field, value) in [("provider", &model.provider), ("provider_model", &model.provider_model)] {
            if value.trim().is_empty() {
                self.report.add(FindingCode::InvalidValue, &at.then(field), "must not be empty");
            }
        }
        let price = at.then("price_per_million_tokens");
        let prices = model.price_per_million_tokens;
        for (field, value) in [("input_usd", prices.input_usd), ("output_usd", prices.output_usd)] {
            if !(value.is_finite() && value >= 0.0) {
                let message = format!("{value} is no price; a finite amount of at least 0 is expected");
                self.report.add(FindingCode::OutOfRange, &price.then(field), message);
            }
        }
        if model.context_window_tokens == 0 {
            let message = "a context of 0 tokens fits no request";
            self.report.add(FindingCode::OutOfRange, &at.then("context_window_tokens"), message);
        }
        if let Some(ability) = model.ability.filter(|ability| !ability.is_finite()) {
            self.report.add(FindingCode::OutOfRange, &at.then("ability"), format!("{ability} is not finite"));
        }
        self.weights(&model.endpoints, &at.then("endpoints"));
    }

    fn weights(&mut self, endpoints: &BTreeMap<String, f64>, at: &Path) {
        let mut valid = true;
        for (name, weight) in endpoints {
            if !(weight.is_finite() && *weight >= 0.0) {
                let message = format!("weight {weight} must be at least 0");
                self.report.add(FindingCode::BadWeights, &at.then(name.as_str()), message);
                valid = false;
            }
        }
        let sum: f64 = endpoints.values().sum();
        if valid && !endpoints.is_empty() && (sum - 1.0).abs() > WEIGHT_TOLERANCE {
            let message = format!("the weights sum to {sum:.3}; they must sum to 1");
            self.report.add(FindingCode::BadWeights, at, message);
        }
    }

    fn layer(&mut self, place: &Place<'_>) {
        let Place { path, layer, .. } = place;
        if let Some(allowed) = &layer.allowed_providers {
            self.allowed(allowed, &path.then("allowed_providers"));
        }
        let chains = path.then("chains");
        self.names(&chains, layer.chains.keys());
        for (name, models) in &layer.chains {
            let at = chains.then(name.as_str());
            if models.is_empty() {
                self.report.add(FindingCode::EmptyChain, &at, "the chain has no model; name at least one");
            }
            let again = "the chain has this model before; a fallback to itself is none";
            self.models(models, &at, FindingCode::DuplicateModel, again);
        }
        for (index, route) in layer.routes.iter().enumerate() {
            self.route(route, &path.then("routes").then(index), place);
        }
        self.rules(place);
        for intent in layer.thresholds.by_intent.keys() {
            self.intent(intent, &path.then("thresholds").then("by_intent").then(intent.as_str()));
        }
        self.escalation(&layer.escalation, &path.then("escalation"));
        for (index, spec) in layer.fan_out.iter().enumerate() {
            self.fan_out(spec, &path.then("fan_out").then(index));
        }
        if let Some(chain) = &layer.chain {
            self.chain(chain, &path.then("chain"), place);
        }
    }

    fn allowed(&mut self, allowed: &[String], at: &Path) {
        if allowed.is_empty() {
            self.report.add(FindingCode::InvalidValue, at, "allows no provider; name at least one or remove it");
        }
        let document = self.document;
        let of_models = document.models.values().map(|model| model.provider.as_str());
        let known: HashSet<&str> = document.base.providers.keys().map(String::as_str).chain(of_models).collect();
        for (index, name) in allowed.iter().enumerate() {
            if !known.contains(name.as_str()) && !self.report.lacks("models") {
                let message = format!("no model has provider {name:?}{}", did_you_mean(name, known.iter().copied()));
                self.report.add(FindingCode::UnknownProvider, &at.then(index), message);
            }
        }
    }

    fn route(&mut self, route: &RouteSpec, at: &Path, place: &Place<'_>) {
        if route.intent.is_empty() || route.tier.is_empty() {
            let message = "a route needs at least one intent and one tier; \"*\" is any";
            self.report.add(FindingCode::InvalidValue, at, message);
        }
        for intent in route.intent.iter().filter(|intent| *intent != "*") {
            self.intent(intent, &at.then("intent"));
        }
        self.chain(&route.chain, &at.then("chain"), place);
    }

    fn rules(&mut self, place: &Place<'_>) {
        let at = place.path.then("rules");
        for (index, error) in RuleSet::compile(&place.layer.rules).err().unwrap_or_default() {
            let code = match error.problem {
                RuleProblem::Regex(_) | RuleProblem::RegexSetTooBig => FindingCode::BadRegex,
                RuleProblem::DuplicateName(_) => FindingCode::DuplicateRule,
                _ => FindingCode::BadRule,
            };
            self.report.add(code, &at.then(index).join(&error.at), error.problem.to_string());
        }
        for (index, rule) in place.layer.rules.iter().enumerate() {
            let then = at.then(index).then("then");
            if let Some(intent) = &rule.then.intent {
                self.intent(intent, &then.then("intent"));
            }
            if let Some(chain) = &rule.then.force_chain {
                self.chain(chain, &then.then("force_chain"), place);
            }
            for (position, chain) in rule.then.forbid_chain.iter().enumerate() {
                self.chain(chain, &then.then("forbid_chain").then(position), place);
            }
        }
    }

    fn fan_out(&mut self, spec: &FanOutSpec, at: &Path) {
        if spec.intent.is_empty() || spec.tier.is_empty() {
            let message = "a fan-out needs at least one intent and one tier; \"*\" is any";
            self.report.add(FindingCode::InvalidValue, at, message);
        }
        for intent in spec.intent.iter().filter(|intent| *intent != "*") {
            self.intent(intent, &at.then("intent"));
        }
        let least = if spec.combine == Combine::Vote { 3 } else { 2 };
        if !(least..=MAX_FAN_OUT).contains(&spec.models) {
            let message = format!("{} is not within {least} to {MAX_FAN_OUT} models", spec.models);
            self.report.add(FindingCode::OutOfRange, &at.then("models"), message);
        }
    }

    fn escalation(&mut self, escalation: &EscalationSpec, at: &Path) {
        let amounts = [
            ("max_cost_usd", escalation.max_cost_usd, "a finite amount of at least 0"),
            ("budget_share", escalation.budget_share, "a finite multiple of at least 0"),
        ];
        for (field, value, wanted) in amounts {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                self.report.add(FindingCode::OutOfRange, &at.then(field), format!("{value} is not {wanted}"));
            }
        }
        if escalation.max_duration_ms == Some(0) {
            let message = "a cascade of 0 ms has no second step; write `max_hops: 0` for none";
            self.report.add(FindingCode::OutOfRange, &at.then("max_duration_ms"), message);
        }
        if let Some(scorer) = &escalation.scorer {
            let at = at.then("scorer");
            if let Some(auc) = scorer.auc.filter(|auc| !(*auc > 0.5 && *auc <= 1.0)) {
                let message = format!("{auc} is not above 0.5 and at most 1; at 0.5 a scorer knows nothing");
                self.report.add(FindingCode::OutOfRange, &at.then("auc"), message);
            }
            if !(scorer.cost_usd.is_finite() && scorer.cost_usd >= 0.0) {
                let message = format!("{} is not a finite amount of at least 0", scorer.cost_usd);
                self.report.add(FindingCode::OutOfRange, &at.then("cost_usd"), message);
            }
        }
        let Some(ladder) = &escalation.ladder else { return };
        let at = at.then("ladder");
        let again = "the ladder has this model before; escalation would go in circles";
        self.models(ladder, &at, FindingCode::LadderCycle, again);
        let steps = ladder.iter().zip(ladder.iter().skip(1)).enumerate().filter(|(_, (from, to))| from != to);
        let models = Path::default().then("models");
        for (index, (from, to)) in steps {
            if [from, to].iter().any(|name| self.report.is_broken(&models.then(name.as_str()))) {
                continue;
            }
            let (Some(weak), Some(strong)) = (self.document.models.get(from), self.document.models.get(to)) else {
                continue;
            };
            let at = at.then(index + 1);
            if let (Some(before), Some(after)) = (weak.ability, strong.ability)
                && after <= before
            {
                let message = format!("{to} (ability {after}) is not stronger than {from} (ability {before})");
                self.report.add(FindingCode::EscalationToWeaker, &at, message);
            }
            let (before, after) = (weak.price_per_million_tokens.sum(), strong.price_per_million_tokens.sum());
            if after < before {
                let message = format!(
                    "{to} is cheaper than {from} (${after} against ${before} for a million tokens in and out); \
                     put it before, or leave {from} out"
                );
                self.report.add(FindingCode::EscalationToCheaper, &at, message);
            }
        }
    }

    fn defaults(&mut self, defaults: &DefaultsSpec, at: &Path) {
        // A policy for another label set need not say what it calls the unknown: the built-in name is always allowed.
        if defaults.intent != DefaultsSpec::default().intent {
            self.intent(&defaults.intent, &at.then("intent"));
        }
        let base = Place { path: Path::default(), layer: &self.document.base, visible: vec![&self.document.base] };
        let answers: [(&str, &SafeAnswerSpec); 4] = [
            ("low_confidence", &defaults.low_confidence),
            ("out_of_scope", &defaults.out_of_scope),
            ("unsupported_language", &defaults.unsupported_language),
            ("degraded", &defaults.degraded),
        ];
        for (field, answer) in answers {
            if let Some(chain) = &answer.chain {
                self.chain(chain, &at.then(field).then("chain"), &base);
            }
        }
        for (index, language) in defaults.supported_languages.iter().enumerate() {
            if language.len() != 3 || !language.bytes().all(|byte| byte.is_ascii_lowercase()) {
                let message = RuleProblem::Language(language.clone()).to_string();
                self.report.add(FindingCode::InvalidValue, &at.then("supported_languages").then(index), message);
            }
        }
        for (index, length) in defaults.answer_lengths.iter().enumerate() {
            let at = at.then("answer_lengths").then(index);
            for intent in length.intent.iter().filter(|intent| *intent != "*") {
                self.intent(intent, &at.then("intent"));
            }
            if length.tokens == 0 {
                let message = "an answer of 0 tokens costs nothing; give the usual length";
                self.report.add(FindingCode::OutOfRange, &at.then("tokens"), message);
            }
        }
        if defaults.expected_output_tokens == 0 {
            let message = "an answer of 0 tokens costs nothing; give the usual length";
            self.report.add(FindingCode::OutOfRange, &at.then("expected_output_tokens"), message);
        }
    }

    /// An empty name could be referred to by nothing: it means "none" in requests.
    fn names<'n>(&mut self, at: &Path, names: impl Iterator<Item = &'n String>) {
        for name in names.filter(|name| name.trim().is_empty()) {
            self.report.add(FindingCode::InvalidValue, &at.then(name.as_str()), "the name must not be empty");
        }
    }

    fn models(&mut self, names: &[String], at: &Path, duplicate: FindingCode, again: &str) {
        let mut seen = HashSet::new();
        for (index, name) in names.iter().enumerate() {
            let at = at.then(index);
            if !seen.insert(name) {
                self.report.add(duplicate, &at, format!("{name:?}: {again}"));
            }
            if !self.document.models.contains_key(name) && !self.report.lacks("models") {
                let near = did_you_mean(name, self.document.models.keys().map(String::as_str));
                self.report.add(FindingCode::UnknownModel, &at, format!("model {name:?} is not in `models`{near}"));
            }
        }
    }

    fn chain(&mut self, name: &str, at: &Path, place: &Place<'_>) {
        let known = || place.visible.iter().flat_map(|layer| layer.chains.keys()).map(String::as_str);
        if !known().any(|chain| chain == name) && !self.report.lacks("chains") {
            let message = format!("chain {name:?} is not in `chains`{}", did_you_mean(name, known()));
            self.report.add(FindingCode::UnknownChain, at, message);
        }
    }

    fn intent(&mut self, name: &str, at: &Path) {
        let Some(known) = &self.options.intents else { return };
        if !known.iter().any(|label| &**label == name) {
            let near = did_you_mean(name, known.iter().map(|label| &**label));
            let message = format!("the classifier has no intent {name:?}{near}");
            self.report.add(FindingCode::UnknownIntent, at, message);
        }
    }
}

/// Whether it takes every intent and tier.
pub(super) fn is_default(route: &RouteSpec) -> bool {
    let every_tier = route.tier.contains(&TierPattern::Any)
        || [TierPattern::Simple, TierPattern::Medium, TierPattern::Complex]
            .iter()
            .all(|tier| route.tier.contains(tier));
    every_tier && route.intent.iter().any(|intent| intent == "*")
}
