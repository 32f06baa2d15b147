//! What holds for every policy that validates and all signals.

use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use crate::domain::{Classification, Distribution, Language, Probability, Reason, ReasonCode, Requirements, Tier};
use crate::policy::{NoCandidate, Policy, PolicyOptions, Resolution, Signals};
use crate::rules::{FixedBy, RuleOutcome};

use super::{INTENTS, intents};

const PROVIDERS: [&str; 3] = ["a", "b", "c"];
const REGIONS: [&str; 2] = ["eu", "us"];

/// A policy in parts, so that properties can change one.
#[derive(Clone, Debug)]
struct Draft {
    enabled: [bool; 3],
    models: Vec<DraftModel>,
    chains: Vec<Vec<usize>>,
    routes: Vec<(usize, usize, usize)>,
    min_confidence: f64,
    tenant_allows: Option<usize>,
    degraded_chain: Option<usize>,
}

#[derive(Clone, Debug)]
struct DraftModel {
    provider: usize,
    price: f64,
    window: u32,
    tools: bool,
    latency: Option<u32>,
    region: Option<usize>,
    ability: Option<f64>,
}

/// Signals in parts that own themselves.
#[derive(Clone, Debug)]
struct Evidence {
    classification: Option<Classification>,
    rules: RuleOutcome,
    degraded: bool,
    french: bool,
    requirements: Requirements,
    tokens: (u32, Option<u32>),
    tenant: bool,
}

const TIER_PATTERNS: [&str; 4] = ["\"*\"", "simple", "medium", "complex"];

impl Draft {
    fn document(&self) -> String {
        let mut text = String::from("schema: pointsman.policy/v1\nid: p\nversion: v\nproviders:\n");
        for (name, enabled) in PROVIDERS.iter().zip(self.enabled) {
            writeln!(text, "  {name}: {{enabled: {enabled}}}").unwrap();
        }
        text.push_str("models:\n");
        for (index, model) in self.models.iter().enumerate() {
            let DraftModel { provider, price, window, tools, latency, region, ability } = model;
            write!(text, "  m{index}: {{provider: {}, provider_model: x, ", PROVIDERS[*provider]).unwrap();
            write!(text, "price_per_million_tokens: {{input_usd: {price}, output_usd: {price}}}, ").unwrap();
            write!(text, "context_window_tokens: {window}").unwrap();
            if *tools {
                text.push_str(", capabilities: [tools]");
            }
            if let Some(latency) = latency {
                write!(text, ", typical_latency_ms: {latency}").unwrap();
            }
            if let Some(region) = region {
                write!(text, ", regions: [{}]", REGIONS[*region]).unwrap();
            }
            if let Some(ability) = ability {
                write!(text, ", ability: {ability}").unwrap();
            }
            text.push_str("}\n");
        }
        text.push_str("chains:\n");
        for (index, chain) in self.chains.iter().enumerate() {
            let mut models: Vec<String> = chain.iter().map(|m| format!("m{}", m % self.models.len())).collect();
            models.sort();
            models.dedup();
            writeln!(text, "  c{index}: [{}]", models.join(", ")).unwrap();
        }
        text.push_str("routes:\n");
        for (intent, tier, chain) in &self.routes {
            let (intent, tier) = (INTENTS[intent % INTENTS.len()], TIER_PATTERNS[tier % 4]);
            writeln!(text, "  - {{intent: {intent}, tier: {tier}, chain: c{}}}", chain % self.chains.len()).unwrap();
        }
        text.push_str("  - {intent: \"*\", tier: simple, chain: c0}\n  - {intent: \"*\", tier: \"*\", chain: c0}\n");
        writeln!(text, "thresholds: {{min_confidence: {}}}", self.min_confidence).unwrap();
        let mut ladder: Vec<usize> = (0..self.models.len()).filter(|m| self.models[*m].ability.is_some()).collect();
        ladder.sort_by(|a, b| self.models[*a].price.total_cmp(&self.models[*b].price));
        let mut strongest = f64::NEG_INFINITY;
        ladder.retain(|m| {
            let ability = self.models[*m].ability.unwrap();
            let stronger = ability > strongest;
            strongest = strongest.max(ability);
            stronger
        });
        let ladder: Vec<String> = ladder.iter().map(|m| format!("m{m}")).collect();
        writeln!(text, "escalation: {{ladder: [{}]}}", ladder.join(", ")).unwrap();
        if let Some(chain) = self.degraded_chain {
            writeln!(text, "defaults: {{degraded: {{chain: c{}}}}}", chain % self.chains.len()).unwrap();
        }
        if let Some(provider) = self.tenant_allows {
            let used = self.models[provider % self.models.len()].provider;
            writeln!(text, "tenants: {{acme: {{allowed_providers: [{}]}}}}", PROVIDERS[used]).unwrap();
        }
        text
    }

    fn load(&self) -> Arc<Policy> {
        let document = self.document();
        let options = PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() };
        Arc::new(Policy::load(document.as_bytes(), &options).unwrap_or_else(|e| panic!("{e}\n{document}")))
    }
}

impl Evidence {
    fn decide(&self, policy: &Arc<Policy>) -> Result<Resolution, NoCandidate> {
        let scope = policy.scope(if self.tenant { "acme" } else { "" }, "").unwrap();
        scope.resolve(&Signals {
            classification: self.classification.as_ref(),
            rules: &self.rules,
            language: self.french.then_some(Language("fra")),
            degraded: self.degraded,
            requirements: &self.requirements,
            input_tokens: self.tokens.0,
            output_tokens: self.tokens.1,
            sticky_key: "key",
        })
    }
}

fn draft() -> impl Strategy<Value = Draft> {
    let model = (
        0..3_usize,
        0.0..20.0_f64,
        1..200_000_u32,
        any::<bool>(),
        prop::option::of(1..10_000_u32),
        prop::option::of(0..2_usize),
        prop::option::of(-3.0..5.0_f64),
    )
        .prop_map(|(provider, price, window, tools, latency, region, ability)| DraftModel {
            provider,
            price,
            window,
            tools,
            latency,
            region,
            ability,
        });
    (
        any::<[bool; 3]>(),
        prop::collection::vec(model, 1..7),
        prop::collection::vec(prop::collection::vec(any::<usize>(), 1..5), 1..4),
        prop::collection::vec((0..14_usize, 0..4_usize, any::<usize>()), 0..5),
        0.0..=1.0_f64,
        prop::option::of(any::<usize>()),
        prop::option::of(any::<usize>()),
    )
        .prop_map(|(enabled, models, chains, routes, min_confidence, tenant_allows, degraded_chain)| Draft {
            enabled,
            models,
            chains,
            routes,
            min_confidence,
            tenant_allows,
            degraded_chain,
        })
}

fn normalised(raw: &[f32]) -> Vec<f32> {
    let sum: f32 = raw.iter().sum();
    raw.iter().map(|p| p / sum).collect()
}

fn classification() -> impl Strategy<Value = Classification> {
    let weights = |n: usize| prop::collection::vec(0.001_f32..1.0, n).prop_map(|raw| normalised(&raw));
    (weights(14), weights(3), 0.0..=1.0_f64, 0.0..=1.0_f64).prop_map(|(intent, tiers, difficulty, out)| {
        Classification {
            intent: Distribution::new(intents(), intent).unwrap(),
            difficulty: Probability::saturating(difficulty),
            tiers: [tiers[0], tiers[1], tiers[2]],
            tier_control: crate::domain::TierControl::default(),
            out_of_scope: Probability::saturating(out),
            tokens_used: 5,
            tokens_cut: 0,
        }
    })
}

fn outcome() -> impl Strategy<Value = RuleOutcome> {
    let by = |name: &'static str| FixedBy { value: Arc::<str>::from(name), rule: Arc::from("r") };
    let tier = || prop::sample::select(Tier::ALL.to_vec());
    (any::<[bool; 4]>(), tier(), tier(), 0..INTENTS.len()).prop_map(
        move |([intent, bounds, force, forbid], x, y, label)| {
            RuleOutcome {
                intent: intent.then(|| by(INTENTS[label])),
                floor: bounds.then(|| FixedBy { value: x.min(y), rule: Arc::from("r") }),
                cap: bounds.then(|| FixedBy { value: x.max(y), rule: Arc::from("r") }),
                // A chain that does not exist must not break anything either.
                force_chain: (force && bounds).then(|| by(if forbid { "gone" } else { "c0" })),
                forbid_chains: if forbid { vec![by("c0")] } else { vec![] },
                matched: vec![Arc::from("r")],
            }
        },
    )
}

fn requirements() -> impl Strategy<Value = Requirements> {
    (
        any::<[bool; 3]>(),
        prop::option::of(0..300_000_u32),
        prop::sample::subsequence(PROVIDERS.to_vec(), 0..=3),
        prop::sample::subsequence(REGIONS.to_vec(), 0..=2),
        prop::option::of(0.0..0.1_f64),
        prop::option::of(0..12_000_u32),
        prop::option::of(0.0..=1.0_f64),
    )
        .prop_map(|([tools, limits, places], context, providers, regions, cost, latency, quality)| Requirements {
            tools,
            context_tokens: context.filter(|_| limits),
            allowed_providers: if places { providers.into_iter().map(str::to_owned).collect() } else { vec![] },
            data_regions: if places { regions.into_iter().map(str::to_owned).collect() } else { vec![] },
            max_cost_usd: cost.filter(|_| limits),
            max_latency_ms: latency.filter(|_| !limits),
            min_quality: quality.filter(|_| !places),
            ..Requirements::default()
        })
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let tokens = (0..100_000_u32, prop::option::of(any::<u32>()));
    (prop::option::weighted(0.8, classification()), outcome(), requirements(), tokens, any::<[bool; 4]>()).prop_map(
        |(classification, rules, requirements, tokens, [degraded, french, tenant, plain])| Evidence {
            classification,
            rules: if plain { RuleOutcome::default() } else { rules },
            degraded: degraded && french,
            french,
            requirements,
            tokens,
            tenant,
        },
    )
}

/// Checks `found` against every requirement, from the draft and not from the compiled policy.
fn satisfies(model: &str, draft: &Draft, evidence: &Evidence) -> Result<(), String> {
    let index: usize = model.trim_start_matches('m').parse().unwrap();
    let model = &draft.models[index];
    let asked = &evidence.requirements;
    let provider = PROVIDERS[model.provider];
    let output = evidence.tokens.1.unwrap_or(512);
    let needed = asked.context_tokens.map_or(u64::from(evidence.tokens.0) + u64::from(output), u64::from);
    let cost = (f64::from(evidence.tokens.0) * model.price + f64::from(output) * model.price) / 1e6;
    let tenant_allows = draft.tenant_allows.map(|p| draft.models[p % draft.models.len()].provider);
    let checks = [
        ("enabled", draft.enabled[model.provider]),
        ("tools", !asked.tools || model.tools),
        ("context", u64::from(model.window) >= needed),
        ("provider", asked.allowed_providers.is_empty() || asked.allowed_providers.iter().any(|p| p == provider)),
        ("tenant", !evidence.tenant || tenant_allows.is_none_or(|allowed| allowed == model.provider)),
        (
            "region",
            asked.data_regions.is_empty()
                || model.region.is_some_and(|r| asked.data_regions.iter().any(|region| region == REGIONS[r])),
        ),
        ("cost", asked.max_cost_usd.is_none_or(|cap| cost <= cap * (1.0 + 1e-12))),
        ("latency", asked.max_latency_ms.is_none_or(|cap| model.latency.is_some_and(|latency| latency <= cap))),
    ];
    checks.iter().find(|(_, ok)| !ok).map_or(Ok(()), |(name, _)| Err(format!("m{index} breaks {name}")))
}

fn named(decision: &Result<Resolution, NoCandidate>) -> Vec<(String, String)> {
    let Ok(resolution) = decision else { return Vec::new() };
    let fallbacks = resolution.fallbacks.iter().map(|fallback| &fallback.candidate);
    let escalation = resolution.escalation.iter().map(|escalation| &escalation.next);
    std::iter::once(&resolution.selected)
        .chain(fallbacks)
        .chain(escalation)
        .map(|candidate| (candidate.model.to_string(), candidate.provider.to_string()))
        .collect()
}

fn about_provider(reasons: &[Reason], draft: &Draft, provider: usize) -> bool {
    reasons.iter().any(|reason| {
        let index: Option<usize> = reason.subject.strip_prefix('m').and_then(|index| index.parse().ok());
        index.is_some_and(|index| draft.models[index].provider == provider)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn total_deterministic_and_within_requirements(draft in draft(), evidence in evidence()) {
        let policy = draft.load();
        let decision = evidence.decide(&policy);
        prop_assert_eq!(&decision, &evidence.decide(&draft.load()), "the same bytes and signals, the same answer");
        for (model, _) in named(&decision) {
            prop_assert_eq!(satisfies(&model, &draft, &evidence), Ok(()));
        }
        match decision {
            Ok(resolution) => {
                let floor = evidence.requirements.min_quality;
                let p = resolution.selected.success_probability.map(Probability::value);
                prop_assert!(floor.zip(p).is_none_or(|(floor, p)| p >= floor));
                prop_assert!(resolution.tier >= evidence.rules.lowest() && resolution.tier <= evidence.rules.highest());
                let names = named(&Ok(resolution.clone()));
                let in_chain = 1 + resolution.fallbacks.len();
                let distinct: std::collections::HashSet<_> = names.iter().take(in_chain).collect();
                prop_assert_eq!(distinct.len(), in_chain);
                if let Some(escalation) = &resolution.escalation {
                    prop_assert!(escalation.hops_left >= 1);
                    prop_assert!(escalation.next.model != resolution.selected.model);
                }
            }
            Err(none) => {
                prop_assert!(!none.to_string().is_empty());
                prop_assert!(none.chain.is_empty() || !none.removed.is_empty());
            }
        }
    }

    #[test]
    fn disabling_a_provider_removes_it_everywhere_and_changes_nothing_else(
        draft in draft(), evidence in evidence(), provider in 0..3_usize,
    ) {
        let on = Draft { enabled: [true; 3], ..draft };
        let mut off = on.clone();
        off.enabled[provider] = false;
        let (before, after) = (evidence.decide(&on.load()), evidence.decide(&off.load()));
        prop_assert!(named(&after).iter().all(|(_, name)| name != PROVIDERS[provider]));
        let occurs = named(&before).iter().any(|(_, name)| name == PROVIDERS[provider]);
        let told = match &before {
            Ok(resolution) => about_provider(&resolution.reasons, &on, provider),
            Err(none) => about_provider(&none.removed, &on, provider),
        };
        // Further steps of the ladder are not named but counted.
        let hops = |decision: &Result<Resolution, NoCandidate>| {
            decision.as_ref().ok().and_then(|resolution| resolution.escalation.as_ref()).map(|e| e.hops_left)
        };
        if !occurs && !told && hops(&before) == hops(&after) {
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn asking_for_more_confidence_never_lowers_the_tier(
        draft in draft(), evidence in evidence(), more in 0.0..=1.0_f64,
    ) {
        let evidence = Evidence { requirements: Requirements::default(), tokens: (0, Some(0)), tenant: false, ..evidence };
        let careless = Draft { enabled: [true; 3], min_confidence: draft.min_confidence.min(more), ..draft.clone() };
        let careful = Draft { enabled: [true; 3], min_confidence: draft.min_confidence.max(more), ..draft };
        if let (Ok(low), Ok(high)) = (evidence.decide(&careless.load()), evidence.decide(&careful.load())) {
            prop_assert!(low.tier <= high.tier);
        }
    }

    #[test]
    fn a_low_intent_probability_always_gives_the_default_intent(draft in draft(), evidence in evidence()) {
        let evidence = Evidence { rules: RuleOutcome::default(), ..evidence };
        if let Ok(resolution) = evidence.decide(&draft.load()) {
            let classified = resolution.reasons.iter().any(|reason| reason.code == ReasonCode::IntentClassified);
            prop_assert!(!classified || resolution.intent_probability.value() >= 0.35);
            prop_assert!(classified || &*resolution.intent == "other");
        }
    }
}
