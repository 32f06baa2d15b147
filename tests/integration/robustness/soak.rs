//! Mixed load on the real binary for as long as one likes: nothing fails, and nothing grows.
//!
//! `SOAK_SECONDS=1200 cargo test --release --test integration robustness::soak -- --ignored --nocapture`

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pointsman::rpc::proto;
use pointsman::rpc::proto::router_client::RouterClient;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use super::super::control_plane_support::version;
use super::super::support::{Process, ask, channel, eventually, get};
use super::drain::admin_of;
use super::model_reload::{edit, models};
use super::raw::quantile;

/// How long, how much, and what may grow.
struct Plan {
    length: Duration,
    /// Calls a second.
    rate: f64,
    swap_every: Duration,
    /// Another version of the model; `None`: never.
    reload_every: Option<Duration>,
    /// What is kept of decisions until their outcome is bounded at 200,000 of them, and what is kept of outcomes at
    /// half as many. So many decisions are made first, and outcomes of half of them told, that a slope of the memory
    /// after it means a leak.
    fill: usize,
}

/// What came of calls.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    cancelled: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// Seconds since the start and time of a single short query.
    times: Mutex<Vec<(f64, Duration)>>,
}

/// The process, at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    seconds: f64,
    resident_kib: f64,
    /// Of the service by name. Those that tokio keeps for reading files come and go with the reading, up to its limit.
    threads: usize,
    files: usize,
}

/// Calls over one connection before it is replaced.
const CALLS_PER_CONNECTION: usize = 100;
const CONNECTIONS: usize = 4;
/// Calls at a time: a machine that is busy elsewhere slows the load down instead of having it refused.
const MOST_CALLS: usize = 32;

// === impl Sample ===

impl Sample {
    fn of(process: &Process, seconds: f64) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            seconds,
            resident_kib: field("VmRSS:") as f64,
            threads: named_threads(process.id()),
            files: std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count(),
        }
    }
}

fn named_threads(process: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // One that ends meanwhile has no name any more.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| !name.starts_with("tokio")).count()
}

/// Medians of a number of equal parts of time: a reload holds two models for a moment.
fn medians(samples: &[Sample], parts: usize, of: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    let (first, last) = (samples[0].seconds, samples[samples.len() - 1].seconds);
    let width = (last - first) / parts as f64;
    let part = |i: usize| {
        let within = first + width * i as f64..=first + width * (i + 1) as f64;
        let mut values: Vec<f64> = samples.iter().filter(|s| within.contains(&s.seconds)).map(&of).collect();
        values.sort_by(f64::total_cmp);
        (first + width * (i as f64 + 0.5), values[values.len() / 2])
    };
    (0..parts).map(part).collect()
}

/// Least squares: the slope per second and its standard error.
fn slope(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let (x, y) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let slope = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread;
    let left: f64 = points.iter().map(|p| (p.1 - y - slope * (p.0 - x)).powi(2)).sum();
    (slope, (left / (n - 2.0) / spread).sqrt())
}

// === impl Tally ===

impl Tally {
    fn count(&self, what: &str, outcome: Result<(), Status>) {
        match outcome {
            Ok(()) => drop(self.answered.fetch_add(1, Ordering::SeqCst)),
            Err(status) => self.failures.lock().unwrap().push(format!("{what}: {status:?}")),
        }
    }
}

async fn route(
    router: &mut RouterClient<Channel>,
    text: String,
    tenant: &'static str,
) -> Result<proto::Decision, Status> {
    let request = proto::RouteRequest { tenant: tenant.into(), ..ask(text) };
    Ok(router.route(request).await?.into_inner().decision.unwrap())
}

/// The `i`-th call; what it is goes by its number.
async fn call(mut router: RouterClient<Channel>, i: usize, tally: &Tally, started: Instant) {
    let unique = format!("Why does harbour number {i} freeze before the lake behind it does?");
    let sent = Instant::now();
    match i % 100 {
        kind @ 0..60 => {
            let text = if kind < 30 { unique } else { format!("How deep is well number {}?", i % 50) };
            let outcome = route(&mut router, text, "").await.map(drop);
            if outcome.is_ok() {
                tally.times.lock().unwrap().push((started.elapsed().as_secs_f64(), sent.elapsed()));
            }
            tally.count("Route", outcome);
        }
        60..64 => {
            let text = format!("{unique} ") + &"The tide comes twice a day and nobody asks it to. ".repeat(1 + i % 60);
            tally.count("Route of a long text", route(&mut router, text, "").await.map(drop));
        }
        64..66 => {
            let query = proto::Query { query: unique, ..Default::default() };
            let outcome = router.classify(proto::ClassifyRequest { query: Some(query) }).await;
            tally.count("Classify", outcome.map(drop));
        }
        66..68 => {
            let requests = (0..16).map(|n| ask(format!("{unique} And number {n}?"))).collect();
            let outcome = router.route_batch(proto::RouteBatchRequest { requests }).await.map(|answer| {
                let results = answer.into_inner().results;
                let good = |result: &proto::RouteResult| {
                    matches!(result.result, Some(proto::route_result::Result::Decision(_)))
                };
                let n = results.iter().filter(|result| good(result)).count();
                assert_eq!((results.len(), n), (16, 16));
            });
            tally.count("RouteBatch", outcome);
        }
        68..70 => {
            let asked = (0..20).map(|n| ask(format!("How deep is well number {n}?"))).collect::<Vec<_>>();
            let outcome = async {
                let mut answers = router.route_stream(tokio_stream::iter(asked)).await?.into_inner();
                // One of three goes away in the middle.
                let wanted = if i.is_multiple_of(3) { 7 } else { 20 };
                for _ in 0..wanted {
                    answers.message().await?.unwrap();
                }
                Ok(())
            };
            tally.count("RouteStream", outcome.await);
        }
        70..74 => {
            let patience = Duration::from_micros(500 + i as u64 % 40 * 100);
            match tokio::time::timeout(patience, route(&mut router, unique, "")).await {
                Ok(outcome) => tally.count("Route", outcome.map(drop)),
                Err(_) => drop(tally.cancelled.fetch_add(1, Ordering::SeqCst)),
            }
        }
        74..86 => tally.count("Escalate", cascade(&mut router, unique, i).await),
        _ => {
            let outcome = async {
                let text = format!("How deep is well number {}?", i % 50);
                let decision = route(&mut router, text, if i.is_multiple_of(2) { "" } else { "somebody" }).await?;
                let failure = if i % 10 == 3 { proto::FailureKind::Timeout } else { proto::FailureKind::Unspecified };
                report(&mut router, &decision, failure).await
            };
            tally.count("ReportOutcome", outcome.await);
        }
    }
}

async fn cascade(router: &mut RouterClient<Channel>, text: String, i: usize) -> Result<(), Status> {
    let mut decision = route(router, text, "").await?;
    let mut observed = proto::Observed { score: Some(0.1), ..Default::default() };
    if i.is_multiple_of(3) {
        observed = proto::Observed { failure: proto::FailureKind::RateLimited.into(), ..Default::default() };
    }
    for _ in 0..4 {
        report(router, &decision, observed.failure()).await?;
        let continuation = std::mem::take(&mut decision.continuation);
        let request = proto::EscalateRequest { continuation, observed: Some(observed.clone()), ..Default::default() };
        match router.escalate(request).await?.into_inner().step {
            Some(proto::escalate_response::Step::Decision(next)) => decision = next,
            _ => break,
        }
    }
    Ok(())
}

async fn report(
    router: &mut RouterClient<Channel>,
    decision: &proto::Decision,
    failure: proto::FailureKind,
) -> Result<(), Status> {
    router.report_outcome(outcome(decision, failure)).await.map(drop)
}

fn outcome(decision: &proto::Decision, failure: proto::FailureKind) -> proto::ReportOutcomeRequest {
    proto::ReportOutcomeRequest {
        decision_id: decision.decision_id.clone(),
        model: decision.selected.as_ref().unwrap().model.clone(),
        observed: Some(proto::Observed { failure: failure.into(), ..Default::default() }),
        latency_ms: 700,
        ..Default::default()
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn fill(address: SocketAddr, n: usize) {
    let mut router = RouterClient::new(channel(address).await);
    for i in 0..n.div_ceil(256) {
        let requests = vec![ask("How deep is well number 1?"); 256];
        let results = router.route_batch(proto::RouteBatchRequest { requests }).await.unwrap().into_inner().results;
        if i % 2 == 0 {
            let decisions = results.into_iter().map(|result| match result.result {
                Some(proto::route_result::Result::Decision(decision)) => decision,
                other => panic!("no decision: {other:?}"),
            });
            let told: Vec<_> = decisions.map(|it| outcome(&it, proto::FailureKind::Unspecified)).collect();
            let n_told = told.len() as u64;
            let taken = router.report_outcomes(tokio_stream::iter(told)).await.unwrap().into_inner().accepted;
            assert_eq!(taken, n_told);
        }
    }
}

fn metric(admin: SocketAddr, name: &str) -> f64 {
    let page = get(admin, "/metrics").body;
    let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// Samples of every second under the load of `plan`, with the one of before it.
async fn soak(plan: &Plan) -> Vec<Sample> {
    let (models, dir) = (models(), tempfile::tempdir().unwrap());
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, version(1)).unwrap();
    let (models_dir, policy_path, logs) =
        (models.path().to_str().unwrap(), policy.to_str().unwrap(), dir.path().join("log"));
    let process = Process::serve(&[
        "--models-dir",
        models_dir,
        "--policy",
        policy_path,
        "--decision-log",
        logs.to_str().unwrap(),
        "--model-poll-interval",
        "500ms",
        "--decision-cache-entries",
        "2000",
        "--log-filter",
        "error",
        // The machine may be busy with something else: what waits is not refused for that.
        "--max-wait",
        "20s",
    ]);
    let (grpc, admin) = (process.grpc, admin_of(&process));
    fill(grpc, plan.fill).await;
    let before = Sample::of(&process, 0.0);
    println!("before: {before:?}");

    let tally = Arc::new(Tally::default());
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(channel(grpc).await);
    }
    let (mut calls, mut samples) = (JoinSet::new(), Vec::new());
    let places = Arc::new(Semaphore::new(MOST_CALLS));
    let started = Instant::now();
    let (mut next_sample, mut next_swap, mut swaps) = (Duration::ZERO, plan.swap_every, 1);
    let (mut next_reload, mut reloads) = (plan.reload_every.unwrap_or(Duration::MAX), 0);
    for i in 0.. {
        let at = Duration::from_secs_f64(i as f64 / plan.rate);
        tokio::time::sleep_until((started + at).into()).await;
        let now = started.elapsed();
        if now >= plan.length {
            break;
        }
        if now >= next_sample {
            next_sample = now + Duration::from_secs(1);
            samples.push(Sample::of(&process, now.as_secs_f64()));
            // Those that have ended.
            while calls.try_join_next().is_some_and(|ended| ended.is_ok()) {}
        }
        if now >= next_swap {
            next_swap = now + plan.swap_every;
            swaps += 1;
            replace(&policy, &version(swaps));
        }
        if now >= next_reload {
            next_reload = now + plan.reload_every.unwrap_or(Duration::MAX);
            reloads += 1;
            edit(models.path(), |manifest| manifest["version"] = format!("soak-{reloads}").into());
        }
        if i % CALLS_PER_CONNECTION == 0 {
            channels[i / CALLS_PER_CONNECTION % CONNECTIONS] = channel(grpc).await;
        }
        let (router, tally) = (RouterClient::new(channels[i % CONNECTIONS].clone()), Arc::clone(&tally));
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        calls.spawn(async move {
            call(router, i, &tally, started).await;
            drop(place);
        });
    }
    calls.join_all().await;
    drop(channels);
    let failures = std::mem::take(&mut *tally.failures.lock().unwrap());
    let (answered, cancelled) = (tally.answered.load(Ordering::SeqCst), tally.cancelled.load(Ordering::SeqCst));
    println!(
        "{answered} answered, {cancelled} cancelled, {} failed; {swaps} policies, {reloads} reloads in {:.0?}",
        failures.len(),
        started.elapsed()
    );
    assert!(failures.is_empty(), "{}", failures[..failures.len().min(5)].join("\n"));
    // A caller may go away in the microseconds between the last look and the start of a pass, or longer ones where a thread
    // has to wait for a core in between: once in 6,807 cancelled calls beside a compiler.
    let wasted = metric(admin, "pointsman_wasted_inferences_total");
    assert!(wasted <= (cancelled / 1_000) as f64, "{wasted} passes for {cancelled} that went away");

    // What nobody uses any more is given back: connections, places, files, threads.
    let calm = async || {
        let idle = ["pointsman_requests_in_flight", "pointsman_queue_entries", "pointsman_connections"];
        let now = Sample::of(&process, 0.0);
        let idle = idle.iter().all(|gauge| metric(admin, gauge) == 0.0);
        (idle && now.files <= before.files + 2 && now.threads <= before.threads).then_some(now)
    };
    println!("after: {:?}", eventually("everything was given back", calm).await);
    let times = std::mem::take(&mut *tally.times.lock().unwrap());
    let p99 = |within: std::ops::Range<f64>| {
        let within = within.start * plan.length.as_secs_f64()..within.end * plan.length.as_secs_f64();
        let mut times: Vec<Duration> = times.iter().filter(|(at, _)| within.contains(at)).map(|(_, t)| *t).collect();
        (!times.is_empty()).then(|| quantile(&mut times, 0.99))
    };
    println!(
        "p99 of single short queries in the first and last quarter: {:.1?}, {:.1?}",
        p99(0.0..0.25),
        p99(0.75..1.0)
    );
    process.signal("-TERM");
    let (status, log) = tokio::task::spawn_blocking(move || process.wait(Duration::from_secs(30))).await.unwrap();
    assert!(status.success(), "{status}\n{log}");
    samples.insert(0, before);
    samples
}

/// The same in small, so that what it would find at once is found in the ordinary run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_load_leaves_nothing_behind() {
    let plan = Plan {
        length: Duration::from_secs(5),
        rate: 60.0,
        swap_every: Duration::from_millis(500),
        reload_every: None,
        fill: 0,
    };
    let samples = soak(&plan).await;
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    // Caches fill in that time; a model that is kept twice would be more than this.
    assert!(last.resident_kib < first.resident_kib + 64.0 * 1_024.0, "{first:?}, {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes SOAK_SECONDS, a minute where nothing is said"]
async fn a_mixed_load_makes_nothing_grow() {
    let number = |name: &str, default: f64| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let plan = Plan {
        length: Duration::from_secs_f64(number("SOAK_SECONDS", 60.0)),
        rate: number("SOAK_RATE", 150.0),
        swap_every: Duration::from_secs(2),
        reload_every: Some(Duration::from_secs_f64(number("SOAK_SECONDS", 60.0) / 10.0)),
        fill: 230_000,
    };
    let samples = soak(&plan).await;
    // The first quarter is for caches and the allocator to fill.
    let flat: Vec<Sample> =
        samples.iter().filter(|sample| sample.seconds >= plan.length.as_secs_f64() / 4.0).copied().collect();
    let most = |of: fn(&Sample) -> usize| flat.iter().map(of).max().unwrap();
    println!("at most {} threads, {} files", most(|s| s.threads), most(|s| s.files));
    let parts = medians(&flat, 30, |sample| sample.resident_kib / 1_024.0);
    let (growth, error) = slope(&parts);
    let level = parts.iter().map(|part| part.1).sum::<f64>() / parts.len() as f64;
    let per_ten_minutes = |per_second: f64| per_second * 600.0;
    println!(
        "resident: {level:.1} MiB; slope {:.2} MiB in ten minutes (standard error {:.2}); medians {:.1?}",
        per_ten_minutes(growth),
        per_ten_minutes(error),
        parts.iter().map(|part| part.1).collect::<Vec<_>>()
    );
    let (files, files_error) = slope(&medians(&flat, 30, |sample| sample.files as f64));
    let (threads, threads_error) = slope(&medians(&flat, 30, |sample| sample.threads as f64));
    // Less than 1 % over the time looked at; or not to be told from nothing, and then no more than 3 %.
    let looked_at = plan.length.as_secs_f64() * 0.75;
    let grown = growth * looked_at / level;
    assert!(grown < 0.01 || grown < 0.03 && growth < 2.0 * error, "memory grows by {:.1} %", grown * 100.0);
    assert!(files * looked_at < 1.0 || files < 2.0 * files_error, "open files grow: {files} a second");
    assert!(threads * looked_at < 1.0 || threads < 2.0 * threads_error, "threads grow: {threads} a second");
}
