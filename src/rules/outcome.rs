//! What the rules that matched fix together.

use std::sync::Arc;

use crate::domain::Tier;

use super::compile::Rule;

/// What the rules fix; the default: nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleOutcome {
    /// The intent.
    pub intent: Option<FixedBy<Arc<str>>>,
    /// The lowest tier left and the rule that raised it there.
    pub floor: Option<FixedBy<Tier>>,
    /// The highest tier left and the rule that capped it there.
    pub cap: Option<FixedBy<Tier>>,
    /// The chain.
    pub force_chain: Option<FixedBy<Arc<str>>>,
    /// Chains that must not be used.
    pub forbid_chains: Vec<FixedBy<Arc<str>>>,
    /// Every rule that matched and had an effect, in the order they were looked at.
    pub matched: Vec<Arc<str>>,
}

/// A value and the rule that fixed it.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedBy<T> {
    /// The value.
    pub value: T,
    /// The rule's name.
    pub rule: Arc<str>,
}

// === impl RuleOutcome ===

impl RuleOutcome {
    /// Enough is fixed that the classifier need not run: the intent and the tier, or the chain.
    pub fn decisive(&self) -> bool {
        self.force_chain.is_some() || (self.intent.is_some() && self.fixed_tier().is_some())
    }

    /// The tier, where the rules leave only one.
    pub fn fixed_tier(&self) -> Option<Tier> {
        (self.lowest() == self.highest()).then_some(self.lowest())
    }

    /// The nearest tier to `tier` that the rules leave.
    pub fn clamp(&self, tier: Tier) -> Tier {
        tier.clamp(self.lowest(), self.highest())
    }

    /// The lowest tier the rules leave.
    pub fn lowest(&self) -> Tier {
        self.floor.as_ref().map_or(Tier::Simple, |floor| floor.value)
    }

    /// The highest tier the rules leave.
    pub fn highest(&self) -> Tier {
        self.cap.as_ref().map_or(Tier::Complex, |cap| cap.value)
    }

    /// Applies one matched rule; rules come highest priority first.
    ///
    /// The first rule to fix an intent or a chain wins. Tier effects narrow the range of tiers left by the rules
    /// before: a cap never goes below an earlier floor, a floor never above an earlier cap, and a fixed tier leaves a
    /// range of one.
    pub(super) fn apply(&mut self, rule: &Rule) {
        let effect = &rule.effect;
        let mut had_effect = rule.stop;
        if let (None, Some(intent)) = (&self.intent, &effect.intent) {
            self.intent = Some(rule.fixes(Arc::clone(intent)));
            had_effect = true;
        }
        let floor = effect.tier.max(effect.raise_tier_to);
        let cap = match (effect.tier, effect.cap_tier_at) {
            (Some(tier), Some(cap)) => Some(tier.min(cap)),
            (tier, cap) => tier.or(cap),
        };
        let (lowest, highest) = (self.lowest(), self.highest());
        if let Some(floor) = floor.map(|floor| floor.clamp(lowest, highest))
            && floor > lowest
        {
            self.floor = Some(rule.fixes(floor));
            had_effect = true;
        }
        if let Some(cap) = cap.map(|cap| cap.clamp(self.lowest(), highest))
            && cap < highest
        {
            self.cap = Some(rule.fixes(cap));
            had_effect = true;
        }
        if let (None, Some(chain)) = (&self.force_chain, &effect.force_chain)
            && !self.forbids(chain)
        {
            self.force_chain = Some(rule.fixes(Arc::clone(chain)));
            had_effect = true;
        }
        for chain in &effect.forbid_chains {
            let forced = self.force_chain.as_ref().is_some_and(|forced| forced.value == *chain);
            if !forced && !self.forbids(chain) {
                self.forbid_chains.push(rule.fixes(Arc::clone(chain)));
                had_effect = true;
            }
        }
        if had_effect {
            self.matched.push(Arc::clone(&rule.name));
        }
    }

    fn forbids(&self, chain: &Arc<str>) -> bool {
        self.forbid_chains.iter().any(|forbidden| forbidden.value == *chain)
    }
}
