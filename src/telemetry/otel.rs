//! Spans of the OpenTelemetry SDK, and how they leave: a bounded queue, a thread, one call of a collector for many.
//!
//! Spans are made by hand and not from log lines, so that what is in them is written here.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{
    SpanExporter as OtlpExporter, WithExportConfig as _, WithTonicConfig as _, tonic_types as wire,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan, SpanData,
    SpanExporter,
};

use super::{TraceOptions, TracesError};
use crate::domain::Decision;
use crate::telemetry::{Metrics, SpanFate};

/// What makes spans and sends them.
pub(super) struct Sender {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    metrics: Arc<Metrics>,
}

/// A span that has not ended.
#[derive(Debug)]
pub(super) struct Recording {
    span: Mutex<SdkSpan>,
    /// What its parts are parts of.
    context: Context,
    clock: Clock,
    tracer: SdkTracer,
    metrics: Arc<Metrics>,
    /// Of a call: what it was answered with, so far.
    code: Option<AtomicI32>,
}

/// Wall-clock times of one call's instants, with the same distances.
#[derive(Clone, Copy, Debug)]
struct Clock {
    instant: Instant,
    time: SystemTime,
}

/// The one header that is read. What callers may write into `tracestate` would be sent on as they wrote it.
struct Parent<'a>(&'a HeaderMap);

/// Counts what is sent, and logs changes instead of every failure.
#[derive(Debug)]
struct Watched {
    exporter: OtlpExporter,
    metrics: Arc<Metrics>,
    failing: AtomicBool,
}

/// Spans that wait, about half a KiB each; more are dropped.
const QUEUE_SPANS: usize = 4_096;
const BATCH_SPANS: usize = 512;
/// A trace is complete within about this.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// A collector that does not answer holds up nothing but the next spans.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

const CANCELLED: i32 = 1;
/// Codes that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const SERVER_FAULTS: [i32; 6] = [2, 4, 12, 13, 14, 15];

// === impl Sender ===

impl Sender {
    pub(super) fn start(options: &TraceOptions, metrics: Arc<Metrics>) -> Result<Self, TracesError> {
        let mut builder =
            OtlpExporter::builder().with_tonic().with_endpoint(&options.endpoint).with_timeout(SEND_TIMEOUT);
        if options.endpoint.starts_with("https://") {
            builder = builder.with_tls_config(wire::transport::ClientTlsConfig::new().with_enabled_roots());
        }
        let exporter = builder.build().map_err(|error| TracesError::Endpoint(error.to_string()))?;
        let watched = Watched { exporter, metrics: Arc::clone(&metrics), failing: AtomicBool::new(false) };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS)
            .with_max_export_batch_size(BATCH_SPANS)
            .with_scheduled_delay(SEND_EVERY)
            .build();
        let resource = Resource::builder()
            .with_service_name("pointsman")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::now_v7().to_string()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.sample_ratio))))
            .with_resource(resource)
            .with_span_processor(BatchSpanProcessor::builder(watched).with_batch_config(batches).build())
            .build();
        Ok(Self { tracer: provider.tracer("pointsman"), provider, metrics })
    }

    pub(super) fn call(&self, method: &'static str, headers: &HeaderMap, arrived: Instant) -> Option<Recording> {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Parent(headers));
        let clock = Clock { instant: Instant::now(), time: SystemTime::now() };
        let attributes = [KeyValue::new("rpc.system", "grpc"), KeyValue::new("rpc.method", method)];
        let builder = SpanBuilder::from_name(method)
            .with_kind(SpanKind::Server)
            .with_start_time(clock.at(arrived))
            .with_attributes(attributes);
        let span = self.tracer.build_with_context(builder, &parent);
        span.is_recording().then(|| {
            let code = Some(AtomicI32::new(CANCELLED));
            Recording::new(span, code, clock, self.tracer.clone(), Arc::clone(&self.metrics))
        })
    }

    pub(super) fn finish(&self, timeout: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(timeout) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("tracer", &self.tracer).finish_non_exhaustive()
    }
}

// === impl Recording ===

impl Recording {
    fn new(span: SdkSpan, code: Option<AtomicI32>, clock: Clock, tracer: SdkTracer, metrics: Arc<Metrics>) -> Self {
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        Self { span: Mutex::new(span), context, clock, tracer, metrics, code }
    }

    pub(super) fn part(&self, name: &'static str) -> Self {
        let builder = SpanBuilder::from_name(name).with_start_time(self.clock.at(Instant::now()));
        let span = self.tracer.build_with_context(builder, &self.context);
        Self::new(span, None, self.clock, self.tracer.clone(), Arc::clone(&self.metrics))
    }

    pub(super) fn stage(&self, name: &'static str, started: Instant, took: Duration) {
        let start = self.clock.at(started);
        let builder = SpanBuilder::from_name(name).with_start_time(start);
        self.tracer.build_with_context(builder, &self.context).end_with_timestamp(start + took);
        self.metrics.transport().record_spans(SpanFate::Made, 1);
    }

    pub(super) fn decided(&self, decision: &Decision) {
        let (input, policy) = (&decision.input, &decision.policy);
        self.set([
            KeyValue::new("pointsman.decision_id", decision.decision_id.clone()),
            KeyValue::new("pointsman.model", Arc::clone(&decision.selected.model)),
            KeyValue::new("pointsman.provider", Arc::clone(&decision.selected.provider)),
            KeyValue::new("pointsman.intent", decision.intent.label.to_string()),
            KeyValue::new("pointsman.tier", decision.complexity.tier.as_str()),
            KeyValue::new("pointsman.confidence", decision.confidence.value.value()),
            KeyValue::new("pointsman.source", decision.source.as_str()),
            KeyValue::new("pointsman.policy_version", policy.version.to_string()),
            KeyValue::new("pointsman.classifier_version", decision.classifier.version.to_string()),
            KeyValue::new("pointsman.input_bytes", i64::try_from(input.received_bytes).unwrap_or(i64::MAX)),
            KeyValue::new("pointsman.input_tokens", i64::from(input.tokens_used)),
        ]);
    }

    pub(super) fn answered(&self, code: i32) {
        if let Some(answered) = &self.code {
            answered.store(code, Ordering::Relaxed);
        }
    }

    fn set(&self, attributes: impl IntoIterator<Item = KeyValue>) {
        if let Ok(mut span) = self.span.lock() {
            span.set_attributes(attributes);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(code) = &self.code {
            let code = code.load(Ordering::Relaxed);
            self.set([KeyValue::new("rpc.grpc.status_code", i64::from(code))]);
            if SERVER_FAULTS.contains(&code)
                && let Ok(mut span) = self.span.lock()
            {
                span.set_status(Status::error(""));
            }
        }
        // The SDK's span ends as it is dropped.
        self.metrics.transport().record_spans(SpanFate::Made, 1);
    }
}

// === impl Clock ===

impl Clock {
    fn at(self, instant: Instant) -> SystemTime {
        let before = self.instant.checked_duration_since(instant).and_then(|earlier| self.time.checked_sub(earlier));
        before.unwrap_or_else(|| self.time + instant.saturating_duration_since(self.instant))
    }
}

// === impl Parent ===

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        if key == "traceparent" { self.0.get(key)?.to_str().ok() } else { None }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

// === impl Watched ===

impl SpanExporter for Watched {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let n = batch.len() as u64;
        async move {
            let result = self.exporter.export(batch).await;
            let fate = if result.is_ok() { SpanFate::Sent } else { SpanFate::Failed };
            self.metrics.transport().record_spans(fate, n);
            match (result, self.failing.swap(fate == SpanFate::Failed, Ordering::Relaxed)) {
                (Err(error), false) => tracing::warn!(%error, "traces cannot be sent; tried again with the next ones"),
                (Ok(()), true) => tracing::info!("traces are sent again"),
                _ => {}
            }
            Ok(())
        }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
