//! Many clients at once, clients that go away, and more work than the server takes.

use std::time::Duration;

use pointsman::config::RawConfig;
use pointsman::rpc::proto::{self, Source};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::support::{Service, ask, eventually};

const N_CLIENTS: usize = 64;

/// A text of its own for each client, from a few words to several times what the encoder reads.
fn text_of(client: usize) -> String {
    let sentence = "Why does the tide come twice a day when the moon passes over once? ";
    format!("Client {client} asks: {}", sentence.repeat(1 << (client % 5)))
}

#[tokio::test]
async fn half_of_the_clients_go_away_and_the_rest_is_answered() {
    let settings =
        RawConfig { decision_cache_entries: Some(0), max_wait: Some("30s".parse().unwrap()), ..RawConfig::default() };
    let service = Service::start(settings);
    let mut clients = JoinSet::new();
    for client in 0..N_CLIENTS {
        let mut router = service.router().await;
        clients.spawn(async move {
            let call = router.route(ask(text_of(client)));
            if client % 2 == 0 {
                return Some(call.await.unwrap().into_inner().decision.unwrap());
            }
            // Gone at different moments: before anything, in the queue, in a pass.
            let patience = Duration::from_millis(client as u64 * 3);
            tokio::time::timeout(patience, call).await.ok().map(|answer| answer.unwrap().into_inner().decision.unwrap())
        });
    }
    let answers: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    assert!(answers.len() >= N_CLIENTS / 2, "{} answers", answers.len());
    assert!(answers.iter().all(|decision| decision.source() == Source::Classifier), "nobody set a deadline");
    let idle = async || {
        let gauges = ["pointsman_requests_in_flight", "pointsman_queue_entries", "pointsman_queue_tokens"];
        gauges.iter().all(|gauge| service.metric(gauge) == Some(0.0)).then_some(())
    };
    eventually("everything in flight is gone", idle).await;
    assert!(service.router().await.route(ask("Still well?")).await.is_ok());
}

#[tokio::test]
async fn admission_refuses_at_once_and_says_when_to_come_back() {
    let service = Service::start(RawConfig { max_in_flight: Some(1), ..RawConfig::default() });
    // An open stream holds its place.
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let mut answers = service.router().await.route_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    sender.send(ask("Is the place taken?")).await.unwrap();
    answers.message().await.unwrap().unwrap();

    let mut router = service.router().await;
    let refused = router.route(ask("Is there room for one more?")).await.unwrap_err();
    let batch = proto::RouteBatchRequest { requests: vec![ask("Or for two?")] };
    for status in [refused, router.route_batch(batch).await.unwrap_err()] {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let delay = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
        let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
        assert_eq!(pushback, delay.as_millis().to_string());
        assert!(delay > Duration::ZERO);
    }
    assert_eq!(service.metric("pointsman_requests_shed_total"), Some(2.0));

    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
    drop(answers);
    let room = async || router.route(ask("Is there room now?")).await.ok();
    eventually("the place is free", room).await;
}

#[tokio::test]
async fn a_full_queue_refuses_single_queries_and_not_parts_of_a_batch() {
    let settings = RawConfig {
        queue_entries: Some(1),
        tokens_per_pass: Some(1),
        decision_cache_entries: Some(0),
        ..RawConfig::default()
    };
    let service = Service::start(settings);
    let mut calls = JoinSet::new();
    for client in 0..N_CLIENTS {
        let mut router = service.router().await;
        calls.spawn(async move { router.route(ask(format!("{client} {}", text_of(4)))).await });
    }
    let (answered, refused): (Vec<_>, Vec<_>) = calls.join_all().await.into_iter().partition(Result::is_ok);
    assert!(!answered.is_empty() && !refused.is_empty(), "{} of {N_CLIENTS} were refused", refused.len());
    for status in refused.into_iter().map(Result::unwrap_err) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.get_error_details().retry_info().is_some());
        let pushback: u64 = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
        assert!((100..=1_000).contains(&pushback), "{pushback}");
    }
    assert!(service.metric("pointsman_requests_shed_total").unwrap() > 0.0);
    // What needs no classifier is answered however much waits for it.
    assert_eq!(
        service.router().await.route(ask("hello")).await.unwrap().into_inner().decision.unwrap().source(),
        Source::Rule
    );
}
