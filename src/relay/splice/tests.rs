use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A caller, and its connection as the shim has it.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (caller, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (caller.unwrap(), accepted.unwrap().0)
}

fn splice(caller: TcpStream, far: Far) -> Splice {
    let counter = || IntCounter::new("bytes", "bytes").unwrap();
    Splice {
        caller,
        far,
        to_server: Vec::new(),
        to_caller: Vec::new(),
        http2: None,
        received: counter(),
        sent: counter(),
    }
}

/// Both are found at once: what the far end said last, and that it takes no more.
#[tokio::test]
async fn the_last_words_of_the_far_end_arrive_though_its_caller_goes_on() {
    const LAST: &[u8] = b"enough";
    // Which is looked at first is left to chance.
    for n in 0..40 {
        let (mut caller, accepted) = connection().await;
        let (mut far, near) = UnixStream::pair().unwrap();
        far.write_all(LAST).await.unwrap();
        drop(far);
        caller.write_all(&[7; 3000]).await.unwrap();
        if n % 2 == 0 {
            caller.shutdown().await.unwrap();
        }
        accepted.readable().await.unwrap();
        let run = tokio::spawn(splice(accepted, Far::Local(near)).run(std::future::pending()));
        let mut heard = vec![0; LAST.len()];
        let read = caller.read_exact(&mut heard).await;
        assert!(read.is_ok() && heard == LAST, "connection {n}: {read:?}");
        // It does not last for longer than its caller.
        drop(caller);
        run.await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_that_does_not_stop_is_not_read_for_ever() {
    let (caller, accepted) = connection().await;
    let (far, near) = UnixStream::pair().unwrap();
    drop(far);
    let (_reads, mut writes) = caller.into_split();
    let endless =
        tokio::spawn(async move { while writes.write_all(&[7; 64 << 10]).await.is_ok() {} });
    let ended = splice(accepted, Far::Local(near)).run(std::future::pending());
    assert_ne!(ended.await, Ended::Caller);
    endless.await.unwrap();
}

/// The server's main process answers questions about models, however its worker stands.
#[tokio::test]
async fn only_on_a_connection_for_inference_is_data_a_sign_of_the_workers_life() {
    const DATA: &[u8] = b"\0\0\x01\0\x01\0\0\0\x01x";
    for infers in [true, false] {
        let (mut caller, accepted) = connection().await;
        let (mut far, near) = UnixStream::pair().unwrap();
        let in_flight = InFlight::default();
        let filter = || {
            Filter::new(super::super::frames::LeaveOut {
                acks: 0,
                pings: false,
            })
        };
        let mut splice = splice(accepted, Far::Local(near));
        splice.http2 = Some(Http2 {
            from_caller: filter(),
            from_server: filter(),
            pings: Vec::new(),
            calls: Calls::default(),
            opened: IntCounter::new("calls", "calls").unwrap(),
            in_flight: in_flight.clone(),
            marker: None,
            infers,
        });
        let run = tokio::spawn(splice.run(std::future::pending()));
        far.write_all(DATA).await.unwrap();
        let mut heard = vec![0; DATA.len()];
        caller.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, DATA);
        assert_eq!(in_flight.answers(), u64::from(infers));
        drop(caller);
        run.await.unwrap();
    }
}
