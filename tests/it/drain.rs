//! `/drain`: what waits for what, what is asked of the agent, and drains that were none.

use std::time::Duration;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::demo::standin::StandIn;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::http::{self, Client, request};
use crate::support::pages::{Page, Pages};
use crate::support::{Shim, eventually, grpc, pair, within};

const RUNNING: &str = "agent_shim_relay_running_calls";

/// A call of `/drain` that the test goes on beside.
fn hook(shim: &Shim, query: &str) -> JoinHandle<(u16, String)> {
    let (admin, path) = (shim.admin(), format!("/drain{query}"));
    tokio::spawn(async move {
        let mut client = Client::connect(admin).await;
        let response = client.start(request("GET", &path, "")).await.unwrap();
        let status = response.status().as_u16();
        let body = http_body_util::BodyExt::collect(response.into_body()).await;
        let body = body.unwrap().to_bytes().to_vec();
        (status, String::from_utf8(body).unwrap())
    })
}

async fn answer(hook: JoinHandle<(u16, String)>) -> String {
    let (code, text) = within("the drain's answer", hook).await.unwrap();
    assert_eq!(code, 200, "{text}");
    text
}

/// The drain's part of the status, as soon as it is in this state.
async fn drain(shim: &Shim, state: &str) -> serde_json::Value {
    eventually(&format!("the drain to be {state}"), async || {
        let drain = shim.status().await["drain"].clone();
        (drain["state"] == state).then_some(drain)
    })
    .await
}

fn event(event: &str) -> String {
    format!("agent_shim_drains_total{{event=\"{event}\"}}")
}

#[tokio::test]
async fn a_drain_waits_for_silent_calls_of_both_protocols_and_refuses_none() {
    let (server, shim) = pair(&[]).await;
    let (to_http, to_grpc) = (shim.http(), shim.grpc());
    let web = tokio::spawn(async move {
        let mut client = Client::connect(to_http).await;
        let response = client.start(request("GET", "/hang", "")).await.unwrap();
        response.status().as_u16()
    });
    let data = tokio::spawn(async move {
        let mut client = grpc::Client::connect(to_grpc).await;
        client.call("Hang", b"x").await.unwrap().status().0
    });
    shim.metric_reaches(RUNNING, 2.0).await;
    let hooked = hook(&shim, "");
    let status = drain(&shim, "draining").await;
    assert_eq!(
        (&status["running"], &status["at_start"]),
        (&2.into(), &2.into())
    );
    assert_eq!(status["waiting"], 1);
    let (code, text) = shim.get("/readyz").await;
    assert_eq!(code, 503);
    assert!(text.starts_with("not-draining: the pod drains"), "{text}");
    assert_eq!(shim.get("/livez").await.0, 200);
    // Old and new callers are carried on as always.
    assert_eq!(http::get(shim.http(), "/headers").await.0, 200);
    let mut new = grpc::Client::connect(shim.grpc()).await;
    assert_eq!(new.call("ModelInfer", b"x").await.unwrap().messages, ["x"]);
    assert!(!hooked.is_finished());
    server.release();
    assert_eq!(within("HTTP", web).await.unwrap(), 200);
    assert_eq!(within("gRPC", data).await.unwrap(), 0);
    let text = answer(hooked).await;
    assert!(
        text.starts_with("drained in ") && text.contains("; 2 ran when it began"),
        "{text}"
    );
    let status = drain(&shim, "drained").await;
    assert_eq!(
        (&status["running"], &status["waiting"]),
        (&0.into(), &0.into())
    );
    assert_eq!(
        shim.get("/readyz").await.0,
        503,
        "until it is known what follows"
    );
    assert_eq!(shim.metric(&event("drained")).await, 1.0);
}

#[tokio::test]
async fn calls_that_are_given_up_or_cut_do_not_run() {
    let (server, shim) = pair(&[]).await;
    let mut cut = grpc::Client::connect(shim.grpc()).await;
    let mut web = Client::connect(shim.http()).await;
    let hanging = async {
        let calls = tokio::join!(
            cut.open_with("Hang", &[], &[b"x"]),
            web.start(request("GET", "/hang", "")),
        );
        std::future::pending::<()>().await;
        drop(calls);
    };
    tokio::select! {
        () = hanging => {}
        () = shim.metric_reaches(RUNNING, 2.0) => {}
    }
    // The gRPC call was reset when its future went; the HTTP one goes with its connection.
    drop(web);
    let mut stream = cut
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    eventually("only the stream to run", async || {
        (shim.metric(RUNNING).await == 1.0).then_some(())
    })
    .await;
    drop((cut, stream));
    let none = async || {
        eventually("nothing to run", async || {
            (shim.metric(RUNNING).await == 0.0).then_some(())
        })
        .await;
    };
    none().await;
    // Nor does one whose server has gone without a word.
    let mut lost = grpc::Client::connect(shim.grpc()).await;
    let mut stream = lost
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    assert_eq!(shim.metric(RUNNING).await, 1.0);
    server.stop().await;
    none().await;
}

#[tokio::test]
async fn health_loads_and_idle_connections_are_not_waited_for() {
    let (server, shim) = pair(&[]).await;
    server.set_load_delay(Duration::from_secs(60));
    let mut control = grpc::Client::connect(shim.grpc()).await;
    control.call("ServerLive", b"").await.unwrap();
    let mut idle = grpc::Client::connect(shim.grpc()).await;
    idle.call("ModelInfer", b"x").await.unwrap();
    let to = shim.http();
    let load = tokio::spawn(async move {
        let mut client = Client::connect(to).await;
        let path = "/v2/repository/models/iris/load";
        let _ = client.start(request("POST", path, "")).await;
    });
    server
        .wait_for_call("/v2/repository/models/iris/load")
        .await;
    let text = answer(hook(&shim, "")).await;
    assert!(
        text.starts_with("drained in ") && text.contains("; 0 ran when it began"),
        "{text}"
    );
    load.abort();
}

#[tokio::test]
async fn a_call_of_a_mixed_connection_is_waited_for_too() {
    let (server, shim) = pair(&[]).await;
    let to = shim.grpc();
    let mixed = tokio::spawn(async move {
        let mut client = grpc::Client::connect(to).await;
        client.call("ServerLive", b"").await.unwrap();
        client.call("Hang", b"x").await.unwrap().status().0
    });
    shim.metric_reaches(RUNNING, 1.0).await;
    let hooked = hook(&shim, "");
    drain(&shim, "draining").await;
    server.release();
    assert_eq!(within("the call", mixed).await.unwrap(), 0);
    assert!(answer(hooked).await.starts_with("drained in "));
}

#[tokio::test]
async fn callers_join_and_each_may_wait_for_less() {
    let (server, shim) = pair(&[]).await;
    let to = shim.http();
    let call = tokio::spawn(async move { http::get(to, "/hang").await });
    shim.metric_reaches(RUNNING, 1.0).await;
    let hooks: Vec<_> = (0..3).map(|_| hook(&shim, "")).collect();
    let short = answer(hook(&shim, "?timeout=100ms")).await;
    assert!(
        short.starts_with("still draining: 1 call(s) run"),
        "{short}"
    );
    assert_eq!(shim.get("/drain?timeout=soon").await.0, 400);
    server.release();
    for hook in hooks {
        assert!(answer(hook).await.starts_with("drained in "));
    }
    call.await.unwrap();
    assert_eq!(shim.metric(&event("begun")).await, 1.0);
    // A late one asks again whether anything runs.
    assert!(answer(hook(&shim, "")).await.starts_with("drained in "));
    assert_eq!(shim.metric(&event("begun")).await, 2.0);
}

#[tokio::test]
async fn a_drain_ends_at_its_bound() {
    let (server, shim) = pair(&[("SHIM_DRAIN_TIME", "2s")]).await;
    let to = shim.http();
    let call = tokio::spawn(async move { http::get(to, "/hang").await });
    shim.metric_reaches(RUNNING, 1.0).await;
    let begun = Instant::now();
    let text = answer(hook(&shim, "")).await;
    assert!(
        text.starts_with("not drained within ") && text.contains(": 1 call(s) still run"),
        "{text}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    drain(&shim, "gave-up").await;
    server.release();
    assert_eq!(call.await.unwrap().0, 200, "and nothing was cut");
}

/// As where the hook and SIGTERM come together, and the calls do not end.
#[tokio::test]
async fn a_short_drain_time_leaves_the_hook_its_answer() {
    let (server, mut shim) = pair(&[("SHIM_DRAIN_TIME", "2s")]).await;
    let to = shim.http();
    let call =
        tokio::spawn(async move { http::raw(to, b"GET /hang HTTP/1.1\r\nhost: t\r\n\r\n").await });
    server.wait_for_call("/hang").await;
    let hook = hook(&shim, "");
    shim.metric_reaches(&event("begun"), 1.0).await;
    shim.stop();
    assert!(answer(hook).await.starts_with("not drained within 1"));
    shim.ended().await.unwrap();
    assert_eq!(call.await.unwrap(), "", "it was cut when the time was over");
}

#[tokio::test]
async fn looking_and_other_methods_begin_nothing() {
    let (_server, shim) = pair(&[]).await;
    let (code, text) = shim.get("/drain?status").await;
    assert_eq!(code, 200);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["state"], "none");
    let mut client = Client::connect(shim.admin()).await;
    assert_eq!(client.call(request("HEAD", "/drain", "")).await.0, 200);
    for method in ["PUT", "DELETE"] {
        let (code, headers, _) = client.call(request(method, "/drain", "")).await;
        assert_eq!(
            (code, headers["allow"].to_str().unwrap()),
            (405, "GET, HEAD, POST")
        );
    }
    assert_eq!(shim.get("/readyz").await.0, 200);
    let (code, _, _) = client.call(request("POST", "/drain", "")).await;
    assert_eq!(code, 200);
    assert_eq!(shim.get("/readyz").await.0, 503);
}

#[tokio::test]
async fn a_page_in_a_browser_begins_no_drain() {
    let (_server, shim) = pair(&[]).await;
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "same-origin"),
        ("origin", "https://elsewhere.example"),
        ("origin", "null"),
    ] {
        let mut asked: ::http::Request<_> = request("POST", "/drain", "");
        let value = ::http::HeaderValue::from_static(value);
        asked.headers_mut().insert(name, value);
        let mut client = Client::connect(shim.admin()).await;
        assert_eq!(client.call(asked).await.0, 403, "{name}");
    }
    assert_eq!(shim.status().await["drain"]["state"], "none");
    shim.ready().await;
}

#[tokio::test]
async fn in_observe_mode_nothing_is_drained() {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let observe = [("SHIM_MODE", "observe")];
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &observe);
    shim.ready().await;
    let text = answer(hook(&shim, "")).await;
    assert!(text.starts_with("nothing is drained"), "{text}");
    assert_eq!(shim.get("/readyz").await.0, 200);
}

/// The agent's drain port, and a shim that knows it.
async fn with_agent(more: &[(&str, &str)]) -> (StandIn, Pages, Shim) {
    let agent = Pages::start().await;
    agent.set("/terminate", Page::new(200, ""));
    let port = agent.port();
    let mut settings = vec![("SHIM_AGENT_DRAIN_PORT", port.as_str())];
    settings.extend(more);
    let (server, shim) = pair(&settings).await;
    (server, agent, shim)
}

#[tokio::test]
async fn the_agent_is_made_to_drain_by_its_own_rule() {
    let (_server, agent, shim) = with_agent(&[]).await;
    let text = answer(hook(&shim, "")).await;
    assert!(text.contains("the agent has drained"), "{text}");
    let times: Vec<Instant> = agent.calls("/terminate").into_iter().map(|c| c.1).collect();
    assert_eq!(times.len(), 3);
    let apart = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    assert!(apart < Duration::from_millis(100), "{apart:?}");
    // Called for again: it has drained already.
    answer(hook(&shim, "")).await;
    assert_eq!(agent.asked("/terminate"), 3);
}

#[tokio::test]
async fn an_agent_that_answers_only_when_it_has_drained_is_waited_for() {
    let (_server, agent, shim) = with_agent(&[]).await;
    agent.set(
        "/terminate",
        Page::new(200, "").after(Duration::from_secs(3)),
    );
    let begun = Instant::now();
    let text = answer(hook(&shim, "")).await;
    assert!(text.contains("the agent has drained"), "{text}");
    assert!(begun.elapsed() > Duration::from_secs(3));
}

#[tokio::test]
async fn an_agent_that_cannot_be_asked_does_not_hold_a_drain_up() {
    let (_server, mut agent, shim) = with_agent(&[]).await;
    agent.stop();
    let text = answer(hook(&shim, "")).await;
    assert!(
        text.starts_with("drained in ") && text.contains("the agent has not drained: "),
        "{text}"
    );
}

#[tokio::test]
async fn the_restart_of_one_container_does_not_drain_the_agent() {
    let (_server, agent, shim) = with_agent(&[("SHIM_DRAIN_HOOKS", "2")]).await;
    let text = answer(hook(&shim, "")).await;
    assert!(
        text.contains("the agent not asked to drain: 1 of 2 hooks have called"),
        "{text}"
    );
    assert_eq!(agent.asked("/terminate"), 0);
    // The pod ends: all of them call.
    let hooks = [hook(&shim, ""), hook(&shim, "")];
    for hook in hooks {
        let text = answer(hook).await;
        assert!(text.contains("the agent has drained"), "{text}");
    }
    assert_eq!(agent.asked("/terminate"), 3);
}

#[tokio::test]
async fn an_agent_that_drains_by_itself_is_not_asked_and_is_waited_for() {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let manners = Manners {
        drain: Duration::from_secs(2),
        ..Default::default()
    };
    let scheduler = FakeScheduler::start_at(any, any, manners).await.unwrap();
    let address = scheduler.agent.to_string();
    let more = [
        ("SHIM_SCHEDULER", address.as_str()),
        ("SHIM_AGENT_PORT", "0"),
    ];
    let (_server, page, shim) = with_agent(&more).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.bound.agent[0], 1 << 30));
    let begun = Instant::now();
    let (own, text) = tokio::join!(agent.drain(), answer(hook(&shim, "")));
    assert!(own.unwrap().success);
    assert!(text.contains("the agent has drained"), "{text}");
    assert!(begun.elapsed() > Duration::from_secs(2));
    assert_eq!(page.asked("/terminate"), 0);
}

#[tokio::test]
async fn a_drain_that_was_the_restart_of_the_server_is_taken_back() {
    let (server, shim) = pair(&[]).await;
    answer(hook(&shim, "")).await;
    server.stop().await;
    shim.state("127.0.0.1", "http", "down").await;
    assert_eq!(drain(&shim, "drained").await["undone"], 0);
    server.restart().await.unwrap();
    shim.ready().await;
    let drain = drain(&shim, "none").await;
    assert_eq!(drain["undone"], 1);
    let summary = drain["summary"].as_str().unwrap();
    assert!(
        summary.starts_with("taken back: the inference server came back"),
        "{summary}"
    );
    assert_eq!(shim.metric(&event("undone")).await, 1.0);
    // And the next one is a drain again.
    assert!(answer(hook(&shim, "")).await.starts_with("drained in "));
    assert_eq!(shim.get("/readyz").await.0, 503);
}

#[tokio::test]
async fn a_drain_that_was_the_restart_of_the_agent_is_taken_back() {
    let mut agent = Pages::start().await;
    agent.set("/ready", Page::new(200, ""));
    let port = agent.port();
    let more = [
        ("SHIM_AGENT_READY_PORT", port.as_str()),
        ("SHIM_AGENT_STUCK_AFTER", "2s"),
    ];
    let (_server, shim) = pair(&more).await;
    let state = async |state: &str| {
        eventually(&format!("the agent to be {state}"), async || {
            (shim.status().await["agent"]["state"] == state).then_some(())
        })
        .await;
    };
    state("ready").await;
    answer(hook(&shim, "")).await;
    agent.stop();
    state("unknown").await;
    agent.restart().await;
    shim.ready().await;
    let summary = shim.status().await["drain"]["summary"].clone();
    assert!(
        summary.as_str().unwrap().contains("the agent came back"),
        "{summary}"
    );
}

#[tokio::test]
async fn a_drain_that_nothing_follows_is_taken_back_in_the_end() {
    let (_server, shim) = pair(&[("SHIM_DRAIN_UNDO_AFTER", "1s")]).await;
    answer(hook(&shim, "")).await;
    shim.ready().await;
    let summary = shim.status().await["drain"]["summary"].clone();
    assert!(
        summary
            .as_str()
            .unwrap()
            .contains("no SIGTERM has followed"),
        "{summary}"
    );
}

#[tokio::test]
async fn a_termination_is_not_taken_back() {
    let (server, mut shim) = pair(&[("SHIM_DRAIN_UNDO_AFTER", "1s")]).await;
    let mut open = grpc::Client::connect(shim.grpc()).await;
    let mut stream = open
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    // Longer than the shim's own patience with connections, were it not for the hook.
    let hooked = hook(&shim, "");
    drain(&shim, "draining").await;
    shim.stop();
    drain(&shim, "stopping").await;
    stream.finish();
    assert_eq!(stream.next().await.unwrap(), None);
    assert!(answer(hooked).await.starts_with("drained in "));
    // The connection is idle and keeps the process: longer than the undoing would take.
    let probes = "agent_shim_probe_outcomes_total{outcome=\"healthy\",protocol=\"http\"}";
    let seen = shim.metric(probes).await;
    shim.metric_reaches(probes, seen + 45.0).await;
    assert_eq!(shim.get("/readyz").await.0, 503);
    assert_eq!(shim.metric(&event("undone")).await, 0.0);
    drop((open, stream, server));
    shim.ended().await.unwrap();
}
