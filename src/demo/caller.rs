//! A caller like the agent: one HTTP connection, and a gRPC channel each for health and for data.
//! The same code dials the server itself and the shim, so that the two can be compared.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prost::Message;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::prober::connect::innermost;
use crate::proto::ServerLiveRequest;
use crate::proto::grpc_inference_service_client::GrpcInferenceServiceClient;

/// What a caller got.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Answer {
    /// Which call it was.
    pub(super) call: &'static str,
    /// Whether the caller got what it wanted.
    pub(super) ok: bool,
    /// What it got, in words.
    pub(super) answer: String,
    /// After how many milliseconds.
    pub(super) ms: f64,
}

/// The calls that the story makes, in its order.
pub(super) const HTTP_LIVE: &str = "HTTP live";
pub(super) const HTTP_INFER: &str = "HTTP infer";
pub(super) const GRPC_LIVE: &str = "gRPC live";
pub(super) const GRPC_INFER: &str = "gRPC infer";
pub(super) const CALLS: [&str; 4] = [HTTP_LIVE, HTTP_INFER, GRPC_LIVE, GRPC_INFER];

const MODEL: &str = "iris";

/// The fields of `ModelInferRequest` that its answer has too, so that an echo can be told.
#[derive(Clone, PartialEq, Message)]
struct Infer {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "3")]
    id: String,
}

pub(super) struct Caller {
    model: String,
    http_at: SocketAddr,
    limit: Duration,
    http: Option<SendRequest<Full<Bytes>>>,
    /// HTTP connections opened so far.
    pub(super) connections: usize,
    health: Channel,
    data: Channel,
}

impl Caller {
    /// Dials the HTTP and the gRPC address; waits for each answer for `limit` at most.
    pub(super) fn new([http_at, grpc_at]: [SocketAddr; 2], limit: Duration) -> Self {
        // An address in a URL is always a valid endpoint.
        let channel = || {
            Endpoint::from_shared(format!("http://{grpc_at}"))
                .unwrap_or_else(|_| Endpoint::from_static("http://127.0.0.1"))
                .connect_timeout(limit)
                .connect_lazy()
        };
        Caller {
            model: MODEL.into(),
            http_at,
            limit,
            http: None,
            connections: 0,
            health: channel(),
            data: channel(),
        }
    }

    /// Calls another model than the usual one.
    pub(super) fn of(mut self, model: &str) -> Self {
        self.model = model.into();
        self
    }

    /// Makes one of [`CALLS`].
    pub(super) async fn call(&mut self, call: &'static str) -> Answer {
        let limit = self.limit;
        let started = Instant::now();
        let made = async {
            match call {
                HTTP_LIVE => self.http_live().await,
                HTTP_INFER => self.http_infer().await,
                GRPC_LIVE => self.grpc_live().await,
                _ => self.grpc_infer().await,
            }
        };
        let made = timeout(limit, made).await;
        let ms = (started.elapsed().as_secs_f64() * 1e4).round() / 10.0;
        if made.is_err() {
            // An answer that comes later must not be taken for that of the next call.
            self.http = None;
        }
        let (ok, answer) = match made {
            Err(_) => (false, format!("no answer within {}", seconds(limit))),
            Ok(Ok(answer)) => (true, answer),
            Ok(Err(why)) => (false, why),
        };
        Answer {
            call,
            ok,
            answer,
            ms,
        }
    }

    async fn http_live(&mut self) -> Result<String, String> {
        let (status, body) = self.ask(Method::GET, "/v2/health/live", "").await?;
        if status == StatusCode::OK {
            Ok("200: live".into())
        } else {
            Err(refusal(status, &body))
        }
    }

    async fn http_infer(&mut self) -> Result<String, String> {
        let asked = r#"{"id":"1","inputs":[]}"#;
        let path = format!("/v2/models/{}/infer", self.model);
        let (status, body) = self.ask(Method::POST, &path, asked).await?;
        match serde_json::from_str::<serde_json::Value>(&body) {
            Ok(got) if status == StatusCode::OK && got["model_name"] == self.model.as_str() => {
                Ok(format!("200: {} answered", self.model))
            }
            _ => Err(refusal(status, &body)),
        }
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: &'static str,
    ) -> Result<(StatusCode, String), String> {
        let says = |error: &(dyn std::error::Error + 'static)| plain(&innermost(error));
        let mut kept = self.http.take();
        if let Some(open) = &mut kept
            && open.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(open) => open,
            None => {
                let stream = TcpStream::connect(self.http_at)
                    .await
                    .map_err(|e| says(&e))?;
                self.connections += 1;
                let (sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|e| says(&e))?;
                // Ends with its sender, which is in this caller.
                tokio::spawn(connection);
                sender
            }
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.http_at.to_string())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .map_err(|e| says(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| says(&e))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|e| says(&e))?;
        self.http = Some(sender);
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok((status, text))
    }

    async fn grpc_live(&mut self) -> Result<String, String> {
        let answer = GrpcInferenceServiceClient::new(self.health.clone())
            .server_live(ServerLiveRequest {})
            .await
            .map_err(|status| failure(&status))?;
        if answer.get_ref().live {
            return Ok("OK: live=true".into());
        }
        let why = answer.metadata().get("x-agent-shim-reason");
        let why = why.and_then(|w| w.to_str().ok()).unwrap_or("no reason");
        Err(format!("OK: live=false, {why}"))
    }

    async fn grpc_infer(&mut self) -> Result<String, String> {
        let mut client = Grpc::new(self.data.clone());
        client
            .ready()
            .await
            .map_err(|error| plain(&innermost(&error)))?;
        let asked = tonic::Request::new(Infer {
            model_name: self.model.clone(),
            id: "1".into(),
        });
        let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelInfer");
        let codec = ProstCodec::<Infer, Infer>::default();
        let answer = client.unary(asked, path, codec).await;
        match answer.map_err(|status| failure(&status))?.into_inner() {
            got if got.model_name == self.model && got.id == "1" => {
                Ok(format!("OK: {} answered", self.model))
            }
            got => Err(format!("another answer: {got:?}")),
        }
    }
}

/// A duration as people write it.
pub(super) fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ ..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

fn refusal(status: StatusCode, body: &str) -> String {
    let error = serde_json::from_str::<serde_json::Value>(body).ok();
    let said = error.as_ref().and_then(|e| e["error"].as_str());
    format!("{}: {}", status.as_u16(), said.unwrap_or(body))
}

fn failure(status: &Status) -> String {
    let code = match status.code() {
        Code::Unavailable => "UNAVAILABLE".to_string(),
        other => format!("{other:?}"),
    };
    match std::error::Error::source(status) {
        // No answer: the transport's own words.
        Some(source) => format!("{code}: {}", plain(&innermost(source))),
        None => format!("{code}: {}", status.message()),
    }
}

/// Without the system's error number, in lower case: for people.
fn plain(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or(text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}
