//! Asking several candidates at once, where the policy says so.

use super::document::FanOutSpec;
use super::scope::Scope;
use super::select::Demand;
use super::snapshot::Model;
use crate::domain::{FanOut, Reason, ReasonCode, Tier};

// === impl Scope ===

impl Scope {
    /// Whom to ask at once of `usable`, the selected model first; and why, also where it comes to nothing.
    ///
    /// A request's cost cap holds for all of them together.
    pub(super) fn fan_out(
        &self,
        demand: &Demand<'_>,
        (intent, tier): (&str, Tier),
        usable: &[&Model],
    ) -> Option<(Option<FanOut>, Reason)> {
        let spec = self.layers().flat_map(|layer| &layer.spec.fan_out).find(|spec| takes(spec, intent, tier))?;
        let mut sum = 0.0;
        let cap = demand.requirements.max_cost_usd.unwrap_or(f64::INFINITY);
        let affordable = usable.iter().take(spec.models as usize).take_while(|model| {
            sum += demand.cost_usd(model);
            sum <= cap
        });
        let chosen: Vec<&Model> = affordable.copied().collect();
        if chosen.len() < 2 {
            let text = format!("{} candidates are to be asked at once, and fewer than two can be", spec.models);
            return Some((None, Reason::new(ReasonCode::FanOut, text)));
        }
        let names: Vec<&str> = chosen.iter().map(|model| &*model.name).collect();
        let text = format!("{} of {} candidates are asked at once: {}", chosen.len(), spec.models, names.join(", "));
        let fan_out = FanOut {
            combine: spec.combine,
            estimated_cost_usd: chosen.iter().map(|model| demand.cost_usd(model)).sum(),
            candidates: chosen.iter().map(|model| demand.candidate(model)).collect(),
        };
        Some((Some(fan_out), Reason::new(ReasonCode::FanOut, text)))
    }
}

fn takes(spec: &FanOutSpec, intent: &str, tier: Tier) -> bool {
    let intents = spec.intent.iter().any(|known| known == "*" || known == intent);
    intents && spec.tier.iter().any(|pattern| pattern.takes(tier))
}
