//! Peers that break the rules of the transport, and what others notice of them: nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::super::support::{Process, Service, ask, eventually, get};
use super::raw::{ROUTE, RawClient, frame, quantile, request};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2 as it is on the wire.
fn wire(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Preface and empty settings.
fn greeting() -> Vec<u8> {
    [PREFACE.to_vec(), wire(4, 0, 0, &[])].concat()
}

/// Headers of a `POST`, literal and without compression: enough to open a stream.
fn header_block() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in
        [(":path", ROUTE), (":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Writes until the server has had enough or all is written; whether it was cut off.
async fn pour(address: SocketAddr, parts: impl Iterator<Item = Vec<u8>>) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        if writer.write_all(&greeting()).await.is_err() {
            return true;
        }
        for part in parts {
            if writer.write_all(&part).await.is_err() {
                return true;
            }
        }
        false
    };
    let mut sink = vec![0; 64 * 1024];
    let reading = async { while matches!(reader.read(&mut sink).await, Ok(n) if n > 0) {} };
    tokio::pin!(reading);
    tokio::select! {
        cut = writing => cut || tokio::time::timeout(Duration::from_millis(500), reading).await.is_ok(),
        () = &mut reading => true,
    }
}

async fn route(client: &RawClient) -> Duration {
    let answer = client.call(ROUTE, &[], &ask("hello").encode_to_vec()).await.unwrap();
    assert_eq!(answer.code, Code::Ok);
    answer.took
}

/// Time of a well-behaved client's calls while `attack` runs.
async fn beside(address: SocketAddr, attack: impl Future<Output = ()>) -> Vec<Duration> {
    let client = RawClient::connect(address).await;
    let mut times = Vec::new();
    let calling = async {
        loop {
            times.push(route(&client).await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = attack => {}
        () = calling => {}
    }
    times.push(route(&client).await);
    times
}

fn resident_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_cost_who_sends_them_their_connection_and_others_nothing() {
    let process = Process::serve(&[]);
    let address = process.grpc;
    let mut calm = beside(address, tokio::time::sleep(Duration::from_millis(500))).await;
    let (calm_p50, calm_p99) = (quantile(&mut calm, 0.5), quantile(&mut calm, 0.99));
    let before = resident_kib(&process);
    let block = header_block();
    let opened = |i: u32, flags| wire(1, flags, 2 * i + 1, &block);
    let floods: [(&str, bool, Vec<Vec<u8>>); 6] = [
        // 0x4: headers end here. The stream is opened and given up at once.
        (
            "rapid reset",
            true,
            (0..50_000).map(|i| [opened(i, 0x4), wire(3, 0, 2 * i + 1, &8_u32.to_be_bytes())].concat()).collect(),
        ),
        // Headers that never end.
        (
            "continuation",
            true,
            std::iter::once(opened(0, 0)).chain((0..50_000).map(|_| wire(9, 0, 1, &[0, 1, b'a', 1, b'b']))).collect(),
        ),
        // A body that never ends and holds nothing (RUSTSEC-2026-0258).
        ("empty data", false, std::iter::once(opened(0, 0x4)).chain((0..50_000).map(|_| wire(0, 0, 1, &[]))).collect()),
        ("settings", false, (0..50_000).map(|_| wire(4, 0, 0, &[])).collect()),
        ("ping", false, (0..50_000).map(|_| wire(6, 0, 0, b"pingpong")).collect()),
        ("streams over the limit", false, (0..5_000).map(|i| opened(i, 0x4)).collect()),
    ];
    for (name, is_cut, parts) in floods {
        let mut cut = false;
        let mut times = beside(address, async { cut = pour(address, parts.into_iter()).await }).await;
        let (n, p50, p99) = (times.len(), quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        println!("{name}: cut off {cut}; others p50 {p50:?}, p99 {p99:?} of {n} (calm {calm_p50:?}, {calm_p99:?})");
        assert!(cut || !is_cut, "{name}: the connection stays");
        assert!(p50 < calm_p50 + Duration::from_millis(100), "{name}: others wait {p50:?}");
    }
    let after = resident_kib(&process);
    println!("resident memory {before} KiB before, {after} KiB after");
    assert!(after < before + before / 2, "{before} KiB before, {after} KiB after");
}

#[tokio::test]
async fn what_is_not_http2_is_closed() {
    let service = Service::shared();
    let garbage: Vec<u8> = (0..4_096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        garbage,
        [PREFACE, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"].concat(),
    ] {
        let mut stream = TcpStream::connect(service.grpc).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        drop(
            tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("it is closed"),
        );
    }
    route(&RawClient::connect(service.grpc).await).await;
}

#[tokio::test]
async fn headers_and_bodies_have_limits() {
    let service = Service::shared();
    let client = RawClient::connect(service.grpc).await;
    let text = ask("Is this all there is?").encode_to_vec();
    let within = "v".repeat(8 * 1024);
    let answer = client.call(ROUTE, &[("x-much", &within), ("x-much", "more")], &text).await.unwrap();
    assert_eq!(answer.code, Code::Ok);
    let beyond = "v".repeat(20 * 1024);
    let refused = client.call(ROUTE, &[("x-much", &beyond)], &text).await;
    assert!(refused.as_ref().map_or(true, |answer| answer.code != Code::Ok), "{refused:?}");
    for (size, method, code) in [
        (500 * 1024, "Route", Code::InvalidArgument),
        (1 << 20, "Route", Code::OutOfRange),
        (1 << 20, "Classify", Code::OutOfRange),
        (3_900_000, "RouteBatch", Code::InvalidArgument),
        (4_300_000, "RouteBatch", Code::OutOfRange),
        (4_300_000, "Route", Code::OutOfRange),
        (100 << 10, "Fly", Code::Unimplemented),
    ] {
        // A new connection each: of a refused one the rest may be on its way.
        let client = RawClient::connect(service.grpc).await;
        let path = format!("/pointsman.v1.Router/{method}");
        let text = ask("x".repeat(size));
        let body = match method {
            "RouteBatch" => pointsman::rpc::proto::RouteBatchRequest { requests: vec![text; 1] }.encode_to_vec(),
            "Classify" => [vec![0x0a], varint(text.encoded_len()), text.encode_to_vec()].concat(),
            _ => text.encode_to_vec(),
        };
        let answer = client.call(&path, &[], &body).await.unwrap();
        if method == "RouteBatch" && code == Code::InvalidArgument {
            assert_eq!(answer.code, Code::Ok, "the call succeeds, its result says why not");
        } else {
            assert_eq!(answer.code, code, "{size} bytes to {method}: {answer:?}");
        }
        assert!(answer.took < Duration::from_secs(5), "{size} bytes to {method}: {:?}", answer.took);
    }
    route(&client).await;
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[tokio::test]
async fn a_client_is_told_how_many_streams_it_may_open() {
    let client = RawClient::connect(Service::shared().grpc).await;
    route(&client).await;
    assert_eq!(client.send.current_max_send_streams(), 200);
}

#[tokio::test]
async fn connections_are_bounded_and_silent_ones_closed() {
    let service = Service::start(RawConfig { max_connections: Some(300), ..RawConfig::default() });
    let mut silent = Vec::new();
    for _ in 0..299 {
        silent.push(TcpStream::connect(service.grpc).await.unwrap());
    }
    let connected = Instant::now();
    let client = RawClient::connect(service.grpc).await;
    route(&client).await;
    let open = async || (service.metric("pointsman_connections") == Some(300.0)).then_some(());
    eventually("all are open", open).await;
    let mut one_more = TcpStream::connect(service.grpc).await.unwrap();
    assert_eq!(one_more.read(&mut [0; 16]).await.unwrap_or(0), 0, "one more is closed at once");
    assert_eq!(service.metric("pointsman_connections_closed_early_total{reason=\"limit\"}"), Some(1.0));
    route(&client).await;
    for stream in &mut silent {
        // The server's settings come first.
        let closed = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "who says nothing is closed");
    }
    println!("silent connections were closed after {:?}", connected.elapsed());
    assert!(connected.elapsed() >= Duration::from_secs(5), "they had time to greet");
    let left = async || (service.metric("pointsman_connections") == Some(1.0)).then_some(());
    eventually("the one that speaks is left", left).await;
    route(&client).await;
}

#[tokio::test]
async fn an_old_connection_is_asked_to_end_and_loses_no_call() {
    let age = "400ms";
    let service = Service::start(RawConfig { max_connection_age: Some(age.parse().unwrap()), ..RawConfig::default() });
    let (mut connections, mut calls, started) = (0, 0, Instant::now());
    while started.elapsed() < Duration::from_secs(2) {
        let client = RawClient::connect(service.grpc).await;
        connections += 1;
        while let Ok(send) = client.send.clone().ready().await {
            drop(send);
            match client.call(ROUTE, &[], &ask("hello").encode_to_vec()).await {
                Ok(answer) => assert_eq!(answer.code, Code::Ok),
                // The goodbye came between: the call was not begun.
                Err(error) => assert!(error.is_go_away(), "{error}"),
            }
            calls += 1;
        }
    }
    println!("{calls} calls over {connections} connections of {age}");
    assert!((3..20).contains(&connections), "{connections}");
    // A stream that does not end by itself is cut, a while later.
    let client = RawClient::connect(service.grpc).await;
    let mut send = client.send.clone().ready().await.unwrap();
    let (response, mut body) = send.send_request(request("/pointsman.v1.Router/RouteStream", &[]), false).unwrap();
    body.send_data(frame(&ask("hello").encode_to_vec()), false).unwrap();
    let mut answers = response.await.unwrap().into_body();
    while answers.data().await.is_some_and(|data| data.is_ok()) {}
    let cut = async || {
        (service.metric("pointsman_connections_closed_early_total{reason=\"age\"}") == Some(1.0)).then_some(())
    };
    eventually("the connection was cut at twice its age", cut).await;
    assert_eq!(get(service.admin, "/readyz").status, 200);
}
