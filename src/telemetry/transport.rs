//! Metrics of connections, credentials and reloads.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Metrics of what happens before and beside decisions.
#[derive(Debug, Default)]
pub struct TransportMetrics {
    connections: Gauge,
    connections_closed: Family<ReasonLabels, Counter>,
    denied: Family<ReasonLabels, Counter>,
    panics: Counter,
    reloads: Family<ReloadLabels, Counter>,
    spans: Family<SpanLabels, Counter>,
}

/// Why the server closed a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closed {
    /// There were as many as allowed.
    Limit,
    /// The TLS handshake failed.
    Handshake,
    /// It said nothing of HTTP/2 in time.
    Silent,
    /// The peer broke the protocol, or went away in the middle of it.
    Protocol,
    /// It had reached its age and its last calls did not end in time.
    Age,
}

/// What is read again while the service runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reload {
    /// The model directory.
    Model,
    /// Certificates and keys.
    Certificates,
    /// The access file.
    Access,
}

/// What became of a span of a trace; what was made and is neither sent nor failed waits or was dropped.
#[derive(Clone, Copy, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
pub enum SpanFate {
    /// It has ended.
    Made,
    /// The collector has taken it.
    Sent,
    /// The collector could not be reached or refused it.
    Failed,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct SpanLabels {
    fate: SpanFate,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReloadLabels {
    what: &'static str,
    result: &'static str,
}

// === impl TransportMetrics ===

impl TransportMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("connections", "Open connections", self.connections.clone());
        r.register(
            "connections_closed_early",
            "Connections that the server closed, by why",
            self.connections_closed.clone(),
        );
        r.register("calls_denied", "Calls that were not let in, by why", self.denied.clone());
        r.register("panics", "Panics that cost a call", self.panics.clone());
        r.register("reloads", "Models, certificates and access files read again, by result", self.reloads.clone());
        r.register("trace_spans", "Spans of traces by what became of them", self.spans.clone());
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        self.connections.inc();
    }

    /// A connection has ended.
    pub fn connection_ended(&self) {
        self.connections.dec();
    }

    /// The server closed a connection.
    pub fn record_closed(&self, why: Closed) {
        let reason = match why {
            Closed::Limit => "limit",
            Closed::Handshake => "handshake",
            Closed::Silent => "silent",
            Closed::Protocol => "protocol",
            Closed::Age => "age",
        };
        self.connections_closed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A call was not let in.
    pub fn record_denied(&self, reason: &'static str) {
        self.denied.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A call panicked.
    pub fn record_panic(&self) {
        self.panics.inc();
    }

    /// Something became of `n` spans.
    pub fn record_spans(&self, fate: SpanFate, n: u64) {
        self.spans.get_or_create(&SpanLabels { fate }).inc_by(n);
    }

    /// Something was read again.
    pub fn record_reload(&self, what: Reload, accepted: bool) {
        let what = match what {
            Reload::Model => "model",
            Reload::Certificates => "certificates",
            Reload::Access => "access",
        };
        let result = if accepted { "accepted" } else { "refused" };
        self.reloads.get_or_create(&ReloadLabels { what, result }).inc();
    }
}
