//! Runs against a small server in the same process.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::rpc::proto::{self, router_server::Router, router_server::RouterServer};

/// Answers one request at a time; the `stall_at`th takes `stall`, every `refuse_every`th is refused.
#[derive(Clone, Debug)]
struct Stub {
    turn: Arc<Mutex<()>>,
    seen: Arc<AtomicU64>,
    stall_at: u64,
    stall: Duration,
    refuse_every: u64,
}

type Results = Pin<Box<dyn Stream<Item = Result<proto::RouteStreamResponse, Status>> + Send>>;

// === impl Stub ===

impl Stub {
    fn steady() -> Self {
        let (turn, seen) = (Arc::default(), Arc::default());
        Self { turn, seen, stall_at: u64::MAX, stall: Duration::ZERO, refuse_every: u64::MAX }
    }

    /// Serves until the sender is dropped.
    async fn serve(self) -> (String, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tonic::transport::Server::builder()
            .add_service(RouterServer::new(self))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), async { drop(stopped.await) });
        let tasks = TaskTracker::new();
        (target, stop, tasks.spawn(async move { server.await.unwrap() }))
    }
}

#[tonic::async_trait]
impl Router for Stub {
    type RouteStreamStream = Results;

    async fn route(&self, request: Request<proto::RouteRequest>) -> Result<Response<proto::RouteResponse>, Status> {
        assert!(request.metadata().contains_key("grpc-timeout"));
        let n = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if n.is_multiple_of(self.refuse_every) {
            return Err(Status::resource_exhausted("enough"));
        }
        let _turn = self.turn.lock().await;
        if n == self.stall_at {
            tokio::time::sleep(self.stall).await;
        }
        let source = proto::Source::Classifier.into();
        Ok(Response::new(proto::RouteResponse { decision: Some(proto::Decision { source, ..Default::default() }) }))
    }

    async fn route_batch(
        &self,
        _: Request<proto::RouteBatchRequest>,
    ) -> Result<Response<proto::RouteBatchResponse>, Status> {
        Err(Status::unimplemented("not called"))
    }

    async fn route_stream(&self, _: Request<Streaming<proto::RouteRequest>>) -> Result<Response<Results>, Status> {
        Err(Status::unimplemented("not called"))
    }

    async fn classify(&self, _: Request<proto::ClassifyRequest>) -> Result<Response<proto::ClassifyResponse>, Status> {
        Ok(Response::new(proto::ClassifyResponse::default()))
    }

    async fn escalate(&self, _: Request<proto::EscalateRequest>) -> Result<Response<proto::EscalateResponse>, Status> {
        Err(Status::unimplemented("not called"))
    }

    async fn report_outcome(
        &self,
        _: Request<proto::ReportOutcomeRequest>,
    ) -> Result<Response<proto::ReportOutcomeResponse>, Status> {
        Err(Status::unimplemented("not called"))
    }

    async fn report_outcomes(
        &self,
        _: Request<Streaming<proto::ReportOutcomeRequest>>,
    ) -> Result<Response<proto::ReportOutcomesResponse>, Status> {
        Err(Status::unimplemented("not called"))
    }
}

fn options(target: &str) -> Options {
    Options {
        target: target.to_owned(),
        allow_remote: false,
        connections: 2,
        method: Method::Route,
        deadline: Duration::from_secs(5),
        warmup: Duration::from_millis(100),
        duration: Duration::from_millis(500),
        max_requests: 100_000,
    }
}

async fn run(stub: Stub, change: impl FnOnce(&mut Options), load: Load) -> (Report, u64) {
    let seen = Arc::clone(&stub.seen);
    let (target, stop, server) = stub.serve().await;
    let mut options = options(&target);
    change(&mut options);
    let generator = Generator::connect(options, Prompts::load(None, true).unwrap()).await.unwrap();
    let report = generator.run(load).await.unwrap();
    drop((generator, stop));
    server.await.unwrap();
    (report, seen.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_schedule_is_sent_and_every_request_accounted_for() {
    let stub = Stub { refuse_every: 10, ..Stub::steady() };
    let (report, seen) = run(stub, |_| {}, Load::Open { rate: 200.0 }).await;
    assert_eq!(seen, 120, "0.6 s, warm-up included");
    assert_eq!(report.answered + report.errors["ResourceExhausted"], 100, "{report}");
    assert_eq!((report.errors["ResourceExhausted"], report.not_sent), (10, 0));
    assert_eq!(report.sources["classifier"], report.answered);
    assert_eq!(report.offered_per_s, Some(200.0));
}

/// The reason for an open loop: 300 ms of stall hit the 60 requests that fell due meanwhile, not just one.
#[tokio::test]
async fn a_stall_is_charged_to_every_request_it_delays() {
    let stub = Stub { stall_at: 40, stall: Duration::from_millis(300), ..Stub::steady() };
    let (report, _) = run(stub, |_| {}, Load::Open { rate: 200.0 }).await;
    assert_eq!(report.answered, 100, "{report}");
    assert!(report.latency_us.p50 > 10_000 && report.latency_us.p90 > 200_000, "{report}");
}

#[tokio::test]
async fn a_closed_loop_sends_as_fast_as_it_is_answered() {
    let (report, seen) = run(Stub::steady(), |_| {}, Load::Closed { concurrency: 4 }).await;
    assert!(report.answered > 50 && report.answered < seen && report.errors.is_empty(), "{report}");
    assert!((report.seconds - 0.5).abs() < 0.25, "{report}");
    let few = |options: &mut Options| options.max_requests = 7;
    let (_, seen) = run(Stub::steady(), few, Load::Closed { concurrency: 4 }).await;
    assert_eq!(seen, 7);
}

#[tokio::test]
async fn classify_and_deadlines_work() {
    let (report, seen) =
        run(Stub::steady(), |options| options.method = Method::Classify, Load::Open { rate: 100.0 }).await;
    assert_eq!((report.answered, seen, report.sources.len()), (50, 0, 0), "{report}");
    let stub = Stub { stall_at: 1, stall: Duration::from_secs(60), ..Stub::steady() };
    let soon = |options: &mut Options| {
        options.deadline = Duration::from_millis(100);
        options.warmup = Duration::ZERO;
    };
    let (report, _) = run(stub, soon, Load::Open { rate: 20.0 }).await;
    assert!(report.errors.values().sum::<u64>() >= 1 && report.answered < 10, "{report}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let refused = |target: &str| options(target).check().unwrap_err().to_string();
    assert!(refused("http://192.0.2.1:50051").contains("--allow-remote"));
    assert!(refused("http://example.com").contains("--allow-remote"));
    assert!(refused("https://127.0.0.1:1").contains("plain text"));
    assert!(refused("127.0.0.1:1").contains("plain text"));
    for local in ["http://127.0.0.1:1", "http://127.8.8.8:1", "http://[::1]:1", "http://localhost:1"] {
        assert!(options(local).check().is_ok(), "{local}");
    }
    assert!(Options { allow_remote: true, ..options("http://192.0.2.1:1") }.check().is_ok());
    assert!(Options { connections: 0, ..options("http://localhost:1") }.check().is_err());
    assert!(Options { duration: Duration::from_secs(4_000), ..options("http://localhost:1") }.check().is_err());
}
