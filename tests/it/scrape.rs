//! One scrape for the pod, against sources that behave and sources that do not.

use std::time::Duration;

use crate::metrics::complaints;
use crate::support::http::{Client, request};
use crate::support::pages::{Page, Pages};
use crate::support::{Shim, pair, refused, within};
use agent_shim::demo::standin::StandIn;

const AGENT: &str = "# HELP go_goroutines Number of goroutines.\n# TYPE go_goroutines gauge\ngo_goroutines 12\n\
# HELP process_open_fds Number of open files.\n# TYPE process_open_fds gauge\nprocess_open_fds 9\n\
# HELP seldon_model_infer_total Inferences.\n# TYPE seldon_model_infer_total counter\nseldon_model_infer_total{code=\"200\",model=\"iris\"} 3\n";
const SERVER: &str = "# HELP process_open_fds Number of open files.\n# TYPE process_open_fds gauge\nprocess_open_fds 11.0\n\
# HELP model_infer_request_success_total Successes.\n# TYPE model_infer_request_success_total counter\nmodel_infer_request_success_total{model=\"iris\",version=\"1\"} 5.0\n\
# HELP model_infer_request_duration Duration.\n# TYPE model_infer_request_duration summary\nmodel_infer_request_duration_count 5.0\nmodel_infer_request_duration_sum 0.5\n";

async fn four(on: &str) -> (StandIn, Pages, Pages, Shim) {
    let (agent, metrics) = (Pages::start().await, Pages::start().await);
    agent.set("/metrics", Page::new(200, AGENT));
    metrics.set("/metrics", Page::new(200, SERVER));
    let (agent_port, server_port) = (agent.port(), metrics.port());
    let (server, shim) = pair(&[
        ("SHIM_MERGE_METRICS", on),
        ("SHIM_AGENT_METRICS_PORT", &agent_port),
        ("SHIM_INFERENCE_METRICS_PORT", &server_port),
    ])
    .await;
    (server, agent, metrics, shim)
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|l| l == line)
}

fn up(text: &str) -> [bool; 2] {
    ["agent", "mlserver"].map(|source| {
        let up = format!("agent_shim_merge_up{{source=\"{source}\"}}");
        let line = text.lines().find_map(|l| l.strip_prefix(&up));
        line.unwrap().trim() == "1"
    })
}

#[tokio::test]
async fn one_scrape_has_all_three_and_is_valid() {
    let (_server, agent, _metrics, shim) = four("true").await;
    let mut client = Client::connect(shim.admin()).await;
    let (code, headers, body) = client.get("/metrics?merge").await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(code, 200);
    let kind = headers["content-type"].to_str().unwrap();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(up(&text), [true, true]);
    for line in [
        "go_goroutines{merged_from=\"agent\"} 12",
        "process_open_fds{merged_from=\"agent\"} 9",
        "process_open_fds{merged_from=\"mlserver\"} 11.0",
        "seldon_model_infer_total{code=\"200\",model=\"iris\"} 3",
        "model_infer_request_success_total{model=\"iris\",version=\"1\"} 5.0",
    ] {
        assert!(has(&text, line), "{line} is not in:\n{text}");
    }
    // Its own series are what they are without the merging.
    let (_, own) = shim.get("/metrics").await;
    let names = |text: &str| -> Vec<String> {
        let own = text
            .lines()
            .filter(|l| l.starts_with("agent_shim_") || l.starts_with("process_open_fds "));
        own.map(|l| l.rsplit_once(' ').unwrap().0.to_string())
            .collect()
    };
    assert_eq!(names(&text), names(&own));
    assert_eq!(complaints(&text).unwrap_or_default(), "");
    let (headers, _) = agent.calls("/metrics").remove(0);
    assert_eq!(headers["x-agent-shim-merge"], "1");
    assert!(
        headers["accept"]
            .to_str()
            .unwrap()
            .starts_with("text/plain;version=0.0.4")
    );
}

#[tokio::test]
async fn without_the_switch_nobody_is_asked() {
    let (_server, agent, metrics, shim) = four("false").await;
    let (code, text) = shim.get("/metrics?merge").await;
    assert_eq!(code, 200);
    assert!(text.starts_with("# not merged: SHIM_MERGE_METRICS is false\n"));
    assert!(text.contains("agent_shim_build_info") && !text.contains("go_goroutines"));
    assert_eq!(complaints(&text).unwrap_or_default(), "");
    assert_eq!(agent.asked("/metrics") + metrics.asked("/metrics"), 0);
}

#[tokio::test]
async fn a_source_that_fails_costs_only_itself() {
    let (server, mut agent, metrics, shim) = four("true").await;
    let huge = format!("x 1 # {}\n", "y".repeat(5 * 1024 * 1024));
    let faults = [
        ("status", Page::new(500, "")),
        ("malformed", Page::new(200, "<html>hello</html>")),
        ("malformed", Page::new(200, vec![0xff, 0xfe])),
        ("too-large", Page::new(200, huge)),
        (
            "timeout",
            Page::new(200, AGENT).after(Duration::from_secs(60)),
        ),
    ];
    for (reason, page) in faults {
        agent.set("/metrics", page);
        let (code, text) = shim.get("/metrics?merge").await;
        assert_eq!((code, up(&text)), (200, [false, true]), "{reason}");
        assert!(text.contains("model_infer_request_success_total"));
        assert!(!text.contains("go_goroutines"), "{reason}");
        let failures =
            format!("agent_shim_merge_failures_total{{reason=\"{reason}\",source=\"agent\"}}");
        assert!(shim.metric(&failures).await >= 1.0, "{reason}");
        assert_eq!(complaints(&text).unwrap_or_default(), "", "{reason}");
    }
    agent.stop();
    let (_, text) = shim.get("/metrics?merge").await;
    assert_eq!(up(&text), [false, true], "nobody listens");
    // It comes back by itself.
    agent.set("/metrics", Page::new(200, AGENT));
    agent.restart().await;
    assert_eq!(up(&shim.get("/metrics?merge").await.1), [true, true]);
    // Where no address of the server answers there is nobody to ask.
    server.stop().await;
    shim.selected("http", None).await;
    let before = metrics.asked("/metrics");
    assert_eq!(up(&shim.get("/metrics?merge").await.1), [true, false]);
    assert_eq!(metrics.asked("/metrics"), before);
}

#[tokio::test]
async fn openmetrics_is_understood() {
    let (_server, agent, _metrics, shim) = four("true").await;
    let text = "# TYPE jobs counter\n# HELP jobs Jobs.\njobs_total{a=\"b\"} 3 # {trace_id=\"x\"} 1 2\njobs_created{a=\"b\"} 1.6e9\n# EOF\n";
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    agent.set("/metrics", Page::new(200, text).of_kind(kind));
    let (_, text) = shim.get("/metrics?merge").await;
    assert_eq!(up(&text), [true, true]);
    assert!(has(&text, "# TYPE jobs_total counter"), "{text}");
    assert!(has(&text, "jobs_total{a=\"b\"} 3") && !text.contains("# EOF"));
}

#[tokio::test]
async fn a_shim_that_would_ask_itself_or_another_stops_there() {
    let other = Shim::start(&[("SHIM_MERGE_METRICS", "true")]);
    let port = other.admin().port().to_string();
    let (nowhere, _held) = refused().await;
    let nowhere = nowhere.port().to_string();
    let (_server, shim) = pair(&[
        ("SHIM_MERGE_METRICS", "true"),
        ("SHIM_AGENT_METRICS_PORT", &port),
        ("SHIM_INFERENCE_METRICS_PORT", &nowhere),
    ])
    .await;
    let (_, text) = shim.get("/metrics?merge").await;
    assert_eq!(up(&text), [false, false]);
    let failures = "agent_shim_merge_failures_total{reason=\"loop\",source=\"agent\"}";
    assert_eq!(shim.metric(failures).await, 1.0);
    // And a merging caller gets no merged document.
    let mut client = Client::connect(shim.admin()).await;
    let mut guarded = request("GET", "/metrics?merge", "");
    let guard = http::HeaderValue::from_static("1");
    guarded.headers_mut().insert("x-agent-shim-merge", guard);
    let (_, _, body) = client.call(guarded).await;
    let text = String::from_utf8_lossy(&body);
    assert!(text.starts_with("# not merged: the caller is a merging agent-shim\n"));
}

#[tokio::test]
async fn many_scrapes_of_silent_sources_are_all_answered_in_bounded_time() {
    let (_server, agent, metrics, shim) = four("true").await;
    for source in [&agent, &metrics] {
        let silent = Page::new(200, AGENT).after(Duration::from_secs(60));
        source.set("/metrics", silent);
    }
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let admin = shim.admin();
        all.spawn(async move { crate::support::http::get(admin, "/metrics?merge").await });
    }
    // Two at a time: without a bound all would have their turn, the last after 24 s.
    let mut merged = 0;
    while let Some(answer) = within("every scrape", all.join_next()).await {
        let (code, text) = answer.unwrap();
        assert_eq!(code, 200);
        assert!(text.contains("agent_shim_build_info"));
        merged += usize::from(!text.starts_with("# not merged: other merged scrapes"));
    }
    assert!((2..24).contains(&merged), "{merged} had their turn");
    // What was asked meanwhile is at most what was allowed at a time.
    assert_eq!(agent.asked("/metrics"), merged);
}
