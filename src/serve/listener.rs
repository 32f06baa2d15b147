//! Connections: accepting them, what each may do, and how they end.
//!
//! The loop is our own and not tonic's for what tonic leaves out: a bound on all connections together, an end for peers
//! that never speak HTTP/2, certificates that change, deadlines (see `rpc::Front`), and a drain that no peer can hold.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Tasks;
use super::tls::TlsStore;
use crate::rpc::{Front, Peer};
use crate::telemetry::{Closed, Metrics};

/// Accepts connections and serves each with the same services.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) front: Front,
    pub(super) tls: Option<Arc<TlsStore>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) max_connections: usize,
    pub(super) max_connection_age: Duration,
    pub(super) tasks: Tasks,
}

/// A stream that counts what was read from it.
struct Counted<S> {
    stream: S,
    read: Arc<AtomicUsize>,
}

/// HTTP/2 streams a connection may have open; tonic's default is no limit at all.
const MAX_CONCURRENT_STREAMS: u32 = 200;
/// Names and values of one request's headers together.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// A client that is gone is noticed within this and [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for a TLS handshake, and for the first words of HTTP/2.
const GREETING: Duration = Duration::from_secs(10);
/// Length of the client's preface in HTTP/2.
const PREFACE_BYTES: usize = 24;
/// Connections end at their age less up to a tenth, so that those made together do not all come back together.
const AGE_SPREAD: f64 = 0.1;
/// Pause after the system refuses another connection, as it does without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// === impl Listener ===

impl Listener {
    /// Accepts until the service stops. Ends at once then; connections end by themselves.
    pub(super) async fn run(self, listener: TcpListener) {
        let shared = Arc::new(self);
        let stopping = shared.tasks.stopping();
        let slots = Arc::new(Semaphore::new(shared.max_connections));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopping.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(slot) => {
                        let connection = Arc::clone(&shared);
                        shared.tasks.spawn(async move {
                            connection.metrics.transport().connection_opened();
                            connection.greet(stream).await;
                            connection.metrics.transport().connection_ended();
                            drop(slot);
                        });
                    }
                    Err(_) => shared.metrics.transport().record_closed(Closed::Limit),
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn greet(&self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
        let Some(tls) = &self.tls else {
            return self.serve(stream, Peer::default()).await;
        };
        match timeout(GREETING, tls.accept(stream)).await {
            Ok(Ok((stream, peer))) => self.serve(stream, peer).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                self.metrics.transport().record_closed(Closed::Handshake);
            }
            Err(_) => self.metrics.transport().record_closed(Closed::Handshake),
        }
    }

    /// Serves a connection until the peer, its age, the protocol or the service ends it.
    async fn serve<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let read = Arc::new(AtomicUsize::new(0));
        let stream = Counted { stream, read: Arc::clone(&read) };
        let (front, peer) = (self.front.clone(), Arc::new(peer));
        let service = service_fn(move |request| {
            let (front, peer) = (front.clone(), Arc::clone(&peer));
            async move { Ok::<_, Infallible>(front.answer(request, &peer).await) }
        });
        let mut connection = pin!(self.http2().serve_connection(TokioIo::new(stream), service));
        let (stopping, cutting) = (self.tasks.stopping(), self.tasks.cutting());
        let opened = Instant::now();
        let age = self.max_connection_age.mul_f64(1.0 - AGE_SPREAD * rand::random::<f64>());
        let (mut greeted, mut said_goodbye, mut aged) = (false, false, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended with an error");
                        self.metrics.transport().record_closed(Closed::Protocol);
                    }
                    return;
                }
                () = sleep_until(opened + GREETING), if !greeted => {
                    greeted = true;
                    if read.load(Ordering::Relaxed) < PREFACE_BYTES {
                        return self.metrics.transport().record_closed(Closed::Silent);
                    }
                }
                () = sleep_until(opened + age), if !said_goodbye => {
                    (said_goodbye, aged) = (true, true);
                    connection.as_mut().graceful_shutdown();
                }
                // As long again for calls that have begun; then streams that never end are cut.
                () = sleep_until(opened + 2 * age), if aged => {
                    return self.metrics.transport().record_closed(Closed::Age);
                }
                () = stopping.cancelled(), if !said_goodbye => {
                    said_goodbye = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = cutting.cancelled() => return,
            }
        }
    }

    fn http2(&self) -> http2::Builder<Tasks> {
        let mut builder = http2::Builder::new(self.tasks.clone());
        // Limits on resets and on pending frames are left at what h2 chose after the attacks that used them.
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        builder
    }
}

// === impl Counted ===

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.read.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
