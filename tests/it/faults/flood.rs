//! Faults that are too much of something: callers, bytes, subscriptions.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent_shim::proto::agent::AgentSubscribeRequest;
use agent_shim::proto::agent::agent_service_client::AgentServiceClient;
use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::driver::everything;
use super::pace::promised;
use super::server::ID;
use super::stage::Stage;
use crate::support::grpc::SERVICE;
use crate::support::http::request;

/// Callers of the crowd.
const CALLERS: usize = 1000;
/// The number of the first of their calls, beyond those of the ledger.
const CROWD: u64 = 9_100_000_000;
/// The size of the huge message, and what the shim may hold of it, in KiB.
const MESSAGE: u64 = 1 << 30;
const HELD: u64 = 32 << 10;

/// Subscribes, drops the call, and again, until it is stopped.
pub async fn tight_loop(to: SocketAddr, turns: Arc<AtomicUsize>) {
    let Ok(endpoint) = tonic::transport::Endpoint::from_shared(format!("http://{to}")) else {
        return;
    };
    let channel = endpoint.connect_lazy();
    loop {
        let mut client = AgentServiceClient::new(channel.clone());
        let request = AgentSubscribeRequest {
            server_name: super::scheduler::SERVER.into(),
            shared: true,
            ..Default::default()
        };
        turns.fetch_add(1, Ordering::Relaxed);
        let _ = tokio::time::timeout(Duration::from_millis(5), client.subscribe(request)).await;
    }
}

/// A thousand callers at once, each with one call, who stay connected until the fault ends.
pub async fn crowd(stage: &Stage) {
    let to = stage.targets().http;
    let mut callers = JoinSet::new();
    for n in 0..CALLERS as u64 {
        callers.spawn(async move {
            let stream = TcpStream::connect(to).await.ok()?;
            let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = made.ok()?;
            let mut task = JoinSet::new();
            task.spawn(async move {
                let _ = connection.await;
            });
            let body = format!("{{\"id\": \"crowd {n}\"}}");
            let mut call = request("POST", "/v2/models/iris/infer", body);
            call.headers_mut().insert(ID, (CROWD + n).into());
            let response = sender.send_request(call).await.ok()?;
            let served = response.status() == 200;
            response.into_body().collect().await.ok()?;
            served.then_some((sender, task))
        });
    }
    let all = async {
        let mut served = Vec::new();
        while let Some(ended) = callers.join_next().await {
            served.extend(ended.unwrap());
        }
        served
    };
    // They share two cores with everybody: a minute is no promise, only an end.
    let served = tokio::time::timeout(promised(20.0), all)
        .await
        .unwrap_or_default();
    if served.len() != CALLERS {
        stage.complain(format!("{} of {CALLERS} callers were served", served.len()));
    }
    // That none is there twice is judged with the rest.
    let received = stage.server.received();
    let missed = (CROWD..CROWD + CALLERS as u64).filter(|id| !received.contains_key(id));
    let missed = missed.count();
    if missed > CALLERS - served.len() {
        stage.complain(format!(
            "{missed} of {CALLERS} callers never reached the server"
        ));
    }
    stage.tasks.lock().await.spawn(async move {
        std::future::pending::<()>().await;
        drop(served);
    });
}

/// The size: all of it where somebody asked for the full matrix, else an eighth.
fn size() -> u64 {
    match everything() {
        true => MESSAGE,
        false => MESSAGE / 8,
    }
}

/// A message larger than the shim may become, over both protocols.
pub async fn huge(stage: &Stage) {
    let targets = stage.targets();
    let before = stage.shim.lock().await.as_ref().map(|s| s.held().anonymous);
    let mut calls = JoinSet::new();
    calls.spawn(async move { ("HTTP", http(targets.http).await) });
    calls.spawn(async move { ("gRPC", grpc(targets.grpc).await) });
    let mut most = 0;
    loop {
        tokio::select! {
            ended = calls.join_next() => match ended {
                None => break,
                Some(ended) => {
                    let (protocol, arrived) = ended.unwrap();
                    if arrived.as_deref() != Ok("all") {
                        stage.complain(format!("a huge message over {protocol}: {arrived:?}"));
                    }
                }
            },
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                if let Some(shim) = stage.shim.lock().await.as_ref() {
                    most = most.max(shim.held().anonymous);
                }
            }
        }
    }
    if let Some(before) = before.filter(|before| most > before + HELD) {
        stage.complain(format!(
            "the shim held {most} KiB during huge messages, {before} before"
        ));
    }
}

type Piece = Result<Frame<Bytes>, Infallible>;

/// A body that nobody holds: the same piece again and again.
fn pieces(first: Bytes, bytes: u64) -> StreamBody<impl tokio_stream::Stream<Item = Piece>> {
    let piece = Bytes::from(vec![7; 64 << 10]);
    let whole = bytes / piece.len() as u64;
    let all = std::iter::once(first).chain(std::iter::repeat_n(piece, whole as usize));
    StreamBody::new(tokio_stream::iter(all.map(|data| Ok(Frame::data(data)))))
}

async fn http(to: SocketAddr) -> Result<&'static str, String> {
    let say = |error: hyper::Error| error.to_string();
    let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(say)?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _ = connection.await;
    });
    let call = Request::post("/sink")
        .header("host", "test")
        .header(ID, "9000000001");
    let call = call.body(pieces(Bytes::new(), size())).unwrap();
    let answer = sender.send_request(call).await.map_err(say)?;
    let answer = answer.into_body().collect().await.map_err(say)?.to_bytes();
    complete(&answer, size())
}

async fn grpc(to: SocketAddr) -> Result<&'static str, String> {
    let say = |error: hyper::Error| error.to_string();
    let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = made.await.map_err(say)?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _ = connection.await;
    });
    let mut prefix = BytesMut::new();
    prefix.put_u8(0);
    prefix.put_u32(size() as u32);
    let call = Request::post(format!("http://test{SERVICE}/Sink"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(ID, "9000000002")
        .body(pieces(prefix.freeze(), size()))
        .unwrap();
    let answer = sender.send_request(call).await.map_err(say)?;
    let answer = answer.into_body().collect().await.map_err(say)?.to_bytes();
    complete(&answer, size() + 5)
}

/// Whether the server says that it got so many bytes.
fn complete(answer: &Bytes, bytes: u64) -> Result<&'static str, String> {
    let said = String::from_utf8_lossy(answer).into_owned();
    match said.contains(&bytes.to_string()) {
        true => Ok("all"),
        false => Err(said),
    }
}

/// Callers who say nothing and stay, one after the other, far more than there are descriptors.
pub async fn hoard(stage: &Stage) {
    if !stage.with_shim {
        return;
    }
    let targets = stage.targets();
    let mut all = Vec::new();
    for n in 0..200 {
        let at = [targets.http, targets.grpc][n % 2];
        all.push(TcpStream::connect(at).await);
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    stage.tasks.lock().await.spawn(async move {
        let _all = all;
        std::future::pending::<()>().await;
    });
}

/// Takes the room for more memory from the shim's control group, and makes the shim want some, until
/// the kernel has killed it.
pub async fn over_the_limit(stage: &Stage) {
    let group = stage.wants.group.as_ref().expect("the row wants one");
    // The older interface refuses a limit that is below what is in use and cannot be given back.
    let least = (1..64).find(|mib| group.limit(mib << 20).is_ok());
    let to = stage.targets().http;
    let mut callers = Vec::new();
    let mut shim = stage.shim.lock().await;
    let running = shim.as_mut().expect("it runs");
    for _ in 0..4000 {
        callers.push(tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(to)).await);
        if running.ended().is_some() {
            break;
        }
    }
    if running.wait(promised(5.0)).await != Some(None) || group.events().0 == 0 {
        stage.complain(format!(
            "not killed at {least:?} MiB with {} callers: {:?}",
            callers.len(),
            running.ended()
        ));
    }
}
