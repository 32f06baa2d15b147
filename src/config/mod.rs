//! What an operator can set: flags, then environment, then a TOML file, then defaults; parsed once.
//!
//! [`RawConfig`] is as close to what was written as possible; [`Config`] is validated and typed, with units in its
//! types. Nothing below this reads the environment.

mod policy;
mod raw;
mod traces;
mod transport;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use policy::{PolicyConfig, PolicyPlace, WhenStale};
pub use raw::{PositiveDuration, RawConfig};
pub use traces::TracesConfig;
pub use transport::{TlsConfig, TransportConfig};

/// Everything `serve` needs, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where metrics, readiness and version are served over HTTP.
    pub admin_listen: SocketAddr,
    /// Where the policy comes from.
    pub policy: PolicyConfig,
    /// Which of the policy's environments applies; `None`: none.
    pub environment: Option<String>,
    /// Classifier: a name or a directory.
    pub model: String,
    /// Where models are looked up by name; `None`: `./models`, then beside the executable.
    pub models_dir: Option<PathBuf>,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Threads for matrix products; `None`: as many as there are cores.
    pub threads: Option<usize>,
    /// `auto`, `f32` or `int8`.
    pub precision: String,
    /// Name of an instruction set; `None`: the best there is.
    pub isa: Option<String>,
    /// Sequence limit in word pieces; `None`: the classifier's own.
    pub max_tokens: Option<usize>,
    /// Classifications kept for repeated texts; 0: none.
    pub decision_cache_entries: usize,
    /// Requests answered at a time; more are refused.
    pub max_in_flight: usize,
    /// Queries that may wait for a forward pass.
    pub queue_entries: usize,
    /// Longest wait for a forward pass that a query is taken in for.
    pub max_wait: Duration,
    /// Most word pieces of one forward pass.
    pub tokens_per_pass: usize,
    /// Decisions kept in memory; 0: none.
    pub decision_log_recent: usize,
    /// Folder of the decision log; `None`: no files.
    pub decision_log: Option<PathBuf>,
    /// Largest file of the decision log.
    pub decision_log_file_mib: u64,
    /// Oldest file of the decision log that still grows.
    pub decision_log_rotate: Duration,
    /// Most of all files of the decision log together.
    pub decision_log_total_mib: u64,
    /// Whether the decision log keeps texts.
    pub decision_log_text: bool,
    /// Where budgets, rates and sessions are shared; `None`: in this process alone.
    pub state: Option<StateUrl>,
    /// How long one call there may take.
    pub state_timeout: Duration,
    /// How many servers share it.
    pub state_replicas: u32,
    /// PEM file of the authorities it is trusted by; `None`: the public ones.
    pub state_ca_file: Option<PathBuf>,
    /// PEM files of the certificate chain and the key that are shown to it.
    pub state_client_identity: Option<(PathBuf, PathBuf)>,
    /// Keys that continuations are signed with; `None`: a random one.
    pub continuation_keys_file: Option<PathBuf>,
    /// How long a cascade can be continued after its last step.
    pub continuation_ttl: Duration,
    /// Connections, their protection, and how they end.
    pub transport: TransportConfig,
    /// How often it is looked whether there is another model.
    pub model_poll_interval: Duration,
    /// Where traces go; `None`: there are none.
    pub traces: Option<TracesConfig>,
    /// How log lines look.
    pub log_format: String,
    /// Which log lines are written.
    pub log_filter: String,
}

/// Where state is shared. May hold a password, so it is not shown whole.
#[derive(Clone, Eq, PartialEq)]
pub struct StateUrl(pub String);

/// A setting that cannot be used: the operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The configuration file is not valid.
    #[error("{} is not a valid configuration", .path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is out of range or does not go with another.
    #[error("{setting}: {problem}")]
    BadValue {
        /// The setting, as the file names it.
        setting: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

const DEFAULT_LISTEN: &str = "127.0.0.1:50051";
const DEFAULT_ADMIN_LISTEN: &str = "127.0.0.1:9090";
/// About 30 MB at 14 intents; a hit saves a forward pass.
const DEFAULT_CACHE_ENTRIES: usize = 100_000;
/// Enough for every waiting query and as many being decoded or answered.
const DEFAULT_MAX_IN_FLIGHT: usize = 1_024;
const DEFAULT_QUEUE_ENTRIES: usize = 512;
/// About 120 ms of work on two cores, which bounds how long a short query waits behind a full pass.
const DEFAULT_TOKENS_PER_PASS: usize = 512;
/// A few MB; enough to see what a new policy would change.
const DEFAULT_LOG_RECENT: usize = 1_000;
const DEFAULT_LOG_FILE_MIB: u64 = 64;
const DEFAULT_LOG_ROTATE: Duration = Duration::from_secs(60 * 60);
/// About a million decisions.
const DEFAULT_LOG_TOTAL_MIB: u64 = 1_024;
/// A store in the same network answers in a tenth of this.
const DEFAULT_STATE_TIMEOUT: Duration = Duration::from_millis(5);
const DEFAULT_STATE_REPLICAS: u32 = 2;
/// Longer than any answer takes, short enough that a policy or a key is not remembered for long.
const DEFAULT_CONTINUATION_TTL: Duration = Duration::from_secs(15 * 60);
/// About what two full passes and their neighbours take on two cores; who waits longer is better off elsewhere.
const DEFAULT_MAX_WAIT: Duration = Duration::from_millis(250);
/// A look is one small read; loading is a matter of seconds anyway.
const DEFAULT_MODEL_POLL: Duration = Duration::from_secs(5);

// === impl Config ===

impl Config {
    /// Validates what was written; `flags` win over `file`.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn from_raw(flags: RawConfig, file: RawConfig) -> Result<Self, ConfigError> {
        let raw = flags.over(file);
        let listen = address("listen", raw.listen.as_deref().unwrap_or(DEFAULT_LISTEN))?;
        let transport = TransportConfig::from_raw(&raw)?;
        let traces = TracesConfig::from_raw(&raw)?;
        if raw.state_client_cert_file.is_some() != raw.state_client_key_file.is_some() {
            let problem = "a certificate and its key go together (state_client_key_file)".to_owned();
            return Err(ConfigError::BadValue { setting: "state_client_cert_file", problem });
        }
        let config = Self {
            listen,
            admin_listen: address("admin_listen", raw.admin_listen.as_deref().unwrap_or(DEFAULT_ADMIN_LISTEN))?,
            policy: PolicyConfig::from_raw(&raw, listen)?,
            environment: raw.environment,
            model: raw.model.unwrap_or_else(|| "default".into()),
            models_dir: raw.models_dir,
            device: raw.device.unwrap_or_else(|| "cpu".into()),
            threads: raw.threads,
            precision: raw.precision.unwrap_or_else(|| "auto".into()),
            isa: raw.isa,
            max_tokens: raw.max_tokens,
            decision_cache_entries: raw.decision_cache_entries.unwrap_or(DEFAULT_CACHE_ENTRIES),
            max_in_flight: raw.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT),
            queue_entries: raw.queue_entries.unwrap_or(DEFAULT_QUEUE_ENTRIES),
            max_wait: raw.max_wait.map_or(DEFAULT_MAX_WAIT, |value| value.0),
            tokens_per_pass: raw.tokens_per_pass.unwrap_or(DEFAULT_TOKENS_PER_PASS),
            decision_log_recent: raw.decision_log_recent.unwrap_or(DEFAULT_LOG_RECENT),
            decision_log: raw.decision_log,
            decision_log_file_mib: raw.decision_log_file_mib.unwrap_or(DEFAULT_LOG_FILE_MIB),
            decision_log_rotate: raw.decision_log_rotate.map_or(DEFAULT_LOG_ROTATE, |value| value.0),
            decision_log_total_mib: raw.decision_log_total_mib.unwrap_or(DEFAULT_LOG_TOTAL_MIB),
            decision_log_text: raw.decision_log_text.unwrap_or(false),
            state: raw.state.map(StateUrl),
            state_timeout: raw.state_timeout.map_or(DEFAULT_STATE_TIMEOUT, |value| value.0),
            state_replicas: raw.state_replicas.unwrap_or(DEFAULT_STATE_REPLICAS),
            state_ca_file: raw.state_ca_file,
            state_client_identity: raw.state_client_cert_file.zip(raw.state_client_key_file),
            continuation_keys_file: raw.continuation_keys_file,
            continuation_ttl: raw.continuation_ttl.map_or(DEFAULT_CONTINUATION_TTL, |value| value.0),
            transport,
            traces,
            model_poll_interval: raw.model_poll_interval.map_or(DEFAULT_MODEL_POLL, |value| value.0),
            log_format: raw.log_format.unwrap_or_else(|| "text".into()),
            log_filter: raw.log_filter.unwrap_or_else(|| "info".into()),
        };
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// When it cannot be read, or has a field that does not exist or a value of another type.
    pub fn read_file(path: &std::path::Path) -> Result<RawConfig, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::BadFile { path: path.to_owned(), source: Box::new(source) })
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (setting, value, range) in [
            ("max_in_flight", self.max_in_flight, 1..=1_000_000),
            ("queue_entries", self.queue_entries, 1..=1_000_000),
            ("tokens_per_pass", self.tokens_per_pass, 1..=1_000_000),
            ("decision_cache_entries", self.decision_cache_entries, 0..=100_000_000),
            ("decision_log_recent", self.decision_log_recent, 0..=1_000_000),
            ("threads", self.threads.unwrap_or(1), 1..=1_024),
            ("max_tokens", self.max_tokens.unwrap_or(3), 3..=512),
        ] {
            if !range.contains(&value) {
                let problem = format!("{value} is not within {} to {}", range.start(), range.end());
                return Err(ConfigError::BadValue { setting, problem });
            }
        }
        let known = |url: &String| url.starts_with("redis://") || url.starts_with("rediss://");
        if let Some(StateUrl(url)) = self.state.as_ref().filter(|StateUrl(url)| !known(url)) {
            let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
            let problem = format!("scheme {scheme:?} is not known; write redis://HOST:PORT or rediss://HOST:PORT");
            return Err(ConfigError::BadValue { setting: "state", problem });
        }
        let plain = self.state.as_ref().is_none_or(|StateUrl(url)| !url.starts_with("rediss://"));
        if plain && (self.state_ca_file.is_some() || self.state_client_identity.is_some()) {
            let problem = "certificates are for rediss:// addresses".to_owned();
            return Err(ConfigError::BadValue { setting: "state_ca_file", problem });
        }
        if !(1..=1_000).contains(&self.state_replicas) {
            let problem = format!("{} is not within 1 to 1000", self.state_replicas);
            return Err(ConfigError::BadValue { setting: "state_replicas", problem });
        }
        if self.listen == self.admin_listen && self.listen.port() != 0 {
            let problem = format!("{} is taken by listen", self.admin_listen);
            return Err(ConfigError::BadValue { setting: "admin_listen", problem });
        }
        if self.decision_log_file_mib == 0 || self.decision_log_total_mib <= self.decision_log_file_mib {
            let problem = format!(
                "{} MiB is not more than one file of {} MiB, which is at least 1",
                self.decision_log_total_mib, self.decision_log_file_mib
            );
            return Err(ConfigError::BadValue { setting: "decision_log_total_mib", problem });
        }
        let gpu = self.device.strip_prefix("cuda:").is_some_and(|index| index.parse::<usize>().is_ok());
        if self.device != "cpu" && !gpu {
            let problem = format!("{:?} is neither cpu nor cuda:N", self.device);
            return Err(ConfigError::BadValue { setting: "device", problem });
        }
        if !matches!(self.log_format.as_str(), "text" | "json") {
            let problem = format!("{:?} is neither text nor json", self.log_format);
            return Err(ConfigError::BadValue { setting: "log_format", problem });
        }
        Ok(())
    }
}

impl std::fmt::Debug for StateUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = self.0.rsplit_once('@').map_or(self.0.as_str(), |(_, place)| place);
        write!(f, "StateUrl({place:?})")
    }
}

fn address(setting: &'static str, value: &str) -> Result<SocketAddr, ConfigError> {
    value.parse().map_err(|_| ConfigError::BadValue {
        setting,
        problem: format!("{value:?} is not an address; write for example 127.0.0.1:50051 or [::1]:50051"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str, file: &str) -> Result<Config, ConfigError> {
        Config::from_raw(toml::from_str(flags).unwrap(), toml::from_str(file).unwrap())
    }

    fn refused(file: &str) -> String {
        parse("", file).unwrap_err().to_string()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let config = parse("listen = '127.0.0.1:1'", "listen = '127.0.0.1:2'\nthreads = 3\npolicy = 'p.yaml'").unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.threads, Some(3));
        assert_eq!(config.policy.place, PolicyPlace::File("p.yaml".into()));
        assert_eq!(config.admin_listen.port(), 9090);
        assert_eq!(
            parse("", "policy_poll_interval = '250ms'").unwrap().policy.poll_interval,
            Some(Duration::from_millis(250))
        );
    }

    #[test]
    fn bad_settings_are_named() {
        assert!(refused("listen = 'localhost'").starts_with("listen:"));
        assert!(refused("listen = '127.0.0.1:7'\nadmin_listen = '127.0.0.1:7'").starts_with("admin_listen:"));
        assert!(refused("queue_entries = 0").starts_with("queue_entries:"));
        assert!(refused("threads = 0").starts_with("threads:"));
        assert!(refused("max_tokens = 513").starts_with("max_tokens:"));
        assert!(refused("device = 'gpu'").starts_with("device:"));
        assert!(refused("device = 'cuda:'").starts_with("device:"));
        assert!(refused("decision_log_total_mib = 64").starts_with("decision_log_total_mib:"));
        assert!(refused("state = 'etcd://x'").starts_with("state: scheme \"etcd\""));
        let state = parse("", "state = 'redis://:secret@store:6379'").unwrap().state;
        assert_eq!(format!("{state:?}"), "Some(StateUrl(\"store:6379\"))");
        assert!(refused("state_replicas = 0").starts_with("state_replicas:"));
        let certificates = "state_ca_file = 'ca'\nstate_client_cert_file = 'c'\nstate_client_key_file = 'k'";
        assert!(refused(&format!("state = 'redis://x'\n{certificates}")).starts_with("state_ca_file:"));
        assert!(refused("state = 'rediss://x'\nstate_client_key_file = 'k'").starts_with("state_client_cert_file:"));
        let tls = parse("", &format!("state = 'rediss://x'\n{certificates}")).unwrap();
        assert_eq!(tls.state_client_identity, Some(("c".into(), "k".into())));
        assert!(refused("log_format = 'xml'").starts_with("log_format:"));
        assert!(refused("policy = 'ftp://x/y'").starts_with("policy:"));
        assert!(toml::from_str::<RawConfig>("lisen = 'x'").is_err(), "unknown fields are refused");
        assert!(toml::from_str::<RawConfig>("drain_timeout = '20'").is_err(), "a duration needs a unit");
        assert!(toml::from_str::<RawConfig>("policy_poll_interval = '0s'").is_err(), "an interval of 0 would spin");
    }
}
