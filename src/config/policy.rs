//! Settings about where the policy comes from and what happens when that is away.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, RawConfig};

/// Where the policy comes from and what happens when that is away.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Where the policy comes from.
    pub place: PolicyPlace,
    /// Within what time a change should be in force; `None`: what suits the source.
    pub poll_interval: Option<Duration>,
    /// A file that shows the source who is asking.
    pub auth_file: Option<PathBuf>,
    /// Authorities to trust in place of the public ones.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate chain and key.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// Who may sign policies; `None`: signatures are not looked at.
    pub keys_file: Option<PathBuf>,
    /// Where accepted policies are copied to.
    pub copies_dir: Option<PathBuf>,
    /// Policies kept to go back to.
    pub history: usize,
    /// How long a policy may go unconfirmed; `None`: any time.
    pub max_staleness: Option<Duration>,
    /// What to do with an older one.
    pub when_stale: WhenStale,
    /// Whether whoever can connect may change the policy.
    pub changes: bool,
}

/// Where a policy comes from.
#[derive(Clone, Eq, PartialEq)]
pub enum PolicyPlace {
    /// Compiled into the binary.
    Embedded,
    /// A file, looked at again and again.
    File(PathBuf),
    /// An address of HTTP or HTTPS.
    Http(http::Uri),
    /// A key of etcd.
    Etcd {
        /// `host:port` of each member.
        members: Vec<String>,
        /// The key.
        key: String,
        /// Over TLS.
        tls: bool,
    },
}

/// What to do with a policy that has gone unconfirmed for too long.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum WhenStale {
    /// Decide with it.
    #[default]
    Serve,
    /// Decide with it and mark the decisions.
    MarkDegraded,
    /// Decide nothing.
    Refuse,
}

const DEFAULT_HISTORY: usize = 10;
/// They are kept in memory, each up to 1 MiB.
const MAX_HISTORY: usize = 100;
/// A shorter TTL leaves a source over the network no time to answer.
const MIN_REMOTE_INTERVAL: Duration = Duration::from_millis(100);
/// The key where an address of etcd names none.
const DEFAULT_KEY: &str = "/pointsman/production/policy";

// === impl PolicyConfig ===

impl PolicyConfig {
    pub(super) fn from_raw(raw: &RawConfig, listen: SocketAddr) -> Result<Self, ConfigError> {
        let client_identity = match (&raw.policy_client_cert_file, &raw.policy_client_key_file) {
            (Some(chain), Some(key)) => Some((chain.clone(), key.clone())),
            (None, None) => None,
            _ => {
                let problem = "a certificate and its key go together (policy_client_key_file)";
                return Err(bad("policy_client_cert_file", problem));
            }
        };
        let config = Self {
            place: PolicyPlace::parse(raw.policy.as_deref())?,
            poll_interval: raw.policy_poll_interval.map(|value| value.0),
            auth_file: raw.policy_auth_file.clone(),
            ca_file: raw.policy_ca_file.clone(),
            client_identity,
            keys_file: raw.policy_keys_file.clone(),
            copies_dir: raw.policy_copies_dir.clone(),
            history: raw.policy_history.unwrap_or(DEFAULT_HISTORY),
            max_staleness: raw.policy_max_staleness.map(|value| value.0),
            when_stale: raw.policy_when_stale.unwrap_or_default(),
            // Where callers cannot be told apart, only those on this machine may change the policy unasked.
            changes: raw.policy_changes.unwrap_or_else(|| listen.ip().is_loopback() || raw.access_file.is_some()),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_HISTORY).contains(&self.history) {
            return Err(bad("policy_history", format!("{} is not within 1 to {MAX_HISTORY}", self.history)));
        }
        let fixed = self.place == PolicyPlace::Embedded;
        let plain = match &self.place {
            PolicyPlace::Embedded | PolicyPlace::File(_) => true,
            PolicyPlace::Http(uri) => uri.scheme_str() != Some("https"),
            PolicyPlace::Etcd { tls, .. } => !tls,
        };
        if plain && (self.ca_file.is_some() || self.client_identity.is_some()) {
            return Err(bad("policy_ca_file", "certificates are for https:// and etcds:// addresses"));
        }
        if self.auth_file.is_some() && plain && !self.place.is_on_this_machine() {
            let problem = "a secret would cross the network unencrypted, or is for no remote source; use https:// or \
                           etcds://";
            return Err(bad("policy_auth_file", problem));
        }
        if fixed && (self.max_staleness.is_some() || self.copies_dir.is_some() || self.keys_file.is_some()) {
            let problem = "the embedded policy never changes; policy_max_staleness, policy_copies_dir and \
                           policy_keys_file need a source";
            return Err(bad("policy", problem));
        }
        let remote = matches!(self.place, PolicyPlace::Http(_) | PolicyPlace::Etcd { .. });
        if remote && self.poll_interval.is_some_and(|interval| interval < MIN_REMOTE_INTERVAL) {
            return Err(bad("policy_poll_interval", "a source over the network needs at least 100ms"));
        }
        if self.max_staleness.is_none() && self.when_stale != WhenStale::Serve {
            return Err(bad("policy_when_stale", "needs policy_max_staleness"));
        }
        Ok(())
    }
}

// === impl PolicyPlace ===

impl PolicyPlace {
    fn parse(value: Option<&str>) -> Result<Self, ConfigError> {
        let Some(value) = value else { return Ok(Self::Embedded) };
        let Some((scheme, rest)) = value.split_once("://") else { return Ok(Self::File(value.into())) };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            // Not repeated in the message: it may hold a password.
            return Err(bad("policy", "an address with a name or password in it; put them into policy_auth_file"));
        }
        match scheme {
            "http" | "https" => {
                let uri: Result<http::Uri, _> = value.parse();
                uri.ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty())).map(Self::Http)
            }
            "etcd" | "etcds" => {
                let members: Vec<String> = authority.split(',').map(str::to_owned).collect();
                let addresses = members.iter().all(|member| {
                    let authority = member.parse::<http::uri::Authority>();
                    authority.is_ok_and(|authority| authority.port().is_some() && !authority.host().is_empty())
                });
                let key = if path.is_empty() { DEFAULT_KEY.to_owned() } else { format!("/{path}") };
                addresses.then(|| Self::Etcd { members, key, tls: scheme == "etcds" })
            }
            _ => None,
        }
        .ok_or_else(|| {
            let known = "http://HOST/PATH, https://HOST/PATH, etcd://HOST:PORT[,HOST:PORT...][/KEY], the same with \
                         etcds, or the path of a file";
            bad("policy", format!("{value}: not one of {known}"))
        })
    }

    fn is_on_this_machine(&self) -> bool {
        let here = |host: &str| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        };
        match self {
            Self::Embedded | Self::File(_) => false,
            Self::Http(uri) => uri.host().is_some_and(here),
            Self::Etcd { members, .. } => {
                members.iter().all(|member| member.rsplit_once(':').is_some_and(|(host, _)| here(host)))
            }
        }
    }
}

/// A query may hold a token, as addresses of object stores do.
impl fmt::Debug for PolicyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("Embedded"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Http(uri) => f.debug_tuple("Http").field(&uri.to_string().split('?').next()).finish(),
            Self::Etcd { members, key, tls } => {
                f.debug_struct("Etcd").field("members", members).field("key", key).field("tls", tls).finish()
            }
        }
    }
}

fn bad(setting: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::BadValue { setting, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PolicyConfig, String> {
        let raw: RawConfig = toml::from_str(text).unwrap();
        PolicyConfig::from_raw(&raw, "127.0.0.1:0".parse().unwrap()).map_err(|error| error.to_string())
    }

    fn place(value: &str) -> PolicyPlace {
        parse(&format!("policy = '{value}'")).unwrap().place
    }

    #[test]
    fn places_are_told_apart_by_their_scheme() {
        assert_eq!(place("dir/p.yaml"), PolicyPlace::File("dir/p.yaml".into()));
        let http = place("https://control.example/p?token=x");
        assert!(matches!(http, PolicyPlace::Http(uri) if uri.host() == Some("control.example")));
        let etcd = |members: &[&str], key: &str, tls| PolicyPlace::Etcd {
            members: members.iter().map(|member| (*member).to_owned()).collect(),
            key: key.into(),
            tls,
        };
        assert_eq!(place("etcd://127.0.0.1:2379"), etcd(&["127.0.0.1:2379"], DEFAULT_KEY, false));
        let two = place("etcds://a.example:1,[::1]:2/pointsman/staging/policy");
        assert_eq!(two, etcd(&["a.example:1", "[::1]:2"], "/pointsman/staging/policy", true));
        for wrong in ["ftp://x/y", "etcd://127.0.0.1", "etcd:///key", "http://", "etcd://a:1,,b:2"] {
            let error = parse(&format!("policy = '{wrong}'")).unwrap_err();
            assert!(error.starts_with("policy:") && error.contains("etcd://HOST:PORT"), "{wrong}: {error}");
        }
    }

    #[test]
    fn secrets_stay_off_the_wire_and_out_of_messages() {
        let error = parse("policy = 'https://user:hunter2@x.example/p'").unwrap_err();
        assert!(error.starts_with("policy:") && !error.contains("hunter2"), "{error}");
        let shown = format!("{:?}", parse("policy = 'https://x.example/p?token=hunter2'").unwrap());
        assert!(shown.contains("https://x.example/p") && !shown.contains("hunter2"), "{shown}");
        let with_secret = |policy: &str| parse(&format!("policy = '{policy}'\npolicy_auth_file = 's'"));
        for wrong in ["http://control.example/p", "etcd://a.example:1", "p.yaml", "etcd://127.0.0.1:1,b.example:2"] {
            assert!(with_secret(wrong).unwrap_err().starts_with("policy_auth_file:"), "{wrong}");
        }
        for right in ["https://control.example/p", "http://localhost/p", "http://[::1]:8/p", "etcd://127.0.0.1:1"] {
            assert!(with_secret(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (settings, setting) in [
            ("policy_max_staleness = '1m'", "policy"),
            ("policy_copies_dir = 'd'", "policy"),
            ("policy = 'p.yaml'\npolicy_when_stale = 'refuse'", "policy_when_stale"),
            ("policy = 'p.yaml'\npolicy_ca_file = 'ca.pem'", "policy_ca_file"),
            ("policy = 'https://x/p'\npolicy_client_cert_file = 'c'", "policy_client_cert_file"),
            ("policy = 'https://x/p'\npolicy_poll_interval = '20ms'", "policy_poll_interval"),
            ("policy = 'p.yaml'\npolicy_history = 0", "policy_history"),
        ] {
            let error = parse(settings).unwrap_err();
            assert!(error.starts_with(&format!("{setting}:")), "{settings}: {error}");
        }
        let all = "policy = 'etcds://a:1'\npolicy_ca_file = 'ca'\npolicy_client_cert_file = 'c'\n\
                   policy_client_key_file = 'k'\npolicy_auth_file = 's'\npolicy_keys_file = 'p'\n\
                   policy_copies_dir = 'd'\npolicy_max_staleness = '10m'\npolicy_when_stale = 'mark_degraded'";
        assert_eq!(parse(all).unwrap().when_stale, WhenStale::MarkDegraded);
    }

    #[test]
    fn changes_are_for_this_machine_unless_said_otherwise() {
        let changes = |listen: &str, text: &str| {
            let raw: RawConfig = toml::from_str(text).unwrap();
            PolicyConfig::from_raw(&raw, listen.parse().unwrap()).unwrap().changes
        };
        assert!(changes("127.0.0.1:1", "") && changes("[::1]:1", ""));
        assert!(!changes("0.0.0.0:1", "") && !changes("127.0.0.1:1", "policy_changes = false"));
        assert!(changes("0.0.0.0:1", "policy_changes = true"));
    }
}
