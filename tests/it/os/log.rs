//! Nobody reads the log, or nobody is there to: the shim goes on. It writes nothing else, so a full
//! disk or a read-only one reaches it only through its log.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use super::means::{Means, has};
use super::process::{Process, Start};
use crate::support::http::{Client, get, request};
use crate::support::{eventually, grpc, within};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Far more than a pipe holds, in lines of the level debug.
async fn talkative(process: &Process) {
    for _ in 0..300 {
        let stream = TcpStream::connect(process.http).await.unwrap();
        drop(stream);
    }
}

/// Calls both relays and asks the admin port.
async fn works(process: &Process) {
    let asked = request("POST", "/v2/models/iris/infer", "{}");
    let (status, _, _) = Client::connect(process.http).await.call(asked).await;
    assert_eq!(status, 200);
    let mut client = grpc::Client::connect(process.grpc).await;
    let answer = client.call("ModelInfer", b"over").await.unwrap();
    assert_eq!(answer.status().0, 0);
    assert_eq!(get(process.admin, "/livez").await.0, 200);
    assert_eq!(get(process.admin, "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up_and_the_loss_is_told() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let start = Start::before(&server).with("SHIM_LOG", "trace");
    let mut process = start.log(Stdio::piped()).ready().await;
    // A pipe holds 64 KiB: the process is past that when a write of its log sleeps.
    let full = eventually("the pipe to be full", async || {
        talkative(&process).await;
        works(&process).await;
        let lost = process.metric("agent_shim_log_lines_lost_total").await?;
        (lost > 0.0).then_some(lost)
    });
    full.await;
    works(&process).await;
    // Whoever reads again is told how much is missing.
    let mut lines = BufReader::new(process.child.stderr.take().unwrap()).lines();
    within("the word about the loss", async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("log lines were lost") {
                return;
            }
        }
        panic!("the log ended without a word about the loss");
    })
    .await;
    works(&process).await;
}

#[tokio::test]
async fn a_log_that_is_closed_or_full_costs_nothing() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    for log in [Stdio::from(full.unwrap()), Stdio::from(writer)] {
        let start = Start::before(&server).with("SHIM_LOG", "debug");
        let mut process = start.log(log).ready().await;
        talkative(&process).await;
        server.stop().await;
        process.is_ready(false).await;
        server.restart().await.unwrap();
        process.is_ready(true).await;
        works(&process).await;
        assert!(process.runs());
    }
}

/// No descriptor 1 or 2 at all, as under a supervisor that gives none.
#[tokio::test]
async fn no_standard_streams_at_all_cost_nothing() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let shell = ["sh", "-c", "exec \"$0\" <&- >&- 2>&-"];
    let start = Start::before(&server).under(&shell);
    let process = start.with("SHIM_LOG", "debug").ready().await;
    talkative(&process).await;
    works(&process).await;
}

/// The root read-only, and no space for temporary files: the shim opens no file to write.
#[tokio::test]
async fn a_read_only_root_and_a_full_disk_are_not_noticed() {
    let check = "a read-only root";
    if !has(check, &[Means::Namespaces]) {
        return;
    }
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let script = "mount -t tmpfs -o size=4k tmpfs /mnt && { head -c 9999 /dev/zero > /mnt/full || true; } 2>/dev/null && export TMPDIR=/mnt \
        && mount -o remount,bind,ro / && ! touch /written 2>/dev/null && exec \"$0\"";
    let words = ["unshare", "--mount", "sh", "-c", script];
    let process = Start::before(&server).under(&words).ready().await;
    talkative(&process).await;
    works(&process).await;
    let written: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", process.pid()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|to| to.display().to_string())
        .filter(|to| to.starts_with('/') && to != "/dev/null" && !to.starts_with("/proc/"))
        .collect();
    assert!(written.is_empty(), "{written:?}");
    tokio::time::timeout(Duration::from_secs(5), works(&process))
        .await
        .unwrap();
}
