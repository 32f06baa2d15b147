//! Traces: where the time of a call went, sent to an OpenTelemetry collector (`--features otel`).
//!
//! A call is a span and has one for each query in it (`decide`), which has one for each stage. They hold what this service
//! has decided, counted and measured, and nothing that a caller has written: no text, no id, no tenant.
//! A decision is found in the logs by its id. A call that is not sampled costs a look at its headers.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;

use super::{Metrics, Stage};
use crate::domain::Decision;

#[cfg(feature = "otel")]
#[path = "otel.rs"]
mod backend;

/// Without the feature nothing is ever sent, which types say: there is no sender and no span.
#[cfg(not(feature = "otel"))]
mod backend {
    use super::{Arc, Decision, Duration, HeaderMap, Instant, Metrics, TraceOptions, TracesError};

    #[derive(Debug)]
    pub(super) enum Sender {}

    #[derive(Debug)]
    pub(super) enum Recording {}

    impl Sender {
        pub(super) fn start(_: &TraceOptions, _: Arc<Metrics>) -> Result<Self, TracesError> {
            Err(TracesError::NotBuilt)
        }

        pub(super) fn call(&self, _: &'static str, _: &HeaderMap, _: Instant) -> Option<Recording> {
            match *self {}
        }

        pub(super) fn finish(&self, _: Duration) {
            match *self {}
        }
    }

    impl Recording {
        pub(super) fn part(&self, _: &'static str) -> Self {
            match *self {}
        }

        pub(super) fn stage(&self, _: &'static str, _: Instant, _: Duration) {
            match *self {}
        }

        pub(super) fn decided(&self, _: &Decision) {
            match *self {}
        }

        pub(super) fn answered(&self, _: i32) {
            match *self {}
        }
    }
}

/// Where traces go, and of how many calls.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// The collector, `http://HOST:PORT` or `https://HOST:PORT`, which is spoken to over gRPC.
    pub endpoint: String,
    /// Of the calls whose caller does not say whether to trace them, this share is.
    pub sample_ratio: f64,
}

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// This program cannot send any.
    #[error("traces are not part of this build; build with --features otel")]
    NotBuilt,
    /// The collector's address cannot be used.
    #[error("the collector's address cannot be used: {0}")]
    Endpoint(String),
}

/// Makes spans of calls and sends them; the default makes none.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<backend::Sender>>);

/// A call or a part of one, until its last copy is dropped; nothing where the call is not traced.
#[derive(Clone, Debug, Default)]
pub struct Span(Option<Arc<backend::Recording>>);

tokio::task_local! {
    /// What runs now. Stages are told to it, so that those who work need not know who watches.
    static CURRENT: Span;
}

// === impl Traces ===

impl Traces {
    /// Whether this program can send traces at all.
    ///
    /// # Errors
    /// When it was built without.
    pub fn check_built() -> Result<(), TracesError> {
        if cfg!(feature = "otel") { Ok(()) } else { Err(TracesError::NotBuilt) }
    }

    /// Sends traces from now on. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// When the address cannot be used. Whether anybody listens there is not looked at: traces are sent when they can be.
    pub fn start(options: &TraceOptions, metrics: Arc<Metrics>) -> Result<Self, TracesError> {
        backend::Sender::start(options, metrics).map(|sender| Self(Some(Arc::new(sender))))
    }

    /// The span of a call that has arrived, continuing its caller's trace where `headers` name one.
    pub fn call(&self, method: &'static str, headers: &HeaderMap, arrived: Instant) -> Span {
        Span(self.0.as_ref().and_then(|sender| sender.call(method, headers, arrived)).map(Arc::new))
    }

    /// Sends what is left, for at most `timeout`; blocks meanwhile.
    pub fn finish(&self, timeout: Duration) {
        if let Some(sender) = &self.0 {
            sender.finish(timeout);
        }
    }
}

// === impl Span ===

impl Span {
    /// A part of what runs now, from now on.
    pub fn part(name: &'static str) -> Self {
        let part = CURRENT.try_with(|current| current.0.as_ref().map(|recording| Arc::new(recording.part(name))));
        Self(part.ok().flatten())
    }

    /// Runs `work` as this.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// The same for work that does not wait.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.0.is_some() { CURRENT.sync_scope(self.clone(), work) } else { work() }
    }

    /// A stage of this that began at `started` and took `took`.
    pub fn stage(&self, name: &'static str, started: Instant, took: Duration) {
        if let Some(recording) = &self.0 {
            recording.stage(name, started, took);
        }
    }

    /// What this came to, where it is a query's.
    pub fn decided(&self, decision: &Decision) {
        if let Some(recording) = &self.0 {
            recording.decided(decision);
        }
    }

    /// The gRPC code that the call was answered with; a call that is dropped without one was cancelled.
    pub fn answered(&self, code: i32) {
        if let Some(recording) = &self.0 {
            recording.answered(code);
        }
    }
}

/// Tells what runs now of a stage that has ended.
pub fn stage(stage: Stage, started: Instant, took: Duration) {
    // Outside of any call there is nobody to tell.
    CURRENT.try_with(|current| current.stage(stage.name(), started, took)).unwrap_or_default();
}
