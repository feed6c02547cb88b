//! The upstream of the peer comparison: an Open Inference Protocol server that gives an inference
//! its own bytes back, as fast as one thread can, and answers what a prober asks.
//!
//! `echo HTTP_PORT GRPC_PORT`, both on 127.0.0.1; a port of 0 is chosen by the system. It prints
//! one line with both once it listens. HTTP/2 settings are those of the real server.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

type Body = BoxBody<Bytes, Infallible>;

fn body(frames: Vec<Frame<Bytes>>) -> Body {
    let frames = tokio_stream::iter(frames.into_iter().map(Ok));
    BodyExt::boxed(http_body_util::StreamBody::new(frames))
}

async fn bytes_of(request: Request<Incoming>) -> Vec<Bytes> {
    let mut incoming = request.into_body();
    let mut chunks = Vec::new();
    while let Some(Ok(frame)) = incoming.frame().await {
        if let Ok(data) = frame.into_data() {
            chunks.push(data);
        }
    }
    chunks
}

async fn http(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let chunks = match request.uri().path() {
        "/v2/repository/index" => vec![Bytes::from_static(b"[]")],
        "/v2" => vec![Bytes::from_static(
            br#"{"name":"echo","version":"1","extensions":[]}"#,
        )],
        path if path.ends_with("/infer") => bytes_of(request).await,
        _ => Vec::new(),
    };
    let length: usize = chunks.iter().map(Bytes::len).sum();
    let mut response = Response::new(body(chunks.into_iter().map(Frame::data).collect()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("content-length", HeaderValue::from(length));
    Ok(response)
}

async fn grpc(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let chunks = match request.uri().path().rsplit('/').next() {
        Some("ModelInfer") => bytes_of(request).await,
        // A message of one true.
        Some("ServerLive" | "ServerReady" | "ModelReady") => {
            vec![Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])]
        }
        _ => vec![Bytes::from_static(&[0, 0, 0, 0, 0])],
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut frames: Vec<Frame<Bytes>> = chunks.into_iter().map(Frame::data).collect();
    frames.push(Frame::trailers(trailers));
    let mut response = Response::new(body(frames));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut ports = std::env::args().skip(1).map(|p| p.parse::<u16>().unwrap());
    let mut bind = || {
        let port = ports.next().unwrap_or(0);
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
    };
    let (one, two) = (bind().await.unwrap(), bind().await.unwrap());
    println!(
        "http={} grpc={}",
        one.local_addr().unwrap().port(),
        two.local_addr().unwrap().port()
    );
    let serve_http = async {
        loop {
            let Ok((stream, _)) = one.accept().await else {
                continue;
            };
            stream.set_nodelay(true).unwrap();
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(http));
            tokio::spawn(serving);
        }
    };
    let serve_grpc = async {
        loop {
            let Ok((stream, _)) = two.accept().await else {
                continue;
            };
            stream.set_nodelay(true).unwrap();
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(4 << 20)
                .max_frame_size(4 << 20)
                .max_concurrent_streams(None)
                .serve_connection(TokioIo::new(stream), service_fn(grpc));
            tokio::spawn(serving);
        }
    };
    tokio::join!(serve_http, serve_grpc);
}
