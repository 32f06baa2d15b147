//! Filter, then select: which models of a chain may answer, what they cost and how likely they do well.

use crate::domain::{Candidate, Probability, Reason, ReasonCode, Requirements};

use super::guard::{Guard, Offer, Purpose};
use super::scope::Scope;
use super::snapshot::Model;

/// What the filters compare models with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand<'a> {
    pub(super) requirements: &'a Requirements,
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
    /// `None`: not known, so neither is any P(success).
    pub(super) difficulty: Option<Probability>,
    pub(super) sticky: u64,
}

/// The code and the text of a reason to remove a model.
type Removal = (ReasonCode, String);
type Filter = fn(&Demand<'_>, &Model, &Scope) -> Option<Removal>;

/// What removes models, in the order in which it is told.
const FILTERS: [(&str, Filter); 8] = [
    ("provider", |_, model, scope| scope.provider_refused(&model.provider)),
    ("allowed providers", |demand, model, _| demand.unallowed(model)),
    ("capabilities", |demand, model, _| demand.incapable(model)),
    ("region", |demand, model, _| demand.elsewhere(model)),
    ("context", |demand, model, _| demand.too_small(model)),
    ("cost", |demand, model, _| demand.too_dear(model)),
    ("latency", |demand, model, _| demand.too_slow(model)),
    ("quality", |demand, model, _| demand.too_weak(model)),
];

// === impl Demand ===

impl Demand<'_> {
    /// Why `model` must not be used, by the first filter that removes it.
    pub(super) fn refuse(&self, model: &Model, scope: &Scope) -> Option<Reason> {
        let (code, text) = FILTERS.iter().find_map(|(_, filter)| filter(self, model, scope))?;
        Some(Reason::about(code, &*model.name, text))
    }

    /// The models of `ids` that neither a filter nor the guard removes, in order; the others go to `removed`.
    pub(super) fn usable<'m>(
        &self,
        ids: impl Iterator<Item = usize>,
        scope: &'m Scope,
        (guard, purpose): (&dyn Guard, Purpose),
        mut removed: impl FnMut(Reason),
    ) -> Vec<(usize, &'m Model)> {
        let models = scope.models();
        let mut usable = Vec::new();
        for id in ids {
            let Some(model) = models.get(id) else { continue };
            match self.refuse(model, scope) {
                Some(reason) => removed(reason),
                None => usable.push((id, model)),
            }
        }
        if usable.is_empty() {
            return usable;
        }
        let offers: Vec<Offer<'_>> = usable
            .iter()
            .map(|(_, model)| Offer {
                model: &model.name,
                provider: &model.provider,
                estimated_cost_usd: self.cost_usd(model),
            })
            .collect();
        let mut verdicts = guard.review(purpose, &offers).into_iter();
        usable.retain(|(_, model)| match verdicts.next().flatten() {
            Some((code, text)) => {
                removed(Reason::about(code, &*model.name, text));
                false
            }
            None => true,
        });
        usable
    }

    /// What each filter says of `model`, also those after the first that removes it.
    pub(super) fn verdicts(&self, model: &Model, scope: &Scope) -> Vec<(&'static str, Option<Reason>)> {
        let reason = |(code, text)| Reason::about(code, &*model.name, text);
        FILTERS.iter().map(|(name, filter)| (*name, filter(self, model, scope).map(reason))).collect()
    }

    fn unallowed(&self, model: &Model) -> Option<Removal> {
        let allowed = &self.requirements.allowed_providers;
        let refused = !allowed.is_empty() && !allowed.iter().any(|name| *name == *model.provider);
        refused.then(|| {
            let text = format!("provider {} is not among those the request allows", model.provider);
            (ReasonCode::ProviderNotAllowed, text)
        })
    }

    fn incapable(&self, model: &Model) -> Option<Removal> {
        let asked = self.requirements;
        let capabilities = [
            ("tools", asked.tools, model.tools),
            ("vision", asked.vision, model.vision),
            ("json_mode", asked.json_mode, model.json_mode),
        ];
        let (name, ..) = capabilities.iter().find(|(_, asked, offered)| *asked && !offered)?;
        Some((ReasonCode::CapabilityMissing, format!("does not offer {name}")))
    }

    fn elsewhere(&self, model: &Model) -> Option<Removal> {
        let asked = &self.requirements.data_regions;
        let refused = !asked.is_empty() && !asked.iter().any(|region| model.regions.contains(region));
        refused.then(|| {
            let text = format!("is offered in none of the regions {}", asked.join(", "));
            (ReasonCode::RegionMismatch, text)
        })
    }

    fn too_small(&self, model: &Model) -> Option<Removal> {
        let needed = self.context_tokens();
        (u64::from(model.context_window_tokens) < needed).then(|| {
            let text = format!("has a context of {} tokens, {needed} are needed", model.context_window_tokens);
            (ReasonCode::ContextTooSmall, text)
        })
    }

    fn too_dear(&self, model: &Model) -> Option<Removal> {
        let cost = self.cost_usd(model);
        let cap = self.requirements.max_cost_usd.filter(|cap| cost > *cap)?;
        Some((ReasonCode::CostCapExceeded, format!("would cost about ${cost:.6}, at most ${cap:.6} is allowed")))
    }

    fn too_slow(&self, model: &Model) -> Option<Removal> {
        let cap = self.requirements.max_latency_ms?;
        let text = match model.typical_latency_ms {
            None => "has no typical latency in the policy, so the request's cap cannot be kept".to_owned(),
            Some(typical) if typical > cap => format!("typically takes {typical} ms, at most {cap} ms is allowed"),
            Some(_) => return None,
        };
        Some((ReasonCode::LatencyCapExceeded, text))
    }

    fn too_weak(&self, model: &Model) -> Option<Removal> {
        let floor = self.requirements.min_quality?;
        let success = self.success(model).filter(|success| success.value() < floor)?;
        let text = format!("answers well with probability {:.3}, {floor:.3} is asked", success.value());
        Some((ReasonCode::QualityBelowFloor, text))
    }

    /// What the caller is told about `model`.
    pub(super) fn candidate(&self, model: &Model) -> Candidate {
        Candidate {
            model: model.name.clone(),
            provider: model.provider.clone(),
            provider_model: model.name_there.clone(),
            access_path: model.access_path,
            parameters: model.parameters.clone(),
            estimated_cost_usd: self.cost_usd(model),
            success_probability: self.success(model),
            endpoint: self.endpoint(model).to_owned(),
        }
    }

    fn context_tokens(&self) -> u64 {
        let estimated = u64::from(self.input_tokens) + u64::from(self.output_tokens);
        self.requirements.context_tokens.map_or(estimated, u64::from)
    }

    pub(super) fn cost_usd(&self, model: &Model) -> f64 {
        let input = f64::from(self.input_tokens) * model.price.input_usd;
        let output = f64::from(self.output_tokens) * model.price.output_usd;
        (input + output) / 1e6
    }

    /// P(the model answers well): a one-parameter logistic model, both sides on the logit scale.
    pub(super) fn success(&self, model: &Model) -> Option<Probability> {
        let difficulty = logit(self.difficulty?.value());
        Some(Probability::saturating(1.0 / (1.0 + (difficulty - model.ability?).exp())))
    }

    /// The endpoint by weight; the same key gets the same one on every replica.
    fn endpoint<'m>(&self, model: &'m Model) -> &'m str {
        let point = unit(model.hash, self.sticky);
        let mut cumulative = 0.0;
        for (name, weight) in &model.endpoints {
            cumulative += weight;
            if point < cumulative {
                return name;
            }
        }
        // Rounding can leave the sum a hair under 1.
        model.endpoints.iter().rfind(|(_, weight)| *weight > 0.0).map_or("", |(name, _)| name)
    }
}

/// Difficulty on the scale of ability; the ends are cut so that it stays finite.
fn logit(p: f64) -> f64 {
    let p = p.clamp(0.001, 0.999);
    (p / (1.0 - p)).ln()
}

/// The hash of a key whose requests get the same endpoint of a model.
pub fn sticky_hash(key: &str) -> u64 {
    name_hash(key)
}

/// A hash that is the same on every machine and in every release: FNV-1a, mixed.
pub(super) fn name_hash(name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

/// The finaliser of SplitMix64: FNV alone leaves the high bits of short keys alike.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A number in `0..1` from two hashes, the first being a model's.
fn unit(model: u64, key: u64) -> f64 {
    (mix(model.wrapping_add(key.rotate_left(32))) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_stable_and_even() {
        // Fixed by value: a change would move every session to another endpoint.
        assert_eq!(name_hash("gpt"), 12_257_831_398_663_240_330);
        let point = |model: &str, key: &str| unit(name_hash(model), sticky_hash(key));
        assert_eq!((point("gpt", "session-1") * 1e6) as u64, 216_930);
        let low = (0..10_000).filter(|i| point("m", &format!("s{i}")) < 0.3).count();
        assert!((2_800..3_200).contains(&low), "{low} of 10,000 fell below 0.3");
        // One model's endpoint says nothing of another's.
        let both = (0..10_000).map(|i| format!("s{i}")).filter(|key| point("m", key) < 0.5 && point("n", key) < 0.5);
        let both = both.count();
        assert!((2_300..2_700).contains(&both), "{both} of 10,000 fell below 0.5 for both models");
    }

    #[test]
    fn logit_is_finite_at_the_ends() {
        assert!(logit(0.0).is_finite() && logit(1.0).is_finite());
        assert!(logit(0.5).abs() < 1e-12);
    }
}
