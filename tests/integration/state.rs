//! Two servers and the Redis they share: budgets, rates and sessions hold over both, and its absence is survived.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pointsman::config::{PositiveDuration, RawConfig};
use pointsman::rpc::proto::{self, FailureKind};
use tonic::Code;

use super::outcomes::{POLICY, codes, outcome};
use super::support::{Service, ask, eventually};

/// A real Redis on a port of its own, which keeps its data over a restart.
struct Redis {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

/// Two servers that share it.
struct Pair {
    a: Service,
    b: Service,
    _policies: [tempfile::TempDir; 2],
}

/// An easy question costs about 0.0051 dollars: 19 of them fit.
const TENANTS: &str = "tenants:
  acme: {limits: {hard_budget_usd: 0.1}}
  beta: {limits: {hard_budget_usd: 0.1}}
  gamma: {limits: {requests_per_second: 0.01, burst: 4}}
  delta: {limits: {hard_budget_usd: 0.1, reserve_s: 4, unreported: release}}
sessions: {stick_s: 300}
";
const FIT: usize = 19;

// === impl Redis ===

impl Redis {
    /// `None`, and a word about it, where there is no Redis on the path.
    async fn start() -> Option<Self> {
        let installed =
            Command::new("redis-server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            println!("skipped: there is no redis-server on the path (Debian: apt-get install redis-server)");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let redis = Self { child: Self::spawn(port, &dir), port, dir };
        redis.await_ready().await;
        Some(redis)
    }

    fn spawn(port: u16, dir: &tempfile::TempDir) -> Child {
        let port = port.to_string();
        Command::new("redis-server")
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn await_ready(&self) {
        let connects = async || tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok();
        drop(eventually("Redis listens", connects).await);
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    async fn restart(&mut self) {
        self.kill();
        self.child = Self::spawn(self.port, &self.dir);
        self.await_ready().await;
    }

    /// Two servers that share it; `timeout` is how long a call may take.
    async fn pair(&self, timeout: Duration) -> Pair {
        let settings = || RawConfig {
            state: Some(format!("redis://127.0.0.1:{}", self.port)),
            state_timeout: Some(PositiveDuration(timeout)),
            state_replicas: Some(2),
            ..RawConfig::default()
        };
        let policy = format!("{POLICY}{TENANTS}");
        let (a, first, _) = Service::with_policy(&policy, settings());
        let (b, second, _) = Service::with_policy(&policy, settings());
        let pair = Pair { a, b, _policies: [first, second] };
        pair.await_away(false).await;
        pair
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // A stopped process ends all the same.
        self.kill();
    }
}

// === impl Pair ===

impl Pair {
    async fn await_away(&self, away: bool) {
        let want = f64::from(u8::from(away));
        let seen = async || {
            [&self.a, &self.b].iter().all(|service| service.metric("pointsman_state_away") == Some(want)).then_some(())
        };
        eventually("both servers see whether the state is away", seen).await;
    }
}

async fn decide(service: &Service, tenant: &str, session: &str, text: &str) -> Option<proto::Decision> {
    let request = proto::RouteRequest { tenant: tenant.into(), session_id: session.into(), ..ask(text) };
    match service.router().await.route(request).await {
        Ok(answer) => answer.into_inner().decision,
        Err(status) => {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            None
        }
    }
}

/// Of `n` requests at once to each server, the decisions.
async fn decide_many(pair: &Pair, tenant: &str, n: usize) -> Vec<proto::Decision> {
    let calls = (0..2 * n).map(|call| {
        let service = if call % 2 == 0 { &pair.a } else { &pair.b };
        decide(service, tenant, "", "an easy question")
    });
    futures_util::future::join_all(calls).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_keep_one_budget_one_rate_and_one_session() {
    let Some(redis) = Redis::start().await else { return };
    let pair = redis.pair(Duration::from_secs(2)).await;
    let decided = decide_many(&pair, "acme", 20).await;
    assert_eq!(decided.len(), FIT, "no more than fits, and all that fits");
    assert!(decided.iter().all(|decision| !codes(decision).contains(&"STATE_AWAY")));
    // Each server settles what either has decided: an answer that never came cost nothing.
    for (decision, service) in decided.iter().zip([&pair.a, &pair.b, &pair.a, &pair.b]) {
        let report = outcome(&decision.decision_id, "c", FailureKind::Timeout);
        service.router().await.report_outcome(report).await.unwrap();
    }
    assert_eq!(decide_many(&pair, "acme", 20).await.len(), 4);
    let rate =
        [&pair.a, &pair.b, &pair.a, &pair.b, &pair.a, &pair.b].map(|service| decide(service, "gamma", "", "easy"));
    let admitted = futures_util::future::join_all(rate).await.into_iter().flatten().count();
    assert!((3..=4).contains(&admitted), "a burst of 4 over both, a tenth of it for higher priorities: {admitted}");
    let strong = decide(&pair.a, "", "talk", "a hard question").await.unwrap();
    assert_eq!(strong.selected.unwrap().model, "a");
    let stays = decide(&pair.b, "", "talk", "an easy question").await.unwrap();
    assert!(codes(&stays).contains(&"SESSION_STICKY") && stays.selected.unwrap().model == "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_was_heard_of_is_given_back_where_the_policy_says_so() {
    let Some(redis) = Redis::start().await else { return };
    let pair = redis.pair(Duration::from_secs(2)).await;
    let decided = decide_many(&pair, "delta", 12).await;
    assert_eq!(decided.len(), FIT);
    // One is settled: what it cost stays.
    let cost = proto::Observed { cost_usd: 0.05, ..proto::Observed::default() };
    let report = outcome(&decided[0].decision_id, "c", FailureKind::Unspecified);
    let report = proto::ReportOutcomeRequest { observed: Some(cost), ..report };
    pair.b.router().await.report_outcome(report).await.unwrap();
    tokio::time::sleep(Duration::from_millis(4_200)).await;
    assert_eq!(decide_many(&pair, "delta", 12).await.len(), FIT / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_store_away_each_server_goes_by_its_share_and_tells_it_later() {
    let Some(mut redis) = Redis::start().await else { return };
    let pair = redis.pair(Duration::from_secs(2)).await;
    let before = decide_many(&pair, "beta", 4).await.len();
    assert_eq!(before, 8);
    // What the other has booked is learnt within a second.
    let knows = async || {
        let spent = |service: &Service| service.metric("pointsman_state_duration_seconds_count");
        let (a, b) = (spent(&pair.a)?, spent(&pair.b)?);
        (a > 0.0 && b > 0.0).then_some(())
    };
    eventually("calls were made", knows).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    redis.kill();
    let during = decide_many(&pair, "beta", 20).await;
    let away = during.iter().filter(|decision| codes(decision).contains(&"STATE_AWAY")).count();
    assert!(away >= during.len() - 2, "{away} of {} are marked", during.len());
    assert!((8..=FIT - before).contains(&during.len()), "half of what was left each: {}", during.len());
    pair.await_away(true).await;
    redis.restart().await;
    pair.await_away(false).await;
    let after = decide_many(&pair, "beta", 20).await;
    assert!(after.iter().all(|decision| !codes(decision).contains(&"STATE_AWAY")));
    assert!(before + during.len() + after.len() <= FIT, "{before} + {} + {}", during.len(), after.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stands_still_holds_no_decision_up() {
    let Some(redis) = Redis::start().await else { return };
    let pair = redis.pair(Duration::from_millis(5)).await;
    decide(&pair.a, "acme", "", "an easy question").await;
    redis.signal("-STOP");
    let mut times = Vec::new();
    for n in 0..30 {
        // High rates of decisions without a limit are not the point: each one here asks the store.
        let started = Instant::now();
        decide(&pair.a, "", &format!("session {n}"), "an easy question").await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    println!("decisions beside a store that stands still: median {:?}, slowest {:?}", times[15], times[29]);
    // The calls give up after 5 ms; the rest is this machine's doing.
    assert!(times[15] < Duration::from_millis(100), "{times:?}");
    assert!(times[29] < Duration::from_secs(2), "{times:?}");
    assert_eq!(pair.a.metric("pointsman_state_away"), Some(1.0));
    redis.signal("-CONT");
    let back = async || (pair.a.metric("pointsman_state_away") == Some(0.0)).then_some(());
    eventually("it is back", back).await;
}
