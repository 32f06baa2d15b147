//! What of a policy applies to one request: the layers for its environment, role, tenant and experiments.
//!
//! Nothing is merged ahead: a scope is a handful of layers, and each question walks them. So a policy with many
//! tenants and roles takes memory for what is written and not for every pair of them.

use std::sync::Arc;

use crate::domain::{ExperimentArm, Probability, Reason, ReasonCode};
use crate::rules::{RuleOutcome, RuleStack};

use super::assign::Assignment;
use super::document::UnknownTenant;
use super::experiment::ExperimentKind;
use super::operation::{LimitsSpec, SessionsSpec};
use super::snapshot::{Chain, Defaults, Layer, Model, Policy};

/// The part of a policy that applies to a tenant and role.
#[derive(Clone, Debug)]
pub struct Scope {
    pub(super) policy: Arc<Policy>,
    tenant: String,
    role: String,
    standing: Standing,
    /// The most specific first.
    layers: Vec<Arc<Layer>>,
    rules: RuleStack,
    arms: Vec<ExperimentArm>,
}

/// What the policy knows of the tenant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// As written, or no tenant is given.
    Known,
    /// It is not in the policy.
    Unknown,
    /// Its part of the policy has errors and is not applied.
    Refused,
}

/// Why a request has no scope: the caller's fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ScopeError {
    /// The policy refuses tenants it does not have.
    #[error("tenant {0:?} is not in the policy, which refuses unknown tenants")]
    UnknownTenant(String),
    /// A role decides what may be called, so a misspelt one must not pass.
    #[error("role {role:?} is not in the policy; known roles: {}", known_roles(known))]
    UnknownRole {
        /// What was asked for.
        role: String,
        /// What could be, sorted.
        known: Vec<String>,
    },
}

/// Most combinations of arms that are told apart; experiments beyond are taken as not there.
const MAX_ARM_CHOICES: usize = 64;
/// The confidence that is asked of a tier where no layer says.
pub const MIN_CONFIDENCE: f64 = 0.80;
/// Other thresholds when no layer has them.
const MIN_INTENT_CONFIDENCE: f64 = 0.35;
const OUT_OF_SCOPE: f64 = 0.90;

// === impl Policy ===

impl Policy {
    /// What applies to `tenant` and `role`; empty: none.
    ///
    /// # Errors
    /// When the policy does not have the role, or not the tenant and refuses such.
    pub fn scope(self: &Arc<Self>, tenant: &str, role: &str) -> Result<Scope, ScopeError> {
        let entry = self.tenants.get(tenant);
        let unknown_tenant = entry.is_none() && !tenant.is_empty();
        if unknown_tenant && self.defaults.spec.unknown_tenant == UnknownTenant::Refuse {
            return Err(ScopeError::UnknownTenant(tenant.to_owned()));
        }
        let own_roles = entry.map(|tenant| &tenant.roles);
        let known = self.roles.contains_key(role) || own_roles.is_some_and(|roles| roles.contains_key(role));
        if !role.is_empty() && !known {
            let own = own_roles.into_iter().flat_map(|roles| roles.keys());
            let mut known: Vec<String> = self.roles.keys().chain(own).cloned().collect();
            known.sort_unstable();
            known.dedup();
            return Err(ScopeError::UnknownRole { role: role.to_owned(), known });
        }
        let role_layer = self.roles.get(role);
        let layers = [
            entry.and_then(|tenant| tenant.roles.get(role)),
            entry.map(|tenant| &tenant.layer),
            role_layer,
            self.environment.as_ref(),
            Some(&self.base),
        ];
        let layers: Vec<Arc<Layer>> = layers.into_iter().flatten().cloned().collect();
        let standing = match entry {
            Some(tenant) if tenant.refused => Standing::Refused,
            None if unknown_tenant => Standing::Unknown,
            _ => Standing::Known,
        };
        Ok(Scope {
            policy: Arc::clone(self),
            tenant: tenant.to_owned(),
            role: role.to_owned(),
            standing,
            rules: stack(&layers),
            layers,
            arms: Vec::new(),
        })
    }
}

fn stack(layers: &[Arc<Layer>]) -> RuleStack {
    RuleStack::new(layers.iter().rev().map(|layer| Arc::clone(&layer.rules)))
}

// === impl Scope ===

impl Scope {
    /// The scope with the arms that a request gets, each stronger than anything it overrides.
    ///
    /// Where two arms change the same thing the experiment that is first by name wins.
    #[must_use]
    pub fn with_experiments(mut self, request: &Assignment<'_>) -> Self {
        let policy = Arc::clone(&self.policy);
        let mut front = Vec::new();
        for experiment in policy.experiments.iter().filter(|experiment| experiment.kind != ExperimentKind::Shadow) {
            if let Some((arm, told)) = experiment.assign(&self.tenant, &self.role, request) {
                front.extend(arm.layer.clone());
                self.arms.push(told);
            }
        }
        if !front.is_empty() {
            self.layers.splice(0..0, front);
            self.rules = stack(&self.layers);
        }
        self
    }

    /// What the request is also to be decided by, without being served by it.
    pub fn shadows(&self, request: &Assignment<'_>) -> Vec<(ExperimentArm, Self)> {
        let shadows = self.policy.experiments.iter().filter(|experiment| experiment.kind == ExperimentKind::Shadow);
        let assigned = shadows.filter_map(|experiment| experiment.assign(&self.tenant, &self.role, request));
        assigned
            .map(|(arm, told)| {
                let mut shadow = self.clone();
                shadow.layers.splice(0..0, arm.layer.clone());
                shadow.rules = stack(&shadow.layers);
                (told, shadow)
            })
            .collect()
    }

    /// Every choice of arms that the request could have got, each arm with its probability; one without any where no
    /// experiment takes it.
    pub fn arm_choices(&self, request: &Assignment<'_>) -> Vec<Vec<ExperimentArm>> {
        let serving = self.policy.experiments.iter().filter(|experiment| experiment.kind != ExperimentKind::Shadow);
        serving.fold(vec![Vec::new()], |choices, experiment| {
            let arms = experiment.shares(&self.tenant, &self.role, request);
            if arms.is_empty() || choices.len() * arms.len() > MAX_ARM_CHOICES {
                return choices;
            }
            let with = |choice: &Vec<ExperimentArm>| {
                let choice = choice.clone();
                arms.clone().into_iter().map(move |arm| [choice.clone(), vec![arm]].concat())
            };
            choices.iter().flat_map(with).collect()
        })
    }

    /// The scope with the arms of `told`, whatever the request would get now; an arm that is not in the policy any more
    /// is left out.
    #[must_use]
    pub fn with_arms(mut self, told: impl IntoIterator<Item = ExperimentArm>) -> Self {
        let policy = Arc::clone(&self.policy);
        let mut front = Vec::new();
        for told in told {
            let experiment = policy.experiments.iter().find(|experiment| experiment.name == told.experiment);
            let arm = experiment.and_then(|experiment| experiment.arms.iter().find(|arm| arm.name == told.arm));
            if let Some(arm) = arm {
                front.extend(arm.layer.clone());
                self.arms.push(told);
            }
        }
        if !front.is_empty() {
            self.layers.splice(0..0, front);
            self.rules = stack(&self.layers);
        }
        self
    }

    /// The arms that apply.
    pub fn arms(&self) -> &[ExperimentArm] {
        &self.arms
    }

    /// What applies, by where it is written, the most specific first.
    pub fn origins(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().map(|layer| layer.origin.as_str())
    }

    /// The rules that apply.
    pub fn rules(&self) -> &RuleStack {
        &self.rules
    }

    /// The policy behind it.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Whether the answer needs no classifier: the rules fixed enough, or a role or tenant forces the chain.
    pub fn decisive(&self, rules: &RuleOutcome) -> bool {
        rules.decisive() || self.forced_chain().is_some()
    }

    /// The chain that a role or tenant forces whatever the query says, and which of them does.
    pub(super) fn forced_chain(&self) -> Option<(Arc<str>, &str)> {
        self.find(|layer| layer.chain.as_ref().map(|chain| (Arc::clone(chain), layer.origin.as_str())))
    }

    /// The layers that apply, the most specific first.
    pub(super) fn layers(&self) -> impl DoubleEndedIterator<Item = &Layer> + ExactSizeIterator {
        self.layers.iter().map(|layer| &**layer)
    }

    /// The most specific layer's answer.
    pub(super) fn find<'a, T>(&'a self, ask: impl Fn(&'a Layer) -> Option<T>) -> Option<T> {
        self.layers().find_map(ask)
    }

    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.find(|layer| layer.chains.get(name))
    }

    pub(super) fn models(&self) -> &[Model] {
        &self.policy.models
    }

    pub(super) fn defaults(&self) -> &Defaults {
        &self.policy.defaults
    }

    /// The asked probability that the tier suffices; a layer's `by_intent` is stronger than its general value.
    pub(super) fn min_confidence(&self, intent: &str) -> Probability {
        let ask = |layer: &Layer| {
            let own = layer.thresholds.by_intent.get(intent).and_then(|thresholds| thresholds.min_confidence);
            own.or(layer.thresholds.min_confidence)
        };
        self.find(ask).unwrap_or(Probability::saturating(MIN_CONFIDENCE))
    }

    pub(super) fn min_intent_confidence(&self) -> Probability {
        self.find(|layer| layer.thresholds.min_intent_confidence)
            .unwrap_or(Probability::saturating(MIN_INTENT_CONFIDENCE))
    }

    pub(super) fn out_of_scope(&self) -> Probability {
        self.find(|layer| layer.thresholds.out_of_scope).unwrap_or(Probability::saturating(OUT_OF_SCOPE))
    }

    /// What the tenant may ask for and spend.
    pub fn limits(&self) -> LimitsSpec {
        self.layers().fold(LimitsSpec::default(), |own, layer| own.over(&layer.spec.limits))
    }

    /// How requests of one session hang together.
    pub fn sessions(&self) -> SessionsSpec {
        self.layers().fold(SessionsSpec::default(), |own, layer| own.over(&layer.spec.sessions))
    }

    /// The tenant's name where the policy has it, else nothing: what callers make up shares one account.
    pub fn account(&self) -> &str {
        if self.policy.tenants.contains_key(&self.tenant) { &self.tenant } else { "" }
    }

    /// Why `provider` may not be used, if it may not.
    pub(super) fn provider_refused(&self, provider: &str) -> Option<(ReasonCode, String)> {
        self.find(|layer| {
            if layer.disabled.contains(provider) {
                let text = format!("provider {provider} is disabled by {}", layer.origin);
                return Some((ReasonCode::ProviderDisabled, text));
            }
            let allowed = layer.allowed.as_ref().is_none_or(|allowed| allowed.contains(provider));
            (!allowed).then(|| {
                let text = format!("provider {provider} is not among those allowed by {}", layer.origin);
                (ReasonCode::ProviderNotAllowed, text)
            })
        })
    }

    /// Reasons that hold before anything is known of the query.
    pub(super) fn reasons(&self) -> impl Iterator<Item = Reason> {
        let standing = match self.standing {
            Standing::Known => None,
            Standing::Unknown => {
                Some((ReasonCode::UnknownTenant, "the tenant is not in the policy; the top level applies"))
            }
            Standing::Refused => Some((
                ReasonCode::TenantOverrideRefused,
                "the tenant's part of the policy has errors; the rest applies, less what the tenant forbids",
            )),
        };
        let standing = standing.map(|(code, text)| Reason::about(code, self.tenant.as_str(), text));
        let arms = self.arms.iter().map(|told| {
            let text = format!("experiment {} gives arm {}", told.experiment, told.arm);
            Reason::about(ReasonCode::ExperimentArm, &*told.experiment, text)
        });
        standing.into_iter().chain(arms)
    }
}

fn known_roles(known: &[String]) -> String {
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}
