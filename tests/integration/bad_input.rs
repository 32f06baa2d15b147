//! What callers get wrong: each mistake has a code, a message and details, and the server answers the next request.

use std::collections::HashMap;

use http::uri::PathAndQuery;
use pointsman::config::RawConfig;
use pointsman::rpc::proto::{self, MessageRole};
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::support::{SMALL_POLICY, Service, ask, channel};

const ROUTE: &str = "/pointsman.v1.Router/Route";
const ROUTE_BATCH: &str = "/pointsman.v1.Router/RouteBatch";
/// The limits of the wire contract, as the proto files state them.
const MAX_TEXT_BYTES: usize = 262_144;
const MAX_MESSAGES: usize = 1_024;

/// Sends and receives bytes as they are: for messages that no client library would make.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes::Buf::remaining(buffer)];
        bytes::Buf::copy_to_slice(buffer, &mut item);
        Ok(Some(item))
    }
}

/// What a server says to bytes that are sent as a message.
async fn send_bytes(service: &Service, path: &'static str, body: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel(service.grpc).await);
    client.ready().await.unwrap();
    let answer = client.unary(Request::new(body), PathAndQuery::from_static(path), RawCodec).await?;
    Ok(answer.into_inner())
}

async fn refusal(service: &Service, request: proto::RouteRequest) -> Status {
    service.router().await.route(request).await.unwrap_err()
}

async fn check_alive(service: &Service, after: &str) {
    let answer = service.router().await.route(ask("Are you still there, and well?")).await;
    assert!(answer.is_ok(), "after {after}: {answer:?}");
}

fn saying(role: MessageRole, content: &str) -> proto::Message {
    proto::Message { role: role.into(), content: content.into() }
}

fn requiring(requirements: proto::Requirements) -> proto::RouteRequest {
    proto::RouteRequest { requirements: Some(requirements), ..ask("x") }
}

/// A name, a request, the field at fault and a part of the message.
fn bad_fields() -> Vec<(&'static str, proto::RouteRequest, &'static str, &'static str)> {
    let request = proto::RouteRequest::default;
    let needs = proto::Requirements::default;
    let messages = |messages| proto::RouteRequest { messages, ..request() };
    let metadata = |pairs: Vec<(String, String)>| proto::RouteRequest {
        metadata: pairs.into_iter().collect::<HashMap<_, _>>(),
        ..ask("x")
    };
    let unknown_role = proto::Message { role: 99, content: "x".into() };
    vec![
        ("nothing at all", request(), "query", "is empty"),
        ("an empty query", ask(""), "query", "is empty"),
        ("spaces", ask(" \t\r\n\u{a0}\u{3000}"), "query", "is empty"),
        ("too long a query", ask("x".repeat(MAX_TEXT_BYTES + 1)), "query", "at most 262144"),
        (
            "messages too long together",
            messages(vec![saying(MessageRole::User, &"x".repeat(MAX_TEXT_BYTES / 2 + 1)); 2]),
            "messages",
            "at most 262144",
        ),
        (
            "query and messages",
            proto::RouteRequest { query: "x".into(), ..messages(vec![saying(MessageRole::User, "x")]) },
            "query",
            "beside messages",
        ),
        (
            "too many messages",
            messages(vec![saying(MessageRole::User, "x"); MAX_MESSAGES + 1]),
            "messages",
            "at most 1024",
        ),
        ("no user message", messages(vec![saying(MessageRole::System, "x")]), "messages", "role USER"),
        ("an empty user message", messages(vec![saying(MessageRole::User, " ")]), "messages", "role USER"),
        (
            "a message without role",
            messages(vec![saying(MessageRole::Unspecified, "x")]),
            "messages.role",
            "is not set",
        ),
        ("an unknown message role", messages(vec![unknown_role]), "messages.role", "99"),
        ("an unknown priority", proto::RouteRequest { priority: -7, ..ask("x") }, "priority", "-7"),
        ("an unknown role", proto::RouteRequest { role: "nobody".into(), ..ask("x") }, "role", "nobody"),
        ("too long a tenant", proto::RouteRequest { tenant: "t".repeat(257), ..ask("x") }, "tenant", "256"),
        ("too long a role", proto::RouteRequest { role: "r".repeat(257), ..ask("x") }, "role", "256"),
        ("too long a session", proto::RouteRequest { session_id: "s".repeat(257), ..ask("x") }, "session_id", "256"),
        ("too long a request id", proto::RouteRequest { request_id: "i".repeat(129), ..ask("x") }, "request_id", "128"),
        (
            "a request id with a line break",
            proto::RouteRequest { request_id: "a\nb".into(), ..ask("x") },
            "request_id",
            "ASCII",
        ),
        ("too much metadata", metadata((0..65).map(|i| (format!("k{i}"), "v".into())).collect()), "metadata", "64"),
        ("an empty metadata key", metadata(vec![(String::new(), "v".into())]), "metadata", "key"),
        ("too long a metadata key", metadata(vec![("k".repeat(65), "v".into())]), "metadata", "key"),
        ("too long a metadata value", metadata(vec![("k".into(), "v".repeat(1_025))]), "metadata", "1025"),
        (
            "a NaN cost",
            requiring(proto::Requirements { max_cost_usd: f64::NAN, ..needs() }),
            "requirements.max_cost_usd",
            "NaN",
        ),
        (
            "an infinite cost",
            requiring(proto::Requirements { max_cost_usd: f64::INFINITY, ..needs() }),
            "requirements.max_cost_usd",
            "inf",
        ),
        (
            "a negative cost",
            requiring(proto::Requirements { max_cost_usd: -0.01, ..needs() }),
            "requirements.max_cost_usd",
            "-0.01",
        ),
        (
            "a NaN quality",
            requiring(proto::Requirements { min_quality: f64::NAN, ..needs() }),
            "requirements.min_quality",
            "NaN",
        ),
        (
            "a quality above 1",
            requiring(proto::Requirements { min_quality: 1.5, ..needs() }),
            "requirements.min_quality",
            "1.5",
        ),
        (
            "a negative quality",
            requiring(proto::Requirements { min_quality: f64::NEG_INFINITY, ..needs() }),
            "requirements.min_quality",
            "-inf",
        ),
        (
            "too many providers",
            requiring(proto::Requirements { allowed_providers: vec!["p".into(); 65], ..needs() }),
            "requirements.allowed_providers",
            "64",
        ),
        (
            "too long a region",
            requiring(proto::Requirements { data_regions: vec!["r".repeat(257)], ..needs() }),
            "requirements.data_regions",
            "256",
        ),
    ]
}

#[tokio::test]
async fn bad_fields_are_named() {
    let service = Service::shared();
    for (name, request, field, part) in bad_fields() {
        let status = refusal(service, request).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().starts_with(&format!("{field}: ")), "{name}: {}", status.message());
        assert!(status.message().contains(part), "{name}: {}", status.message());
        assert!(status.message().len() < 400, "{name}: a message of {} bytes", status.message().len());
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations.len(), 1, "{name}");
        assert_eq!(violations[0].field, field, "{name}");
        check_alive(service, name).await;
    }
}

#[tokio::test]
async fn what_is_just_within_the_limits_is_answered() {
    let service = Service::shared();
    let mut messages = vec![saying(MessageRole::Assistant, ""); MAX_MESSAGES - 1];
    messages.push(saying(MessageRole::User, "Is this the last one?"));
    let whole = |request_id: String| proto::RouteRequest {
        tenant: "t".repeat(256),
        session_id: "s".repeat(256),
        request_id,
        metadata: (0..64).map(|i| (format!("{i:064}"), "v".repeat(1_024))).collect(),
        ..ask("x".repeat(MAX_TEXT_BYTES))
    };
    let cases = [
        ask("x".repeat(MAX_TEXT_BYTES)),
        ask("\u{0}\u{1}\u{feff}\u{202e}x"),
        proto::RouteRequest { messages, ..Default::default() },
        whole("~".repeat(128)),
        requiring(proto::Requirements { max_cost_usd: f64::MAX, min_quality: f64::MIN_POSITIVE, ..Default::default() }),
    ];
    for request in cases {
        let decision = service.router().await.route(request).await.unwrap().into_inner().decision.unwrap();
        assert!(decision.selected.is_some());
    }
}

#[tokio::test]
async fn messages_that_do_not_decode_are_the_callers_fault() {
    let service = Service::shared();
    let valid = ask("What is basalt?").encode_to_vec();
    let truncated = valid.iter().take(valid.len() - 4).copied().collect();
    // Field 1, length-delimited: the query. Field 9: the metadata, a map entry with key and value.
    let cases: [(&str, Vec<u8>); 9] = [
        ("invalid UTF-8", b"\x0a\x04ab\xff\xfe".to_vec()),
        ("a lone surrogate", b"\x0a\x03\xed\xa0\x80".to_vec()),
        ("invalid UTF-8 in the metadata", b"\x0a\x01x\x4a\x06\x0a\x01k\x12\x01\xff".to_vec()),
        ("a truncated message", truncated),
        ("a length beyond the end", b"\x0a\x7fx".to_vec()),
        ("a length that overflows", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec()),
        ("another wire type", b"\x08\x01".to_vec()),
        ("an endless group", vec![0x0b; 10_000]),
        ("noise", (0..512_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
    ];
    for (name, body) in cases {
        let status = send_bytes(service, ROUTE, body).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().starts_with("the message does not decode: "), "{name}: {}", status.message());
        check_alive(service, name).await;
    }
    let unknown_fields = [valid, b"\xfa\x3f\x03abc".to_vec()].concat();
    assert!(send_bytes(service, ROUTE, unknown_fields).await.is_ok(), "fields of a later version are skipped");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_decoded() {
    let service = Service::shared();
    let status = refusal(service, ask("x".repeat(5 << 20))).await;
    // tonic's code for a message over the limit; the connection stays usable.
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    check_alive(service, "5 MiB").await;
}

#[tokio::test]
async fn batches_have_bounds() {
    let service = Service::shared();
    let mut router = service.router().await;
    for n in [0, 257] {
        let requests = vec![ask("hello"); n];
        let status = router.route_batch(proto::RouteBatchRequest { requests }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(&format!("requests: has {n} entries")), "{}", status.message());
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "requests");
    }
    let full = proto::RouteBatchRequest { requests: vec![ask("hello"); 256] };
    assert_eq!(router.route_batch(full).await.unwrap().into_inner().results.len(), 256);
    let garbage = send_bytes(service, ROUTE_BATCH, b"\x0a\x04\x0a\x02\xff\xfe".to_vec()).await.unwrap_err();
    assert_eq!(garbage.code(), Code::InvalidArgument, "{garbage:?}");
    check_alive(service, "batches").await;
}

#[tokio::test]
async fn a_stream_ends_at_a_message_that_does_not_decode() {
    let service = Service::shared();
    let mut client = tonic::client::Grpc::new(channel(service.grpc).await);
    client.ready().await.unwrap();
    let good = ask("What is basalt?").encode_to_vec();
    let bodies = tokio_stream::iter([good.clone(), b"\x0a\x01\xff".to_vec(), good]);
    let path = PathAndQuery::from_static("/pointsman.v1.Router/RouteStream");
    let mut answers = client.streaming(Request::new(bodies), path, RawCodec).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    check_alive(service, "a broken stream").await;
}

#[tokio::test]
async fn unknown_tenants_are_answered_as_the_policy_says() {
    let (strict, _dir, _) = Service::with_policy(SMALL_POLICY, RawConfig::default());
    let of = |tenant: &str| proto::RouteRequest { tenant: tenant.into(), ..ask("Name a river in Peru") };
    let status = refusal(&strict, of("stranger")).await;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.resource_info().unwrap().resource_name, "stranger");
    let known = strict.router().await.route(of("known")).await.unwrap().into_inner().decision.unwrap();
    assert_eq!(known.selected.unwrap().provider, "zenith");

    // The default policy answers strangers like everybody and says that it did.
    let decision = Service::shared().router().await.route(of("stranger")).await.unwrap().into_inner().decision.unwrap();
    assert!(decision.reasons.iter().any(|reason| reason.code == "UNKNOWN_TENANT"), "{:?}", decision.reasons);
}

#[tokio::test]
async fn classify_checks_what_it_reads() {
    let mut router = Service::shared().router().await;
    for query in [None, Some(proto::Query { query: "\n".into(), ..Default::default() })] {
        let status = router.classify(proto::ClassifyRequest { query }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "query");
    }
}

#[tokio::test]
async fn a_policy_to_check_has_a_bound() {
    let document = "#".repeat((1 << 20) + 1);
    let mut policies = Service::shared().policy().await;
    let status = policies.validate_policy(proto::ValidatePolicyRequest { document }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "document");
}
