//! Callers that go away: their work is not done, their places come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use prost::Message as _;

use super::super::support::{Service, ask, eventually};
use super::engines::Scripted;
use super::raw::{ROUTE, RawClient, frame, request};

#[tokio::test]
async fn a_thousand_cancelled_calls_leave_nothing_behind() {
    let settings = RawConfig {
        queue_entries: Some(2_000),
        max_in_flight: Some(2_000),
        decision_cache_entries: Some(0),
        max_wait: Some("60s".parse().unwrap()),
        ..RawConfig::default()
    };
    let (hand_over, engine) = std::sync::mpsc::channel();
    let service = Service::start_with(settings, move |classifier| {
        let engine = Arc::new(Scripted::new(classifier, Duration::from_millis(1)));
        hand_over.send(Arc::clone(&engine)).unwrap();
        engine
    });
    let engine = engine.recv().unwrap();
    let clients = [(); 8].map(|()| RawClient::connect(service.grpc));
    let clients = futures_util::future::join_all(clients).await;
    engine.held.store(true, Ordering::SeqCst);
    let before = engine.inputs.load(Ordering::SeqCst);

    let mut open = Vec::new();
    for i in 0..1_000_usize {
        let mut send = clients[i % 8].send.clone().ready().await.unwrap();
        let (response, mut body) = send.send_request(request(ROUTE, &[]), false).unwrap();
        let text = format!("Why does lake number {i} lie so far above the sea?");
        body.send_data(frame(&ask(text).encode_to_vec()), true).unwrap();
        open.push((response, body));
    }
    let in_flight = async |n| (service.metric("pointsman_requests_in_flight") == Some(n)).then_some(());
    eventually("all are being answered", async || in_flight(1_000.0).await).await;
    let cancelled = Instant::now();
    for (_, body) in &mut open {
        body.send_reset(h2::Reason::CANCEL);
    }
    drop(open);
    eventually("all places are free", async || in_flight(0.0).await).await;
    println!("1,000 places back after {:?}", cancelled.elapsed());
    assert!(cancelled.elapsed() < Duration::from_secs(2), "{:?}", cancelled.elapsed());

    engine.held.store(false, Ordering::SeqCst);
    let answer = clients[0].call(ROUTE, &[], &ask("Is anybody still being served?").encode_to_vec()).await.unwrap();
    assert_eq!(answer.code, tonic::Code::Ok);
    // The one pass that had begun, and the call above.
    let classified = engine.inputs.load(Ordering::SeqCst) - before;
    assert!(classified <= 42, "{classified} were classified, of which one pass and one call may be");
    assert_eq!(service.metric("pointsman_wasted_inferences_total"), Some(0.0));
    assert!(service.metric("pointsman_skipped_inferences_total").unwrap() >= 950.0);
    drop(clients);
    let closed = async || (service.metric("pointsman_connections") == Some(0.0)).then_some(());
    eventually("no connection is left", closed).await;
}
