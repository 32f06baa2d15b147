//! Tests of the whole path from a document to a decision, and what they share.

mod default_document;
mod documentation;
mod edit;
mod experiments;
mod fan_out;
mod findings;
mod guard;
mod properties;
mod resolve;
mod scenarios;
mod schema;
mod tenants;
mod tools;

use std::sync::Arc;

use crate::domain::{Classification, Distribution, Probability, Requirements};
use crate::rules::RuleOutcome;

use super::{Policy, PolicyOptions, Signals};

/// The intents of the default model.
const INTENTS: [&str; 14] = [
    "open_qa",
    "closed_qa",
    "summarization",
    "extraction",
    "classification",
    "rewrite",
    "translation",
    "code",
    "math",
    "reasoning",
    "creative_writing",
    "brainstorming",
    "chat",
    "other",
];

fn intents() -> Arc<[Arc<str>]> {
    INTENTS.iter().map(|name| Arc::from(*name)).collect()
}

fn load(document: &str) -> Arc<Policy> {
    let options = PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() };
    match Policy::load(document.as_bytes(), &options) {
        Ok(policy) => Arc::new(policy),
        Err(invalid) => panic!("{}", super::render_findings(&invalid.findings, "test")),
    }
}

/// `intent` with 0.9, the rest spread evenly.
fn classification(intent: &str, tiers: [f32; 3], difficulty: f64) -> Classification {
    let rest = 0.1 / (INTENTS.len() - 1) as f32;
    let probabilities = INTENTS.iter().map(|name| if *name == intent { 0.9 } else { rest }).collect();
    Classification {
        intent: Distribution::new(intents(), probabilities).unwrap(),
        difficulty: Probability::new(difficulty).unwrap(),
        tiers,
        tier_control: crate::domain::TierControl::default(),
        out_of_scope: Probability::ZERO,
        tokens_used: 12,
        tokens_cut: 0,
    }
}

fn signals<'a>(
    classification: Option<&'a Classification>,
    rules: &'a RuleOutcome,
    requirements: &'a Requirements,
) -> Signals<'a> {
    Signals {
        classification,
        rules,
        language: None,
        degraded: false,
        requirements,
        input_tokens: 100,
        output_tokens: None,
        sticky_key: "session-1",
    }
}
