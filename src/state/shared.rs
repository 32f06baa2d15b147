//! A Redis or Valkey that replicas share. Every call is one script, so atomic, and is given up after a few milliseconds.
//!
//! One server, not a cluster: a script names keys that it finds in values. Windows and rates go by that server's clock,
//! so that replicas whose clocks differ agree.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, Script, ScriptInvocation, ServerErrorKind, TlsCertificates,
};

use super::account::{BadAnswer, Budget, Nanos, Rate, Session, nanos};
use super::pending::{Booking, Pending, fingerprint, spent};
use crate::domain::{OutcomeReport, Priority};
use crate::policy::Unreported;
use crate::telemetry::OutcomeMetrics;

/// A shared store, present or away.
#[derive(Debug)]
pub(super) struct Shared {
    client: Client,
    timeout: Duration,
    /// Replaced whole when it breaks; `None`: away.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Said once per outage.
    away: AtomicBool,
    /// It holds something that is not this service's under a key of this service; said once until all is well.
    spoilt: AtomicBool,
    scripts: Scripts,
    metrics: Arc<OutcomeMetrics>,
}

/// Why a call did not come to anything. But for [`Away::Spoilt`] the store is away from then on, until it answers a
/// ping.
#[derive(Debug, thiserror::Error)]
pub(super) enum Away {
    /// It was away before.
    #[error("it is away")]
    Already,
    /// It took too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// It answered with an error, or the connection broke.
    #[error("it failed")]
    Failed(#[from] RedisError),
    /// It holds something else where this call's values should be; other calls are none the worse for it.
    #[error("it holds something else under one of this service's keys")]
    Spoilt(#[source] RedisError),
}

/// What the store says to a request.
#[derive(Debug)]
pub(super) struct SharedAnswer {
    /// How long to wait; zero: admitted.
    pub(super) wait: Duration,
    pub(super) booked: Nanos,
    pub(super) window: u64,
    pub(super) session: Option<Session>,
    pub(super) bad: Option<BadAnswer>,
}

#[derive(Debug)]
struct Scripts {
    ask: Script,
    book: Script,
    settle: Script,
    add: Script,
}

const BUDGET: &str = "pointsman:budget:";
const RATE: &str = "pointsman:rate:";
const SESSION: &str = "pointsman:session:";
const BAD: &str = "pointsman:bad:";
const ENDING: &str = "pointsman:ending:";
const DECISION: &str = "pointsman:decision:";
/// How long a decision is kept beyond its reservation: outcomes may be late.
const KEEP_DECISION: Duration = Duration::from_secs(60 * 60);
/// Connecting and pinging, which no request waits for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

// === impl Shared ===

impl Shared {
    /// A store at `url` that is away until [`Self::connect`].
    ///
    /// # Errors
    /// When the address is none, or a certificate is none.
    pub(super) fn new(
        url: &str,
        certificates: TlsCertificates,
        timeout: Duration,
        metrics: Arc<OutcomeMetrics>,
    ) -> Result<Self, RedisError> {
        let tls = url.starts_with("rediss://");
        let client = if tls { Client::build_with_tls(url, certificates)? } else { Client::open(url)? };
        metrics.set_state_away(true);
        Ok(Self {
            client,
            timeout,
            connection: Mutex::new(None),
            away: AtomicBool::new(true),
            spoilt: AtomicBool::new(false),
            scripts: Scripts {
                ask: Script::new(include_str!("scripts/ask.lua")),
                book: Script::new(include_str!("scripts/book.lua")),
                settle: Script::new(include_str!("scripts/settle.lua")),
                add: Script::new(include_str!("scripts/add.lua")),
            },
            metrics,
        })
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// Connects, or checks the connection there is. Scripts are loaded ahead, so that no request pays for it.
    pub(super) async fn connect(&self) -> Result<(), Away> {
        let mut connection = match self.connection() {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_TIMEOUT))
                    .set_response_timeout(Some(CONNECT_TIMEOUT));
                self.client.get_multiplexed_async_connection_with_config(&config).await?
            }
        };
        let checked = async {
            let pong: Result<String, RedisError> = redis::cmd("PING").query_async(&mut connection).await;
            pong?;
            if self.is_away() {
                let Scripts { ask, book, settle, add } = &self.scripts;
                for script in [ask, book, settle, add] {
                    script.load_async(&mut connection).await?;
                }
            }
            Ok::<(), RedisError>(())
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, checked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.lose(Away::Failed(error))),
            Err(_) => return Err(self.lose(Away::TimedOut(CONNECT_TIMEOUT))),
        }
        *self.slot() = Some(connection);
        Ok(())
    }

    /// Requests may ask it again.
    pub(super) fn back(&self) {
        if self.away.swap(false, Ordering::Relaxed) {
            tracing::info!("the shared state answers");
        }
        self.metrics.set_state_away(false);
    }

    pub(super) async fn ask(
        &self,
        account: &str,
        (rate, priority): (Option<Rate>, Priority),
        budget: Option<&Budget>,
        session: Option<&str>,
    ) -> Result<SharedAnswer, Away> {
        let mut call = self.scripts.ask.prepare_invoke();
        for (prefix, name) in [
            (BUDGET, account),
            (RATE, account),
            (SESSION, session.unwrap_or("")),
            (BAD, session.unwrap_or("")),
            (ENDING, account),
        ] {
            call.key(format!("{prefix}{name}"));
        }
        call.arg(budget.map_or(0, Budget::window_ms));
        let needed = rate.map_or(0.0, |rate| rate.needed(priority));
        call.arg(rate.map_or(0.0, |rate| rate.per_second)).arg(rate.map_or(0.0, |rate| rate.burst)).arg(needed);
        call.arg(DECISION);
        let (wait, booked, window, session, bad): (u64, Nanos, u64, String, String) = self.call(call).await?;
        Ok(SharedAnswer {
            wait: Duration::from_millis(wait),
            booked,
            window,
            session: Session::decode(&session),
            bad: BadAnswer::decode(&bad),
        })
    }

    /// Whether there was room, what is booked now, and in which window.
    pub(super) async fn book(&self, booking: &Booking<'_>) -> Result<(bool, Nanos, u64), Away> {
        let Booking { decision_id, pending, budget, session } = booking;
        let account = &*pending.outline.account;
        let key = pending.session.as_deref().map_or("", |(key, _)| key);
        let mut call = self.scripts.book.prepare_invoke();
        for (prefix, name) in [(BUDGET, account), (DECISION, decision_id), (SESSION, key), (ENDING, account)] {
            call.key(format!("{prefix}{name}"));
        }
        let reserve = budget.map_or(Duration::ZERO, |budget| budget.reserve);
        let release = budget.is_some_and(|budget| budget.unreported == Unreported::Release);
        call.arg(budget.map_or(0, |budget| budget.window_ms())).arg(pending.reserved);
        call.arg(budget.and_then(|budget| budget.hard).unwrap_or(-1));
        call.arg(reserve.as_millis() as u64).arg(u8::from(release));
        // Names and numbers: there is nothing that JSON could not hold.
        call.arg(serde_json::to_string(pending).unwrap_or_default());
        call.arg((reserve + KEEP_DECISION).as_millis() as u64);
        let (text, seconds) =
            session.as_ref().map_or((String::new(), 0), |(session, seconds)| (session.encode(), *seconds));
        call.arg(text).arg(u64::from(seconds) * 1_000).arg(*decision_id);
        let (booked, sum, window): (u8, Nanos, u64) = self.call(call).await?;
        Ok((booked == 1, sum, window))
    }

    /// What is known of the decision.
    pub(super) async fn look_up(&self, decision_id: &str) -> Result<Option<Pending>, Away> {
        if self.is_away() {
            return Err(Away::Already);
        }
        let mut command = redis::cmd("HGET");
        command.arg(format!("{DECISION}{decision_id}")).arg("pending");
        let Some(mut connection) = self.connection() else { return Err(Away::Already) };
        let kept: Option<String> = self.limited(async move { command.query_async(&mut connection).await }).await?;
        Ok(kept.and_then(|kept| serde_json::from_str(&kept).ok()))
    }

    /// What is known of the decision, what is booked now, and in which window.
    pub(super) async fn settle(&self, report: &OutcomeReport) -> Result<(Option<Pending>, Nanos, u64), Away> {
        let mut call = self.scripts.settle.prepare_invoke();
        call.key(format!("{DECISION}{}", report.decision_id));
        call.arg(spent(report).map_or(-1, nanos)).arg(BUDGET).arg(ENDING).arg(report.decision_id.as_str());
        call.arg(format!("report:{:016x}", fingerprint(report)));
        let (pending, booked, window): (String, Nanos, u64) = self.call(call).await?;
        Ok((serde_json::from_str(&pending).ok(), booked, window))
    }

    pub(super) async fn mark_bad(&self, session: &str, bad: BadAnswer, seconds: u32) -> Result<(), Away> {
        let mut command = redis::cmd("SET");
        command.arg(format!("{BAD}{session}")).arg(bad.encode()).arg("EX").arg(seconds);
        let Some(mut connection) = self.connection() else { return Err(Away::Already) };
        self.limited(async move { command.query_async(&mut connection).await }).await
    }

    /// Adds what was booked while the store was away; what is booked, and in which window.
    pub(super) async fn add(
        &self,
        account: &str,
        window_ms: u64,
        window: u64,
        amount: Nanos,
    ) -> Result<(Nanos, u64), Away> {
        let mut call = self.scripts.add.prepare_invoke();
        call.key(format!("{BUDGET}{account}")).arg(window_ms).arg(window).arg(amount);
        let Some(mut connection) = self.connection() else { return Err(Away::Already) };
        let called = tokio::time::timeout(CONNECT_TIMEOUT, call.invoke_async(&mut connection));
        match called.await {
            Ok(answer) => answer.map_err(|error| self.failed(error)),
            Err(_) => Err(self.lose(Away::TimedOut(CONNECT_TIMEOUT))),
        }
    }

    async fn call<T: redis::FromRedisValue>(&self, call: ScriptInvocation<'_>) -> Result<T, Away> {
        if self.is_away() {
            return Err(Away::Already);
        }
        let Some(mut connection) = self.connection() else { return Err(Away::Already) };
        self.limited(async move { call.invoke_async(&mut connection).await }).await
    }

    /// Waits no longer than a request may.
    async fn limited<T>(&self, call: impl Future<Output = Result<T, RedisError>>) -> Result<T, Away> {
        let started = Instant::now();
        let answer = tokio::time::timeout(self.timeout, call).await;
        self.metrics.record_state_call(started.elapsed().as_secs_f64(), !matches!(answer, Ok(Ok(_))));
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.lose(Away::TimedOut(self.timeout))),
        }
    }

    /// What to think of an error: that of one key costs the calls that need the key, any other one the store.
    fn failed(&self, error: RedisError) -> Away {
        let of_a_key = match error.kind() {
            ErrorKind::UnexpectedReturnType | ErrorKind::Server(ServerErrorKind::ResponseError) => true,
            _ => error.code() == Some("WRONGTYPE"),
        };
        if !of_a_key {
            return self.lose(Away::Failed(error));
        }
        let why = Away::Spoilt(error);
        if !self.spoilt.swap(true, Ordering::Relaxed) {
            let error = &why as &dyn std::error::Error;
            tracing::warn!(error, "what needs it goes by this server's share; remove the key");
        }
        why
    }

    /// Every account was looked at without an error.
    pub(super) fn sound(&self) {
        self.spoilt.store(false, Ordering::Relaxed);
    }

    /// Nobody asks it until it answers a ping. A connection that only was slow is kept: it may catch up.
    fn lose(&self, why: Away) -> Away {
        if matches!(why, Away::Failed(_)) {
            *self.slot() = None;
        }
        if !self.away.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = &why as &dyn std::error::Error,
                "the shared state is away; limits go by this server's share"
            );
        }
        self.metrics.set_state_away(true);
        why
    }

    fn connection(&self) -> Option<MultiplexedConnection> {
        self.slot().clone()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
