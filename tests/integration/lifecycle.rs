//! A service from start to end: refusing to start, becoming ready, reloading, logging, draining, stopping.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use pointsman::rpc::proto;
use pointsman::serve::Drained;
use tokio::sync::mpsc;
use tonic::{Code, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;

use super::support::{PATIENCE, Process, SMALL_POLICY, Service, ask, channel, command, eventually, get, run};

/// A stop that nothing holds up takes milliseconds; this is far below any drain bound used here.
const SOON: Duration = Duration::from_secs(10);

/// Waits on a thread of its own: the clients of the test have to answer the server's goodbye meanwhile.
async fn wait<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn quick_poll() -> RawConfig {
    RawConfig { policy_poll_interval: Some("20ms".parse().unwrap()), ..RawConfig::default() }
}

fn small_policy(version: usize) -> String {
    SMALL_POLICY
        .replace("version: \"1\"", &format!("version: \"{version}\""))
        .replace("little-1", &format!("little-{version}"))
        .replace("big-1", &format!("big-{version}"))
}

/// Replaces the file in one step, as configuration management does.
fn publish(path: &Path, document: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, document).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn route(service: &Service, text: &str) -> proto::Decision {
    service.router().await.route(ask(text)).await.unwrap().into_inner().decision.unwrap()
}

async fn policy_status(service: &Service) -> proto::GetPolicyStatusResponse {
    let request = proto::GetPolicyStatusRequest {};
    service.policy().await.get_policy_status(request).await.unwrap().into_inner()
}

async fn await_version(service: &Service, version: &str) {
    let in_force = async || {
        let policy = policy_status(service).await.policy.unwrap();
        (policy.version == version).then_some(())
    };
    eventually(&format!("version {version} in force"), in_force).await;
}

/// A stream of routing requests that stays open as long as the sender lives.
async fn open_stream(
    address: std::net::SocketAddr,
) -> (mpsc::Sender<proto::RouteRequest>, Streaming<proto::RouteStreamResponse>) {
    let (sender, requests) = mpsc::channel(4);
    let mut client = proto::router_client::RouterClient::new(channel(address).await);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = client.route_stream(requests).await.unwrap().into_inner();
    sender.send(ask("Is this stream open?")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().index, 0);
    (sender, answers)
}

#[tokio::test]
async fn reload_valid_policy() {
    let (service, _dir, path) = Service::with_policy(&small_policy(1), quick_poll());
    let before = route(&service, "Name three rivers in Peru").await;
    assert_eq!((before.policy.unwrap().version.as_str(), before.selected.unwrap().model.as_str()), ("1", "little"));

    publish(&path, &small_policy(2).replace("acme: {enabled: true}", "acme: {enabled: false}"));
    await_version(&service, "2").await;
    let after = route(&service, "Name three rivers in Peru").await;
    let policy = after.policy.unwrap();
    assert_eq!((policy.version.as_str(), policy.source.as_str()), ("2", "file"));
    assert_eq!(after.selected.unwrap().model, "big", "the provider of the first choice was turned off");
    assert!(after.reasons.iter().any(|reason| reason.code == "PROVIDER_DISABLED"), "{:?}", after.reasons);
    assert_eq!((policy_status(&service).await.loads, service.metric("pointsman_policy_loads")), (2, Some(2.0)));
}

#[tokio::test]
async fn reload_broken_policy_keeps_last_good_and_recovers() {
    let (service, _dir, path) = Service::with_policy(&small_policy(1), quick_poll());
    let refused = async |status: proto::GetPolicyStatusResponse, part: &str| {
        assert_eq!(status.policy.unwrap().version, "1");
        assert!(status.last_error.contains(part), "{}", status.last_error);
        assert_eq!(route(&service, "Is anybody in?").await.policy.unwrap().version, "1");
    };
    let rejections = async |n| {
        let status = policy_status(&service).await;
        (status.rejections == n).then_some(status)
    };
    publish(&path, "schema: [");
    refused(eventually("a refusal", async || rejections(1).await).await, "refused").await;
    publish(&path, &small_policy(2).replace("chain: strong", "chain: missing"));
    refused(eventually("another", async || rejections(2).await).await, "missing").await;

    std::fs::remove_file(&path).unwrap();
    let gone = async || Some(policy_status(&service).await).filter(|status| status.last_error.contains("cannot read"));
    refused(eventually("the file is missed", gone).await, "policy.yaml").await;

    publish(&path, &small_policy(3));
    await_version(&service, "3").await;
    let status = policy_status(&service).await;
    assert_eq!((status.loads, status.rejections, status.last_error.as_str()), (2, 2, ""));
    assert_eq!(service.metric_sum("pointsman_policy_rejected_total"), 2.0);
}

#[tokio::test]
async fn every_decision_is_made_under_one_policy_while_policies_change() {
    let (service, _dir, path) = Service::with_policy(&small_policy(1), quick_poll());
    let publisher = std::thread::spawn(move || {
        for version in 2..20 {
            publish(&path, &small_policy(version));
            std::thread::sleep(Duration::from_millis(25));
        }
    });
    let mut versions = std::collections::BTreeSet::new();
    let mut router = service.router().await;
    while !publisher.is_finished() {
        let decision = router.route(ask("Which policy is this?")).await.unwrap().into_inner().decision.unwrap();
        let version = decision.policy.unwrap().version;
        let fallbacks = decision.fallbacks.into_iter().map(|fallback| fallback.candidate.unwrap());
        for candidate in fallbacks.chain(decision.selected) {
            assert!(candidate.provider_model.ends_with(&format!("-{version}")), "{candidate:?} under {version}");
        }
        versions.insert(version);
    }
    publisher.join().unwrap();
    assert!(versions.len() > 2, "only {versions:?} were seen");
}

/// The policy is a pipe that nobody has written into yet, so the start takes as long as the test wants.
#[cfg(unix)]
#[tokio::test]
async fn not_serving_until_warm() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, place) = (dir.path().join("policy.yaml"), free_addresses());
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let settings = RawConfig {
        listen: Some(place.0.to_string()),
        admin_listen: Some(place.1.to_string()),
        policy: Some(pipe.display().to_string()),
        // A pipe is not to be read twice.
        policy_poll_interval: Some("1h".parse().unwrap()),
        ..RawConfig::default()
    };
    let starting = std::thread::spawn(|| Service::start(settings));
    eventually("a listener", async || TcpStream::connect(place.0).ok()).await;

    let mut health = HealthClient::new(channel(place.0).await);
    let mut watch = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let mut router = proto::router_client::RouterClient::new(channel(place.0).await);
    let status = router.route(ask("Too early?")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_error_details().retry_info().is_some());
    let admin = |path| get(place.1, path);
    assert_eq!((admin("/livez").status, admin("/readyz").status), (200, 503));
    assert_eq!((admin("/metrics").status, admin("/version").body.contains("\"loaded\":null")), (200, true));

    std::fs::write(&pipe, SMALL_POLICY).unwrap();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert!(router.route(ask("And now?")).await.is_ok());
    assert_eq!(admin("/readyz").status, 200);
    drop((watch, health, router));
    drop(starting.join().unwrap());
}

#[tokio::test]
async fn graceful_shutdown() {
    let mut service = Service::start(RawConfig::default());
    let (sender, mut answers) = open_stream(service.grpc).await;
    let mut health = HealthClient::new(channel(service.grpc).await);
    let mut watch = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    service.stop();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    drop((watch, health));
    let refused = async || TcpStream::connect(service.grpc).is_err().then_some(());
    eventually("new connections are refused", refused).await;
    sender.send(ask("Is the stream served to its end?")).await.unwrap();
    let last = answers.message().await.unwrap().unwrap();
    assert_eq!(last.index, 1);
    assert!(matches!(last.result.unwrap().result, Some(proto::route_result::Result::Decision(_))));
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
    drop(answers);
    assert_eq!(wait(|| service.join()).await, Drained::Completely);
}

#[tokio::test]
async fn shutdown_with_idle_connection() {
    let service = Service::start(RawConfig::default());
    // A client between two requests, and peers that never said anything.
    let idle = channel(service.grpc).await;
    proto::router_client::RouterClient::new(idle.clone()).route(ask("Anything else?")).await.unwrap();
    let silent = [service.grpc, service.admin].map(|address| TcpStream::connect(address).unwrap());
    eventually("all are accepted", async || (get(service.admin, "/readyz").status == 200).then_some(())).await;
    let asked = Instant::now();
    assert_eq!(wait(|| service.join()).await, Drained::Completely);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    drop((idle, silent));
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let settings = RawConfig { drain_timeout: Some("300ms".parse().unwrap()), ..RawConfig::default() };
    let service = Service::start(settings);
    let held = open_stream(service.grpc).await;
    let asked = Instant::now();
    assert_eq!(wait(|| service.join()).await, Drained::TimedOut);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    drop(held);
}

#[tokio::test]
async fn a_signal_stops_the_process_with_exit_code_0() {
    for signal in ["-TERM", "-INT"] {
        let process = Process::serve(&["--log-format", "json"]);
        let mut router = proto::router_client::RouterClient::new(channel(process.grpc).await);
        router.route(ask("One for the road?")).await.unwrap();
        process.signal(signal);
        let (status, log) = wait(|| process.wait(SOON)).await;
        assert!(status.success(), "{signal}: {status}\n{log}");
        assert!(log.contains("waiting for requests in flight") && log.contains("\"stopped\""), "{log}");
    }
}

#[tokio::test]
async fn second_signal_stops_at_once() {
    let process = Process::serve(&["--drain-timeout", "1h"]);
    let held = open_stream(process.grpc).await;
    process.signal("-TERM");
    eventually("the drain begins", async || process.log().contains("requests in flight").then_some(())).await;
    process.signal("-TERM");
    let (status, log) = wait(|| process.wait(SOON)).await;
    assert!(status.success() && log.contains("second signal"), "{status}\n{log}");
    drop(held);
}

#[test]
fn check_config_exits_0_or_64_and_binds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let good = file("good.toml", &format!("listen = \"{}\"\ndrain_timeout = \"5s\"\n", taken.local_addr().unwrap()));
    let (code, out, err) = run(&["serve", "--check-config", "--config", &good]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("drain_timeout: 5s"), "{out}");

    let (misspelt, range) = (file("misspelt.toml", "lisen = \"x\"\n"), file("range.toml", "queue_entries = 0\n"));
    for (arguments, part) in [
        (vec!["--config", misspelt.as_str()], "lisen"),
        (vec!["--config", range.as_str()], "queue_entries: 0 is not within"),
        (vec!["--config", "/nowhere.toml"], "cannot read /nowhere.toml"),
        (vec!["--listen", "localhost"], "listen: \"localhost\" is not an address"),
        (vec!["--listen", "127.0.0.1:7", "--admin-listen", "127.0.0.1:7"], "admin_listen"),
        (vec!["--log-format", "xml"], "log_format"),
        (vec!["--log-filter", "pointsman=loud"], "log"),
        (vec!["--device", "gpu"], "device"),
    ] {
        for check in [true, false] {
            let mut all = vec!["serve"];
            all.extend(check.then_some("--check-config"));
            all.extend(&arguments);
            let (code, _, err) = run(&all);
            assert_eq!(code, 64, "{all:?}: {err}");
            assert!(err.contains(part), "{all:?}: {err}");
        }
    }
    let environment = command(&["serve", "--check-config"]).env("POINTSMAN_MAX_TOKENS", "1").output().unwrap();
    assert_eq!(environment.status.code(), Some(64));
    let overruled =
        command(&["serve", "--check-config", "--max-tokens", "128"]).env("POINTSMAN_MAX_TOKENS", "1").output();
    assert_eq!(overruled.unwrap().status.code(), Some(0), "flags win over the environment");
}

#[test]
fn what_cannot_be_served_stops_the_start_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let bad_policy = dir.path().join("bad.yaml");
    std::fs::write(&bad_policy, SMALL_POLICY.replace("chain: strong", "chain: missing")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (bad_policy, taken) = (bad_policy.display().to_string(), taken.local_addr().map(|a| a.to_string()).unwrap());
    for (arguments, parts, expected) in [
        (["--policy", bad_policy.as_str()], ["cannot load the policy", "missing"], 78),
        (["--policy", "/nowhere.yaml"], ["cannot load the policy", "/nowhere.yaml"], 78),
        (["--model", "nobodys"], ["cannot load the model", "nobodys"], 78),
        (["--access-file", "/nowhere.toml"], ["cannot tell who may call", "/nowhere.toml"], 78),
        (["--listen", taken.as_str()], ["cannot listen on", taken.as_str()], 1),
    ] {
        let mut all = vec!["serve", "--admin-listen", "127.0.0.1:0"];
        all.extend(arguments);
        if !all.contains(&"--listen") {
            all.extend(["--listen", "127.0.0.1:0"]);
        }
        let (code, _, err) = run(&all);
        assert_eq!(code, expected, "{all:?}: {err}");
        assert!(parts.iter().all(|part| err.contains(part)), "{all:?}: {err}");
    }
}

#[tokio::test]
async fn serves_from_another_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.yaml"), SMALL_POLICY).unwrap();
    let process = Process::serve_in(dir.path(), &["--policy", "mine.yaml"]);
    let mut router = proto::router_client::RouterClient::new(channel(process.grpc).await);
    let decision = router.route(ask("Where are we?")).await.unwrap().into_inner().decision.unwrap();
    assert_eq!(decision.policy.unwrap().id, "small");
    let log = process.log();
    for part in ["classifier  ", "encoder     all-MiniLM-L6-v2", "from mine.yaml", "grpcurl -plaintext"] {
        assert!(log.contains(part), "{part} is not in\n{log}");
    }
}

#[tokio::test]
async fn admin_endpoints() {
    let service = Service::shared();
    let mut router = service.router().await;
    for text in ["Count me", "Count me", "hello"] {
        router.route(ask(text)).await.unwrap();
    }
    router.route(ask("")).await.unwrap_err();
    let metrics = get(service.admin, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("content-type: application/openmetrics-text"), "{}", metrics.head);
    assert!(metrics.body.ends_with("# EOF\n"));
    for name in [
        "pointsman_decisions_total{intent=\"chat\",tier=\"simple\",model=",
        "pointsman_decisions_total{",
        "pointsman_stage_duration_seconds_bucket{",
        "pointsman_requests_total{method=\"Route\",code=\"Ok\"}",
        "pointsman_requests_total{method=\"Route\",code=\"InvalidArgument\"}",
        "pointsman_requests_in_flight ",
        "pointsman_requests_shed_total ",
        "pointsman_queue_entries ",
        "pointsman_queue_tokens ",
        "pointsman_batch_sequences_bucket{",
        "pointsman_batch_tokens_bucket{",
        "pointsman_batch_failures_total 0",
        "pointsman_skipped_inferences_total ",
        "pointsman_wasted_inferences_total 0",
        "pointsman_connections ",
        "pointsman_panics_total 0",
        "pointsman_decision_cache_lookups_total{result=\"Hit\"}",
        "pointsman_decision_cache_entries ",
        "pointsman_policy_info{id=\"default\",version=",
        "pointsman_policy_age_seconds ",
        "pointsman_policy_loads 1",
        "pointsman_policy_stale 0",
        "pointsman_policy_copy_failed_total 0",
    ] {
        assert!(metrics.body.lines().any(|line| line.starts_with(name)), "{name} is not in\n{}", metrics.body);
    }
    assert_eq!((get(service.admin, "/livez").status, get(service.admin, "/readyz").status), (200, 200));
    let version: serde_json::Value = serde_json::from_str(&get(service.admin, "/version").body).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["loaded"]["policy"]["id"], "default");
    assert_eq!(version["loaded"]["classifier"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(get(service.admin, "/nothing").status, 404);
}

#[tokio::test]
async fn logs_tell_requests_apart_and_never_quote_them() {
    const CANARY: &str = "xylophone-canary";
    let process = Process::serve(&["--log-format", "json", "--log-filter", "debug"]);
    let mut router = proto::router_client::RouterClient::new(channel(process.grpc).await);
    let named = |id: &str, text: String| proto::RouteRequest { request_id: id.into(), ..ask(text) };
    let mut requests = vec![
        named("request-1", format!("Tell me about the {CANARY}")),
        named("request-2", format!("{CANARY} ").repeat(20_000)),
        proto::RouteRequest {
            session_id: CANARY.into(),
            metadata: [("k".to_owned(), CANARY.to_owned())].into(),
            messages: [1, 2, 3].map(|role| proto::Message { role, content: format!("{role} {CANARY}") }).to_vec(),
            ..named("request-3", String::new())
        },
        proto::RouteRequest { role: "nobody".into(), ..named("request-4", CANARY.into()) },
    ];
    for request in &requests {
        // Two of them are refused, which is logged too.
        drop(router.route(request.clone()).await);
    }
    router.route_batch(proto::RouteBatchRequest { requests: requests.clone() }).await.unwrap();
    let query = Some(proto::Query { query: CANARY.into(), ..Default::default() });
    router.classify(proto::ClassifyRequest { query }).await.unwrap();
    requests.truncate(1);
    let mut answers = router.route_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    drop((router, answers));
    process.signal("-TERM");
    let (_, log) = wait(|| process.wait(PATIENCE)).await;

    assert!(!log.contains(CANARY), "{}", log.lines().find(|line| line.contains(CANARY)).unwrap());
    let entries: Vec<serde_json::Value> = log
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let of = |id: &str, message: &str| {
        entries.iter().filter(|entry| entry["request_id"] == id && entry["message"] == message).count()
    };
    assert_eq!((of("request-1", "decided"), of("request-3", "decided")), (3, 2), "{log}");
    assert_eq!((of("request-2", "refused"), of("request-4", "refused")), (2, 2), "{log}");
    let decided = entries.iter().find(|entry| entry["message"] == "decided").unwrap();
    for field in
        ["decision_id", "model", "intent", "tier", "confidence", "source", "policy_version", "bytes", "total_us"]
    {
        assert!(!decided[field].is_null(), "{field} is not in {decided}");
    }
}

/// Two ports that were free a moment ago.
fn free_addresses() -> (std::net::SocketAddr, std::net::SocketAddr) {
    let (a, b) =
        (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    (a.local_addr().unwrap(), b.local_addr().unwrap())
}
