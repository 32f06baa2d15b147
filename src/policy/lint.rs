//! Warns of what a document says and its author probably did not mean.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::domain::Tier;
use crate::rules::{ConditionSpec, Path, RuleSpec};

use super::document::{Document, LayerSpec, RouteSpec};
use super::experiments::lint_experiments;
use super::finding::{FindingCode, did_you_mean};
use super::snapshot::PolicyOptions;
use super::validate::{Place, Reporter, is_default, places};

/// Adds every warning to `report`. The document could be read; it may have errors, which are reported elsewhere.
pub(super) fn lint(document: &Document, options: &PolicyOptions, report: &mut Reporter<'_>) {
    let places = places(document);
    let mut linter = Linter { document, options, report };
    for place in &places {
        linter.rules(place);
        linter.routes(place);
        linter.chains(place);
        linter.providers(place);
    }
    linter.dearest_default();
    linter.unused(&places);
    linter.listed_providers();
    linter.environment();
    lint_experiments(document, linter.report);
}

struct Linter<'a, 'r, 'p> {
    document: &'a Document,
    options: &'a PolicyOptions,
    report: &'r mut Reporter<'p>,
}

// === impl Linter ===

impl Linter<'_, '_, '_> {
    fn rules(&mut self, place: &Place<'_>) {
        let at = place.path.then("rules");
        let mut ordered: Vec<(usize, &RuleSpec)> =
            place.layer.rules.iter().enumerate().filter(|(_, rule)| rule.enabled).collect();
        ordered.sort_by_key(|(_, rule)| std::cmp::Reverse(rule.priority));
        for (position, (index, rule)) in ordered.iter().enumerate() {
            let mut before = ordered.iter().take(position).map(|(_, earlier)| *earlier);
            if let Some(earlier) = before.find(|earlier| hides(earlier, rule)) {
                let how = if earlier.stop { "stops" } else { "already fixes the same" };
                let message = format!(
                    "rule {:?} has no effect: whenever it matches, {:?} before it matches too and {how}",
                    rule.name, earlier.name
                );
                self.report.add(FindingCode::ShadowedRule, &at.then(*index), message);
            }
            let mut roles = Vec::new();
            asked_roles(&rule.when, &mut roles);
            roles.retain(|role| !self.knows_role(role));
            for role in roles {
                let near = did_you_mean(role, self.document.roles.keys().map(String::as_str));
                let message = format!("role {role:?} is not in the policy, so no request has it{near}");
                self.report.add(FindingCode::UnknownRole, &at.then(*index).then("when"), message);
            }
        }
    }

    fn knows_role(&self, role: &str) -> bool {
        role.is_empty()
            || self.document.roles.contains_key(role)
            || self.document.tenants.values().any(|tenant| tenant.roles.contains_key(role))
    }

    fn routes(&mut self, place: &Place<'_>) {
        let routes = &place.layer.routes;
        if let Some(chain) = place.layer.chain.as_ref().filter(|_| !routes.is_empty()) {
            let message = format!("no request reaches these routes: `chain` beside them forces chain {chain:?}");
            self.report.add(FindingCode::UnreachableRoute, &place.path.then("routes"), message);
            return;
        }
        for (index, route) in routes.iter().enumerate() {
            let before = routes.get(..index).unwrap_or_default();
            let tiers = || Tier::ALL.into_iter().filter(|tier| takes_tier(route, *tier));
            let intents = &route.intent;
            let covered = |intent: &String, tier| self.covered(before, intent, tier);
            if !intents.is_empty() && tiers().all(|tier| intents.iter().all(|intent| covered(intent, tier))) {
                let message = "no request reaches this route: those above take everything it would; move it up";
                self.report.add(FindingCode::UnreachableRoute, &place.path.then("routes").then(index), message);
            }
        }
    }

    fn covered(&self, routes: &[RouteSpec], intent: &str, tier: Tier) -> bool {
        let takes = |intent: &str| {
            let fits = |route: &&RouteSpec| route.intent.iter().any(|known| known == "*" || known == intent);
            routes.iter().filter(fits).any(|route| takes_tier(route, tier))
        };
        let one_by_one = |labels: &std::sync::Arc<[std::sync::Arc<str>]>| labels.iter().all(|label| takes(label));
        takes(intent) || (intent == "*" && self.options.intents.as_ref().is_some_and(one_by_one))
    }

    /// Chains that one outage, or this layer's own providers, leave empty.
    fn chains(&mut self, place: &Place<'_>) {
        let layer = place.layer;
        for (name, models) in &layer.chains {
            let providers = self.providers_of(models);
            let all_known = models.iter().all(|model| self.document.models.contains_key(model));
            if let (1, Some(only), true) = (providers.len(), providers.first(), all_known) {
                let message = format!(
                    "every model of the chain is from {only}: its outage leaves nothing; add another provider's"
                );
                self.report.add(
                    FindingCode::SingleProviderChain,
                    &place.path.then("chains").then(name.as_str()),
                    message,
                );
            }
        }
        // A layer that changes nothing about providers or chains has the findings of those below it.
        if layer.chains.is_empty() && layer.providers.is_empty() && layer.allowed_providers.is_none() {
            return;
        }
        let mut effective: BTreeMap<&String, &Vec<String>> = BTreeMap::new();
        for visible in &place.visible {
            effective.extend(&visible.chains);
        }
        for (name, models) in effective {
            let providers = self.providers_of(models);
            let all_refused_by = |layers: &[&LayerSpec]| {
                let refused = |provider: &&str| layers.iter().any(|layer| refuses(layer, provider));
                !providers.is_empty() && providers.iter().all(refused)
            };
            let own = layer.chains.contains_key(name);
            let (_, general) = place.visible.split_last().unwrap_or((&layer, &[]));
            // What is inherited unusable was reported where it became so.
            if all_refused_by(&place.visible) && (own || !all_refused_by(general)) {
                let at = match (own, &layer.allowed_providers) {
                    (true, _) => place.path.then("chains").then(name.as_str()),
                    (false, Some(_)) => place.path.then("allowed_providers"),
                    (false, None) => place.path.then("providers"),
                };
                let providers: Vec<&str> = providers.into_iter().collect();
                let message =
                    format!("chain {name:?} has no usable model here: {} may not be used", providers.join(", "));
                self.report.add(FindingCode::ChainDisabled, &at, message);
            }
        }
    }

    fn providers_of(&self, models: &[String]) -> BTreeSet<&str> {
        models.iter().filter_map(|name| self.document.models.get(name)).map(|model| model.provider.as_str()).collect()
    }

    fn providers(&mut self, place: &Place<'_>) {
        let of_models: HashSet<&str> = self.document.models.values().map(|model| model.provider.as_str()).collect();
        for (name, provider) in &place.layer.providers {
            let at = place.path.then("providers").then(name.as_str());
            if !of_models.contains(name.as_str()) {
                let near = did_you_mean(name, of_models.iter().copied());
                let message = format!("no model has provider {name:?}{near}");
                self.report.add(FindingCode::ProviderWithoutModels, &at, message);
            }
            let general = place.visible.iter().rev().skip(1);
            let disabled = |layer: &&&LayerSpec| layer.providers.get(name).is_some_and(|provider| !provider.enabled);
            if provider.enabled && general.filter(disabled).count() > 0 {
                let message =
                    format!("provider {name:?} stays disabled: a more general part of the policy disables it");
                self.report.add(FindingCode::ProviderStaysDisabled, &at, message);
            }
        }
    }

    fn dearest_default(&mut self) {
        let models = &self.document.models;
        let routes = &self.document.base.routes;
        let Some((index, route)) = routes.iter().enumerate().find(|(_, route)| is_default(route)) else { return };
        let first = self.document.base.chains.get(&route.chain).and_then(|chain| chain.first());
        let Some((name, first)) = first.and_then(|name| models.get_key_value(name)) else { return };
        let price = first.price_per_million_tokens.sum();
        let others = || models.values().map(|model| model.price_per_million_tokens.sum());
        if others().all(|other| other <= price) && others().any(|other| other < price) {
            let message = format!("the default route starts with {name}, the dearest model of the policy");
            self.report.add(
                FindingCode::DearestDefault,
                &Path::default().then("routes").then(index).then("chain"),
                message,
            );
        }
    }

    fn unused(&mut self, places: &[Place<'_>]) {
        let defaults = &self.document.defaults;
        let answers =
            [&defaults.low_confidence, &defaults.out_of_scope, &defaults.unsupported_language, &defaults.degraded];
        let mut chains: HashSet<&str> = answers.iter().filter_map(|answer| answer.chain.as_deref()).collect();
        let mut models: HashSet<&str> = HashSet::new();
        for Place { layer, .. } in places {
            chains.extend(layer.routes.iter().map(|route| route.chain.as_str()));
            chains.extend(layer.rules.iter().filter_map(|rule| rule.then.force_chain.as_deref()));
            chains.extend(layer.chain.as_deref());
            models.extend(layer.chains.values().flatten().map(String::as_str));
            models.extend(layer.escalation.ladder.iter().flatten().map(String::as_str));
        }
        for Place { path, layer, .. } in places {
            let base = &self.document.base;
            // A replacement is unused when what it replaces is; that is told once.
            let told = |name: &str| !std::ptr::eq(*layer, base) && base.chains.contains_key(name);
            for name in layer.chains.keys().filter(|name| !chains.contains(name.as_str()) && !told(name)) {
                let near = did_you_mean(name, chains.iter().copied());
                let message = format!("nothing names chain {name:?}{near}");
                self.report.add(FindingCode::UnusedChain, &path.then("chains").then(name.as_str()), message);
            }
        }
        for name in self.document.models.keys().filter(|name| !models.contains(name.as_str())) {
            let message = format!("no chain or ladder names model {name:?}");
            self.report.add(FindingCode::UnusedModel, &Path::default().then("models").then(name.as_str()), message);
        }
    }

    fn environment(&mut self) {
        let known = &self.document.environments;
        // A document that knows no environments is the same in all of them.
        let asked = self.options.environment.as_ref().filter(|_| !known.is_empty());
        if let Some(name) = asked.filter(|name| !known.contains_key(*name)) {
            let near = did_you_mean(name, known.keys().map(String::as_str));
            let message = format!("environment {name:?} is not in the policy, so no overlay applies{near}");
            self.report.add(FindingCode::UnknownEnvironment, &Path::default().then("environments"), message);
        }
    }

    fn listed_providers(&mut self) {
        let listed = &self.document.base.providers;
        let mut told = HashSet::new();
        for (name, model) in &self.document.models {
            let provider = &model.provider;
            // A document that lists no provider at all leaves them all on deliberately.
            if !listed.is_empty() && !listed.contains_key(provider) && told.insert(provider) {
                let near = did_you_mean(provider, listed.keys().map(String::as_str));
                let message =
                    format!("provider {provider:?} is not in `providers`, where it could be turned off{near}");
                let at = Path::default().then("models").then(name.as_str()).then("provider");
                self.report.add(FindingCode::ProviderNotListed, &at, message);
            }
        }
    }
}

/// Whether `rule` can have no effect because `earlier` is looked at first.
fn hides(earlier: &RuleSpec, rule: &RuleSpec) -> bool {
    if !rule.when.implies(&earlier.when) {
        return false;
    }
    let (first, second) = (&earlier.then, &rule.then);
    let bounds_tier = second.tier.is_some() || second.raise_tier_to.is_some() || second.cap_tier_at.is_some();
    let all_fixed = !rule.stop
        && (second.intent.is_none() || first.intent.is_some())
        && (!bounds_tier || first.tier.is_some())
        && (second.force_chain.is_none() || first.force_chain.is_some())
        && second.forbid_chain.iter().all(|chain| first.forbid_chain.contains(chain));
    earlier.stop || all_fixed
}

/// Roles the condition asks for, at any depth; under `not` too, where they are as misspelt.
fn asked_roles<'a>(condition: &'a ConditionSpec, roles: &mut Vec<&'a str>) {
    roles.extend(condition.role.iter().flatten().map(String::as_str));
    let nested = condition.all.iter().chain(&condition.any).flatten().chain(condition.not.as_deref());
    for part in nested {
        asked_roles(part, roles);
    }
}

fn takes_tier(route: &RouteSpec, tier: Tier) -> bool {
    route.tier.iter().any(|pattern| pattern.takes(tier))
}

fn refuses(layer: &LayerSpec, provider: &str) -> bool {
    let disabled = layer.providers.get(provider).is_some_and(|provider| !provider.enabled);
    let allowed = layer.allowed_providers.as_ref();
    disabled || allowed.is_some_and(|allowed| !allowed.iter().any(|name| name == provider))
}
