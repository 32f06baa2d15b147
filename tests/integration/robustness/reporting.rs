//! Whose outcomes a caller may report, and whose cascades it may go on with.

use pointsman::config::RawConfig;
use pointsman::decisions::read_outcomes;
use pointsman::rpc::proto::router_client::RouterClient;
use pointsman::rpc::proto::{self, FailureKind, Observed, ReportOutcomeRequest};
use prost::Message as _;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::super::outcomes::{POLICY, outcome};
use super::super::support::{Service, ask, channel, eventually};
use super::access::{Setting, client_certificate};

const TENANTS: &str = "tenants: {acme: {}, beta: {}}\n";
const CALLERS: &str = "
[[caller]]
name = 'acme'
token_files = ['acme']
rights = ['route', 'report']
tenants = ['acme']

[[caller]]
name = 'beta'
token_files = ['beta']
rights = ['route', 'report']
tenants = ['beta', 'unlisted']

[[caller]]
name = 'reader'
token_files = ['reader']
rights = ['route']
tenants = ['acme']

[[caller]]
name = 'operators'
token_files = ['operators']
rights = ['route', 'report']
";

/// Shows a token with each call.
#[derive(Clone)]
pub(crate) struct Token(&'static str);

pub(crate) type Client = RouterClient<InterceptedService<Channel, Token>>;

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer the-token-of-{}", self.0);
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        Ok(request)
    }
}

/// Settings with the callers above, and what they read their files from.
pub(crate) fn settings() -> (RawConfig, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["acme", "beta", "reader", "operators"] {
        std::fs::write(dir.path().join(name), format!("the-token-of-{name}\n")).unwrap();
    }
    std::fs::write(dir.path().join("access.toml"), CALLERS).unwrap();
    std::fs::write(dir.path().join("keys"), format!("hmac-sha256 k {}\n", "07".repeat(32))).unwrap();
    let settings = RawConfig {
        access_file: Some(dir.path().join("access.toml")),
        continuation_keys_file: Some(dir.path().join("keys")),
        decision_log: Some(dir.path().join("log")),
        ..RawConfig::default()
    };
    (settings, dir)
}

pub(crate) async fn client(service: &Service, name: &'static str) -> Client {
    RouterClient::with_interceptor(channel(service.grpc).await, Token(name))
}

async fn decide(client: &mut Client, tenant: &str) -> proto::Decision {
    let request = proto::RouteRequest { tenant: tenant.into(), ..ask("a hard one") };
    client.route(request).await.unwrap().into_inner().decision.unwrap()
}

async fn report(client: &mut Client, decision: &str, model: &str) -> Code {
    let answer = client.report_outcome(outcome(decision, model, FailureKind::Timeout)).await;
    answer.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_reports_of_its_own_tenants_decisions_alone() {
    let (settings, dir) = settings();
    let (service, _policy, _) = Service::with_policy(&format!("{POLICY}{TENANTS}"), settings);
    let (mut acme, mut beta) = (client(&service, "acme").await, client(&service, "beta").await);
    let mut operators = client(&service, "operators").await;
    let own = decide(&mut beta, "beta").await.decision_id;
    for _ in 0..6 {
        let decision = decide(&mut acme, "").await.decision_id;
        assert_eq!(report(&mut beta, &decision, "a").await, Code::PermissionDenied);
    }
    let theirs = decide(&mut acme, "acme").await.decision_id;
    let refusal = |answer: Result<_, Status>| answer.map(|_: tonic::Response<_>| ()).unwrap_err().message().to_owned();
    let foreign = refusal(beta.report_outcome(outcome(&theirs, "a", FailureKind::Timeout)).await);
    let unknown = refusal(beta.report_outcome(outcome("made-up", "a", FailureKind::Timeout)).await);
    assert_eq!(foreign, unknown, "an answer that told them apart would tell which decisions there are");
    assert!(foreign.contains("continuation") && !foreign.contains("acme"), "{foreign}");
    assert_eq!(service.metric("pointsman_breaker_state{scope=\"model\",name=\"a\"}"), Some(0.0));
    assert_eq!(service.metric_sum("pointsman_outcomes_total"), 0.0);

    assert_eq!(report(&mut acme, &theirs, "a").await, Code::Ok);
    assert_eq!(report(&mut acme, &theirs, "b").await, Code::Ok, "its fallback");
    assert_eq!(report(&mut acme, &theirs, "little").await, Code::PermissionDenied, "it does not name that model");
    assert_eq!(report(&mut operators, &theirs, "c").await, Code::Ok, "they speak for everybody");
    assert_eq!(report(&mut operators, "made-up", "c").await, Code::Ok);
    let unlisted = decide(&mut beta, "unlisted").await.decision_id;
    assert_eq!(report(&mut beta, &unlisted, "a").await, Code::Ok, "a tenant that the policy does not have");
    assert_eq!(report(&mut acme, &unlisted, "a").await, Code::PermissionDenied);
    let mut reader = client(&service, "reader").await;
    assert_eq!(report(&mut reader, &theirs, "a").await, Code::PermissionDenied, "it may not report at all");

    let reports = [outcome(&own, "a", FailureKind::Timeout), outcome(&theirs, "c", FailureKind::Refused)];
    let more = outcome(&own, "b", FailureKind::Unspecified);
    let stream = tokio_stream::iter(reports.into_iter().chain([more]));
    let answer = beta.report_outcomes(stream).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.refused, answer.first_refused_index), (2, 1, 1));
    assert_eq!(answer.first_refusal.unwrap().code, i32::from(Code::PermissionDenied));
    assert!(service.metric("pointsman_calls_denied_total{reason=\"tenant\"}") >= Some(10.0));
    service.join();
    let log = std::fs::read_to_string(dir.path().join("log/outcomes.jsonl")).unwrap();
    let written = read_outcomes(log.lines()).outcomes;
    assert_eq!(written.len(), 7, "what was refused is in no log: {written:?}");
    assert!(written.iter().all(|outcome| outcome.failure != Some(pointsman::domain::FailureKind::Refused)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_know_a_decision_believes_its_continuation() {
    let (here_settings, _dir) = settings();
    let there_settings = RawConfig { decision_log: None, ..here_settings.clone() };
    let policy = format!("{POLICY}{TENANTS}");
    let (here, _policy, _) = Service::with_policy(&policy, here_settings);
    let (there, _other_policy, _) = Service::with_policy(&policy, there_settings);
    let (mut acme, mut beta) = (client(&here, "acme").await, client(&here, "beta").await);
    let (mut acme_there, mut beta_there) = (client(&there, "acme").await, client(&there, "beta").await);
    let (first, second) = (decide(&mut acme, "acme").await, decide(&mut acme, "acme").await);
    let own = decide(&mut beta, "beta").await;
    let shown = |decision: &proto::Decision, continuation: &str| ReportOutcomeRequest {
        continuation: continuation.to_owned(),
        ..outcome(&decision.decision_id, "a", FailureKind::Timeout)
    };
    let code = |answer: Result<tonic::Response<_>, Status>| answer.map_or_else(|status| status.code(), |_| Code::Ok);
    for (request, expected) in [
        (shown(&first, ""), Code::PermissionDenied),
        (shown(&first, "nonsense"), Code::PermissionDenied),
        (shown(&first, &second.continuation), Code::PermissionDenied),
        (shown(&first, &first.continuation), Code::Ok),
    ] {
        assert_eq!(code(acme_there.report_outcome(request.clone()).await), expected, "{request:?}");
    }
    for (decision, token) in [(&first, &first), (&first, &own), (&own, &first)] {
        let answer = beta_there.report_outcome(shown(decision, &token.continuation)).await;
        assert_eq!(code(answer), Code::PermissionDenied);
    }
    assert_eq!(code(beta_there.report_outcome(shown(&own, &own.continuation)).await), Code::Ok);
    assert_eq!(there.metric_sum("pointsman_outcomes_total"), 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_goes_on_with_its_own_tenants_cascades_alone() {
    let (settings, _dir) = settings();
    let (service, _policy, _) = Service::with_policy(&format!("{POLICY}{TENANTS}"), settings);
    let (mut acme, mut beta) = (client(&service, "acme").await, client(&service, "beta").await);
    let mut operators = client(&service, "operators").await;
    let decision = decide(&mut acme, "acme").await;
    let step = |tenant: &str| proto::EscalateRequest {
        continuation: decision.continuation.clone(),
        observed: Some(Observed { failure: FailureKind::Timeout.into(), ..Observed::default() }),
        tenant: tenant.to_owned(),
    };
    let code = |answer: Result<tonic::Response<_>, Status>| answer.map_or_else(|status| status.code(), |_| Code::Ok);
    for tenant in ["acme", "beta", "unlisted", ""] {
        assert_eq!(code(beta.escalate(step(tenant)).await), Code::PermissionDenied, "{tenant:?}");
    }
    for tenant in ["beta", ""] {
        assert_eq!(code(operators.escalate(step(tenant)).await), Code::PermissionDenied, "{tenant:?}");
    }
    assert_eq!(code(operators.escalate(step("acme")).await), Code::Ok);
    for tenant in ["acme", ""] {
        assert_eq!(code(acme.escalate(step(tenant)).await), Code::Ok, "{tenant:?}");
    }
}

/// What a caller may not report it must not bring about by Escalate either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakers_hear_cascades_of_callers_that_may_report() {
    let (settings, _dir) = settings();
    let (service, _policy, _) = Service::with_policy(&format!("{POLICY}{TENANTS}"), settings);
    let mut acme = client(&service, "acme").await;
    let mut reader = client(&service, "reader").await;
    let good = decide(&mut acme, "acme").await.decision_id;
    acme.report_outcome(outcome(&good, "a", FailureKind::Unspecified)).await.unwrap();
    let fail = async |client: &mut Client, again: usize| {
        let decision = decide(client, "acme").await;
        for _ in 0..again {
            let observed = Observed { failure: FailureKind::ProviderError.into(), ..Observed::default() };
            let continuation = decision.continuation.clone();
            let request = proto::EscalateRequest { continuation, observed: Some(observed), tenant: "acme".into() };
            client.escalate(request).await.unwrap();
        }
        decision
    };
    let state = || service.metric("pointsman_breaker_state{scope=\"model\",name=\"a\"}");
    for _ in 0..6 {
        fail(&mut reader, 1).await;
    }
    assert_eq!(state(), Some(0.0), "it may not report");
    let failed = fail(&mut acme, 8).await;
    acme.report_outcome(outcome(&failed.decision_id, "a", FailureKind::ProviderError)).await.unwrap();
    assert_eq!(state(), Some(0.0), "one decision, told nine times");
    for _ in 0..4 {
        fail(&mut acme, 1).await;
    }
    assert_eq!(state(), Some(2.0), "five decisions in a row, none of the last four reported");
}

#[tokio::test]
async fn a_certificate_binds_reports_and_cascades_as_a_token_does() {
    let setting = Setting::new();
    setting.put(
        "access.toml",
        "[[caller]]\nname = 'shop'\ncertificate_names = ['spiffe://example/shop']\nrights = ['route', 'report']\n\
         tenants = ['acme']\n[[caller]]\nname = 'mill'\ncertificate_names = ['spiffe://example/mill']\n\
         rights = ['route', 'report']\ntenants = ['beta']\n",
    );
    setting.put("policy.yaml", &format!("{POLICY}{TENANTS}"));
    let service = setting.service(true);
    let identity = |name: &'static str| {
        client_certificate(&setting.clients, move |params| {
            params.subject_alt_names =
                vec![rcgen::SanType::URI(format!("spiffe://example/{name}").try_into().unwrap())];
        })
    };
    let shop = setting.connect(service.grpc, Some(&identity("shop"))).await.unwrap();
    let mill = setting.connect(service.grpc, Some(&identity("mill"))).await.unwrap();
    let answer = shop.call(super::raw::ROUTE, &[], &ask("a hard one").encode_to_vec()).await.unwrap();
    let decision = proto::RouteResponse::decode(answer.message.slice(5..)).unwrap().decision.unwrap();
    let report = outcome(&decision.decision_id, "a", FailureKind::Timeout).encode_to_vec();
    let step = proto::EscalateRequest {
        continuation: decision.continuation,
        observed: Some(Observed { score: Some(0.1), ..Observed::default() }),
        tenant: String::new(),
    };
    for (method, body) in [("ReportOutcome", report), ("Escalate", step.encode_to_vec())] {
        let path = format!("/pointsman.v1.Router/{method}");
        let refused = mill.call(&path, &[], &body).await.unwrap();
        assert_eq!(refused.code, Code::PermissionDenied, "{method}: {:?}", refused.status);
        assert_eq!(shop.call(&path, &[], &body).await.unwrap().code, Code::Ok, "{method}");
    }
    let counted = async || (service.metric_sum("pointsman_outcomes_total") == 1.0).then_some(());
    eventually("the shop's report is counted", counted).await;
}
