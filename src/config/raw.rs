//! Settings as they were written, in flags, environment or file.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::policy::WhenStale;

/// Every setting of `serve`; `None` where it was not written.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Address of the gRPC server [default: 127.0.0.1:50051].
    #[arg(long, env = "POINTSMAN_LISTEN", value_name = "ADDR")]
    pub listen: Option<String>,
    /// Address of metrics, readiness and version over HTTP [default: 127.0.0.1:9090].
    #[arg(long, env = "POINTSMAN_ADMIN_LISTEN", value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Policy document, YAML or JSON, followed through its changes: a path, an http(s):// address, or
    /// etcd(s)://HOST:PORT,HOST:PORT/KEY [default: the embedded one].
    #[arg(long, env = "POINTSMAN_POLICY", value_name = "PATH|URL")]
    pub policy: Option<String>,
    /// Within what time a change of the policy is in force, with unit [default: 250ms for a file, else 5s].
    #[arg(long, env = "POINTSMAN_POLICY_POLL_INTERVAL", value_name = "DURATION")]
    pub policy_poll_interval: Option<PositiveDuration>,
    /// Which of the policy's environments applies, for example production [default: none].
    #[arg(long, env = "POINTSMAN_ENVIRONMENT", value_name = "NAME")]
    pub environment: Option<String>,
    /// File with what shows the policy's source who asks: an Authorization value, or NAME:PASSWORD for etcd.
    #[arg(long, env = "POINTSMAN_POLICY_AUTH_FILE", value_name = "FILE")]
    pub policy_auth_file: Option<PathBuf>,
    /// PEM file of authorities to trust at the policy's source [default: the public ones].
    #[arg(long, env = "POINTSMAN_POLICY_CA_FILE", value_name = "FILE")]
    pub policy_ca_file: Option<PathBuf>,
    /// PEM file of the certificate to show the policy's source.
    #[arg(long, env = "POINTSMAN_POLICY_CLIENT_CERT_FILE", value_name = "FILE")]
    pub policy_client_cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key.
    #[arg(long, env = "POINTSMAN_POLICY_CLIENT_KEY_FILE", value_name = "FILE")]
    pub policy_client_key_file: Option<PathBuf>,
    /// File of public keys; a policy that none of them signed is refused [default: signatures are not looked at].
    #[arg(long, env = "POINTSMAN_POLICY_KEYS_FILE", value_name = "FILE")]
    pub policy_keys_file: Option<PathBuf>,
    /// Directory for copies of accepted policies, to start from when the source is away [default: none].
    #[arg(long, env = "POINTSMAN_POLICY_COPIES_DIR", value_name = "DIR")]
    pub policy_copies_dir: Option<PathBuf>,
    /// Policies kept to roll back to [default: 10].
    #[arg(long, env = "POINTSMAN_POLICY_HISTORY", value_name = "N")]
    pub policy_history: Option<usize>,
    /// How long a policy may go unconfirmed by its source, with unit [default: any time].
    #[arg(long, env = "POINTSMAN_POLICY_MAX_STALENESS", value_name = "DURATION")]
    pub policy_max_staleness: Option<PositiveDuration>,
    /// What to do with an older one [default: serve].
    #[arg(long, env = "POINTSMAN_POLICY_WHEN_STALE", value_enum)]
    pub policy_when_stale: Option<WhenStale>,
    /// Whether callers may change the policy over gRPC [default: true where `listen` is a loopback address].
    #[arg(long, env = "POINTSMAN_POLICY_CHANGES", value_name = "BOOL")]
    pub policy_changes: Option<bool>,
    /// Classifier: a name below the models folder, or a directory [default: default].
    #[arg(long, env = "POINTSMAN_MODEL", value_name = "NAME|DIR")]
    pub model: Option<String>,
    /// Where models are looked up by name [default: ./models, then beside the executable].
    #[arg(long, env = "POINTSMAN_MODELS_DIR", value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// Where the encoder runs: cpu or cuda:N [default: cpu].
    #[arg(long, env = "POINTSMAN_DEVICE")]
    pub device: Option<String>,
    /// Threads for matrix products [default: one per core].
    #[arg(long, env = "POINTSMAN_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// How the encoder's products are computed: auto, f32 or int8 [default: auto].
    #[arg(long, env = "POINTSMAN_PRECISION")]
    pub precision: Option<String>,
    /// Instruction set of 8-bit products: portable, avx2, avx-vnni or avx512-vnni [default: the best there is].
    #[arg(long, env = "POINTSMAN_ISA")]
    pub isa: Option<String>,
    /// Sequence limit in word pieces, 3 to 512 [default: the classifier's own].
    #[arg(long, env = "POINTSMAN_MAX_TOKENS", value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Classifications kept for repeated texts; 0 turns the cache off [default: 100000].
    #[arg(long, env = "POINTSMAN_DECISION_CACHE_ENTRIES", value_name = "N")]
    pub decision_cache_entries: Option<usize>,
    /// Requests answered at a time; more are refused [default: 1024].
    #[arg(long, env = "POINTSMAN_MAX_IN_FLIGHT", value_name = "N")]
    pub max_in_flight: Option<usize>,
    /// Queries that may wait for a forward pass [default: 512].
    #[arg(long, env = "POINTSMAN_QUEUE_ENTRIES", value_name = "N")]
    pub queue_entries: Option<usize>,
    /// Longest wait for the classifier that a query is taken in for, with unit; more are refused [default: 250ms].
    #[arg(long, env = "POINTSMAN_MAX_WAIT", value_name = "DURATION")]
    pub max_wait: Option<PositiveDuration>,
    /// Most word pieces of one forward pass [default: 512].
    #[arg(long, env = "POINTSMAN_TOKENS_PER_PASS", value_name = "N")]
    pub tokens_per_pass: Option<usize>,
    /// Decisions kept in memory for simulations; 0: none [default: 1000].
    #[arg(long, env = "POINTSMAN_DECISION_LOG_RECENT", value_name = "N")]
    pub decision_log_recent: Option<usize>,
    /// Folder of the decision log; one process writes to it [default: no files].
    #[arg(long, env = "POINTSMAN_DECISION_LOG", value_name = "DIR")]
    pub decision_log: Option<PathBuf>,
    /// Largest file of the decision log in MiB [default: 64].
    #[arg(long, env = "POINTSMAN_DECISION_LOG_FILE_MIB", value_name = "N")]
    pub decision_log_file_mib: Option<u64>,
    /// Oldest file of the decision log that still grows, with unit [default: 1h].
    #[arg(long, env = "POINTSMAN_DECISION_LOG_ROTATE", value_name = "DURATION")]
    pub decision_log_rotate: Option<PositiveDuration>,
    /// Most MiB of all its files together; the oldest are deleted [default: 1024].
    #[arg(long, env = "POINTSMAN_DECISION_LOG_TOTAL_MIB", value_name = "N")]
    pub decision_log_total_mib: Option<u64>,
    /// Keep the text of queries in the decision log too; without it only a hash is kept [default: false].
    #[arg(long, env = "POINTSMAN_DECISION_LOG_TEXT", num_args = 0..=1, default_missing_value = "true")]
    pub decision_log_text: Option<bool>,
    /// Where budgets, rates and sessions are shared between servers: redis://HOST:PORT or rediss://HOST:PORT
    /// [default: in this process alone].
    #[arg(long, env = "POINTSMAN_STATE", value_name = "URL")]
    pub state: Option<String>,
    /// How long a call there may take before this server goes by its own share, with unit [default: 5ms].
    #[arg(long, env = "POINTSMAN_STATE_TIMEOUT", value_name = "DURATION")]
    pub state_timeout: Option<PositiveDuration>,
    /// How many servers share it: the part of each limit that is this server's while it is away [default: 2].
    #[arg(long, env = "POINTSMAN_STATE_REPLICAS", value_name = "N")]
    pub state_replicas: Option<u32>,
    /// PEM file of the authorities that a rediss:// server is trusted by [default: the public ones].
    #[arg(long, env = "POINTSMAN_STATE_CA_FILE", value_name = "FILE")]
    pub state_ca_file: Option<PathBuf>,
    /// PEM file of the certificate chain to show to it [default: none].
    #[arg(long, env = "POINTSMAN_STATE_CLIENT_CERT_FILE", value_name = "FILE")]
    pub state_client_cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key.
    #[arg(long, env = "POINTSMAN_STATE_CLIENT_KEY_FILE", value_name = "FILE")]
    pub state_client_key_file: Option<PathBuf>,
    /// File of the keys that continuations are signed with, `hmac-sha256 ID HEX` a line, the first signing; followed
    /// through its changes [default: a random key, so that no other replica can continue a cascade].
    #[arg(long, env = "POINTSMAN_CONTINUATION_KEYS_FILE", value_name = "FILE")]
    pub continuation_keys_file: Option<PathBuf>,
    /// How long a cascade can be continued after its last step, with unit [default: 15m].
    #[arg(long, env = "POINTSMAN_CONTINUATION_TTL", value_name = "DURATION")]
    pub continuation_ttl: Option<PositiveDuration>,
    /// How long requests may finish after a stop signal, with unit [default: 20s].
    #[arg(long, env = "POINTSMAN_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<PositiveDuration>,
    /// How long new requests are still taken after a stop signal, with unit [default: not at all].
    #[arg(long, env = "POINTSMAN_DRAIN_DELAY", value_name = "DURATION")]
    pub drain_delay: Option<PositiveDuration>,
    /// Open connections; more are closed at once [default: 4096].
    #[arg(long, env = "POINTSMAN_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
    /// Age at which a client is asked to connect anew, so that load spreads over replicas, with unit [default: 5m].
    #[arg(long, env = "POINTSMAN_MAX_CONNECTION_AGE", value_name = "DURATION")]
    pub max_connection_age: Option<PositiveDuration>,
    /// PEM file of the server's certificate chain; replaced files are read again [default: no TLS].
    #[arg(long, env = "POINTSMAN_TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key.
    #[arg(long, env = "POINTSMAN_TLS_KEY_FILE", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// PEM file of authorities; clients must show a certificate of one of them [default: none is asked for].
    #[arg(long, env = "POINTSMAN_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Who may call what: callers with tokens, certificates, rights and tenants (TOML) [default: everybody everything].
    #[arg(long, env = "POINTSMAN_ACCESS_FILE", value_name = "FILE")]
    pub access_file: Option<PathBuf>,
    /// How often it is looked whether the model directory has another manifest, with unit [default: 5s].
    #[arg(long, env = "POINTSMAN_MODEL_POLL_INTERVAL", value_name = "DURATION")]
    pub model_poll_interval: Option<PositiveDuration>,
    /// OpenTelemetry collector that traces are sent to by gRPC, http://HOST:PORT or https://HOST:PORT (needs a build
    /// with --features otel) [default: no traces].
    #[arg(long, env = "POINTSMAN_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Share of calls that are traced, 0 to 1, where their callers do not say [default: 0.01].
    #[arg(long, env = "POINTSMAN_OTLP_SAMPLE_RATIO", value_name = "SHARE")]
    pub otlp_sample_ratio: Option<f64>,
    /// How log lines look: text or json [default: text].
    #[arg(long, env = "POINTSMAN_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// Which log lines are written, for example info or pointsman=debug,warn [default: info].
    #[arg(long, env = "POINTSMAN_LOG")]
    pub log_filter: Option<String>,
}

/// A duration above zero, written with a unit: `250ms`, `5s`, `2m`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct PositiveDuration(pub Duration);

impl RawConfig {
    /// Each setting from `self`, else from `lower`.
    pub(super) fn over(self, lower: Self) -> Self {
        Self {
            listen: self.listen.or(lower.listen),
            admin_listen: self.admin_listen.or(lower.admin_listen),
            policy: self.policy.or(lower.policy),
            policy_poll_interval: self.policy_poll_interval.or(lower.policy_poll_interval),
            environment: self.environment.or(lower.environment),
            policy_auth_file: self.policy_auth_file.or(lower.policy_auth_file),
            policy_ca_file: self.policy_ca_file.or(lower.policy_ca_file),
            policy_client_cert_file: self.policy_client_cert_file.or(lower.policy_client_cert_file),
            policy_client_key_file: self.policy_client_key_file.or(lower.policy_client_key_file),
            policy_keys_file: self.policy_keys_file.or(lower.policy_keys_file),
            policy_copies_dir: self.policy_copies_dir.or(lower.policy_copies_dir),
            policy_history: self.policy_history.or(lower.policy_history),
            policy_max_staleness: self.policy_max_staleness.or(lower.policy_max_staleness),
            policy_when_stale: self.policy_when_stale.or(lower.policy_when_stale),
            policy_changes: self.policy_changes.or(lower.policy_changes),
            model: self.model.or(lower.model),
            models_dir: self.models_dir.or(lower.models_dir),
            device: self.device.or(lower.device),
            threads: self.threads.or(lower.threads),
            precision: self.precision.or(lower.precision),
            isa: self.isa.or(lower.isa),
            max_tokens: self.max_tokens.or(lower.max_tokens),
            decision_cache_entries: self.decision_cache_entries.or(lower.decision_cache_entries),
            max_in_flight: self.max_in_flight.or(lower.max_in_flight),
            queue_entries: self.queue_entries.or(lower.queue_entries),
            tokens_per_pass: self.tokens_per_pass.or(lower.tokens_per_pass),
            decision_log_recent: self.decision_log_recent.or(lower.decision_log_recent),
            decision_log: self.decision_log.or(lower.decision_log),
            decision_log_file_mib: self.decision_log_file_mib.or(lower.decision_log_file_mib),
            decision_log_rotate: self.decision_log_rotate.or(lower.decision_log_rotate),
            decision_log_total_mib: self.decision_log_total_mib.or(lower.decision_log_total_mib),
            decision_log_text: self.decision_log_text.or(lower.decision_log_text),
            state: self.state.or(lower.state),
            state_timeout: self.state_timeout.or(lower.state_timeout),
            state_replicas: self.state_replicas.or(lower.state_replicas),
            state_ca_file: self.state_ca_file.or(lower.state_ca_file),
            state_client_cert_file: self.state_client_cert_file.or(lower.state_client_cert_file),
            state_client_key_file: self.state_client_key_file.or(lower.state_client_key_file),
            continuation_keys_file: self.continuation_keys_file.or(lower.continuation_keys_file),
            continuation_ttl: self.continuation_ttl.or(lower.continuation_ttl),
            drain_timeout: self.drain_timeout.or(lower.drain_timeout),
            max_wait: self.max_wait.or(lower.max_wait),
            drain_delay: self.drain_delay.or(lower.drain_delay),
            max_connections: self.max_connections.or(lower.max_connections),
            max_connection_age: self.max_connection_age.or(lower.max_connection_age),
            tls_cert_file: self.tls_cert_file.or(lower.tls_cert_file),
            tls_key_file: self.tls_key_file.or(lower.tls_key_file),
            tls_client_ca_file: self.tls_client_ca_file.or(lower.tls_client_ca_file),
            access_file: self.access_file.or(lower.access_file),
            model_poll_interval: self.model_poll_interval.or(lower.model_poll_interval),
            otlp_endpoint: self.otlp_endpoint.or(lower.otlp_endpoint),
            otlp_sample_ratio: self.otlp_sample_ratio.or(lower.otlp_sample_ratio),
            log_format: self.log_format.or(lower.log_format),
            log_filter: self.log_filter.or(lower.log_filter),
        }
    }
}

impl std::str::FromStr for PositiveDuration {
    type Err = String;

    fn from_str(value: &str) -> Result<Self, String> {
        let duration =
            humantime::parse_duration(value).map_err(|error| format!("{value:?} is not a duration: {error}"))?;
        if duration.is_zero() { Err("must be above zero".into()) } else { Ok(Self(duration)) }
    }
}

impl TryFrom<String> for PositiveDuration {
    type Error = String;

    fn try_from(value: String) -> Result<Self, String> {
        value.parse()
    }
}
