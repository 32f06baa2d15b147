//! Every metric and trace, and the set-up of logs, in one place.
//!
//! Names follow Prometheus conventions: base units, `_total` on counters. Logs hold lengths and hashes, never text.

mod logs;
mod metrics;
mod outcomes;
pub mod traces;
mod transport;

pub use logs::{LogFormat, check_log_filter, init_logs};
pub use metrics::{CacheResult, LogFate, Metrics, PolicyGauges, Stage};
pub use outcomes::{BreakerGauge, OutcomeMetrics, SessionEffect};
pub use traces::{TraceOptions, Traces, TracesError};
pub use transport::{Closed, Reload, SpanFate, TransportMetrics};
