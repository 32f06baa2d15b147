//! A shared state over TLS: a real Redis that asks for certificates, and servers that trust it or do not.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pointsman::config::{PositiveDuration, RawConfig};
use pointsman::rpc::proto;
use pointsman::state::{State, StateError, StateOptions};
use pointsman::telemetry::Metrics;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::outcomes::{POLICY, codes};
use super::support::{Service, ask, eventually};

type Issuer = CertifiedIssuer<'static, KeyPair>;

const TENANTS: &str = "tenants: {acme: {limits: {hard_budget_usd: 100}}}\n";

/// A Redis that speaks nothing but TLS, and only with those who show a certificate, which is its default.
struct Redis {
    child: Child,
    port: u16,
}

// === impl Redis ===

impl Redis {
    /// `None`, and a word about it, where there is no Redis with TLS on the path.
    async fn start(dir: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = |name: &str| dir.join(name).display().to_string();
        let child = Command::new("redis-server")
            .args(["--port", "0", "--bind", "127.0.0.1", "--save", "", "--tls-port", &port.to_string()])
            .args(["--tls-cert-file", &file("server.pem"), "--tls-key-file", &file("server.key")])
            .args(["--tls-ca-cert-file", &file("ca.pem")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let skipped = || println!("skipped: there is no redis-server with TLS on the path (Debian: redis-server)");
        let Ok(mut child) = child else {
            skipped();
            return None;
        };
        let listens = async || {
            let ended = child.try_wait().unwrap().is_some();
            let connects = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            (ended || connects).then_some(connects)
        };
        if eventually("Redis listens, or ends for want of TLS", listens).await {
            return Some(Self { child, port });
        }
        skipped();
        None
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Puts a certificate of `issuer` for 127.0.0.1 and its key into `dir`.
fn put_identity(dir: &Path, name: &str, issuer: &Issuer) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    // Another name than its issuer's, or Redis takes it for one that signed itself.
    params.distinguished_name.push(DnType::CommonName, name);
    std::fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, issuer).unwrap().pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

async fn decide(service: &Service) -> proto::Decision {
    let request = proto::RouteRequest { tenant: "acme".into(), ..ask("an easy question") };
    service.router().await.route(request).await.unwrap().into_inner().decision.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_used_over_tls_by_those_who_trust_it_and_are_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, others) = (authority("ours"), authority("others"));
    std::fs::write(dir.path().join("ca.pem"), ours.pem()).unwrap();
    std::fs::write(dir.path().join("other-ca.pem"), others.pem()).unwrap();
    put_identity(dir.path(), "server", &ours);
    put_identity(dir.path(), "client", &ours);
    put_identity(dir.path(), "stranger", &others);
    let Some(redis) = Redis::start(dir.path()).await else { return };
    let file = |name: &str| Some(dir.path().join(name));
    let start = |ca: Option<PathBuf>, identity: Option<&str>| {
        let settings = RawConfig {
            state: Some(format!("rediss://127.0.0.1:{}", redis.port)),
            state_timeout: Some(PositiveDuration(Duration::from_secs(2))),
            state_ca_file: ca,
            state_client_cert_file: identity.and_then(|name| file(&format!("{name}.pem"))),
            state_client_key_file: identity.and_then(|name| file(&format!("{name}.key"))),
            ..RawConfig::default()
        };
        Service::with_policy(&format!("{POLICY}{TENANTS}"), settings)
    };
    let right = start(file("ca.pem"), Some("client"));
    let wrong = [
        ("another authority", start(file("other-ca.pem"), Some("client"))),
        ("the public authorities", start(None, Some("client"))),
        ("no certificate of its own", start(file("ca.pem"), None)),
        ("a stranger's certificate", start(file("ca.pem"), Some("stranger"))),
    ];
    let present = async || (right.0.metric("pointsman_state_away") == Some(0.0)).then_some(());
    eventually("the store is there", present).await;
    assert!(!codes(&decide(&right.0).await).contains(&"STATE_AWAY"));
    assert!(right.0.metric("pointsman_state_duration_seconds_count") > Some(0.0), "it was asked");
    // They have had the same time and more than one try.
    tokio::time::sleep(Duration::from_millis(700)).await;
    for (why, (service, _dir, _)) in &wrong {
        assert_eq!(service.metric("pointsman_state_away"), Some(1.0), "{why}");
        let decision = decide(service).await;
        assert!(codes(&decision).contains(&"STATE_AWAY"), "{why}: decisions go on: {:?}", codes(&decision));
    }
}

#[test]
fn certificates_that_are_none_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("nonsense"), "not PEM").unwrap();
    let open = |ca: &str, identity: Option<&str>| {
        let options = StateOptions {
            url: "rediss://127.0.0.1:1".to_owned(),
            timeout: Duration::from_millis(5),
            replicas: 1,
            ca_file: Some(dir.path().join(ca)),
            client_identity: identity.map(|name| (dir.path().join(name), dir.path().join(name))),
        };
        State::shared(&options, Arc::clone(Metrics::new().outcomes())).map(drop)
    };
    assert!(matches!(open("none", None), Err(StateError::Unreadable { path, .. }) if path.ends_with("none")));
    std::fs::write(dir.path().join("ca.pem"), authority("ours").pem()).unwrap();
    assert!(matches!(open("ca.pem", Some("none")), Err(StateError::Unreadable { .. })));
    assert!(matches!(open("ca.pem", Some("nonsense")), Err(StateError::Unusable(_))));
    assert!(open("ca.pem", None).is_ok());
    // An empty list of authorities would trust nobody, and nobody would know why.
    assert!(matches!(open("nonsense", None), Err(StateError::NoAuthority { .. })));
}
