//! A policy behind an HTTP or HTTPS address.
//!
//! One `GET` a look, conditional on the `ETag` seen last. What comes back is bounded in bytes, before and after gzip,
//! and in time, over the whole answer. Redirects are not followed: the secret would follow them to wherever they point.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, USER_AGENT,
};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::tls::{TlsError, TlsFiles};
use super::{DEFAULT_TTL, Fetch, Fetched, PolicySource, SourceError};
use crate::policy::{MAX_DOCUMENT_BYTES, sha256_hex};

/// The document at an address.
#[derive(Debug)]
pub struct HttpSource {
    uri: Uri,
    place: String,
    /// Holds the whole `Authorization` value; read for every request, so that it can be changed while running.
    secret: Option<PathBuf>,
    timeout: Duration,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// Carries the document's signatures, as a `.sig` file has them.
const SIGNATURE_HEADER: HeaderName = HeaderName::from_static("pointsman-signature");
/// An answer takes less than the TTL, so that looks do not pile up and a change is still in force within it.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUT_SHARE: f64 = 0.6;
/// Longer than the longest pause between two looks, so that one connection serves them all.
const IDLE_CONNECTION: Duration = Duration::from_secs(90);

// === impl HttpSource ===

impl HttpSource {
    /// The document at `uri`, looked at every `ttl` or so.
    ///
    /// # Errors
    /// When a file for TLS cannot be used.
    pub fn new(uri: Uri, secret: Option<PathBuf>, tls: &TlsFiles, ttl: Duration) -> Result<Self, TlsError> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls.rustls()?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(1)
            .build(connector);
        // A query may hold a token, so people and metrics are told the rest.
        let place = uri.to_string().split(['?', '#']).next().unwrap_or_default().to_owned();
        Ok(Self { uri, place, secret, timeout: timeout_for(ttl), client })
    }

    async fn get(&self, seen: Option<&str>) -> Result<Fetched, SourceError> {
        // A revision that is an ETag begins with a quotation mark; one that we made up does not.
        let known = seen.filter(|seen| seen.starts_with(['"', 'W']));
        let response = self.client.request(self.request(known).await?).await;
        let response = response.map_err(|error| self.unreachable(error))?;
        match response.status() {
            StatusCode::OK => self.document(response).await,
            StatusCode::NOT_MODIFIED if known.is_some() => Ok(Fetched::Unchanged),
            status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                Err(SourceError::Redirected { place: self.place(), status: status.as_u16() })
            }
            status => Err(SourceError::Refused { place: self.place(), status: status.as_u16() }),
        }
    }

    async fn request(&self, known: Option<&str>) -> Result<Request<Empty<Bytes>>, SourceError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/yaml, application/json, text/plain, */*"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("pointsman/", env!("CARGO_PKG_VERSION"))));
        if let Some(etag) = known.and_then(|etag| HeaderValue::from_str(etag).ok()) {
            headers.insert(IF_NONE_MATCH, etag);
        }
        if let Some(path) = &self.secret {
            let failed = |source| SourceError::Secret { path: path.display().to_string(), source };
            let text = tokio::fs::read_to_string(path).await.map_err(failed)?;
            let not_a_header = |_| failed(std::io::Error::other("it is not one line of text"));
            let mut value = HeaderValue::from_str(text.trim()).map_err(not_a_header)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(request)
    }

    async fn document(&self, response: Response<Incoming>) -> Result<Fetched, SourceError> {
        let (head, body) = response.into_parts();
        let announced = text_of(&head.headers, &CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        if announced.is_some_and(|length| length > MAX_DOCUMENT_BYTES as u64) {
            return Err(self.too_large());
        }
        let received = self.read(body).await?;
        let bytes = match text_of(&head.headers, &CONTENT_ENCODING).map(str::to_ascii_lowercase).as_deref() {
            None | Some("identity") => received.to_vec(),
            Some("gzip" | "x-gzip") => self.unpack(received).await?,
            Some(other) => {
                let problem = format!("content encoding {other:?}, which was not asked for");
                return Err(SourceError::BadAnswer { place: self.place(), problem });
            }
        };
        let etag = text_of(&head.headers, &ETAG).filter(|etag| etag.starts_with(['"', 'W']));
        let revision = etag.map_or_else(|| format!("sha256:{}", sha256_hex(&bytes)), str::to_owned);
        let signature = text_of(&head.headers, &SIGNATURE_HEADER).map(str::to_owned);
        Ok(Fetched::Document { bytes, signature, revision })
    }

    async fn read(&self, mut body: Incoming) -> Result<Bytes, SourceError> {
        let mut received = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.unreachable(error))?;
            if let Ok(data) = frame.into_data() {
                if received.len() + data.len() > MAX_DOCUMENT_BYTES {
                    return Err(self.too_large());
                }
                received.extend_from_slice(&data);
            }
        }
        Ok(received.freeze())
    }

    /// Off the request threads: a mebibyte takes milliseconds.
    async fn unpack(&self, packed: Bytes) -> Result<Vec<u8>, SourceError> {
        let unpacked = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            // One byte more than allowed tells a document of just the limit from a longer one.
            let limit = MAX_DOCUMENT_BYTES as u64 + 1;
            GzDecoder::new(packed.as_ref()).take(limit).read_to_end(&mut bytes).map(|_| bytes)
        });
        match unpacked.await {
            Ok(Ok(bytes)) if bytes.len() > MAX_DOCUMENT_BYTES => Err(self.too_large()),
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(_)) | Err(_) => {
                Err(SourceError::BadAnswer { place: self.place(), problem: "a body that is not gzip".into() })
            }
        }
    }

    fn unreachable(&self, error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
        SourceError::Unreachable { place: self.place(), source: Box::new(error) }
    }

    fn too_large(&self) -> SourceError {
        SourceError::TooLarge { place: self.place(), limit: MAX_DOCUMENT_BYTES }
    }
}

impl PolicySource for HttpSource {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn poll_interval(&self) -> Option<Duration> {
        Some(DEFAULT_TTL)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a> {
        Box::pin(async move {
            let answered = tokio::time::timeout(self.timeout, self.get(seen)).await;
            answered.unwrap_or_else(|_| Err(SourceError::TimedOut { place: self.place(), after: self.timeout }))
        })
    }
}

/// How long a look may take where a change has to be in force within `ttl`.
pub(super) fn timeout_for(ttl: Duration) -> Duration {
    LONGEST_TIMEOUT.min(ttl.mul_f64(TIMEOUT_SHARE))
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}
