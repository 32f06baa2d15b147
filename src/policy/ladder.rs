//! What comes after an answer: the stronger steps of the ladder, and the next candidate of a cascade.
//!
//! A cascade never comes back to a model that it tried, and never goes to one that is weaker than one whose answer was
//! not good enough. Every policy that validates gives a next step or the reason why there is none.

use std::sync::Arc;

use super::document::{CheapFirst, ScorerSpec};
use super::economy::{CascadeEstimate, Prospect, Scorer};
use super::guard::{Guard, Purpose};
use super::scope::Scope;
use super::select::Demand;
use super::snapshot::{Chain, Model, Policy};
use crate::domain::{Candidate, Escalation, Fallback, Probability, Reason, ReasonCode, Requirements, StopReason, Tier};

/// A cascade as far as it has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The intent acted on.
    pub intent: &'a str,
    /// The tier acted on.
    pub tier: Tier,
    /// The classifier's difficulty, where it was consulted.
    pub difficulty: Option<Probability>,
    /// The chain of the first decision.
    pub chain: &'a str,
    /// Chains that rules forbid.
    pub forbidden: &'a [Arc<str>],
    /// What the candidate must offer.
    pub requirements: &'a Requirements,
    /// Tokens of the whole input, estimated.
    pub input_tokens: u32,
    /// Tokens expected in the answer; `None`: the policy's default.
    pub output_tokens: Option<u32>,
    /// See [`sticky_hash`](super::sticky_hash).
    pub sticky: u64,
    /// What was tried, the last one last.
    pub tried: &'a [Tried],
    /// Whether the last one could not be reached; else its answer was not good enough.
    pub unavailable: bool,
    /// Escalations so far.
    pub hops: u32,
    /// US dollars spent so far.
    pub spent_usd: f64,
    /// Time since the first decision.
    pub elapsed_ms: u64,
    /// How long the caller can still wait; `None`: any time.
    pub time_left_ms: Option<u64>,
}

/// A model that was tried. Says enough to compare others with it when the policy does not have it any more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    /// The hash of its name.
    pub model: u64,
    /// Its answer was not good enough; otherwise it gave none.
    pub answered: bool,
    /// Its ability, where the policy had one.
    pub ability: Option<f64>,
    /// Its price, input and output together.
    pub price_usd: f64,
    /// Estimated cost of its answer.
    pub cost_usd: f64,
}

/// The next step of a cascade.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    /// The chain behind it; empty: the policy has none any more.
    pub chain: Arc<str>,
    /// What to call.
    pub selected: Candidate,
    /// What to call when that is unavailable, in order.
    pub fallbacks: Vec<Fallback>,
    /// The stronger step after it.
    pub escalation: Option<Escalation>,
    /// What was removed on the way.
    pub removed: Vec<Reason>,
}

/// Why there is no next step.
#[derive(Clone, Debug, PartialEq)]
pub struct Halt {
    /// Why.
    pub reason: StopReason,
    /// What was removed on the way.
    pub removed: Vec<Reason>,
}

/// When no layer says how good the scorer is.
const SCORER_AUC: f64 = 0.80;
/// When neither a layer nor abilities say how good an answer must be.
const SCORE_THRESHOLD: f64 = 0.60;
const MAX_HOPS: u32 = 2;

// === impl Policy ===

impl Policy {
    /// The model of that name, as a cascade remembers it. `cost_usd` is the estimated cost of its answer.
    pub fn tried(&self, name: &str, cost_usd: f64) -> Option<Tried> {
        let at = self.models.binary_search_by(|model| (*model.name).cmp(name)).ok()?;
        let model = self.models.get(at)?;
        Some(Tried {
            model: model.hash,
            answered: false,
            ability: model.ability,
            price_usd: model.price.sum(),
            cost_usd,
        })
    }

    /// The name of the model with that hash.
    pub fn model_name(&self, hash: u64) -> Option<&Arc<str>> {
        self.models.iter().find(|model| model.hash == hash).map(|model| &model.name)
    }
}

// === impl Scope ===

impl Scope {
    /// What comes next, or why nothing does.
    ///
    /// # Errors
    /// When the cascade ends.
    pub fn advance(&self, progress: &Progress<'_>, guard: &dyn Guard) -> Result<Advance, Halt> {
        let halt = |reason| Err(Halt { reason, removed: Vec::new() });
        if !progress.unavailable && progress.hops >= self.max_hops() {
            return halt(StopReason::MaxHops);
        }
        if self.max_duration_ms().is_some_and(|most| progress.elapsed_ms >= most) || progress.time_left_ms == Some(0) {
            return halt(StopReason::Deadline);
        }
        let demand = self.demand_of(progress);
        let chain = self.chain_of(progress);
        let tried = progress.tried;
        let failed = tried.iter().any(|tried| tried.answered);
        // Where nothing has failed but the connection, the ladder is the last resort: what is on it must not be weaker.
        let floor = tried.last().filter(|_| !failed);
        let ladder: Vec<usize> = self.ladder().to_vec();
        let ladder = ladder
            .into_iter()
            .filter(|id| self.is_open(*id, tried) && floor.is_none_or(|last| self.is_stronger_than_tried(*id, last)));
        let ladder: Vec<usize> = ladder.collect();
        let of_chain = chain.map(|chain| chain.models.iter().copied()).into_iter().flatten();
        let of_chain: Vec<usize> = of_chain.filter(|id| self.is_open(*id, tried)).collect();
        // After an answer that was not good enough the ladder leads, after none the chain.
        let (first, second) = if failed { (&ladder, &of_chain) } else { (&of_chain, &ladder) };
        let climbs = !progress.unavailable;
        let purpose = if climbs { Purpose::Escalation } else { Purpose::Fallback };

        let mut removed = Vec::new();
        let mut bounds = Bounds { scope: self, demand: &demand, progress, over_budget: false, too_late: false };
        let second = second.iter().copied().filter(|id| !first.contains(id));
        let mut candidates =
            demand.usable(first.iter().copied(), self, (guard, purpose), |reason| removed.push(reason));
        candidates.retain(|(_, model)| bounds.admit(model, &mut removed));
        let n_first = candidates.len();
        if !climbs || n_first > 0 {
            let mut others = demand.usable(second, self, (guard, Purpose::Fallback), |reason| removed.push(reason));
            others.retain(|(_, model)| bounds.admit(model, &mut removed));
            candidates.append(&mut others);
        }
        let mut candidates = candidates.into_iter();
        let Some((selected, model)) = candidates.next() else {
            let reason = match (bounds.over_budget, bounds.too_late, climbs) {
                (true, ..) => StopReason::Budget,
                (_, true, _) => StopReason::Deadline,
                (.., true) => StopReason::NothingStronger,
                (.., false) => StopReason::NothingLeft,
            };
            return Err(Halt { reason, removed });
        };
        let name = chain.map_or_else(|| Arc::from(""), |chain| Arc::clone(&chain.name));
        let fallbacks = candidates.map(|(_, model)| Fallback {
            candidate: demand.candidate(model),
            reason: Reason::about(ReasonCode::NextInChain, &*model.name, "next where the one before is unavailable"),
        });
        let standing = Standing {
            tried,
            hops: progress.hops + u32::from(climbs),
            spent_usd: progress.spent_usd + demand.cost_usd(model),
        };
        Ok(Advance {
            chain: name,
            fallbacks: fallbacks.collect(),
            escalation: demand.escalation(selected, self, &standing, guard).map(|(_, escalation)| escalation),
            selected: demand.candidate(model),
            removed,
        })
    }

    fn demand_of<'p>(&self, progress: &Progress<'p>) -> Demand<'p> {
        let usual = || self.defaults().spec.answer_tokens(progress.intent, progress.tier);
        Demand {
            requirements: progress.requirements,
            input_tokens: progress.input_tokens,
            output_tokens: progress.output_tokens.unwrap_or_else(usual),
            difficulty: progress.difficulty,
            sticky: progress.sticky,
        }
    }

    /// The chain of a cascade under this policy: forced, the one it began with, or what the routes say now.
    fn chain_of(&self, progress: &Progress<'_>) -> Option<&Chain> {
        let forced = self.forced_chain().and_then(|(name, _)| self.chain(&name));
        forced.or_else(|| self.chain(progress.chain)).or_else(|| {
            let forbidden = |name: &Arc<str>| progress.forbidden.contains(name);
            let routes = self.layers().flat_map(|layer| layer.routes.iter());
            let mut fitting = routes.filter(|route| {
                let intents = &route.intents;
                intents.as_ref().is_none_or(|known| known.iter().any(|intent| intent == progress.intent))
                    && route.tiers.get(progress.tier.index()).copied().unwrap_or(false)
                    && !forbidden(&route.chain)
            });
            self.chain(&fitting.next()?.chain)
        })
    }

    /// Whether a cascade that tried `tried` may come to the model.
    fn is_open(&self, id: usize, tried: &[Tried]) -> bool {
        let Some(model) = self.models().get(id) else { return false };
        tried
            .iter()
            .all(|tried| tried.model != model.hash && (!tried.answered || self.is_stronger_than_tried(id, tried)))
    }

    fn is_stronger_than_tried(&self, id: usize, tried: &Tried) -> bool {
        match self.models().iter().position(|model| model.hash == tried.model) {
            Some(known) => self.is_stronger(id, known),
            None => self
                .models()
                .get(id)
                .is_some_and(|model| stronger((model.ability, model.price.sum()), (tried.ability, tried.price_usd))),
        }
    }

    /// Whether a model is stronger than another: by their order where both are on the ladder, else by ability, else by
    /// price.
    fn is_stronger(&self, id: usize, than: usize) -> bool {
        let position = |id: usize| self.ladder().iter().position(|step| *step == id);
        match (position(id), position(than), self.models().get(id), self.models().get(than)) {
            (Some(step), Some(from), ..) => step > from,
            (_, _, Some(step), Some(from)) => {
                stronger((step.ability, step.price.sum()), (from.ability, from.price.sum()))
            }
            _ => false,
        }
    }

    pub(super) fn ladder(&self) -> &[usize] {
        self.find(|layer| layer.ladder.as_deref()).unwrap_or_default()
    }

    /// Most escalations of one request.
    pub fn max_hops(&self) -> u32 {
        self.find(|layer| layer.max_hops).unwrap_or(MAX_HOPS)
    }

    fn max_duration_ms(&self) -> Option<u64> {
        self.find(|layer| layer.spec.escalation.max_duration_ms)
    }

    /// What a cascade may cost at most.
    fn budget_usd(&self, demand: &Demand<'_>) -> f64 {
        let fixed = self.find(|layer| layer.spec.escalation.max_cost_usd);
        let strongest = self.ladder().last().and_then(|id| self.models().get(*id));
        let share = self.find(|layer| layer.spec.escalation.budget_share);
        let share = share.and_then(|share| Some(share * demand.cost_usd(strongest?)));
        fixed.unwrap_or(f64::INFINITY).min(share.unwrap_or(f64::INFINITY))
    }

    pub(super) fn skips_false_economies(&self) -> bool {
        self.find(|layer| layer.spec.escalation.cheap_first).unwrap_or_default() == CheapFirst::WhenItPays
    }

    /// What asking `weak` before `strong` comes to, and the score below which it asks `strong`.
    ///
    /// The estimate is there where abilities and the difficulty are known; the policy's own threshold is stronger than
    /// the one that follows from them.
    fn estimate(&self, demand: &Demand<'_>, weak: &Model, strong: &Model) -> (Probability, Option<CascadeEstimate>) {
        let fixed = self.find(|layer| layer.score_threshold);
        let prospect = |model: &Model| {
            Some(Prospect { success: demand.success(model)?.value(), cost_usd: demand.cost_usd(model) })
        };
        let estimate = prospect(weak).zip(prospect(strong)).map(|(weak, strong)| {
            let default = Scorer::new(SCORER_AUC, 0.0);
            let scorer = self.find(|layer| layer.scorer).unwrap_or(default);
            match fixed {
                Some(threshold) => scorer.at_threshold(weak, strong, threshold.value()),
                None => scorer.at_parity(weak, strong),
            }
        });
        let computed = estimate.map_or(SCORE_THRESHOLD, |estimate| estimate.threshold);
        (fixed.unwrap_or_else(|| Probability::saturating(computed)), estimate)
    }

    /// The score below which an answer of `model` is escalated when nothing stronger is left to compare it with.
    pub fn least_score(&self) -> Probability {
        self.find(|layer| layer.score_threshold).unwrap_or(Probability::saturating(SCORE_THRESHOLD))
    }

    /// The score below which an answer of the model that was tried last is escalated.
    pub fn score_threshold(&self, progress: &Progress<'_>, guard: &dyn Guard) -> Probability {
        let last = progress.tried.last().and_then(|last| self.models().iter().position(|m| m.hash == last.model));
        let Some(last) = last else { return self.least_score() };
        let demand = self.demand_of(progress);
        let before = progress.tried.split_last().map_or(&[][..], |(_, before)| before);
        let standing = Standing { tried: before, hops: progress.hops, spent_usd: progress.spent_usd };
        let next = demand.escalation(last, self, &standing, guard);
        next.map_or_else(|| self.least_score(), |(_, escalation)| escalation.score_threshold)
    }
}

/// Where a cascade stands when it selects a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing<'a> {
    /// What was tried before.
    pub(super) tried: &'a [Tried],
    /// Escalations, the one to this model included.
    pub(super) hops: u32,
    /// What will be spent once it has answered.
    pub(super) spent_usd: f64,
}

// === impl Demand ===

impl Demand<'_> {
    /// The next usable stronger step of the ladder after `selected`, and its index.
    pub(super) fn escalation(
        &self,
        selected: usize,
        scope: &Scope,
        standing: &Standing<'_>,
        guard: &dyn Guard,
    ) -> Option<(usize, Escalation)> {
        let hops = scope.max_hops().saturating_sub(standing.hops);
        if hops == 0 {
            return None;
        }
        let from = scope.models().get(selected)?;
        let stronger = scope.ladder().iter().copied();
        let stronger = stronger.filter(|id| scope.is_stronger(*id, selected) && scope.is_open(*id, standing.tried));
        let budget = scope.budget_usd(self);
        let mut steps = self.usable(stronger, scope, (guard, Purpose::Escalation), |_| {});
        steps.retain(|(_, model)| standing.spent_usd + self.cost_usd(model) <= budget);
        let (id, next) = steps.first().copied()?;
        let (score_threshold, estimate) = scope.estimate(self, from, next);
        let escalation = Escalation {
            next: self.candidate(next),
            score_threshold,
            hops_left: hops.min(steps.len() as u32),
            probability: estimate.map(|estimate| Probability::saturating(1.0 - estimate.kept)),
            expected_cost_usd: estimate.map(|estimate| estimate.cost_usd),
        };
        Some((id, escalation))
    }
}

/// What a cascade may spend and how long it may take.
struct Bounds<'a> {
    scope: &'a Scope,
    demand: &'a Demand<'a>,
    progress: &'a Progress<'a>,
    over_budget: bool,
    too_late: bool,
}

// === impl Bounds ===

impl Bounds<'_> {
    fn admit(&mut self, model: &Model, removed: &mut Vec<Reason>) -> bool {
        let (cost, spent) = (self.demand.cost_usd(model), self.progress.spent_usd);
        let budget = self.scope.budget_usd(self.demand);
        if spent + cost > budget {
            self.over_budget = true;
            let text = format!("would bring the cascade to ${:.6}, at most ${budget:.6} is allowed", spent + cost);
            removed.push(Reason::about(ReasonCode::CascadeBudgetSpent, &*model.name, text));
            return false;
        }
        let Some(left) = self.progress.time_left_ms else { return true };
        let typical = model.typical_latency_ms.map(u64::from);
        if typical.is_some_and(|typical| typical <= left) {
            return true;
        }
        self.too_late = true;
        let text = match typical {
            Some(typical) => format!("typically takes {typical} ms, {left} ms are left"),
            None => format!("has no typical latency in the policy, and {left} ms are left"),
        };
        removed.push(Reason::about(ReasonCode::LatencyCapExceeded, &*model.name, text));
        false
    }
}

// === impl ScorerSpec ===

impl ScorerSpec {
    pub(super) fn compile(&self) -> Scorer {
        Scorer::new(self.auc.unwrap_or(SCORER_AUC), self.cost_usd)
    }
}

/// By ability where both have one, else by price: policies list dearer models because they are better.
fn stronger(step: (Option<f64>, f64), than: (Option<f64>, f64)) -> bool {
    match (step.0, than.0) {
        (Some(step), Some(than)) => step > than,
        _ => step.1 > than.1,
    }
}
