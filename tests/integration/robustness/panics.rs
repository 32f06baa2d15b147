//! Panics and failures of the encoder, behind real sockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pointsman::config::RawConfig;
use pointsman::rpc::proto::{self, Source};
use prost::Message as _;
use tokio::task::JoinSet;

use super::super::support::{Service, ask, eventually};
use super::engines::Scripted;
use super::raw::{ROUTE, RawClient};

fn service() -> (Service, Arc<Scripted>) {
    let settings =
        RawConfig { decision_cache_entries: Some(0), max_wait: Some("10s".parse().unwrap()), ..RawConfig::default() };
    let (hand_over, engine) = std::sync::mpsc::channel();
    let service = Service::start_with(settings, move |classifier| {
        let engine = Arc::new(Scripted::new(classifier, Duration::from_millis(1)));
        hand_over.send(Arc::clone(&engine)).unwrap();
        engine
    });
    (service, engine.recv().unwrap())
}

async fn route(client: &RawClient, text: String) -> Source {
    let answer = client.call(ROUTE, &[], &ask(text).encode_to_vec()).await.unwrap();
    proto::RouteResponse::decode(answer.message.slice(5..)).unwrap().decision.unwrap().source()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_costs_one_query_its_classification_and_nobody_an_answer() {
    let (service, engine) = service();
    engine.poison_above.store(60, Ordering::SeqCst);
    let clients = Arc::new(vec![RawClient::connect(service.grpc).await, RawClient::connect(service.grpc).await]);
    let mut calls = JoinSet::new();
    for i in 0..400_usize {
        let clients = Arc::clone(&clients);
        calls.spawn(async move {
            let poisoned = i % 4 == 0;
            let text = format!(
                "Why does pond number {i} dry up? {}",
                "Say more of it. ".repeat(if poisoned { 20 } else { 1 })
            );
            (poisoned, route(&clients[i % 2], text).await)
        });
    }
    let answers = calls.join_all().await;
    let wrong = answers.iter().filter(|(poisoned, source)| (*source == Source::Degraded) != *poisoned).count();
    assert_eq!(wrong, 0, "of {} answers", answers.len());
    assert!(service.metric("pointsman_batch_failures_total").unwrap() >= 100.0);
    assert_eq!(service.metric("pointsman_panics_total"), Some(0.0), "none reached a call");
}

#[tokio::test]
async fn a_broken_encoder_degrades_every_answer_and_recovers() {
    let (service, engine) = service();
    let client = RawClient::connect(service.grpc).await;
    engine.broken.store(true, Ordering::SeqCst);
    let before = engine.passes.load(Ordering::SeqCst);
    for i in 0..300 {
        assert_eq!(route(&client, format!("Why does well number {i} never freeze over?")).await, Source::Degraded);
    }
    let asked = engine.passes.load(Ordering::SeqCst) - before;
    println!("{asked} passes for 300 queries of a broken encoder");
    assert!(asked < 60, "{asked} passes: after five failures it is tried once a second");
    engine.broken.store(false, Ordering::SeqCst);
    let mut i = 0;
    let recovered = async || {
        i += 1;
        (route(&client, format!("Is spring number {i} clear again after the rain?")).await == Source::Classifier)
            .then_some(())
    };
    eventually("classified again", recovered).await;
}
