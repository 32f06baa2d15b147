//! Deadlines: kept, told as DEADLINE_EXCEEDED, and no work for who no longer waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pointsman::config::RawConfig;
use pointsman::rpc::proto::{self, Source};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;

use super::super::support::{Service, ask, eventually};
use super::engines::Scripted;
use super::raw::{Answer, ROUTE, RawClient, frame, quantile, request};

fn service(pass: Duration) -> (Service, Arc<Scripted>) {
    let settings = RawConfig {
        tokens_per_pass: Some(70),
        decision_cache_entries: Some(0),
        decision_log_recent: Some(0),
        ..RawConfig::default()
    };
    let (hand_over, engine) = std::sync::mpsc::channel();
    let service = Service::start_with(settings, move |classifier| {
        let engine = Arc::new(Scripted::new(classifier, pass));
        hand_over.send(Arc::clone(&engine)).unwrap();
        engine
    });
    (service, engine.recv().unwrap())
}

fn source(answer: &Answer) -> Source {
    let response = proto::RouteResponse::decode(answer.message.slice(5..)).unwrap();
    response.decision.unwrap().source()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered_by_its_deadline_and_nothing_is_computed_for_nobody() {
    let (service, _) = service(Duration::from_millis(5));
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(RawClient::connect(service.grpc).await);
    }
    let clients = Arc::new(clients);
    // Some 800 queries a second can be classified; 1,200 a second are offered.
    let (mut calls, started) = (JoinSet::new(), tokio::time::Instant::now());
    for i in 0..3_000_usize {
        tokio::time::sleep_until(started + Duration::from_secs_f64(i as f64 / 1_200.0)).await;
        let clients = Arc::clone(&clients);
        calls.spawn(async move {
            let deadline = Duration::from_micros((i * 7_919 % 50_000) as u64);
            let timeout = format!("{}u", deadline.as_micros());
            let body = ask(format!("Why does stream number {i} run to the east of the hills?")).encode_to_vec();
            let answer = clients[i % 4].call(ROUTE, &[("grpc-timeout", &timeout)], &body).await.unwrap();
            (deadline, answer)
        });
    }
    let answers = calls.join_all().await;
    let mut overruns: Vec<Duration> =
        answers.iter().map(|(deadline, answer)| answer.took.saturating_sub(*deadline)).collect();
    let counts = [Code::Ok, Code::DeadlineExceeded].map(|code| answers.iter().filter(|(_, a)| a.code == code).count());
    let degraded = answers.iter().filter(|(_, a)| a.code == Code::Ok && source(a) == Source::Degraded).count();
    let (p50, p99) = (quantile(&mut overruns, 0.5), quantile(&mut overruns, 0.99));
    println!("{counts:?} answered and too late, {degraded} degraded; overrun p50 {p50:?}, p99 {p99:?}");
    assert_eq!(counts[0] + counts[1], answers.len(), "nothing but answers and DEADLINE_EXCEEDED");
    assert!(degraded > 0 && counts[0] > degraded, "{degraded} of {} were degraded", counts[0]);
    assert!(p99 < Duration::from_millis(50), "{p99:?} after the deadline");
    assert_eq!(service.metric("pointsman_wasted_inferences_total"), Some(0.0));
}

#[tokio::test]
async fn an_expired_deadline_is_told_as_such_before_any_work() {
    let (service, engine) = service(Duration::ZERO);
    let client = RawClient::connect(service.grpc).await;
    let passes = engine.passes.load(Ordering::SeqCst);
    for timeout in ["0n", "0m", "0H"] {
        let answer = client.call(ROUTE, &[("grpc-timeout", timeout)], b"not even a message").await.unwrap();
        assert_eq!(answer.code, Code::DeadlineExceeded, "{timeout}: {answer:?}");
    }
    assert_eq!(engine.passes.load(Ordering::SeqCst), passes);
    assert_eq!(service.metric("pointsman_requests_total{method=\"Route\",code=\"DeadlineExceeded\"}"), Some(3.0));
    // What is no deadline is none.
    for timeout in ["", "5", "m", "123456789m", "-5m", "5x", "5 m", "1.5S", "\u{ff15}m"] {
        let answer = client.call(ROUTE, &[("grpc-timeout", timeout)], &ask("Is this too late?").encode_to_vec()).await;
        assert_eq!(answer.unwrap().code, Code::Ok, "{timeout:?}");
    }
}

#[tokio::test]
async fn a_deadline_holds_while_a_request_is_sent_and_a_stream_answered() {
    let (service, engine) = service(Duration::ZERO);
    let client = RawClient::connect(service.grpc).await;
    let within = [("grpc-timeout", "200m")];
    // Half a message, and then nothing.
    let mut send = client.send.clone().ready().await.unwrap();
    let (response, mut body) = send.send_request(request(ROUTE, &within), false).unwrap();
    let whole = frame(&ask("Why is the rest of this missing?").encode_to_vec());
    body.send_data(whole.slice(..10), false).unwrap();
    let started = std::time::Instant::now();
    let head = response.await.unwrap();
    assert_eq!(head.headers()["grpc-status"], "4");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());

    // A stream with one answer and a second that never comes.
    engine.held.store(true, Ordering::SeqCst);
    let mut send = client.send.clone().ready().await.unwrap();
    let path = "/pointsman.v1.Router/RouteStream";
    let (response, mut body) = send.send_request(request(path, &within), false).unwrap();
    body.send_data(frame(&ask("hello").encode_to_vec()), false).unwrap();
    body.send_data(frame(&ask("Which of these rivers is the longest of all?").encode_to_vec()), false).unwrap();
    let mut answers = response.await.unwrap().into_body();
    let mut n = 0;
    while let Some(data) = answers.data().await {
        n += usize::from(!data.unwrap().is_empty());
    }
    assert!(n >= 1, "the answer that was there came");
    assert_eq!(answers.trailers().await.unwrap().unwrap()["grpc-status"], "4");
    engine.held.store(false, Ordering::SeqCst);
    let idle = async || (service.metric("pointsman_requests_in_flight") == Some(0.0)).then_some(());
    eventually("both have given up their places", idle).await;
}

/// An estimate that is far too high would refuse all requests with deadlines, if nothing corrected it.
#[tokio::test]
async fn an_idle_encoder_is_tried_again_after_a_slow_time() {
    let (service, engine) = service(Duration::ZERO);
    let client = RawClient::connect(service.grpc).await;
    let route = async |i: usize, timeout: &str| {
        let body = ask(format!("Why does brook number {i} freeze before the others do?")).encode_to_vec();
        client.call(ROUTE, &[("grpc-timeout", timeout)], &body).await.unwrap()
    };
    for i in 0..8 {
        engine.held.store(true, Ordering::SeqCst);
        let release = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            engine.held.store(false, Ordering::SeqCst);
        };
        let (answer, ()) = tokio::join!(route(i, "5S"), release);
        assert_eq!(answer.code, Code::Ok);
    }
    assert_eq!(source(&route(100, "30m").await), Source::Degraded, "passes are expected to be slow");
    let mut n = 0;
    while source(&route(1_000 + n, "30m").await) == Source::Degraded {
        n += 1;
        assert!(n < 1_000, "the encoder is idle and quick and is not asked");
    }
}
