//! The running service: listeners, health, readiness, drain.
//!
//! Order of a start: bind both listeners, answer "not serving", load and warm the model, load the policy, then serve.
//! Order of a stop: health says NOT_SERVING, requests are taken for a while longer, listeners close and clients are told
//! goodbye, requests in flight finish within a bound, exit.

mod admin;
mod cascades;
mod listener;
mod loader;
mod policy;
mod reload;
mod tasks;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use loader::Loader;
pub use policy::{policy_options, start_policies};
pub use tasks::Tasks;
pub use tls::ServerTlsError;

use crate::access::{AccessError, AccessStore};
use crate::batch::{BatchOptions, Engine};
use crate::cascade::KeyError;
use crate::classifier::{Classifier, LoadError};
use crate::config::{Config, StateUrl, TracesConfig, TransportConfig};
use crate::decisions::{DecisionLog, FileOptions, LogError, LogOptions, OutcomeLog};
use crate::encoder::EncoderError;
use crate::router::{DecideError, Governor, Router, RouterOptions};
use crate::rpc::proto::{
    DESCRIPTORS, info_server::InfoServer, policy_service_server::PolicyServiceServer, router_server::RouterServer,
};
use crate::rpc::{Backend, Front, InfoService, PolicyApi, RouterApi};
use crate::sources::{PolicyStore, RefreshError, SignatureError, TlsError};
use crate::state::{State, StateError, StateOptions};
use crate::telemetry::{Metrics, Reload, TraceOptions, Traces, TracesError};
use listener::Listener;
use tls::TlsStore;

/// Why the service could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The model cannot be loaded.
    #[error("cannot load the model")]
    Load(#[from] LoadError),
    /// The device is not there.
    #[error("cannot use the device")]
    Device(#[from] EncoderError),
    /// The policy cannot be loaded.
    #[error("cannot load the policy")]
    Policy(#[from] RefreshError),
    /// The keys of continuations cannot be used.
    #[error("cannot sign continuations")]
    ContinuationKeys(#[from] KeyError),
    /// The decision log cannot be started.
    #[error("cannot start the decision log")]
    DecisionLog(#[from] LogError),
    /// The shared state cannot be used as it is set.
    #[error("cannot use the shared state")]
    State(#[from] StateError),
    /// A certificate for the policy's source cannot be used.
    #[error("cannot connect to the policy's source")]
    PolicyTls(#[from] TlsError),
    /// The keys that policies are checked with cannot be used.
    #[error("cannot check signatures of policies")]
    PolicyKeys(#[from] SignatureError),
    /// The encoder's thread cannot be started.
    #[error("cannot start the encoder thread")]
    Thread(#[source] std::io::Error),
    /// The loaded model does not work.
    #[error("the model does not answer")]
    WarmUp(#[from] DecideError),
    /// Reflection cannot be built from the descriptors.
    #[error("cannot build the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A file for TLS cannot be used.
    #[error("cannot serve TLS")]
    Tls(#[from] ServerTlsError),
    /// The access file cannot be used.
    #[error("cannot tell who may call")]
    Access(#[from] AccessError),
    /// Traces cannot be sent as it is set.
    #[error("cannot send traces")]
    Traces(#[from] TracesError),
    /// A task of the server ended by itself.
    #[error("a server task failed")]
    Task(#[from] tokio::task::JoinError),
}

/// A service that has its listeners and is not ready yet.
#[derive(Debug)]
pub struct Server {
    config: Config,
    grpc: TcpListener,
    admin: TcpListener,
    backend: Backend,
    health: HealthReporter,
    tasks: Tasks,
}

/// A service that answers.
#[derive(Debug)]
pub struct Running {
    backend: Backend,
    health: HealthReporter,
    tasks: Tasks,
    connections: Tasks,
    log: Arc<DecisionLog>,
    traces: Traces,
    drain: (Duration, Duration),
    /// Where gRPC is served.
    pub grpc_address: SocketAddr,
    /// Where metrics and readiness are served.
    pub admin_address: SocketAddr,
    /// What is loaded, for people.
    pub summary: String,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// Every request in flight was answered.
    Completely,
    /// The time ran out; what was left was cut off.
    TimedOut,
}

/// Time for the last answers to leave and for clients to take the server's goodbye.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_LOOKS: u32 = 25;
/// Time for the admin endpoint and others to end after the last request.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Time for the decision log to reach the disk after the last request.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the last traces to reach the collector.
const TRACES_TIMEOUT: Duration = Duration::from_secs(2);
/// Names that health checks ask about; the empty one is the server as a whole.
const HEALTH_SERVICES: [&str; 4] = ["", "pointsman.v1.Router", "pointsman.v1.PolicyService", "pointsman.v1.Info"];

// === impl ServeError ===

impl ServeError {
    /// Whether what is configured cannot be used, so that another try would fail alike.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Bind { .. } | Self::Thread(_) | Self::Task(_))
    }
}

// === impl Server ===

impl Server {
    /// Binds both listeners.
    ///
    /// # Errors
    /// Names the address that cannot be listened on.
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        let bind =
            async |address| TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source });
        Ok(Self {
            grpc: bind(config.listen).await?,
            admin: bind(config.admin_listen).await?,
            backend: Backend::new(Arc::new(Metrics::new()), config.max_in_flight),
            health: HealthReporter::new(),
            tasks: Tasks::new(),
            config,
        })
    }

    /// Serves "not ready", loads and warms everything, then serves decisions.
    ///
    /// # Errors
    /// When the model, the device or the policy cannot be used.
    pub async fn start(self) -> Result<Running, ServeError> {
        self.start_with(|classifier| classifier).await
    }

    /// The same, with another engine behind the queue than the classifier itself, made from it.
    ///
    /// # Errors
    /// When the model, the device or the policy cannot be used.
    pub async fn start_with<E: Engine + 'static>(
        self,
        engine: impl FnOnce(Arc<Classifier>) -> Arc<E>,
    ) -> Result<Running, ServeError> {
        let Self { config, grpc, admin, backend, health, tasks } = self;
        let started = Instant::now();
        let addresses = (local_address(&grpc, config.listen), local_address(&admin, config.admin_listen));
        set_health(&health, ServingStatus::NotServing).await;
        let connections = tasks.group();
        let services = routes(&backend, &health, config.policy.changes)?;
        let traces = start_traces(&config, backend.metrics())?;
        let front = (services, traces.clone());
        spawn_grpc(grpc, front, &backend, (&tasks, &connections), &config.transport)?;
        tasks.spawn(admin::serve(admin, backend.clone(), tasks.clone()));

        let loader = Loader::start()?;
        let classifier = Arc::new(loader.load(&config).await?);
        let policies = Arc::new(start_policies(&config.policy, policy_options(&config, &classifier)).await?);
        let log = Arc::new(DecisionLog::start(log_options(&config), Arc::clone(backend.metrics()))?);
        let router = Router::start_with(
            engine(Arc::clone(&classifier)),
            Arc::clone(&classifier),
            Arc::clone(&policies),
            Arc::clone(backend.metrics()),
            router_options(&config),
        )
        .map_err(ServeError::Thread)?
        .with_log(Arc::clone(&log))
        .with_cascades(cascades::start(&config, &tasks)?)
        .with_governor(start_governor(&config, backend.metrics(), &tasks)?);
        router.warm_up().await?;

        if let Some(suited) = policies.source().poll_interval() {
            let (poller, stopping) = (Arc::clone(&policies), tasks.stopping());
            let interval = config.policy.poll_interval.unwrap_or(suited);
            tasks.spawn(async move { poller.run(interval, stopping).await });
        }
        let summary = summary(&classifier, &policies, addresses, started.elapsed());
        backend.set_ready(router);
        set_health(&health, ServingStatus::Serving).await;
        let drain = (config.transport.drain_delay, config.transport.drain_timeout);
        tasks.spawn(reload::follow_model(config, loader, backend.clone(), tasks.clone()));
        Ok(Running {
            backend,
            health,
            tasks,
            connections,
            log,
            traces,
            drain,
            grpc_address: addresses.0,
            admin_address: addresses.1,
            summary,
        })
    }
}

// === impl Running ===

impl Running {
    /// What all services share.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Tasks that serve connections; none is left after a drain that was complete.
    pub fn connections(&self) -> &Tasks {
        &self.connections
    }

    /// Stops taking requests and lets those in flight finish, within the configured bound.
    pub async fn drain(self) -> Drained {
        let (delay, bound) = self.drain;
        // Readiness first: who hears from health and looks there finds the same.
        self.tasks.drain();
        set_health(&self.health, ServingStatus::NotServing).await;
        tokio::time::sleep(delay).await;
        self.tasks.stop();
        let answered = async {
            tokio::select! {
                () = self.connections.wait() => {}
                () = quiet(&self.backend) => {}
            }
        };
        let drained = match tokio::time::timeout(bound, answered).await {
            Ok(()) => Drained::Completely,
            Err(_) => Drained::TimedOut,
        };
        self.tasks.cut();
        if tokio::time::timeout(LAST_WORDS, self.tasks.wait()).await.is_err() {
            tracing::debug!("some tasks are left to the end of the process");
        }
        let (log, traces) = (self.log, self.traces);
        finish("decision log", LOG_TIMEOUT, move || log.close()).await;
        finish("traces", TRACES_TIMEOUT, move || traces.finish(TRACES_TIMEOUT)).await;
        drained
    }
}

/// Writes or sends out the last of something, as far as the disk or the network goes along.
///
/// On a thread of its own: the runtime waits for its blocking tasks when it ends, and a disk that stands still would
/// hold the process for ever.
async fn finish(what: &'static str, timeout: Duration, close: impl FnOnce() + Send + 'static) {
    let (done, closed) = tokio::sync::oneshot::channel();
    let close = move || {
        close();
        // Nobody waits any more when it took too long.
        done.send(()).unwrap_or_default();
    };
    let started = std::thread::Builder::new().name("pointsman-finish".to_owned()).spawn(close);
    if started.is_err() || !matches!(tokio::time::timeout(timeout, closed).await, Ok(Ok(()))) {
        tracing::warn!(what, "could not be finished in time");
    }
}

/// Traces as `config` wants them.
fn start_traces(config: &Config, metrics: &Arc<Metrics>) -> Result<Traces, TracesError> {
    let Some(TracesConfig { endpoint, sample_ratio }) = config.traces.clone() else { return Ok(Traces::default()) };
    Traces::start(&TraceOptions { endpoint, sample_ratio }, Arc::clone(metrics))
}

/// Ends when no request has been in flight for [`LINGER`].
///
/// Only requests hold a drain: a frozen client, a health watcher or a port probe that never said anything would keep
/// its connection open for ever.
async fn quiet(backend: &Backend) {
    // Looks are counted and not time: where the machine stands still, time passes and nobody has read what was sent.
    let mut quiet_looks = 0;
    while quiet_looks < LINGER_LOOKS {
        tokio::time::sleep(LINGER / LINGER_LOOKS).await;
        quiet_looks = if backend.in_flight() == 0 { quiet_looks + 1 } else { 0 };
    }
}

/// What of decisions is kept, by `config`.
fn log_options(config: &Config) -> LogOptions {
    LogOptions { recent: config.decision_log_recent, files: log_files(config), keep_text: config.decision_log_text }
}

/// Where decisions and outcomes are written, by `config`.
fn log_files(config: &Config) -> Option<FileOptions> {
    const MIB: u64 = 1024 * 1024;
    config.decision_log.as_ref().map(|dir| FileOptions {
        dir: dir.clone(),
        max_file_bytes: config.decision_log_file_mib * MIB,
        max_file_age: config.decision_log_rotate,
        max_total_bytes: config.decision_log_total_mib * MIB,
    })
}

/// Health, limits and sessions, by `config`; what is shared is kept in touch with by a task.
fn start_governor(config: &Config, metrics: &Arc<Metrics>, tasks: &Tasks) -> Result<Governor, ServeError> {
    let outcomes = Arc::clone(metrics.outcomes());
    let state = Arc::new(match &config.state {
        None => State::local(),
        Some(StateUrl(url)) => {
            let options = StateOptions {
                url: url.clone(),
                timeout: config.state_timeout,
                replicas: config.state_replicas,
                ca_file: config.state_ca_file.clone(),
                client_identity: config.state_client_identity.clone(),
            };
            State::shared(&options, Arc::clone(&outcomes))?
        }
    });
    let (keeper, stopping) = (Arc::clone(&state), tasks.stopping());
    tasks.spawn(async move { keeper.run(stopping).await });
    let log = log_files(config).map(|files| OutcomeLog::start(files, Arc::clone(&outcomes))).transpose()?;
    Ok(Governor::new(state, log.map(Arc::new), outcomes))
}

/// The bounds that `config` sets.
pub fn router_options(config: &Config) -> RouterOptions {
    RouterOptions {
        batch: BatchOptions {
            queue_entries: config.queue_entries,
            tokens_per_pass: config.tokens_per_pass,
            max_wait: config.max_wait,
        },
        cache_entries: config.decision_cache_entries,
    }
}

/// All services of the gRPC server.
fn routes(backend: &Backend, health: &HealthReporter, policy_changes: bool) -> Result<Routes, ServeError> {
    // Health and the error details too, so that a client which knows nothing can call and read everything.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let health_service = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health.clone()),
    );
    Ok(Routes::new(RouterServer::new(RouterApi::new(backend.clone())))
        .add_service(PolicyServiceServer::new(PolicyApi::new(backend.clone(), policy_changes)))
        .add_service(InfoServer::new(InfoService::new(backend.clone())))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

/// Serves `routes` to those who may call, and follows the files that say who that is.
fn spawn_grpc(
    listener: TcpListener,
    (routes, traces): (Routes, Traces),
    backend: &Backend,
    (tasks, connections): (&Tasks, &Tasks),
    config: &TransportConfig,
) -> Result<(), ServeError> {
    let metrics = backend.metrics();
    let tls = config.tls.clone().map(TlsStore::open).transpose()?.map(Arc::new);
    if let Some(tls) = tls.clone() {
        let look = move || tls.refresh();
        tasks.spawn(reload::follow(Reload::Certificates, Arc::clone(metrics), tasks.stopping(), look));
    }
    let access = config.access_file.as_deref().map(AccessStore::open).transpose()?.map(Arc::new);
    if let Some(access) = access.clone() {
        let look = move || access.refresh(Instant::now());
        tasks.spawn(reload::follow(Reload::Access, Arc::clone(metrics), tasks.stopping(), look));
    }
    let on_this_machine = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    if access.is_some() && tls.is_none() && !on_this_machine {
        tracing::warn!("tokens cross the network unencrypted unless something in front of this server does TLS");
    }
    let listening = Listener {
        front: Front::new(routes, backend.clone(), access).with_traces(traces),
        tls,
        metrics: Arc::clone(metrics),
        max_connections: config.max_connections,
        max_connection_age: config.max_connection_age,
        tasks: connections.clone(),
    };
    tasks.spawn(listening.run(listener));
    Ok(())
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in HEALTH_SERVICES {
        health.set_service_status(service, status).await;
    }
}

fn local_address(listener: &TcpListener, configured: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(configured)
}

fn summary(
    classifier: &Classifier,
    policies: &PolicyStore,
    (grpc, admin): (SocketAddr, SocketAddr),
    took: Duration,
) -> String {
    let (reference, encoder, policy) = (classifier.reference(), classifier.encoder(), policies.snapshot());
    let policy_ref = policy.policy_ref();
    format!(
        "classifier  {} {} from {}\n\
         encoder     {} on {}, at most {} tokens\n\
         policy      {} {} from {}, {} warning(s)\n\
         gRPC        {grpc}\n\
         admin       http://{admin}/metrics /readyz /livez /version\n\
         ready in {} ms; try\n\n  \
         grpcurl -plaintext -d '{{\"query\": \"Prove that the square root of 2 is irrational\"}}' {grpc} pointsman.v1.Router/Route\n",
        reference.name,
        reference.version,
        classifier.dir().display(),
        encoder.name(),
        encoder.device_name(),
        encoder.tokenizer().max_tokens(),
        policy_ref.id,
        policy_ref.version,
        policies.source().place(),
        policy.policy.warnings().len(),
        took.as_millis(),
    )
}
