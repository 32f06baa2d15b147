//! TLS of the gRPC server: certificates from files, read again when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::TlsConfig;
use crate::rpc::Peer;

/// The certificates in force.
#[derive(Debug)]
pub(super) struct TlsStore {
    files: TlsConfig,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    fingerprint: [u8; 32],
}

/// A file for TLS cannot be used; the operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// It cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has not what it should have.
    #[error("{} has no PEM {what}", .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// Certificate and key do not go together, or a certificate is none.
    #[error("the certificates cannot be used")]
    Unusable(#[from] rustls::Error),
    /// The clients' authorities cannot be used.
    #[error("the clients' authorities cannot be used")]
    ClientAuthorities(#[from] VerifierBuilderError),
}

// === impl TlsStore ===

impl TlsStore {
    /// Reads the files for the first time.
    pub(super) fn open(files: TlsConfig) -> Result<Self, ServerTlsError> {
        let current = ArcSwap::from_pointee(Current::read(&files)?);
        Ok(Self { files, current })
    }

    /// Reads the files again; true when they have changed. New connections get the new certificates; files that cannot
    /// be used leave those in force.
    pub(super) fn refresh(&self) -> Result<bool, ServerTlsError> {
        if fingerprint(&self.files)? == self.current.load().fingerprint {
            return Ok(false);
        }
        self.current.store(Arc::new(Current::read(&self.files)?));
        Ok(true)
    }

    /// The handshake, and whom it leads to.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Peer)> {
        let config = Arc::clone(&self.current.load().config);
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let certificate_names = certificate.map(names).unwrap_or_default().into();
        Ok((stream, Peer { certificate_names }))
    }
}

// === impl Current ===

impl Current {
    fn read(files: &TlsConfig) -> Result<Self, ServerTlsError> {
        // First, so that a change while the files are read shows at the next look.
        let fingerprint = fingerprint(files)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match &files.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|_| ServerTlsError::Pem { path: files.key.clone(), what: "private key" })?;
        let mut config = builder.with_single_cert(certificates(&files.chain)?, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config), fingerprint })
    }
}

fn fingerprint(files: &TlsConfig) -> Result<[u8; 32], ServerTlsError> {
    let mut hash = Sha256::new();
    for path in [&files.chain, &files.key].into_iter().chain(&files.client_authorities) {
        hash.update(Sha256::digest(read(path)?));
    }
    Ok(hash.finalize().into())
}

/// DNS and URI names of a certificate that the handshake has verified.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_dns_names().chain(certificate.valid_uri_names()).map(str::to_owned).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, ServerTlsError> {
    std::fs::read(path).map_err(|source| ServerTlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerTlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(ServerTlsError::Pem { path: path.to_owned(), what: "certificate" }),
    }
}
