//! Faults that come together: each is survived alone (the other files), and services die of two.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use pointsman::rpc::proto::router_client::RouterClient;
use pointsman::rpc::proto::{self, FailureKind};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;

use super::super::control_plane_support::{Mode, Plane, version};
use super::super::support::{Process, Service, ask, channel, eventually, get};
use super::drain::admin_of;
use super::engines::Scripted;
use super::model_reload::{edit, models};
use super::raw::{NeverReads, ROUTE, RawClient, quantile};

fn has(decision: &proto::Decision, code: &str) -> bool {
    decision.reasons.iter().any(|reason| reason.code == code)
}

/// No control plane at the start, every write to disk fails, and clients that do not read: others are served by the
/// embedded policy, the policy is followed once it is there, and the end is not held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_control_plane_on_a_full_disk_among_clients_that_do_not_read() {
    let (plane, dir) = (Plane::start(&version(3)).await, tempfile::tempdir().unwrap());
    plane.set(Mode::Gone).await;
    let (copies, logs) = (dir.path().join("copies"), dir.path().join("logs"));
    std::fs::write(&copies, "a file where the directory should be").unwrap();
    std::fs::create_dir(&logs).unwrap();
    // Every write to it fails as on a full disk.
    for name in ["decisions.jsonl", "outcomes.jsonl"] {
        std::os::unix::fs::symlink("/dev/full", logs.join(name)).unwrap();
    }
    let (url, copies, logs) = (plane.url(), copies.to_str().unwrap(), logs.to_str().unwrap());
    let process = Process::serve(&[
        "--policy",
        &url,
        "--policy-poll-interval",
        "500ms",
        "--policy-copies-dir",
        copies,
        "--decision-log",
        logs,
        "--drain-timeout",
        "2s",
    ]);
    let slow = [NeverReads::connect(process.grpc).await, NeverReads::connect(process.grpc).await];
    let client = RawClient::connect(process.grpc).await;
    let route = async |i: usize| {
        let body = ask(format!("Why is lantern number {i} out?")).encode_to_vec();
        let answer = client.call(ROUTE, &[], &body).await.unwrap();
        assert_eq!(answer.code, Code::Ok, "{answer:?}");
        let decision = proto::RouteResponse::decode(answer.message.slice(5..)).unwrap().decision.unwrap();
        (decision, answer.took)
    };
    let mut times = Vec::new();
    for i in 0..200 {
        let (decision, took) = route(i).await;
        assert!(has(&decision, "POLICY_STAND_IN"), "{:?}", decision.reasons);
        times.push(took);
    }
    println!("p50 {:?}, p99 {:?} with all of it", quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    assert!(quantile(&mut times, 0.99) < Duration::from_secs(1), "{:?}", quantile(&mut times, 0.99));
    plane.set(Mode::Good).await;
    let followed = async || {
        let (decision, _) = route(1_000).await;
        (decision.policy.as_ref().unwrap().version == "3" && !has(&decision, "POLICY_STAND_IN")).then_some(())
    };
    eventually("the control plane is followed", followed).await;
    let page = get(admin_of(&process), "/metrics").body;
    assert!(page.contains("pointsman_policy_copy_failed_total"), "{page}");
    let asked = Instant::now();
    process.signal("-TERM");
    let (status, log) = tokio::task::spawn_blocking(move || process.wait(Duration::from_secs(20))).await.unwrap();
    println!("ended after {:?}, grace 2s", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert!(status.code().is_some(), "{status}: ended by itself\n{log}");
    drop(slow);
}

/// The encoder fails, the control plane hangs, the shared state is away and every model has failed: a request still has
/// an answer, at once, which says all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_a_decision_leans_on_is_away() {
    let document = version(1).replace("routes:", "health: {model: {consecutive_failures: 2}}\nroutes:")
        + "tenants: {acme: {limits: {hard_budget_usd: 1000}}}\n";
    let plane = Plane::start(&document).await;
    let settings = RawConfig {
        policy: Some(plane.url()),
        policy_poll_interval: Some("300ms".parse().unwrap()),
        policy_max_staleness: Some("1s".parse().unwrap()),
        state: Some("redis://127.0.0.1:9".into()),
        ..RawConfig::default()
    };
    let (hand_over, engine) = std::sync::mpsc::channel();
    let service = Service::start_with(settings, move |classifier| {
        let engine = Arc::new(Scripted::new(classifier, Duration::ZERO));
        hand_over.send(Arc::clone(&engine)).unwrap();
        engine
    });
    let engine = engine.recv().unwrap();
    engine.broken.store(true, Ordering::SeqCst);
    plane.set(Mode::Silent).await;
    let mut router = service.router().await;
    let mut route = async |i: usize| {
        let request = proto::RouteRequest { tenant: "acme".into(), ..ask(format!("Why is pond number {i} green?")) };
        let started = Instant::now();
        let decision = router.route(request).await.unwrap().into_inner().decision.unwrap();
        (decision, started.elapsed())
    };
    // Whatever is selected fails, until nothing is left in service.
    let mut times = Vec::new();
    let mut reports = service.router().await;
    for i in 0..60 {
        let (decision, took) = route(i).await;
        times.push(took);
        let observed = proto::Observed { failure: FailureKind::ProviderError.into(), ..Default::default() };
        let report = proto::ReportOutcomeRequest {
            decision_id: decision.decision_id,
            model: decision.selected.unwrap().model,
            observed: Some(observed),
            ..Default::default()
        };
        reports.report_outcome(report).await.unwrap();
    }
    eventually("the policy grows old", async || (service.metric("pointsman_policy_stale")? == 1.0).then_some(())).await;
    let last = eventually("nothing in service", async || {
        let (decision, took) = route(1_000).await;
        times.push(took);
        has(&decision, "LAST_RESORT").then_some(decision)
    })
    .await;
    assert_eq!(last.source(), proto::Source::Degraded);
    assert!(has(&last, "DEGRADED") && has(&last, "STATE_AWAY"), "{:?}", last.reasons);
    assert!(last.retry_after_ms > 0, "who retries at once makes it worse");
    println!("{} answers, p50 {:?}, p99 {:?}", times.len(), quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    assert!(quantile(&mut times, 0.99) < Duration::from_secs(1), "{:?}", quantile(&mut times, 0.99));
    // And back: nothing of it lasts.
    engine.broken.store(false, Ordering::SeqCst);
    plane.set(Mode::Good).await;
    eventually("a classified answer", async || {
        let (decision, _) = route(2_000).await;
        (decision.source() != proto::Source::Degraded).then_some(())
    })
    .await;
}

/// The end comes while another model is loaded and policies change: it does not wait for either, and no call is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_a_reload() {
    for (round, delay) in [20, 150, 400].into_iter().enumerate() {
        let (models, dir) = (models(), tempfile::tempdir().unwrap());
        let (policy, new) = (dir.path().join("policy.yaml"), dir.path().join("new"));
        std::fs::write(&policy, version(1)).unwrap();
        let process = Process::serve(&[
            "--models-dir",
            models.path().to_str().unwrap(),
            "--model-poll-interval",
            "20ms",
            "--policy",
            policy.to_str().unwrap(),
            "--policy-poll-interval",
            "20ms",
            "--drain-timeout",
            "10s",
        ]);
        let mut calls = JoinSet::new();
        for caller in 0..4 {
            let client = RawClient::connect(process.grpc).await;
            calls.spawn(async move {
                let mut n = 0;
                while client.send.clone().ready().await.is_ok() {
                    let body = ask(format!("Why does caller {caller} ask question {n} now?")).encode_to_vec();
                    match client.call(ROUTE, &[], &body).await {
                        Ok(answer) => assert_eq!(answer.code, Code::Ok, "{answer:?}"),
                        // The goodbye: the call was not begun.
                        Err(error) if error.is_go_away() => break,
                        Err(error) => panic!("lost: {error:?}"),
                    }
                    n += 1;
                }
                n
            });
        }
        edit(models.path(), |manifest| manifest["version"] = format!("round-{round}").into());
        for number in 2..6 {
            std::fs::write(&new, version(number)).unwrap();
            std::fs::rename(&new, &policy).unwrap();
            tokio::time::sleep(Duration::from_millis(delay / 4)).await;
        }
        let asked = Instant::now();
        process.signal("-TERM");
        let ended = tokio::task::spawn_blocking(move || process.wait(Duration::from_secs(30)));
        let (status, log) = ended.await.unwrap();
        let n: usize = calls.join_all().await.into_iter().sum();
        println!("ended {:?} after the signal, {delay} ms after the new model; {n} calls", asked.elapsed());
        assert!(status.success(), "{status}\n{log}");
        assert!(n > 0 && asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    }
}

/// Inputs that panic, three times the load, and callers that go away: what is left of it is a working service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_under_overload_with_callers_that_go_away() {
    let settings = RawConfig {
        tokens_per_pass: Some(70),
        max_in_flight: Some(100),
        decision_cache_entries: Some(0),
        max_wait: Some("60ms".parse().unwrap()),
        ..RawConfig::default()
    };
    let (hand_over, engine) = std::sync::mpsc::channel();
    let service = Service::start_with(settings, move |classifier| {
        let engine = Arc::new(Scripted::new(classifier, Duration::from_millis(5)));
        hand_over.send(Arc::clone(&engine)).unwrap();
        engine
    });
    engine.recv().unwrap().poison_above.store(30, Ordering::SeqCst);
    let router = RouterClient::new(channel(service.grpc).await);
    let (mut calls, started) = (JoinSet::new(), tokio::time::Instant::now());
    for i in 0..3_000_usize {
        tokio::time::sleep_until(started + Duration::from_secs_f64(i as f64 / 1_500.0)).await;
        let mut router = router.clone();
        calls.spawn(async move {
            let mut text = format!("Why is kite number {i} up?");
            if i % 7 == 0 {
                text += &" It pulls at its string and will not come down again for anybody.".repeat(3);
            }
            let call = router.route(ask(text));
            if i % 5 == 0 {
                return tokio::time::timeout(Duration::from_millis(1 + i as u64 % 20), call).await.ok();
            }
            Some(call.await)
        });
    }
    let answers: Vec<_> = calls.join_all().await.into_iter().flatten().collect();
    let good = answers.iter().filter(|answer| answer.is_ok()).count();
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    println!("{good} of {} answered, the others refused", answers.len());
    assert!(good > 100, "{good}");
    let idle = async || {
        let gauges = ["pointsman_requests_in_flight", "pointsman_queue_entries", "pointsman_queue_tokens"];
        gauges.iter().all(|gauge| service.metric(gauge) == Some(0.0)).then_some(())
    };
    eventually("all places are back", idle).await;
    assert_eq!(service.metric("pointsman_wasted_inferences_total"), Some(0.0));
    let mut router = router;
    eventually("classified again", async || {
        let decision = router.route(ask("Is the sky clear now?")).await.ok()?.into_inner().decision.unwrap();
        (decision.source() == proto::Source::Classifier).then_some(())
    })
    .await;
}
