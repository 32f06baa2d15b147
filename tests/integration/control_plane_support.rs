//! A control plane for the tests, which misbehaves as told, and traffic that is watched.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use pointsman::rpc::proto;
use pointsman::rpc::proto::router_client::RouterClient;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::support::{PATIENCE, Service, ask, channel, eventually};

/// What the web server does with a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// The document, with an `ETag`, and 304 where the client has it.
    Good,
    /// The same, compressed.
    Gzip,
    /// The same without an `ETag`.
    NoEtag,
    /// This body, whole, with a new `ETag` a body.
    Body(String),
    /// No listener.
    Gone,
    /// A connection that is closed without a word.
    Closed,
    /// A connection, and never an answer.
    Silent,
    /// The document, a byte at a time, too slow to ever end.
    Drip,
    /// A status without a body.
    Status(u16),
    /// Somewhere else, where a good document is.
    Redirect,
    /// 100 MB, told before.
    Huge,
    /// Without end, and without telling.
    Endless,
    /// A few kilobytes that unpack to 100 MB.
    Bomb,
    /// Half of what was promised.
    Half,
    /// Compressed by a way that nobody asked for.
    Brotli,
}

/// A web server with one document.
pub(crate) struct Plane {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    mode: Mutex<Mode>,
    document: Mutex<String>,
    signature: Mutex<Option<String>>,
    /// What every request had to carry, else 401.
    authorization: Mutex<Option<String>>,
    requests: AtomicUsize,
    not_modified: AtomicUsize,
    arrivals: Mutex<Vec<Instant>>,
    tls: Option<TlsAcceptor>,
}

/// Requests to a service, one after another, and everything that was answered.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    answers: Arc<Mutex<Vec<Answered>>>,
    failures: Arc<Mutex<Vec<String>>>,
}

/// An answered request.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) sent: Instant,
    pub(crate) answered: Instant,
    pub(crate) text: &'static str,
    pub(crate) decision: proto::Decision,
}

/// Texts of several tiers and intents.
pub(crate) const TEXTS: [&str; 4] = [
    "Name three rivers in Peru",
    "Prove that there are infinitely many primes",
    "Write a function that merges two sorted lists",
    "Translate 'good morning' into French",
];

/// Three providers, so that one can be turned off and something is left to choose from.
pub(crate) const POLICY: &str = r#"# Kept by the platform team.
schema: pointsman.policy/v1
id: fleet
version: "1"
providers:
  acme: {enabled: true}
  anthropic: {enabled: true} # the switch
  zenith: {enabled: true}
models:
  little: {provider: acme, provider_model: little-1, price_per_million_tokens: {input_usd: 0.1, output_usd: 0.4}, context_window_tokens: 100000, ability: 0.5}
  haiku: {provider: anthropic, provider_model: haiku-1, price_per_million_tokens: {input_usd: 1, output_usd: 5}, context_window_tokens: 200000, ability: 1.8}
  sonnet: {provider: anthropic, provider_model: sonnet-1, price_per_million_tokens: {input_usd: 3, output_usd: 15}, context_window_tokens: 200000, ability: 3.1}
  big: {provider: zenith, provider_model: big-1, price_per_million_tokens: {input_usd: 4, output_usd: 16}, context_window_tokens: 200000, ability: 3.5}
chains:
  quick: [little, haiku, big]
  strong: [sonnet, big, little]
routes:
  - {intent: "*", tier: complex, chain: strong}
  - {intent: code, tier: "*", chain: strong}
  - {intent: "*", tier: "*", chain: quick}
escalation: {ladder: [little, haiku, sonnet, big], max_hops: 3}
"#;

/// [`POLICY`] as another version, by which every model's name at its provider can be told.
pub(crate) fn version(version: usize) -> String {
    POLICY.replace("version: \"1\"", &format!("version: \"{version}\"")).replace("-1,", &format!("-{version},"))
}

// === impl Plane ===

impl Plane {
    pub(crate) async fn start(document: &str) -> Self {
        Self::start_with(document, None).await
    }

    /// The same over TLS.
    pub(crate) async fn start_with(document: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Good),
            document: Mutex::new(document.to_owned()),
            signature: Mutex::default(),
            authorization: Mutex::default(),
            requests: AtomicUsize::new(0),
            not_modified: AtomicUsize::new(0),
            arrivals: Mutex::default(),
            tls,
        });
        let task = Mutex::new(Some(tokio::spawn(accept(listener, Arc::clone(&shared)))));
        Self { address, shared, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/policy.yaml?token=canary-query", self.address)
    }

    pub(crate) async fn set(&self, mode: Mode) {
        let gone = *self.shared.mode.lock().unwrap() == Mode::Gone;
        *self.shared.mode.lock().unwrap() = mode.clone();
        if mode == Mode::Gone {
            let task = self.task.lock().unwrap().take().unwrap();
            task.abort();
            drop(task.await);
        } else if gone {
            let listener = eventually("the port back", async || TcpListener::bind(self.address).await.ok()).await;
            *self.task.lock().unwrap() = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
        }
    }

    pub(crate) fn publish(&self, document: &str) {
        document.clone_into(&mut self.shared.document.lock().unwrap());
    }

    pub(crate) fn publish_signed(&self, document: &str, signature: Option<String>) {
        *self.shared.signature.lock().unwrap() = signature;
        self.publish(document);
    }

    pub(crate) fn ask_for(&self, authorization: &str) {
        *self.shared.authorization.lock().unwrap() = Some(authorization.to_owned());
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn not_modified(&self) -> usize {
        self.shared.not_modified.load(Ordering::SeqCst)
    }

    pub(crate) fn arrivals(&self) -> Vec<Instant> {
        self.shared.arrivals.lock().unwrap().clone()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the listener.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            drop(match &shared.tls {
                None => serve(stream, &shared).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, &shared).await,
                    Err(error) => Err(error),
                },
            });
        });
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> std::io::Result<()> {
    loop {
        let Some(head) = read_head(&mut stream).await? else { return Ok(()) };
        shared.requests.fetch_add(1, Ordering::SeqCst);
        shared.arrivals.lock().unwrap().push(Instant::now());
        let (mode, document) = (shared.mode.lock().unwrap().clone(), shared.document.lock().unwrap().clone());
        let wanted = shared.authorization.lock().unwrap().clone();
        if wanted.is_some_and(|wanted| head.get("authorization") != Some(&wanted)) {
            stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        }
        let etag = |body: &str| format!("\"{:x}\"", body.bytes().fold(7_u64, |h, b| h.wrapping_mul(31) + u64::from(b)));
        let mut headers = String::new();
        if let Some(signature) = &*shared.signature.lock().unwrap() {
            headers = format!("pointsman-signature: {signature}\r\n");
        }
        let body = match &mode {
            Mode::Good | Mode::Gzip if head.get("if-none-match") == Some(&etag(&document)) => {
                shared.not_modified.fetch_add(1, Ordering::SeqCst);
                stream.write_all(b"HTTP/1.1 304 Not Modified\r\n\r\n").await?;
                continue;
            }
            Mode::Good => {
                write!(headers, "etag: {}\r\n", etag(&document)).unwrap();
                document.into_bytes()
            }
            Mode::Gzip => {
                assert!(head["accept-encoding"].contains("gzip"));
                write!(headers, "etag: {}\r\ncontent-encoding: gzip\r\n", etag(&document)).unwrap();
                gzip(document.as_bytes())
            }
            Mode::NoEtag => document.into_bytes(),
            Mode::Body(body) => {
                write!(headers, "etag: {}\r\n", etag(body)).unwrap();
                body.clone().into_bytes()
            }
            Mode::Bomb => {
                headers.push_str("content-encoding: gzip\r\n");
                gzip(&vec![b' '; 100 * 1024 * 1024])
            }
            Mode::Brotli => {
                headers.push_str("content-encoding: br\r\n");
                document.into_bytes()
            }
            Mode::Gone | Mode::Closed => return Ok(()),
            Mode::Silent => std::future::pending().await,
            Mode::Drip => {
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", document.len()).as_bytes())
                    .await?;
                for byte in document.bytes() {
                    stream.write_all(&[byte]).await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                continue;
            }
            Mode::Status(status) => {
                stream.write_all(format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
                continue;
            }
            Mode::Redirect => {
                let elsewhere = "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(elsewhere.as_bytes()).await?;
                continue;
            }
            Mode::Huge => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n").await?;
                return flood(&mut stream, 100).await;
            }
            Mode::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
                return flood(&mut stream, usize::MAX).await;
            }
            Mode::Half => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", document.len());
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&document.as_bytes()[..document.len() / 2]).await?;
                return stream.shutdown().await;
            }
        };
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len()).as_bytes())
            .await?;
        stream.write_all(&body).await?;
    }
}

async fn flood(stream: &mut (impl AsyncWrite + Unpin), mebibytes: usize) -> std::io::Result<()> {
    let chunk = vec![b' '; 1024 * 1024];
    for _ in 0..mebibytes {
        stream.write_all(&chunk).await?;
    }
    Ok(())
}

/// The request's headers, names in lower case; `None`: the client is done.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<BTreeMap<String, String>>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("GET "), "{head}");
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    Ok(Some(headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect()))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

// === impl Traffic ===

impl Traffic {
    /// Two clients that ask one text after another until they are stopped.
    pub(crate) async fn on(service: &Service) -> Self {
        Self::with(service, 2, Duration::from_millis(2)).await
    }

    pub(crate) async fn with(service: &Service, clients: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (answers, failures) = (Arc::<Mutex<Vec<Answered>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let mut tasks = Vec::new();
        for client in 0..clients {
            let mut router = RouterClient::new(channel(service.grpc).await);
            let (stop, answers, failures) = (Arc::clone(&stop), Arc::clone(&answers), Arc::clone(&failures));
            tasks.push(tokio::spawn(async move {
                for text in TEXTS.iter().cycle().skip(client) {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let sent = Instant::now();
                    match router.route(ask(*text)).await {
                        Ok(answer) => {
                            let decision = answer.into_inner().decision.unwrap();
                            answers.lock().unwrap().push(Answered { sent, answered: Instant::now(), text, decision });
                        }
                        Err(status) => failures.lock().unwrap().push(format!("{status:?}")),
                    }
                    tokio::time::sleep(pause).await;
                }
            }));
        }
        let traffic = Self { stop, tasks, answers, failures };
        traffic.goes_on().await;
        traffic
    }

    /// Waits until a few more requests were answered or failed.
    pub(crate) async fn goes_on(&self) {
        let count = || self.answers.lock().unwrap().len() + self.failures.lock().unwrap().len();
        let enough = count() + 2 * TEXTS.len();
        eventually("traffic", async || (count() >= enough).then_some(())).await;
    }

    /// Stops; gives every answer, after it was asserted that nothing failed.
    pub(crate) async fn stop(self) -> Vec<Answered> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            tokio::time::timeout(PATIENCE, task).await.expect("requests hang").unwrap();
        }
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        assert!(failures.is_empty(), "{} of {} failed: {}", failures.len(), answers.len(), failures[0]);
        answers
    }
}

// === impl Answered ===

impl Answered {
    /// Every provider that the decision names, selected or not.
    pub(crate) fn providers(&self) -> Vec<&str> {
        let fallbacks = self.decision.fallbacks.iter().filter_map(|fallback| fallback.candidate.as_ref());
        let next = self.decision.escalation.iter().filter_map(|escalation| escalation.next.as_ref());
        let all = self.decision.selected.iter().chain(fallbacks).chain(next);
        all.map(|candidate| candidate.provider.as_str()).collect()
    }

    /// Selected and fallbacks, in order.
    pub(crate) fn chain(&self) -> Vec<&str> {
        let fallbacks = self.decision.fallbacks.iter().filter_map(|fallback| fallback.candidate.as_ref());
        self.decision.selected.iter().chain(fallbacks).map(|candidate| candidate.model.as_str()).collect()
    }

    pub(crate) fn version(&self) -> &str {
        &self.decision.policy.as_ref().unwrap().version
    }
}

/// What a service says of its policy.
pub(crate) async fn status(service: &Service) -> proto::GetPolicyStatusResponse {
    let request = proto::GetPolicyStatusRequest {};
    service.policy().await.get_policy_status(request).await.unwrap().into_inner()
}

/// Waits until `version` is in force.
pub(crate) async fn await_version(service: &Service, version: &str) -> proto::GetPolicyStatusResponse {
    let in_force = async || {
        let status = status(service).await;
        (status.policy.as_ref().unwrap().version == version).then_some(status)
    };
    eventually(&format!("version {version} in force"), in_force).await
}
