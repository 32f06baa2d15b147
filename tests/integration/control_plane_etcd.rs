//! A real etcd for the tests, as a process on loopback.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pointsman::sources::{EtcdPlace, EtcdSource, Fetched, PolicySource as _, TlsFiles, WriteError};

use super::support::eventually;

/// A real etcd on ports of its own.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) client: SocketAddr,
    peer: SocketAddr,
    dir: tempfile::TempDir,
    tls: Option<EtcdTls>,
}

/// What both sides show each other.
#[derive(Clone)]
pub(crate) struct EtcdTls {
    /// PEM files of the server's certificate and key.
    pub(crate) server: (std::path::PathBuf, std::path::PathBuf),
    /// What clients show, and trust; the server trusts the same.
    pub(crate) client: TlsFiles,
}

// === impl Etcd ===

impl Etcd {
    /// `None`, and a word about it, where there is no etcd on the path.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(None).await
    }

    /// The same over TLS, only for clients with a certificate.
    pub(crate) async fn start_with(tls: Option<EtcdTls>) -> Option<Self> {
        let installed = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            println!("skipped: there is no etcd on the path (Debian: apt-get install etcd-server)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (free_address(), free_address());
        let child = spawn_etcd(&dir, client, peer, tls.as_ref());
        let etcd = Self { child, client, peer, dir, tls };
        etcd.await_ready().await;
        Some(etcd)
    }

    /// Stops the process; its data stays.
    pub(crate) fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Starts it again on the same ports, with the same data.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.child = spawn_etcd(&self.dir, self.client, self.peer, self.tls.as_ref());
        self.await_listening().await;
    }

    /// Starts it again with nothing in it, as after a loss without a backup.
    pub(crate) async fn restart_empty(&mut self) {
        self.kill();
        self.dir = tempfile::tempdir().unwrap();
        self.child = spawn_etcd(&self.dir, self.client, self.peer, self.tls.as_ref());
        self.await_ready().await;
    }

    pub(crate) fn url(&self, key: &str) -> String {
        format!("{}://{}{key}", if self.tls.is_some() { "etcds" } else { "etcd" }, self.client)
    }

    pub(crate) fn source(&self, key: &str) -> EtcdSource {
        let place = EtcdPlace {
            members: vec![self.client.to_string()],
            key: key.to_owned(),
            tls: self.tls.as_ref().map(|tls| tls.client.clone()),
        };
        EtcdSource::new(place, None, Duration::from_secs(5)).unwrap()
    }

    /// Writes a key as an operator does with etcdctl, whatever is there.
    pub(crate) async fn put(&self, key: &str, document: &str, signature: Option<&str>) {
        let source = self.source(key);
        let seen = match source.fetch(None).await {
            Ok(Fetched::Document { revision, .. }) => Some(revision),
            Ok(Fetched::Unchanged) => unreachable!("nothing was seen"),
            Err(_) => None,
        };
        source.write(document.as_bytes(), signature, seen.as_deref()).await.unwrap();
    }

    /// A call of etcd's JSON gateway, for what Pointsman itself never does.
    pub(crate) fn call(&self, path: &str, body: &str) {
        use std::io::{Read as _, Write as _};

        let mut stream = std::net::TcpStream::connect(self.client).unwrap();
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }

    /// Ready enough to refuse a stranger.
    async fn await_listening(&self) {
        let answers = async || {
            self.source("/ready").fetch(None).await.map_or_else(
                |error| {
                    let told = format!("{error:?}");
                    (told.contains("token") || told.contains("Absent") || told.contains("user name is empty"))
                        .then_some(())
                },
                |_| Some(()),
            )
        };
        eventually("etcd answers", answers).await;
    }

    async fn await_ready(&self) {
        let source = self.source("/ready");
        let ready = async || match source.write(b"x", None, None).await {
            Ok(_) | Err(WriteError::Conflict) => Some(()),
            Err(_) => None,
        };
        eventually("etcd is ready", ready).await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn_etcd(dir: &tempfile::TempDir, client: SocketAddr, peer: SocketAddr, tls: Option<&EtcdTls>) -> Child {
    let (client, peer) =
        (format!("{}://{client}", if tls.is_some() { "https" } else { "http" }), format!("http://{peer}"));
    let mut command = Command::new("etcd");
    command
        .args(["--name", "test", "--log-level", "error", "--data-dir"])
        .arg(dir.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")]);
    if let Some(EtcdTls { server: (certificate, key), client }) = tls {
        command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(client.authorities.as_ref().unwrap());
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
