//! The worked policies of `docs/policies/` decide as their comments say.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::{Requirements, Source, TextSignals, Tier};
use crate::policy::{
    Assignment, Finding, Policy, PolicyOptions, Resolution, Severity, Timestamp, certain, render_findings,
};
use crate::rules::{RuleInput, RuleOutcome};

use super::{intents, load, signals};

pub(super) struct Scenarios([&'static str; 3]);

pub(super) const ALL: Scenarios = Scenarios([SUPPORT, CONTENT, REVIEW]);

const SUPPORT: &str = include_str!("../../../docs/policies/customer-support.yaml");
const CONTENT: &str = include_str!("../../../docs/policies/content-platform.yaml");
const REVIEW: &str = include_str!("../../../docs/policies/code-review.yaml");

impl Scenarios {
    /// All of them, parted as YAML parts documents.
    pub(super) fn concat_documents(&self) -> String {
        self.0.join("\n---\n")
    }
}

/// One request, most of it at its default.
#[derive(Clone, Copy, Default)]
struct Ask<'a> {
    text: &'a str,
    intent: &'a str,
    tier: Option<Tier>,
    tenant: &'a str,
    role: &'a str,
    metadata: &'a [(&'a str, &'a str)],
    now: &'a str,
}

impl Ask<'_> {
    fn of(self, policy: &Arc<Policy>) -> Resolution {
        let metadata: BTreeMap<String, String> =
            self.metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let now_ms = if self.now.is_empty() { 0 } else { Timestamp::try_from(self.now.to_owned()).unwrap().0 };
        let scope = policy.scope(self.tenant, self.role).unwrap().with_experiments(&Assignment {
            session: None,
            request_id: "r",
            metadata: &metadata,
            now_ms,
        });
        let words = self.text.split_whitespace().count();
        let text_signals = TextSignals { bytes: self.text.len(), words, lines: 1, ..TextSignals::default() };
        let rules: RuleOutcome = scope.rules().evaluate(&RuleInput {
            text: self.text,
            signals: &text_signals,
            metadata: &metadata,
            tenant: self.tenant,
            role: self.role,
        });
        let intent = if self.intent.is_empty() { "other" } else { self.intent };
        let classification = certain(intent, self.tier.unwrap_or(Tier::Simple));
        let consulted = (!scope.decisive(&rules)).then_some(&classification);
        let requirements = Requirements::default();
        scope.resolve(&signals(consulted, &rules, &requirements)).unwrap()
    }
}

fn model(policy: &Arc<Policy>, ask: Ask<'_>) -> String {
    ask.of(policy).selected.model.to_string()
}

#[test]
fn they_have_no_errors_and_only_the_warnings_that_are_meant() {
    for (document, meant) in ALL.0.into_iter().zip([0, 0, 5]) {
        let options = PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() };
        let findings = Policy::check(document.as_bytes(), &options);
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        assert_eq!(errors, 0, "{}", render_findings(&findings, "policy"));
        // The bank's chains have one provider because the bank wants it so.
        let other: Vec<&Finding> =
            findings.iter().filter(|finding| !finding.path.starts_with("tenants.bank")).collect();
        assert!(other.is_empty(), "{other:?}");
        assert!(findings.len() >= meant, "{findings:?}");
    }
}

#[test]
fn support_knows_the_frequent_the_hard_and_who_wants_a_person() {
    let policy = load(SUPPORT);
    let ask = Ask { intent: "closed_qa", ..Ask::default() };
    let cases = [
        (Ask { text: "When do you open on Sundays?", ..ask }, "faq"),
        (Ask { text: "My order came twice, what now?", tier: Some(Tier::Medium), ..ask }, "agent"),
        (Ask { text: "Why does sync fail after I merge two accounts?", tier: Some(Tier::Complex), ..ask }, "expert"),
        (Ask { text: "Can I have a refund?", ..ask }, "expert"),
        (Ask { text: "I want to talk to a human.", ..ask }, "human"),
        (Ask { text: "Please transfer me to your manager", ..ask }, "human"),
        (Ask { text: "Is there a live agent?", ..ask }, "human"),
        (Ask { text: "The agent's answer was useful, thanks", ..ask }, "faq"),
        (Ask { text: "where is it", metadata: &[("topic", "delivery-status")], ..ask }, "faq"),
        (Ask { text: "Why does sync fail?", tier: Some(Tier::Complex), tenant: "premium", ..ask }, "human"),
    ];
    for (case, expected) in cases {
        assert_eq!(model(&policy, case), expected, "{}", case.text);
    }
    let person = Ask { text: "let me speak to someone", ..ask }.of(&policy);
    assert_eq!((person.source, person.selected.access_path), (Source::Rule, "direct"), "the classifier need not run");
    let faq = Ask { text: "When do you open?", ..ask }.of(&policy);
    assert_eq!(&*faq.escalation.unwrap().next.model, "agent");
    // After hours one flag hands everything to the strong model.
    let closed = load(&SUPPORT.replace("desk: {enabled: true}", "desk: {enabled: false}"));
    assert_eq!(model(&closed, Ask { text: "I want to talk to a human.", ..ask }), "expert");
}

#[test]
fn content_is_as_good_as_what_it_is_for() {
    let policy = load(CONTENT);
    let ask = Ask { text: "Write about the sea", intent: "creative_writing", ..Ask::default() };
    let (draft, publish): (&[_], &[_]) = (&[("stage", "draft")], &[("stage", "publish")]);
    let (medium, complex) = (Some(Tier::Medium), Some(Tier::Complex));
    let cases = [
        (ask, "drafter"),
        (Ask { metadata: draft, tier: complex, ..ask }, "writer"),
        (Ask { metadata: publish, ..ask }, "writer"),
        (Ask { metadata: publish, tier: complex, ..ask }, "editor"),
        (Ask { intent: "translation", tier: medium, ..ask }, "translator"),
        (Ask { intent: "translation", tier: complex, ..ask }, "editor"),
        (Ask { text: "Give me a headline for this story", intent: "other", ..ask }, "drafter"),
        (Ask { tenant: "magazine-eu", ..ask }, "new-drafter"),
        (Ask { tenant: "magazine-eu", tier: complex, ..ask }, "editor"),
    ];
    for (index, (case, expected)) in cases.into_iter().enumerate() {
        assert_eq!(model(&policy, case), expected, "case {index}");
    }
    let options = PolicyOptions { intents: Some(intents()), environment: Some("development".into()) };
    let development = Arc::new(Policy::load(CONTENT.as_bytes(), &options).unwrap());
    assert_eq!(model(&development, Ask { tier: complex, ..ask }), "drafter");
    assert!(Ask { role: "archive", ..ask }.of(&policy).escalation.is_none());

    let on_new = |now: &str| {
        let served = (0..400).filter(|author| {
            let author = author.to_string();
            model(&policy, Ask { metadata: &[("author", &author)], now, ..ask }) == "new-drafter"
        });
        served.count()
    };
    assert_eq!(on_new("2026-11-30T00:00:00Z"), 0);
    assert!((5..40).contains(&on_new("2026-12-01T08:00:00Z")), "5 % of 400 authors");
    assert!((160..240).contains(&on_new("2027-01-01T00:00:00Z")), "half of them");
}

#[test]
fn every_reviewer_has_its_model_and_fallbacks() {
    let policy = load(REVIEW);
    let chain = |ask: Ask<'_>| -> Vec<String> {
        let found = ask.of(&policy);
        std::iter::once(found.selected)
            .chain(found.fallbacks.into_iter().map(|fallback| fallback.candidate))
            .map(|c| c.model.to_string())
            .collect()
    };
    let ask = Ask { text: "Review this change", intent: "code", ..Ask::default() };
    let cases: [(&str, &[&str], &str); 7] = [
        ("security-reviewer", &["deep", "reasoner", "wide"], ""),
        ("concurrency-reviewer", &["reasoner", "deep", "wide"], "deep"),
        ("style-reviewer", &["quick-spare", "quick"], ""),
        ("test-reviewer", &["quick", "solid", "wide"], "reasoner"),
        ("architecture-reviewer", &["wide", "reasoner"], "reasoner"),
        ("general-reviewer", &["quick", "quick-spare"], "reasoner"),
        ("", &["quick", "quick-spare"], "reasoner"),
    ];
    for (role, models, next) in cases {
        let ask = Ask { role, ..ask };
        assert_eq!(chain(ask), models, "{role}");
        let escalation = ask.of(&policy).escalation.map(|next| next.next.model.to_string()).unwrap_or_default();
        assert_eq!(escalation, next, "{role}");
        let own = !matches!(role, "" | "general-reviewer");
        assert_eq!(ask.of(&policy).source == Source::Override, own, "{role}");
    }
    // The general reviewer goes by the change.
    let general = Ask { role: "general-reviewer", ..ask };
    assert_eq!(model(&policy, Ask { tier: Some(Tier::Complex), ..general }), "solid");
    assert_eq!(model(&policy, Ask { metadata: &[("area", "auth")], ..general }), "solid");
    assert_eq!(model(&policy, Ask { metadata: &[("path-kind", "lockfile")], ..general }), "quick-spare");
    for role in policy.spec().roles.keys() {
        for provider in ["anthropic", "google", "openai"] {
            let off =
                REVIEW.replace(&format!("{provider}: {{enabled: true}}"), &format!("{provider}: {{enabled: false}}"));
            let left = Ask { role, ..ask }.of(&load(&off));
            assert_ne!(&*left.selected.provider, provider, "{role}");
        }
        let bank = Ask { role, tenant: "bank", ..ask }.of(&policy);
        assert_eq!(&*bank.selected.provider, "openai", "{role}");
    }
}
