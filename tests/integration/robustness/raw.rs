//! gRPC by hand over HTTP/2: a client without deadlines, retries or limits of its own, which shows what the server does.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use pointsman::rpc::proto;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Code;

use super::super::support::ask;

pub(super) const ROUTE: &str = "/pointsman.v1.Router/Route";

/// A connection.
pub(super) struct RawClient {
    pub(super) send: SendRequest<Bytes>,
    /// Ends with the connection.
    pub(super) driver: JoinHandle<Result<(), h2::Error>>,
}

/// What came back of a call.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: Code,
    pub(super) status: HashMap<String, String>,
    pub(super) message: Bytes,
    pub(super) took: Duration,
}

impl RawClient {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        // Or the kernel holds small frames back for up to 40 ms.
        stream.set_nodelay(true).unwrap();
        Self::over(stream).await
    }

    /// Speaks HTTP/2 over `stream`.
    pub(super) async fn over<S>(stream: S) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        Self { send, driver: tokio::spawn(connection) }
    }

    /// A unary call; an error is what ended the connection or the stream.
    pub(super) async fn call(&self, path: &str, headers: &[(&str, &str)], message: &[u8]) -> Result<Answer, h2::Error> {
        let started = Instant::now();
        let mut send = self.send.clone().ready().await?;
        let (response, mut body) = send.send_request(request(path, headers), false)?;
        // The server may have refused before it read this.
        drop(body.send_data(frame(message), true));
        let response = response.await?;
        let mut status = texts(response.headers());
        let mut stream = response.into_body();
        let mut message = BytesMut::new();
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            message.put(data);
        }
        if let Some(trailers) = stream.trailers().await? {
            status.extend(texts(&trailers));
        }
        let code = status.get("grpc-status").map_or(Code::Unknown, |code| Code::from_i32(code.parse().unwrap()));
        Ok(Answer { code, status, message: message.freeze(), took: started.elapsed() })
    }
}

/// A client that has asked for a lot and reads nothing of it.
pub(super) struct NeverReads {
    _send: SendRequest<Bytes>,
    _connection: h2::client::Connection<TcpStream, Bytes>,
    _open: Vec<h2::client::ResponseFuture>,
}

impl NeverReads {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (send, mut connection) = h2::client::handshake(stream).await.unwrap();
        let batch = proto::RouteBatchRequest { requests: vec![ask("hello"); 256] }.encode_to_vec();
        let mut open = Vec::new();
        {
            let asking = async {
                for _ in 0..4 {
                    let mut send = send.clone().ready().await.unwrap();
                    let (response, mut body) =
                        send.send_request(request("/pointsman.v1.Router/RouteBatch", &[]), false).unwrap();
                    body.send_data(frame(&batch), true).unwrap();
                    open.push(response);
                }
                // The requests leave while the connection is polled.
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            tokio::select! {
                () = asking => {}
                ended = &mut connection => panic!("{ended:?}"),
            }
        }
        // From here on nobody polls the connection: what the server sends stays in the sockets.
        Self { _send: send, _connection: connection, _open: open }
    }
}

pub(super) fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let builder = Request::post(format!("http://pointsman{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value)).body(()).unwrap()
}

/// A message with its five bytes in front.
pub(super) fn frame(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.len() + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.put_slice(message);
    bytes.freeze()
}

fn texts(headers: &HeaderMap) -> HashMap<String, String> {
    headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into())).collect()
}

/// The value below which `share` of `values` lie.
pub(super) fn quantile(values: &mut [Duration], share: f64) -> Duration {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * share).round() as usize]
}
