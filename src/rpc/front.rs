//! What every call passes before a service sees it, and its answer on the way out: who calls, the deadline, admission,
//! limits, panics.
//!
//! tonic answers a deadline that has passed with CANCELLED, and counts from when it gets to the call; here it is
//! DEADLINE_EXCEEDED, counted from arrival, for the body of a request and of an answer too. Everything is refused
//! before the body is read.

use std::future::Future as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Extensions, Status};
use tower::Service as _;

use super::admission::Admitted;
use super::methods::{self, For, Method};
use super::{Backend, deadline, status};
use crate::access::{AccessStore, Caller, Denied, Right, Shown};
use crate::telemetry::Traces;
use crate::telemetry::traces::Span;

/// Whom a connection leads to.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// DNS and URI names in its verified certificate.
    pub certificate_names: Arc<[String]>,
}

/// All services behind their common checks.
#[derive(Clone, Debug)]
pub struct Front {
    routes: Routes,
    backend: Backend,
    access: Option<Arc<AccessStore>>,
    traces: Traces,
}

/// A call that is counted until the last byte of its answer has been handed to the connection.
#[derive(Debug)]
struct OpenCall {
    calls: Arc<AtomicUsize>,
}

/// What a call holds until it has ended.
#[derive(Debug, Default)]
struct Held {
    _open: Option<OpenCall>,
    _admitted: Option<Admitted>,
}

/// A request's body with a limit.
struct Incoming<B> {
    body: B,
    left: usize,
}

/// An answer's body that ends at the deadline and holds what the call holds.
struct Outgoing {
    body: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    backend: Backend,
    ended: bool,
    span: Span,
    _held: Held,
}

/// A call without deadline that is not open-ended ends after this: a peer that sends its request byte by byte must not
/// hold a place for ever.
const UNARY_LIMIT: Duration = Duration::from_secs(60);

// === impl Front ===

impl Front {
    /// Answers with `routes`; callers are let in by `access`, everybody without it.
    pub fn new(routes: Routes, backend: Backend, access: Option<Arc<AccessStore>>) -> Self {
        Self { routes: routes.prepare(), backend, access, traces: Traces::default() }
    }

    /// Traces calls from now on; not health checks, which would be most of what is seen.
    #[must_use]
    pub fn with_traces(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// Answers one call.
    pub async fn answer<B>(&self, mut request: Request<B>, peer: &Peer) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let arrived = Instant::now();
        let method = methods::of_path(request.uri().path());
        let is_traced = method.for_whom != For::Everybody;
        let span = if is_traced { self.traces.call(method.name, request.headers(), arrived) } else { Span::default() };
        let refuse = |status: Box<Status>| {
            span.answered(status.code().into());
            self.backend.metrics().record_request(method.name, format!("{:?}", status.code()));
            status.into_http()
        };
        let deadline = deadline::of_headers(request.headers(), arrived);
        let held = match self.let_in(&mut request, method, peer, deadline.is_some_and(|deadline| deadline <= arrived)) {
            Ok(held) => held,
            Err(status) => return refuse(status),
        };
        span.stage("admission", arrived, arrived.elapsed());
        if let Some(deadline) = deadline {
            deadline::attach(request.extensions_mut(), deadline);
        }
        let left = method.max_body.unwrap_or(usize::MAX);
        let mut routes = self.routes.clone();
        // A panic costs the call, not the connection with all its other calls.
        let answer = routes.call(request.map(|body| Incoming { body, left }));
        let answer = AssertUnwindSafe(span.clone().scope(answer)).catch_unwind();
        let until = deadline.or_else(|| (!method.is_open_ended).then(|| arrived + UNARY_LIMIT));
        let answered = match until {
            Some(until) => tokio::time::timeout_at(until.into(), answer).await,
            None => Ok(answer.await),
        };
        match answered {
            Ok(Ok(Ok(response))) => {
                tell_code(&span, response.headers());
                response.map(|body| {
                    let deadline = until.map(|until| Box::pin(tokio::time::sleep_until(until.into())));
                    let backend = self.backend.clone();
                    Body::new(Outgoing { body, deadline, backend, ended: false, span, _held: held })
                })
            }
            Ok(Err(_)) => {
                self.backend.metrics().transport().record_panic();
                refuse(Box::new(status::panicked()))
            }
            Err(_) => refuse(Box::new(status::deadline_passed())),
        }
    }

    fn let_in<B>(
        &self,
        request: &mut Request<B>,
        method: &Method,
        peer: &Peer,
        expired: bool,
    ) -> Result<Held, Box<Status>> {
        let metrics = self.backend.metrics();
        if let Some(access) = &self.access
            && method.for_whom != For::Everybody
        {
            let shown = Shown {
                authorization: request.headers().get("authorization").map(HeaderValue::as_bytes),
                certificate_names: &peer.certificate_names,
            };
            let right = match method.for_whom {
                For::Right(right) => Some(right),
                For::Everybody | For::Callers => None,
            };
            let caller = access.now().authorise(shown, right).map_err(|denied| {
                metrics.transport().record_denied(if denied == Denied::Unknown { "unknown" } else { "right" });
                Box::new(status::denied(denied))
            })?;
            request.extensions_mut().insert(caller);
        }
        if expired {
            return Err(Box::new(status::deadline_passed()));
        }
        let open = (method.for_whom != For::Everybody).then(|| OpenCall::new(&self.backend.open_calls));
        let admitted = match method.is_work.then(|| self.backend.admission.admit(metrics)) {
            Some(Ok(admitted)) => Some(admitted),
            Some(Err(overloaded)) => return Err(Box::new(status::overloaded(overloaded))),
            None => None,
        };
        Ok(Held { _open: open, _admitted: admitted })
    }
}

/// Tells a call's span the code in the headers or trailers of its answer, if it is there.
fn tell_code(span: &Span, headers: &HeaderMap) {
    if let Some(code) = headers.get("grpc-status") {
        span.answered(Code::from_bytes(code.as_bytes()).into());
    }
}

/// The tenant that a call is for: the one it names, where its caller may call for that one.
pub(super) fn tenant_of(extensions: &Extensions, named: String, backend: &Backend) -> Result<String, Box<Status>> {
    let Some(caller) = extensions.get::<Arc<Caller>>() else { return Ok(named) };
    caller.tenant(named).ok_or_else(|| {
        backend.metrics().transport().record_denied("tenant");
        Box::new(status::other_tenant(caller.name()))
    })
}

/// The only tenants that a call may speak for; `None`: any.
pub(super) fn tenants_of(extensions: &Extensions) -> Option<&[String]> {
    extensions.get::<Arc<Caller>>().and_then(|caller| caller.tenants())
}

/// Whether a call's caller has `right`; everybody has where nobody is asked who they are.
pub(super) fn has_right(extensions: &Extensions, right: Right) -> bool {
    extensions.get::<Arc<Caller>>().is_none_or(|caller| caller.has(right))
}

// === impl OpenCall ===

impl OpenCall {
    fn new(calls: &Arc<AtomicUsize>) -> Self {
        calls.fetch_add(1, Ordering::SeqCst);
        Self { calls: Arc::clone(calls) }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

// === impl Incoming ===

impl<B> HttpBody for Incoming<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let n = frame.data_ref().map_or(0, Bytes::remaining);
        match self.left.checked_sub(n) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            None => Poll::Ready(Some(Err(Box::new(status::too_large())))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// Ends the answer with `status`, and whatever was still making it.
    fn end(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        self.span.answered(status.code().into());
        self.body = Body::empty();
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // A stream's answers are made as they are asked for.
        let Self { body, span, .. } = &mut *self;
        match span.enter(|| catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(context)))) {
            Ok(Poll::Pending) => {}
            Ok(frame) => {
                if let Poll::Ready(Some(Ok(frame))) = &frame
                    && let Some(trailers) = frame.trailers_ref()
                {
                    tell_code(&self.span, trailers);
                }
                return frame;
            }
            Err(_) => {
                self.backend.metrics().transport().record_panic();
                return self.end(&status::panicked());
            }
        }
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
            return self.end(&status::deadline_passed());
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
