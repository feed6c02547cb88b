//! Callers with a whole HTTP/2 library, who keep to flow control and never come to an end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};

/// A connection that is open while the set lives.
pub async fn connection<B>(to: SocketAddr, open: &mut JoinSet<hyper::Result<()>>) -> SendRequest<B>
where
    B: Body<Data = Bytes, Error = Infallible> + Unpin + Send + 'static,
{
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    open.spawn(connection);
    sender
}

/// A gRPC call whose body says so much and never ends.
pub fn request<S: Stream<Item = Bytes>>(
    path: &str,
    sent: S,
) -> Request<impl Body<Data = Bytes, Error = Infallible> + use<S>> {
    let pieces = sent.map(|piece| Ok(Frame::data(piece)));
    Request::post(format!("http://mlserver{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(StreamBody::new(pieces.chain(tokio_stream::pending())))
        .unwrap()
}

/// Such a call over a connection of its own; completes with the head of its answer.
pub async fn unended<S: Stream<Item = Bytes> + Unpin + Send + 'static>(
    to: SocketAddr,
    path: &str,
    sent: S,
) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<S> {
    let mut open = JoinSet::new();
    let mut sender = connection(to, &mut open).await;
    let request = request(path, sent);
    async move {
        let answer = sender.send_request(request).await;
        drop(open);
        answer
    }
}
