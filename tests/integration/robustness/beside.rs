//! What load must not touch: health checks, memory, and the books of what was refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use pointsman::rpc::proto::{self, FailureKind};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;

use super::super::outcomes::{POLICY, codes, outcome};
use super::super::support::{Process, Service, ask};
use super::engines::Scripted;
use super::raw::{ROUTE, RawClient, quantile};

const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Resident memory in MiB.
fn memory(process: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// Callers that ask again as soon as they are answered, for `time`; how many were served and refused.
async fn press(process: &Process, callers: usize, time: Duration) -> (usize, usize) {
    let connections: Vec<_> = {
        let mut connections = Vec::new();
        for _ in 0..4 {
            connections.push(RawClient::connect(process.grpc).await);
        }
        connections
    };
    let (connections, started) = (Arc::new(connections), Instant::now());
    let mut loops = JoinSet::new();
    for caller in 0..callers {
        let connections = Arc::clone(&connections);
        loops.spawn(async move {
            let (mut served, mut refused) = (0, 0);
            while started.elapsed() < time {
                let text = format!("Why does river number {caller}-{served}-{refused} bend before it meets the sea?");
                let answer = connections[caller % 4].call(ROUTE, &[], &ask(text).encode_to_vec()).await.unwrap();
                match answer.code {
                    Code::Ok => served += 1,
                    Code::ResourceExhausted => refused += 1,
                    code => panic!("{code:?}: {:?}", answer.status),
                }
            }
            (served, refused)
        });
    }
    loops.join_all().await.into_iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// Times of health checks for `time`, by a thread that shares nothing with the callers, as a kubelet does not.
fn probe(grpc: SocketAddr, time: Duration) -> std::thread::JoinHandle<Vec<Duration>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let prober = RawClient::connect(grpc).await;
            let (started, mut took) = (Instant::now(), Vec::new());
            while started.elapsed() < time {
                let answer = prober.call(HEALTH, &[], &[]).await.unwrap();
                assert_eq!(answer.code, Code::Ok);
                took.push(answer.took);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took
        })
    })
}

/// The real binary with the real encoder: passes must not run where calls are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_delays_no_health_check_and_takes_no_memory() {
    let settings = ["--decision-cache-entries", "0", "--threads", "1", "--max-wait", "100ms", "--log-filter", "warn"];
    let process = Process::serve(&settings);
    let (calm, _) = press(&process, 8, Duration::from_millis(1_500)).await;
    let before = memory(&process);
    let prober = probe(process.grpc, Duration::from_secs(3));
    let (served, refused) = press(&process, 256, Duration::from_secs(3)).await;
    let mut took = prober.join().unwrap();
    let after = memory(&process);
    let (p50, p99) = (quantile(&mut took, 0.5), quantile(&mut took, 0.99));
    println!(
        "{calm} answers in 1.5 s of calm; in 3 s of flood {served} and {refused} refusals; {} health checks, p50 {p50:?}, \
         p99 {p99:?}; resident memory {before:.0} MiB, after the flood {after:.0} MiB",
        took.len()
    );
    assert!(refused > 0 && served > 0, "no flood: {served} served, {refused} refused");
    // A check that waited behind passes would take as long as the calls that are taken in: a tenth of a second and more.
    assert!(p50 < Duration::from_millis(100) && p99 < Duration::from_secs(1), "p50 {p50:?}, p99 {p99:?}");
    assert!(after <= before * 1.1 + 8.0, "{before:.0} MiB became {after:.0}");
}

/// A request that is refused for load was never decided: its cost is not reserved, and what was due to be tried is not
/// taken for tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shed_is_neither_booked_nor_taken_for_a_probe() {
    const MORE: &str = "health: {model: {probe_after_ms: 50}, provider: {probe_after_ms: 50}}\ntenants:\n  acme: {limits: {hard_budget_usd: 1000}}\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, format!("{POLICY}{MORE}")).unwrap();
    let settings = RawConfig {
        policy: Some(path.display().to_string()),
        tokens_per_pass: Some(70),
        decision_cache_entries: Some(0),
        max_wait: Some("150ms".parse().unwrap()),
        ..RawConfig::default()
    };
    let pass = Duration::from_millis(10);
    let service = Service::start_with(settings, move |classifier| Arc::new(Scripted::new(classifier, pass)));
    let client = Arc::new(RawClient::connect(service.grpc).await);
    let reports: Vec<_> = (0..5).map(|n| outcome(&format!("c{n}"), "c", FailureKind::Timeout)).collect();
    let answer = service.router().await.report_outcomes(tokio_stream::iter(reports)).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 5);
    // Long enough for c to be due.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let easy = |n: usize| {
        let text = format!("an easy question of number {n}, which no other one is like");
        proto::RouteRequest { tenant: "acme".into(), ..ask(text) }.encode_to_vec()
    };
    let mut calls = JoinSet::new();
    for n in 0..600 {
        let (client, message) = (Arc::clone(&client), easy(n));
        calls.spawn(async move { client.call(ROUTE, &[], &message).await.unwrap() });
    }
    let (mut refused, mut spent, mut served, mut probes) = (0, 0.0, Vec::new(), 0);
    for answer in calls.join_all().await {
        if answer.code == Code::ResourceExhausted {
            refused += 1;
            continue;
        }
        assert_eq!(answer.code, Code::Ok);
        let decision = proto::RouteResponse::decode(answer.message.slice(5..)).unwrap().decision.unwrap();
        probes += usize::from(codes(&decision).contains(&"BREAKER_PROBE"));
        let all: Vec<String> = codes(&decision).into_iter().map(str::to_owned).collect();
        let selected = decision.selected.unwrap();
        spent += selected.estimated_cost_usd;
        served.push((selected.model, all));
    }
    assert!(refused > 100 && !served.is_empty(), "{refused} refused, {} served", served.len());
    assert_eq!(probes, 1, "of those that were decided one tries c: {:?}", &served[..served.len().min(3)]);
    // The gauge says what was booked before the request that asks.
    let last = client.call(ROUTE, &[], &easy(600)).await.unwrap();
    assert_eq!(last.code, Code::Ok);
    let booked = service.metric("pointsman_budget_spent_usd{tenant=\"acme\"}").unwrap();
    assert!((booked - spent).abs() < 1e-6, "{booked} booked, {spent} decided, {refused} refused");
}
