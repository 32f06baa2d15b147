//! The policies of the workload, and a plain model of what they say: written down here, not asked of the service.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// A model of the documents: name, provider, ability, price. In the ladder's order.
pub(super) const MODELS: [(&str, &str, f64, f64); 4] =
    [("ant", "acme", 0.5, 1.0), ("bee", "beta", 1.5, 2.0), ("cat", "gamma", 2.5, 4.0), ("dog", "acme", 3.5, 8.0)];
pub(super) const PROVIDERS: [&str; 3] = ["acme", "beta", "gamma"];
/// Everybody; one that may ask two providers only; one with a budget; one that the policy does not have.
pub(super) const TENANTS: [&str; 5] = ["", "plain", "walled", "thrifty", "stranger"];
pub(super) const WALLED_TO: [&str; 2] = ["beta", "gamma"];
pub(super) const THRESHOLD: f64 = 0.7;
/// Tokens of every answer; with a price of nothing for input, an answer costs a thousandth of the model's price.
pub(super) const OUTPUT_TOKENS: u32 = 1_000;
pub(super) const OPENS_AFTER: u32 = 3;
pub(super) const CLOSES_AFTER: u32 = 2;
pub(super) const PROBE_AFTER_MS: u64 = 150;
pub(super) const PROBE_TIMEOUT_MS: u64 = 400;
/// Retries that a tenant may have at once (docs/health.md).
pub(super) const RETRY_BURST: f64 = 10.0;

/// What is the same in all documents of a seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) thrifty_usd: f64,
    /// Retries per first attempt; `None`: as many as one likes.
    pub(super) retries: Option<f64>,
}

/// A document.
#[derive(Clone, Debug)]
pub(super) struct Doc {
    pub(super) version: String,
    /// Told by every `provider_model`.
    pub(super) number: usize,
    pub(super) off: BTreeSet<&'static str>,
    /// Indices into [`MODELS`], by tier.
    pub(super) chains: [Vec<usize>; 3],
    pub(super) max_hops: u32,
}

// === impl Doc ===

impl Doc {
    pub(super) fn text(&self, terms: Terms) -> String {
        let Self { version, number, .. } = self;
        let mut text = format!("schema: pointsman.policy/v1\nid: model\nversion: \"{version}\"\nproviders:\n");
        for provider in PROVIDERS {
            writeln!(text, "  {provider}: {{enabled: {}}}", !self.off.contains(provider)).unwrap();
        }
        text += "models:\n";
        for (name, provider, ability, price) in MODELS {
            writeln!(
                text,
                "  {name}: {{provider: {provider}, provider_model: {name}-{number}, context_window_tokens: 100000, \
                 ability: {ability}, price_per_million_tokens: {{input_usd: 0, output_usd: {price}}}}}"
            )
            .unwrap();
        }
        text += "chains:\n";
        for (tier, chain) in self.chains.iter().enumerate() {
            let names: Vec<&str> = chain.iter().map(|model| MODELS[*model].0).collect();
            writeln!(text, "  c{tier}: [{}]", names.join(", ")).unwrap();
        }
        text += "routes:\n";
        for (tier, name) in ["simple", "medium", "\"*\""].iter().enumerate() {
            writeln!(text, "  - {{intent: \"*\", tier: {name}, chain: c{tier}}}").unwrap();
        }
        let (share, least) = terms.retries.map_or((1.0, 100_000.0), |share| (share, 0.0));
        write!(
            text,
            "rules:
  - {{name: zebra, when: {{keywords: [zebra]}}, then: {{intent: code, tier: complex}}}}
thresholds: {{min_confidence: 0.8, min_intent_confidence: 0, out_of_scope: 1}}
escalation: {{ladder: [ant, bee, cat, dog], max_hops: {}, score_threshold: {THRESHOLD}}}
defaults: {{supported_languages: [], degraded: {{tier: medium}}}}
health:
  model: {{consecutive_failures: {OPENS_AFTER}, min_outcomes: 1000000, probe_after_ms: {PROBE_AFTER_MS}, \
             probe_timeout_ms: {PROBE_TIMEOUT_MS}, close_after: {CLOSES_AFTER}}}
  provider: {{consecutive_failures: 1000000, min_outcomes: 1000000}}
traffic: {{fallback_share: {share}, escalation_share: {share}, retry_min_per_second: {least}}}
tenants:
  plain: {{thresholds: {{min_confidence: 0.8}}}}
  walled: {{allowed_providers: [{}]}}
  thrifty: {{limits: {{hard_budget_usd: {}, budget_window_s: 2678400}}}}
",
            self.max_hops,
            WALLED_TO.join(", "),
            terms.thrifty_usd,
        )
        .unwrap();
        text
    }

    /// What may be asked for a query of `tier`, in order, whatever the moment.
    pub(super) fn chain(&self, tier: usize, tenant: &str) -> Vec<usize> {
        self.chains[tier].iter().copied().filter(|model| self.offers(*model, tenant)).collect()
    }

    pub(super) fn offers(&self, model: usize, tenant: &str) -> bool {
        let provider = MODELS[model].1;
        !self.off.contains(provider) && (tenant != "walled" || WALLED_TO.contains(&provider))
    }
}

/// Whoever the policy does not know has one account with those who do not say.
pub(super) fn account(tenant: &str) -> &str {
    if tenant == "stranger" { "" } else { tenant }
}

pub(super) const TIERS: [&str; 3] = ["simple", "medium", "complex"];

pub(super) fn model(name: &str) -> Option<usize> {
    MODELS.iter().position(|known| known.0 == name)
}

pub(super) fn cost_usd(model: usize) -> f64 {
    MODELS[model].3 * f64::from(OUTPUT_TOKENS) / 1e6
}

pub(super) fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// A query whose tier is known: by a rule, or by its number of words, which the engine goes by.
pub(super) fn query(words: usize, ruled: bool) -> String {
    const WORDS: [&str; 7] = ["river", "stone", "bridge", "garden", "window", "silver", "morning"];
    let mut text: Vec<&str> = (0..words).map(|i| WORDS[(i * 3 + words) % WORDS.len()]).collect();
    if ruled {
        text.push("zebra");
    }
    text.join(" ")
}

/// The tier of [`query`]; an input has two word pieces more than the text has words.
pub(super) fn tier_of(words: usize, ruled: bool) -> usize {
    if ruled { 2 } else { (words + 2) % 3 }
}
