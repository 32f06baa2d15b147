//! How a service ends: told in advance, with every call in flight answered, and whatever its clients do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use pointsman::serve::Drained;
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use super::super::support::{Process, Service, ask, channel, eventually, get};
use super::engines::Scripted;
use super::raw::{NeverReads, ROUTE, RawClient, frame, request};

pub(super) fn admin_of(process: &Process) -> SocketAddr {
    let log = process.log();
    let line = log.lines().find_map(|line| line.strip_prefix("admin       http://")).unwrap();
    line.split('/').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_end_is_told_at_once_and_work_is_taken_until_everybody_knows() {
    let process = Process::serve(&["--drain-delay", "1s", "--drain-timeout", "5s"]);
    let (grpc, admin) = (process.grpc, admin_of(&process));
    let mut watches = Vec::new();
    for service in ["", "pointsman.v1.Router", "pointsman.v1.PolicyService", "pointsman.v1.Info"] {
        let mut health = HealthClient::new(channel(grpc).await);
        let mut watch = health.watch(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watches.push(watch);
    }
    assert_eq!(get(admin, "/readyz").status, 200);
    process.signal("-TERM");
    let signalled = Instant::now();
    for watch in &mut watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    }
    let told = signalled.elapsed();
    println!("NOT_SERVING {told:?} after the signal");
    assert!(told < Duration::from_millis(500), "{told:?}");
    drop(watches);
    assert_eq!(get(admin, "/readyz").status, 503);
    // Those who have not heard of it are served, over new connections too.
    let late = RawClient::connect(grpc).await;
    assert_eq!(late.call(ROUTE, &[], &ask("Is it too late?").encode_to_vec()).await.unwrap().code, Code::Ok);
    assert!(signalled.elapsed() < Duration::from_secs(1), "the delay is not over");
    // An idle client is told goodbye, and nothing holds the process then.
    late.driver.await.unwrap().unwrap();
    let (status, log) = tokio::task::spawn_blocking(move || process.wait(Duration::from_secs(10))).await.unwrap();
    assert!(status.success(), "{status}\n{log}");
    assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
}

/// Clients that call again and again while the service stops; gives the calls that were begun, those that the goodbye
/// refused, and those that were lost.
async fn lost_in_a_stop() -> [usize; 3] {
    let settings = RawConfig { decision_cache_entries: Some(0), ..RawConfig::default() };
    let service =
        Service::start_with(settings, |classifier| Arc::new(Scripted::new(classifier, Duration::from_millis(3))));
    let [begun, refused, lost] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for connection in 0..4 {
        let client = Arc::new(RawClient::connect(service.grpc).await);
        for caller in 0..4 {
            let (begun, refused, lost) = (Arc::clone(&begun), Arc::clone(&refused), Arc::clone(&lost));
            let client = Arc::clone(&client);
            callers.spawn(async move {
                for i in 0.. {
                    // After the goodbye no call can begin; those that have begun must end well.
                    let Ok(mut send) = client.send.clone().ready().await else { break };
                    let Ok((response, mut body)) = send.send_request(request(ROUTE, &[]), false) else { break };
                    begun.fetch_add(1, Ordering::SeqCst);
                    let text = format!("Why does caller {connection}.{caller} ask question {i} of all questions?");
                    let sent = body.send_data(frame(&ask(text).encode_to_vec()), true);
                    let answered = async {
                        sent?;
                        let mut body = response.await?.into_body();
                        while let Some(data) = body.data().await {
                            data?;
                        }
                        body.trailers().await
                    };
                    match answered.await {
                        Ok(Some(trailers)) if trailers["grpc-status"] == "0" => {}
                        // The goodbye says that the call was not begun: it is safe to make it elsewhere.
                        Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        other => {
                            println!("lost: {other:?}");
                            lost.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    let drained = tokio::task::spawn_blocking(move || service.join()).await.unwrap();
    callers.join_all().await;
    assert_eq!(drained, Drained::Completely);
    [begun, refused, lost].map(|counter| counter.load(Ordering::SeqCst))
}

async fn stop_again_and_again(times: usize) {
    let [mut begun, mut refused, mut lost] = [0; 3];
    for _ in 0..times {
        let more = lost_in_a_stop().await;
        [begun, refused, lost] = [begun + more[0], refused + more[1], lost + more[2]];
    }
    println!("{lost} of {begun} calls lost in {times} stops; {refused} told that they were not begun");
    assert_eq!(lost, 0, "of {begun} calls in {times} stops");
    assert!(begun > 10 * times);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_in_flight_is_lost_in_a_stop() {
    stop_again_and_again(4).await;
}

/// `cargo test --test integration robustness::drain -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a hundred stops take a minute"]
async fn no_call_in_flight_is_lost_in_a_hundred_stops() {
    stop_again_and_again(100).await;
}

#[tokio::test]
async fn a_client_that_never_reads_holds_the_end_no_longer_than_the_grace() {
    let grace = Duration::from_secs(1);
    let settings = RawConfig { drain_timeout: Some("1s".parse().unwrap()), ..RawConfig::default() };
    let service = Service::start(settings);
    let client = NeverReads::connect(service.grpc).await;
    let in_flight = async || (service.metric("pointsman_requests_in_flight") > Some(0.0)).then_some(());
    eventually("answers that are not taken", in_flight).await;
    let asked = Instant::now();
    let drained = tokio::task::spawn_blocking(move || service.join()).await.unwrap();
    println!("{drained:?} after {:?}, grace {grace:?}", asked.elapsed());
    assert_eq!(drained, Drained::TimedOut);
    // The thread of the test's service takes up to a second to end its runtime.
    assert!(asked.elapsed() < grace + Duration::from_secs(4), "{:?}", asked.elapsed());
    drop(client);
}
