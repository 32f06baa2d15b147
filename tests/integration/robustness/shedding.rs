//! More load than there is capacity: as many good answers as before, quick refusals, and calm after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use pointsman::rpc::proto;
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;

use super::super::support::{Service, ask};
use super::engines::Scripted;
use super::raw::{Answer, ROUTE, RawClient, quantile};

const PASS: Duration = Duration::from_millis(10);
/// Word pieces a pass; the queries below have 16 to 17, so four fit.
const TOKENS_PER_PASS: usize = 70;

fn settings() -> RawConfig {
    RawConfig {
        tokens_per_pass: Some(TOKENS_PER_PASS),
        decision_cache_entries: Some(0),
        decision_log_recent: Some(0),
        max_wait: Some("60ms".parse().unwrap()),
        ..RawConfig::default()
    }
}

/// One of queries that all differ and are about alike in length.
fn query(i: usize) -> Vec<u8> {
    let text = format!("Why does river number {i} bend to the west before it meets the sea?");
    ask(text).encode_to_vec()
}

/// Sends `n` calls, evenly spread at `rate` a second whatever comes back, and counts from the scheduled moment; for a
/// refusal from when it was sent.
async fn offer(clients: &Arc<Vec<RawClient>>, rate: f64, n: usize) -> (Vec<Answer>, f64) {
    let started = tokio::time::Instant::now();
    let mut calls = JoinSet::new();
    for i in 0..n {
        let at = started + Duration::from_secs_f64(i as f64 / rate);
        tokio::time::sleep_until(at).await;
        let clients = Arc::clone(clients);
        calls.spawn(async move {
            let answer = clients[i % clients.len()].call(ROUTE, &[], &query(i)).await.unwrap();
            // This process's timers are up to a millisecond late: nothing in a wait, all of a refusal.
            let took = if answer.code == Code::Ok { at.elapsed() } else { answer.took };
            Answer { took, ..answer }
        });
    }
    let answers = calls.join_all().await;
    (answers, started.elapsed().as_secs_f64())
}

fn took(answers: &[Answer], code: Code) -> Vec<Duration> {
    answers.iter().filter(|answer| answer.code == code).map(|answer| answer.took).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goodput_stays_at_twice_the_capacity() {
    let service = Service::start_with(settings(), |classifier| Arc::new(Scripted::new(classifier, PASS)));
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(RawClient::connect(service.grpc).await);
    }
    let clients = Arc::new(clients);

    // Capacity: what a closed loop of sixteen gets, which keeps the queue filled and is never refused.
    let started = Instant::now();
    let mut loops = JoinSet::new();
    for worker in 0..16_usize {
        let clients = Arc::clone(&clients);
        loops.spawn(async move {
            let mut n = 0_usize;
            while started.elapsed() < Duration::from_millis(1_500) {
                let answer = clients[worker % 8].call(ROUTE, &[], &query(worker * 10_000 + n)).await.unwrap();
                n += usize::from(answer.code == Code::Ok);
            }
            n
        });
    }
    let capacity = loops.join_all().await.into_iter().sum::<usize>() as f64 / started.elapsed().as_secs_f64();
    let (calm, _) = offer(&clients, 0.8 * capacity, (1.2 * capacity) as usize).await;
    let p99_calm = quantile(&mut took(&calm, Code::Ok), 0.99);

    let shed_before = service.metric("pointsman_requests_shed_total").unwrap();
    let (answers, seconds) = offer(&clients, 2.0 * capacity, (4.0 * capacity) as usize).await;
    let (mut served, mut refused) = (took(&answers, Code::Ok), took(&answers, Code::ResourceExhausted));
    assert_eq!(served.len() + refused.len(), answers.len(), "every call is served or refused");
    let goodput = served.len() as f64 / seconds;
    let (p99, refusal) = (quantile(&mut served, 0.99), quantile(&mut refused, 0.5));
    println!(
        "capacity {capacity:.0}/s; offered twice that: {goodput:.0}/s served, p99 {p99:?} (at 0.8: {p99_calm:?}); \
         {} refused, half of them within {refusal:?}, p99 {:?}",
        refused.len(),
        quantile(&mut refused, 0.99),
    );
    assert!(goodput >= 0.8 * capacity, "{goodput:.0} of {capacity:.0} a second");
    assert!(p99 <= Duration::from_millis(300), "{p99:?}: taken in for a wait of at most 60 ms");
    assert!(refusal < PASS, "a refusal waits for no pass: {refusal:?}");
    for answer in answers.iter().filter(|answer| answer.code == Code::ResourceExhausted) {
        let pushback: u64 = answer.status["grpc-retry-pushback-ms"].parse().unwrap();
        assert!((100..=1_000).contains(&pushback), "{pushback}");
    }
    assert_eq!(service.metric("pointsman_wasted_inferences_total"), Some(0.0));
    let shed = service.metric("pointsman_requests_shed_total").unwrap() - shed_before;
    assert_eq!(shed, refused.len() as f64);

    let recovery = Instant::now();
    let (after, _) = offer(&clients, 0.5 * capacity, (0.5 * capacity) as usize).await;
    let first_refused = after.iter().take(after.len() / 2).filter(|answer| answer.code != Code::Ok).count();
    assert!(first_refused * 10 <= after.len(), "{first_refused} of {} refused after the load fell", after.len());
    assert!(after.iter().skip(after.len() / 2).all(|answer| answer.code == Code::Ok), "{:?}", recovery.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn important_requests_are_shed_last() {
    let service = Service::start_with(settings(), |classifier| Arc::new(Scripted::new(classifier, PASS)));
    let clients = Arc::new(vec![RawClient::connect(service.grpc).await, RawClient::connect(service.grpc).await]);
    // Four classes of thirds: what is offered is three times the capacity of 400 a second, a quarter of it important.
    let mut calls = JoinSet::new();
    let started = tokio::time::Instant::now();
    for i in 0..1_800_usize {
        tokio::time::sleep_until(started + Duration::from_secs_f64(i as f64 / 1_200.0)).await;
        let clients = Arc::clone(&clients);
        let priority =
            [proto::Priority::High, proto::Priority::Normal, proto::Priority::Normal, proto::Priority::Low][i % 4];
        let mut request = proto::RouteRequest::decode(&*query(i)).unwrap();
        request.set_priority(priority);
        calls.spawn(async move {
            let answer = clients[i % 2].call(ROUTE, &[], &request.encode_to_vec()).await.unwrap();
            (priority, answer.code)
        });
    }
    let answers = calls.join_all().await;
    let served = |priority| {
        let of: Vec<_> = answers.iter().filter(|(of, _)| *of == priority).collect();
        of.iter().filter(|(_, code)| *code == Code::Ok).count() as f64 / of.len() as f64
    };
    let shares = [proto::Priority::High, proto::Priority::Normal, proto::Priority::Low].map(served);
    println!("served of high, normal, low: {shares:.2?}");
    assert!(shares[0] > 0.8, "{shares:?}");
    assert!(shares[0] > shares[1] && shares[1] > shares[2], "{shares:?}");
}
