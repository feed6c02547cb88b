//! A caller notices what it has not asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::super::ledger::{Fate, Kind, Ledger};
use super::super::stage::until;
use super::call::Connection;

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n\"id\":\"7\"";

/// One call to a server that says this to it, and what the caller says of that besides.
async fn answered(with: String) -> (Fate, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = [0; 4096];
        assert!(stream.read(&mut some).await.unwrap() > 0);
        stream
            .write_all(&with.as_bytes()[..ANSWER.len()])
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream
            .write_all(&with.as_bytes()[ANSWER.len()..])
            .await
            .unwrap();
    });
    let ledger: Arc<Ledger> = Arc::default();
    let stop = watch::Sender::new(false);
    let opened = Connection::open(Kind::HttpUnary, to, &ledger).await;
    let Ok(mut connection) = opened else {
        panic!("nobody listens");
    };
    let fate = connection
        .call(Kind::HttpUnary, 7, &mut stop.subscribe())
        .await;
    server.await.unwrap();
    let closed = async || !connection.serves_after(&Fate::Served);
    assert!(until(Duration::from_secs(10), closed).await.is_some());
    tokio::task::yield_now().await;
    (fate, ledger.all_unasked())
}

#[tokio::test]
async fn a_second_answer_to_one_call_is_noticed() {
    let (fate, unasked) = answered(ANSWER.into()).await;
    assert_eq!((fate, unasked.len()), (Fate::Served, 0), "an end in order");
    let (fate, unasked) = answered(format!("{ANSWER}{ANSWER}")).await;
    assert_eq!((fate, unasked.len()), (Fate::Served, 1), "{unasked:?}");
}
