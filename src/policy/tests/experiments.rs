//! Arms: their shares, that they stick, that experiments do not know of each other, and what they change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::domain::{ReasonCode, Requirements, Tier};
use crate::policy::{Assignment, KeyDigest, Policy, PolicyOptions, Scope, Timestamp, certain};
use crate::rules::RuleOutcome;

use super::{load, signals};

const BASE: &str = r#"
schema: pointsman.policy/v1
id: e
version: "1"
models:
  one: {provider: a, provider_model: x, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 9000}
  two: {provider: b, provider_model: y, price_per_million_tokens: {input_usd: 2, output_usd: 2}, context_window_tokens: 9000}
chains: {main: [one, two], new: [two, one]}
routes: [{intent: "*", tier: "*", chain: main}]
roles: {helper: {}}
tenants: {acme: {}, globex: {chains: {main: [two]}}}
defaults: {low_confidence: {chain: new}}
"#;

fn policy(experiments: &str) -> Arc<Policy> {
    load(&format!("{BASE}experiments:\n{experiments}"))
}

fn at(time: &str) -> u64 {
    Timestamp::try_from(time.to_owned()).unwrap().0
}

/// The scope of a request of session `session`, if it has one, else of request `request`.
fn scope_of(policy: &Arc<Policy>, tenant: &str, session: &str, request_id: &str, now_ms: u64) -> Scope {
    let metadata = BTreeMap::from([("user".to_owned(), format!("user of {session}"))]);
    let session = (!session.is_empty()).then(|| KeyDigest::of(session));
    policy.scope(tenant, "").unwrap().with_experiments(&Assignment { session, request_id, metadata: &metadata, now_ms })
}

fn arms(scope: &Scope) -> Vec<String> {
    scope.arms().iter().map(|told| format!("{}:{}", told.experiment, told.arm)).collect()
}

fn selected(scope: &Scope) -> String {
    let (rules, requirements) = (RuleOutcome::default(), Requirements::default());
    let found = scope.resolve(&signals(Some(&certain("chat", Tier::Simple)), &rules, &requirements)).unwrap();
    found.selected.model.to_string()
}

/// Pearson's statistic of counts against what was expected of them.
fn chi_square(counts: &[f64], expected: &[f64]) -> f64 {
    counts.iter().zip(expected).map(|(count, expected)| (count - expected).powi(2) / expected).sum()
}

const TWO: &str = "  first: {arms: {a: {weight: 0.2}, b: {weight: 0.3, chain: new}, c: {weight: 0.5}}}
  second: {arms: {x: {weight: 0.5}, y: {weight: 0.5, thresholds: {min_confidence: 0.9}}}}
";

#[test]
fn shares_are_kept_and_experiments_are_independent() {
    const N: usize = 20_000;
    let policy = policy(TWO);
    let mut counts: HashMap<String, usize> = HashMap::new();
    for i in 0..N {
        *counts.entry(arms(&scope_of(&policy, "", &format!("session-{i}"), "", 0)).join(" ")).or_default() += 1;
    }
    let cell =
        |first: &str, second: &str| counts.get(&format!("first:{first} second:{second}")).copied().unwrap_or(0) as f64;
    let (firsts, seconds) = ([("a", 0.2), ("b", 0.3), ("c", 0.5)], [("x", 0.5), ("y", 0.5)]);
    let row: Vec<f64> = firsts.map(|(first, _)| seconds.map(|(second, _)| cell(first, second)).iter().sum()).into();
    let column: Vec<f64> = seconds.map(|(second, _)| firsts.map(|(first, _)| cell(first, second)).iter().sum()).into();
    assert_eq!(row.iter().sum::<f64>(), N as f64, "every request has an arm of both");
    // Beyond these values lie 0.1 % of fair splits: chi-square with 2, 1 and 2 degrees of freedom.
    let expected = |shares: &[f64]| shares.iter().map(|share| share * N as f64).collect::<Vec<_>>();
    let (of_first, of_second) =
        (chi_square(&row, &expected(&[0.2, 0.3, 0.5])), chi_square(&column, &expected(&[0.5, 0.5])));
    assert!(of_first < 13.82 && of_second < 10.83, "{of_first} {of_second}");
    let (mut observed, mut independent) = (Vec::new(), Vec::new());
    for (i, (first, _)) in firsts.iter().enumerate() {
        for (j, (second, _)) in seconds.iter().enumerate() {
            observed.push(cell(first, second));
            independent.push(row[i] * column[j] / N as f64);
        }
    }
    let together = chi_square(&observed, &independent);
    assert!(together < 13.82, "the arms of one tell something of the other's: {together}");
}

#[test]
fn an_arm_is_the_same_everywhere_and_for_ever() {
    // Fixed by value: a change would move every session in the middle of an experiment.
    let expected = ["first:a second:x", "first:b second:y", "first:a second:x", "first:c second:y"];
    let policy = policy(TWO);
    let found = ["s1", "s2", "s3", "s4"].map(|session| arms(&scope_of(&policy, "", session, "r", 0)).join(" "));
    assert_eq!(found, expected);
    // As docs/policy.md has it, in a few lines of any language.
    for (session, arms) in ["s1", "s2", "s3", "s4"].into_iter().zip(expected) {
        let key = Sha256::digest(session.as_bytes());
        let hash = Sha256::digest([b"first\0".as_slice(), &key[..16]].concat());
        let point = u64::from_be_bytes(hash[..8].try_into().unwrap()) as f64 / 2_f64.powi(64);
        let arm = if point < 0.2 {
            "a"
        } else if point < 0.5 {
            "b"
        } else {
            "c"
        };
        assert!(arms.starts_with(&format!("first:{arm}")), "{session}: {point}");
    }
    // Another experiment beside, another version, other requests of the session: nothing moves.
    let more = load(
        &format!("{BASE}experiments:\n  aside: {{arms: {{k: {{weight: 1}}, l: {{weight: 0, chain: new}}}}}}\n{TWO}")
            .replace("version: \"1\"", "version: \"2\""),
    );
    for (session, arms_before) in ["s1", "s2", "s3", "s4"].into_iter().zip(expected) {
        for request in ["r1", "r2"] {
            let found = arms(&scope_of(&more, "acme", session, request, 99)).join(" ");
            assert_eq!(found, format!("aside:k {arms_before}"));
        }
    }
}

#[test]
fn what_sticks_is_what_is_stated() {
    let stuck = |by: &str, one: (&str, &str, &str), other: (&str, &str, &str)| {
        (0..40).all(|i| {
            let policy = policy(&format!(
                "  e{i}: {{sticky_by: {by}, arms: {{a: {{weight: 0.5}}, b: {{weight: 0.5, chain: new}}}}}}\n"
            ));
            let arm =
                |(tenant, session, request): (&str, &str, &str)| arms(&scope_of(&policy, tenant, session, request, 0));
            arm(one) == arm(other)
        })
    };
    assert!(stuck("session_id", ("acme", "s", "r1"), ("globex", "s", "r2")));
    assert!(!stuck("session_id", ("acme", "s", "r"), ("acme", "t", "r")));
    assert!(stuck("session_id", ("acme", "", "r"), ("globex", "", "r")), "without a session the request is one");
    assert!(!stuck("session_id", ("acme", "", "r1"), ("acme", "", "r2")));
    assert!(stuck("tenant", ("acme", "s", "r1"), ("acme", "t", "r2")));
    assert!(!stuck("tenant", ("acme", "s", "r"), ("globex", "s", "r")));
    assert!(stuck("request_id", ("acme", "s", "r"), ("globex", "t", "r")));
    assert!(!stuck("request_id", ("acme", "s", "r1"), ("acme", "s", "r2")));
    assert!(stuck("metadata.user", ("acme", "s", "r1"), ("globex", "s", "r2")));
    assert!(!stuck("metadata.user", ("acme", "s", "r"), ("acme", "t", "r")));
    // Without the key there is nothing to stick to.
    for by in ["metadata.absent", "tenant"] {
        let policy =
            policy(&format!("  e: {{sticky_by: {by}, arms: {{a: {{weight: 0}}, b: {{weight: 1, chain: new}}}}}}\n"));
        assert!(scope_of(&policy, "", "s", "r", 0).arms().is_empty(), "{by}");
    }
}

#[test]
fn only_those_asked_for_take_part() {
    let policy =
        policy("  e: {tenants: [acme], roles: [helper], arms: {a: {weight: 0}, b: {weight: 1, chain: new}}}\n");
    let part = |tenant: &str, role: &str| {
        let (metadata, session) = (BTreeMap::new(), Some(KeyDigest::of("s")));
        let request = Assignment { session, request_id: "", metadata: &metadata, now_ms: 0 };
        let scope = policy.scope(tenant, role).unwrap().with_experiments(&request);
        (arms(&scope).concat(), selected(&scope))
    };
    assert_eq!(part("acme", "helper"), ("e:b".into(), "two".into()));
    assert_eq!(part("acme", ""), (String::new(), "one".into()));
    assert_eq!(part("", "helper"), (String::new(), "one".into()));
    let off = load(&format!(
        "{BASE}experiments:\n  e: {{enabled: false, arms: {{a: {{weight: 0}}, b: {{weight: 1, chain: new}}}}}}\n"
    ));
    assert!(!off.has_experiments());
}

#[test]
fn arms_override_like_tenants_and_say_so() {
    let policy = policy(
        "  e: {arms: {a: {weight: 0}, b: {weight: 1, chains: {main: [two]}, providers: {a: {enabled: false}}}}}\n",
    );
    for tenant in ["", "acme", "globex"] {
        let scope = scope_of(&policy, tenant, "s", "r", 0);
        assert_eq!(scope.origins().next(), Some("arm b of experiment e"));
        let (rules, requirements) = (RuleOutcome::default(), Requirements::default());
        let found = scope.resolve(&signals(Some(&certain("chat", Tier::Simple)), &rules, &requirements)).unwrap();
        assert_eq!(&*found.selected.model, "two");
        assert!(found.reasons.iter().any(|reason| reason.code == ReasonCode::ExperimentArm && reason.subject == "e"));
    }
    // The arm is also stronger than a broken tenant's base, and what the tenant forbids stays.
    let broken = format!("{BASE}experiments:\n  e: {{arms: {{a: {{weight: 0}}, b: {{weight: 1, chain: new}}}}}}\n")
        .replace("acme: {}", "acme: {allowed_providers: [a], chain: gone}");
    let broken = Arc::new(Policy::load(broken.as_bytes(), &PolicyOptions::default()).unwrap());
    assert_eq!(selected(&scope_of(&broken, "acme", "s", "r", 0)), "one");
    assert_eq!(selected(&scope_of(&broken, "", "s", "r", 0)), "two");
}

const CANARY: &str = "  c: {kind: canary, ramp: {start: 2026-11-01T00:00:00Z, end: 2026-11-03T00:00:00Z, from: 0.1, to: 0.5}, arms: {new: {chain: new}}}\n";

#[test]
fn a_canary_grows_with_time_and_loses_nobody() {
    const N: usize = 5_000;
    let policy = policy(CANARY);
    let served = |now: &str| -> Vec<bool> {
        (0..N).map(|i| selected(&scope_of(&policy, "", &format!("s{i}"), "", at(now))) == "two").collect()
    };
    let mut before = vec![false; N];
    for (now, share) in [
        ("2026-10-31T23:59:59Z", 0.0),
        ("2026-11-01T00:00:00Z", 0.1),
        ("2026-11-02T00:00:00Z", 0.3),
        ("2026-11-03T00:00:00Z", 0.5),
        ("2027-01-01T00:00:00Z", 0.5),
    ] {
        let now_served = served(now);
        let n = now_served.iter().filter(|served| **served).count() as f64;
        // One degree of freedom, 0.1 %.
        let (yes, no) = (share * N as f64, (1.0 - share) * N as f64);
        let fits = if share == 0.0 { n == 0.0 } else { chi_square(&[n, N as f64 - n], &[yes, no]) < 10.83 };
        assert!(fits, "{n} of {N} at {now}");
        assert!(before.iter().zip(&now_served).all(|(before, now)| now >= before), "none leaves at {now}");
        before = now_served;
    }
    let told = scope_of(&policy, "", "s", "", at("2026-11-02T00:00:00Z"));
    let told = &told.arms()[0];
    assert!((told.propensity.value() - if &*told.arm == "new" { 0.3 } else { 0.7 }).abs() < 1e-9);
    // What a replay takes for possible: both arms, the rest of the requests being the control's.
    let metadata = BTreeMap::new();
    let now_ms = at("2026-11-02T00:00:00Z");
    let request = Assignment { session: Some(KeyDigest::of("s")), request_id: "", metadata: &metadata, now_ms };
    let mut choices: Vec<(String, f64)> = policy
        .scope("", "")
        .unwrap()
        .arm_choices(&request)
        .iter()
        .map(|arms| (arms[0].arm.to_string(), arms[0].propensity.value()))
        .collect();
    choices.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(choices.iter().map(|(arm, _)| arm.as_str()).collect::<Vec<_>>(), ["control", "new"]);
    assert!((choices[0].1 - 0.7).abs() < 1e-9 && (choices[1].1 - 0.3).abs() < 1e-9, "{choices:?}");
    let early = scope_of(&policy, "", "s", "", 0);
    assert_eq!((&*early.arms()[0].arm, early.arms()[0].propensity.value()), ("control", 1.0));
}

#[test]
fn a_shadow_is_decided_beside_and_serves_nobody() {
    let policy = policy("  s: {kind: shadow, arms: {strict: {weight: 0.25, chain: new}}}\n");
    let metadata = BTreeMap::new();
    let mut shadowed = 0;
    for i in 0..2_000 {
        let session = Some(KeyDigest::of(&format!("s{i}")));
        let request = Assignment { session, request_id: "", metadata: &metadata, now_ms: 0 };
        let scope = policy.scope("", "").unwrap().with_experiments(&request);
        assert_eq!((selected(&scope), scope.arms().len()), ("one".to_owned(), 0));
        for (told, shadow) in scope.shadows(&request) {
            assert_eq!((&*told.arm, selected(&shadow)), ("strict", "two".to_owned()));
            assert_eq!(told.propensity.value(), 0.25);
            shadowed += 1;
        }
    }
    assert!(chi_square(&[f64::from(shadowed), 2_000.0 - f64::from(shadowed)], &[500.0, 1_500.0]) < 10.83, "{shadowed}");
}

#[test]
fn mistakes_in_experiments_are_told() {
    // The experiment, and the findings as `CODE path`.
    let cases: &[(&str, &[&str])] = &[
        ("{arms: {a: {weight: 0.5}, b: {weight: 0.5, chain: new}}}", &[]),
        ("{arms: {a: {weight: 0.5}, b: {weight: 0.6, chain: new}}}", &["BAD_WEIGHTS experiments.e.arms"]),
        (
            "{arms: {a: {weight: -1}, b: {weight: 2, chain: new}}}",
            &["BAD_WEIGHTS experiments.e.arms.a.weight", "BAD_WEIGHTS experiments.e.arms.b.weight"],
        ),
        ("{arms: {a: {weight: 1}, b: {chain: new}}}", &["BAD_WEIGHTS experiments.e.arms.b"]),
        ("{arms: {a: {weight: 1, chain: new}}}", &["BAD_EXPERIMENT experiments.e.arms"]),
        ("{arms: {}}", &["BAD_EXPERIMENT experiments.e.arms"]),
        ("{arms: {a: {weight: 1}, b: {weight: 0}}}", &["EXPERIMENT_WITHOUT_EFFECT experiments.e.arms"]),
        ("{arms: {a: {weight: 1}, b: {weight: 0, chain: gone}}}", &["UNKNOWN_CHAIN experiments.e.arms.b.chain"]),
        ("{arms: {a: {weight: 1}, b: {weight: 0, chain: new}}, roles: [gone]}", &["UNKNOWN_ROLE experiments.e.roles"]),
        ("{kind: canary, arms: {a: {chain: new}}}", &["BAD_EXPERIMENT experiments.e.arms.a"]),
        ("{kind: canary, arms: {a: {weight: 0.1, chain: new}}}", &[]),
        ("{kind: canary, arms: {control: {weight: 0.1, chain: new}}}", &["BAD_EXPERIMENT experiments.e.arms.control"]),
        (
            "{kind: canary, ramp: {start: 2026-11-02T00:00:00Z, end: 2026-11-02T00:00:00Z, from: 0, to: 1}, arms: {a: {chain: new}}}",
            &["OUT_OF_RANGE experiments.e.ramp.end"],
        ),
        (
            "{kind: canary, ramp: {start: 2026-11-02T00:00:00Z, end: 2026-11-03T00:00:00Z, from: 0, to: 1}, arms: {a: {weight: 1, chain: new}}}",
            &["BAD_EXPERIMENT experiments.e.arms.a.weight"],
        ),
        (
            "{kind: canary, ramp: {start: now, end: 2026-11-03T00:00:00Z, from: 0, to: 1}, arms: {a: {chain: new}}}",
            &["INVALID_VALUE experiments.e.ramp.start"],
        ),
        (
            "{kind: shadow, ramp: {start: 2026-11-02T00:00:00Z, end: 2026-11-03T00:00:00Z, from: 0, to: 1}, arms: {a: {chain: new}}}",
            &["BAD_EXPERIMENT experiments.e.ramp"],
        ),
        ("{kind: shadow, arms: {a: {chain: new}, b: {chain: main}}}", &["BAD_EXPERIMENT experiments.e.arms"]),
        ("{kind: coin, arms: {a: {weight: 1, chain: new}, b: {weight: 0}}}", &["INVALID_VALUE experiments.e.kind"]),
        (
            "{sticky_by: cookie, arms: {a: {weight: 1, chain: new}, b: {weight: 0}}}",
            &["INVALID_VALUE experiments.e.sticky_by"],
        ),
        ("{arm: {a: {weight: 1}}}", &["MISSING_FIELD experiments.e", "UNKNOWN_FIELD experiments.e.arm"]),
        (
            "{arms: {a: {weight: 1, chain: new}, b: {weight: 0}}}\n  f: {arms: {a: {weight: 1}, b: {weight: 0, chain: main}}}",
            &["EXPERIMENT_OVERLAP experiments.f.arms"],
        ),
        (
            "{tenants: acme, arms: {a: {weight: 1, chain: new}, b: {weight: 0}}}\n  f: {tenants: [globex], arms: {a: {weight: 1}, b: {weight: 0, chain: main}}}",
            &[],
        ),
    ];
    for (experiment, expected) in cases {
        let document = format!("{BASE}experiments:\n  e: {experiment}\n");
        let findings = Policy::check(document.as_bytes(), &PolicyOptions::default());
        let mut found: Vec<String> = findings.iter().map(|f| format!("{} {}", f.code.as_str(), f.path)).collect();
        // The base has one: a tenant's chain of one provider.
        found.retain(|finding| !finding.contains("globex"));
        found.sort();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected, "{experiment}");
    }
}

proptest! {
    #[test]
    fn the_same_request_gets_the_same_arm(session in ".{0,20}", request in "[a-z]{0,9}", now in 0..4_000_000_000_000_u64) {
        let policies = [policy(&format!("{TWO}{CANARY}")), policy(&format!("{TWO}{CANARY}"))];
        let [one, other] = policies.map(|policy| arms(&scope_of(&policy, "acme", &session, &request, now)));
        prop_assert_eq!(&one, &other);
        prop_assert_eq!(one.len(), 3);
    }
}
