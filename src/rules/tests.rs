//! Tests of rules from their written form to what they fix.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::domain::{Language, Structure, TextSignals, Tier};

use super::*;

fn specs(rules: &Value) -> Vec<RuleSpec> {
    serde_json::from_value(rules.clone()).unwrap()
}

fn compile(rules: &Value) -> Arc<RuleSet> {
    Arc::new(RuleSet::compile(&specs(rules)).unwrap_or_else(|errors| panic!("{errors:?}")))
}

fn signals(text: &str) -> TextSignals {
    TextSignals {
        bytes: text.len(),
        words: text.split_whitespace().count(),
        lines: text.lines().count(),
        language: Some(Language("eng")),
        structures: [Structure::Question].into_iter().collect(),
    }
}

/// Evaluates for tenant "acme", role "helper" and metadata `{plan: gold}`.
fn evaluate(layers: &[Arc<RuleSet>], text: &str) -> RuleOutcome {
    let signals = signals(text);
    let metadata = BTreeMap::from([("plan".to_owned(), "gold".to_owned())]);
    let input = RuleInput { text, signals: &signals, metadata: &metadata, tenant: "acme", role: "helper" };
    RuleStack::new(layers.iter().cloned()).evaluate(&input)
}

fn with_input(text: &str, check: impl FnOnce(&RuleInput<'_>)) {
    let signals = signals(text);
    let metadata = BTreeMap::from([("plan".to_owned(), "gold".to_owned())]);
    check(&RuleInput { text, signals: &signals, metadata: &metadata, tenant: "acme", role: "helper" });
}

fn matches(when: &Value, text: &str) -> bool {
    let rules = compile(&json!([{ "name": "r", "when": when, "stop": true }]));
    !evaluate(&[rules], text).matched.is_empty()
}

#[test]
fn conditions_hold_as_written() {
    let text = "Could you  translate this\nC++ café, please?";
    let cases: &[(Value, bool)] = &[
        (json!({"keywords": ["translate"]}), true),
        (json!({"keywords": ["TRANSLATE"]}), true),
        (json!({"keywords": ["late"]}), false),                  // whole words
        (json!({"keywords": ["you translate this c++"]}), true), // white space runs are one space
        (json!({"keywords": ["c++"]}), true),
        (json!({"keywords": ["c"]}), true),
        (json!({"keywords": ["CAFÉ"]}), true),
        (json!({"keywords": ["caf"]}), false),
        (json!({"keywords": ["nothing", "please"]}), true),
        (json!({"regex": "^Could"}), true),
        (json!({"regex": "^could"}), false),
        (json!({"regex": "(?i)^could"}), true),
        (json!({"length": {"min_words": 7, "max_words": 7}}), true),
        (json!({"length": {"min_words": 8}}), false),
        (json!({"length": {"max_bytes": 10}}), false),
        (json!({"language": ["deu", "eng"]}), true),
        (json!({"language": ["deu"]}), false),
        (json!({"structure": ["code", "question"]}), true),
        (json!({"structure": ["code"]}), false),
        (json!({"metadata": {"plan": ["gold", "silver"]}}), true),
        (json!({"metadata": {"plan": ["gold"], "region": ["eu"]}}), false),
        (json!({"tenant": ["acme"]}), true),
        (json!({"tenant": ["other"]}), false),
        (json!({"role": ["helper"]}), true),
        (json!({"not": {"role": ["helper"]}}), false),
        (json!({"all": [{"role": ["helper"]}, {"keywords": ["please"]}]}), true),
        (json!({"all": [{"role": ["helper"]}, {"keywords": ["gone"]}]}), false),
        (json!({"any": [{"role": ["gone"]}, {"keywords": ["please"]}]}), true),
        (json!({"any": [{"role": ["gone"]}, {"keywords": ["gone"]}]}), false),
        // Several in one mapping: all must hold.
        (json!({"role": ["helper"], "keywords": ["please"]}), true),
        (json!({"role": ["helper"], "keywords": ["gone"]}), false),
        (json!({"role": ["helper"], "any": [{"keywords": ["gone"]}]}), false),
    ];
    for (when, expected) in cases {
        assert_eq!(matches(when, text), *expected, "{when}");
    }
}

#[test]
fn scripts_without_spaces_need_no_word_boundary() {
    assert!(matches(&json!({"keywords": ["翻译"]}), "请翻译这句话"));
    assert!(matches(&json!({"keywords": ["翻译"]}), "please翻译this"));
    assert!(!matches(&json!({"keywords": ["this"]}), "thistle"));
    assert!(matches(&json!({"keywords": ["this"]}), "翻译this句话"));
}

/// Intent, lowest and highest tier, forced chain, forbidden chains, matched rules.
type Left<'a> = (Option<&'a str>, Tier, Tier, Option<&'a str>, Vec<&'a str>, Vec<&'a str>);

fn left(outcome: &RuleOutcome) -> Left<'_> {
    (
        outcome.intent.as_ref().map(|fixed| &*fixed.value),
        outcome.lowest(),
        outcome.highest(),
        outcome.force_chain.as_ref().map(|fixed| &*fixed.value),
        outcome.forbid_chains.iter().map(|fixed| &*fixed.value).collect(),
        outcome.matched.iter().map(|name| &**name).collect(),
    )
}

#[test]
fn effects_combine_by_priority() {
    use Tier::{Complex, Medium, Simple};

    // Effects of rules "a", "b", "c", the highest priority first, and what is left.
    #[rustfmt::skip]
    let cases = [
        (json!([{"intent": "chat"}, {"intent": "code"}]), (Some("chat"), Simple, Complex, None, vec![], vec!["a"])),
        (json!([{"tier": "simple"}, {"tier": "complex"}]), (None, Simple, Simple, None, vec![], vec!["a"])),
        (json!([{"raise_tier_to": "medium"}, {"raise_tier_to": "complex"}]), (None, Complex, Complex, None, vec![], vec!["a", "b"])),
        (json!([{"cap_tier_at": "medium"}, {"cap_tier_at": "simple"}]), (None, Simple, Simple, None, vec![], vec!["a", "b"])),
        // A cap never goes below an earlier floor, a floor never above an earlier cap.
        (json!([{"raise_tier_to": "medium"}, {"cap_tier_at": "simple"}]), (None, Medium, Medium, None, vec![], vec!["a", "b"])),
        (json!([{"cap_tier_at": "medium"}, {"raise_tier_to": "complex"}]), (None, Medium, Medium, None, vec![], vec!["a", "b"])),
        (json!([{"cap_tier_at": "simple"}, {"raise_tier_to": "complex"}]), (None, Simple, Simple, None, vec![], vec!["a"])),
        (json!([{"raise_tier_to": "medium"}, {"tier": "simple"}]), (None, Medium, Medium, None, vec![], vec!["a", "b"])),
        (json!([{"tier": "medium"}, {"raise_tier_to": "complex"}, {"cap_tier_at": "simple"}]), (None, Medium, Medium, None, vec![], vec!["a"])),
        (json!([{"force_chain": "x"}, {"force_chain": "y"}, {"forbid_chain": ["x", "z"]}]), (None, Simple, Complex, Some("x"), vec!["z"], vec!["a", "c"])),
        (json!([{"forbid_chain": ["x"]}, {"force_chain": "x"}, {"force_chain": "y"}]), (None, Simple, Complex, Some("y"), vec!["x"], vec!["a", "c"])),
        (json!([{"intent": "chat"}, {"tier": "simple"}]), (Some("chat"), Simple, Simple, None, vec![], vec!["a", "b"])),
    ];
    for (effects, expected) in cases {
        let rules: Vec<Value> = (effects.as_array().unwrap().iter())
            .zip(["a", "b", "c"])
            .map(|(then, name)| json!({"name": name, "when": {"role": ["helper"]}, "then": then}))
            .collect();
        let outcome = evaluate(&[compile(&json!(rules))], "text");
        assert_eq!(left(&outcome), expected, "{effects}");
    }
}

#[test]
fn decisive_needs_intent_and_tier_or_a_chain() {
    let decisive = |then: Value| {
        let rules = compile(&json!([{"name": "r", "when": {"role": ["helper"]}, "then": then}]));
        evaluate(&[rules], "text").decisive()
    };
    assert!(decisive(json!({"intent": "chat", "tier": "simple"})));
    assert!(decisive(json!({"intent": "chat", "raise_tier_to": "complex"})), "only one tier is left");
    assert!(decisive(json!({"force_chain": "x"})));
    assert!(!decisive(json!({"intent": "chat"})));
    assert!(!decisive(json!({"tier": "simple"})));
    assert!(!decisive(json!({"intent": "chat", "raise_tier_to": "medium"})));
}

#[test]
fn priority_stop_and_enabled_are_obeyed() {
    let rules = compile(&json!([
        {"name": "low", "priority": -1, "when": {"role": ["helper"]}, "then": {"intent": "low"}},
        {"name": "off", "priority": 9, "enabled": false, "when": {"role": ["helper"]}, "then": {"intent": "off"}},
        {"name": "high", "priority": 5, "when": {"role": ["helper"]}, "then": {"tier": "simple"}},
        {"name": "stop", "when": {"keywords": ["stop"]}, "stop": true},
    ]));
    assert_eq!(left(&evaluate(&[Arc::clone(&rules)], "go")).5, ["high", "low"]);
    assert_eq!(left(&evaluate(&[rules], "stop")).5, ["high", "stop"]);
}

#[test]
fn more_specific_lists_come_first_and_replace_by_name() {
    let rule = |name: &str, priority: i32, intent: &str| json!({"name": name, "priority": priority, "when": {"role": ["helper"]}, "then": {"intent": intent}});
    let base = compile(&json!([rule("shared", 5, "base"), rule("own", 1, "base-own")]));
    let outcome = |layer: Value| {
        let outcome = evaluate(&[Arc::clone(&base), compile(&layer)], "text");
        (outcome.intent.unwrap().value.to_string(), outcome.matched.len())
    };
    assert_eq!(outcome(json!([rule("shared", 0, "tenant")])), ("base-own".to_owned(), 1), "replaced, priority too");
    assert_eq!(outcome(json!([rule("other", 5, "tenant")])), ("tenant".to_owned(), 1), "equal priority");
    assert_eq!(outcome(json!([rule("other", 4, "tenant")])), ("base".to_owned(), 1), "priority goes across lists");
    let mut off = rule("shared", 5, "tenant");
    off["enabled"] = json!(false);
    assert_eq!(outcome(json!([off])), ("base-own".to_owned(), 1), "a disabled rule hides its namesake");
}

#[test]
fn mistakes_are_told_all_at_once() {
    let rules = specs(&json!([
        {"name": "", "when": {}, "then": {"intent": "x"}},
        {"name": "a", "when": {"any": []}, "then": {"intent": "x"}},
        {"name": "a", "when": {"keywords": [" "]}, "then": {"tier": "simple", "raise_tier_to": "complex"}},
        {"name": "b", "when": {"not": {"regex": "("}}, "then": {"force_chain": "x", "forbid_chain": ["x"]}},
        {"name": "c", "enabled": false, "when": {"language": ["english"], "length": {"min_words": 3, "max_words": 1}}},
    ]));
    let errors = RuleSet::compile(&rules).unwrap_err();
    let found: Vec<String> = errors.iter().map(|(index, error)| format!("{index} {}", error.at)).collect();
    let expected = [
        "0 name",
        "0 when",
        "1 when.any",
        "2 name",
        "2 when.keywords[0]",
        "2 then",
        "3 when.not.regex",
        "3 then.force_chain",
        "4 when.length",
        "4 when.language[0]",
        "4 then",
    ];
    assert_eq!(found, expected);
    let mut nested = json!({"role": ["x"]});
    for _ in 0..MAX_CONDITION_DEPTH {
        nested = json!({ "not": nested });
    }
    let deep = specs(&json!([{"name": "deep", "when": nested, "stop": true}]));
    assert_eq!(RuleSet::compile(&deep).unwrap_err()[0].1.problem, RuleProblem::TooDeep);
}

#[test]
fn hostile_text_takes_linear_time() {
    // Patterns on which a backtracking matcher would not end, and a text that almost matches everywhere.
    let rules = compile(&json!([
        {"name": "nested", "when": {"regex": "(a+)+b"}, "then": {"intent": "x"}},
        {"name": "optional", "when": {"regex": "(a?){30}a{30}b"}, "then": {"intent": "x"}},
        {"name": "words", "when": {"regex": r"(?i)(\w+\s*)+!"}, "then": {"intent": "x"}},
        {"name": "keywords", "when": {"keywords": ["a", "aa", "aaa", "aaaa", "aaaaaaaa"]}, "then": {"intent": "x"}},
    ]));
    let text = format!("{}c", "a".repeat(crate::domain::query::MAX_TEXT_BYTES - 1));
    let started = Instant::now();
    assert_eq!(evaluate(&[rules], &text), RuleOutcome::default());
    // Milliseconds on an idle core; a backtracking matcher would take centuries.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn the_slowest_expression_accepted_is_bounded() {
    // Every position of the text starts 4,000 states that no lazily built automaton can share.
    let rules = compile(&json!([{"name": "r", "when": {"regex": "[01]*1[01]{4000}x"}, "then": {"intent": "x"}}]));
    let mut state = 1_u64;
    let mut bit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 63 == 1 { '1' } else { '0' }
    };
    let text: String = (0..crate::domain::query::MAX_TEXT_BYTES).map(|_| bit()).collect();
    let started = Instant::now();
    assert_eq!(evaluate(&[rules], &text), RuleOutcome::default());
    // About 0.25 s; without MAX_REGEX_TEXT_BYTES it was 4 s.
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn expressions_see_the_start_of_a_long_text_and_keywords_all_of_it() {
    // The limit falls inside a character: the cut must not split it.
    let text = format!("{}needle", "é".repeat(MAX_REGEX_TEXT_BYTES / 2 + 1).replacen('é', "x", 1));
    assert!(matches(&json!({"regex": "^xé+$"}), &text));
    assert!(!matches(&json!({"regex": "needle"}), &text));
    assert!(matches(&json!({"keywords": ["needle"]}), &format!("{text} needle")));
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["hello", "code", "a", "翻译", "C++", "two words"]).prop_map(str::to_owned)
}

fn condition() -> impl Strategy<Value = ConditionSpec> {
    let list = || prop::collection::vec(word(), 1..3);
    let leaf = prop_oneof![
        list().prop_map(|words| ConditionSpec { keywords: Some(words), ..ConditionSpec::default() }),
        prop::sample::select(vec!["^h", "o$", r"\d", "(?i)CODE"])
            .prop_map(|regex| ConditionSpec { regex: Some(regex.to_owned()), ..ConditionSpec::default() }),
        (0_usize..4, 4_usize..8).prop_map(|(min, max)| ConditionSpec {
            length: Some(LengthSpec { min_words: Some(min), max_words: Some(max), ..LengthSpec::default() }),
            ..ConditionSpec::default()
        }),
        prop::sample::select(vec!["acme", "other"])
            .prop_map(|tenant| ConditionSpec { tenant: Some(vec![tenant.to_owned()]), ..ConditionSpec::default() }),
        prop::sample::select(vec![Structure::Code, Structure::Question])
            .prop_map(|one| ConditionSpec { structure: Some(vec![one]), ..ConditionSpec::default() }),
        (list(), prop::sample::select(vec!["gold", "tin"])).prop_map(|(words, plan)| ConditionSpec {
            keywords: Some(words),
            metadata: Some(BTreeMap::from([("plan".to_owned(), vec![plan.to_owned()])])),
            ..ConditionSpec::default()
        }),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let list = || prop::collection::vec(inner.clone(), 1..3);
        prop_oneof![
            list().prop_map(|all| ConditionSpec { all: Some(all), ..ConditionSpec::default() }),
            list().prop_map(|any| ConditionSpec { any: Some(any), ..ConditionSpec::default() }),
            inner.clone().prop_map(negate),
        ]
    })
}

fn negate(condition: ConditionSpec) -> ConditionSpec {
    ConditionSpec { not: Some(Box::new(condition)), ..ConditionSpec::default() }
}

fn effect() -> impl Strategy<Value = EffectSpec> {
    let tier = || prop::option::of(prop::sample::select(Tier::ALL.to_vec()));
    let name = || prop::option::of(prop::sample::select(vec!["x".to_owned(), "y".to_owned()]));
    (name(), tier(), tier(), name(), name()).prop_map(|(intent, raise_tier_to, cap, force_chain, forbid)| {
        let cap_tier_at = cap.max(raise_tier_to);
        let forbid_chain = forbid.into_iter().filter(|chain| Some(chain) != force_chain.as_ref()).collect();
        EffectSpec { intent, tier: None, raise_tier_to, cap_tier_at, force_chain, forbid_chain }
    })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![prop::collection::vec(word(), 0..6).prop_map(|words| words.join(" ")), any::<String>(),]
}

fn holds(when: &ConditionSpec, text: &str) -> bool {
    let rule = RuleSpec { name: "r".into(), enabled: true, when: when.clone(), stop: true, ..RuleSpec::default() };
    let rules = RuleSet::compile(&[rule]).unwrap();
    !evaluate(&[Arc::new(rules)], text).matched.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn not_not_is_itself(when in condition(), text in text()) {
        prop_assert_eq!(holds(&negate(negate(when.clone())), &text), holds(&when, &text));
        prop_assert_eq!(holds(&negate(when.clone()), &text), !holds(&when, &text));
    }

    #[test]
    fn what_implies_another_never_holds_alone(a in condition(), b in condition(), texts in prop::collection::vec(text(), 8)) {
        prop_assert!(a.implies(&a));
        let both = ConditionSpec { all: Some(vec![a.clone(), b.clone()]), ..ConditionSpec::default() };
        let either = ConditionSpec { any: Some(vec![a.clone(), b.clone()]), ..ConditionSpec::default() };
        prop_assert!(both.implies(&a) && both.implies(&b) && a.implies(&either) && b.implies(&either));
        for text in &texts {
            if a.implies(&b) {
                prop_assert!(!holds(&a, text) || holds(&b, text), "{:?} => {:?}", a, b);
            }
        }
    }

    #[test]
    fn document_order_across_priorities_does_not_matter(
        parts in prop::collection::vec((condition(), effect(), any::<bool>()), 1..6),
        order in any::<prop::sample::Index>(),
        text in text(),
    ) {
        let mut rules: Vec<RuleSpec> = parts.into_iter().zip(0..).map(|((when, then, stop), priority)| {
            let stop = stop || then.is_empty();
            RuleSpec { name: format!("r{priority}"), enabled: true, priority, when, then, stop }
        }).collect();
        let before = evaluate(&[Arc::new(RuleSet::compile(&rules).unwrap())], &text);
        let by = order.index(rules.len());
        rules.rotate_left(by);
        rules.reverse();
        let after = evaluate(&[Arc::new(RuleSet::compile(&rules).unwrap())], &text);
        prop_assert_eq!(&before, &after);
        prop_assert!(before.lowest() <= before.highest());
        let forced = before.force_chain.map(|forced| forced.value);
        prop_assert!(before.forbid_chains.iter().all(|forbidden| Some(&forbidden.value) != forced.as_ref()));
    }

    #[test]
    fn any_regex_and_keyword_is_refused_or_evaluated(pattern in any::<String>(), keyword in any::<String>(), text in any::<String>()) {
        let when = ConditionSpec { regex: Some(pattern), ..ConditionSpec::default() };
        let words = ConditionSpec { keywords: Some(vec![keyword]), ..ConditionSpec::default() };
        for when in [when, words] {
            let rule = RuleSpec { name: "r".into(), enabled: true, when, stop: true, ..RuleSpec::default() };
            if let Ok(rules) = RuleSet::compile(&[rule]) {
                evaluate(&[Arc::new(rules)], &text);
            }
        }
    }

    #[test]
    fn what_was_observed_replays_to_the_same_outcome(
        parts in prop::collection::vec((condition(), effect(), any::<bool>()), 1..6), text in text(),
    ) {
        let rules: Vec<RuleSpec> = parts.into_iter().zip(0..).map(|((when, then, stop), priority)| {
            let stop = stop || then.is_empty();
            RuleSpec { name: format!("r{priority}"), enabled: true, priority, when, then, stop }
        }).collect();
        let set = Arc::new(RuleSet::compile(&rules).unwrap());
        let stack = RuleStack::new([Arc::clone(&set)]);
        with_input(&text, |input| {
            let (outcome, holding) = stack.observe(input);
            assert_eq!(outcome, stack.evaluate(input));
            let (asked, holding): (HashSet<_>, HashSet<_>) = (set.atoms().collect(), holding.into_iter().collect());
            let evidence = Evidence {
                signals: input.signals,
                metadata: input.metadata,
                hidden_metadata: &[],
                tenant: input.tenant,
                role: input.role,
                asked: &asked,
                holding: &holding,
            };
            let replay = stack.replay(&evidence);
            assert_eq!((replay.outcome, replay.unknown), (outcome.clone(), vec![]));
            // What is not known makes rules unknown, never wrong: those that are told agree with the text.
            let nothing = HashSet::new();
            let blind = stack.replay(&Evidence { asked: &nothing, holding: &nothing, ..evidence });
            if blind.unknown.is_empty() {
                assert_eq!(blind.outcome, outcome);
            }
        });
    }
}
