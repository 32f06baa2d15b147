//! The drill: three providers as local HTTP servers, a server, a client with open-loop traffic; providers die, slow down
//! and come back.
//!
//! The short version runs with the other tests. The long one takes five minutes and writes `docs/health-drill.svg`:
//! `cargo test --test integration drill_of_five_minutes -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use plotters::prelude::*;
use pointsman::config::RawConfig;
use pointsman::rpc::proto::{self, FailureKind, Observed, ReportOutcomeRequest};

use super::support::{Service, ask, root};

/// Requests per second. One decision in 25 ms is little work, so that a busy machine keeps up.
const RATE: f64 = 40.0;
/// A caller waits so long for an answer.
const PATIENCE: Duration = Duration::from_millis(400);
/// By when a fault must cost users nothing any more: five failures in a row at this rate, and answers under way.
const BREAKER_WINDOW: f64 = 2.0;
const CAP: f64 = 0.7;
/// Requests that a capped model may have at once, beside its share: `health::share`.
const CAP_BURST: f64 = 10.0;

const POLICY: &str = r#"
schema: pointsman.policy/v1
id: drill
version: "1"
models:
  a: {provider: one, provider_model: a, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 100000, typical_latency_ms: 50}
  b: {provider: two, provider_model: b, price_per_million_tokens: {input_usd: 2, output_usd: 2}, context_window_tokens: 100000, typical_latency_ms: 50}
  c: {provider: three, provider_model: c, price_per_million_tokens: {input_usd: 3, output_usd: 3}, context_window_tokens: 100000, typical_latency_ms: 50}
chains: {all: [a, b, c]}
routes: [{intent: "*", tier: "*", chain: all}]
chain: all
traffic: {caps: {a: 0.7, b: 0.7}}
"#;

/// What a provider does.
#[derive(Clone, Copy)]
enum Mode {
    Well,
    Dead,
    Slow,
}

/// A provider: an HTTP server on loopback.
#[derive(Clone)]
struct Provider {
    mode: Arc<AtomicU8>,
    address: SocketAddr,
}

/// One request of a user.
struct Seen {
    /// Seconds since the start.
    at: f64,
    /// Models called in order, and whether each answered.
    calls: Vec<(String, bool)>,
}

/// What happens when, in seconds.
struct Plan {
    events: Vec<(f64, &'static str, Mode, &'static str)>,
    end: f64,
}

/// What is asserted of a drill and drawn.
struct Outcome {
    seen: Vec<Seen>,
    /// Model, when it healed, seconds until its breaker was closed.
    recoveries: Vec<(&'static str, f64, f64)>,
}

// === impl Provider ===

impl Provider {
    async fn start() -> Self {
        let mode = Arc::new(AtomicU8::new(Mode::Well as u8));
        let state = Arc::clone(&mode);
        let answer = move || {
            let state = Arc::clone(&state);
            async move {
                match state.load(Ordering::Relaxed) {
                    mode if mode == Mode::Dead as u8 => StatusCode::SERVICE_UNAVAILABLE,
                    mode if mode == Mode::Slow as u8 => {
                        tokio::time::sleep(Duration::from_millis(1_500)).await;
                        StatusCode::OK
                    }
                    _ => {
                        tokio::time::sleep(Duration::from_millis(40)).await;
                        StatusCode::OK
                    }
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().route("/answer", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { mode, address }
    }
}

// === impl Plan ===

impl Plan {
    /// One dies, one slows beside it, both come back; all times are `scale` times those of the short drill.
    fn new(scale: f64) -> Self {
        let at = |seconds: f64| seconds * scale;
        Self {
            events: vec![
                (at(4.0), "a", Mode::Dead, "a dies"),
                (at(9.0), "b", Mode::Slow, "b slows"),
                (at(14.0), "a", Mode::Well, "a is back"),
                (at(19.0), "b", Mode::Well, "b is back"),
            ],
            end: at(24.0),
        }
    }
}

/// Runs the drill in real time.
async fn drill(plan: &Plan) -> Outcome {
    let (service, _dir, _) = Service::with_policy(POLICY, RawConfig::default());
    let names = ["a", "b", "c"];
    let mut providers = BTreeMap::new();
    for name in names {
        providers.insert(name.to_owned(), Provider::start().await);
    }
    let router = service.router().await;
    let http: Client<_, Empty<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tasks = tokio_util::task::TaskTracker::new();
    let start = Instant::now();
    let recoveries = Arc::new(Mutex::new(Vec::new()));
    let mut events = plan.events.iter().peekable();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
    // Open loop: a late request is still sent.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let now = start.elapsed().as_secs_f64();
        if now >= plan.end {
            break;
        }
        while let Some((at, name, mode, what)) = events.next_if(|(at, ..)| *at <= now) {
            println!("{now:6.1} s: {what}");
            providers[*name].mode.store(*mode as u8, Ordering::Relaxed);
            if matches!(mode, Mode::Well) {
                let (name, admin, recoveries, at) = (*name, service.admin, Arc::clone(&recoveries), *at);
                tasks.spawn_blocking(move || {
                    let took = await_closed(admin, name);
                    recoveries.lock().unwrap().push((name, at, took));
                });
            }
        }
        let (mut router, http, providers, seen) = (router.clone(), http.clone(), providers.clone(), Arc::clone(&seen));
        tasks.spawn(async move {
            let at = start.elapsed().as_secs_f64();
            let decision = router.route(ask("a question")).await.unwrap().into_inner().decision.unwrap();
            let chosen = decision.selected.as_ref().map(|candidate| candidate.model.clone());
            let fallbacks = decision.fallbacks.iter().filter_map(|fallback| fallback.candidate.as_ref());
            let models: Vec<String> =
                chosen.into_iter().chain(fallbacks.map(|candidate| candidate.model.clone())).collect();
            let mut calls = Vec::new();
            for model in models {
                let called = Instant::now();
                let uri = format!("http://{}/answer", providers[&model].address).parse().unwrap();
                let failure = match tokio::time::timeout(PATIENCE, http.get(uri)).await {
                    Err(_) => FailureKind::Timeout,
                    Ok(Ok(answer)) if answer.status() == StatusCode::OK => FailureKind::Unspecified,
                    Ok(_) => FailureKind::ProviderError,
                };
                let ok = failure == FailureKind::Unspecified;
                calls.push((model.clone(), ok));
                let report = ReportOutcomeRequest {
                    decision_id: decision.decision_id.clone(),
                    model,
                    observed: Some(Observed { failure: failure.into(), ..Observed::default() }),
                    latency_ms: called.elapsed().as_millis() as u64,
                    attempt: proto::Attempt::Unspecified.into(),
                    continuation: String::new(),
                };
                router.report_outcome(report).await.unwrap();
                if ok {
                    break;
                }
            }
            seen.lock().unwrap().push(Seen { at, calls });
        });
    }
    tasks.close();
    tasks.wait().await;
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.sort_by(|a, b| a.at.total_cmp(&b.at));
    let recoveries = recoveries.lock().unwrap().clone();
    Outcome { seen, recoveries }
}

/// Seconds until the model's breaker is closed; at most a minute.
fn await_closed(admin: SocketAddr, model: &str) -> f64 {
    let line = format!("pointsman_breaker_state{{scope=\"model\",name=\"{model}\"}} 0");
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        if super::support::get(admin, "/metrics").body.lines().any(|have| have == line) {
            return started.elapsed().as_secs_f64();
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    60.0
}

// === impl Outcome ===

impl Outcome {
    /// Says and asserts what came of it.
    fn check(&self, plan: &Plan) {
        let n = self.seen.len();
        let lost: Vec<f64> =
            self.seen.iter().filter(|seen| !seen.calls.iter().any(|(_, ok)| *ok)).map(|seen| seen.at).collect();
        let extra: usize = self.seen.iter().map(|seen| seen.calls.len() - 1).sum();
        let share = extra as f64 / n as f64;
        println!("{n} requests, {extra} extra calls ({:.1} %), {} without an answer", share * 100.0, lost.len());
        println!("recoveries (model, healed at, seconds to a closed breaker): {:?}", self.recoveries);
        let after_a_window =
            |at: &&f64| !plan.events.iter().any(|(fault, ..)| (*fault..*fault + BREAKER_WINDOW).contains(*at));
        assert_eq!(lost.iter().filter(after_a_window).count(), 0, "users saw failures at {lost:?}");
        assert!(share <= 0.10, "{extra} extra calls for {n} requests");
        // No model above its cap, over the whole and between any two events.
        let mut cuts: Vec<f64> = plan.events.iter().map(|(at, ..)| *at).collect();
        cuts.extend([0.0, plan.end]);
        cuts.sort_by(f64::total_cmp);
        let spans = cuts.windows(2).map(|span| (span[0], span[1])).chain([(0.0, plan.end)]);
        for (from, to) in spans {
            let within: Vec<&Seen> = self.seen.iter().filter(|seen| (from..to).contains(&seen.at)).collect();
            let calls = |model: &str| {
                within.iter().flat_map(|seen| &seen.calls).filter(|(called, _)| called == model).count() as f64
            };
            let shares = ["a", "b", "c"].map(|model| calls(model) / within.len() as f64);
            println!(
                "{from:6.1} to {to:6.1} s: calls per request to a {:.2}, b {:.2}, c {:.2}",
                shares[0], shares[1], shares[2]
            );
            for model in ["a", "b"] {
                let most = CAP * within.len() as f64 + CAP_BURST;
                assert!(calls(model) <= most + 1.0, "{model}: {} calls, {most} allowed", calls(model));
            }
        }
        assert_eq!(self.recoveries.len(), 2);
        assert!(self.recoveries.iter().all(|(.., took)| *took <= 2.0), "{:?}", self.recoveries);
    }

    /// Calls per second by model, extra calls and failures that users saw.
    fn draw(&self, plan: &Plan, path: &std::path::Path) {
        let drawing = SVGBackend::new(path, (960, 480)).into_drawing_area();
        drawing.fill(&WHITE).unwrap();
        let mut chart = ChartBuilder::on(&drawing)
            .margin(12)
            // Half of the last label of an axis hangs over its end.
            .margin_right(24)
            .x_label_area_size(36)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..plan.end, 0.0..RATE * 1.65)
            .unwrap();
        let whole = |value: &f64| format!("{value:.0}");
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .x_label_formatter(&whole)
            .y_label_formatter(&whole)
            .x_desc("seconds since the start")
            .y_desc("calls per second")
            .draw()
            .unwrap();
        // Means over as much time as shows a fault and not every request.
        let step = (plan.end / 150.0).max(1.0);
        let series = |count: &dyn Fn(&Seen) -> usize| -> Vec<(f64, f64)> {
            let mut bins = vec![0; (plan.end / step).ceil() as usize];
            for seen in &self.seen {
                let last = bins.len() - 1;
                bins[((seen.at / step) as usize).min(last)] += count(seen);
            }
            bins.iter().enumerate().map(|(bin, n)| ((bin as f64 + 0.5) * step, *n as f64 / step)).collect()
        };
        let to =
            |model: &'static str| move |seen: &Seen| seen.calls.iter().filter(|(called, _)| called == model).count();
        let lost = |seen: &Seen| usize::from(!seen.calls.iter().any(|(_, ok)| *ok));
        let lines = [
            ("calls to a", RGBColor(31, 119, 180), series(&to("a"))),
            ("calls to b", RGBColor(255, 127, 14), series(&to("b"))),
            ("calls to c", RGBColor(44, 160, 44), series(&to("c"))),
            ("extra calls", RGBColor(120, 120, 120), series(&|seen| seen.calls.len() - 1)),
            ("requests without an answer", RGBColor(214, 39, 40), series(&lost)),
        ];
        for (name, colour, points) in lines {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .unwrap()
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        for (at, _, _, what) in &plan.events {
            chart.draw_series([PathElement::new([(*at, 0.0), (*at, RATE * 1.08)], BLACK.mix(0.35))]).unwrap();
            let style = ("sans-serif", 13).into_font();
            chart.draw_series([Text::new(*what, (*at + plan.end * 0.004, RATE * 1.12), style)]).unwrap();
        }
        // There is room for it above everything that is drawn.
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()
            .unwrap();
        drawing.present().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_of_half_a_minute() {
    let plan = Plan::new(1.0);
    let outcome = drill(&plan).await;
    outcome.check(&plan);
    let dir = tempfile::tempdir().unwrap();
    outcome.draw(&plan, &dir.path().join("drill.svg"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes five minutes and rewrites docs/health-drill.svg"]
async fn drill_of_five_minutes() {
    let plan = Plan::new(12.5);
    let outcome = drill(&plan).await;
    outcome.draw(&plan, &root().join("docs/health-drill.svg"));
    outcome.check(&plan);
}
