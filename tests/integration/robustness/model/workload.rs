//! Callers, operators and faults of one run, by its seed; what they did and saw becomes the history.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pointsman::rpc::proto;
use pointsman::rpc::proto::router_client::RouterClient;
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;

use super::super::super::support::channel;
use super::super::raw::{ROUTE, RawClient};
use super::document::{MODELS, OUTPUT_TOKENS, TENANTS, cost_usd, model, query};
use super::history::{Asked, Call, Cascade, Outcome, Report, Spec};

/// Numbers by a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Dice(pub(super) u64);

/// What all tasks of a run share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    pub(super) calls: Mutex<Vec<Call>>,
    pub(super) reports: Mutex<Vec<Report>>,
    /// Answers of the model fail while it is set.
    pub(super) sick: [AtomicBool; MODELS.len()],
    /// Held while something is told of the model, so that this has an order.
    reporting: [tokio::sync::Mutex<()>; MODELS.len()],
    n_calls: AtomicUsize,
}

/// One caller.
pub(super) struct Caller {
    address: SocketAddr,
    connection: RawClient,
    /// For streams and reports; never dropped in the middle of something.
    router: RouterClient<tonic::transport::Channel>,
    dice: Dice,
    seed: u64,
    shared: Arc<Shared>,
}

/// A query before it is sent.
struct Query {
    id: String,
    tenant: &'static str,
    words: usize,
    ruled: bool,
    priority: i32,
}

/// Nothing takes as long as this; what does is lost.
const PATIENCE: Duration = Duration::from_secs(20);

// === impl Dice ===

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    pub(super) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(super) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.roll() % (most - least + 1))
    }

    /// Another one that goes its own way.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.roll())
    }
}

// === impl Caller ===

impl Caller {
    pub(super) async fn new(address: SocketAddr, spec: &Spec, dice: Dice, shared: Arc<Shared>) -> Self {
        let (connection, router) = (RawClient::connect(address).await, RouterClient::new(channel(address).await));
        Self { address, connection, router, dice, seed: spec.seed, shared }
    }

    /// Asks until it is told to stop.
    pub(super) async fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            match self.dice.below(100) {
                0..45 => drop(self.route().await),
                45..53 => self.batch().await,
                53..58 => self.stream().await,
                58..61 => self.hang_up().await,
                61..85 => self.cascade().await,
                _ => tokio::time::sleep(self.dice.millis(0, 6)).await,
            }
        }
    }

    fn query(&mut self) -> Query {
        let n = self.shared.n_calls.fetch_add(1, Ordering::SeqCst);
        Query {
            id: format!("{}.{n}", self.seed),
            tenant: TENANTS[self.dice.below(TENANTS.len())],
            words: 3 + self.dice.below(7),
            ruled: self.dice.percent(20),
            priority: self.dice.below(4) as i32,
        }
    }

    fn deadline(&mut self) -> Option<Duration> {
        match self.dice.below(10) {
            0..2 => Some(self.dice.millis(1, 60)),
            2 => Some(Duration::from_secs(10)),
            _ => None,
        }
    }

    async fn call(
        connection: &RawClient,
        path: &str,
        deadline: Option<Duration>,
        message: Vec<u8>,
    ) -> Result<bytes::Bytes, Outcome> {
        let timeout = deadline.map(|deadline| format!("{}m", deadline.as_millis()));
        let headers: Vec<(&str, &str)> = timeout.iter().map(|value| ("grpc-timeout", value.as_str())).collect();
        match tokio::time::timeout(PATIENCE, connection.call(path, &headers, &message)).await {
            Err(_) => Err(Outcome::Lost(format!("nothing for {PATIENCE:?}"))),
            Ok(Err(error)) => Err(Outcome::Lost(error.to_string())),
            Ok(Ok(answer)) if answer.code == Code::Ok => Ok(answer.message.slice(5..)),
            Ok(Ok(answer)) => {
                let message = answer.status.get("grpc-message").cloned().unwrap_or_default();
                Err(Outcome::Refused(answer.code, message))
            }
        }
    }

    fn keep(&self, query: &Query, (sent, received): (Instant, Instant), deadline: Option<Duration>, outcome: Outcome) {
        let asked = Asked::Route { words: query.words, ruled: query.ruled };
        let (id, tenant) = (query.id.clone(), query.tenant);
        self.shared.calls.lock().unwrap().push(Call { id, sent, received, deadline, tenant, asked, outcome });
    }

    /// One query; its decision, and where that leads.
    async fn route(&mut self) -> Option<(Query, proto::Decision)> {
        let (query, deadline) = (self.query(), self.deadline());
        let sent = Instant::now();
        let answer = Self::call(&self.connection, ROUTE, deadline, query.request().encode_to_vec()).await;
        let received = Instant::now();
        let decision = match answer {
            Ok(bytes) => proto::RouteResponse::decode(bytes).unwrap().decision.unwrap(),
            Err(outcome) => {
                self.keep(&query, (sent, received), deadline, outcome);
                return None;
            }
        };
        self.keep(&query, (sent, received), deadline, Outcome::Decision(Box::new(decision.clone())));
        if self.dice.percent(60) {
            self.report(&query.id, &decision).await;
            // Told twice by a client that did not hear the answer, as it thinks.
            if self.dice.percent(30) {
                self.report(&query.id, &decision).await;
            }
        }
        Some((query, decision))
    }

    async fn batch(&mut self) {
        let queries: Vec<Query> = (0..2 + self.dice.below(5)).map(|_| self.query()).collect();
        let requests = queries.iter().map(Query::request).collect();
        let (deadline, sent) = (self.deadline(), Instant::now());
        let message = proto::RouteBatchRequest { requests }.encode_to_vec();
        let answer = Self::call(&self.connection, "/pointsman.v1.Router/RouteBatch", deadline, message).await;
        let at = (sent, Instant::now());
        let outcomes: Vec<Outcome> = match answer {
            Ok(bytes) => {
                let results = proto::RouteBatchResponse::decode(bytes).unwrap().results;
                let complete = results.len() == queries.len();
                let lost = || Outcome::Lost("as many results as queries".into());
                if complete {
                    results.into_iter().map(outcome).collect()
                } else {
                    queries.iter().map(|_| lost()).collect()
                }
            }
            Err(outcome) => queries.iter().map(|_| outcome.clone()).collect(),
        };
        for (query, outcome) in queries.iter().zip(outcomes) {
            self.keep(query, at, deadline, outcome);
        }
    }

    async fn stream(&mut self) {
        let queries: Vec<Query> = (0..2 + self.dice.below(5)).map(|_| self.query()).collect();
        let requests: Vec<_> = queries.iter().map(Query::request).collect();
        let sent = Instant::now();
        let mut answers = Vec::new();
        let asked = async {
            let mut stream = self.router.route_stream(tokio_stream::iter(requests)).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                answers.push((Instant::now(), answer));
            }
            Ok::<_, tonic::Status>(())
        };
        let ended = tokio::time::timeout(PATIENCE, asked).await;
        let whole = match ended {
            Err(_) => Some(Outcome::Lost(format!("nothing for {PATIENCE:?}"))),
            Ok(Err(status)) => Some(Outcome::Refused(status.code(), status.message().to_owned())),
            Ok(Ok(())) => None,
        };
        let received = Instant::now();
        let extra = answers.len() > queries.len();
        for (i, query) in queries.iter().enumerate() {
            let (at, outcome) = match answers.get(i) {
                Some((at, answer)) if answer.index == i as u64 && !extra => {
                    (*at, outcome(answer.result.clone().unwrap_or_default()))
                }
                Some((at, answer)) => (*at, Outcome::Lost(format!("answer {} of {} in its place", answer.index, i))),
                None => (received, whole.clone().unwrap_or_else(|| Outcome::Lost("the stream ended".into()))),
            };
            self.keep(query, (sent, at), None, outcome);
        }
    }

    /// A connection that goes away with its calls on the way.
    async fn hang_up(&mut self) {
        let next = RawClient::connect(self.address).await;
        let connection = std::mem::replace(&mut self.connection, next);
        let queries: Vec<Query> = (0..=self.dice.below(3)).map(|_| self.query()).collect();
        let (mut calls, sent) = (JoinSet::new(), Instant::now());
        for query in &queries {
            let (send, message) = (connection.send.clone(), query.request().encode_to_vec());
            calls.spawn(async move {
                let mut send = send.ready().await?;
                let (response, mut body) = send.send_request(super::super::raw::request(ROUTE, &[]), false)?;
                body.send_data(super::super::raw::frame(&message), true)?;
                response.await
            });
        }
        tokio::time::sleep(self.dice.millis(0, 5)).await;
        connection.driver.abort();
        calls.shutdown().await;
        for query in &queries {
            self.keep(query, (sent, Instant::now()), None, Outcome::Dropped);
        }
    }

    /// A decision, and on from it until the end.
    async fn cascade(&mut self) {
        let Some((query, mut decision)) = self.route().await else { return };
        let index = |decision: &proto::Decision| model(&decision.selected.as_ref()?.model);
        // What no policy of the run explains is told by the checker.
        let Some(asked) = index(&decision) else { return };
        let tier = super::document::TIERS.iter().position(|tier| *tier == decision.complexity.as_ref().unwrap().tier);
        let first_decision = decision.decision_id.clone();
        let (tried, from) = (vec![(asked, false)], query.id.clone());
        let mut cascade = Cascade { tried, hops: 0, tier: tier.unwrap(), first_decision, from };
        loop {
            if self.dice.percent(30) {
                tokio::time::sleep(self.dice.millis(0, 60)).await;
            }
            let (asked, _) = cascade.tried[cascade.tried.len() - 1];
            let unavailable = self.shared.sick[asked].load(Ordering::SeqCst) || self.dice.percent(15);
            let score = (!unavailable).then(|| if self.dice.percent(75) { 0.1 } else { 0.9 });
            let failure = if unavailable { proto::FailureKind::Timeout } else { proto::FailureKind::Unspecified };
            let request = proto::EscalateRequest {
                continuation: decision.continuation.clone(),
                observed: Some(proto::Observed { score, failure: failure.into(), ..Default::default() }),
                tenant: query.tenant.into(),
            };
            let n = self.shared.n_calls.fetch_add(1, Ordering::SeqCst);
            let id = format!("{}.{n} (on from {})", self.seed, query.id);
            // A step tells of the model too.
            let order = self.shared.reporting[asked].lock().await;
            let sent = Instant::now();
            let answer =
                Self::call(&self.connection, "/pointsman.v1.Router/Escalate", None, request.encode_to_vec()).await;
            let received = Instant::now();
            drop(order);
            let outcome = match answer {
                Ok(bytes) => match proto::EscalateResponse::decode(bytes).unwrap().step {
                    Some(proto::escalate_response::Step::Decision(next)) => Outcome::Decision(Box::new(next)),
                    Some(proto::escalate_response::Step::Stop(stop)) => Outcome::Stop(stop.reason()),
                    None => Outcome::Lost("an empty answer".into()),
                },
                Err(outcome) => outcome,
            };
            let asked = Asked::Step { cascade: cascade.clone(), unavailable, score };
            let (tenant, next) = (query.tenant, outcome.clone());
            let call = Call { id: id.clone(), sent, received, deadline: None, tenant, asked, outcome };
            self.shared.calls.lock().unwrap().push(call);
            let Outcome::Decision(next) = next else { return };
            if let Some(last) = cascade.tried.last_mut() {
                last.1 = !unavailable;
            }
            let Some(asked) = index(&next) else { return };
            cascade.tried.push((asked, false));
            cascade.hops += u32::from(!unavailable);
            cascade.from.clone_from(&id);
            decision = *next;
            if self.dice.percent(50) {
                self.report(&id, &decision).await;
            }
        }
    }

    /// Tells how the selected model did: as sick as it is now.
    async fn report(&mut self, call: &str, decision: &proto::Decision) {
        let name = &decision.selected.as_ref().unwrap().model;
        let Some(model) = model(name) else { return };
        let _order = self.shared.reporting[model].lock().await;
        let failed = self.shared.sick[model].load(Ordering::SeqCst);
        let cost_usd = match (failed, self.dice.below(4)) {
            (true, _) => Some(0.0),
            (false, 0) => None,
            (false, n) => Some(cost_usd(model) * n as f64 / 2.0),
        };
        let failure = if failed { proto::FailureKind::Timeout } else { proto::FailureKind::Unspecified };
        let request = proto::ReportOutcomeRequest {
            decision_id: decision.decision_id.clone(),
            model: name.clone(),
            observed: Some(proto::Observed {
                failure: failure.into(),
                cost_usd: cost_usd.unwrap_or_default(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let sent = Instant::now();
        self.router.report_outcome(request).await.unwrap();
        let report = Report { sent, received: Instant::now(), call: call.to_owned(), model, failed, cost_usd };
        self.shared.reports.lock().unwrap().push(report);
    }
}

// === impl Query ===

impl Query {
    fn request(&self) -> proto::RouteRequest {
        proto::RouteRequest {
            query: query(self.words, self.ruled),
            tenant: self.tenant.into(),
            request_id: self.id.clone(),
            expected_output_tokens: OUTPUT_TOKENS,
            priority: self.priority,
            ..Default::default()
        }
    }
}

fn outcome(result: proto::RouteResult) -> Outcome {
    match result.result {
        Some(proto::route_result::Result::Decision(decision)) => Outcome::Decision(Box::new(decision)),
        Some(proto::route_result::Result::Error(error)) => Outcome::Refused(Code::from_i32(error.code), error.message),
        None => Outcome::Lost("an empty result".into()),
    }
}
