//! Tokens that cannot be forged, and cascades that end.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::domain::{
    ConfidenceOf, ExperimentArm, FailureKind, Observed, Probability, ReasonCode, Requirements, Source, StopReason, Tier,
};
use crate::policy::{Guard, ModelSpec, Offer, Policy, PolicyOptions, Purpose, Scope, Tried, Unguarded};

const NOW: u64 = 1_800_000_000_000;

fn keys(lines: &str) -> Result<KeyRing, KeyError> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("keys");
    std::fs::write(&path, lines).unwrap();
    KeyRing::read(&path)
}

fn key_line(id: &str, byte: u8) -> String {
    format!("hmac-sha256 {id} {}\n", hex::encode([byte; 32]))
}

fn cascades(lines: &str) -> Cascades {
    Cascades::new(keys(lines).unwrap(), Duration::from_secs(900))
}

fn opening(tenant: &str, now_ms: u64) -> Opening<'_> {
    Opening { tenant, now_ms }
}

fn p(value: f64) -> Probability {
    Probability::new(value).unwrap()
}

fn continuation(tenant: &str) -> Continuation {
    let id = uuid::Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
    Continuation {
        started_ms: NOW,
        first_decision: id,
        decision: id,
        tenant: tenant.to_owned(),
        role: String::new(),
        request_id: "0192f0c1-2345-7000-8000-00000000abcd".to_owned(),
        sticky: 7,
        requirements: Requirements::default(),
        input_tokens: 120,
        output_tokens: None,
        intent: "open_qa".into(),
        intent_probability: p(0.9),
        tier: Tier::Simple,
        difficulty: Some(p(0.3)),
        confidence: p(0.85),
        confidence_of: ConfidenceOf::TierSuffices,
        source: Source::Classifier,
        chain: "quick".into(),
        forbidden: vec![],
        tried: vec![],
        together: 1,
        hops: 0,
        tokens_used: 0,
        cost_usd: 0.0,
        threshold: p(0.6),
        policy: 1,
        classifier: 2,
        arms: vec![],
    }
}

/// Every field at something other than nothing.
fn full() -> Continuation {
    Continuation {
        decision: uuid::Uuid::from_u128(5),
        role: "reviewer".into(),
        request_id: "chat-7".into(),
        requirements: Requirements {
            tools: true,
            json_mode: true,
            context_tokens: Some(1 << 20),
            allowed_providers: vec!["openai".into(), "anthropic".into()],
            data_regions: vec!["eu".into()],
            max_cost_usd: Some(0.25),
            max_latency_ms: Some(9_000),
            min_quality: Some(0.5),
            ..Requirements::default()
        },
        output_tokens: Some(300),
        difficulty: None,
        confidence_of: ConfidenceOf::None,
        source: Source::Degraded,
        tier: Tier::Complex,
        forbidden: vec!["strong".into()],
        tried: vec![
            Tried { model: u64::MAX, answered: true, ability: Some(-1.5), price_usd: 2.0, cost_usd: 0.1 },
            Tried { model: 3, answered: false, ability: None, price_usd: 0.0, cost_usd: 0.0 },
        ],
        together: 2,
        hops: 2,
        tokens_used: u64::MAX,
        cost_usd: 0.125,
        arms: vec![ExperimentArm { experiment: "e".into(), arm: "control".into(), propensity: p(0.5) }],
        ..continuation("acme")
    }
}

#[test]
fn a_token_gives_back_what_was_put_in() {
    let cascades = cascades(&key_line("k1", 1));
    for before in [continuation(""), continuation("acme"), full()] {
        let token = cascades.seal(&before, NOW).unwrap();
        assert_eq!(cascades.open(&token, opening(&before.tenant, NOW + 1)), Ok(before));
    }
    let usual = cascades.seal(&continuation("acme"), NOW).unwrap();
    assert!((200..350).contains(&usual.len()), "{} characters", usual.len());
    let long = Continuation { role: "r".repeat(MAX_TOKEN_BYTES), ..continuation("") };
    assert_eq!(cascades.seal(&long, NOW), None);
}

#[test]
fn ids_come_back_as_they_were_written_and_ours_are_short() {
    let cascades = cascades(&key_line("a", 1));
    let ours = "0192f0c1-2345-7000-8000-00000000abcd";
    let size = |request_id: &str| {
        let before = Continuation { request_id: request_id.to_owned(), ..continuation("") };
        let token = cascades.seal(&before, NOW).unwrap();
        assert_eq!(cascades.open(&token, opening("", NOW)), Ok(before));
        token.len()
    };
    assert!(size(&ours.to_uppercase()) > size(ours));
}

#[test]
fn a_token_is_of_use_to_its_tenant_in_its_time_with_its_key() {
    let (one, other) = (cascades(&key_line("k1", 1)), cascades(&key_line("k1", 2)));
    let token = one.seal(&continuation("acme"), NOW).unwrap();
    assert_eq!(one.open(&token, opening("globex", NOW)), Err(ContinuationError::OtherTenant));
    assert_eq!(one.open(&token, opening("", NOW)), Err(ContinuationError::OtherTenant));
    assert_eq!(one.open(&token, opening("acme", NOW + 901_000)), Err(ContinuationError::Expired));
    assert!(one.open(&token, opening("acme", NOW + 899_000)).is_ok());
    assert_eq!(other.open(&token, opening("acme", NOW)), Err(ContinuationError::Forged), "same id, another key");
    // Whose a decision is it shows for ever.
    let shown = Provenance { decision: continuation("acme").decision, tenant: "acme".into() };
    assert_eq!((one.provenance(&token), other.provenance(&token)), (Some(shown), None));
    assert_eq!(one.open("", opening("acme", NOW)), Err(ContinuationError::Missing));
    for wrong in ["x", "not base64!", "AAAA", &"A".repeat(400), &"A".repeat(100_000), &format!("{token}="), "ééé"] {
        assert_eq!(one.open(wrong, opening("acme", NOW)), Err(ContinuationError::Forged), "{wrong:.20}");
    }
}

#[test]
fn no_bit_of_a_token_can_be_changed() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let cascades = cascades(&key_line("k1", 1));
    let bytes = URL_SAFE_NO_PAD.decode(cascades.seal(&full(), NOW).unwrap()).unwrap();
    let open = |bytes: &[u8]| cascades.open(&URL_SAFE_NO_PAD.encode(bytes), opening("acme", NOW));
    assert!(open(&bytes).is_ok());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            assert_eq!(open(&changed), Err(ContinuationError::Forged), "bit {bit} of byte {at}");
        }
        assert!(open(&bytes[..at]).is_err(), "cut after {at} bytes");
    }
}

#[test]
fn keys_can_be_changed_while_cascades_run() {
    let (old, new) = (key_line("old", 1), key_line("new", 2));
    let cascades = cascades(&old);
    let token = cascades.seal(&continuation(""), NOW).unwrap();
    // Accepted beside the old one, then signing, then alone.
    for (lines, accepted) in [(format!("{old}{new}"), true), (format!("# signs\n{new}\n{old}"), true), (new, false)] {
        cascades.set_keys(keys(&lines).unwrap());
        assert_eq!(cascades.open(&token, opening("", NOW)).is_ok(), accepted, "{lines}");
    }
    assert_eq!(cascades.keys().ids().collect::<Vec<_>>(), ["new"]);
    assert!(!format!("{cascades:?}").contains("0202"), "keys are not shown");
    let random = Cascades::new(KeyRing::random().unwrap(), Duration::from_secs(1));
    let token = random.seal(&continuation(""), NOW).unwrap();
    assert!(random.open(&token, opening("", NOW)).is_ok());
    assert_eq!(cascades.open(&token, opening("", NOW)), Err(ContinuationError::Forged));
}

#[test]
fn files_of_keys_are_read_strictly() {
    let line = |lines: &str| match keys(lines).unwrap_err() {
        KeyError::BadKey { line, .. } => line,
        other => panic!("{other}"),
    };
    assert_eq!(line(""), 0);
    assert_eq!(line("# nothing\n\n"), 0);
    assert_eq!(line(&format!("{}ed25519 k {}", key_line("a", 1), "00".repeat(32))), 2);
    assert_eq!(line(&format!("hmac-sha256 k {}", "00".repeat(31))), 1, "too short");
    assert_eq!(line(&format!("hmac-sha256 {} {}", "k".repeat(17), "00".repeat(32))), 1, "the id is too long");
    assert!(matches!(keys(&key_line("a", 1).repeat(2)), Err(KeyError::DuplicateId { id, .. }) if id == "a"));
}

const POLICY: &str = r#"
schema: pointsman.policy/v1
id: cascade
version: "1"
models:
  mini: {provider: a, provider_model: m, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 8000, ability: 0, typical_latency_ms: 500}
  small: {provider: b, provider_model: s, price_per_million_tokens: {input_usd: 2, output_usd: 2}, context_window_tokens: 8000, ability: 0.5, typical_latency_ms: 700}
  base: {provider: c, provider_model: b, price_per_million_tokens: {input_usd: 5, output_usd: 5}, context_window_tokens: 8000, ability: 2, typical_latency_ms: 2000}
  top: {provider: a, provider_model: t, price_per_million_tokens: {input_usd: 20, output_usd: 20}, context_window_tokens: 8000, ability: 4, typical_latency_ms: 6000}
chains: {quick: [mini, small], strong: [top, base]}
routes: [{intent: "*", tier: "*", chain: quick}, {intent: "*", tier: complex, chain: strong}]
escalation: {ladder: [mini, base, top], max_hops: 2, score_threshold: 0.6}
defaults: {expected_output_tokens: 1000}
"#;

fn policy(document: &str) -> Arc<Policy> {
    let loaded = Policy::load(document.as_bytes(), &PolicyOptions::default());
    Arc::new(loaded.unwrap_or_else(|error| panic!("{error}")))
}

fn scope(document: &str) -> Scope {
    policy(document).scope("", "").unwrap()
}

/// A cascade whose first decision selected `model` under `scope`.
fn begun(scope: &Scope, model: &str) -> Continuation {
    let policy = scope.policy();
    let cost = 1e-6 * policy.spec().models[model].price_per_million_tokens.output_usd * 1_120.0;
    Continuation {
        tried: vec![policy.tried(model, cost).unwrap()],
        policy: Continuation::head(policy.sha256()),
        ..continuation("")
    }
}

fn scored(score: f64) -> Observed {
    Observed { score: Some(p(score)), ..Observed::default() }
}

fn failed(failure: FailureKind) -> Observed {
    Observed { failure: Some(failure), ..Observed::default() }
}

/// Selected model and code of the last reason, or the reason to stop.
fn shown(step: &Step) -> String {
    match step {
        Step::Next { advance, reasons, .. } => {
            format!("{} {}", advance.selected.model, reasons.last().unwrap().code.as_str())
        }
        Step::Stop(stop) => stop.reason.as_str().to_owned(),
    }
}

fn go(continuation: &Continuation, observed: &Observed, scope: &Scope) -> (String, Option<Continuation>) {
    let step = step(continuation.clone(), observed, scope, &Unguarded, NOW + 100);
    let after = match &step {
        Step::Next { continuation, .. } => Some((**continuation).clone()),
        Step::Stop(_) => None,
    };
    (shown(&step), after)
}

#[test]
fn unavailable_models_give_way_in_the_chain_and_bad_answers_climb_the_ladder() {
    let scope = scope(POLICY);
    let first = begun(&scope, "mini");
    assert_eq!(go(&first, &scored(0.6), &scope).0, "accepted");
    for failure in [FailureKind::Timeout, FailureKind::RateLimited, FailureKind::ProviderError] {
        assert_eq!(go(&first, &failed(failure), &scope).0, "small FALLEN_BACK");
    }
    for failure in [FailureKind::Refused, FailureKind::Truncated, FailureKind::BadFormat] {
        assert_eq!(go(&first, &failed(failure), &scope).0, "base ESCALATED");
    }
    assert_eq!(
        go(&first, &Observed { failure: Some(FailureKind::Refused), ..scored(0.9) }, &scope).0,
        "base ESCALATED"
    );
    // Down the chain, then up the ladder, where a bad answer of `small` leaves `base` as the next stronger step.
    let (_, second) = go(&first, &failed(FailureKind::Timeout), &scope);
    let (next, third) = go(&second.clone().unwrap(), &scored(0.1), &scope);
    assert_eq!(next, "base ESCALATED");
    assert_eq!(third.as_ref().map(|third| (third.hops, third.tried.len())), Some((1, 3)));
    // The chain is used up: the ladder is the last resort.
    let (next, third) = go(&second.unwrap(), &failed(FailureKind::Timeout), &scope);
    assert_eq!(next, "base FALLEN_BACK");
    let (next, fourth) = go(&third.unwrap(), &failed(FailureKind::Timeout), &scope);
    assert_eq!(next, "top FALLEN_BACK");
    assert_eq!(go(&fourth.unwrap(), &failed(FailureKind::Timeout), &scope).0, "nothing_left");
}

#[test]
fn after_a_bad_answer_no_weaker_model_takes_over() {
    let scope = scope(POLICY);
    let (_, on_base) = go(&begun(&scope, "mini"), &scored(0.1), &scope);
    let step = step(on_base.unwrap(), &failed(FailureKind::ProviderError), &scope, &Unguarded, NOW);
    let Step::Next { advance, .. } = step else { panic!("{step:?}") };
    // `small` is stronger than `mini`, whose answer was bad; nothing is known against it.
    assert_eq!(&*advance.selected.model, "top");
    assert_eq!(advance.fallbacks.iter().map(|f| &*f.candidate.model).collect::<Vec<_>>(), ["small"]);
    let (_, on_small) = go(&begun(&scope, "small"), &scored(0.1), &scope);
    let after = go(&on_small.unwrap(), &failed(FailureKind::Timeout), &scope);
    assert_eq!(after.0, "top FALLEN_BACK", "mini is weaker than small");
    assert_eq!(go(&after.1.unwrap(), &failed(FailureKind::Timeout), &scope).0, "nothing_left");
}

#[test]
fn every_way_to_stop_says_so() {
    let scope = scope(POLICY);
    let first = begun(&scope, "mini");
    let (_, on_base) = go(&first, &scored(0.1), &scope);
    let (_, on_top) = go(&on_base.clone().unwrap(), &scored(0.1), &scope);
    assert_eq!(go(&on_top.unwrap(), &scored(0.1), &scope).0, "max_hops");
    let tall = self::scope(&POLICY.replace("max_hops: 2", "max_hops: 9"));
    assert_eq!(go(&begun(&tall, "top"), &scored(0.1), &tall).0, "nothing_stronger");
    let limited = |limit: &str| self::scope(&POLICY.replace("max_hops: 2", &format!("max_hops: 2, {limit}")));
    // mini costs $0.00112, base 0.0056, top 0.0224.
    let thrifty = limited("max_cost_usd: 0.006");
    assert_eq!(go(&begun(&thrifty, "mini"), &scored(0.1), &thrifty).0, "budget");
    let told = Observed { cost_usd: 0.0003, ..scored(0.1) };
    assert_eq!(go(&begun(&thrifty, "mini"), &told, &thrifty).0, "base ESCALATED", "what was told counts");
    let share = limited("budget_share: 0.31");
    assert_eq!(go(&begun(&share, "mini"), &scored(0.1), &share).0, "base ESCALATED");
    assert_eq!(go(&begun(&share, "base"), &scored(0.1), &share).0, "budget");
    let hasty = limited("max_duration_ms: 50");
    assert_eq!(go(&begun(&hasty, "mini"), &scored(0.1), &hasty).0, "deadline");
    assert_eq!(go(&begun(&hasty, "mini"), &scored(0.9), &hasty).0, "accepted", "a good answer is never too late");
    let left = |time_left_ms| Observed { time_left_ms: Some(time_left_ms), ..scored(0.1) };
    assert_eq!(go(&first, &left(1_000), &scope).0, "deadline");
    assert_eq!(go(&first, &left(2_000), &scope).0, "base ESCALATED");
}

#[test]
fn a_policy_that_changed_in_between_decides() {
    let before = scope(POLICY);
    let first = begun(&before, "mini");
    let off = scope(&POLICY.replace("models:", "providers: {c: {enabled: false}}\nmodels:"));
    let next = step(first.clone(), &scored(0.1), &off, &Unguarded, NOW);
    let Step::Next { advance, reasons, continuation } = next else { panic!("{next:?}") };
    assert_eq!(&*advance.selected.model, "top");
    let codes: Vec<_> = reasons.iter().map(|reason| reason.code).collect();
    assert_eq!(codes, [ReasonCode::PolicyChanged, ReasonCode::ProviderDisabled, ReasonCode::Escalated]);
    assert_eq!(continuation.policy, Continuation::head(off.policy().sha256()));
    // The threshold is the new one's, and a chain that is gone is found anew by the routes.
    let strict = scope(&POLICY.replace("score_threshold: 0.6", "score_threshold: 0.8"));
    assert_eq!(go(&first, &scored(0.7), &before).0, "accepted");
    assert_eq!(go(&first, &scored(0.7), &strict).0, "base ESCALATED");
    let renamed =
        scope(&POLICY.replace("quick: [mini, small]", "fast: [small]").replace("chain: quick", "chain: fast"));
    assert_eq!(go(&first, &failed(FailureKind::Timeout), &renamed).0, "small FALLEN_BACK");
    // A model that is gone is still known by its strength.
    let without = scope(
        &POLICY
            .replace("  base:", "  other:")
            .replace("[mini, base, top]", "[mini, other, top]")
            .replace("[top, base]", "[top, other]"),
    );
    let (_, on_base) = go(&first, &scored(0.1), &before);
    assert_eq!(go(&on_base.unwrap(), &scored(0.1), &without).0, "top ESCALATED", "other is as strong as base was");
}

#[test]
fn the_threshold_follows_from_abilities_and_prices() {
    let computed = scope(&POLICY.replace(", score_threshold: 0.6", ""));
    let sharp = scope(&POLICY.replace("score_threshold: 0.6", "scorer: {auc: 0.97, cost_usd: 0.0001}"));
    let after = |scope: &Scope| {
        let (_, after) = go(&begun(scope, "mini"), &failed(FailureKind::Refused), scope);
        after.unwrap().threshold.value()
    };
    // Of `base` against `top`, at difficulty 0.3: P(success) 0.946 and 0.992.
    assert!((0.85..0.992).contains(&after(&computed)), "{}", after(&computed));
    assert!(after(&sharp) < after(&computed), "a scorer that is seldom wrong need not be asked for as much");
}

/// Removes models by chance, the same ones whenever it is asked.
#[derive(Debug)]
struct Chance(u64);

impl Guard for Chance {
    fn review(&self, _: Purpose, offers: &[Offer<'_>]) -> Vec<Option<(ReasonCode, String)>> {
        let hit = |offer: &Offer<'_>| {
            let mut rng = SmallRng::seed_from_u64(
                self.0 ^ Continuation::head(&crate::policy::sha256_hex(offer.model.as_bytes())),
            );
            rng.random_bool(0.15).then(|| (ReasonCode::ProviderDisabled, "by chance".to_owned()))
        };
        offers.iter().map(hit).collect()
    }
}

/// A policy by chance; most validate.
fn document(rng: &mut SmallRng) -> String {
    let n = rng.random_range(1..=10);
    let mut text = String::from("schema: pointsman.policy/v1\nid: p\nversion: v\nproviders:\n");
    for provider in ["a", "b", "c"] {
        writeln!(text, "  {provider}: {{enabled: {}}}", rng.random_bool(0.85)).unwrap();
    }
    text.push_str("models:\n");
    let mut models = Vec::new();
    for index in 0..n {
        let price = f64::from(rng.random_range(0..40_u32)) / 4.0;
        let ability = rng.random_bool(0.7).then(|| f64::from(rng.random_range(-8..16)) / 4.0);
        let provider = ["a", "b", "c"].choose(rng).unwrap();
        let window = if rng.random_bool(0.9) { 100_000 } else { 600 };
        write!(text, "  m{index}: {{provider: {provider}, provider_model: x, context_window_tokens: {window}, ")
            .unwrap();
        write!(text, "price_per_million_tokens: {{input_usd: {price}, output_usd: {price}}}").unwrap();
        if let Some(ability) = ability {
            write!(text, ", ability: {ability}").unwrap();
        }
        if rng.random_bool(0.7) {
            write!(text, ", typical_latency_ms: {}", rng.random_range(1..5_000)).unwrap();
        }
        text.push_str("}\n");
        models.push((index, price, ability));
    }
    let names = |rng: &mut SmallRng, most: usize| {
        let mut all: Vec<usize> = (0..n).collect();
        all.shuffle(rng);
        let names: Vec<String> =
            all[..rng.random_range(1..=most.min(n))].iter().map(|index| format!("m{index}")).collect();
        names.join(", ")
    };
    writeln!(text, "chains: {{c0: [{}], c1: [{}]}}", names(rng, 6), names(rng, 3)).unwrap();
    text.push_str("routes: [{intent: x, tier: simple, chain: c1}, {intent: \"*\", tier: \"*\", chain: c0}]\n");
    // By price, then whatever is not stronger than the step before left out, mostly.
    models.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut ladder: Vec<(usize, f64, Option<f64>)> = Vec::new();
    for model in models {
        let fits = match (ladder.last().and_then(|last| last.2), model.2) {
            (Some(before), Some(ability)) => ability > before,
            _ => true,
        };
        if rng.random_bool(0.9) && (fits || rng.random_bool(0.03)) {
            ladder.push(model);
        }
    }
    let ladder: Vec<String> = ladder.iter().map(|(index, ..)| format!("m{index}")).collect();
    write!(text, "escalation: {{ladder: [{}], max_hops: {}", ladder.join(", "), rng.random_range(0..7)).unwrap();
    if rng.random_bool(0.5) {
        write!(text, ", score_threshold: {}", f64::from(rng.random_range(0..=20_u32)) / 20.0).unwrap();
    }
    if rng.random_bool(0.2) {
        write!(text, ", max_cost_usd: {}", f64::from(rng.random_range(0..30_u32)) / 1_000.0).unwrap();
    }
    if rng.random_bool(0.2) {
        write!(text, ", budget_share: {}", f64::from(rng.random_range(1..12_u32)) / 4.0).unwrap();
    }
    if rng.random_bool(0.1) {
        text.push_str(", max_duration_ms: 2500");
    }
    text.push_str("}\n");
    text
}

fn observed(rng: &mut SmallRng) -> Observed {
    let failures = [
        FailureKind::Timeout,
        FailureKind::RateLimited,
        FailureKind::ProviderError,
        FailureKind::Refused,
        FailureKind::Truncated,
        FailureKind::BadFormat,
    ];
    let failure = rng.random_bool(0.5).then(|| *failures.choose(rng).unwrap());
    Observed {
        score: failure.is_none().then(|| p(f64::from(rng.random_range(0..=10_u32)) / 20.0)),
        scorer: "judge".into(),
        failure,
        tokens_used: rng.random_range(0..4_000),
        cost_usd: if rng.random_bool(0.3) { rng.random_range(0.0..0.02) } else { 0.0 },
        time_left_ms: rng.random_bool(0.2).then(|| rng.random_range(1..6_000)),
    }
}

/// Whether `a` is stronger than `b`, from the document and not from the code under test.
fn is_stronger(policy: &Policy, a: &str, b: &str) -> bool {
    let spec = policy.spec();
    let ladder = spec.base.escalation.ladder.as_deref().unwrap_or_default();
    let at = |name: &str| ladder.iter().position(|step| step == name);
    if let (Some(a), Some(b)) = (at(a), at(b)) {
        return a > b;
    }
    let (a, b): (&ModelSpec, &ModelSpec) = (&spec.models[a], &spec.models[b]);
    match (a.ability, b.ability) {
        (Some(a), Some(b)) => a > b,
        _ => a.price_per_million_tokens.sum() > b.price_per_million_tokens.sum(),
    }
}

#[test]
fn ten_thousand_cascades_over_two_hundred_policies_end_and_never_go_back() {
    let mut rng = SmallRng::seed_from_u64(20_261_121);
    let mut policies: Vec<Arc<Policy>> = Vec::new();
    while policies.len() < 200 {
        let document = document(&mut rng);
        policies.extend(Policy::load(document.as_bytes(), &PolicyOptions::default()).ok().map(Arc::new));
    }
    let cascades = cascades(&key_line("k", 9));
    let (mut steps, mut longest, mut stops) = (0_u32, 0, std::collections::BTreeMap::new());
    for run in 0..10_000_usize {
        let mut policy = Arc::clone(&policies[run % policies.len()]);
        let names: Vec<String> = policy.spec().models.keys().cloned().collect();
        let mut current = begun(&policy.scope("", "").unwrap(), names.choose(&mut rng).unwrap());
        current.chain = ["c0", "c1", "gone"].choose(&mut rng).copied().unwrap().into();
        current.difficulty = rng.random_bool(0.8).then(|| p(rng.random()));
        let mut tried = vec![name_of(&policy, current.tried[0].model)];
        let mut answered: Vec<String> = Vec::new();
        let mut now = NOW;
        let mut foretold: Option<String> = None;
        let mut last_guard = None;
        loop {
            let mut changed = false;
            if rng.random_bool(0.1) {
                policy = Arc::clone(policies.choose(&mut rng).unwrap());
                changed = true;
            }
            let guard = Chance(if rng.random_bool(0.3) { rng.random() } else { run as u64 });
            changed |= last_guard.replace(guard.0) != Some(guard.0);
            let scope = policy.scope("", "").unwrap();
            let seen = observed(&mut rng);
            now += rng.random_range(0..1_500);
            let token = cascades.seal(&current, now).expect("bounded");
            assert_eq!(cascades.open(&token, opening("", now)).as_ref(), Ok(&current));
            let next = step(current.clone(), &seen, &scope, &guard, now);
            assert_eq!(next, step(current.clone(), &seen, &scope, &guard, now), "the same again");
            let unavailable = seen.failure.is_some_and(FailureKind::is_unavailability);
            let (advance, reasons, after) = match next {
                Step::Stop(stop) => {
                    if stop.reason == StopReason::MaxHops {
                        assert!(current.hops >= scope.max_hops());
                    }
                    *stops.entry(stop.reason.as_str()).or_insert(0) += 1;
                    break;
                }
                Step::Next { advance, reasons, continuation } => (*advance, reasons, *continuation),
            };
            steps += 1;
            if !unavailable {
                answered.push(tried.last().unwrap().clone());
            }
            let model = advance.selected.model.to_string();
            assert!(!tried.contains(&model), "{tried:?} comes back to {model}");
            let fallbacks: Vec<String> = advance.fallbacks.iter().map(|f| f.candidate.model.to_string()).collect();
            for name in std::iter::once(&model).chain(&fallbacks) {
                assert!(!tried.contains(name), "{name} is offered again");
                for weak in answered.iter().filter(|weak| policy.spec().models.contains_key(*weak)) {
                    assert!(
                        is_stronger(&policy, name, weak),
                        "{name} is not stronger than {weak}\n{}",
                        policy.document()
                    );
                }
                let provider = &policy.spec().models[name].provider;
                assert!(policy.spec().base.providers[provider].enabled, "{name} is off");
            }
            assert!(!fallbacks.contains(&model));
            assert!(after.cost_usd >= current.cost_usd && after.tokens_used >= current.tokens_used);
            assert_eq!(after.hops, current.hops + u32::from(!unavailable));
            assert!(after.hops <= scope.max_hops() || unavailable);
            assert_eq!(after.tried.len(), current.tried.len() + 1);
            assert!(!reasons.is_empty());
            if let (Some(foretold), false, false) = (&foretold, unavailable, changed)
                && seen.cost_usd == 0.0
                && seen.time_left_ms.is_none()
            {
                assert_eq!(*foretold, model, "what was foretold comes");
            }
            foretold = advance.escalation.map(|escalation| escalation.next.model.to_string());
            tried.push(model);
            current = after;
            longest = longest.max(tried.len());
            assert!(tried.len() <= MAX_ATTEMPTS);
        }
    }
    // Otherwise the properties above hold for want of anything to hold for.
    assert!(steps > 4_000 && longest >= 5 && stops.len() == 6, "{steps} steps, at most {longest}, {stops:?}");
}

fn name_of(policy: &Policy, hash: u64) -> String {
    policy.model_name(hash).unwrap().to_string()
}
