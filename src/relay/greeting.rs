//! The first bytes of a caller: is this the port it wants?

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::frames::PREFACE;
use super::{Context, End};
use crate::endpoint::Protocol;
use crate::places::Place;

/// How often a caller that has shown a part of HTTP/2's first bytes is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for the first bytes and gives them back with the connection. A caller of another
/// protocol is told so; one that says nothing in time is let go.
pub async fn greet(
    mut stream: TcpStream,
    context: &Context,
    place: &Place,
) -> Result<(TcpStream, Bytes), End> {
    let sniffed = tokio::select! {
        sniffed = sniff(&mut stream, context.header_timeout) => sniffed,
        () = place.wanted() => return Err(End::Closed),
    };
    let told = match sniffed {
        Ok((Spoken::Http1, before)) if context.protocol == Protocol::Http => {
            return Ok((stream, before));
        }
        Ok((Spoken::Http2, before)) if context.protocol == Protocol::Grpc => {
            return Ok((stream, before));
        }
        Ok((Spoken::Http1, _)) => {
            "this port speaks gRPC (HTTP/2); HTTP/1.1 goes to the HTTP relay (SHIM_RELAY_HTTP_PORT)"
        }
        Ok((Spoken::Http2, _)) => {
            "this port speaks HTTP/1.1; gRPC goes to the gRPC relay (SHIM_RELAY_GRPC_PORT)"
        }
        Ok((Spoken::Tls, _)) => "this port does not speak TLS",
        Err(Silent::Closed) => return Err(End::Closed),
        Err(Silent::Timeout) => return Err(End::Timeout),
    };
    refuse(stream, told).await;
    Err(End::WrongProtocol)
}

/// Whether the caller shows in time what it speaks. The library waits for that without a bound,
/// and callers who say nothing would take every place, kubelet's too.
pub async fn begun(stream: &TcpStream, limit: Duration) -> bool {
    let shown = async {
        let mut first = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut first).await {
                Ok(0) | Err(_) => return false,
                Ok(n) if n == first.len() || !PREFACE.starts_with(&first[..n]) => return true,
                // Bytes that are only peeked at wake again at once.
                Ok(_) => sleep(LOOK).await,
            }
        }
    };
    timeout(limit, shown).await.unwrap_or(false)
}

/// What a caller speaks, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    /// Something that may be HTTP/1.
    Http1,
    /// The HTTP/2 preface (complete).
    Http2,
    /// A TLS ClientHello.
    Tls,
}

/// Why nothing could be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silent {
    /// The caller left before it had said anything, as a TCP health check does.
    Closed,
    /// The caller said nothing, or too little, within the limit.
    Timeout,
}

/// Reads as much as is needed to tell what the caller speaks. The bytes are returned.
async fn sniff(stream: &mut TcpStream, limit: Duration) -> Result<(Spoken, Bytes), Silent> {
    let mut seen = BytesMut::with_capacity(1024);
    let told = async {
        loop {
            match stream.read_buf(&mut seen).await {
                Ok(0) | Err(_) => return Err(Silent::Closed),
                Ok(_) => {}
            }
            if seen.starts_with(&[0x16, 0x03]) {
                return Ok(Spoken::Tls);
            }
            if seen.starts_with(PREFACE) {
                return Ok(Spoken::Http2);
            }
            // "PRI" could still become the preface, or a request with an odd method.
            if !PREFACE.starts_with(&seen) && seen.len() > 1 {
                return Ok(Spoken::Http1);
            }
        }
    };
    let spoken = timeout(limit, told).await.unwrap_or(Err(Silent::Timeout))?;
    Ok((spoken, seen.freeze()))
}

/// Tells a caller who dialled the wrong port, in the one language that most clients show.
async fn refuse(mut stream: TcpStream, why: &str) {
    let body = format!("{{\"error\":\"agent-shim: {why}\"}}");
    let text = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Somebody who speaks another protocol may well be gone; the close says the rest.
    let _ = timeout(Duration::from_secs(1), async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_caller_that_does_not_show_what_it_speaks_gives_its_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (said, taken) in [
            (&b""[..], false),
            (&PREFACE[..5], false),
            (PREFACE, true),
            (b"GET", true),
        ] {
            let mut caller = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            caller.write_all(said).await.unwrap();
            let limit = Duration::from_millis(200);
            assert_eq!(begun(&stream, limit).await, taken, "{said:?}");
        }
    }
}
