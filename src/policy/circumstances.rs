//! What is true at the moment of a request and written in no document: the guard that the service decides with.
//!
//! Data alone, so that a decision log can hold it and a replay decides the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::domain::{Reason, ReasonCode, Tier};

use super::document::is_default;
use super::guard::{Arrangement, Guard, Offer, Purpose};

/// What is true at the moment of a request.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Circumstances {
    /// Models that may not serve as usual, by name.
    #[serde(skip_serializing_if = "is_default")]
    pub models: BTreeMap<String, Standing>,
    /// Models out of service that this request may try.
    #[serde(skip_serializing_if = "is_default")]
    pub probes: BTreeSet<String>,
    /// The tenant has no fallback left.
    #[serde(skip_serializing_if = "is_default")]
    pub fallbacks_spent: bool,
    /// The tenant has no escalation left.
    #[serde(skip_serializing_if = "is_default")]
    pub escalations_spent: bool,
    /// Models that may take no more fallbacks.
    #[serde(skip_serializing_if = "is_default")]
    pub no_fallback: BTreeSet<String>,
    /// Models that may take no more escalations.
    #[serde(skip_serializing_if = "is_default")]
    pub no_escalation: BTreeSet<String>,
    /// The tenant should spend less.
    #[serde(skip_serializing_if = "is_default")]
    pub cheapest_first: bool,
    /// The model the session is on, and the tier it was chosen for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<(String, Tier)>,
    /// The lowest tier, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<(Tier, String)>,
}

/// How a model stands that may not serve as usual.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Standing {
    /// What it may still do.
    pub state: State,
    /// Why, for people.
    pub why: String,
    /// The share of its answers that failed lately: of those out of service the one with least is the least bad.
    pub failing: f64,
}

/// What a model may still do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Be the last fallback: its breaker is open and might close.
    Probation,
    /// Nothing, unless there is nothing else: it has had its share.
    Capped,
    /// Nothing, unless there is nothing else: its breaker is open.
    Open,
}

// === impl Circumstances ===

impl Circumstances {
    /// Whether nothing is out of the ordinary.
    pub fn is_ordinary(&self) -> bool {
        *self == Self::default()
    }

    fn state(&self, offer: &Offer<'_>) -> Option<&Standing> {
        self.models.get(&**offer.model)
    }

    fn verdict(&self, purpose: Purpose, offer: &Offer<'_>) -> Option<(ReasonCode, String)> {
        let (tenants, models, what) = match purpose {
            Purpose::Route => (false, None, ""),
            Purpose::Fallback => (self.fallbacks_spent, Some(&self.no_fallback), "fallbacks"),
            Purpose::Escalation => (self.escalations_spent, Some(&self.no_escalation), "escalations"),
        };
        if tenants {
            let text = format!("the tenant's {what} have used up their share of its traffic");
            return Some((ReasonCode::RetryBudgetSpent, text));
        }
        if models.is_some_and(|models| models.contains(&**offer.model)) {
            return Some((
                ReasonCode::RetryBudgetSpent,
                format!("{what} to it have used up their share of the traffic"),
            ));
        }
        let standing = self.state(offer)?;
        let code = match (standing.state, purpose) {
            (State::Open, _) | (State::Probation, Purpose::Escalation) => ReasonCode::BreakerOpen,
            (State::Capped, _) => ReasonCode::TrafficCapped,
            (State::Probation, _) => return None,
        };
        Some((code, standing.why.clone()))
    }

    /// The one of `offers`, all of them out of service, that does least harm.
    fn least_bad(&self, offers: &[Offer<'_>]) -> Option<usize> {
        let badness = |offer: &Offer<'_>| {
            self.state(offer).map_or((None, 0.0), |standing| (Some(standing.state), standing.failing))
        };
        let worse = |a: (Option<State>, f64), b: (Option<State>, f64)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
        // `min_by` gives the first of equals: the chain's order decides between them.
        let least = offers.iter().enumerate().min_by(|(_, a), (_, b)| worse(badness(a), badness(b)));
        least.map(|(position, _)| position)
    }
}

impl Guard for Circumstances {
    fn review(&self, purpose: Purpose, offers: &[Offer<'_>]) -> Vec<Option<(ReasonCode, String)>> {
        let mut verdicts: Vec<_> = offers.iter().map(|offer| self.verdict(purpose, offer)).collect();
        // An answer by a bad model is better than none; a retry is not worth it.
        if purpose == Purpose::Route
            && verdicts.iter().all(Option::is_some)
            && let Some(spared) = self.least_bad(offers).and_then(|position| verdicts.get_mut(position))
        {
            *spared = None;
        }
        verdicts
    }

    fn floor(&self) -> Option<(Tier, Reason)> {
        let (tier, why) = self.floor.as_ref()?;
        Some((*tier, Reason::about(ReasonCode::SessionRaised, tier.as_str(), why.clone())))
    }

    fn stays_on(&self, tier: Tier) -> Option<&str> {
        let (model, chosen_for) = self.session.as_ref()?;
        let ordinary = !self.models.contains_key(model) && !self.probes.contains(model);
        (tier <= *chosen_for && ordinary && !self.cheapest_first).then_some(model)
    }

    fn arrange(&self, offers: &[Offer<'_>]) -> Arrangement {
        let mut order: Vec<usize> = (0..offers.len()).collect();
        let offer = |position: &usize| offers.get(*position);
        let state =
            |position: &usize| offer(position).and_then(|offer| self.state(offer)).map(|standing| standing.state);
        if self.cheapest_first {
            let cost = |position: &usize| offer(position).map_or(f64::INFINITY, |offer| offer.estimated_cost_usd);
            order.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        }
        // The sort is stable: what may serve as usual keeps its order before what may not.
        order.sort_by_key(state);
        let Some(selected) = order.first().copied() else { return Arrangement::default() };
        let name = offer(&selected).map_or_else(String::new, |offer| offer.model.to_string());
        let because = |code, text: &str| Some(Reason::about(code, name.as_str(), format!("{name} {text}")));
        let selected_because = match state(&selected) {
            Some(_) => because(ReasonCode::LastResort, "is out of service for now, and so is every other candidate"),
            _ if self.probes.contains(&name) => {
                because(ReasonCode::BreakerProbe, "failed lately; this request tries whether it answers again")
            }
            _ if self.cheapest_first => {
                because(ReasonCode::SoftBudgetSpent, "is the cheapest; the tenant has spent what it should")
            }
            _ => None,
        };
        let mut reasons = Vec::new();
        if self.fallbacks_spent && order.len() > 1 {
            let text = "no fallbacks: the tenant's have used up their share of its traffic";
            reasons.push(Reason::new(ReasonCode::RetryBudgetSpent, text));
            order.truncate(1);
        }
        order.retain(|position| {
            let spent =
                offer(position).filter(|offer| *position != selected && self.no_fallback.contains(&**offer.model));
            if let Some(offer) = spent {
                let text =
                    format!("{} is no fallback: those to it have used up their share of the traffic", offer.model);
                reasons.push(Reason::about(ReasonCode::RetryBudgetSpent, &**offer.model, text));
            }
            spent.is_none()
        });
        Arrangement { order, selected_because, reasons }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn standing(state: State, failing: f64) -> Standing {
        Standing { state, why: "why".to_owned(), failing }
    }

    fn with(models: &[(&str, State, f64)]) -> Circumstances {
        let models = models.iter().map(|(name, state, failing)| ((*name).to_owned(), standing(*state, *failing)));
        Circumstances { models: models.collect(), ..Circumstances::default() }
    }

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn offers(names: &[Arc<str>]) -> Vec<Offer<'_>> {
        let cost = |position: usize| [3.0, 1.0, 2.0, 4.0][position % 4];
        names
            .iter()
            .enumerate()
            .map(|(position, model)| Offer { model, provider: model, estimated_cost_usd: cost(position) })
            .collect()
    }

    /// Positions that are tried, in order, after the review.
    fn tried(circumstances: &Circumstances, all: &[Arc<str>]) -> Vec<String> {
        let verdicts = circumstances.review(Purpose::Route, &offers(all));
        let verdict = |position: usize| verdicts.get(position).and_then(Option::as_ref);
        let left: Vec<Arc<str>> = all
            .iter()
            .enumerate()
            .filter(|(position, _)| verdict(*position).is_none())
            .map(|(_, name)| name.clone())
            .collect();
        circumstances.arrange(&offers(&left)).order.iter().map(|position| left[*position].to_string()).collect()
    }

    #[test]
    fn what_may_not_serve_is_left_out_or_comes_last() {
        let all = names(&["a", "b", "c"]);
        let check = |circumstances: &Circumstances, expected: &[&str]| assert_eq!(tried(circumstances, &all), expected);
        check(&Circumstances::default(), &["a", "b", "c"]);
        check(&with(&[("a", State::Open, 1.0)]), &["b", "c"]);
        check(&with(&[("a", State::Probation, 1.0)]), &["b", "c", "a"]);
        check(&with(&[("a", State::Capped, 0.0)]), &["b", "c"]);
        let spent = ["a".to_owned(), "b".to_owned()].into();
        check(&Circumstances { no_fallback: spent, ..Circumstances::default() }, &["a", "c"]);
        check(&Circumstances { fallbacks_spent: true, ..Circumstances::default() }, &["a"]);
        let spent = || Circumstances {
            escalations_spent: true,
            no_escalation: ["a".to_owned()].into(),
            ..Circumstances::default()
        };
        check(&spent(), &["a", "b", "c"]);
        let steps = |circumstances: &Circumstances| {
            circumstances.review(Purpose::Escalation, &offers(&all)).iter().filter(|verdict| verdict.is_none()).count()
        };
        assert_eq!(steps(&spent()), 0);
        assert_eq!(steps(&Circumstances { escalations_spent: false, ..spent() }), 2);
        assert_eq!(steps(&with(&[("a", State::Probation, 1.0)])), 2);
        check(&Circumstances { cheapest_first: true, ..Circumstances::default() }, &["b", "c", "a"]);
    }

    #[test]
    fn a_cheaper_choice_says_why() {
        let all = names(&["a", "b"]);
        let because = |cheapest_first| {
            let circumstances = Circumstances { cheapest_first, ..Circumstances::default() };
            circumstances.arrange(&offers(&all)).selected_because.map(|reason| reason.code)
        };
        assert_eq!((because(true), because(false)), (Some(ReasonCode::SoftBudgetSpent), None));
    }

    #[test]
    fn of_all_that_are_out_the_least_bad_serves() {
        let all = names(&["a", "b", "c"]);
        let open = with(&[("a", State::Open, 1.0), ("b", State::Open, 0.6), ("c", State::Open, 0.9)]);
        assert_eq!(tried(&open, &all), ["b"]);
        let capped = with(&[("a", State::Open, 0.1), ("b", State::Open, 0.6), ("c", State::Capped, 0.9)]);
        assert_eq!(tried(&capped, &all), ["c"], "one that answers but has had its share is better than one that fails");
        let reason = open.arrange(&offers(&names(&["b"]))).selected_because.unwrap();
        assert_eq!((reason.code, reason.subject.as_str()), (ReasonCode::LastResort, "b"));
        let fallbacks = open.review(Purpose::Fallback, &offers(&all));
        assert!(fallbacks.iter().all(Option::is_some), "a retry has no last resort");
    }

    #[test]
    fn a_session_stays_until_the_query_needs_more() {
        let stays = Circumstances { session: Some(("a".to_owned(), Tier::Medium)), ..Circumstances::default() };
        assert_eq!(stays.stays_on(Tier::Simple), Some("a"));
        assert_eq!(stays.stays_on(Tier::Medium), Some("a"));
        assert_eq!(stays.stays_on(Tier::Complex), None);
        let open = Circumstances { models: with(&[("a", State::Open, 1.0)]).models, ..stays.clone() };
        assert_eq!(open.stays_on(Tier::Simple), None);
        assert_eq!(Circumstances { cheapest_first: true, ..stays }.stays_on(Tier::Simple), None);
    }

    fn circumstances() -> impl Strategy<Value = Circumstances> {
        let state = prop_oneof![Just(State::Probation), Just(State::Capped), Just(State::Open)];
        let model = (prop::sample::select(vec!["a", "b", "c", "d"]), state, 0.0..=1.0);
        (prop::collection::vec(model, 0..5), any::<bool>(), any::<bool>()).prop_map(|(models, retries, cheapest)| {
            Circumstances { fallbacks_spent: retries, cheapest_first: cheapest, ..with(&models) }
        })
    }

    proptest! {
        /// Whatever is out of service, something is selected, nothing twice, and it is read back from a log as it was.
        #[test]
        fn something_always_serves(circumstances in circumstances(), n in 1_usize..5) {
            let all = names(&["a", "b", "c", "d"][..n]);
            let tried = tried(&circumstances, &all);
            prop_assert!(!tried.is_empty());
            let mut once = tried.clone();
            once.sort();
            once.dedup();
            prop_assert_eq!(once.len(), tried.len());
            let usual = |name: &str| !circumstances.models.contains_key(name);
            if all.iter().any(|name| usual(name)) {
                prop_assert!(usual(&tried[0]), "{} serves though others could as usual", tried[0]);
            }
            let line = serde_json::to_string(&circumstances).unwrap();
            prop_assert_eq!(serde_json::from_str::<Circumstances>(&line).unwrap(), circumstances);
        }
    }
}
