//! The JSON Schema takes what the parser takes, and refuses what it should.

use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::policy::decode::decode;
use crate::policy::finding::{FindingCode, Severity};
use crate::policy::parse::parse;
use crate::policy::{DEFAULT_DOCUMENT, json_schema};
use crate::rules::Path;

/// Every field of the language at least once.
pub(super) const EVERYTHING: &str = include_str!("everything.yaml");

fn validator() -> &'static Validator {
    static VALIDATOR: std::sync::OnceLock<Validator> = std::sync::OnceLock::new();
    VALIDATOR.get_or_init(|| jsonschema::draft202012::new(&json_schema()).unwrap())
}

/// A YAML document as an editor's schema check sees it.
fn value_of(document: &str) -> Value {
    let parsed = parse(document.as_bytes()).unwrap();
    decode(&parsed.tree, &Path::default(), &mut Vec::new()).unwrap()
}

fn faults(value: &Value) -> Vec<String> {
    validator().iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Whether the document can be read; references and sums are another matter.
fn is_read(document: &str) -> bool {
    let compiled = [FindingCode::UnknownModel, FindingCode::UnknownChain, FindingCode::EmptyChain];
    parse(document.as_bytes()).is_ok_and(|parsed| {
        let errors = parsed.findings.iter().filter(|finding| finding.severity == Severity::Error);
        errors.filter(|finding| !compiled.contains(&finding.code)).count() == 0
    })
}

#[test]
fn the_shipped_schema_is_the_one_of_the_types() {
    let shipped = include_str!("../../../docs/policy.schema.json");
    let printed = format!("{:#}\n", json_schema());
    assert!(shipped == printed, "run `pointsman policy schema > docs/policy.schema.json`");
}

#[test]
fn the_default_and_every_example_are_taken() {
    let page = include_str!("../../../docs/policy.md");
    let first = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    for document in [DEFAULT_DOCUMENT, EVERYTHING, first, &super::scenarios::ALL.concat_documents()] {
        for document in document.split("\n---\n") {
            assert_eq!(faults(&value_of(document)), [""; 0], "{document}");
        }
    }
}

#[test]
fn mistakes_are_refused() {
    let cases = [
        ("/colour", json!("red")),
        ("/schema", json!("pointsman.policy/v2")),
        ("/models/small/provider_modle", json!("x")),
        ("/models/small/context_window_tokens", json!("many")),
        ("/models/small/context_window_tokens", json!(-1)),
        ("/models/small/capabilities", json!(["flying"])),
        ("/routes/0/tier", json!("hard")),
        ("/thresholds/min_confidence", json!(80)),
        ("/tenants/acme/chian", json!("quick")),
        ("/experiments/canary/kind", json!("coin")),
        ("/experiments/canary/sticky_by", json!("cookie")),
        ("/experiments/canary/ramp/start", json!("tomorrow")),
        ("/rules/0/when/keyword", json!("x")),
    ];
    for (pointer, bad) in cases {
        let mut value = value_of(EVERYTHING);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { &mut value } else { value.pointer_mut(parent).unwrap() };
        parent[key] = bad;
        assert!(!validator().is_valid(&value), "{pointer}");
        assert!(!is_read(&value.to_string()), "the parser takes {pointer}");
    }
    let mut incomplete = value_of(EVERYTHING);
    incomplete.as_object_mut().unwrap().remove("chains");
    assert!(!validator().is_valid(&incomplete));
}

/// Every place of a value, as a JSON pointer.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| places(value, &format!("{at}/{}", escape(key)), found));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| places(value, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn what_the_parser_takes_the_schema_takes(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..14_usize), 1..3),
    ) {
        let pool = [
            json!(null), json!(true), json!(0), json!(1), json!(-2), json!(0.5), json!("text"), json!("*"), json!("a"),
            json!([]), json!(["a", 1]), json!({}), json!({"a": 1}), json!([{"a": "b"}]),
        ];
        let mut value = value_of(EVERYTHING);
        for (place, with) in edits {
            let mut all = Vec::new();
            places(&value, "", &mut all);
            *value.pointer_mut(&all[place.index(all.len())]).unwrap() = pool[with].clone();
        }
        let document = value.to_string();
        if is_read(&document) {
            let value = value_of(&document);
            prop_assert_eq!(faults(&value), Vec::<String>::new(), "{}", document);
        }
    }
}
