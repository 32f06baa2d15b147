//! A decision taken apart: what applied, which chain, and what each filter did to each candidate.

use serde::Serialize;

use super::resolve::Signals;
use super::scope::Scope;
use crate::domain::{ExperimentArm, Probability, Reason, Source, Tier};

/// Why a policy decides what it decides on some signals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// What applies, by where it is written, the most specific first.
    pub layers: Vec<String>,
    /// The arms of experiments that apply.
    pub arms: Vec<ExperimentArm>,
    /// The intent acted on.
    pub intent: String,
    /// The tier acted on.
    pub tier: Tier,
    /// What made the decision; `None`: no candidate was left.
    pub source: Option<Source>,
    /// The chain; empty: the rules forbid every chain the routes offer.
    pub chain: String,
    /// The models of the chain, in its order.
    pub candidates: Vec<CandidateVerdict>,
    /// The model to escalate to.
    pub escalation: Option<String>,
    /// Why, in the order the reasons applied.
    pub reasons: Vec<Reason>,
}

/// What became of one model of the chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CandidateVerdict {
    /// The policy's name for it.
    pub model: String,
    /// The policy's name for who serves it.
    pub provider: String,
    /// What became of it.
    pub outcome: CandidateOutcome,
    /// Estimated cost of one answer.
    pub estimated_cost_usd: f64,
    /// P(it answers well), where an ability and a difficulty are known.
    pub success_probability: Option<Probability>,
    /// What each filter says, all of them.
    pub filters: Vec<FilterVerdict>,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateOutcome {
    /// The first one left.
    Selected,
    /// Left after it.
    Fallback,
    /// A filter removed it.
    Removed,
}

/// What one filter says of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FilterVerdict {
    /// The filter.
    pub filter: &'static str,
    /// Why it removes the model; `None`: it does not.
    pub removes: Option<Reason>,
}

// === impl Scope ===

impl Scope {
    /// What this scope decides on `signals`, with every step shown.
    pub fn explain(&self, signals: &Signals<'_>) -> Explanation {
        let resolved = self.resolve(signals);
        let chain = resolved.as_ref().map_or_else(|none| none.chain.clone(), |resolution| resolution.chain.to_string());
        let (intent, tier) = self.settled(signals);
        let demand = self.demand(signals, &intent, tier);
        let intent = intent.to_string();
        let mut selected = false;
        let models = self.chain(&chain).map(|chain| chain.models.iter()).into_iter().flatten();
        let candidates = models.filter_map(|id| self.models().get(*id)).map(|model| {
            let candidate = demand.candidate(model);
            let filters: Vec<FilterVerdict> = demand
                .verdicts(model, self)
                .into_iter()
                .map(|(filter, removes)| FilterVerdict { filter, removes })
                .collect();
            let outcome = match filters.iter().any(|verdict| verdict.removes.is_some()) {
                true => CandidateOutcome::Removed,
                false if std::mem::replace(&mut selected, true) => CandidateOutcome::Fallback,
                false => CandidateOutcome::Selected,
            };
            CandidateVerdict {
                model: candidate.model.to_string(),
                provider: candidate.provider.to_string(),
                outcome,
                estimated_cost_usd: candidate.estimated_cost_usd,
                success_probability: candidate.success_probability,
                filters,
            }
        });
        let candidates = candidates.collect();
        let (layers, arms) = (self.origins().map(str::to_owned).collect(), self.arms().to_vec());
        match resolved {
            Ok(resolution) => Explanation {
                layers,
                arms,
                intent,
                tier,
                source: Some(resolution.source),
                chain,
                candidates,
                escalation: resolution.escalation.map(|escalation| escalation.next.model.to_string()),
                reasons: resolution.reasons,
            },
            Err(none) => {
                let mut reasons = none.reasons;
                reasons.extend(none.removed.into_iter().filter(|reason| !reason.text.is_empty()));
                reasons.dedup();
                Explanation { layers, arms, intent, tier, source: None, chain, candidates, escalation: None, reasons }
            }
        }
    }
}
