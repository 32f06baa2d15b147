//! Signals to candidates: the intent, the tier, the chain, then filter and select.
//!
//! Total and deterministic: every scope and every combination of signals gives a [`Resolution`] or a [`NoCandidate`].

use std::sync::Arc;

use crate::domain::{
    Candidate, Classification, ConfidenceOf, Escalation, Fallback, FanOut, Language, Probability, Reason, ReasonCode,
    Requirements, Source, Tier, TierChoice,
};
use crate::rules::RuleOutcome;

use super::document::SafeAnswerSpec;
use super::guard::{Guard, Purpose, Unguarded};
use super::ladder::Standing;
use super::scope::Scope;
use super::select::{Demand, sticky_hash};
use super::snapshot::{Chain, Model};

/// The evidence about one query and what its caller asks for.
#[derive(Clone, Copy, Debug)]
pub struct Signals<'a> {
    /// What the classifier says; `None`: it was not consulted.
    pub classification: Option<&'a Classification>,
    /// What the rules fixed.
    pub rules: &'a RuleOutcome,
    /// The text's language, where it is long enough to tell.
    pub language: Option<Language>,
    /// The classifier was needed and could not be consulted; a classification given beside is not used.
    pub degraded: bool,
    /// What the candidate must offer.
    pub requirements: &'a Requirements,
    /// Tokens of the whole input, estimated.
    pub input_tokens: u32,
    /// Tokens expected in the answer; `None`: the policy's default.
    pub output_tokens: Option<u32>,
    /// Requests with the same key get the same endpoint: the session id, else the request id.
    pub sticky_key: &'a str,
}

/// What the policy decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    /// The intent acted on.
    pub intent: Arc<str>,
    /// Its probability: 1 when a rule fixed it, 0 when nothing is known.
    pub intent_probability: Probability,
    /// The tier acted on.
    pub tier: Tier,
    /// The classifier's difficulty; without one the middle of the tier's third of the scale.
    pub difficulty: Probability,
    /// See `confidence_of`.
    pub confidence: Probability,
    /// What `confidence` is the probability of.
    pub confidence_of: ConfidenceOf,
    /// What made the decision; never [`Source::Cache`], which only the caller can know.
    pub source: Source,
    /// The chain the candidates are from.
    pub chain: Arc<str>,
    /// The candidate to call first.
    pub selected: Candidate,
    /// What to call when it is unavailable, in order.
    pub fallbacks: Vec<Fallback>,
    /// What to do when the answer is not good enough.
    pub escalation: Option<Escalation>,
    /// Whom to ask at once, where the policy says so.
    pub fan_out: Option<FanOut>,
    /// Why, in the order the reasons applied; removed candidates included.
    pub reasons: Vec<Reason>,
}

/// No model of the chain may be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("no candidate is left in chain {chain:?}: {}", self.removals())]
pub struct NoCandidate {
    /// The chain; empty: the rules forbid every chain the routes offer.
    pub chain: String,
    /// Which filter removed what, in chain order.
    pub removed: Vec<Reason>,
    /// Why this chain, in the order the reasons applied.
    pub reasons: Vec<Reason>,
}

/// The tier when nothing is known and the policy does not say.
const DEGRADED_TIER: Tier = Tier::Medium;

/// What is settled on the way, each step adding its reasons.
struct Course<'a> {
    scope: &'a Scope,
    signals: &'a Signals<'a>,
    /// The classification, where it is to be used.
    classification: Option<&'a Classification>,
    source: Source,
    reasons: Vec<Reason>,
}

struct IntentStep<'a> {
    label: Arc<str>,
    probability: Probability,
    /// What the policy says instead of the classifier's tier or the routes' chain.
    safe: Option<&'a SafeAnswerSpec>,
}

struct TierStep {
    tier: Tier,
    confidence: Probability,
    of: ConfidenceOf,
}

// === impl Scope ===

impl Scope {
    /// What the policy decides on `signals`.
    ///
    /// # Errors
    /// When the filters leave no candidate; says which removed what.
    pub fn resolve(&self, signals: &Signals<'_>) -> Result<Resolution, NoCandidate> {
        self.resolve_guarded(signals, &Unguarded)
    }

    /// The same, less the candidates that `guard` removes.
    ///
    /// # Errors
    /// When the filters and the guard leave no candidate; says which removed what.
    pub fn resolve_guarded(&self, signals: &Signals<'_>, guard: &dyn Guard) -> Result<Resolution, NoCandidate> {
        let mut course = Course::new(self, signals);
        let intent = course.intent();
        let tier = course.tier(&intent);
        let Some(chain) = course.chain(&intent, tier.tier) else {
            let removed = course.reasons.iter().filter(|reason| reason.code == ReasonCode::ChainForbidden).cloned();
            return Err(NoCandidate { chain: String::new(), removed: removed.collect(), reasons: course.reasons });
        };
        let demand = self.demand(signals, &intent.label, tier.tier);
        course.select(&demand, intent, &tier, chain, guard)
    }

    /// The intent and the tier acted on.
    pub(super) fn settled(&self, signals: &Signals<'_>) -> (Arc<str>, Tier) {
        let mut course = Course::new(self, signals);
        let intent = course.intent();
        let tier = course.tier(&intent).tier;
        (intent.label, tier)
    }

    /// What the filters compare models with.
    pub(super) fn demand<'s>(&self, signals: &Signals<'s>, intent: &str, tier: Tier) -> Demand<'s> {
        let classification = signals.classification.filter(|_| !signals.degraded);
        Demand {
            requirements: signals.requirements,
            input_tokens: signals.input_tokens,
            output_tokens: signals.output_tokens.unwrap_or_else(|| self.defaults().spec.answer_tokens(intent, tier)),
            difficulty: classification.map(|classification| classification.difficulty),
            sticky: sticky_hash(signals.sticky_key),
        }
    }
}

// === impl Course ===

impl<'a> Course<'a> {
    fn new(scope: &'a Scope, signals: &'a Signals<'a>) -> Self {
        let classification = signals.classification.filter(|_| !signals.degraded);
        let source = if scope.forced_chain().is_some() {
            Source::Override
        } else if signals.rules.decisive() {
            Source::Rule
        } else if classification.is_some() {
            Source::Classifier
        } else {
            Source::Degraded
        };
        let mut reasons: Vec<Reason> = scope.reasons().collect();
        let matched = signals.rules.matched.iter();
        reasons.extend(
            matched.map(|rule| Reason::about(ReasonCode::RuleMatched, &**rule, format!("rule {rule} matched"))),
        );
        if source == Source::Degraded {
            let text = "the classifier was not consulted; rules and the policy's safe default answer";
            reasons.push(Reason::new(ReasonCode::Degraded, text));
        }
        Self { scope, signals, classification, source, reasons }
    }

    fn reason(&mut self, code: ReasonCode, subject: &str, text: String) {
        self.reasons.push(Reason::about(code, subject, text));
    }

    fn intent(&mut self) -> IntentStep<'a> {
        let scope = self.scope;
        let defaults = scope.defaults();
        let safe = self.unusable(defaults.spec.supported_languages.as_slice());
        if let Some(fixed) = &self.signals.rules.intent {
            return IntentStep { label: Arc::clone(&fixed.value), probability: Probability::ONE, safe };
        }
        let probability = |label: &str| {
            let distribution = self.classification.map(|classification| &classification.intent);
            let found = distribution.and_then(|distribution| distribution.iter().find(|(known, _)| &***known == label));
            found.map_or(Probability::ZERO, |(_, p)| Probability::saturating(f64::from(p)))
        };
        let fallback =
            |safe| IntentStep { label: Arc::clone(&defaults.intent), probability: probability(&defaults.intent), safe };
        let Some(classification) = self.classification.filter(|_| safe.is_none()) else {
            return fallback(safe);
        };
        let (label, p) = classification.intent.top();
        let p = Probability::saturating(f64::from(p));
        let asked = scope.min_intent_confidence();
        if p < asked {
            let step = fallback(Some(&defaults.spec.low_confidence));
            let text = format!(
                "the most probable intent is {label} with {:.2}, {:.2} is asked; {} is assumed",
                p.value(),
                asked.value(),
                defaults.intent
            );
            self.reason(ReasonCode::IntentLowConfidence, label, text);
            return step;
        }
        self.reason(ReasonCode::IntentClassified, label, format!("intent {label} with probability {:.2}", p.value()));
        IntentStep { label: Arc::clone(label), probability: p, safe: None }
    }

    /// What the policy says where the classifier cannot be trusted, or was not consulted.
    fn unusable(&mut self, supported: &[String]) -> Option<&'a SafeAnswerSpec> {
        let defaults = &self.scope.defaults().spec;
        let rules = self.signals.rules;
        if rules.intent.is_some() && rules.fixed_tier().is_some() {
            return None;
        }
        let Some(classification) = self.classification else {
            return (self.source == Source::Degraded).then_some(&defaults.degraded);
        };
        if let Some(language) = self.signals.language
            && !supported.is_empty()
            && !supported.iter().any(|known| known == language.as_str())
        {
            let text = format!("the classifier does not understand {}", language.as_str());
            self.reason(ReasonCode::UnsupportedLanguage, language.as_str(), text);
            return Some(&defaults.unsupported_language);
        }
        let (p, cut) = (classification.out_of_scope, self.scope.out_of_scope());
        if p >= cut {
            let text = format!("out of scope with probability {:.2}, the cut is {:.2}", p.value(), cut.value());
            self.reason(ReasonCode::OutOfScope, "", text);
            return Some(&defaults.out_of_scope);
        }
        None
    }

    fn tier(&mut self, intent: &IntentStep<'_>) -> TierStep {
        let rules = self.signals.rules;
        let safe_tier = intent.safe.and_then(|safe| safe.tier);
        // Where the classifier is to be believed, its probability that the tier suffices says more than a flat 1.
        let believed = self.classification.filter(|_| safe_tier.is_none() && self.source != Source::Rule);
        if let (Some(tier), None) = (rules.fixed_tier(), believed) {
            return TierStep { tier, confidence: Probability::ONE, of: ConfidenceOf::Rule };
        }
        let (wanted, tiers) = match (self.classification, safe_tier) {
            (Some(classification), None) => {
                let asked = self.scope.min_confidence(&intent.label);
                let choice = classification.choose_tier(asked);
                let needed = classification.tier_control.threshold(asked);
                // Over queries the asked confidence is kept by a threshold of its own.
                let why = if needed == asked { String::new() } else { format!(", which keeps {:.2}", asked.value()) };
                let text = format!(
                    "{} is the lowest tier that suffices with at least {:.2}{why}: {:.2}",
                    choice.tier,
                    needed.value(),
                    choice.suffices.value()
                );
                self.reason(ReasonCode::TierRiskControlled, choice.tier.as_str(), text);
                (choice.tier, Some(classification.tiers))
            }
            (_, safe_tier) => {
                let degraded = self.scope.defaults().spec.degraded.tier;
                let tier = safe_tier.or(degraded).unwrap_or(DEGRADED_TIER);
                self.reason(ReasonCode::TierDefault, tier.as_str(), format!("{tier} is the policy's default here"));
                (tier, None)
            }
        };
        let tier = rules.clamp(wanted);
        for (bound, code, verb) in
            [(&rules.floor, ReasonCode::TierRaised, "raises"), (&rules.cap, ReasonCode::TierCapped, "caps")]
        {
            if let Some(bound) = bound.as_ref().filter(|bound| tier != wanted && bound.value == tier) {
                let text = format!("rule {} {verb} the tier from {wanted} to {tier}", bound.rule);
                self.reason(code, &bound.rule, text);
            }
        }
        match (tiers, self.source) {
            (Some(tiers), _) => {
                let confidence = TierChoice::fixed(tier, tiers).suffices;
                TierStep { tier, confidence, of: ConfidenceOf::TierSuffices }
            }
            (None, Source::Rule | Source::Override) => {
                TierStep { tier, confidence: Probability::ONE, of: ConfidenceOf::Rule }
            }
            (None, _) => TierStep { tier, confidence: Probability::ZERO, of: ConfidenceOf::None },
        }
    }

    /// The chain: forced by role or tenant, forced by a rule, the safe answer's, or the routes'.
    fn chain(&mut self, intent: &IntentStep<'_>, tier: Tier) -> Option<&'a Chain> {
        let scope = self.scope;
        if let Some((name, origin)) = scope.forced_chain() {
            self.reason(ReasonCode::ChainForced, &name, format!("{origin} forces chain {name}"));
            return scope.chain(&name);
        }
        if let Some(forced) = &self.signals.rules.force_chain {
            let (name, rule) = (&forced.value, &forced.rule);
            self.reason(ReasonCode::ChainForced, name, format!("rule {rule} forces chain {name}"));
            return scope.chain(name);
        }
        if let Some(name) = intent.safe.and_then(|safe| safe.chain.as_deref())
            && !self.forbidden(name)
        {
            self.reason(ReasonCode::ChainDefault, name, format!("chain {name} is the policy's default here"));
            return scope.chain(name);
        }
        for layer in scope.layers() {
            for route in &layer.routes {
                let takes_intent =
                    route.intents.as_ref().is_none_or(|known| known.iter().any(|i| **i == *intent.label));
                let takes_tier = route.tiers.get(tier.index()).copied().unwrap_or(false);
                if takes_intent && takes_tier && !self.forbidden(&route.chain) {
                    let text = format!(
                        "route {} of {} takes {} and {tier} to chain {}",
                        route.position, layer.origin, intent.label, route.chain
                    );
                    self.reason(ReasonCode::RouteMatched, &route.chain, text);
                    return scope.chain(&route.chain);
                }
            }
        }
        None
    }

    /// Whether a rule forbids the chain; says so once.
    fn forbidden(&mut self, chain: &str) -> bool {
        let Some(forbidden) = self.signals.rules.forbid_chains.iter().find(|forbidden| &*forbidden.value == chain)
        else {
            return false;
        };
        let told = |reason: &Reason| reason.code == ReasonCode::ChainForbidden && reason.subject == chain;
        if !self.reasons.iter().any(told) {
            self.reason(ReasonCode::ChainForbidden, chain, format!("rule {} forbids chain {chain}", forbidden.rule));
        }
        true
    }

    fn select(
        mut self,
        demand: &Demand<'_>,
        intent: IntentStep<'_>,
        tier: &TierStep,
        chain: &Chain,
        guard: &dyn Guard,
    ) -> Result<Resolution, NoCandidate> {
        let mut removed = Vec::new();
        let usable = demand
            .usable(chain.models.iter().copied(), self.scope, (guard, Purpose::Route), |reason| removed.push(reason));
        let Some((selected_id, selected)) = usable.first().copied() else {
            return Err(NoCandidate { chain: chain.name.to_string(), removed, reasons: self.reasons });
        };
        self.reasons.append(&mut removed);
        let next = |id, model| {
            let standing = Standing { tried: &[], hops: 0, spent_usd: demand.cost_usd(model) };
            demand.escalation(id, self.scope, &standing, guard)
        };
        let mut escalation = next(selected_id, selected);
        let mut called = selected;
        if let Some((strong_id, strong)) = self.false_economy(demand, selected, escalation.as_ref()) {
            let text = format!(
                "{} would be asked first for ${:.6} and {} after it with probability {:.2}: dearer than {} at once",
                selected.name,
                demand.cost_usd(selected),
                strong.name,
                escalation.and_then(|(_, step)| step.probability).unwrap_or_default().value(),
                strong.name,
            );
            self.reason(ReasonCode::FalseEconomy, &selected.name, text);
            (called, escalation) = (strong, next(strong_id, strong));
        } else {
            let text = format!("{} is the first usable candidate of chain {}", selected.name, chain.name);
            self.reason(ReasonCode::FirstUsable, &selected.name, text);
        }
        let fallbacks = usable.iter().filter(|(_, model)| model.name != called.name).map(|(_, model)| Fallback {
            candidate: demand.candidate(model),
            reason: Reason::about(ReasonCode::NextInChain, &*model.name, format!("next in chain {}", chain.name)),
        });
        let in_order: Vec<&Model> = std::iter::once(called)
            .chain(usable.iter().map(|(_, model)| *model).filter(|model| model.name != called.name))
            .collect();
        let fan_out = self.scope.fan_out(demand, (&intent.label, tier.tier), &in_order).and_then(|(fan_out, why)| {
            self.reasons.push(why);
            fan_out
        });
        Ok(Resolution {
            fan_out,
            intent: intent.label,
            intent_probability: intent.probability,
            tier: tier.tier,
            difficulty: demand.difficulty.unwrap_or_else(|| middle_of(tier.tier)),
            confidence: tier.confidence,
            confidence_of: tier.of,
            source: self.source,
            chain: Arc::clone(&chain.name),
            selected: demand.candidate(called),
            fallbacks: fallbacks.collect(),
            escalation: escalation.map(|(_, escalation)| escalation),
            reasons: self.reasons,
        })
    }

    /// The stronger step to call at once, where asking the selected model first would save nothing. What a rule or a
    /// layer forces is called as it says.
    fn false_economy(
        &self,
        demand: &Demand<'_>,
        selected: &Model,
        escalation: Option<&(usize, Escalation)>,
    ) -> Option<(usize, &'a Model)> {
        let (id, step) = escalation?;
        // What rules force, cap or forbid is meant as they say.
        let rules = self.signals.rules;
        let by_routes = self.source == Source::Classifier && rules.force_chain.is_none();
        let by_routes = by_routes && rules.cap.is_none() && rules.forbid_chains.is_empty();
        let pays = step.expected_cost_usd? < step.next.estimated_cost_usd;
        let skips = by_routes && !pays && self.scope.skips_false_economies();
        let strong = self.scope.models().get(*id)?;
        (skips && strong.name != selected.name && demand.difficulty.is_some()).then_some((*id, strong))
    }
}

/// The difficulty to act on where the classifier says none: the middle of the tier's third of the scale.
pub fn middle_of(tier: Tier) -> Probability {
    Probability::saturating((tier.index() as f64 + 0.5) / Tier::ALL.len() as f64)
}

// === impl NoCandidate ===

impl NoCandidate {
    fn removals(&self) -> String {
        if self.removed.is_empty() {
            return "no route is left".to_owned();
        }
        let removals: Vec<String> = self
            .removed
            .iter()
            .map(|reason| format!("{} ({}) {}", reason.subject, reason.code.as_str(), reason.text))
            .collect();
        removals.join("; ")
    }
}
