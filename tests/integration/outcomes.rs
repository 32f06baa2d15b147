//! What callers report, and what follows from it: breakers, limits, sessions, the outcome log, the scorecard.

use std::time::Duration;

use pointsman::config::RawConfig;
use pointsman::decisions::read_outcomes;
use pointsman::domain::{Attempt, FailureKind as Failure};
use pointsman::rpc::proto::{self, FailureKind, Observed, ReportOutcomeRequest};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::support::{Service, ask, eventually, get, run};

/// Three models of three providers; everything goes the same way, so that no test depends on what a text looks like.
pub(crate) const POLICY: &str = r#"
schema: pointsman.policy/v1
id: outcomes
version: "1"
models:
  a: {provider: one, provider_model: a, price_per_million_tokens: {input_usd: 3, output_usd: 1000}, context_window_tokens: 100000, typical_latency_ms: 50}
  b: {provider: two, provider_model: b, price_per_million_tokens: {input_usd: 2, output_usd: 100}, context_window_tokens: 100000, typical_latency_ms: 50}
  c: {provider: three, provider_model: c, price_per_million_tokens: {input_usd: 1, output_usd: 10}, context_window_tokens: 100000, typical_latency_ms: 50}
chains: {all: [a, b, c], weak: [c, b]}
routes:
  - {intent: "*", tier: complex, chain: all}
  - {intent: "*", tier: "*", chain: weak}
rules:
  - {name: hard, when: {keywords: [hard]}, then: {intent: other, tier: complex}}
  - {name: easy, when: {keywords: [easy]}, then: {intent: other}}
thresholds: {min_confidence: 0.01}
"#;

/// What came of `model` for `decision`.
pub(crate) fn outcome(decision: &str, model: &str, failure: FailureKind) -> ReportOutcomeRequest {
    ReportOutcomeRequest {
        decision_id: decision.to_owned(),
        model: model.to_owned(),
        observed: Some(Observed { failure: failure.into(), ..Observed::default() }),
        latency_ms: 40,
        attempt: 0,
        continuation: String::new(),
    }
}

fn selected(decision: &proto::Decision) -> &str {
    &decision.selected.as_ref().unwrap().model
}

fn fallbacks(decision: &proto::Decision) -> Vec<&str> {
    decision.fallbacks.iter().map(|fallback| fallback.candidate.as_ref().unwrap().model.as_str()).collect()
}

pub(crate) fn codes(decision: &proto::Decision) -> Vec<&str> {
    decision.reasons.iter().map(|reason| reason.code.as_str()).collect()
}

async fn decide(service: &Service, request: proto::RouteRequest) -> proto::Decision {
    service.router().await.route(request).await.unwrap().into_inner().decision.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fails_goes_out_of_service_and_comes_back() {
    let health = "health: {model: {probe_after_ms: 200}}\n";
    let (service, _dir, _) = Service::with_policy(&format!("{POLICY}{health}"), RawConfig::default());
    let mut router = service.router().await;
    let first = decide(&service, ask("a hard one")).await;
    assert_eq!((selected(&first), fallbacks(&first)), ("a", vec!["b", "c"]));
    for _ in 0..5 {
        let decision = decide(&service, ask("a hard one")).await;
        router.report_outcome(outcome(&decision.decision_id, "a", FailureKind::ProviderError)).await.unwrap();
    }
    let without = decide(&service, ask("a hard one")).await;
    assert_eq!((selected(&without), fallbacks(&without)), ("b", vec!["c"]));
    assert!(codes(&without).contains(&"BREAKER_OPEN"), "{:?}", codes(&without));
    let card: serde_json::Value = serde_json::from_str(&get(service.admin, "/status").body).unwrap();
    let a = &card["health"]["models"][0];
    assert_eq!((a["name"].as_str(), a["breaker"].as_str(), a["outcomes"].as_u64()), (Some("a"), Some("open"), Some(5)));
    assert_eq!(service.metric("pointsman_breaker_state{scope=\"model\",name=\"a\"}"), Some(2.0));
    // Good answers of one probe after another close it.
    for _ in 0..2 {
        let probe = eventually("a probe is due", async || {
            let decision = decide(&service, ask("a hard one")).await;
            codes(&decision).contains(&"BREAKER_PROBE").then_some(decision)
        });
        let probe = probe.await;
        assert_eq!(selected(&probe), "a");
        let beside = decide(&service, ask("a hard one")).await;
        assert_eq!((selected(&beside), fallbacks(&beside)), ("b", vec!["c", "a"]), "one probe at a time");
        router.report_outcome(outcome(&probe.decision_id, "a", FailureKind::Unspecified)).await.unwrap();
    }
    let again = decide(&service, ask("a hard one")).await;
    assert_eq!((selected(&again), codes(&again).contains(&"BREAKER_PROBE")), ("a", false));
    assert_eq!(service.metric("pointsman_breaker_state{scope=\"model\",name=\"a\"}"), Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_everything_out_of_service_the_least_bad_answers() {
    let (service, _dir, _) = Service::with_policy(POLICY, RawConfig::default());
    let mut router = service.router().await;
    let reports: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .flat_map(|model| (0..5).map(move |n| outcome(&format!("{model}{n}"), model, FailureKind::Timeout)))
        .collect();
    let answer = router.report_outcomes(tokio_stream::iter(reports)).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.refused, answer.first_refusal), (15, 0, None));
    let decision = decide(&service, ask("a hard one")).await;
    assert_eq!((selected(&decision), fallbacks(&decision).len()), ("a", 0));
    assert!(codes(&decision).contains(&"LAST_RESORT"), "{:?}", codes(&decision));
    assert!((100..=1_000).contains(&decision.retry_after_ms));
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_checked_counted_and_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let settings = RawConfig { decision_log: Some(dir.path().to_owned()), ..RawConfig::default() };
    let (service, _policy_dir, policy) = Service::with_policy(POLICY, settings);
    let mut router = service.router().await;
    let refused = router.report_outcome(outcome("", "a", FailureKind::Timeout)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, "decision_id");
    let decision = decide(&service, ask("an easy one")).await;
    let id = decision.decision_id.as_str();
    let good = ReportOutcomeRequest {
        observed: Some(Observed { score: Some(0.25), scorer: "judge".into(), cost_usd: 0.5, ..Observed::default() }),
        ..outcome(id, "b", FailureKind::Unspecified)
    };
    let failed = outcome(id, "c", FailureKind::RateLimited);
    let bad = ReportOutcomeRequest { latency_ms: u64::MAX, ..failed.clone() };
    let stranger = outcome("elsewhere", "nobody", FailureKind::Unspecified);
    let stream = tokio_stream::iter([failed, bad, good, stranger]);
    let answer = router.report_outcomes(stream).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.refused, answer.first_refused_index), (3, 1, 1));
    assert_eq!(answer.first_refusal.unwrap().code, i32::from(Code::InvalidArgument));
    // The fallback is told from the decision.
    let line = "pointsman_outcomes_total{model=\"b\",attempt=\"fallback\",result=\"ok\"}";
    assert_eq!(service.metric(line), Some(1.0));
    assert_eq!(service.metric_sum("pointsman_outcomes_total"), 2.0, "a model that nobody has is no series");
    let written = eventually("the log is written", async || {
        let text = std::fs::read_to_string(dir.path().join("outcomes.jsonl")).unwrap();
        let read = read_outcomes(text.lines());
        (read.outcomes.len() == 3).then_some(read.outcomes)
    });
    let written = written.await;
    let by_model = |model: &str| written.iter().find(|outcome| outcome.model == model).unwrap();
    assert_eq!((by_model("c").attempt, by_model("c").failure), (Some(Attempt::First), Some(Failure::RateLimited)));
    let b = by_model("b");
    assert_eq!((b.attempt, b.score, b.cost_usd, &*b.scorer), (Some(Attempt::Fallback), Some(0.25), 0.5, "judge"));
    assert_eq!(b.decision_id, id);
    assert_eq!(by_model("nobody").attempt, None);
    // Both logs are in one folder, and each reader takes its own.
    let (folder, policy) = (dir.path().display().to_string(), policy.display().to_string());
    let (code, report, err) =
        run(&["policy", "simulate", "--format", "json", "--log", &folder, "--candidate", &policy]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{code} {err}"));
    assert_eq!((&report["lines"]["decisions"], &report["lines"]["malformed"]), (&1.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_makes_decisions_cheaper_and_then_refuses_them() {
    // 512 tokens of an answer: a about 0.5 dollars, b 0.05, c 0.005.
    let tenants = "tenants: {acme: {limits: {soft_budget_usd: 0.5, hard_budget_usd: 0.62}}}\n";
    let (service, _dir, _) = Service::with_policy(&format!("{POLICY}{tenants}"), RawConfig::default());
    let mut router = service.router().await;
    let request = |tenant: &str| proto::RouteRequest { tenant: tenant.into(), ..ask("a hard one") };
    let first = decide(&service, request("acme")).await;
    assert_eq!(selected(&first), "a");
    let second = decide(&service, request("acme")).await;
    assert_eq!((selected(&second), fallbacks(&second)), ("c", vec!["b", "a"]));
    assert!(codes(&second).contains(&"SOFT_BUDGET_SPENT"), "{:?}", codes(&second));
    let high = proto::RouteRequest { priority: proto::Priority::High.into(), ..request("acme") };
    let third = decide(&service, high).await;
    assert_eq!(selected(&third), "c", "what a would cost does not fit, so it is cheaper all the same");
    assert_eq!(selected(&decide(&service, request("")).await), "a", "others have budgets of their own");
    let refused = loop {
        match router.route(request("acme")).await {
            Ok(decision) => assert_eq!(selected(&decision.into_inner().decision.unwrap()), "c"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let details = refused.get_error_details();
    assert_eq!(details.quota_failure().unwrap().violations[0].subject, "tenant \"acme\"");
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::from_millis(99));
    // The first answer cost less than was reserved, so there is room again.
    let settled = ReportOutcomeRequest {
        observed: Some(Observed { cost_usd: 0.1, ..Observed::default() }),
        ..outcome(&first.decision_id, "a", FailureKind::Unspecified)
    };
    router.report_outcome(settled).await.unwrap();
    decide(&service, request("acme")).await;
    assert!(service.metric("pointsman_limited_requests_total{tenant=\"acme\",limit=\"budget\"}") >= Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_may_ask_only_so_often_and_made_up_ones_share_what_there_is() {
    let limits = "limits: {requests_per_second: 0.01, burst: 2}\ntenants: {acme: {limits: {burst: 3}}}\n";
    let (service, _dir, _) = Service::with_policy(&format!("{POLICY}{limits}"), RawConfig::default());
    let mut router = service.router().await;
    let mut admitted = async |tenant: &str| {
        let request =
            proto::RouteRequest { tenant: tenant.into(), priority: proto::Priority::High.into(), ..ask("an easy one") };
        match router.route(request).await {
            Ok(_) => true,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                false
            }
        }
    };
    for _ in 0..3 {
        assert!(admitted("acme").await);
    }
    assert!(!admitted("acme").await);
    assert!(admitted("made-up").await && admitted("another").await);
    assert!(!admitted("a-third").await && !admitted("").await, "names that callers make up share one account");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_on_its_model_and_asks_for_more_after_a_bad_answer() {
    let sessions = "sessions: {stick_s: 300, retry_s: 300, raise_s: 300}\n";
    let (service, _dir, _) = Service::with_policy(&format!("{POLICY}{sessions}"), RawConfig::default());
    let mut router = service.router().await;
    let request = |session: &str, text: &str| proto::RouteRequest { session_id: session.into(), ..ask(text) };
    let strong = decide(&service, request("one", "a hard question")).await;
    assert_eq!(selected(&strong), "a");
    let stays = decide(&service, request("one", "an easy question")).await;
    assert_eq!(selected(&stays), "a");
    assert!(codes(&stays).contains(&"SESSION_STICKY"), "{:?}", codes(&stays));
    assert_eq!(selected(&decide(&service, request("two", "an easy question")).await), "c", "others do not");
    // The same text again asks for more than what answered it before.
    let more = decide(&service, request("two", "an easy question")).await;
    assert!(codes(&more).contains(&"SESSION_RAISED"), "{:?}", codes(&more));
    let raised = async |session: &str, text: &str| {
        let decision = decide(&service, request(session, text)).await;
        codes(&decision).contains(&"SESSION_RAISED")
    };
    let weak = decide(&service, request("three", "an easy thing")).await;
    assert!(!raised("three", "another easy thing").await);
    router.report_outcome(outcome(&weak.decision_id, "c", FailureKind::Refused)).await.unwrap();
    assert!(raised("three", "a third easy thing").await);
    assert!(!raised("four", "an easy thing").await);
}
