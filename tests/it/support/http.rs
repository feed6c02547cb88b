//! HTTP/1.1 callers: one connection each, so that tests know what happens on it.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::within;

pub type Body = BoxBody<Bytes, std::convert::Infallible>;

/// A connection of its own; dropped, it closes.
pub struct Client {
    sender: SendRequest<Body>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    BoxBody::new(Full::new(bytes.into()))
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Client {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Client { sender, task }
    }

    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        within("the connection to be free", self.sender.ready()).await?;
        within("response headers", self.sender.send_request(request)).await
    }

    /// Sends without a bound on the answer; for answers that are meant to take long.
    pub async fn start(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    pub async fn get(&mut self, path: &str) -> (u16, http::HeaderMap, Bytes) {
        self.call(request("GET", path, "")).await
    }

    pub async fn call(&mut self, request: Request<Body>) -> (u16, http::HeaderMap, Bytes) {
        let response = self.send(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = within("the body", body.collect()).await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, body)
    }
}

pub fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(full(body))
        .unwrap()
}

/// One GET on a connection of its own.
pub async fn get(to: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = Client::connect(to).await.get(path).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// As [`get`], over this connection; `None` where it broke or took more than a second.
pub async fn get_over(stream: TcpStream, path: &str) -> Option<(u16, String)> {
    let asked = async {
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
        let task = tokio::spawn(connection);
        let response = sender.send_request(request("GET", path, "")).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        task.abort();
        Some((status, String::from_utf8(body.to_vec()).ok()?))
    };
    let limit = std::time::Duration::from_secs(1);
    tokio::time::timeout(limit, asked).await.ok().flatten()
}

/// Sends raw bytes and returns everything that comes until the other side closes.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    until_closed(&mut stream).await
}

pub async fn until_closed(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is a close as well.
    let _ = within("the connection to be closed", stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}
