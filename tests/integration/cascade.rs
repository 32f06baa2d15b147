//! Cascades over gRPC: fallbacks, stronger steps, stops, tokens, keys, and a policy that changes in between.

use std::fmt::Write as _;

use pointsman::config::RawConfig;
use pointsman::rpc::proto::{self, FailureKind, StopReason, escalate_response::Step};
use tonic::{Code, Status};

use super::support::{SMALL_POLICY, Service, ask, eventually};

#[path = "../../examples/cascade.rs"]
#[allow(dead_code, unreachable_pub, reason = "its main is for `cargo run --example cascade`")]
mod example;

const QUESTION: &str = "What is the capital of Australia?";

/// Three steps, two of them in the quick chain.
fn policy() -> String {
    SMALL_POLICY
        .replace(
            "  big:",
            "  middle:
    provider: zenith
    provider_model: middle-1
    price_per_million_tokens: {input_usd: 0.5, output_usd: 2.0}
    context_window_tokens: 100000
    typical_latency_ms: 1500
    ability: 1.5
  big:",
        )
        .replace("quick: [little, big]", "quick: [little, middle]")
        .replace("routes:", "escalation: {ladder: [little, middle, big], score_threshold: 0.7}\nroutes:")
        .replace("tier: complex, chain: strong", "tier: complex, chain: quick")
}

async fn route(service: &Service, request: proto::RouteRequest) -> proto::Decision {
    service.router().await.route(request).await.unwrap().into_inner().decision.unwrap()
}

async fn escalate(
    service: &Service,
    decision: &proto::Decision,
    tenant: &str,
    observed: proto::Observed,
) -> Result<Step, Status> {
    let request = proto::EscalateRequest {
        continuation: decision.continuation.clone(),
        observed: Some(observed),
        tenant: tenant.to_owned(),
    };
    Ok(service.router().await.escalate(request).await?.into_inner().step.unwrap())
}

fn scored(score: f64) -> proto::Observed {
    proto::Observed { score: Some(score), scorer: "judge-v1".into(), ..Default::default() }
}

fn failed(failure: FailureKind) -> proto::Observed {
    proto::Observed { failure: failure.into(), ..Default::default() }
}

fn next(step: Result<Step, Status>) -> proto::Decision {
    match step {
        Ok(Step::Decision(decision)) => decision,
        other => panic!("{other:?}"),
    }
}

fn stopped(step: Result<Step, Status>) -> StopReason {
    match step {
        Ok(Step::Stop(stop)) => stop.reason(),
        other => panic!("{other:?}"),
    }
}

fn model(decision: &proto::Decision) -> &str {
    &decision.selected.as_ref().unwrap().model
}

fn has(decision: &proto::Decision, code: &str) -> bool {
    decision.reasons.iter().any(|reason| reason.code == code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cascade_falls_back_climbs_and_ends() {
    let logs = tempfile::tempdir().unwrap();
    let settings = RawConfig { decision_log: Some(logs.path().to_owned()), ..RawConfig::default() };
    let (service, _dir, _path) = Service::with_policy(&policy(), settings);
    let first = route(&service, proto::RouteRequest { request_id: "r-1".into(), ..ask(QUESTION) }).await;
    assert_eq!((model(&first), first.cascade.is_none()), ("little", true));
    assert!((150..500).contains(&first.continuation.len()), "{} characters", first.continuation.len());
    let escalation = first.escalation.as_ref().unwrap();
    assert!(escalation.probability.is_some() && escalation.expected_cost_usd.unwrap() > 0.0);

    assert_eq!(stopped(escalate(&service, &first, "", scored(0.7)).await), StopReason::Accepted);
    let fallback = next(escalate(&service, &first, "", failed(FailureKind::Timeout)).await);
    assert_eq!((model(&fallback), has(&fallback, "FALLEN_BACK")), ("middle", true));
    let told = proto::Observed { tokens_used: 900, cost_usd: 0.002, ..scored(0.1) };
    let top = next(escalate(&service, &fallback, "", told).await);
    assert_eq!((model(&top), has(&top, "ESCALATED")), ("big", true));
    let cascade = top.cascade.as_ref().unwrap();
    assert_eq!((cascade.attempts, cascade.hops, cascade.tokens_used), (2, 1, 900));
    assert_eq!((cascade.cost_usd, &cascade.first_decision_id), (0.002, &first.decision_id));
    assert_eq!(
        (&top.request_id, top.complexity.as_ref(), top.confidence.as_ref()),
        (
            &first.request_id,
            first.complexity.clone().map(|known| proto::Complexity { tier_probabilities: vec![], ..known }).as_ref(),
            first.confidence.as_ref()
        )
    );
    assert!(top.escalation.is_none());
    let end = escalate(&service, &top, "", scored(0.3)).await;
    assert_eq!(stopped(end), StopReason::NothingStronger);
    let end = escalate(&service, &top, "", failed(FailureKind::ProviderError)).await;
    assert_eq!(stopped(end), StopReason::NothingLeft);

    let mut times = Vec::new();
    for _ in 0..200 {
        let step = next(escalate(&service, &first, "", scored(0.1)).await);
        assert_eq!(model(&step), "middle");
        times.push(step.timings.unwrap().total_us);
    }
    times.sort_unstable();
    println!("server time of Escalate: p50 {} us, p99 {} us", times[100], times[197]);
    assert!(times[100] < 1_500, "ten times what it should be, whatever else the machine does: {} us", times[100]);

    let metric =
        |cause, step| service.metric(&format!("pointsman_escalations_total{{cause=\"{cause}\",step=\"{step}\"}}"));
    assert_eq!((metric("timeout", "fallback"), metric("score", "accepted")), (Some(1.0), Some(1.0)));
    assert_eq!(metric("score", "stronger"), Some(201.0));
    service.join();
    let log = std::fs::read_to_string(logs.path().join("decisions.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<_> = lines.iter().filter(|line| line["type"] == "escalation").collect();
    assert_eq!(steps.len(), 205);
    assert_eq!(steps[2]["model"], "middle");
    assert_eq!(steps[2]["observed"]["scorer"], "judge-v1");
    assert_eq!((&steps[2]["step"]["model"], &steps[2]["step"]["hops"]), (&"big".into(), &1.into()));
    assert_eq!(steps[3]["step"]["reason"], "nothing_stronger");
    assert!(!log.contains("Australia"), "no text is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_continuation_is_told_by_the_code() {
    let (service, _dir, _path) = Service::with_policy(&policy(), RawConfig::default());
    let first = route(&service, ask(QUESTION)).await;
    let of_tenant = route(&service, proto::RouteRequest { tenant: "known".into(), ..ask(QUESTION) }).await;
    let with = |continuation: String| proto::Decision { continuation, ..Default::default() };
    let mut changed = first.continuation.clone().into_bytes();
    changed[40] = if changed[40] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).unwrap();
    for (decision, tenant, observed, code) in [
        (&with(String::new()), "", scored(0.1), Code::InvalidArgument),
        (&with(changed), "", scored(0.1), Code::PermissionDenied),
        (&with("nonsense".into()), "", scored(0.1), Code::PermissionDenied),
        (&first, "known", scored(0.1), Code::PermissionDenied),
        (&of_tenant, "", scored(0.1), Code::PermissionDenied),
        (&first, "", proto::Observed::default(), Code::InvalidArgument),
        (&first, "", scored(f64::NAN), Code::InvalidArgument),
        (&first, "", scored(1.5), Code::InvalidArgument),
        (&first, "", proto::Observed { cost_usd: -1.0, ..scored(0.1) }, Code::InvalidArgument),
        (&first, "", proto::Observed { score: Some(0.5), ..failed(FailureKind::Timeout) }, Code::InvalidArgument),
        (&first, "", proto::Observed { failure: 99, ..Default::default() }, Code::InvalidArgument),
    ] {
        let status = escalate(&service, decision, tenant, observed.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{observed:?}: {status:?}");
        assert!(!status.message().contains("Australia"));
    }
    let after = next(escalate(&service, &of_tenant, "known", failed(FailureKind::Refused)).await);
    assert_eq!((model(&of_tenant), model(&after)), ("middle", "big"), "only zenith is allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_with_the_keys_continues_under_the_policy_of_then() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let line = |id: &str, byte: u8| format!("hmac-sha256 {id} {}\n", hex::encode([byte; 32]));
    std::fs::write(&keys, line("one", 1)).unwrap();
    let settings = || RawConfig { continuation_keys_file: Some(keys.clone()), ..RawConfig::default() };
    let (here, _here_dir, _) = Service::with_policy(&policy(), settings());
    let (there, _there_dir, there_policy) = Service::with_policy(&policy(), settings());
    let (alone, _alone_dir, _) = Service::with_policy(&policy(), RawConfig::default());
    let first = route(&here, ask(QUESTION)).await;
    let step = next(escalate(&there, &first, "", scored(0.1)).await);
    assert_eq!((model(&step), has(&step, "POLICY_CHANGED")), ("middle", false));
    assert_eq!(escalate(&alone, &first, "", scored(0.1)).await.unwrap_err().code(), Code::PermissionDenied);

    // The other replica's policy moves on: middle is off.
    let newer = policy()
        .replace("version: \"1\"", "version: \"2\"")
        .replace("zenith: {enabled: true}", "zenith: {enabled: false}");
    std::fs::write(&there_policy, newer).unwrap();
    eventually("the policy is followed", async || (there.metric("pointsman_policy_loads")? >= 2.0).then_some(())).await;
    assert_eq!(stopped(escalate(&there, &first, "", scored(0.1)).await), StopReason::NothingStronger);

    // A new key signs and the old one is still accepted; then the old one is gone.
    std::fs::write(&keys, line("two", 2) + &line("one", 1)).unwrap();
    let newest = eventually("the new key signs", async || {
        let decision = route(&here, ask(QUESTION)).await;
        (decision.continuation.get(..6) != first.continuation.get(..6)).then_some(decision)
    })
    .await;
    assert_eq!(model(&next(escalate(&here, &first, "", scored(0.1)).await)), "middle");
    std::fs::write(&keys, line("two", 2)).unwrap();
    eventually("the old key is refused", async || {
        escalate(&here, &first, "", scored(0.1)).await.is_err().then_some(())
    })
    .await;
    assert_eq!(model(&next(escalate(&here, &newest, "", scored(0.1)).await)), "middle");
}

/// The example is what the documentation points at; here it runs as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worked_client_comes_to_its_answers() {
    let document = include_str!("../../examples/cascade.yaml");
    let (service, _dir, _path) = Service::with_policy(document, RawConfig::default());
    let journeys = example::journeys(service.grpc).await.unwrap();
    let hops =
        |journey: &example::Journey| journey.hops.iter().map(|hop| (hop.model.clone(), hop.hops)).collect::<Vec<_>>();
    let path =
        |models: &[(&str, u32)]| models.iter().map(|(model, hops)| ((*model).to_owned(), *hops)).collect::<Vec<_>>();
    let expected = [
        path(&[("little", 0)]),
        // A bad answer, then a timeout in its place.
        path(&[("little", 0), ("middle", 1), ("big", 1)]),
        // The first is down, the second does.
        path(&[("little", 0), ("middle", 0)]),
        path(&[("little", 0), ("middle", 1), ("big", 1)]),
    ];
    assert_eq!(journeys.iter().map(hops).collect::<Vec<_>>(), expected);
    assert!(journeys.iter().all(|journey| journey.answer.is_some()), "{journeys:?}");
    assert!(journeys.iter().all(|journey| journey.stopped == Some(StopReason::Accepted)), "{journeys:?}");
}

/// From served decisions and reported outcomes to a candidate policy, with the real binary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_become_a_candidate_policy() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, outcomes) = (dir.path().join("decisions"), dir.path().join("outcomes.jsonl"));
    let settings = RawConfig { decision_log: Some(logs.clone()), ..RawConfig::default() };
    let (service, _policy_dir, policy_path) = Service::with_policy(&policy(), settings);
    let subjects = ["rivers", "bridges", "the moon", "old coins", "bread", "glaciers", "trams", "violins"];
    let tasks = ["Name three facts about", "Write a poem about", "Prove a theorem on", "Explain the physics of"];
    let mut lines = String::new();
    for round in 0..4_usize {
        for (index, (subject, task)) in subjects.iter().flat_map(|s| tasks.iter().map(move |t| (s, t))).enumerate() {
            let decision = route(&service, ask(format!("{task} {subject}, version {round}"))).await;
            // Little is right about a third of the time, whatever it is asked.
            let line = serde_json::json!({
                "time_unix_ms": round * 100 + index, "decision_id": decision.decision_id, "model": model(&decision),
                "score": f64::from(u8::from((round + index) % 3 == 0)), "tokens": 0, "cost_usd": 0.0, "latency_ms": 0,
            });
            writeln!(lines, "{line}").unwrap();
        }
    }
    service.join();
    std::fs::write(&outcomes, lines + "{torn").unwrap();
    let candidate = dir.path().join("candidate.yaml");
    let text = |path: &std::path::Path| path.display().to_string();
    let (logs, outcomes, before, after) = (text(&logs), text(&outcomes), text(&policy_path), text(&candidate));
    let arguments = ["calibrate", "--outcomes", &outcomes, "--decisions", &logs, "--policy", &before];
    let (code, report, error) =
        super::support::run(&[&arguments[..], &["--output", &after, "--resamples", "50"]].concat());
    assert_eq!(code, 0, "{error}");
    for part in ["128 graded first attempts", "1 malformed", "little: ", "population stability", "doubly robust"] {
        assert!(report.contains(part), "{part} is not in {report}");
    }
    let written = std::fs::read_to_string(&candidate).unwrap();
    assert!(written.contains("+calibrated"), "{written}");
    let (code, json, _) = super::support::run(&[&arguments[..], &["--json", "--resamples", "20"]].concat());
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    let little = &found["models"][0];
    assert_eq!((code, &little["model"]), (0, &"little".into()));
    assert!(little["fit"]["ability"].as_f64().unwrap() < little["before"].as_f64().unwrap(), "{little}");
    let (code, simulated, error) = super::support::run(&["policy", "simulate", "--log", &logs, "--candidate", &after]);
    assert_eq!(code, 0, "{error}");
    assert!(simulated.contains("128 of 128 logged decisions replayed exactly"), "{simulated}");
}
