//! Traces: what a collector of our own receives over a real socket, and what happens when there is none.

#[cfg(not(feature = "otel"))]
#[test]
fn a_build_without_traces_says_so() {
    let arguments = ["serve", "--check-config", "--otlp-endpoint", "http://127.0.0.1:4317"];
    let (code, _, err) = super::super::support::run(&arguments);
    assert!(code == 64 && err.contains("--features otel"), "{code}: {err}");
}

#[cfg(feature = "otel")]
mod with_a_collector {
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
    use pointsman::config::RawConfig;
    use pointsman::rpc::proto;
    use prost::Message as _;
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::Code;

    use super::super::super::support::{Service, ask, eventually};
    use super::super::raw::{ROUTE, RawClient};

    const TRACE: [u8; 16] =
        [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
    const CALLER: [u8; 8] = [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const NOT_SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    /// Keeps what it is sent.
    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<ResourceSpans>>>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: tonic::Request<ExportTraceServiceRequest>,
        ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
            self.0.lock().unwrap().extend(request.into_inner().resource_spans);
            Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
        }
    }

    impl Collector {
        /// Listens at `address` for the rest of the test.
        async fn listen(address: &str) -> (Self, SocketAddr) {
            let listener = TcpListener::bind(address).await.unwrap();
            let (collector, address) = (Self::default(), listener.local_addr().unwrap());
            let service = TraceServiceServer::new(collector.clone());
            let serving = tonic::transport::Server::builder().add_service(service);
            std::thread::spawn(move || {
                let listener = listener.into_std().unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = TcpListener::from_std(listener).unwrap();
                    serving.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
                });
            });
            (collector, address)
        }

        fn spans(&self) -> Vec<Span> {
            let scopes = |spans: &ResourceSpans| spans.scope_spans.clone();
            self.0.lock().unwrap().iter().flat_map(scopes).flat_map(|scope| scope.spans).collect()
        }

        /// Everything that was received, as it is shown for people.
        fn shown(&self) -> String {
            format!("{:#?}", self.0.lock().unwrap())
        }
    }

    fn settings(collector: SocketAddr, ratio: f64) -> RawConfig {
        RawConfig {
            otlp_endpoint: Some(format!("http://{collector}")),
            otlp_sample_ratio: Some(ratio),
            ..RawConfig::default()
        }
    }

    fn attribute(span: &Span, key: &str) -> Option<Value> {
        span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
    }

    fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
        spans.iter().filter(|span| span.name == name).collect()
    }

    async fn call(client: &RawClient, trace: &[(&str, &str)], query: &str) -> Code {
        client.call(ROUTE, trace, &ask(query).encode_to_vec()).await.unwrap().code
    }

    #[tokio::test]
    async fn a_call_is_a_span_of_its_callers_trace_with_a_span_for_each_stage() {
        let (collector, address) = Collector::listen("127.0.0.1:0").await;
        let service = Service::start(settings(address, 0.0));
        let client = RawClient::connect(service.grpc).await;
        assert_eq!(
            call(&client, &[("traceparent", SAMPLED)], "Prove that the square root of 2 is irrational").await,
            Code::Ok
        );
        // A stop sends what is left.
        tokio::task::spawn_blocking(move || service.join()).await.unwrap();
        let spans = collector.spans();
        let [server] = named(&spans, "Route")[..] else { panic!("{spans:#?}") };
        assert!(spans.iter().all(|span| span.trace_id == TRACE), "{spans:#?}");
        assert_eq!((server.parent_span_id.as_slice(), server.kind), (CALLER.as_slice(), SpanKind::Server as i32));
        assert_eq!(attribute(server, "rpc.grpc.status_code"), Some(Value::IntValue(0)));
        let [decide] = named(&spans, "decide")[..] else { panic!("{spans:#?}") };
        assert_eq!(decide.parent_span_id, server.span_id);
        for key in ["decision_id", "model", "intent", "tier", "source", "policy_version", "input_tokens"] {
            assert!(attribute(decide, &format!("pointsman.{key}")).is_some(), "{key} is missing in {decide:#?}");
        }
        let within = |inner: &Span, outer: &Span| {
            outer.start_time_unix_nano <= inner.start_time_unix_nano
                && inner.start_time_unix_nano <= inner.end_time_unix_nano
                && inner.end_time_unix_nano <= outer.end_time_unix_nano
        };
        let mut last = decide.start_time_unix_nano;
        for stage in ["text", "rules", "queue", "inference", "policy"] {
            let [span] = named(&spans, stage)[..] else { panic!("{stage} is not there once: {spans:#?}") };
            assert_eq!(span.parent_span_id, decide.span_id, "{stage}");
            assert!(within(span, decide) && within(span, server), "{stage}: {span:#?} in {decide:#?}");
            assert!(last <= span.start_time_unix_nano, "{stage} begins before the stage before it");
            last = span.start_time_unix_nano;
        }
        let [admission] = named(&spans, "admission")[..] else { panic!("{spans:#?}") };
        assert_eq!(admission.parent_span_id, server.span_id);
        assert_eq!(spans.len(), 8, "{spans:#?}");
        let shown = collector.shown();
        assert!(shown.contains("service.name") && shown.contains("\"pointsman\""), "{shown}");
    }

    #[tokio::test]
    async fn the_caller_decides_whether_it_is_traced_and_else_the_ratio() {
        let (collector, address) = Collector::listen("127.0.0.1:0").await;
        let never = Service::start(settings(address, 0.0));
        let client = RawClient::connect(never.grpc).await;
        for trace in [&[("traceparent", NOT_SAMPLED)][..], &[], &[("traceparent", "00-no-trace-at-all")]] {
            assert_eq!(call(&client, trace, "hello").await, Code::Ok);
        }
        drop(never);
        assert_eq!(collector.spans().len(), 0, "{}", collector.shown());

        let always = Service::start(settings(address, 1.0));
        let client = RawClient::connect(always.grpc).await;
        assert_eq!(call(&client, &[("traceparent", NOT_SAMPLED)], "hello").await, Code::Ok);
        assert_eq!(call(&client, &[], "hello").await, Code::Ok);
        assert_eq!(call(&client, &[("traceparent", "ff-what-is-this")], "hello").await, Code::Ok);
        drop(always);
        let spans = collector.spans();
        let roots = named(&spans, "Route");
        assert_eq!(roots.len(), 2, "{spans:#?}");
        assert!(roots.iter().all(|span| span.parent_span_id.is_empty() && span.trace_id != TRACE), "{roots:#?}");
    }

    #[tokio::test]
    async fn refused_and_failed_calls_say_their_code_and_batches_have_a_span_for_each_query() {
        let (collector, address) = Collector::listen("127.0.0.1:0").await;
        let service = Service::start(settings(address, 1.0));
        let client = RawClient::connect(service.grpc).await;
        let expired = client.call(ROUTE, &[("grpc-timeout", "0m")], &ask("x").encode_to_vec()).await.unwrap();
        assert_eq!(expired.code, Code::DeadlineExceeded);
        assert_eq!(call(&client, &[], "").await, Code::InvalidArgument);
        let batch = proto::RouteBatchRequest { requests: vec![ask("one"), ask("two"), ask("")] };
        let answer = client.call("/pointsman.v1.Router/RouteBatch", &[], &batch.encode_to_vec()).await.unwrap();
        assert_eq!(answer.code, Code::Ok);
        // Of a stream the answers are made while they are read.
        let stream = client.call("/pointsman.v1.Router/RouteStream", &[], &ask("one").encode_to_vec()).await.unwrap();
        assert_eq!(stream.code, Code::Ok);
        drop(service);
        let spans = collector.spans();
        let codes: Vec<_> = named(&spans, "Route").iter().map(|span| attribute(span, "rpc.grpc.status_code")).collect();
        assert_eq!(codes.len(), 2, "{spans:#?}");
        assert!([3, 4].iter().all(|code| codes.contains(&Some(Value::IntValue(*code)))), "{codes:?}");
        let faults: Vec<bool> = named(&spans, "Route")
            .iter()
            .map(|span| span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32))
            .collect();
        assert_eq!(faults.iter().filter(|fault| **fault).count(), 1, "the deadline is the server's, the text is not");
        // The empty text of the batch is refused and so decides nothing.
        for (method, n, n_decided) in [("RouteBatch", 3, 2), ("RouteStream", 1, 1)] {
            let [call] = named(&spans, method)[..] else { panic!("{method}: {spans:#?}") };
            let parts = named(&spans, "decide");
            let parts: Vec<_> = parts.iter().filter(|part| part.parent_span_id == call.span_id).collect();
            let decided = parts.iter().filter(|part| attribute(part, "pointsman.model").is_some()).count();
            assert_eq!((parts.len(), decided), (n, n_decided), "{method}: {spans:#?}");
        }
    }

    /// Whatever a caller can write is found in nothing that leaves.
    #[tokio::test]
    async fn nothing_that_a_caller_wrote_is_in_a_span() {
        const CANARY: &str = "hedgehog";
        let (collector, address) = Collector::listen("127.0.0.1:0").await;
        let service = Service::start(settings(address, 1.0));
        let client = RawClient::connect(service.grpc).await;
        let mut request = proto::RouteRequest {
            request_id: "hedgehog-1".into(),
            session_id: "hedgehog-2".into(),
            ..ask("How does a hedgehog sleep?")
        };
        request.metadata.insert("hedgehog".into(), "hedgehog".into());
        let state = [
            ("traceparent", SAMPLED),
            ("tracestate", "hedgehog=hedgehog"),
            ("baggage", "hedgehog=1"),
            ("x-h", "hedgehog"),
        ];
        assert_eq!(client.call(ROUTE, &state, &request.encode_to_vec()).await.unwrap().code, Code::Ok);
        for (tenant, role) in [("hedgehog", ""), ("", "hedgehog")] {
            let request = proto::RouteRequest { tenant: tenant.into(), role: role.into(), ..request.clone() };
            client.call(ROUTE, &state, &request.encode_to_vec()).await.unwrap();
        }
        for path in ["/pointsman.v1.Router/Hedgehog", "/hedgehog.v1.Router/Route", "/hedgehog"] {
            client.call(path, &state, b"hedgehog").await.unwrap();
        }
        client.call(ROUTE, &state, b"hedgehog").await.unwrap();
        drop(service);
        let shown = collector.shown();
        assert!(collector.spans().len() > 10, "{shown}");
        let line = shown.lines().find(|line| line.to_lowercase().contains(CANARY));
        assert_eq!(line, None);
    }

    /// A collector that refuses connections, then one that takes everything and says nothing, then a good one.
    #[tokio::test]
    async fn a_collector_that_is_away_or_silent_costs_calls_nothing() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let service = Service::start(settings(address, 1.0));
        let client = RawClient::connect(service.grpc).await;
        for _ in 0..300 {
            assert_eq!(call(&client, &[], "hello").await, Code::Ok);
        }
        let failed = "pointsman_trace_spans_total{fate=\"Failed\"}";
        eventually("spans fail", async || service.metric(failed).filter(|n| *n >= 1.0)).await;
        let (collector, _) = Collector::listen(&address.to_string()).await;
        eventually("spans arrive", async || {
            assert_eq!(call(&client, &[], "hello").await, Code::Ok);
            (!collector.spans().is_empty()).then_some(())
        })
        .await;
        drop(service);

        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let service = Service::start(settings(address, 1.0));
        let client = RawClient::connect(service.grpc).await;
        let mut slowest = Duration::ZERO;
        // More spans than may wait.
        for _ in 0..1_000 {
            let started = Instant::now();
            assert_eq!(call(&client, &[], "hello").await, Code::Ok);
            slowest = slowest.max(started.elapsed());
        }
        let made = service.metric("pointsman_trace_spans_total{fate=\"Made\"}").unwrap();
        assert!(made > 5_000.0, "{made} spans");
        let started = Instant::now();
        tokio::task::spawn_blocking(move || service.join()).await.unwrap();
        let took = started.elapsed();
        println!("slowest call with a silent collector {slowest:?}; the stop took {took:?}");
        assert!(took < Duration::from_secs(10), "the stop took {took:?}");
    }
}
