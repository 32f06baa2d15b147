//! Control planes over TLS: who is trusted, who is let in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman::config::RawConfig;
use pointsman::rpc::proto::PolicyOrigin;
use pointsman::sources::{EtcdPlace, EtcdSource, PolicySource as _, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::control_plane_etcd::{Etcd, EtcdTls};
use super::control_plane_support::{Plane, await_version, status, version};
use super::support::Service;

/// An authority that signs for 127.0.0.1, and a file for each thing that it made.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        self.sign_as(name, |_| {})
    }

    fn sign_as(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    /// A server that only lets in clients with a certificate of this authority.
    fn acceptor(&self) -> TlsAcceptor {
        self.acceptor_as(&self.sign("server"))
    }

    /// The same with another certificate than its own.
    fn acceptor_as(&self, (chain, key): &(PathBuf, PathBuf)) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file("ca.pem")).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(chain).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn settings(url: String, ca: Option<PathBuf>, identity: Option<(PathBuf, PathBuf)>) -> RawConfig {
    let (policy_client_cert_file, policy_client_key_file) = identity.unzip();
    RawConfig {
        policy: Some(url),
        policy_ca_file: ca,
        policy_client_cert_file,
        policy_client_key_file,
        policy_poll_interval: Some("500ms".parse().unwrap()),
        ..RawConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_is_used_with_the_right_certificates_and_with_no_others() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let plane = Plane::start_with(&version(1), Some(authority.acceptor())).await;
    let url = plane.url().replace("http://", "https://");
    let ca = || Some(authority.file("ca.pem"));
    let service = Service::start(settings(url.clone(), ca(), Some(authority.sign("client"))));
    assert_eq!(status(&service).await.origin(), PolicyOrigin::Source);
    plane.publish(&version(2));
    await_version(&service, "2").await;
    for (what, ca, identity) in [
        ("a server that the public authorities do not know", None, Some(authority.sign("client"))),
        ("a server of another authority", Some(stranger.file("ca.pem")), Some(authority.sign("client"))),
        ("no client certificate", ca(), None),
        ("a client certificate of another authority", ca(), Some(stranger.sign("client"))),
    ] {
        let service = Service::start(settings(url.clone(), ca, identity));
        let state = status(&service).await;
        assert_eq!(state.origin(), PolicyOrigin::Embedded, "{what}");
        assert!(
            state.last_error.starts_with("the policy source failed: cannot reach https://"),
            "{}",
            state.last_error
        );
    }
}

type Change = fn(&mut CertificateParams);

/// What certificates of the right authority may be wrong in.
const WRONG: [(&str, Change); 3] = [
    ("of another name", |params| {
        params.subject_alt_names = vec![SanType::DnsName("policies.example".try_into().unwrap())];
    }),
    ("of another address", |params| {
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.2".parse().unwrap())];
    }),
    ("that has expired", |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    }),
];

/// Whoever has some certificate of the authority is not the policy's source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_with_a_certificate_that_is_not_its_own_is_not_listened_to() {
    let authority = Authority::new();
    let ca = Some(authority.file("ca.pem"));
    for (what, change) in WRONG {
        let server = authority.sign_as("server", change);
        let plane = Plane::start_with(&version(1), Some(authority.acceptor_as(&server))).await;
        let url = plane.url().replace("http://", "https://");
        let service = Service::start(settings(url, ca.clone(), Some(authority.sign("client"))));
        let state = status(&service).await;
        assert_eq!(state.origin(), PolicyOrigin::Embedded, "a server {what}");
        assert!(state.last_error.contains("cannot reach https://"), "{what}: {}", state.last_error);

        // An etcd that answered would have to be one; the handshake ends before that matters.
        let member = plane.url().replace("http://", "");
        let member = member.split('/').next().unwrap().to_owned();
        let tls = Some(TlsFiles { authorities: ca.clone(), identity: Some(authority.sign("client")) });
        let place = EtcdPlace { members: vec![member], key: "/pointsman/policy".to_owned(), tls };
        let source = EtcdSource::new(place, None, Duration::from_secs(5)).unwrap();
        let refused = format!("{:?}", source.fetch(None).await.unwrap_err());
        assert!(refused.contains("invalid peer certificate"), "an etcd {what}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_read_watched_and_written_over_tls() {
    let authority = Authority::new();
    let client = TlsFiles { authorities: Some(authority.file("ca.pem")), identity: Some(authority.sign("client")) };
    let tls = EtcdTls { server: authority.sign("server"), client: client.clone() };
    let Some(etcd) = Etcd::start_with(Some(tls)).await else { return };
    let key = "/pointsman/tls/policy";
    etcd.put(key, &version(1), None).await;
    let mut with_client = settings(etcd.url(key), client.authorities.clone(), client.identity);
    // Only a watch is this fast.
    with_client.policy_poll_interval = Some("1h".parse().unwrap());
    let service = Service::start(with_client);
    assert_eq!(status(&service).await.origin(), PolicyOrigin::Source);
    etcd.put(key, &version(2), None).await;
    await_version(&service, "2").await;
    let stranger = Service::start(settings(etcd.url(key), client.authorities, None));
    assert_eq!(status(&stranger).await.origin(), PolicyOrigin::Embedded);
}
