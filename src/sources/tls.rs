//! What a source over TLS trusts and how it shows who it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// PEM files; read once, at the start.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsFiles {
    /// Authorities to trust in place of the public ones.
    pub authorities: Option<PathBuf>,
    /// This client's certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A file for TLS cannot be used; the operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It has not what it should have.
    #[error("{} has no PEM {what}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// Certificate and key do not go together, or the certificate cannot be trusted.
    #[error("the certificates cannot be used")]
    Unusable(#[from] rustls::Error),
    /// The same, as the gRPC client tells it.
    #[error("the certificates cannot be used for gRPC")]
    Grpc(#[from] tonic::transport::Error),
}

// === impl TlsFiles ===

impl TlsFiles {
    /// For HTTPS.
    pub(super) fn rustls(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match &self.authorities {
            None => builder.with_webpki_roots(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate)?;
                }
                builder.with_root_certificates(roots)
            }
        };
        Ok(match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let private = PrivateKeyDer::from_pem_slice(&read(key)?)
                    .map_err(|_| TlsError::Pem { path: key.clone(), what: "private key" })?;
                builder.with_client_auth_cert(certificates(chain)?, private)?
            }
        })
    }

    /// For gRPC; the same files are checked as for HTTPS, so that a mistake shows at the start.
    pub(super) fn tonic(&self) -> Result<ClientTlsConfig, TlsError> {
        self.rustls()?;
        let mut config = ClientTlsConfig::new();
        config = match &self.authorities {
            None => config.with_webpki_roots(),
            Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
        };
        if let Some((chain, key)) = &self.identity {
            config = config.identity(Identity::from_pem(read(chain)?, read(key)?));
        }
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::Pem { path: path.to_owned(), what: "certificate" }),
    }
}
