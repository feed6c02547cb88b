//! gRPC callers over a connection of their own, with bare messages: the tests look at frames,
//! headers and trailers, not at generated types.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::within;

pub const SERVICE: &str = "/inference.GRPCInferenceService";

type Item = Result<Frame<Bytes>, std::convert::Infallible>;
type Body = StreamBody<ReceiverStream<Item>>;

/// A connection; dropped, it closes.
pub struct Client {
    sender: SendRequest<Body>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What came of a call.
#[derive(Debug, Clone)]
pub struct Answer {
    pub headers: HeaderMap,
    pub messages: Vec<Bytes>,
    pub trailers: HeaderMap,
}

impl Answer {
    /// The gRPC status, from the trailers or from headers that are all there is.
    pub fn status(&self) -> (i32, String) {
        let of = |name| {
            let value = self.trailers.get(name).or_else(|| self.headers.get(name))?;
            Some(value.to_str().unwrap().to_string())
        };
        let code = of("grpc-status").map_or(-1, |s| s.parse().unwrap());
        (code, of("grpc-message").unwrap_or_default())
    }
}

/// A call whose messages the test sends and takes one by one.
pub struct Stream {
    pub send: Option<mpsc::Sender<Item>>,
    response: Response<Incoming>,
    buffer: BytesMut,
    pub trailers: Option<HeaderMap>,
}

pub fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Client {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Client { sender, task }
    }

    /// Whether the connection still takes calls.
    pub async fn usable(&mut self) -> bool {
        within("the connection's verdict", self.sender.ready())
            .await
            .is_ok()
    }

    /// Whether the connection has been told to take no more calls.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn request(path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
        let mut request = Request::builder()
            .method("POST")
            .uri(format!("http://test{SERVICE}/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    }

    /// Opens a call and waits for the response headers.
    pub async fn open(&mut self, path: &str, headers: &[(&str, &str)]) -> hyper::Result<Stream> {
        self.open_with(path, headers, &[]).await
    }

    /// Opens a call that has sent messages already.
    pub async fn open_with(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        messages: &[&[u8]],
    ) -> hyper::Result<Stream> {
        let (send, body) = mpsc::channel(64);
        for message in messages {
            send.send(Ok(Frame::data(framed(message)))).await.unwrap();
        }
        let request = Self::request(path, headers, StreamBody::new(ReceiverStream::new(body)));
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        Ok(Stream {
            send: Some(send),
            response,
            buffer: BytesMut::new(),
            trailers: None,
        })
    }

    /// A unary call.
    pub async fn call(&mut self, path: &str, message: &[u8]) -> hyper::Result<Answer> {
        self.call_with(path, message, &[]).await
    }

    pub async fn call_with(
        &mut self,
        path: &str,
        message: &[u8],
        headers: &[(&str, &str)],
    ) -> hyper::Result<Answer> {
        let what = format!("the answer to {path}");
        within(&what, async {
            let (send, body) = mpsc::channel(1);
            let _ = send.send(Ok(Frame::data(framed(message)))).await;
            drop(send);
            let request = Self::request(path, headers, StreamBody::new(ReceiverStream::new(body)));
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let stream = Stream {
                send: None,
                response,
                buffer: BytesMut::new(),
                trailers: None,
            };
            stream.rest().await
        })
        .await
    }
}

impl Stream {
    pub async fn say(&self, message: &[u8]) {
        let sent = self
            .send
            .as_ref()
            .unwrap()
            .send(Ok(Frame::data(framed(message))))
            .await;
        sent.unwrap();
    }

    /// Ends this side.
    pub fn finish(&mut self) {
        self.send = None;
    }

    /// The next message, or `None` at the end.
    pub async fn next(&mut self) -> hyper::Result<Option<Bytes>> {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    let mut message = self.buffer.split_to(5 + length);
                    return Ok(Some(message.split_off(5).freeze()));
                }
            }
            match within("a frame", self.response.frame()).await {
                None => return Ok(None),
                Some(frame) => match frame?.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(other) => self.trailers = other.into_trailers().ok(),
                },
            }
        }
    }

    /// Everything that is still to come.
    pub async fn rest(mut self) -> hyper::Result<Answer> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await? {
            messages.push(message);
        }
        Ok(Answer {
            headers: self.response.headers().clone(),
            messages,
            trailers: self.trailers.unwrap_or_default(),
        })
    }
}
