//! The gRPC surface as a client sees it: every method, decisions and their invariants, health, reflection, deadlines.

use std::time::Duration;

use pointsman::config::RawConfig;
use pointsman::policy::DEFAULT_DOCUMENT;
use pointsman::rpc::proto::{self, route_result::Result as Outcome};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;

use super::support::{SMALL_POLICY, Service, ask, channel, eventually};

/// Texts of many lengths and kinds.
fn texts() -> Vec<String> {
    let sentence = "The committee met on Tuesday and agreed that the budget needs another look before spring. ";
    let mut texts: Vec<String> = [
        "What is the capital of Australia?",
        "Write a haiku about rain on a tin roof",
        "Translate 'where is the station' into Portuguese",
        "x = [i for i in range(10) if i % 2]; explain",
        "Prove that there are infinitely many primes of the form 4k + 3",
        "日本の首都はどこですか",
        "🙂",
        "a",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.extend([3, 10, 40, 200].map(|n| format!("Summarise in one line: {}", sentence.repeat(n))));
    texts
}

/// What holds for every decision, whatever made it.
#[track_caller]
fn check_decision(decision: &proto::Decision) {
    let unit = |value: f64| (0.0..=1.0).contains(&value);
    let sums_to_one = |probabilities: &[proto::LabelProbability]| {
        let sum: f64 = probabilities.iter().map(|entry| entry.probability).sum();
        (sum - 1.0).abs() < 1e-4 && probabilities.iter().all(|entry| unit(entry.probability))
    };
    uuid::Uuid::parse_str(&decision.decision_id).unwrap();
    assert!(!decision.request_id.is_empty());

    let selected = decision.selected.as_ref().unwrap();
    let mut models = vec![&selected.model];
    models.extend(decision.fallbacks.iter().map(|fallback| &fallback.candidate.as_ref().unwrap().model));
    let n_models = models.len();
    models.sort();
    models.dedup();
    assert_eq!(models.len(), n_models, "a model stands twice in the chain");
    assert!(decision.fallbacks.iter().all(|fallback| !fallback.reason.as_ref().unwrap().code.is_empty()));
    assert!(!selected.provider.is_empty() && !selected.provider_model.is_empty());
    assert!(selected.estimated_cost_usd > 0.0 && decision.estimated_cost_usd == selected.estimated_cost_usd);
    if let Some(escalation) = &decision.escalation {
        assert!(unit(escalation.score_threshold) && escalation.hops_left > 0);
        assert_ne!(escalation.next.as_ref().unwrap().model, selected.model);
    }

    let (intent, complexity) = (decision.intent.as_ref().unwrap(), decision.complexity.as_ref().unwrap());
    let confidence = decision.confidence.as_ref().unwrap();
    assert!(unit(intent.probability) && unit(complexity.difficulty) && unit(confidence.value));
    assert!(["simple", "medium", "complex"].contains(&complexity.tier.as_str()));
    let classified = matches!(decision.source(), proto::Source::Classifier | proto::Source::Cache);
    if classified {
        assert!(sums_to_one(&intent.probabilities), "{:?}", intent.probabilities);
        assert!(sums_to_one(&complexity.tier_probabilities), "{:?}", complexity.tier_probabilities);
        assert!(unit(intent.out_of_scope.unwrap()));
    }
    if confidence.of == "tier_suffices" {
        let order = ["simple", "medium", "complex"];
        let upto = order.iter().position(|tier| *tier == complexity.tier).unwrap();
        let suffices: f64 = complexity.tier_probabilities[..=upto].iter().map(|entry| entry.probability).sum();
        assert!((confidence.value - suffices).abs() < 1e-4, "{} is not {suffices}", confidence.value);
        assert!(!confidence.calibrator.is_empty());
    }
    assert_ne!(decision.source(), proto::Source::Unspecified);
    assert!(!decision.reasons.is_empty() && decision.reasons.iter().all(|r| !r.code.is_empty() && !r.text.is_empty()));

    let (policy, classifier) = (decision.policy.as_ref().unwrap(), decision.classifier.as_ref().unwrap());
    assert!(policy.sha256.len() == 64 && classifier.sha256.len() == 64);
    assert!(!policy.id.is_empty() && !policy.version.is_empty() && !classifier.version.is_empty());
    let (input, timings) = (decision.input.as_ref().unwrap(), decision.timings.as_ref().unwrap());
    assert!(input.used_bytes > 0 && input.received_bytes > 0);
    assert!(timings.total_us >= timings.text_us.max(timings.inference_us).max(timings.policy_us));
}

/// A decision without what differs between two answers to one request.
fn timeless(mut decision: proto::Decision) -> proto::Decision {
    decision.decision_id.clear();
    decision.request_id.clear();
    // It carries the decision's id and time.
    decision.continuation.clear();
    decision.timings = None;
    decision.policy.as_mut().unwrap().age_ms = 0;
    decision
}

fn codes(decision: &proto::Decision) -> Vec<&str> {
    decision.reasons.iter().map(|reason| reason.code.as_str()).collect()
}

fn decided(result: Option<proto::RouteResult>) -> proto::Decision {
    match result.unwrap().result.unwrap() {
        Outcome::Decision(decision) => decision,
        Outcome::Error(error) => panic!("{error:?}"),
    }
}

async fn route(service: &Service, request: proto::RouteRequest) -> Result<proto::Decision, Status> {
    Ok(service.router().await.route(request).await?.into_inner().decision.unwrap())
}

#[tokio::test]
async fn every_decision_is_whole_whatever_the_text() {
    let service = Service::shared();
    for text in texts() {
        let decision = route(service, ask(&text)).await.unwrap();
        check_decision(&decision);
        let input = decision.input.unwrap();
        assert_eq!(input.received_bytes, text.len() as u64);
        assert_eq!(input.tokens_cut > 0 || input.bytes_cut > 0, text.len() > 2_000, "{input:?}");
    }
}

#[tokio::test]
async fn rules_answer_without_the_encoder() {
    let decision = route(Service::shared(), ask("Thanks a lot!")).await.unwrap();
    check_decision(&decision);
    assert_eq!(decision.source(), proto::Source::Rule);
    assert_eq!(decision.intent.as_ref().unwrap().label, "chat");
    let matched = decision.reasons.iter().find(|reason| reason.code == "RULE_MATCHED").unwrap();
    assert_eq!(matched.subject, "greeting-or-thanks");
    assert_eq!((decision.input.unwrap().tokens_used, decision.timings.unwrap().inference_us), (0, 0));
}

#[tokio::test]
async fn the_same_request_gets_the_same_decision_and_the_second_comes_from_the_cache() {
    let service = Service::shared();
    let request = || proto::RouteRequest { request_id: "mine-1".into(), ..ask("Which moons does Neptune have?") };
    let first = route(service, request()).await.unwrap();
    let second = route(service, request()).await.unwrap();
    assert_eq!((first.source(), second.source()), (proto::Source::Classifier, proto::Source::Cache));
    assert_eq!((first.request_id.as_str(), second.request_id.as_str()), ("mine-1", "mine-1"));
    assert_ne!(first.decision_id, second.decision_id);
    assert!(codes(&second).contains(&"CACHED"));
    let (mut first, mut second) = (timeless(first), timeless(second));
    second.reasons.retain(|reason| reason.code != "CACHED");
    first.source = second.source;
    assert_eq!(first, second);
}

#[tokio::test]
async fn a_batch_a_stream_and_single_calls_decide_alike() {
    // Without a cache every one of them is computed, in passes of different company.
    let service = Service::start(RawConfig { decision_cache_entries: Some(0), ..RawConfig::default() });
    let texts = texts();
    let requests: Vec<_> = texts.iter().map(ask).collect();
    let batch = service.router().await.route_batch(proto::RouteBatchRequest { requests: requests.clone() }).await;
    let batch: Vec<_> = batch.unwrap().into_inner().results.into_iter().map(|result| decided(Some(result))).collect();
    assert_eq!(batch.len(), texts.len());

    let mut answers =
        service.router().await.route_stream(tokio_stream::iter(requests.clone())).await.unwrap().into_inner();
    let mut streamed = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.index, streamed.len() as u64, "answers come in the order of the requests");
        streamed.push(decided(answer.result));
    }
    assert_eq!(streamed.len(), texts.len());

    for ((request, batch), streamed) in requests.into_iter().zip(batch).zip(streamed) {
        let text = request.query.clone();
        let single = route(&service, request).await.unwrap();
        for other in [batch, streamed] {
            check_decision(&other);
            let difficulty = |decision: &proto::Decision| decision.complexity.as_ref().unwrap().difficulty;
            assert!((difficulty(&single) - difficulty(&other)).abs() < 1e-4, "{text}");
            let names = |decision: &proto::Decision| {
                let fallbacks = decision.fallbacks.iter().map(|fallback| fallback.candidate.clone().unwrap().model);
                std::iter::once(decision.selected.clone().unwrap().model).chain(fallbacks).collect::<Vec<_>>()
            };
            assert_eq!(names(&single), names(&other), "{text}");
            assert_eq!((single.source(), codes(&single)), (other.source(), codes(&other)), "{text}");
        }
    }
}

#[tokio::test]
async fn one_bad_request_of_a_batch_or_stream_does_not_fail_the_others() {
    let requests = vec![ask("What is basalt?"), ask("  "), ask("Who wrote Emma?")];
    let mut router = Service::shared().router().await;
    let results = router.route_batch(proto::RouteBatchRequest { requests: requests.clone() }).await.unwrap();
    let mut answers = router.route_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut streamed = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        streamed.push(answer.result.unwrap());
    }
    for results in [results.into_inner().results, streamed] {
        let [first, bad, last] = results.try_into().unwrap();
        check_decision(&decided(Some(first)));
        check_decision(&decided(Some(last)));
        let Some(Outcome::Error(error)) = bad.result else { panic!("{bad:?}") };
        assert_eq!(Code::from(error.code), Code::InvalidArgument);
        assert!(error.message.starts_with("query: "), "{}", error.message);
    }
}

#[tokio::test]
async fn what_is_selected_meets_the_requirements() {
    let (service, _dir, _) = Service::with_policy(SMALL_POLICY, RawConfig::default());
    let needs = |requirements| proto::RouteRequest { requirements: Some(requirements), ..ask("Hello there, friend") };
    let base = proto::Requirements::default;
    let cases = [
        (proto::Requirements { tools: true, ..base() }, "big"),
        (proto::Requirements { vision: true, json_mode: true, ..base() }, "big"),
        (proto::Requirements { data_regions: vec!["us".into()], ..base() }, "big"),
        (proto::Requirements { context_tokens: 150_000, ..base() }, "big"),
        (proto::Requirements { allowed_providers: vec!["acme".into()], ..base() }, "little"),
        (proto::Requirements { max_cost_usd: 0.001, ..base() }, "little"),
        (proto::Requirements { max_latency_ms: 1_000, ..base() }, "little"),
    ];
    for (requirements, expected) in cases {
        let decision = route(&service, needs(requirements.clone())).await.unwrap();
        check_decision(&decision);
        assert_eq!(decision.selected.as_ref().unwrap().model, expected, "{requirements:?}");
        assert!(decision.fallbacks.is_empty(), "{requirements:?}: the other one was to be removed");
    }

    let nobody = proto::Requirements { tools: true, allowed_providers: vec!["acme".into()], ..base() };
    let status = route(&service, needs(nobody)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let violations = status.get_error_details().precondition_failure().unwrap().violations.clone();
    let removed: Vec<_> = violations.iter().map(|v| (v.subject.as_str(), v.r#type.as_str())).collect();
    assert!(removed.contains(&("little", "CAPABILITY_MISSING")), "{removed:?}");
    assert!(removed.contains(&("big", "PROVIDER_NOT_ALLOWED")), "{removed:?}");
}

#[tokio::test]
async fn classify_gives_signals_without_a_policy() {
    let query = proto::Query { query: "How do I sort a list in Rust?".into(), ..Default::default() };
    let request = proto::ClassifyRequest { query: Some(query) };
    let signals = Service::shared().router().await.classify(request).await.unwrap().into_inner();
    let (intent, complexity) = (signals.intent.unwrap(), signals.complexity.unwrap());
    let sum: f64 = intent.probabilities.iter().map(|entry| entry.probability).sum();
    assert!((sum - 1.0).abs() < 1e-4);
    let top = intent.probabilities.iter().max_by(|a, b| a.probability.total_cmp(&b.probability)).unwrap();
    assert_eq!((&top.label, top.probability), (&intent.label, intent.probability));
    assert_eq!(complexity.tier_probabilities.len(), 3);
    assert_eq!(signals.confidence.unwrap().of, "tier_suffices");
    assert!(signals.input.unwrap().tokens_used > 5);
}

#[tokio::test]
async fn info_tells_what_this_server_is() {
    let info = Service::shared().info().await.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    let encoder = info.encoder.unwrap();
    assert_eq!((encoder.name.as_str(), encoder.hidden_size, encoder.device.as_str()), ("all-MiniLM-L6-v2", 384, "cpu"));
    assert_eq!(encoder.sha256.len(), 64);
    assert_eq!(info.intent_labels.len(), 14);
    assert_eq!(info.tier_labels, ["simple", "medium", "complex"]);
    let heads: Vec<_> = info.calibrations.iter().map(|calibration| calibration.head.as_str()).collect();
    assert_eq!(heads, ["intent", "tier"]);
    assert!(info.calibrations.iter().all(|c| c.rows > 0 && (0.0..1.0).contains(&c.expected_calibration_error)));
    for calibration in &info.calibrations {
        let groups = [&calibration.by_label, &calibration.by_length];
        assert!(groups.iter().all(|groups| groups.values().map(|group| group.rows).sum::<u64>() == calibration.rows));
        assert_eq!(calibration.bins.iter().map(|bin| bin.rows).sum::<u64>(), calibration.rows);
        assert!(calibration.bins.is_sorted_by(|a, b| a.confidence < b.confidence), "{:?}", calibration.bins);
    }
    assert!(info.ready_at_unix_ms > 1_600_000_000_000 && info.escalation_supported);
    assert_eq!(info.policy.unwrap().source, "embedded");
}

#[tokio::test]
async fn the_policy_can_be_read_and_checked() {
    let mut policies = Service::shared().policy().await;
    let policy = policies.get_policy(proto::GetPolicyRequest {}).await.unwrap().into_inner();
    assert_eq!(policy.document, DEFAULT_DOCUMENT);
    let status = policies.get_policy_status(proto::GetPolicyStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.policy.unwrap().sha256, policy.policy.unwrap().sha256);
    assert_eq!((status.loads, status.rejections, status.last_error.as_str()), (1, 0, ""));

    let mut check = async |document: &str| {
        let request = proto::ValidatePolicyRequest { document: document.to_owned() };
        policies.validate_policy(request).await.unwrap().into_inner()
    };
    assert!(check(DEFAULT_DOCUMENT).await.valid);
    let bad = check(&SMALL_POLICY.replace("quick: [little, big]", "quick: [little, gone]")).await;
    assert!(!bad.valid);
    let error = bad.findings.iter().find(|finding| finding.severity() == proto::Severity::Error).unwrap();
    let line = SMALL_POLICY.lines().position(|line| line.contains("quick: [")).unwrap() as u32 + 1;
    assert_eq!((error.code.as_str(), error.line), ("UNKNOWN_MODEL", line), "{error:?}");
    assert!(error.path.starts_with("chains.quick"), "{error:?}");
    assert!(!check("{").await.valid && !check("").await.valid);
}

#[tokio::test]
async fn health_knows_every_service_and_no_other() {
    let mut health = HealthClient::new(channel(Service::shared().grpc).await);
    let mut check = async |service: &str| {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await;
        answer.map(|answer| answer.into_inner().status())
    };
    for service in ["", "pointsman.v1.Router", "pointsman.v1.PolicyService", "pointsman.v1.Info"] {
        assert_eq!(check(service).await.unwrap(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(check("pointsman.v1.Nothing").await.unwrap_err().code(), Code::NotFound);
}

/// The two versions of reflection have the same messages under different names.
macro_rules! check_reflection {
    ($version:ident) => {{
        use prost::Message as _;
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

        let mut client = ServerReflectionClient::new(channel(Service::shared().grpc).await);
        let mut reflect = async |request| {
            let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
            let answers = client.server_reflection_info(tokio_stream::iter([request])).await;
            answers.unwrap().into_inner().message().await.unwrap().unwrap().message_response.unwrap()
        };
        let listed = reflect(MessageRequest::ListServices(String::new())).await;
        let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
        let names: Vec<String> = listed.service.into_iter().map(|service| service.name).collect();
        for service in ["pointsman.v1.Router", "pointsman.v1.PolicyService", "pointsman.v1.Info"] {
            assert!(names.iter().any(|name| name == service), "{service} is not in {names:?}");
            let found = reflect(MessageRequest::FileContainingSymbol(service.to_owned())).await;
            let MessageResponse::FileDescriptorResponse(found) = found else { panic!("{found:?}") };
            let files = found.file_descriptor_proto.iter();
            let files: Vec<_> =
                files.map(|bytes| prost_types::FileDescriptorProto::decode(bytes.as_slice()).unwrap()).collect();
            let short = service.strip_prefix("pointsman.v1.").unwrap();
            let file = files.iter().find(|file| file.service.iter().any(|service| service.name() == short)).unwrap();
            let comments = file.source_code_info.as_ref().unwrap();
            assert!(comments.location.iter().any(|place| !place.leading_comments().is_empty()), "{service}");
        }
    }};
}

#[tokio::test]
async fn reflection_lists_and_describes_in_both_versions() {
    check_reflection!(v1);
    check_reflection!(v1alpha);
}

#[tokio::test]
async fn a_deadline_that_passed_on_arrival_is_an_error() {
    let mut request = Request::new(ask("Is it too late?"));
    request.metadata_mut().insert("grpc-timeout", "1n".parse().unwrap());
    let status = Service::shared().router().await.route(request).await.unwrap_err();
    // tonic's client has a timer of its own, which calls the same thing CANCELLED.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
}

#[tokio::test]
async fn a_deadline_too_near_for_the_queue_gets_a_degraded_answer_at_once() {
    // One text a pass: what waits is what the estimate sees.
    let service =
        Service::start(RawConfig { tokens_per_pass: Some(1), max_wait: Some(long_wait()), ..RawConfig::default() });
    let (pass, crowd) = crowd(&service, 60).await;
    eventually("a queue", async || service.metric("pointsman_queue_entries").filter(|n| *n > 30.0)).await;
    let decision = route_within(&service, 5 * pass).await;
    check_degraded(&decision);
    let waited = Duration::from_micros(decision.timings.unwrap().total_us);
    assert!(waited < pass.max(Duration::from_millis(50)), "{waited:?} for an answer that needs no pass of {pass:?}");
    crowd.abort();
}

#[tokio::test]
async fn a_pass_that_outlasts_the_deadline_does_not_take_the_answer_with_it() {
    // Whatever waits goes into one pass: the queue is empty and the encoder is busy for long.
    let service = Service::start(RawConfig {
        tokens_per_pass: Some(1_000_000),
        max_wait: Some(long_wait()),
        ..RawConfig::default()
    });
    let (pass, crowd) = crowd(&service, 150).await;
    let decision = route_within(&service, (5 * pass).max(Duration::from_millis(100))).await;
    check_degraded(&decision);
    crowd.abort();
}

/// Longer than anything waits here: it is the deadline that counts.
fn long_wait() -> pointsman::config::PositiveDuration {
    "1h".parse().unwrap()
}

async fn route_within(service: &Service, timeout: Duration) -> proto::Decision {
    let mut request = Request::new(ask("Is there still time for this one?"));
    request.set_timeout(timeout);
    service.router().await.route(request).await.unwrap().into_inner().decision.unwrap()
}

#[track_caller]
fn check_degraded(decision: &proto::Decision) {
    check_decision(decision);
    assert_eq!(decision.source(), proto::Source::Degraded, "{:?}", decision.reasons);
    assert!(codes(decision).contains(&"DEGRADED"), "{:?}", decision.reasons);
    let confidence = decision.confidence.as_ref().unwrap();
    assert_eq!((confidence.of.as_str(), confidence.value), ("none", 0.0));
    assert_eq!(decision.complexity.as_ref().unwrap().tier, "medium", "the policy's safe answer");
}

/// Keeps the encoder busy with `n` long texts of high priority; also tells how long a pass of one of them takes.
async fn crowd(service: &Service, n: usize) -> (Duration, tokio::task::JoinHandle<()>) {
    let long = |i: usize| proto::RouteRequest {
        priority: proto::Priority::High.into(),
        ..ask(format!("{i} {}", "Compare these two arguments step by step. ".repeat(60)))
    };
    let first = route(service, long(n)).await.unwrap();
    let pass = Duration::from_micros(first.timings.unwrap().inference_us);
    let requests = (0..n).map(long).collect();
    let mut router = service.router().await;
    let crowd = tokio::spawn(async move { drop(router.route_batch(proto::RouteBatchRequest { requests }).await) });
    // Each text is looked up before it is queued.
    let misses = "pointsman_decision_cache_lookups_total";
    eventually("all are queued", async || service.metric(misses).filter(|count| *count > n as f64)).await;
    (pass, crowd)
}
