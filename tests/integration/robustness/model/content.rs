//! What a decision may say under one policy.

use pointsman::rpc::proto;

use super::breakers::{Timeline, is_probe};
use super::document::{Doc, MODELS, TIERS, cost_usd, model, tier_of};
use super::history::{Asked, Call, Cascade, History, Spec};

/// What is known besides the policy.
pub(super) struct Moment<'a> {
    pub(super) history: &'a History,
    pub(super) spec: &'a Spec,
    /// By model.
    pub(super) breakers: &'a [Timeline],
}

type Verdict = Result<(), String>;

/// Fails with the text where the condition does not hold.
macro_rules! hold {
    ($condition:expr, $($text:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(format!($($text)+));
        }
    };
}

// === impl Moment ===

impl Moment<'_> {
    /// Whether `doc` explains the decision that `call` was given.
    pub(super) fn explain(&self, call: &Call, decision: &proto::Decision, doc: &Doc) -> Verdict {
        let selected = decision.selected.as_ref().ok_or("nothing is selected")?;
        let fallbacks = decision.fallbacks.iter().filter_map(|fallback| fallback.candidate.as_ref());
        let next = decision.escalation.as_ref().and_then(|escalation| escalation.next.as_ref());
        for candidate in std::iter::once(selected).chain(fallbacks.clone()).chain(next) {
            named(candidate, doc, call.tenant)?;
        }
        let index = |candidate: &proto::Candidate| model(&candidate.model).unwrap_or_default();
        let present: Vec<usize> = std::iter::once(selected).chain(fallbacks).map(index).collect();
        let cost = cost_usd(present[0]);
        hold!((decision.estimated_cost_usd - cost).abs() < 1e-12, "costs {}, not {cost}", decision.estimated_cost_usd);
        match &call.asked {
            Asked::Route { words, ruled } => self.explain_first(call, decision, doc, &present, (*words, *ruled))?,
            Asked::Step { cascade, unavailable, score } => {
                hold!(score.is_none_or(|score| score < 0.7), "goes on after a good answer");
                self.explain_step(call, decision, doc, &present, (cascade, *unavailable))?;
            }
        }
        self.explain_next(call, doc, present[0], next.map(index), decision)
    }

    fn explain_first(
        &self,
        call: &Call,
        decision: &proto::Decision,
        doc: &Doc,
        present: &[usize],
        (words, ruled): (usize, bool),
    ) -> Verdict {
        let degraded = decision.source() == proto::Source::Degraded;
        if degraded {
            hold!(!ruled && (call.deadline.is_some() || self.history.broken), "degraded for no cause");
        } else {
            let by_rule = decision.source() == proto::Source::Rule;
            hold!(by_rule == ruled, "source {:?}", decision.source());
        }
        let told = decision.complexity.as_ref().ok_or("no complexity")?.tier.as_str();
        let told = TIERS.iter().position(|tier| *tier == told).ok_or("a tier that is none")?;
        let tier = match (degraded, self.history.reloaded && !ruled) {
            (true, _) => 1,
            (false, true) => told,
            (false, false) => tier_of(words, ruled),
        };
        hold!(told == tier, "tier {told}, not {tier}");
        let base = doc.chain(tier, call.tenant);
        let thrifty = call.tenant == "thrifty";
        hold!(thrifty || !has(decision, "SOFT_BUDGET_SPENT"), "cheapest first for somebody without a budget");
        for asked in present {
            hold!(base.contains(asked), "{} is not in the chain {base:?}", MODELS[*asked].0);
        }
        for absent in base.iter().filter(|known| !present.contains(known)) {
            let open = self.breakers[*absent].may_be_open(call);
            hold!(open || self.retries_may_be_spent(decision), "{} is missing and was in service", MODELS[*absent].0);
        }
        let mut cheapest_first = base.clone();
        cheapest_first.sort_unstable();
        if !thrifty || self.explain_order(call, &cheapest_first, present).is_err() {
            self.explain_order(call, &base, present)?;
        }
        let (first, others) = (present[0], &present[1..]);
        let breaker = &self.breakers[first];
        if has(decision, "LAST_RESORT") {
            let all = base.iter().all(|known| self.breakers[*known].may_be_open(call));
            hold!(all, "{} as the last resort, and another was in service", MODELS[first].0);
        } else if is_probe(call, first) {
            hold!(breaker.may_be_tried(call), "{} is tried, and no probe was due", MODELS[first].0);
        } else {
            hold!(breaker.may_be_closed(call), "{} is selected and was out of service", MODELS[first].0);
        }
        for other in others {
            hold!(
                self.breakers[*other].may_stand_in(call),
                "{} is a fallback and was out of service",
                MODELS[*other].0
            );
        }
        Ok(())
    }

    /// The chain's order, and behind it what is on probation.
    fn explain_order(&self, call: &Call, base: &[usize], present: &[usize]) -> Verdict {
        let in_order = |part: &[usize]| {
            let places: Vec<_> = part.iter().map(|known| base.iter().position(|other| other == known)).collect();
            places.is_sorted() && places.windows(2).all(|pair| pair[0] != pair[1])
        };
        let fits = (1..=present.len()).any(|split| {
            let (usual, probation) = present.split_at(split);
            in_order(usual)
                && in_order(probation)
                && probation.iter().all(|known| self.breakers[*known].may_be_tried(call))
        });
        hold!(fits, "{present:?} is not in the order of {base:?}");
        Ok(())
    }

    fn explain_step(
        &self,
        call: &Call,
        decision: &proto::Decision,
        doc: &Doc,
        present: &[usize],
        (cascade, unavailable): (&Cascade, bool),
    ) -> Verdict {
        let after = cascade.after(unavailable);
        let told = decision.cascade.as_ref().ok_or("a step without its cascade")?;
        let hops = cascade.hops + u32::from(!unavailable);
        let (tried, first) = (cascade.tried.len(), &cascade.first_decision);
        // A fallback is no hop: it may come after more of them than a policy of later allows.
        let allowed = unavailable || hops <= doc.max_hops;
        hold!(told.hops == hops && allowed, "{} hops, not {hops} of {}", told.hops, doc.max_hops);
        hold!(told.attempts as usize == tried, "{} attempts, not {tried}", told.attempts);
        hold!(told.first_decision_id == *first, "another cascade");
        for known in present {
            hold!(after.is_open(*known), "{} was tried, or is weaker than what did not do", MODELS[*known].0);
        }
        for known in Self::expected(doc, call.tenant, &after, unavailable) {
            if known == present[0] {
                let in_service = self.breakers[known].may_stand_in(call);
                hold!(in_service, "{} is next and was out of service", MODELS[known].0);
                return Ok(());
            }
            let open = self.breakers[known].may_be_open(call);
            hold!(open || self.retries_may_be_spent(decision), "{} is passed over", MODELS[known].0);
        }
        Err(format!("{} cannot be next", MODELS[present[0]].0))
    }

    /// What may come next in a cascade, in order.
    fn expected(doc: &Doc, tenant: &str, cascade: &Cascade, unavailable: bool) -> Vec<usize> {
        let open = |known: &usize| cascade.is_open(*known) && doc.offers(*known, tenant);
        let failed = cascade.tried.iter().any(|(_, answered)| *answered);
        let last = cascade.tried.last().map_or(0, |(last, _)| *last);
        let ladder: Vec<usize> = (0..MODELS.len()).filter(|step| open(step) && (failed || *step > last)).collect();
        let chain: Vec<usize> = doc.chains[cascade.tier].iter().copied().filter(open).collect();
        let (first, second) = if failed { (ladder, chain) } else { (chain, ladder) };
        let mut all = first;
        if unavailable {
            all.extend(second);
        }
        all
    }

    /// Whether a cascade may have ended so under `doc`.
    pub(super) fn explain_stop(&self, call: &Call, reason: proto::StopReason, doc: &Doc) -> Verdict {
        let Asked::Step { cascade, unavailable, score } = &call.asked else {
            return Err("a stop of no cascade".into());
        };
        let good = score.is_some_and(|score| score >= 0.7);
        hold!(good == (reason == proto::StopReason::Accepted), "{reason:?} after a score of {score:?}");
        match reason {
            proto::StopReason::Accepted => Ok(()),
            proto::StopReason::MaxHops => {
                hold!(!unavailable && cascade.hops >= doc.max_hops, "{} of {} hops", cascade.hops, doc.max_hops);
                Ok(())
            }
            proto::StopReason::NothingLeft | proto::StopReason::NothingStronger => {
                hold!((reason == proto::StopReason::NothingLeft) == *unavailable, "{reason:?}");
                let after = cascade.after(*unavailable);
                for known in Self::expected(doc, call.tenant, &after, *unavailable) {
                    let open = self.breakers[known].may_be_open(call);
                    hold!(open || self.spec.terms.retries.is_some(), "{reason:?}, and {} was left", MODELS[known].0);
                }
                Ok(())
            }
            // Held against the account by itself.
            proto::StopReason::Budget if call.tenant == "thrifty" => Ok(()),
            other => Err(format!("{other:?} for no cause")),
        }
    }

    /// The stronger step that a decision foretells.
    fn explain_next(
        &self,
        call: &Call,
        doc: &Doc,
        selected: usize,
        next: Option<usize>,
        decision: &proto::Decision,
    ) -> Verdict {
        let (tried, hops) = match &call.asked {
            Asked::Route { .. } => (None, 0),
            Asked::Step { cascade, unavailable, .. } => {
                (Some(cascade.after(*unavailable)), cascade.hops + u32::from(!unavailable))
            }
        };
        if hops >= doc.max_hops {
            hold!(next.is_none(), "foretells a hop above {}", doc.max_hops);
            return Ok(());
        }
        let open = |known: &usize| tried.as_ref().is_none_or(|tried| tried.is_open(*known));
        let stronger = (selected + 1..MODELS.len()).filter(|step| doc.offers(*step, call.tenant)).filter(open);
        for known in stronger {
            if next == Some(known) {
                let in_service = self.breakers[known].may_stand_in(call);
                hold!(in_service, "{} is foretold and was out of service", MODELS[known].0);
                return Ok(());
            }
            let out = self.breakers[known].may_be_open(call);
            let spent = self.spec.terms.retries.is_some() || has(decision, "RETRY_BUDGET_SPENT");
            hold!(out || spent, "{} is not foretold and was in service", MODELS[known].0);
        }
        hold!(next.is_none(), "{next:?} is foretold and is not stronger");
        Ok(())
    }

    fn retries_may_be_spent(&self, decision: &proto::Decision) -> bool {
        self.spec.terms.retries.is_some() && has(decision, "RETRY_BUDGET_SPENT")
    }
}

// === impl Cascade ===

impl Cascade {
    /// With what became of its last step.
    fn after(&self, unavailable: bool) -> Self {
        let mut after = self.clone();
        if let Some(last) = after.tried.last_mut() {
            last.1 = !unavailable;
        }
        after
    }

    /// Whether it may come to the model.
    fn is_open(&self, known: usize) -> bool {
        self.tried.iter().all(|(tried, answered)| *tried != known && (!answered || known > *tried))
    }
}

fn named(candidate: &proto::Candidate, doc: &Doc, tenant: &str) -> Verdict {
    let name = &candidate.model;
    let index = model(name).ok_or_else(|| format!("{name} is no model"))?;
    let (_, provider, ..) = MODELS[index];
    hold!(candidate.provider == provider, "{name} is not of {}", candidate.provider);
    let there = format!("{name}-{}", doc.number);
    hold!(candidate.provider_model == there, "{} is of another version than {there}", candidate.provider_model);
    hold!(!doc.off.contains(provider), "{name} is named, and its provider {provider} is off");
    hold!(doc.offers(index, tenant), "{name} is named, and {tenant} may not ask {provider}");
    Ok(())
}

fn has(decision: &proto::Decision, code: &str) -> bool {
    decision.reasons.iter().any(|reason| reason.code == code)
}
