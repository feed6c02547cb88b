//! One gRPC probe: `ServerLive`, then `ServerReady` on the same fresh connection.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::config::ProbeConfig;
use crate::health::{Outcome, Reason};
use crate::prober::http::{innermost, io_reason};
use crate::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use crate::proto::{ServerLiveRequest, ServerReadyRequest};

/// Asks one address.
pub async fn probe(address: SocketAddr, limits: &ProbeConfig) -> Outcome {
    let started = tokio::time::Instant::now();
    let unhealthy = |reason, detail| Outcome::Unhealthy { reason, detail };
    let stream = match timeout(limits.connect_timeout, TcpStream::connect(address)).await {
        Err(_) => {
            let detail = format!("no connection within {:?}", limits.connect_timeout);
            return unhealthy(Reason::ConnectTimeout, detail);
        }
        Ok(Err(error)) => return unhealthy(io_reason(&error), error.to_string()),
        Ok(Ok(stream)) => stream,
    };
    let mut client = match timeout(limits.timeout, connect(stream)).await {
        Err(_) => return silent(limits.timeout),
        Ok(Err(error)) => return unhealthy(reason_of(&error), innermost(&error)),
        Ok(Ok(channel)) => GrpcInferenceServiceClient::new(channel),
    };
    let live = timeout(limits.timeout, client.server_live(ServerLiveRequest {})).await;
    let latency = started.elapsed();
    match live {
        Err(_) => return silent(limits.timeout),
        Ok(Err(status)) => {
            let (reason, detail) = status_reason(&status);
            return unhealthy(reason, detail);
        }
        Ok(Ok(answer)) if !answer.get_ref().live => {
            return unhealthy(Reason::Status, "ServerLive answered live=false".into());
        }
        Ok(Ok(_)) => {}
    }
    let ready = match timeout(limits.timeout, client.server_ready(ServerReadyRequest {})).await {
        Ok(Ok(answer)) => Some(answer.get_ref().ready),
        _ => None,
    };
    Outcome::Healthy { ready, latency }
}

fn silent(limit: Duration) -> Outcome {
    Outcome::Unhealthy {
        reason: Reason::ResponseTimeout,
        detail: format!("no answer within {limit:?}"),
    }
}

/// Speaks gRPC on a connection that is already open, without keep-alive pings: MLServer's gRPC
/// answers repeated pings with GOAWAY (`too_many_pings`).
pub async fn connect(stream: TcpStream) -> Result<Channel, tonic::transport::Error> {
    let _ = stream.set_nodelay(true);
    let mut stream = Some(stream);
    Endpoint::from_static("http://inference-server")
        .connect_with_connector(tower::service_fn(move |_| {
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

fn status_reason(status: &Status) -> (Reason, String) {
    // A status without a source came from the server; one with a source from the connection.
    match status.source() {
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
    }
}
