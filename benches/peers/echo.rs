//! The upstream of the peer comparison: an Open Inference Protocol server that gives an inference
//! its own bytes back, as fast as one thread can, and answers what a prober asks.
//!
//! `echo HTTP_PORT GRPC_PORT [ADDRESS]`, both on 127.0.0.1 or the address; a port of 0 is chosen by
//! the system. It prints one line with both once it listens. HTTP/2 settings are those of the real
//! server. `echo relay PORT=PORT...` carries bytes from the first port to the second and knows
//! nothing of them: what the simplest process in the path costs.

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
use tokio::net::{TcpListener, TcpStream};

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

/// Carries the bytes of every connection to `near` to the port `far`.
async fn relay(near: u16, far: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, near))
        .await
        .unwrap();
    loop {
        let Ok((mut caller, _)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(async move {
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, far)).await?;
            caller.set_nodelay(true)?;
            server.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut caller, &mut server).await
        });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, pairs)) if first == "relay" => {
            for pair in pairs {
                let (near, far) = pair.split_once('=').unwrap();
                tokio::spawn(relay(near.parse().unwrap(), far.parse().unwrap()));
            }
            std::future::pending().await
        }
        _ => echo(&arguments).await,
    }
}

async fn echo(arguments: &[String]) {
    let address = arguments
        .get(2)
        .map_or(Ipv4Addr::LOCALHOST, |a| a.parse().unwrap());
    let mut ports = arguments.iter().map(|p| p.parse::<u16>().unwrap());
    let mut bind = || {
        let port = ports.next().unwrap_or(0);
        TcpListener::bind((address, port))
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
