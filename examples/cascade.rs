//! A client that follows a cascade: `cargo run --example cascade`.
//!
//! Starts a Pointsman and three fake language-model servers on this machine, real HTTP servers with latency and failures,
//! asks a few questions, and prints every hop. What a client of yours takes over is [`Client::ask`]: route, call, score,
//! escalate until an answer is accepted or the cascade stops.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    missing_docs,
    reason = "an example prints, and ends with its servers"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pointsman::config::{Config, RawConfig};
use pointsman::rpc::proto::router_client::RouterClient;
use pointsman::rpc::proto::{
    Decision, EscalateRequest, FailureKind, Observed, RouteRequest, StopReason, escalate_response::Step,
};
use pointsman::serve::Server;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

/// How long the client waits for an answer.
const PATIENCE: Duration = Duration::from_millis(400);

/// What a fake server does: how long it takes, for which questions it fails, how sure it is of its answers.
#[derive(Clone, Copy)]
struct Behaviour {
    latency: Duration,
    /// Answers 503 to questions with this word.
    down_for: &'static str,
    /// Takes far too long for questions with this word.
    slow_for: &'static str,
    /// How sure it is of an answer: for short questions, for long ones.
    sureness: [f64; 2],
}

/// One model called on the way to an answer.
#[derive(Clone, Debug)]
pub struct Hop {
    pub model: String,
    pub outcome: String,
    pub hops: u32,
}

/// The hops to an answer, and why the cascade ended.
#[derive(Clone, Debug)]
pub struct Journey {
    pub hops: Vec<Hop>,
    pub answer: Option<String>,
    pub stopped: Option<StopReason>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub const QUESTIONS: [&str; 4] = [
    "What is the capital of Australia?",
    "Why does the moon always show the same face to the Earth, and was that so when it was young? Explain the physics.",
    "Which bridge was closed by the storm?",
    "Compare the storm tracks of the last ten years over the North Atlantic and say which models foresaw them, and why.",
];

#[tokio::main]
pub async fn main() -> Result<(), BoxError> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let settings = RawConfig {
        listen: Some("127.0.0.1:0".into()),
        admin_listen: Some("127.0.0.1:0".into()),
        policy: Some(root.join("examples/cascade.yaml").display().to_string()),
        models_dir: Some(root.join("models")),
        ..RawConfig::default()
    };
    let server = Box::pin(Server::bind(Config::from_raw(settings, RawConfig::default())?)).await?;
    let running = Box::pin(server.start()).await?;
    journeys(running.grpc_address).await?;
    running.drain().await;
    Ok(())
}

/// Asks every question of a Pointsman that decides by `examples/cascade.yaml`.
pub async fn journeys(pointsman: SocketAddr) -> Result<Vec<Journey>, BoxError> {
    let behaviour = |latency_ms, down_for, slow_for, sureness| Behaviour {
        latency: Duration::from_millis(latency_ms),
        down_for,
        slow_for,
        sureness,
    };
    let providers = HashMap::from([
        ("nimbus".to_owned(), fake(behaviour(20, "bridge", "nothing", [0.9, 0.2])).await?),
        ("borealis".to_owned(), fake(behaviour(60, "storm tracks", "moon", [0.8, 0.7])).await?),
        ("summit".to_owned(), fake(behaviour(120, "nothing", "nothing", [0.95, 0.9])).await?),
    ]);
    let router = RouterClient::new(Endpoint::from_shared(format!("http://{pointsman}"))?.connect().await?);
    let http = HttpClient::builder(TokioExecutor::new()).build_http();
    let mut client = Client { router, http, providers };
    let mut journeys = Vec::new();
    for question in QUESTIONS {
        println!("\n{question}");
        let journey = client.ask(question).await?;
        match (&journey.answer, journey.stopped) {
            (Some(answer), _) => println!("  => {answer}"),
            (None, stopped) => println!("  => no answer: {stopped:?}"),
        }
        journeys.push(journey);
    }
    Ok(journeys)
}

struct Client {
    router: RouterClient<Channel>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    /// Where each provider is.
    providers: HashMap<String, SocketAddr>,
}

impl Client {
    async fn ask(&mut self, question: &str) -> Result<Journey, BoxError> {
        let request = RouteRequest { query: question.to_owned(), ..RouteRequest::default() };
        let mut decision = self.router.route(request).await?.into_inner().decision.unwrap_or_default();
        let mut journey = Journey { hops: Vec::new(), answer: None, stopped: None };
        loop {
            let (answer, observed) = self.call(&decision, question).await;
            let outcome = told(&observed);
            let candidate = decision.selected.clone().unwrap_or_default();
            let hops = decision.cascade.as_ref().map_or(0, |cascade| cascade.hops);
            println!("  {} ({}): {outcome}", candidate.model, candidate.provider);
            journey.hops.push(Hop { model: candidate.model, outcome, hops });
            // The best answer so far is kept: the cascade may end without a better one.
            journey.answer = answer.or(journey.answer);

            let continuation = std::mem::take(&mut decision.continuation);
            let request = EscalateRequest { continuation, observed: Some(observed), tenant: String::new() };
            match self.router.escalate(request).await?.into_inner().step {
                Some(Step::Decision(next)) => {
                    let why = next.reasons.last().map(|reason| reason.text.as_str()).unwrap_or_default();
                    println!("    {why}");
                    decision = next;
                }
                Some(Step::Stop(stop)) => {
                    println!("    stop: {}", stop.text);
                    journey.stopped = Some(stop.reason());
                    return Ok(journey);
                }
                None => return Ok(journey),
            }
        }
    }

    /// Calls the selected model and scores its answer.
    async fn call(&self, decision: &Decision, question: &str) -> (Option<String>, Observed) {
        let failed = |failure: FailureKind| (None, Observed { failure: failure.into(), ..Observed::default() });
        let candidate = decision.selected.clone().unwrap_or_default();
        let Some(address) = self.providers.get(&candidate.provider) else {
            return failed(FailureKind::ProviderError);
        };
        let body = json!({"model": candidate.provider_model, "prompt": question}).to_string();
        let request = http::Request::post(format!("http://{address}/v1/chat")).body(Full::from(body)).unwrap();
        let started = Instant::now();
        let answered = tokio::time::timeout(PATIENCE, self.http.request(request)).await;
        let response = match answered {
            Err(_) => return failed(FailureKind::Timeout),
            Ok(Err(_)) => return failed(FailureKind::ProviderError),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => return failed(FailureKind::RateLimited),
            _ => return failed(FailureKind::ProviderError),
        }
        let Ok(body) = response.into_body().collect().await else { return failed(FailureKind::ProviderError) };
        let Ok(answer) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
            return failed(FailureKind::BadFormat);
        };
        let text = answer.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
        // Here the model says how sure it is; a judge model or a check of the format would do as well.
        let score = answer.get("sureness").and_then(Value::as_f64).unwrap_or_default();
        let observed = Observed {
            score: Some(score),
            scorer: "self-reported".to_owned(),
            tokens_used: answer.get("tokens").and_then(Value::as_u64).unwrap_or_default(),
            time_left_ms: u64::try_from((PATIENCE * 4).saturating_sub(started.elapsed()).as_millis()).unwrap_or(1),
            ..Observed::default()
        };
        (Some(text), observed)
    }
}

fn told(observed: &Observed) -> String {
    match observed.score {
        Some(score) => format!("answered, scored {score:.2}"),
        None => format!("{:?}", observed.failure()),
    }
}

/// A server that answers as a language model's would.
async fn fake(behaviour: Behaviour) -> Result<SocketAddr, BoxError> {
    let answer = move |body: String| async move {
        let asked: Value = serde_json::from_str(&body).unwrap_or_default();
        let prompt = asked.get("prompt").and_then(Value::as_str).unwrap_or_default().to_owned();
        if prompt.contains(behaviour.down_for) {
            return (StatusCode::SERVICE_UNAVAILABLE, "overloaded".to_owned());
        }
        let slow = prompt.contains(behaviour.slow_for);
        tokio::time::sleep(if slow { PATIENCE * 3 } else { behaviour.latency }).await;
        let model = asked.get("model").and_then(Value::as_str).unwrap_or_default();
        let sureness = behaviour.sureness[usize::from(prompt.len() > 80)];
        let text = format!("an answer of {model}");
        (StatusCode::OK, json!({"text": text, "sureness": sureness, "tokens": 40 + prompt.len() / 4}).to_string())
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = axum::Router::new().route("/v1/chat", post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}
