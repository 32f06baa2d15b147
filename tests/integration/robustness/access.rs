//! TLS, client certificates, tokens, rights and tenants: who is let in, and to what.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use pointsman::config::RawConfig;
use pointsman::rpc::proto;
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;

use super::super::support::{SMALL_POLICY, Service, ask, eventually};
use super::raw::{Answer, ROUTE, RawClient};

pub(super) type Issuer = CertifiedIssuer<'static, KeyPair>;
/// A certificate chain and its key, as PEM.
pub(super) type Identity = (String, String);

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn server_certificate(issuer: &Issuer) -> Identity {
    let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

pub(super) fn client_certificate(issuer: &Issuer, change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let mut params = CertificateParams::new(vec!["shop.example".into()]).unwrap();
    params.subject_alt_names.push(SanType::URI("spiffe://example/shop".try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// Files of a server, and what its clients need.
pub(super) struct Setting {
    dir: tempfile::TempDir,
    servers: Issuer,
    pub(super) clients: Issuer,
}

impl Setting {
    pub(super) fn new() -> Self {
        let setting =
            Self { dir: tempfile::tempdir().unwrap(), servers: authority("servers"), clients: authority("clients") };
        setting.put_certificate(&server_certificate(&setting.servers));
        setting.put("clients.pem", &setting.clients.pem());
        setting.put("token", "a-token-of-the-operators\n");
        setting.put("shop-token", "a-token-of-the-shop-1\n");
        setting.put(
            "access.toml",
            "[[caller]]\nname = 'shop'\ncertificate_names = ['spiffe://example/shop']\ntoken_files = ['shop-token']\n\
             rights = ['route', 'report']\ntenants = ['known']\n\
             [[caller]]\nname = 'operators'\ntoken_files = ['token']\nrights = ['policy_read', 'policy_write']\n",
        );
        setting.put("policy.yaml", SMALL_POLICY);
        setting
    }

    pub(super) fn put(&self, name: &str, content: &str) {
        let new = self.path("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    fn put_certificate(&self, (chain, key): &Identity) {
        self.put("server.pem", chain);
        self.put("server.key", key);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn service(&self, mutual: bool) -> Service {
        Service::start(RawConfig {
            tls_cert_file: Some(self.path("server.pem")),
            tls_key_file: Some(self.path("server.key")),
            tls_client_ca_file: mutual.then(|| self.path("clients.pem")),
            access_file: Some(self.path("access.toml")),
            policy: Some(self.path("policy.yaml").display().to_string()),
            ..RawConfig::default()
        })
    }

    /// A connection over TLS; what the handshake says where it fails.
    pub(super) async fn connect(&self, address: SocketAddr, identity: Option<&Identity>) -> Result<RawClient, String> {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client_config(&self.servers, identity)));
        let name = ServerName::try_from("localhost").unwrap();
        // With TLS 1.3 the client has shaken hands before the server has looked at its certificate: the call tells.
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        Ok(RawClient::over(stream).await)
    }
}

fn client_config(servers: &Issuer, identity: Option<&Identity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(servers.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn route(client: &RawClient, tenant: &str, headers: &[(&str, &str)]) -> Result<Answer, h2::Error> {
    let request = proto::RouteRequest { tenant: tenant.into(), ..ask("hello") };
    client.call(ROUTE, headers, &request.encode_to_vec()).await
}

#[tokio::test]
async fn only_certificates_of_the_right_authority_get_in() {
    let setting = Setting::new();
    let service = setting.service(true);
    let stranger = authority("clients");
    let own = {
        let params = CertificateParams::new(vec!["shop.example".into()]).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let expired = client_certificate(&setting.clients, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    });
    let early = client_certificate(&setting.clients, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1));
    });
    let for_servers = client_certificate(&setting.clients, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let other_name = client_certificate(&setting.clients, |params| {
        params.subject_alt_names = vec![SanType::DnsName("bakery.example".try_into().unwrap())];
    });
    let right = client_certificate(&setting.clients, |_| {});
    // What comes of a call: nothing (no connection), or a code.
    for (name, identity, expected) in [
        ("none", None, None),
        ("self-signed", Some(&own), None),
        ("of another authority of that name", Some(&client_certificate(&stranger, |_| {})), None),
        ("expired", Some(&expired), None),
        ("not yet valid", Some(&early), None),
        ("for servers", Some(&for_servers), None),
        ("a good one of somebody unknown", Some(&other_name), Some(Code::Unauthenticated)),
        ("the right one", Some(&right), Some(Code::Ok)),
    ] {
        let got = match setting.connect(service.grpc, identity).await {
            Ok(client) => route(&client, "known", &[]).await.ok().map(|answer| answer.code),
            Err(_) => None,
        };
        assert_eq!(got, expected, "{name}");
    }
    // A client that knows the server by another name than its certificate has turns away.
    let stream = TcpStream::connect(service.grpc).await.unwrap();
    let connector = TlsConnector::from(Arc::new(client_config(&setting.servers, Some(&right))));
    let refusal = connector.connect(ServerName::try_from("router.example").unwrap(), stream).await.unwrap_err();
    assert!(refusal.to_string().contains("not valid for name"), "{refusal}");
    // Plain text, an old protocol, and silence lead nowhere.
    let mut plain = TcpStream::connect(service.grpc).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer).await);
    assert!(answer.first().is_none_or(|kind| *kind == 0x15), "an alert at most: {answer:?}");
    let mut old = TcpStream::connect(service.grpc).await.unwrap();
    // A ClientHello of TLS 1.1 with one cipher suite.
    let hello = [&[3, 2][..], &[7; 32], &[0, 0, 2, 0xc0, 0x14, 1, 0]].concat();
    let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let record = [&[0x16, 3, 1][..], &length(hello.len() + 4), &[1, 0], &length(hello.len()), &hello].concat();
    old.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    drop(old.read_to_end(&mut answer).await);
    assert_eq!(answer.first(), Some(&0x15), "an alert: {answer:?}");
    assert!(service.metric("pointsman_connections_closed_early_total{reason=\"handshake\"}").unwrap() >= 3.0);
}

#[tokio::test]
async fn rights_and_tenants_are_bound_to_who_calls() {
    let setting = Setting::new();
    let service = setting.service(false);
    let client = setting.connect(service.grpc, None).await.unwrap();
    let (shop, operators) = ("Bearer a-token-of-the-shop-1", "Bearer a-token-of-the-operators");
    let long = format!("Bearer {}", "x".repeat(12 * 1024));
    let policy = "/pointsman.v1.PolicyService";
    let publish = proto::PublishPolicyRequest { document: SMALL_POLICY.into(), ..Default::default() }.encode_to_vec();
    let empty = Vec::new();
    let known = proto::RouteRequest { tenant: "known".into(), ..ask("hello") }.encode_to_vec();
    let unnamed = ask("hello").encode_to_vec();
    let other = proto::RouteRequest { tenant: "other".into(), ..ask("hello") }.encode_to_vec();
    let classify = |tenant: &str| {
        let query = Some(proto::Query { query: "hello".into(), tenant: tenant.into(), ..Default::default() });
        proto::ClassifyRequest { query }.encode_to_vec()
    };
    let health = "/grpc.health.v1.Health/Check";
    let cases: Vec<(String, Option<&str>, &[u8], Code)> = vec![
        (ROUTE.into(), None, &known, Code::Unauthenticated),
        (ROUTE.into(), Some("Bearer nobody-knows-this-one"), &known, Code::Unauthenticated),
        (ROUTE.into(), Some("Bearer "), &known, Code::Unauthenticated),
        (ROUTE.into(), Some("Basic c2hvcDpzaG9w"), &known, Code::Unauthenticated),
        (ROUTE.into(), Some(&long), &known, Code::Unauthenticated),
        (ROUTE.into(), Some(shop), &known, Code::Ok),
        (ROUTE.into(), Some(shop), &unnamed, Code::Ok),
        (ROUTE.into(), Some(shop), &other, Code::PermissionDenied),
        (ROUTE.into(), Some(operators), &known, Code::PermissionDenied),
        (format!("{policy}/GetPolicy"), Some(shop), &empty, Code::PermissionDenied),
        (format!("{policy}/GetPolicy"), Some(operators), &empty, Code::Ok),
        (format!("{policy}/PublishPolicy"), Some(shop), &publish, Code::PermissionDenied),
        (format!("{policy}/PublishPolicy"), None, &publish, Code::Unauthenticated),
        (format!("{policy}/SetProviderEnabled"), Some(shop), &empty, Code::PermissionDenied),
        (format!("{policy}/RollbackPolicy"), Some(shop), &empty, Code::PermissionDenied),
        (format!("{policy}/SetProviderEnabled"), Some(operators), &empty, Code::InvalidArgument),
        ("/pointsman.v1.Info/GetInfo".into(), Some(shop), &empty, Code::Ok),
        ("/pointsman.v1.Info/GetInfo".into(), None, &empty, Code::Unauthenticated),
        ("/pointsman.v1.Router/Fly".into(), None, &empty, Code::Unauthenticated),
        ("/pointsman.v1.Router/Fly".into(), Some(shop), &empty, Code::Unimplemented),
        (health.into(), None, &empty, Code::Ok),
    ];
    for (path, authorization, body, code) in cases {
        let headers: Vec<_> = authorization.iter().map(|value| ("authorization", *value)).collect();
        let answer = client.call(&path, &headers, body).await.unwrap();
        let shown = authorization.map(|value| value.get(..20).unwrap_or(value));
        assert_eq!(answer.code, code, "{path} by {shown:?}: {:?}", answer.status);
    }
    for (tenant, code) in [("known", Code::Ok), ("other", Code::PermissionDenied)] {
        let headers = [("authorization", shop)];
        let answer = client.call("/pointsman.v1.Router/Classify", &headers, &classify(tenant)).await.unwrap();
        // "hello" is decided by a rule; signals need the classifier, which is there.
        assert_eq!(answer.code, code, "{tenant}: {answer:?}");
    }
    let batch = proto::RouteBatchRequest {
        requests: vec![ask("hello"), proto::RouteRequest { tenant: "other".into(), ..ask("hello") }],
    };
    let answer = client
        .call("/pointsman.v1.Router/RouteBatch", &[("authorization", shop)], &batch.encode_to_vec())
        .await
        .unwrap();
    let results = proto::RouteBatchResponse::decode(answer.message.slice(5..)).unwrap().results;
    let codes: Vec<i32> = results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            proto::route_result::Result::Decision(_) => 0,
            proto::route_result::Result::Error(error) => error.code,
        })
        .collect();
    assert_eq!(codes, [0, i32::from(Code::PermissionDenied)]);

    // A token that is taken away is refused within seconds, over connections that are open.
    setting.put("shop-token", "a-token-of-the-shop-2\n");
    let refused = async || {
        let answer = route(&client, "known", &[("authorization", shop)]).await.unwrap();
        (answer.code == Code::Unauthenticated).then_some(())
    };
    eventually("the old token is refused", refused).await;
    let answer = route(&client, "known", &[("authorization", "Bearer a-token-of-the-shop-2")]).await.unwrap();
    assert_eq!(answer.code, Code::Ok);
    for reason in ["unknown", "right", "tenant"] {
        let series = format!("pointsman_calls_denied_total{{reason=\"{reason}\"}}");
        assert!(service.metric(&series).is_some_and(|n| n > 0.0), "{series}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_without_a_failed_handshake() {
    rotate(3).await;
}

/// `cargo test --test integration robustness::access -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "fifty rotations take a minute and a half"]
async fn certificates_change_fifty_times_without_a_failed_handshake() {
    rotate(50).await;
}

async fn rotate(times: usize) {
    let setting = Arc::new(Setting::new());
    let service = setting.service(true);
    let client = Arc::new(client_certificate(&setting.clients, |_| {}));
    let grpc = service.grpc;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load = tokio::spawn({
        let (setting, client, stop) = (Arc::clone(&setting), Arc::clone(&client), Arc::clone(&stop));
        async move {
            let mut n = 0_usize;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let connection = setting.connect(grpc, Some(&client)).await;
                let connection = connection.unwrap_or_else(|error| panic!("handshake {n}: {error}"));
                assert_eq!(route(&connection, "known", &[]).await.unwrap().code, Code::Ok);
                n += 1;
            }
            n
        }
    });
    let accepted =
        || service.metric("pointsman_reloads_total{what=\"certificates\",result=\"accepted\"}").unwrap_or_default();
    for i in 0..times {
        let before = accepted();
        // Chain and key are two files: between them they do not go together, which must not be put into force.
        setting.put_certificate(&server_certificate(&setting.servers));
        eventually("the new certificate", async || (accepted() > before).then_some(())).await;
        if i == 0 {
            setting.put("server.pem", "not a certificate");
            let refused = async || service.metric("pointsman_reloads_total{what=\"certificates\",result=\"refused\"}");
            eventually("the bad one is refused", refused).await;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    println!("{} handshakes during {times} rotations, none failed", load.await.unwrap());
}
