//! What operators look at policies with: the effective document, the difference of two, and the explanation.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use crate::domain::{Requirements, Tier};
use crate::policy::{
    Answer, CandidateOutcome, DEFAULT_DOCUMENT, Policy, PolicyOptions, Signals, certain, changes, diff, effects,
    to_yaml,
};
use crate::rules::RuleOutcome;

use super::schema::EVERYTHING;
use super::{INTENTS, load, signals};

fn rewritten(policy: &Arc<Policy>) -> Arc<Policy> {
    load(&to_yaml(&serde_json::to_value(policy.spec()).unwrap()))
}

#[test]
fn a_document_survives_being_written_out() {
    for document in [DEFAULT_DOCUMENT, EVERYTHING] {
        let policy = load(document);
        let again = rewritten(&policy);
        assert_eq!(policy.spec(), again.spec());
        assert_eq!(changes(policy.spec(), again.spec()), []);
    }
}

#[test]
fn yaml_quotes_what_readers_could_take_for_something_else() {
    let value =
        json!({"a": "true", "b": "1.10", "c": "plain-name", "d": "x: y", "e": "", "f": "Nö \"q\"\n", "g": [], "on": 1});
    let text = to_yaml(&value);
    assert_eq!(
        text,
        "a: \"true\"\nb: \"1.10\"\nc: plain-name\nd: \"x: y\"\ne: \"\"\nf: \"Nö \\\"q\\\"\\n\"\ng: []\n\"on\": 1\n"
    );
}

/// The answer for every intent and tier.
fn answers(policy: &Arc<Policy>, tenant: &str, role: &str) -> Vec<String> {
    let scope = policy.scope(tenant, role).unwrap();
    let (rules, requirements) = (RuleOutcome::default(), Requirements::default());
    let cells = INTENTS.iter().flat_map(|intent| Tier::ALL.map(|tier| (intent, tier)));
    cells
        .map(|(intent, tier)| {
            let mut classification = certain(intent, tier);
            classification.tiers = [0.62, 0.3, 0.08];
            let resolved = scope.resolve(&signals(Some(&classification), &rules, &requirements));
            resolved.map_or_else(
                |none| none.chain,
                |found| {
                    let fallbacks: Vec<&str> =
                        found.fallbacks.iter().map(|fallback| &*fallback.candidate.model).collect();
                    let next = found.escalation.map(|next| (next.next.model.to_string(), next.hops_left));
                    format!("{} {} {} {fallbacks:?} {next:?}", found.tier, found.chain, found.selected.model)
                },
            )
        })
        .collect()
}

#[test]
fn the_effective_document_decides_as_the_overrides_do() {
    let cases = [
        (DEFAULT_DOCUMENT, "", "batch"),
        (DEFAULT_DOCUMENT, "", "code-reviewer"),
        (DEFAULT_DOCUMENT, "example-eu", ""),
        (DEFAULT_DOCUMENT, "example-eu", "batch"),
        (super::resolve::DOCUMENT, "acme", "careful"),
        (super::resolve::DOCUMENT, "acme", "own"),
        (super::resolve::DOCUMENT, "onlyb", "careful"),
        (super::resolve::DOCUMENT, "globex", "careful"),
    ];
    for (document, tenant, role) in cases {
        let policy = load(document);
        let effective = policy.effective(tenant, role).unwrap();
        assert!(effective.tenants.is_empty() && effective.roles.is_empty());
        let merged = load(&to_yaml(&serde_json::to_value(&effective).unwrap()));
        assert_eq!(answers(&policy, tenant, role), answers(&merged, "", ""), "{tenant}/{role}");
    }
}

#[test]
fn the_effective_rules_are_those_that_can_match() {
    let policy = load(&super::resolve::DOCUMENT.replace(
        "rules: []",
        "rules: [{name: a, priority: 1, when: {keywords: [x]}, then: {tier: simple}}, {name: b, when: {keywords: [y]}, then: {tier: simple}}]",
    ).replace("  plain: {}", "  plain: {rules: [{name: a, enabled: false, when: {keywords: [x]}, stop: true}, {name: c, when: {keywords: [z]}, stop: true}]}"));
    let names = |tenant: &str| -> Vec<String> {
        policy.effective(tenant, "").unwrap().base.rules.into_iter().map(|rule| rule.name).collect()
    };
    assert_eq!(names(""), ["a", "b"]);
    assert_eq!(names("plain"), ["c", "b"], "a is hidden, c is more specific");
}

#[test]
fn a_difference_is_told_by_path_and_by_effect() {
    let old = load(DEFAULT_DOCUMENT);
    let new = load(
        &DEFAULT_DOCUMENT
            .replace("anthropic: {enabled: true}", "anthropic: {enabled: false}")
            .replace("input_usd: 0.05", "input_usd: 0.06")
            .replace("routes:\n", "routes:\n  - {intent: chat, tier: simple, chain: general}\n")
            .replace("    priority: 90\n", "    priority: 91\n"),
    );
    let found = diff(&old, &new);
    let paths: Vec<&str> = found.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "models.gpt-5-nano.price_per_million_tokens.input_usd",
            "providers.anthropic.enabled",
            "routes[0]",
            "rules.device-command.priority"
        ]
    );
    let change = &found.changes[1];
    assert_eq!((change.from.clone(), change.to.clone()), (Some(json!(true)), Some(json!(false))));
    assert_eq!(found.changes[2].from, None);
    let model = |answer: &Answer| match answer {
        Answer::Model { model, .. } => model.clone(),
        other => panic!("{other:?}"),
    };
    // Whose first model of the chain was Anthropic's, and the new route.
    let code = found
        .effects
        .iter()
        .find(|effect| effect.intent == "code" && effect.tier == Tier::Simple && effect.role.is_empty());
    let code = code.unwrap();
    assert_eq!((model(&code.from), model(&code.to)), ("claude-haiku".to_owned(), "gpt-5-mini".to_owned()));
    assert_eq!(code.tenants, [""], "the European tenant has a chain of its own");
    let chat: Vec<_> = found.effects.iter().filter(|effect| effect.intent == "chat").collect();
    let simple = chat.iter().find(|effect| effect.tier == Tier::Simple && effect.tenants == [""]).unwrap();
    assert_eq!((model(&simple.from), model(&simple.to)), ("gemini-flash-lite".into(), "gpt-5-mini".into()));
    assert_eq!(diff(&old, &load(DEFAULT_DOCUMENT)), crate::policy::PolicyDiff::default());
}

#[test]
fn a_role_or_tenant_that_goes_is_an_effect() {
    let old = load(DEFAULT_DOCUMENT);
    let start = DEFAULT_DOCUMENT.find("  # Reviews code").unwrap();
    let end = DEFAULT_DOCUMENT.find("# A tenant is one").unwrap();
    let new = load(&DEFAULT_DOCUMENT.replace(DEFAULT_DOCUMENT.get(start..end).unwrap(), ""));
    let (found, truncated) = effects(&old, &new);
    assert!(!truncated);
    assert!(
        !found.is_empty() && found.iter().all(|effect| effect.role == "code-reviewer" && effect.to == Answer::Refused)
    );
}

#[test]
fn a_comparison_of_very_many_tenants_and_roles_ends() {
    let names = |what: &str| (0..3_000).map(|n| format!("  {what}{n}: {{}}\n")).collect::<Vec<_>>().concat();
    let start = DEFAULT_DOCUMENT.find("roles:\n").unwrap();
    let base = DEFAULT_DOCUMENT.get(..start).unwrap();
    let old = format!("{base}roles:\n{}tenants:\n{}", names("r"), names("t"));
    let new = old.replace("anthropic: {enabled: true}", "anthropic: {enabled: false}");
    let found = diff(&load(&old), &load(&new));
    assert!(found.truncated && !found.effects.is_empty() && found.changes.len() == 1);
}

#[test]
fn an_explanation_shows_every_filter() {
    let scope = load(super::resolve::DOCUMENT).scope("acme", "careful").unwrap();
    let (rules, classification) = (RuleOutcome::default(), certain("code", Tier::Simple));
    let requirements = Requirements { json_mode: true, max_cost_usd: Some(1e-9), ..Requirements::default() };
    let explanation = scope.explain(&signals(Some(&classification), &rules, &requirements));
    assert_eq!(
        explanation.layers,
        ["role careful of tenant acme", "tenant acme", "role careful", "the policy"],
        "the most specific first"
    );
    assert_eq!((explanation.chain.as_str(), explanation.intent.as_str()), ("cheap", "code"));
    assert_eq!(explanation.source, None, "nothing is left");
    let removed: Vec<Vec<&str>> = explanation
        .candidates
        .iter()
        .map(|candidate| {
            assert_eq!(candidate.outcome, CandidateOutcome::Removed);
            assert_eq!(candidate.filters.len(), 8);
            candidate.filters.iter().filter(|verdict| verdict.removes.is_some()).map(|verdict| verdict.filter).collect()
        })
        .collect();
    // base (b) and tiny (a), which the tenant's own role does not allow.
    assert_eq!(removed, [vec!["capabilities", "cost"], vec!["provider", "capabilities", "cost"]]);

    let any = Requirements::default();
    let explanation = scope.explain(&signals(Some(&classification), &rules, &any));
    let outcomes: Vec<(&str, CandidateOutcome)> =
        explanation.candidates.iter().map(|candidate| (candidate.model.as_str(), candidate.outcome)).collect();
    assert_eq!(outcomes, [("base", CandidateOutcome::Selected), ("tiny", CandidateOutcome::Removed)]);
    assert_eq!((explanation.intent.as_str(), explanation.tier), ("code", Tier::Simple));
}

proptest! {
    #[test]
    fn an_explanation_agrees_with_the_decision(
        intent in 0..INTENTS.len(), tier in 0..3_usize, tools in any::<bool>(), quality in prop::option::of(0.0..1.0_f64),
        tokens in 0..300_000_u32,
    ) {
        let scope = load(DEFAULT_DOCUMENT).scope("", "").unwrap();
        let classification = certain(INTENTS[intent], Tier::ALL[tier]);
        let (rules, requirements) = (RuleOutcome::default(), Requirements { tools, min_quality: quality, ..Requirements::default() });
        let signals = Signals { input_tokens: tokens, ..signals(Some(&classification), &rules, &requirements) };
        let explanation = scope.explain(&signals);
        let of = |outcome| explanation.candidates.iter().filter(move |c| c.outcome == outcome).map(|c| c.model.clone());
        match scope.resolve(&signals) {
            Ok(found) => {
                prop_assert_eq!(of(CandidateOutcome::Selected).collect::<Vec<_>>(), vec![found.selected.model.to_string()]);
                let fallbacks: Vec<String> = found.fallbacks.iter().map(|f| f.candidate.model.to_string()).collect();
                prop_assert_eq!(of(CandidateOutcome::Fallback).collect::<Vec<_>>(), fallbacks);
            }
            Err(none) => {
                prop_assert_eq!(explanation.candidates.len(), none.removed.len());
                prop_assert!(explanation.candidates.iter().all(|c| c.outcome == CandidateOutcome::Removed));
            }
        }
    }

    #[test]
    fn any_change_of_one_value_is_told(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        // Two words swapped: where the document is still valid and means something else, the difference says so.
        let mut words: Vec<&str> = EVERYTHING.split_inclusive([' ', '\n']).collect();
        let (from, to) = (from.index(words.len()), to.index(words.len()));
        words.swap(from, to);
        let old = load(EVERYTHING);
        if let Ok(new) = Policy::load(words.concat().as_bytes(), &PolicyOptions::default()) {
            prop_assert_eq!(changes(old.spec(), new.spec()).is_empty(), old.spec() == new.spec());
        }
    }
}
