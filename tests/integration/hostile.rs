//! What a careless or hostile caller sends about outcomes and cascades: refused by field, or taken once, and nothing else
//! is the worse for it.

use pointsman::config::RawConfig;
use pointsman::decisions::read_outcomes;
use pointsman::rpc::proto::{self, FailureKind, Observed, ReportOutcomeRequest, escalate_response::Step};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::outcomes::{POLICY, codes, outcome};
use super::support::{SMALL_POLICY, Service, ask};

async fn decide(service: &Service, tenant: &str) -> proto::Decision {
    let request = proto::RouteRequest { tenant: tenant.into(), ..ask("a hard one") };
    service.router().await.route(request).await.unwrap().into_inner().decision.unwrap()
}

fn breaker_of_a(service: &Service) -> Option<f64> {
    service.metric("pointsman_breaker_state{scope=\"model\",name=\"a\"}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_are_none_are_refused_by_field() {
    let (service, _dir, _) = Service::with_policy(POLICY, RawConfig::default());
    let mut router = service.router().await;
    let decision = decide(&service, "").await;
    let seen = |observed: Observed| observed;
    let cases = [
        (seen(Observed { score: Some(f64::NAN), ..Observed::default() }), "observed.score"),
        (seen(Observed { score: Some(-0.01), ..Observed::default() }), "observed.score"),
        (seen(Observed { score: Some(f64::INFINITY), ..Observed::default() }), "observed.score"),
        (seen(Observed { score: Some(0.5), cost_usd: -1.0, ..Observed::default() }), "observed.cost_usd"),
        (seen(Observed { score: Some(0.5), cost_usd: 1e308, ..Observed::default() }), "observed.cost_usd"),
        (seen(Observed { score: Some(0.5), cost_usd: f64::NAN, ..Observed::default() }), "observed.cost_usd"),
        (seen(Observed { failure: -7, ..Observed::default() }), "observed.failure"),
        (seen(Observed { score: Some(0.5), scorer: "s".repeat(300), ..Observed::default() }), "observed.scorer"),
    ];
    for (observed, field) in cases {
        let report = ReportOutcomeRequest {
            observed: Some(observed.clone()),
            ..outcome(&decision.decision_id, "a", FailureKind::Unspecified)
        };
        let step = proto::EscalateRequest {
            continuation: decision.continuation.clone(),
            observed: Some(observed.clone()),
            tenant: String::new(),
        };
        let refusals =
            [router.report_outcome(report).await.unwrap_err(), router.escalate(step).await.map(drop).unwrap_err()];
        for status in refusals {
            assert_eq!(status.code(), Code::InvalidArgument, "{observed:?}: {status:?}");
            let violations = status.get_error_details().bad_request().unwrap().field_violations.clone();
            assert_eq!(violations[0].field, field, "{observed:?}");
        }
    }
    for wrong in
        [outcome(&"d".repeat(129), "a", FailureKind::Timeout), outcome("d", &"m".repeat(257), FailureKind::Timeout)]
    {
        assert_eq!(router.report_outcome(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(service.metric_sum("pointsman_outcomes_total"), 0.0, "what was refused is not counted");
    // As many tokens as fit a number are no cost: they are taken down as told.
    let most = Observed { score: Some(0.1), tokens_used: u64::MAX, ..Observed::default() };
    let step = proto::EscalateRequest {
        continuation: decision.continuation.clone(),
        observed: Some(most.clone()),
        tenant: String::new(),
    };
    let step = router.escalate(step).await.unwrap().into_inner().step.unwrap();
    assert!(matches!(step, Step::Stop(_)) || matches!(&step, Step::Decision(next) if !next.continuation.is_empty()));
    let report =
        ReportOutcomeRequest { observed: Some(most), ..outcome(&decision.decision_id, "a", FailureKind::Unspecified) };
    router.report_outcome(report).await.unwrap();
    assert_eq!(service.metric_sum("pointsman_outcomes_total"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_is_sent_again_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = RawConfig { decision_log: Some(dir.path().to_owned()), ..RawConfig::default() };
    let tenants = "tenants: {acme: {limits: {hard_budget_usd: 5}}}\n";
    let (service, _dir, _) = Service::with_policy(&format!("{POLICY}{tenants}"), settings);
    let mut router = service.router().await;
    let decision = decide(&service, "acme").await.decision_id;
    let report = ReportOutcomeRequest {
        observed: Some(Observed { score: Some(0.9), cost_usd: 0.3, ..Observed::default() }),
        ..outcome(&decision, "a", FailureKind::Unspecified)
    };
    for _ in 0..5 {
        router.report_outcome(report.clone()).await.unwrap();
    }
    let stream = tokio_stream::iter(vec![report.clone(); 20]);
    let answer = router.report_outcomes(stream).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.refused), (20, 0), "who sends again is not at fault");
    assert_eq!(service.metric_sum("pointsman_outcomes_total"), 1.0);
    // Another answer to the same decision is another one.
    let fallback = ReportOutcomeRequest { model: "b".into(), ..report };
    router.report_outcome(fallback).await.unwrap();
    assert_eq!(service.metric_sum("pointsman_outcomes_total"), 2.0);
    decide(&service, "acme").await;
    let spent = service.metric("pointsman_budget_spent_usd{tenant=\"acme\"}").unwrap();
    assert!((spent - 0.6).abs() < 1e-9, "two answers of 0.3: {spent}");
    service.join();
    let log = std::fs::read_to_string(dir.path().join("outcomes.jsonl")).unwrap();
    assert_eq!(read_outcomes(log.lines()).outcomes.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_another_time_do_not_move_breakers() {
    let (service, _dir, _) = Service::with_policy(POLICY, RawConfig::default());
    let mut router = service.router().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let made = |seconds: u64| uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0)).to_string();
    for n in 0..20 {
        let old = outcome(&made(now - 3_600 - n), "a", FailureKind::ProviderError);
        router.report_outcome(old).await.unwrap();
    }
    assert_eq!(breaker_of_a(&service), Some(0.0), "an outage of an hour ago, reported now");
    assert_eq!(service.metric_sum("pointsman_outcomes_total"), 20.0, "it is counted, and in the log");
    // A clock that is ahead makes decisions of the future; they are as good as those of now.
    for n in 0..5 {
        let early = outcome(&made(now + 3_600 + n), "a", FailureKind::ProviderError);
        router.report_outcome(early).await.unwrap();
    }
    assert_eq!(breaker_of_a(&service), Some(2.0));
}

/// The keys are shared and the policies have nothing in common: two environments, or a roll-out halfway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cascade_meets_a_policy_that_shares_nothing_with_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, format!("hmac-sha256 k {}\n", "05".repeat(32))).unwrap();
    let settings = || RawConfig { continuation_keys_file: Some(keys.clone()), ..RawConfig::default() };
    let (here, _here, _) = Service::with_policy(POLICY, settings());
    // Refuses tenants that it does not have.
    let (there, _there, _) = Service::with_policy(SMALL_POLICY, settings());
    let mut router = there.router().await;
    let mut step = async |decision: &proto::Decision, tenant: &str, observed: Observed| {
        let continuation = decision.continuation.clone();
        let request = proto::EscalateRequest { continuation, observed: Some(observed), tenant: tenant.to_owned() };
        router.escalate(request).await.map(|answer| answer.into_inner().step.unwrap())
    };
    let (first, of_tenant) = (decide(&here, "").await, decide(&here, "stranger").await);
    let timeout = Observed { failure: FailureKind::Timeout.into(), ..Observed::default() };
    let low = Observed { score: Some(0.1), ..Observed::default() };
    for observed in [timeout.clone(), low] {
        match step(&first, "", observed.clone()).await.unwrap() {
            Step::Decision(next) => {
                assert!(codes(&next).contains(&"POLICY_CHANGED"), "{:?}", codes(&next));
                assert!(["little", "big"].contains(&next.selected.unwrap().model.as_str()));
            }
            Step::Stop(stop) => assert!(!stop.text.is_empty(), "{observed:?}"),
        }
    }
    let refused = step(&of_tenant, "stranger", timeout.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    // What was told of models that this policy does not have is nobody's breaker.
    let status = super::support::get(there.admin, "/status").body;
    assert!(!status.contains("\"name\":\"a\""), "{status}");
    let report = outcome(&first.decision_id, "a", FailureKind::Timeout);
    there.router().await.report_outcome(report).await.unwrap();
    assert_eq!(there.metric_sum("pointsman_outcomes_total"), 0.0, "a model that nobody has is no series");
}
