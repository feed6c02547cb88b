//! HTTP/2 by hand: frames, header blocks, and callers who send them without manners.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// The start of a client's connection.
pub fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A literal field without indexing.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    field(0x00, name, value)
}

/// A literal field that goes into the dynamic table.
pub fn indexed(name: &str, value: &str) -> Vec<u8> {
    field(0x40, name, value)
}

fn field(kind: u8, name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![kind];
    for text in [name, value] {
        number(&mut out, 7, text.len());
        out.extend(text.as_bytes());
    }
    out
}

/// An integer of HPACK with a prefix of so many bits.
fn number(out: &mut Vec<u8>, bits: u32, mut value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        out.push(value as u8);
        return;
    }
    out.push(most as u8);
    value -= most;
    while value >= 128 {
        out.push((value % 128 + 128) as u8);
        value /= 128;
    }
    out.push(value as u8);
}

/// The header block of a gRPC call.
pub fn call(path: &str) -> Vec<u8> {
    [
        vec![0x83, 0x86],
        literal(":path", path),
        literal(":authority", "mlserver"),
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
    ]
    .concat()
}

/// The header block of a GET.
pub fn get(path: &str) -> Vec<u8> {
    [
        vec![0x82, 0x86],
        literal(":path", path),
        literal(":authority", "127.0.0.1"),
    ]
    .concat()
}

pub const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
pub const LIVE: &str = "/inference.GRPCInferenceService/ServerLive";

/// Sends pieces until they end or the other side has had enough, reading what comes meanwhile.
/// Returns what was read, up to 1 MiB.
pub async fn flood(
    to: SocketAddr,
    pieces: impl Iterator<Item = Vec<u8>>,
    patience: Duration,
) -> Vec<u8> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let heard = tokio::spawn(async move {
        let (mut heard, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            if heard.len() < 1 << 20 {
                heard.extend_from_slice(&buffer[..n]);
            }
        }
        heard
    });
    for piece in pieces {
        if write.write_all(&piece).await.is_err() {
            break;
        }
    }
    // A moment for what was said last to be answered; then the caller goes.
    let stop = heard.abort_handle();
    let heard = tokio::time::timeout(patience, heard).await;
    stop.abort();
    heard.map(Result::unwrap).unwrap_or_default()
}

/// Sends all of it, or as much as is taken within a second, never reads, and holds on.
pub async fn deaf(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let limit = Duration::from_secs(1);
    let _ = tokio::time::timeout(limit, stream.write_all(bytes)).await;
    stream
}

/// The code of the GOAWAY in what was heard, if there is one.
pub fn goaway(mut heard: &[u8]) -> Option<u32> {
    while heard.len() >= 9 {
        let length = u32::from_be_bytes([0, heard[0], heard[1], heard[2]]) as usize;
        let payload = heard.get(9..9 + length)?;
        if heard[3] == GOAWAY {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        heard = &heard[9 + length..];
    }
    None
}
