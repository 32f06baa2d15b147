//! The gRPC surface: the only code, with `serve` and `cli`'s clients, that knows tonic and prost.
//!
//! Decodes and checks requests, admits or sheds, reads the caller's deadline, calls the router, and encodes what
//! comes back. Every error becomes a gRPC status in one file, `status.rs`.

mod admission;
pub mod codec;
mod convert;
mod deadline;
mod diff;
mod front;
mod info_service;
mod methods;
mod policy_service;
pub mod proto;
mod router_service;
mod simulate;
mod status;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tonic::Status;

pub use front::{Front, Peer};
pub use info_service::InfoService;
pub use policy_service::PolicyApi;
pub use router_service::RouterApi;

use crate::router::Router;
use crate::telemetry::Metrics;
use admission::Admission;

/// What all services share.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Set once the model has answered a warm-up query; until then calls are UNAVAILABLE.
    ready: Arc<OnceLock<Ready>>,
    admission: Admission,
    /// Calls whose answers have not gone out whole, but for health checks.
    open_calls: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

/// The parts that exist once the service is warm.
#[derive(Debug)]
pub struct Ready {
    /// Decides.
    pub router: Router,
    /// When it was warm.
    pub since: SystemTime,
}

impl Backend {
    /// A backend that is not ready yet and answers at most `max_in_flight` requests at a time.
    pub fn new(metrics: Arc<Metrics>, max_in_flight: usize) -> Self {
        Self { ready: Arc::default(), admission: Admission::new(max_in_flight), open_calls: Arc::default(), metrics }
    }

    /// From now on requests are answered by `router`. Later calls change nothing.
    pub fn set_ready(&self, router: Router) {
        let ready = Ready { router, since: SystemTime::now() };
        if self.ready.set(ready).is_err() {
            tracing::debug!("the service was ready before");
        }
    }

    /// The parts that exist once the service is warm.
    pub fn ready(&self) -> Option<&Ready> {
        self.ready.get()
    }

    /// Calls whose answers have not gone out whole, open streams included, health checks not.
    pub fn in_flight(&self) -> usize {
        self.open_calls.load(Ordering::SeqCst)
    }

    /// Every metric.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn router(&self) -> Result<&Router, Box<Status>> {
        self.ready().map(|ready| &ready.router).ok_or_else(|| Box::new(status::not_ready()))
    }
}
