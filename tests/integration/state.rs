//! Two servers and the Redis they share: budgets, rates and sessions hold over both, and its absence is survived.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pointsman::config::{PositiveDuration, RawConfig};
use pointsman::rpc::proto::{self, FailureKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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

    /// Does what `redis-cli` would.
    async fn command(&self, line: &str) {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 64];
        let n = stream.read(&mut answer).await.unwrap();
        assert!(matches!(answer[..n].first(), Some(b'+' | b':')), "{line}: {}", String::from_utf8_lossy(&answer[..n]));
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

/// One key that is not what it should be costs the tenant whose key it is, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_holds_something_else_spoils_one_account() {
    let Some(redis) = Redis::start().await else { return };
    let pair = redis.pair(Duration::from_secs(2)).await;
    for key in ["budget:acme", "ending:acme", "rate:acme"] {
        redis.command(&format!("SET pointsman:{key} nonsense")).await;
    }
    redis.command("HSET pointsman:budget:delta window x booked y length z").await;
    for service in [&pair.a, &pair.b] {
        for tenant in ["acme", "delta"] {
            let spoilt = decide(service, tenant, "", "an easy question").await.unwrap();
            let own_share = codes(&spoilt).contains(&"STATE_AWAY");
            assert_eq!(own_share, tenant == "acme", "{tenant}: fields that are no numbers begin a new window");
            let report = outcome(&spoilt.decision_id, "c", FailureKind::Timeout);
            service.router().await.report_outcome(report).await.unwrap();
        }
        let other = decide(service, "beta", "", "an easy question").await.unwrap();
        assert!(!codes(&other).contains(&"STATE_AWAY"), "{:?}", codes(&other));
        assert_eq!(service.metric("pointsman_state_away"), Some(0.0));
        assert!(service.metric("pointsman_state_failures_total") >= Some(1.0));
    }
    // Half of the budget each, as when the store is away.
    assert!(decide_many(&pair, "acme", 30).await.len() < FIT);
    redis.command("DEL pointsman:budget:acme pointsman:ending:acme pointsman:rate:acme").await;
    let sound = async || {
        let decision = decide(&pair.a, "acme", "", "an easy question").await;
        decision.is_none_or(|decision| !codes(&decision).contains(&"STATE_AWAY")).then_some(())
    };
    eventually("the key is used again", sound).await;
    assert!(decide_many(&pair, "beta", 20).await.len() >= FIT - 2, "nothing was lost of the others");
}

/// A caller that is bound to a tenant reports to another server than the one that decided.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_knows_whose_decision_another_one_made() {
    let Some(redis) = Redis::start().await else { return };
    let (settings, _files) = super::robustness::reporting::settings();
    let shared = || RawConfig {
        state: Some(format!("redis://127.0.0.1:{}", redis.port)),
        state_timeout: Some(PositiveDuration(Duration::from_secs(2))),
        access_file: settings.access_file.clone(),
        ..RawConfig::default()
    };
    let policy = format!("{POLICY}{TENANTS}");
    let (a, _first, _) = Service::with_policy(&policy, shared());
    let (b, _second, _) = Service::with_policy(&policy, shared());
    for service in [&a, &b] {
        let present = async || (service.metric("pointsman_state_away") == Some(0.0)).then_some(());
        eventually("the store is there", present).await;
    }
    let mut acme = super::robustness::reporting::client(&a, "acme").await;
    let request = proto::RouteRequest { tenant: "acme".into(), ..ask("an easy question") };
    let decision = acme.route(request).await.unwrap().into_inner().decision.unwrap().decision_id;
    let report = || outcome(&decision, "c", FailureKind::Timeout);
    let mut beta_there = super::robustness::reporting::client(&b, "beta").await;
    assert_eq!(beta_there.report_outcome(report()).await.unwrap_err().code(), Code::PermissionDenied);
    let mut acme_there = super::robustness::reporting::client(&b, "acme").await;
    acme_there.report_outcome(report()).await.unwrap();
    // Sent again to the first server, it is charged no second time: its answer never came, so it cost nothing.
    let costly = |cost_usd, latency_ms| proto::ReportOutcomeRequest {
        observed: Some(proto::Observed { cost_usd, ..proto::Observed::default() }),
        latency_ms,
        ..outcome(&decision, "c", FailureKind::Unspecified)
    };
    for _ in 0..2 {
        acme.report_outcome(costly(0.02, 7)).await.unwrap();
        acme_there.report_outcome(costly(0.02, 7)).await.unwrap();
    }
    acme_there.report_outcome(costly(0.03, 8)).await.unwrap();
    let request = proto::RouteRequest { tenant: "acme".into(), ..ask("an easy question") };
    acme.route(request).await.unwrap();
    let spent = a.metric("pointsman_budget_spent_usd{tenant=\"acme\"}").unwrap();
    assert!((spent - 0.05).abs() < 1e-9, "{spent}");
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
