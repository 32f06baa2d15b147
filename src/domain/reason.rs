//! Why a decision is what it is: stable codes with text.

use serde::{Serialize, Serializer};

/// One reason behind a decision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// Stable; scripts and dashboards may depend on it.
    pub code: ReasonCode,
    /// For people; may change between releases.
    pub text: String,
    /// What it is about: a rule, a model, a chain. Empty: nothing in particular.
    pub subject: String,
}

macro_rules! reason_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// The stable codes. `docs/reasons.md` lists them; a test compares the two.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum ReasonCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ReasonCode {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code on the wire and in logs.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

reason_codes! {
    /// A policy rule matched and had an effect.
    RuleMatched = "RULE_MATCHED",
    /// The classifier's most probable intent was taken.
    IntentClassified = "INTENT_CLASSIFIED",
    /// The classifier's intent was too uncertain; the policy's default was taken.
    IntentLowConfidence = "INTENT_LOW_CONFIDENCE",
    /// The query looks like nothing the classifier was trained on.
    OutOfScope = "OUT_OF_SCOPE",
    /// The language is not among those the policy says the classifier understands.
    UnsupportedLanguage = "UNSUPPORTED_LANGUAGE",
    /// The tier is the lowest that reaches the policy's `min_confidence`.
    TierRiskControlled = "TIER_RISK_CONTROLLED",
    /// A rule raised the tier.
    TierRaised = "TIER_RAISED",
    /// A rule capped the tier.
    TierCapped = "TIER_CAPPED",
    /// The classifier could not be trusted or consulted; the tier is the policy's default.
    TierDefault = "TIER_DEFAULT",
    /// A chain was chosen by the policy's routes.
    RouteMatched = "ROUTE_MATCHED",
    /// The classifier could not be trusted or consulted; the chain is the policy's default.
    ChainDefault = "CHAIN_DEFAULT",
    /// A rule, role or tenant forces the chain.
    ChainForced = "CHAIN_FORCED",
    /// A rule forbids the chain the routes had chosen.
    ChainForbidden = "CHAIN_FORBIDDEN",
    /// The tenant is not in the policy; the stated default was applied.
    UnknownTenant = "UNKNOWN_TENANT",
    /// The tenant's part of the policy has errors and is not applied, less what it forbids.
    TenantOverrideRefused = "TENANT_OVERRIDE_REFUSED",
    /// An experiment gives the request this arm.
    ExperimentArm = "EXPERIMENT_ARM",
    /// A candidate's provider is disabled.
    ProviderDisabled = "PROVIDER_DISABLED",
    /// A candidate's provider is not among the allowed ones.
    ProviderNotAllowed = "PROVIDER_NOT_ALLOWED",
    /// A candidate lacks a required capability.
    CapabilityMissing = "CAPABILITY_MISSING",
    /// A candidate is offered in none of the required regions.
    RegionMismatch = "REGION_MISMATCH",
    /// A candidate's context window is too small.
    ContextTooSmall = "CONTEXT_TOO_SMALL",
    /// A candidate would cost more than allowed.
    CostCapExceeded = "COST_CAP_EXCEEDED",
    /// A candidate is typically slower than allowed.
    LatencyCapExceeded = "LATENCY_CAP_EXCEEDED",
    /// A candidate's P(success) is below the required quality.
    QualityBelowFloor = "QUALITY_BELOW_FLOOR",
    /// The first usable candidate of the chain.
    FirstUsable = "FIRST_USABLE",
    /// A later usable candidate of the chain: call it when the ones before are unavailable.
    NextInChain = "NEXT_IN_CHAIN",
    /// Asking the weaker model first would save nothing; the stronger step is called at once.
    FalseEconomy = "FALSE_ECONOMY",
    /// The model before was unavailable; this one takes its place.
    FallenBack = "FALLEN_BACK",
    /// The answer before was not good enough; this is the next stronger step.
    Escalated = "ESCALATED",
    /// A candidate would bring the cascade over its budget.
    CascadeBudgetSpent = "CASCADE_BUDGET_SPENT",
    /// The policy changed since the cascade began; the new one decides.
    PolicyChanged = "POLICY_CHANGED",
    /// The classifier changed since the cascade began; its signals are still those of the old one.
    ClassifierChanged = "CLASSIFIER_CHANGED",
    /// The continuation would be longer than allowed; the decision has none.
    ContinuationTooLarge = "CONTINUATION_TOO_LARGE",
    /// The policy asks several candidates at once.
    FanOut = "FAN_OUT",
    /// The signals came from the decision cache.
    Cached = "CACHED",
    /// The classifier was not consulted; rules, features and the safe default answered.
    Degraded = "DEGRADED",
    /// The policy's source has given nothing usable since the start; a copy or the embedded default stands in.
    PolicyStandIn = "POLICY_STAND_IN",
    /// The policy's source has not confirmed it for longer than allowed.
    PolicyStale = "POLICY_STALE",
    /// The text is longer than the encoder reads; the rest was cut.
    InputTruncated = "INPUT_TRUNCATED",
}

// === impl Reason ===

impl Reason {
    /// A reason about nothing in particular.
    pub fn new(code: ReasonCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), subject: String::new() }
    }

    /// A reason about `subject`.
    pub fn about(code: ReasonCode, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), subject: subject.into() }
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented() {
        let documented = include_str!("../../docs/reasons.md");
        for code in ReasonCode::ALL {
            assert!(
                documented.contains(&format!("`{}`", code.as_str())),
                "{} is not in docs/reasons.md",
                code.as_str()
            );
        }
        let rows = documented.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, ReasonCode::ALL.len(), "docs/reasons.md lists a code that does not exist");
    }
}
