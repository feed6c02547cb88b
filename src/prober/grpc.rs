//! One gRPC probe: `ServerLive`, then `ServerReady` on the same fresh connection.

use std::error::Error as _;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::connect::{self, innermost, io_reason, silent};
use crate::config::ProbeConfig;
use crate::health::{Outcome, Reason};
use crate::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use crate::proto::{ServerLiveRequest, ServerReadyRequest};

/// Asks one address.
pub async fn probe(address: SocketAddr, limits: &ProbeConfig) -> Outcome {
    let started = tokio::time::Instant::now();
    let stream = match connect::connect(address, limits.connect_timeout).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let heard = Heard::default();
    let outcome = ask(Listening(stream, heard.clone()), limits, started).await;
    match (outcome, heard.other_language()) {
        // The close is only how the other protocol says that it does not understand.
        (
            Outcome::Unhealthy {
                reason: Reason::Reset,
                ..
            },
            Some(detail),
        ) => Outcome::Unhealthy {
            reason: Reason::Protocol,
            detail,
        },
        (outcome, _) => outcome,
    }
}

async fn ask(stream: Listening, limits: &ProbeConfig, started: tokio::time::Instant) -> Outcome {
    let mut client = match timeout(limits.timeout, speak(stream)).await {
        Err(_) => return silent(limits.timeout),
        Ok(Err(error)) => {
            return Outcome::Unhealthy {
                reason: reason_of(&error),
                detail: innermost(&error),
            };
        }
        Ok(Ok(channel)) => GrpcInferenceServiceClient::new(channel),
    };
    let live = timeout(limits.timeout, client.server_live(ServerLiveRequest {})).await;
    let latency = started.elapsed();
    match live {
        Err(_) => return silent(limits.timeout),
        Ok(Err(status)) => return unhealthy(&status),
        Ok(Ok(answer)) if !answer.get_ref().live => {
            return Outcome::Unhealthy {
                reason: Reason::Status,
                detail: "ServerLive answered live=false".into(),
            };
        }
        Ok(Ok(_)) => {}
    }
    let ready = match timeout(limits.timeout, client.server_ready(ServerReadyRequest {})).await {
        Ok(Ok(answer)) => Some(answer.get_ref().ready),
        _ => None,
    };
    Outcome::Healthy { ready, latency }
}

/// Speaks gRPC on a connection that is already open, without keep-alive pings: MLServer's gRPC
/// answers repeated pings with GOAWAY (`too_many_pings`).
pub async fn channel(stream: TcpStream) -> Result<Channel, tonic::transport::Error> {
    speak(Listening(stream, Heard::default())).await
}

async fn speak(stream: Listening) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(stream);
    Endpoint::from_static("http://inference-server")
        .connect_with_connector(tower::service_fn(move |_| {
            // Once: the channel must not open connections of its own.
            let stream = stream
                .take()
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            async move { stream.map(TokioIo::new) }
        }))
        .await
}

/// Finds the library error below a transport error and says what it means.
fn reason_of(error: &(dyn std::error::Error + 'static)) -> Reason {
    let mut source = Some(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return io_reason(io);
        }
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            return match h2.get_io() {
                Some(io) => io_reason(io),
                None => Reason::Protocol,
            };
        }
        if let Some(http) = inner.downcast_ref::<hyper::Error>()
            && (http.is_closed() || http.is_canceled() || http.is_incomplete_message())
        {
            return Reason::Reset;
        }
        source = inner.source();
    }
    Reason::Protocol
}

fn unhealthy(status: &Status) -> Outcome {
    // A status without a source came from the server; one with a source from the connection.
    let (reason, detail) = match status.source() {
        Some(source) if status.code() != Code::Unimplemented => {
            (reason_of(source), innermost(source))
        }
        _ => (
            Reason::Status,
            format!(
                "ServerLive answered {:?}: {}",
                status.code(),
                status.message()
            ),
        ),
    };
    Outcome::Unhealthy { reason, detail }
}

/// The first bytes that the other side said.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    fn note(&self, bytes: &[u8]) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = 16usize.saturating_sub(first.len());
        first.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    /// What is spoken there, where it is something else than HTTP/2.
    fn other_language(&self) -> Option<String> {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.starts_with(b"HTTP/1.") {
            Some("it answers HTTP/1".into())
        } else if first.starts_with(&[0x15, 0x03]) {
            Some("it answers with a TLS alert: it expects TLS".into())
        } else if first.len() >= 9 && first[3] != 4 {
            // An HTTP/2 server begins with SETTINGS, frame type 4.
            Some("it answers in another protocol".into())
        } else {
            None
        }
    }
}

/// A connection that notes what it hears first.
struct Listening(TcpStream, Heard);

impl AsyncRead for Listening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let had = out.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(cx, out);
        self.1.note(&out.filled()[had..]);
        polled
    }
}

impl AsyncWrite for Listening {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.0).poll_write(cx, bytes);
        if let Poll::Ready(Err(_)) = &polled {
            // Whoever closed may have said why; the library will not read any more.
            // Asked of the system itself: the runtime has not looked since.
            let mut last = [0; 16];
            if let Ok(n) = (&*SockRef::from(&self.0)).read(&mut last) {
                self.1.note(&last[..n]);
            }
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
