//! A load generator for a running service: gRPC requests by schedule or in a closed loop, latency as HDR histograms.
//!
//! Open loop: requests leave at fixed times whatever the server does, and latency counts from the time a request was
//! due, so a stall is charged to every request that it delayed (no coordinated omission). Closed loop: a fixed number
//! of callers, each sending its next request when the last one is answered; that measures a throughput, and its
//! latencies hide stalls. Bounded in time, in requests, in requests in flight, and to loopback unless told otherwise.

mod client;
mod prompts;
mod report;
mod schedule;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

pub use client::{Caller, Method, encode_framed};
pub use prompts::{PromptError, Prompts};
pub use report::Report;
use report::{Outcome, Recorder, Sample};
pub use schedule::{Load, Schedule};

/// What to send where, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the service listens: `http://host:port`.
    pub target: String,
    /// Whether `target` may be another machine.
    pub allow_remote: bool,
    /// HTTP/2 connections that requests are spread over.
    pub connections: usize,
    /// What is called.
    pub method: Method,
    /// The `grpc-timeout` of each request.
    pub deadline: Duration,
    /// Time whose requests are sent and not counted.
    pub warmup: Duration,
    /// Time whose requests are counted.
    pub duration: Duration,
    /// Most requests of one run, those of the warm-up included.
    pub max_requests: u64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The target is not an address that plain HTTP/2 can reach.
    #[error("{target}: {problem}")]
    Target {
        /// As it was given.
        target: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The target is another machine, and nobody said that this is meant.
    #[error("{0} is not this machine; load on others needs --allow-remote")]
    Remote(String),
    /// A number is out of range.
    #[error("{what} must be within {range}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// Nobody answers at the target.
    #[error("cannot connect to {target}")]
    Connect {
        /// As it was given.
        target: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The thread that keeps the schedule could not be started or died.
    #[error("the schedule's thread failed")]
    Scheduler,
}

/// Requests that may wait for an answer at a time in open loop. More would measure this program's memory.
pub const MAX_IN_FLIGHT: usize = 20_000;
const MAX_CONNECTIONS: usize = 1_000;
const MAX_CONCURRENCY: usize = 10_000;
const MAX_RATE: f64 = 1_000_000.0;
const MAX_TIME: Duration = Duration::from_secs(3_600);

/// A generator that is connected to its target.
#[derive(Debug)]
pub struct Generator {
    options: Options,
    callers: Vec<Caller>,
    prompts: Arc<Prompts>,
}

/// The times of one run.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    counted_from: Instant,
    end: Instant,
}

// === impl Options ===

impl Options {
    /// Refuses what cannot be meant, before anything is sent.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), LoadError> {
        let in_range = |ok: bool, what, range| if ok { Ok(()) } else { Err(LoadError::OutOfRange { what, range }) };
        in_range((1..=MAX_CONNECTIONS).contains(&self.connections), "connections", "1 to 1000")?;
        in_range(!self.duration.is_zero() && self.duration <= MAX_TIME, "duration", "above 0 to 1 hour")?;
        in_range(self.warmup <= MAX_TIME, "warmup", "0 to 1 hour")?;
        in_range(!self.deadline.is_zero() && self.deadline <= MAX_TIME, "deadline", "above 0 to 1 hour")?;
        in_range(self.max_requests > 0, "max-requests", "1 or more")?;
        self.check_target()
    }

    fn check_target(&self) -> Result<(), LoadError> {
        let refuse = |problem| LoadError::Target { target: self.target.clone(), problem };
        let uri: http::Uri =
            self.target.parse().map_err(|_| refuse("not an address; write for example http://127.0.0.1:50051"))?;
        if uri.scheme_str() != Some("http") {
            return Err(refuse("only http:// (plain text) is spoken"));
        }
        let host = uri.host().ok_or_else(|| refuse("no host"))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let local = bare == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        if local || self.allow_remote { Ok(()) } else { Err(LoadError::Remote(self.target.clone())) }
    }
}

// === impl Generator ===

impl Generator {
    /// Checks `options` and opens the connections.
    ///
    /// # Errors
    /// When an option cannot be meant or nobody answers at the target.
    pub async fn connect(options: Options, prompts: Prompts) -> Result<Self, LoadError> {
        options.check()?;
        let mut callers = Vec::with_capacity(options.connections);
        for _ in 0..options.connections {
            let connected = Caller::connect(&options.target, options.method, options.deadline).await;
            callers.push(connected.map_err(|source| LoadError::Connect { target: options.target.clone(), source })?);
        }
        Ok(Self { options, callers, prompts: Arc::new(prompts) })
    }

    /// Sends one run of requests and reports what came of those after the warm-up.
    ///
    /// # Errors
    /// When `load` is out of range, or the thread that keeps an open loop's schedule fails.
    pub async fn run(&self, load: Load) -> Result<Report, LoadError> {
        match load {
            Load::Open { rate } if !(rate > 0.0 && rate <= MAX_RATE) => {
                Err(LoadError::OutOfRange { what: "rate", range: "above 0 to 1000000 a second" })
            }
            Load::Closed { concurrency } if !(1..=MAX_CONCURRENCY).contains(&concurrency) => {
                Err(LoadError::OutOfRange { what: "concurrency", range: "1 to 10000" })
            }
            Load::Open { rate } => self.run_open(load, rate).await,
            Load::Closed { concurrency } => Ok(self.run_closed(load, concurrency).await),
        }
    }

    async fn run_open(&self, load: Load, rate: f64) -> Result<Report, LoadError> {
        let (samples, received) = mpsc::unbounded_channel();
        let window = self.window();
        let schedule = Schedule::new(window.start, rate, self.options.warmup + self.options.duration)
            .at_most(self.options.max_requests);
        let sender = Sender {
            callers: self.callers.clone(),
            prompts: Arc::clone(&self.prompts),
            room: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            tasks: TaskTracker::new(),
            samples,
            window,
        };
        let runtime = tokio::runtime::Handle::current();
        // A thread of its own: the runtime's timer rounds to milliseconds and waits for its workers.
        let keeper = std::thread::Builder::new()
            .name("loadgen-schedule".into())
            .spawn(move || sender.keep(schedule, &runtime))
            .map_err(|_| LoadError::Scheduler)?;
        let report = collect(received, load, window).await;
        keeper.join().map_err(|_| LoadError::Scheduler)?;
        Ok(report)
    }

    async fn run_closed(&self, load: Load, concurrency: usize) -> Report {
        let (samples, received) = mpsc::unbounded_channel();
        let window = self.window();
        let sent = Arc::new(AtomicU64::new(0));
        let tasks = TaskTracker::new();
        for (_, caller) in (0..concurrency).zip(self.callers.iter().cycle()) {
            let (mut caller, prompts) = (caller.clone(), Arc::clone(&self.prompts));
            let (samples, sent, most) = (samples.clone(), Arc::clone(&sent), self.options.max_requests);
            tasks.spawn(async move {
                while Instant::now() < window.end && sent.fetch_add(1, Ordering::Relaxed) < most {
                    let text = prompts.next();
                    let due = Instant::now();
                    let outcome = caller.call(text).await;
                    if due >= window.counted_from {
                        let ended = Instant::now();
                        if samples.send(Sample { due, sent: due, ended, outcome }).is_err() {
                            break;
                        }
                    }
                }
            });
        }
        drop(samples);
        collect(received, load, window).await
    }

    fn window(&self) -> Window {
        let start = Instant::now();
        let counted_from = start + self.options.warmup;
        Window { start, counted_from, end: counted_from + self.options.duration }
    }
}

/// What the thread that keeps the schedule needs to send a request.
struct Sender {
    callers: Vec<Caller>,
    prompts: Arc<Prompts>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    samples: mpsc::UnboundedSender<Sample>,
    window: Window,
}

// === impl Sender ===

impl Sender {
    /// Sends each request when it is due. A request that is late is sent at once and charged from when it was due.
    fn keep(self, schedule: Schedule, runtime: &tokio::runtime::Handle) {
        let Self { callers, prompts, room, tasks, samples, window } = self;
        for (due, caller) in schedule.zip(callers.iter().cycle()) {
            let wait = due.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            let counted = due >= window.counted_from;
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                if counted {
                    let now = Instant::now();
                    // The receiver outlives this thread.
                    drop(samples.send(Sample { due, sent: now, ended: now, outcome: Outcome::NotSent }));
                }
                continue;
            };
            let (mut caller, text, samples) = (caller.clone(), prompts.next(), samples.clone());
            tasks.spawn_on(
                async move {
                    let sent = Instant::now();
                    let outcome = caller.call(text).await;
                    drop(permit);
                    if counted {
                        drop(samples.send(Sample { due, sent, ended: Instant::now(), outcome }));
                    }
                },
                runtime,
            );
        }
    }
}

/// Ends when the last task that holds a sender has ended; each ends by its request's deadline.
async fn collect(mut samples: mpsc::UnboundedReceiver<Sample>, load: Load, window: Window) -> Report {
    let mut recorder = Recorder::new(load, window.counted_from, window.end);
    while let Some(sample) = samples.recv().await {
        recorder.record(&sample);
    }
    recorder.finish()
}
