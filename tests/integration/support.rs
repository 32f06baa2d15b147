//! What the tests share: services in this process, the real binary as a process, clients over real sockets.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman::batch::Engine;
use pointsman::classifier::Classifier;
use pointsman::config::{Config, RawConfig};
use pointsman::rpc::proto;
use pointsman::rpc::proto::info_client::InfoClient;
use pointsman::rpc::proto::policy_service_client::PolicyServiceClient;
use pointsman::rpc::proto::router_client::RouterClient;
use pointsman::serve::{Drained, Server};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

/// How long anything that should happen may take on a busy machine. Tests end as soon as it happened.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A service in this process, on a thread and runtime of its own, so that many tests can share it.
pub(crate) struct Service {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Drained>>,
}

/// The real binary as a process; killed on drop.
pub(crate) struct Process {
    child: Child,
    pub(crate) grpc: SocketAddr,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// An answer of the admin endpoint.
pub(crate) struct HttpAnswer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Three labels, a rule, a role, and nothing that depends on what the default policy is.
pub(crate) const SMALL_POLICY: &str = r#"
schema: pointsman.policy/v1
id: small
version: "1"
providers: {acme: {enabled: true}, zenith: {enabled: true}}
models:
  little:
    provider: acme
    provider_model: little-1
    price_per_million_tokens: {input_usd: 0.1, output_usd: 0.4}
    context_window_tokens: 100000
    capabilities: [json_mode]
    typical_latency_ms: 500
    regions: [eu]
    ability: 0.5
  big:
    provider: zenith
    provider_model: big-1
    price_per_million_tokens: {input_usd: 2.0, output_usd: 8.0}
    context_window_tokens: 200000
    capabilities: [tools, vision, json_mode]
    typical_latency_ms: 4000
    regions: [eu, us]
    ability: 3.0
chains:
  quick: [little, big]
  strong: [big, little]
routes:
  - {intent: "*", tier: complex, chain: strong}
  - {intent: "*", tier: "*", chain: quick}
defaults: {unknown_tenant: refuse}
tenants:
  known: {allowed_providers: [zenith]}
"#;

// === impl Service ===

impl Service {
    /// One service with the default model and policy, shared by every test that leaves it as it is.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Service> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(RawConfig::default()))
    }

    /// A service of one's own: `settings` over ports of the system's choice and the repository's models.
    pub(crate) fn start(settings: RawConfig) -> Self {
        Self::start_with(settings, |classifier| classifier)
    }

    /// The same, with an engine of the test's own in place of the classifier.
    pub(crate) fn start_with<E: Engine + 'static>(
        settings: RawConfig,
        engine: impl FnOnce(Arc<Classifier>) -> Arc<E> + Send + 'static,
    ) -> Self {
        let (started, addresses) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let drained = runtime.block_on(async {
                let running = Server::bind(config(settings)).await.unwrap().start_with(engine).await.unwrap();
                started.send((running.grpc_address, running.admin_address)).unwrap();
                // A sender that is gone asks for a stop just as well.
                stopped.await.unwrap_or(());
                running.drain().await
            });
            // What a drain that timed out has left is cut off here, as when a process ends.
            runtime.shutdown_timeout(Duration::from_secs(1));
            drained
        });
        let (grpc, admin) = addresses.recv().expect("the service did not start; its thread has told why");
        Self { grpc, admin, stop: Some(stop), thread: Some(thread) }
    }

    /// A service with `policy` in a file, and the file.
    pub(crate) fn with_policy(policy: &str, settings: RawConfig) -> (Self, tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, policy).unwrap();
        let policy = Some(path.display().to_string());
        (Self::start(RawConfig { policy, ..settings }), dir, path)
    }

    /// Asks for a stop, without waiting.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for the end and tells what came of the drain.
    pub(crate) fn join(mut self) -> Drained {
        self.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) async fn router(&self) -> RouterClient<Channel> {
        RouterClient::new(channel(self.grpc).await)
    }

    pub(crate) async fn policy(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(channel(self.grpc).await)
    }

    pub(crate) async fn info(&self) -> InfoClient<Channel> {
        InfoClient::new(channel(self.grpc).await)
    }

    /// The sum of a metric over all its labels.
    pub(crate) fn metric_sum(&self, name: &str) -> f64 {
        let page = get(self.admin, "/metrics").body;
        let lines =
            page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The value of a metric's line that starts with `name`.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let page = get(self.admin, "/metrics").body;
        let line =
            page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

// === impl Process ===

impl Process {
    /// `pointsman serve` on ports of the system's choice, ready.
    pub(crate) fn serve(arguments: &[&str]) -> Self {
        Self::serve_in(&root(), arguments)
    }

    /// The same, with another working directory.
    pub(crate) fn serve_in(dir: &Path, arguments: &[&str]) -> Self {
        let mut child = command(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(arguments)
            .current_dir(dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stderr, (ready, summary)) = (Arc::new(Mutex::new(String::new())), std::sync::mpsc::channel());
        let (lines, log) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&stderr));
        // The summary's last line tells that all of it is there.
        let reader = std::thread::spawn(move || {
            let mut grpc: Option<SocketAddr> = None;
            for line in lines.lines().map_while(Result::ok) {
                grpc = grpc.or_else(|| line.strip_prefix("gRPC        ")?.parse().ok());
                if let (Some(grpc), true) = (grpc, line.contains("grpcurl -plaintext")) {
                    // The receiver is gone after the first one, which is all it waits for.
                    ready.send(grpc).unwrap_or_default();
                }
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        match summary.recv_timeout(PATIENCE) {
            Ok(grpc) => Self { child, grpc, stderr, reader: Some(reader) },
            Err(_) => {
                drop(child.kill());
                panic!("serve {arguments:?} did not start:\n{}", stderr.lock().unwrap());
            }
        }
    }

    /// What it has written to standard error.
    pub(crate) fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM or another signal.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end, but not for longer than `limit`; gives the exit status and all it wrote to standard error.
    pub(crate) fn wait(mut self, limit: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The last lines are read before they are looked at.
                self.reader.take().unwrap().join().unwrap();
                return (status, self.log());
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The real binary with `arguments`, without any setting from the environment of the tests.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("POINTSMAN_")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs the real binary to its end: exit code, standard output, standard error.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("killed by a signal"), text(stdout), text(stderr))
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `settings` over ports of the system's choice and the repository's models.
pub(crate) fn config(settings: RawConfig) -> Config {
    let base = RawConfig {
        listen: Some("127.0.0.1:0".into()),
        admin_listen: Some("127.0.0.1:0".into()),
        models_dir: Some(root().join("models")),
        ..RawConfig::default()
    };
    Config::from_raw(settings, base).unwrap()
}

/// A connection to a service.
pub(crate) async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A request for `text`.
pub(crate) fn ask(text: impl Into<String>) -> proto::RouteRequest {
    proto::RouteRequest { query: text.into(), ..Default::default() }
}

/// Waits until `done` gives something.
pub(crate) async fn eventually<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `GET` over a connection of its own.
pub(crate) fn get(address: SocketAddr, path: &str) -> HttpAnswer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    HttpAnswer { status, head: head.to_lowercase(), body: body.to_owned() }
}
