//! How many requests are answered at a time, over all connections. How much work they may make is the queue's matter
//! (`batch`), since only it knows what waits.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::Metrics;

/// Admits requests up to a limit and refuses the rest at once: a queue in front of a queue only adds latency.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    permits: Arc<Semaphore>,
}

/// Room for one request; returned on drop.
#[derive(Debug)]
pub(super) struct Admitted {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

/// All room is taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the server is at its limit of requests in flight")]
pub(super) struct Overloaded;

impl Admission {
    pub(super) fn new(limit: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))) }
    }

    /// Takes room for one request, or refuses.
    pub(super) fn admit(&self, metrics: &Arc<Metrics>) -> Result<Admitted, Overloaded> {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => {
                metrics.request_started();
                Ok(Admitted { _permit: permit, metrics: Arc::clone(metrics) })
            }
            Err(_) => {
                metrics.record_shed();
                Err(Overloaded)
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.metrics.request_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back() {
        let (admission, metrics) = (Admission::new(1), Arc::new(Metrics::new()));
        let first = admission.admit(&metrics).unwrap();
        assert_eq!(admission.admit(&metrics).unwrap_err(), Overloaded);
        drop(first);
        assert!(admission.admit(&metrics).is_ok());
    }
}
