//! `SHIM_MODE=observe`: every byte passes as it came, and the shim only watches.

use std::net::SocketAddr;

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Shim, grpc, refused, within};

/// A server that notes what it gets and answers with bytes of its own.
async fn recorder() -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = vec![0; 4];
            // Probes come here as well; the test's caller says MARK first.
            if stream.read_exact(&mut first).await.is_ok() && first == b"MARK" {
                stream.write_all(b"\x00\xffanswer").await.unwrap();
                let mut all = first;
                stream.read_to_end(&mut all).await.unwrap();
                return all;
            }
        }
    });
    (address, task)
}

#[tokio::test]
async fn not_one_byte_changes_in_either_direction() {
    for protocol in ["http", "grpc"] {
        let (server, heard) = recorder().await;
        let shim = Shim::before("127.0.0.1", server, server, &[("SHIM_MODE", "observe")]);
        let to = if protocol == "http" {
            shim.http()
        } else {
            shim.grpc()
        };
        let mut sent = b"MARK".to_vec();
        sent.extend((0..200_000u32).map(|i| (i * 31 % 251) as u8));
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        within("the answer", stream.read_to_end(&mut answer))
            .await
            .unwrap();
        assert_eq!(answer, b"\x00\xffanswer", "{protocol}");
        assert!(
            heard.await.unwrap() == sent,
            "{protocol}: the bytes have changed"
        );
    }
}

#[tokio::test]
async fn health_is_the_servers_own_and_is_watched_all_the_same() {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let observe = [("SHIM_MODE", "observe")];
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &observe);
    shim.ready().await;
    assert_eq!(shim.status().await["mode"], "observe");
    let mut client = grpc::Client::connect(shim.grpc()).await;
    client
        .call_with("ServerLive", b"", &[("x-me", "1")])
        .await
        .unwrap();
    let asked = server
        .calls()
        .iter()
        .filter(|c| c.headers.contains_key("x-me"))
        .count();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn a_server_that_refuses_is_a_closed_connection_as_without_the_shim() {
    let (nowhere, _port) = refused().await;
    let shim = Shim::before("127.0.0.1", nowhere, nowhere, &[("SHIM_MODE", "observe")]);
    let heard = crate::support::http::raw(shim.http(), b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(heard, "");
}
