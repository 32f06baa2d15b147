//! Turning a provider on or off in the text of a document, in every layout that people and programs write.

use std::sync::Arc;

use proptest::prelude::*;

use crate::policy::{DEFAULT_DOCUMENT, EditError, Policy, PolicyOptions, set_provider_enabled};

const REST: &str = r#"models:
  m: {provider: acme, provider_model: x, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 9000}
  n: {provider: "zenith co", provider_model: y, price_per_million_tokens: {input_usd: 2, output_usd: 2}, context_window_tokens: 9000}
chains: {c: [m, n]}
routes: [{intent: "*", tier: "*", chain: c}]
"#;

fn load(document: &str) -> Arc<Policy> {
    Arc::new(Policy::load(document.as_bytes(), &PolicyOptions::default()).unwrap_or_else(|error| panic!("{error}")))
}

/// Turns `provider` off in `head` before the rest of a document; gives the edited head.
fn off(head: &str, provider: &str) -> String {
    let policy = load(&format!("{head}{REST}"));
    let edited = set_provider_enabled(&policy, provider, false, &[]).unwrap().expect("it was on");
    let after = load(&edited);
    assert!(after.base.disabled.contains(provider), "{edited}");
    // And back again: only the version tells that anything happened.
    let back = set_provider_enabled(&after, provider, true, &[]).unwrap().expect("it was off");
    assert!(!load(&back).base.disabled.contains(provider), "{back}");
    edited.strip_suffix(REST).expect("the rest stays as it is").to_owned()
}

#[test]
fn only_the_flag_and_the_version_change() {
    let head = "schema: pointsman.policy/v1\nid: p # the policy\nversion: 7 # opaque\n";
    let bumped = head.replace("7 ", "\"7+1\" ");
    for (providers, provider, expected) in [
        // The flag is there.
        ("providers: {acme: {enabled: true}}\n", "acme", "providers: {acme: {enabled: false}}\n"),
        (
            "providers:\n  # billing knows why\n  acme:\n    enabled: true # for now\n  other: {enabled: true}\n",
            "acme",
            "providers:\n  # billing knows why\n  acme:\n    enabled: false # for now\n  other: {enabled: true}\n",
        ),
        // The provider is there.
        ("providers: {acme: {}}\n", "acme", "providers: {acme: {\"enabled\": false}}\n"),
        ("providers:\n  acme: {}\n  b: {}\n", "acme", "providers:\n  acme: {\"enabled\": false}\n  b: {}\n"),
        // Only others are there.
        ("providers: {b: {}}\n", "acme", "providers: {\"acme\": {\"enabled\": false}, b: {}}\n"),
        ("providers:\n   b: {}\n", "acme", "providers:\n   acme: {\"enabled\": false}\n   b: {}\n"),
        ("providers:\n  b: {}\n", "zenith co", "providers:\n  \"zenith co\": {\"enabled\": false}\n  b: {}\n"),
        // Nobody is there.
        ("providers: {}\n", "acme", "providers: {\"acme\": {\"enabled\": false}}\n"),
        ("providers:\n", "acme", "providers: {\"acme\": {\"enabled\": false}}\n"),
    ] {
        assert_eq!(off(&format!("{head}{providers}"), provider), format!("{bumped}{expected}"));
    }
    let without = off(head, "acme");
    assert_eq!(without, format!("providers: {{\"acme\": {{\"enabled\": false}}}}\n{bumped}"));
}

#[test]
fn json_stays_json_and_text_in_front_is_counted_in_characters() {
    let json = r#"{"schema": "pointsman.policy/v1", "id": "Grüße, 世界", "version": "7", "models": {"m": {"provider": "acme",
        "provider_model": "x", "price_per_million_tokens": {"input_usd": 1, "output_usd": 1},
        "context_window_tokens": 9000}}, "chains": {"c": ["m"]}, "routes": [{"intent": "*", "tier": "*", "chain": "c"}]"#;
    for (providers, expected) in [
        ("}", None),
        (r#", "providers": {}}"#, Some(r#", "providers": {"acme": {"enabled": false}}}"#)),
        (r#", "providers": {"acme": {"enabled": true}}}"#, Some(r#", "providers": {"acme": {"enabled": false}}}"#)),
    ] {
        let policy = load(&format!("{json}{providers}"));
        let edited = set_provider_enabled(&policy, "acme", false, &[]).unwrap().unwrap();
        serde_json::from_str::<serde_json::Value>(&edited).unwrap_or_else(|error| panic!("{error}: {edited}"));
        assert!(edited.contains(r#""id": "Grüße, 世界", "version": "7+1""#), "{edited}");
        assert!(expected.is_none_or(|expected| edited.ends_with(expected)), "{edited}");
    }
}

#[test]
fn the_default_document_keeps_every_comment() {
    let policy = load(DEFAULT_DOCUMENT);
    let edited = set_provider_enabled(&policy, "anthropic", false, &[]).unwrap().unwrap();
    let changed: Vec<(&str, &str)> = DEFAULT_DOCUMENT.lines().zip(edited.lines()).filter(|(a, b)| a != b).collect();
    assert_eq!(changed.len(), 2, "{changed:?}");
    assert_eq!(DEFAULT_DOCUMENT.lines().count(), edited.lines().count());
}

#[test]
fn versions_count_up_and_skip_what_was_used() {
    let version = |version: &str, taken: &[&str]| {
        let policy = load(&format!("schema: pointsman.policy/v1\nid: p\nversion: {version:?}\n{REST}"));
        let edited = set_provider_enabled(&policy, "acme", false, taken).unwrap().unwrap();
        load(&edited).version().to_string()
    };
    assert_eq!(version("7", &[]), "7+1");
    assert_eq!(version("7+1", &["7"]), "7+2");
    assert_eq!(version("7", &["7", "7+1", "7+2"]), "7+3");
    assert_eq!(version("2026-11-21", &[]), "2026-11-21+1");
    assert_eq!(version("1.10", &[]), "1.10+1");
    assert_eq!(version("a+b", &[]), "a+b+1");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let policy = load(&format!("schema: pointsman.policy/v1\nid: p\nversion: \"7\"\n{REST}"));
    let error = set_provider_enabled(&policy, "acmee", false, &[]).unwrap_err();
    let EditError::UnknownProvider { known, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*known, ["acme", "zenith co"]);
    // On already: nothing to do, and no new version.
    assert_eq!(set_provider_enabled(&policy, "acme", true, &[]).unwrap(), None);
    // A key may be written so that a line cannot go before it.
    let odd = format!("? schema\n: pointsman.policy/v1\n? id\n: p\n? version\n: \"7\"\n{REST}");
    if let Ok(policy) = Policy::load(odd.as_bytes(), &PolicyOptions::default()) {
        let edited = set_provider_enabled(&Arc::new(policy), "acme", false, &[]);
        assert!(edited.is_err() || load(&edited.unwrap().unwrap()).base.disabled.contains("acme"));
    }
}

/// How the section of providers may be written.
#[derive(Clone, Debug)]
enum Layout {
    Absent,
    Nothing(&'static str),
    Flow,
    Block { indent: usize, spread: bool, comment: bool },
}

/// A document with `names` as providers, all on, of which only those in `listed` are in the section of providers.
fn written(layout: &Layout, names: &[String], listed: &[bool], after_models: bool) -> String {
    let quoted = |name: &String| serde_json::Value::from(name.as_str()).to_string();
    let models = names.iter().enumerate().map(|(index, name)| {
        let price = "price_per_million_tokens: {input_usd: 1, output_usd: 1}";
        let provider = quoted(name);
        format!("  m{index}: {{provider: {provider}, provider_model: x, {price}, context_window_tokens: 9}}\n")
    });
    let models = format!("models:\n{}", models.collect::<String>());
    let listed: Vec<&String> = names.iter().zip(listed).filter(|(_, listed)| **listed).map(|(name, _)| name).collect();
    let providers = match layout {
        Layout::Absent => String::new(),
        Layout::Nothing(nothing) => format!("providers:{nothing}\n"),
        Layout::Flow => {
            let entries: Vec<String> =
                listed.iter().map(|name| format!("{}: {{enabled: true}}", quoted(name))).collect();
            format!("providers: {{ {} }}\n", entries.join(" , "))
        }
        Layout::Block { .. } if listed.is_empty() => "providers: {}\n".to_owned(),
        Layout::Block { indent, spread, comment } => {
            let (indent, comment) = (" ".repeat(*indent), if *comment { " # wöchentlich geprüft: ja" } else { "" });
            let entries = listed.iter().map(|name| {
                let name = quoted(name);
                if *spread {
                    format!("{indent}{name}:{comment}\n{indent}{indent}enabled: true{comment}\n")
                } else {
                    format!("{indent}{name}: {{enabled: true}}{comment}\n")
                }
            });
            format!("providers:{comment}\n{}", entries.collect::<String>())
        }
    };
    let head = "# é 世 in front\nschema: pointsman.policy/v1\nid: p\nversion: 7\n";
    let rest = "chains: {c: [m0]}\nroutes: [{intent: \"*\", tier: \"*\", chain: c}]\n";
    if after_models { format!("{head}{models}{providers}{rest}") } else { format!("{head}{providers}{models}{rest}") }
}

proptest! {
    #[test]
    fn every_usual_layout_is_understood(
        layout in prop_oneof![
            Just(Layout::Absent),
            prop::sample::select(vec!["", " ", " ~", " null", " {}", " # none yet"]).prop_map(Layout::Nothing),
            Just(Layout::Flow),
            (1_usize..5, any::<bool>(), any::<bool>())
                .prop_map(|(indent, spread, comment)| Layout::Block { indent, spread, comment }),
        ],
        names in prop::collection::btree_set("[a-zA-Z世][a-zA-Z0-9_.:# \"'{}é世-]{0,11}", 1..4),
        listed in prop::collection::vec(any::<bool>(), 4),
        after_models in any::<bool>(),
    ) {
        let names: Vec<String> = names.into_iter().collect();
        let document = written(&layout, &names, &listed, after_models);
        let policy = load(&document);
        for name in &names {
            let edited = set_provider_enabled(&policy, name, false, &[]);
            let edited = edited.map_err(|error| TestCaseError::fail(format!("{error}: {name:?} in\n{document}")))?;
            let after = load(&edited.unwrap());
            prop_assert!(after.base.disabled.len() == 1 && after.base.disabled.contains(name));
            let document: Vec<&str> = document.lines().collect();
            let edited = after.document().to_string();
            let kept = document.iter().filter(|line| edited.lines().any(|edited| edited == **line)).count();
            prop_assert!(kept + 2 >= document.len(), "{edited}");
        }
    }
}
