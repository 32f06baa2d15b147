//! Settings about connections: how many, how long, how protected, and how they end.

use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, RawConfig};

/// Connections, their protection, and how they end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TransportConfig {
    /// Open connections; more are closed at once.
    pub max_connections: usize,
    /// Age at which a client is asked to connect anew.
    pub max_connection_age: Duration,
    /// How long new requests are still taken after a stop signal.
    pub drain_delay: Duration,
    /// How long requests may finish after that.
    pub drain_timeout: Duration,
    /// TLS; `None`: plain text.
    pub tls: Option<TlsConfig>,
    /// Who may call what; `None`: everybody everything.
    pub access_file: Option<PathBuf>,
}

/// PEM files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsConfig {
    /// The server's certificate chain.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities that clients' certificates must come from; `None`: none is asked for.
    pub client_authorities: Option<PathBuf>,
}

/// At two file descriptors' worth of memory each, far below what a process may open.
const DEFAULT_MAX_CONNECTIONS: usize = 4_096;
/// After a scale-out new replicas have their share within this.
const DEFAULT_MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Kubernetes kills after 30 s by default; leave it some.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

// === impl TransportConfig ===

impl TransportConfig {
    pub(super) fn from_raw(raw: &RawConfig) -> Result<Self, ConfigError> {
        let tls = match (&raw.tls_cert_file, &raw.tls_key_file) {
            (Some(chain), Some(key)) => Some(TlsConfig {
                chain: chain.clone(),
                key: key.clone(),
                client_authorities: raw.tls_client_ca_file.clone(),
            }),
            (None, None) if raw.tls_client_ca_file.is_some() => {
                return Err(bad("tls_client_ca_file", "needs tls_cert_file and tls_key_file"));
            }
            (None, None) => None,
            _ => return Err(bad("tls_cert_file", "a certificate and its key go together (tls_key_file)")),
        };
        let max_connections = raw.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
        if !(1..=1_000_000).contains(&max_connections) {
            return Err(bad("max_connections", format!("{max_connections} is not within 1 to 1000000")));
        }
        Ok(Self {
            max_connections,
            max_connection_age: raw.max_connection_age.map_or(DEFAULT_MAX_CONNECTION_AGE, |value| value.0),
            drain_delay: raw.drain_delay.map_or(Duration::ZERO, |value| value.0),
            drain_timeout: raw.drain_timeout.map_or(DEFAULT_DRAIN_TIMEOUT, |value| value.0),
            tls,
            access_file: raw.access_file.clone(),
        })
    }
}

fn bad(setting: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::BadValue { setting, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_tls_go_together() {
        let parse = |text: &str| TransportConfig::from_raw(&toml::from_str(text).unwrap());
        let wrong = |text: &str| parse(text).unwrap_err().to_string();
        assert!(wrong("tls_cert_file = 'c'").starts_with("tls_cert_file:"));
        assert!(wrong("tls_client_ca_file = 'a'").starts_with("tls_client_ca_file:"));
        assert!(wrong("max_connections = 0").starts_with("max_connections:"));
        let tls = parse("tls_cert_file = 'c'\ntls_key_file = 'k'\ntls_client_ca_file = 'a'").unwrap().tls.unwrap();
        assert_eq!(tls.client_authorities, Some("a".into()));
        assert_eq!(parse("").unwrap().drain_delay, Duration::ZERO);
    }
}
