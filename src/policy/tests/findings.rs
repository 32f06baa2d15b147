//! Every finding has its code, path and line; all of a document's are told at once.

use proptest::prelude::*;

use crate::policy::{DEFAULT_DOCUMENT, Finding, FindingCode, MAX_DOCUMENT_BYTES, Policy, PolicyOptions, Severity};

use super::intents;

/// A small valid document to break in one place at a time.
const VALID: &str = r#"schema: pointsman.policy/v1
id: test
version: "1"
providers:
  a: {}
  b: {enabled: true}
models:
  weak: {provider: a, provider_model: w, price_per_million_tokens: {input_usd: 1, output_usd: 2}, context_window_tokens: 8000, ability: 0}
  mid: {provider: b, provider_model: m, price_per_million_tokens: {input_usd: 2, output_usd: 4}, context_window_tokens: 8000, ability: 1}
  strong: {provider: a, provider_model: s, price_per_million_tokens: {input_usd: 5, output_usd: 9}, context_window_tokens: 8000, ability: 2}
chains:
  cheap: [weak, mid]
  best: [strong, mid]
routes:
  - {intent: code, tier: complex, chain: best}
  - {intent: "*", tier: "*", chain: cheap}
rules:
  - {name: first, priority: 2, when: {keywords: [hi]}, then: {intent: chat}}
  - {name: second, priority: 1, when: {regex: "x+"}, then: {tier: simple}}
escalation: {ladder: [weak, mid, strong]}
roles:
  helper: {thresholds: {min_confidence: 0.5}}
tenants:
  acme: {chains: {best: [mid, strong]}}
"#;

fn check(document: &str) -> Vec<Finding> {
    Policy::check(document.as_bytes(), &PolicyOptions { intents: Some(intents()), ..PolicyOptions::default() })
}

/// Each finding as `CODE path line`.
fn brief(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|f| format!("{} {} {}", f.code.as_str(), f.path, f.line)).collect()
}

#[test]
fn a_valid_document_has_none() {
    assert_eq!(brief(&check(VALID)), Vec::<String>::new());
}

#[test]
fn each_mistake_has_its_code_path_and_line() {
    // What to replace, with what, and what is found.
    let cases: &[(&str, &str, &[&str])] = &[
        ("cheap: [weak, mid]", "cheap: [weak, mdi]", &["UNKNOWN_MODEL chains.cheap[1] 12"]),
        ("cheap: [weak, mid]", "cheap: []", &["EMPTY_CHAIN chains.cheap 12"]),
        ("cheap: [weak, mid]", "cheap: [weak, mid, weak]", &["DUPLICATE_MODEL chains.cheap[2] 12"]),
        ("cheap: [weak, mid]", "cheap: {a: b}", &["INVALID_VALUE chains.cheap 12"]),
        (
            "tier: complex, chain: best",
            "tier: complex, chain: bets",
            &["UNUSED_CHAIN chains.best 13", "UNKNOWN_CHAIN routes[0].chain 15"],
        ),
        ("intent: code, tier", "intent: coed, tier", &["UNKNOWN_INTENT routes[0].intent 15"]),
        ("tier: complex", "tier: hard", &["INVALID_VALUE routes[0].tier 15"]),
        ("then: {intent: chat}", "then: {intent: chatter}", &["UNKNOWN_INTENT rules[0].then.intent 18"]),
        ("{intent: \"*\", tier: \"*\",", "{intent: \"*\", tier: simple,", &["NO_DEFAULT_ROUTE routes 14"]),
        (
            "[weak, mid, strong]",
            "[weak, mid, weak]",
            &[
                "LADDER_CYCLE escalation.ladder[2] 20",
                "ESCALATION_TO_WEAKER escalation.ladder[2] 20",
                "ESCALATION_TO_CHEAPER escalation.ladder[2] 20",
            ],
        ),
        (
            "output_usd: 9}, context_window_tokens: 8000, ability: 2",
            "output_usd: 9}, context_window_tokens: 8000, ability: 0.5",
            &["ESCALATION_TO_WEAKER escalation.ladder[2] 20"],
        ),
        (
            "{input_usd: 5, output_usd: 9}",
            "{input_usd: 1, output_usd: 1}",
            &["ESCALATION_TO_CHEAPER escalation.ladder[2] 20"],
        ),
        (
            "{input_usd: 5, output_usd: 9}",
            "{input_usd: -5, output_usd: 90}",
            &["OUT_OF_RANGE models.strong.price_per_million_tokens.input_usd 10"],
        ),
        (
            "{input_usd: 5, output_usd: 9}",
            "{input_usd: .inf, output_usd: 9}",
            &["INVALID_VALUE models.strong.price_per_million_tokens.input_usd 10"],
        ),
        (
            "{input_usd: 5, output_usd: 9}",
            "{input_usd: 5}",
            &["MISSING_FIELD models.strong.price_per_million_tokens 10"],
        ),
        ("ability: 0}", "ability: 0, endpoints: {x: 0.5, y: 0.6}}", &["BAD_WEIGHTS models.weak.endpoints 8"]),
        ("ability: 0}", "ability: 0, endpoints: {x: 1.5, y: -0.5}}", &["BAD_WEIGHTS models.weak.endpoints.y 8"]),
        ("ability: 0}", "ability: 0, capabilities: [tool]}", &["INVALID_VALUE models.weak.capabilities[0] 8"]),
        ("ability: 0}", "abillity: 0}", &["UNKNOWN_FIELD models.weak.abillity 8"]),
        ("regex: \"x+\"", "regex: \"x(\"", &["BAD_REGEX rules[1].when.regex 19"]),
        ("regex: \"x+\"", "regex: \"(x{1000}){1000}\"", &["BAD_REGEX rules[1].when.regex 19"]),
        ("regex: \"x+\"", "regexp: \"x+\"", &["BAD_RULE rules[1].when 19", "UNKNOWN_FIELD rules[1].when.regexp 19"]),
        ("name: second", "name: first", &["DUPLICATE_RULE rules[1].name 19"]),
        ("then: {tier: simple}", "then: {}", &["BAD_RULE rules[1].then 19"]),
        ("then: {tier: simple}", "then: {tier: simple, raise_tier_to: complex}", &["BAD_RULE rules[1].then 19"]),
        ("min_confidence: 0.5", "min_confidence: 50", &["INVALID_VALUE roles.helper.thresholds.min_confidence 22"]),
        (
            "thresholds: {min_confidence: 0.5}",
            "threshold: {min_confidence: 0.5}",
            &["UNKNOWN_FIELD roles.helper.threshold 22"],
        ),
        ("{thresholds: {min_confidence: 0.5}}", "{thresholds: [0.5]}", &["INVALID_VALUE roles.helper.thresholds 22"]),
        ("best: [mid, strong]}}", "best: [mid, none]}}", &["UNKNOWN_MODEL tenants.acme.chains.best[1] 24"]),
        (
            "best: [mid, strong]}}",
            "best: [mid, strong]}, allowed_providers: [c]}",
            &[
                "UNKNOWN_PROVIDER tenants.acme.allowed_providers[0] 24",
                "CHAIN_DISABLED tenants.acme.allowed_providers 24",
                "CHAIN_DISABLED tenants.acme.chains.best 24",
            ],
        ),
        ("  b: {enabled: true}", "  b: {enabled: 1}", &["INVALID_VALUE providers.b.enabled 6"]),
        ("  b: {enabled: true}", "  a: {enabled: true}\n  b: {}", &["DUPLICATE_KEY providers.a 6"]),
        ("schema: pointsman.policy/v1", "schema: pointsman.policy/v2", &["UNKNOWN_SCHEMA schema 1"]),
        ("id: test", "idd: test", &["MISSING_FIELD  1", "UNKNOWN_FIELD idd 2"]),
        ("id: test", "id: \"\"", &["INVALID_VALUE id 2"]),
        (
            "roles:\n",
            "defaults: {answer_lengths: [{intent: chat, tier: simple, tokens: 0}]}\nroles:\n",
            &["OUT_OF_RANGE defaults.answer_lengths[0].tokens 21"],
        ),
        (
            "roles:\n",
            "defaults: {answer_lengths: {intent: chatter, tier: simple, tokens: 9}}\nroles:\n",
            &["UNKNOWN_INTENT defaults.answer_lengths[0].intent 21"],
        ),
        // Warnings.
        ("routes:\n", "chain: cheap\nroutes:\n", &["UNREACHABLE_ROUTE routes 15"]),
        (
            "helper: {thresholds",
            "helper: {chain: cheap, routes: [{intent: chat, tier: simple, chain: best}], thresholds",
            &["UNREACHABLE_ROUTE roles.helper.routes 22"],
        ),
        ("  b: {enabled: true}", "  b: {}\n  c: {}", &["PROVIDER_WITHOUT_MODELS providers.c 7"]),
        ("  b: {enabled: true}\n", "", &["PROVIDER_NOT_LISTED models.mid.provider 8"]),
        ("cheap: [weak, mid]", "cheap: [weak, strong]", &["SINGLE_PROVIDER_CHAIN chains.cheap 12"]),
        ("cheap: [weak, mid]", "cheap: [weak, mid]\n  spare: [mid, weak]", &["UNUSED_CHAIN chains.spare 13"]),
        (
            "chains:\n",
            "  extra: {provider: a, provider_model: e, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 1}\nchains:\n",
            &["UNUSED_MODEL models.extra 11"],
        ),
        (
            "tier: \"*\", chain: cheap}",
            "tier: \"*\", chain: best}\n  - {intent: chat, tier: simple, chain: cheap}",
            &["DEAREST_DEFAULT routes[1].chain 16", "UNREACHABLE_ROUTE routes[2] 17"],
        ),
        (
            "a: {}\n  b: {enabled: true}",
            "a: {enabled: false}\n  b: {enabled: false}",
            &[
                "CHAIN_DISABLED chains.cheap 12",
                "CHAIN_DISABLED chains.best 13",
                "CHAIN_DISABLED tenants.acme.chains.best 24",
            ],
        ),
        (
            "when: {keywords: [hi]}, then: {intent: chat}",
            "when: {length: {max_words: 9}}, stop: true, then: {intent: chat}",
            &[],
        ),
        (
            "when: {regex: \"x+\"}, then: {tier: simple}",
            "when: {keywords: [HI], tenant: [acme]}, then: {intent: code}",
            &["SHADOWED_RULE rules[1] 19"],
        ),
        ("when: {regex: \"x+\"}", "when: {role: [helpr]}", &["UNKNOWN_ROLE rules[1].when 19"]),
        (
            "acme: {",
            "acme: {providers: {b: {enabled: false}}, roles: {helper: {providers: {b: {enabled: true}}}}, ",
            &["PROVIDER_STAYS_DISABLED tenants.acme.roles.helper.providers.b 24"],
        ),
    ];
    let mut wrong = Vec::new();
    for (from, to, expected) in cases {
        assert!(VALID.contains(from), "{from}");
        let found = brief(&check(&VALID.replacen(from, to, 1)));
        if found != *expected {
            wrong.push(format!("{from} -> {to}\n  found    {found:?}\n  expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_mistake_hides_no_other() {
    let document = VALID
        .replace("provider: a, provider_model: w", "provider: a, provider_model: [w, w]")
        .replace("cheap: [weak, mid]", "cheap: [weak, gone]")
        .replace("tier: complex", "tier: hard")
        .replace("name: second", "name: first, colour: red")
        .replace("best: [mid, strong]", "best: []");
    assert_eq!(
        brief(&check(&document)),
        [
            "INVALID_VALUE models.weak.provider_model 8",
            "UNKNOWN_MODEL chains.cheap[1] 12",
            "INVALID_VALUE routes[0].tier 15",
            "UNKNOWN_FIELD rules[1].colour 19",
            "DUPLICATE_RULE rules[1].name 19",
            "EMPTY_CHAIN tenants.acme.chains.best 24",
        ]
    );
}

#[test]
fn hostile_documents_are_refused_cheaply() {
    let laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    let nested = |depth| format!("id: {}{}", "[".repeat(depth), "]".repeat(depth));
    let (too_deep, far_too_deep) = (nested(100), nested(5_000));
    let deep_blocks = (0..100).fold(String::new(), |text, depth| text + &" ".repeat(depth) + "a:\n");
    let large = "#".repeat(MAX_DOCUMENT_BYTES + 1);
    let cases: [(&str, &str); 10] = [
        (laughs, "ALIAS_OR_TAG a 1"),
        ("id: !!binary abc", "ALIAS_OR_TAG id 1"),
        (&too_deep, "TOO_DEEP"),
        (&deep_blocks, "TOO_DEEP"),
        (&far_too_deep, "SYNTAX  1"), // the scanner's own limit
        (&large, "DOCUMENT_TOO_LARGE  0"),
        ("", "SYNTAX  0"),
        ("id: [a, b\nversion: 1\n", "SYNTAX  2"),
        ("id: a\n---\nid: b\n", "SYNTAX  2"),
        ("? [a, b]\n: c\n", "SYNTAX  1"),
    ];
    for (document, expected) in cases {
        let findings = brief(&check(document));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with(expected), "{} for {expected}", findings[0]);
    }
    let not_utf8 = Policy::check(b"id: a\nversion: \xff\n", &PolicyOptions::default());
    assert_eq!(brief(&not_utf8), ["SYNTAX  2"]);
    let no_mapping = brief(&check("- a\n- b\n"));
    assert!(no_mapping.contains(&"INVALID_VALUE  1".to_owned()), "{no_mapping:?}");
}

#[test]
fn json_is_accepted_and_null_sections_are_empty() {
    let json = r#"{"schema": "pointsman.policy/v1", "id": "j", "version": 1.10, "models": {"m": {"provider": "p",
        "provider_model": "x", "price_per_million_tokens": {"input_usd": 1, "output_usd": 1e0},
        "context_window_tokens": 10, "ability": null}}, "chains": {"c": "m"}, "tenants": null, "rules": null,
        "routes": [{"intent": "*", "tier": "*", "chain": "c"}]}"#;
    let policy = super::load(json);
    assert_eq!(&**policy.version(), "1.10", "a number keeps its spelling where text is expected");
    assert_eq!(policy.warnings().len(), 1, "one model, one provider");
}

#[test]
fn unknown_intents_are_accepted_where_the_labels_are_not_known() {
    let document = VALID.replace("intent: code", "intent: billing");
    assert!(Policy::check(document.as_bytes(), &PolicyOptions::default()).is_empty());
    assert_eq!(check(&document).len(), 1);
}

#[test]
fn every_code_is_documented() {
    let documented = include_str!("../../../docs/policy.md");
    for code in FindingCode::ALL {
        let severity = match code.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let row = format!("| `{}` | {severity} |", code.as_str());
        assert!(documented.contains(&row), "docs/policy.md has no row {row}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[a-z:{}\\[\\]\\-'\"&*!? \n]{0,80}") {
        Policy::check(&bytes, &PolicyOptions::default());
        check(&text);
    }

    #[test]
    fn any_swap_of_two_words_is_read_without_panic(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let mut words: Vec<&str> = VALID.split_inclusive([' ', '\n']).collect();
        let (from, to) = (from.index(words.len()), to.index(words.len()));
        words.swap(from, to);
        let findings = check(&words.concat());
        let lines = VALID.lines().count() as u32 + 2;
        prop_assert!(findings.iter().all(|finding| finding.line <= lines), "{:?}", findings);
    }
}

#[test]
fn any_cut_of_the_default_document_is_read_without_panic() {
    for end in (0..DEFAULT_DOCUMENT.len()).step_by(97) {
        check(DEFAULT_DOCUMENT.get(..end).unwrap_or_default());
    }
}

#[test]
fn a_summary_counts_errors_and_warnings_apart() {
    let told = |document: &str| {
        let findings = Policy::check(document.as_bytes(), &PolicyOptions::default());
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        let text = crate::policy::render_findings(&findings, "test");
        (errors, findings.len() - errors, text.lines().last().unwrap_or_default().to_owned())
    };
    assert_eq!(told(&VALID.replace("cheap: [weak, mid]", "cheap: []")).0, 1);
    for document in [VALID.to_owned(), VALID.replace("cheap: [weak, mid]", "cheap: []"), VALID.replace("mid]", "dim]")]
    {
        let (errors, warnings, last) = told(&document);
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let expected = format!("{errors} error{}, {warnings} warning{}", plural(errors), plural(warnings));
        assert!(last.starts_with(&expected), "{last:?}, not {expected:?}");
    }
}
