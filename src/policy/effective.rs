//! What applies to a tenant and role, written as one document without overrides.

use std::collections::{BTreeMap, HashSet};

use super::document::{Document, LayerSpec, ProviderSpec, ThresholdsSpec};
use super::experiment::ExperimentSpec;
use super::scope::ScopeError;
use super::snapshot::Policy;

// === impl Policy ===

impl Policy {
    /// A document whose top level alone decides as this policy does for `tenant` and `role`, experiments apart.
    ///
    /// Rules that ask for a tenant or a role keep asking.
    ///
    /// # Errors
    /// When the policy does not have the role, or not the tenant and refuses such.
    pub fn effective(self: &std::sync::Arc<Self>, tenant: &str, role: &str) -> Result<Document, ScopeError> {
        // Also tells unknown names, in the words of a request.
        let scope = self.scope(tenant, role)?;
        let mut base = LayerSpec::default();
        for layer in scope.layers().rev() {
            merge(&mut base, &layer.spec);
        }
        base.rules.retain(|rule| rule.enabled);
        // The sort is stable: of equal priority the more specific stay in front.
        base.rules.sort_by_key(|rule| std::cmp::Reverse(rule.priority));
        Ok(Document {
            base,
            environments: BTreeMap::new(),
            roles: BTreeMap::new(),
            tenants: BTreeMap::new(),
            experiments: BTreeMap::<String, ExperimentSpec>::new(),
            ..self.spec().clone()
        })
    }
}

/// Puts `over` on top of `base`, each field as `docs/policy.md` says it combines.
fn merge(base: &mut LayerSpec, over: &LayerSpec) {
    for (name, provider) in &over.providers {
        let known = base.providers.entry(name.clone()).or_insert(ProviderSpec { enabled: true });
        known.enabled &= provider.enabled;
    }
    base.allowed_providers = match (base.allowed_providers.take(), &over.allowed_providers) {
        (Some(general), Some(own)) => Some(general.into_iter().filter(|name| own.contains(name)).collect()),
        (general, own) => general.or_else(|| own.clone()),
    };
    base.chains.extend(over.chains.clone());
    base.routes.splice(0..0, over.routes.iter().cloned());
    let own: HashSet<&str> = over.rules.iter().map(|rule| rule.name.as_str()).collect();
    base.rules.retain(|rule| !own.contains(rule.name.as_str()));
    base.rules.splice(0..0, over.rules.iter().cloned());
    merge_thresholds(&mut base.thresholds, &over.thresholds);
    let (general, own) = (&mut base.escalation, &over.escalation);
    general.ladder = own.ladder.clone().or(general.ladder.take());
    general.max_hops = own.max_hops.or(general.max_hops);
    general.score_threshold = own.score_threshold.or(general.score_threshold);
    general.scorer = own.scorer.or(general.scorer);
    general.cheap_first = own.cheap_first.or(general.cheap_first);
    general.max_cost_usd = own.max_cost_usd.or(general.max_cost_usd);
    general.budget_share = own.budget_share.or(general.budget_share);
    general.max_duration_ms = own.max_duration_ms.or(general.max_duration_ms);
    base.fan_out.splice(0..0, over.fan_out.iter().cloned());
    base.chain = over.chain.clone().or(base.chain.take());
}

fn merge_thresholds(base: &mut ThresholdsSpec, over: &ThresholdsSpec) {
    if over.min_confidence.is_some() {
        // The more specific layer's general value is stronger than a more general layer's value for an intent.
        base.by_intent.clear();
    }
    for (intent, own) in over.by_intent.iter().filter(|(_, own)| own.min_confidence.is_some()) {
        base.by_intent.insert(intent.clone(), *own);
    }
    base.min_confidence = over.min_confidence.or(base.min_confidence);
    base.min_intent_confidence = over.min_intent_confidence.or(base.min_intent_confidence);
    base.out_of_scope = over.out_of_scope.or(base.out_of_scope);
}
