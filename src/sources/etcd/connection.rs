//! Connections to the members of an etcd cluster, and the token that shows who is asking.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::api::auth_client::AuthClient;
use super::api::kv_client::KvClient;
use super::api::{AuthenticateRequest, TxnRequest, TxnResponse};
use crate::policy::MAX_DOCUMENT_BYTES;
use crate::sources::SourceError;
use crate::sources::tls::{TlsError, TlsFiles};

/// The members of a cluster; one is talked to until it fails, then the next.
#[derive(Debug)]
pub(super) struct Connection {
    members: Vec<Channel>,
    current: AtomicUsize,
    place: String,
    /// Holds `name:password`.
    secret: Option<PathBuf>,
    token: ArcSwapOption<MetadataValue<Ascii>>,
    timeout: Duration,
}

/// A dead connection is noticed within the sum of both, also when only a watch is on it.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A document, its signatures and what is around them.
pub(super) const MAX_MESSAGE_BYTES: usize = MAX_DOCUMENT_BYTES + 64 * 1024;

// === impl Connection ===

impl Connection {
    /// Connects when first used. Has to be called within a runtime.
    pub(super) fn new(
        members: &[String],
        place: String,
        secret: Option<PathBuf>,
        tls: Option<&TlsFiles>,
        timeout: Duration,
    ) -> Result<Self, TlsError> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let tls = tls.map(TlsFiles::tonic).transpose()?;
        let connect = |member: &String| {
            let endpoint = Endpoint::from_shared(format!("{scheme}://{member}"))?
                .connect_timeout(timeout)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            let endpoint = match &tls {
                Some(tls) => endpoint.tls_config(tls.clone())?,
                None => endpoint,
            };
            Ok(endpoint.connect_lazy())
        };
        let members = members.iter().map(connect).collect::<Result<_, TlsError>>()?;
        Ok(Self { members, current: AtomicUsize::new(0), place, secret, token: ArcSwapOption::empty(), timeout })
    }

    /// One transaction, by the first member that answers; together they have the time limit.
    ///
    /// Asking the next member is safe for a write too, since it compares: what was done already is a conflict.
    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, SourceError> {
        let members = self.members.len();
        let each = self.timeout / u32::try_from(members).unwrap_or(u32::MAX);
        let mut left = members;
        loop {
            let answer = tokio::time::timeout(each, self.txn_with_token(request.clone())).await;
            let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time").into()));
            let before = self.current.load(Ordering::Relaxed);
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => self.failed(error),
            };
            left -= 1;
            if left == 0 || self.current.load(Ordering::Relaxed) == before {
                return Err(error);
            }
        }
    }

    /// A token that has expired is replaced once.
    async fn txn_with_token(&self, request: TxnRequest) -> Result<TxnResponse, CallError> {
        match self.try_txn(request.clone()).await {
            Err(CallError::Status(status)) if self.forget_token(&status) => self.try_txn(request).await,
            other => other,
        }
    }

    async fn try_txn(&self, request: TxnRequest) -> Result<TxnResponse, CallError> {
        let mut client = KvClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let request = self.authorize(Request::new(request)).await?;
        Ok(client.txn(request).await?.into_inner())
    }

    /// Adds the token, if there is a secret; fetches one first where there is none.
    pub(super) async fn authorize<T>(&self, mut request: Request<T>) -> Result<Request<T>, CallError> {
        let Some(path) = &self.secret else { return Ok(request) };
        let token = if let Some(token) = self.token.load_full() {
            token
        } else {
            let failed = |source| CallError::Secret { path: path.display().to_string(), source };
            let text = tokio::fs::read_to_string(path).await.map_err(failed)?;
            let (name, password) = text.trim().split_once(':').ok_or_else(|| {
                failed(std::io::Error::other("it is not one line with a name, a colon and a password"))
            })?;
            let who = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
            let answer = AuthClient::new(self.channel()).authenticate(who).await?.into_inner();
            let mut token: MetadataValue<Ascii> =
                answer.token.parse().map_err(|_| Status::internal("the token is no header value"))?;
            token.set_sensitive(true);
            let token = Arc::new(token);
            self.token.store(Some(Arc::clone(&token)));
            token
        };
        request.metadata_mut().insert("token", (*token).clone());
        Ok(request)
    }

    /// The member that is talked to.
    pub(super) fn channel(&self) -> Channel {
        let index = self.current.load(Ordering::Relaxed) % self.members.len();
        self.members.get(index).cloned().unwrap_or_else(|| Endpoint::from_static("http://[::]:0").connect_lazy())
    }

    /// Forgets the token if `status` says that it is not valid any more.
    pub(super) fn forget_token(&self, status: &Status) -> bool {
        let stale = status.code() == Code::Unauthenticated || status.message().contains("invalid auth token");
        stale && self.token.swap(None).is_some()
    }

    /// Goes on to the next member if this one is at fault.
    pub(super) fn failed(&self, error: CallError) -> SourceError {
        match error {
            CallError::Status(status) => {
                self.forget_token(&status);
                let at_fault =
                    [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown, Code::Internal];
                if at_fault.contains(&status.code()) {
                    self.current.fetch_add(1, Ordering::Relaxed);
                }
                SourceError::Unreachable { place: self.place.clone(), source: Box::new(Told::new(&status)) }
            }
            CallError::Secret { path, source } => SourceError::Secret { path, source },
        }
    }
}

/// Why a call came to nothing.
#[derive(Debug)]
pub(super) enum CallError {
    Status(Status),
    Secret { path: String, source: std::io::Error },
}

/// What a member, or the connection to it, said; a status shows itself with everything that is in it.
#[derive(Debug, thiserror::Error)]
#[error("{code:?}: {text}")]
struct Told {
    code: Code,
    text: String,
}

// === impl Told ===

impl Told {
    fn new(status: &Status) -> Self {
        // Of a connection that failed, the last cause says why.
        let first = std::error::Error::source(status);
        let cause = std::iter::successors(first, |error| error.source()).last();
        let text = cause.map_or_else(|| status.message().to_owned(), ToString::to_string);
        Self { code: status.code(), text }
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}
