//! The examples of `docs/policy.md` are policies.

use std::collections::BTreeMap;

use crate::policy::{Policy, PolicyOptions, Severity, render_findings};

use super::intents;

const PAGE: &str = include_str!("../../../docs/policy.md");

/// The YAML blocks of the page.
fn examples() -> Vec<&'static str> {
    PAGE.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// The sections of a document by top-level key.
fn sections(document: &str) -> BTreeMap<String, String> {
    let mut sections = BTreeMap::<String, String>::new();
    let mut key = String::new();
    for line in document.lines() {
        if let Some((name, _)) = line.split_once(':').filter(|_| !line.starts_with([' ', '#', '-'])) {
            name.clone_into(&mut key);
        }
        let section = sections.entry(key.clone()).or_default();
        section.push_str(line);
        section.push('\n');
    }
    sections
}

#[test]
fn every_example_is_valid() {
    let options = PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() };
    let examples = examples();
    let base = sections(examples[0]);
    assert!(Policy::check(examples[0].as_bytes(), &options).is_empty(), "the first has no findings at all");
    assert!(examples.len() >= 6);
    for example in examples {
        let mut document = base.clone();
        document.extend(sections(example));
        let document: String = document.into_values().collect();
        let findings = Policy::check(document.as_bytes(), &options);
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        assert_eq!(errors, 0, "{example}\n{}", render_findings(&findings, "docs/policy.md"));
    }
}

#[test]
fn the_shown_finding_is_what_is_printed() {
    let example = examples()[0].replace("quick: [mini, haiku]", "quick: [mini, hakiu]");
    let findings = Policy::check(example.as_bytes(), &PolicyOptions::default());
    let printed = render_findings(&findings, "policy.yaml");
    assert!(PAGE.contains(&printed), "docs/policy.md does not show\n{printed}");
}
