//! The admin port: what kubelet, Prometheus, people and scripts get.

use std::net::{IpAddr, SocketAddr};

use agent_shim::demo::standin::StandIn;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::http::{Client, request};
use crate::support::{Shim, refused};

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

#[tokio::test]
async fn ready_says_which_condition_is_unmet_and_verbose_lists_all() {
    let (nowhere, _port) = refused().await;
    let shim = Shim::before("127.0.0.1", nowhere, nowhere, &[]);
    let (code, text) = crate::support::eventually("the first probes", async || {
        let (code, text) = shim.get("/readyz").await;
        (!text.contains("probed:")).then_some((code, text))
    })
    .await;
    assert_eq!(code, 503);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "one line for each unmet condition: {text}");
    assert!(lines[0].starts_with("inference-http: ") && lines[1].starts_with("inference-grpc: "));
    let (_, verbose) = shim.get("/readyz?verbose").await;
    for line in [
        "[+]probed ok: every candidate has been probed",
        "[-]inference-http failed: ",
        "[+]not-draining ok: ",
        "readyz check failed",
    ] {
        assert!(verbose.contains(line), "{line} is not in {verbose}");
    }
}

#[tokio::test]
async fn started_does_not_wait_for_the_server() {
    let (nowhere, _port) = refused().await;
    let shim = Shim::before("127.0.0.1", nowhere, nowhere, &[]);
    crate::support::eventually("startupz", async || {
        (shim.get("/startupz").await == (200, "ok\n".into())).then_some(())
    })
    .await;
    assert_eq!(shim.get("/livez").await.0, 200);
    assert_eq!(shim.get("/readyz").await.0, 503);
}

#[tokio::test]
async fn a_server_makes_it_ready_and_models_that_load_do_not_change_that() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    shim.ready().await;
    server.set_ready(false);
    crate::support::eventually("the server's own word to arrive", async || {
        let status = shim.status().await;
        (status["endpoints"][0]["server_ready"] == false).then_some(())
    })
    .await;
    assert_eq!(shim.get("/readyz").await, (200, "ok\n".into()));
}

#[tokio::test]
async fn grpc_health_agrees_with_the_http_probes() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    let to = format!("http://{}", shim.admin());
    let channel = tonic::transport::Endpoint::from_shared(to)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = HealthClient::new(channel);
    let mut serving = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        client
            .check(request)
            .await
            .map(|answer| answer.into_inner().status)
    };
    shim.ready().await;
    crate::support::eventually("gRPC health to follow", async || {
        (serving("").await.unwrap() == 1).then_some(())
    })
    .await;
    for service in ["livez", "livez/agent", "readyz", "startupz"] {
        assert_eq!(serving(service).await.unwrap(), 1, "{service}");
    }
    server.stop().await;
    crate::support::eventually("gRPC health to follow the fall", async || {
        (serving("").await.unwrap() == 2).then_some(())
    })
    .await;
    assert_eq!(serving("livez").await.unwrap(), 1);
    let unknown = serving("nobody").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn the_default_address_takes_ipv4_and_ipv6() {
    let shim = Shim::start(&[("SHIM_ADMIN_LISTEN", "::")]);
    let port = shim.admin().port();
    for ip in ["127.0.0.1", "::1"] {
        let to = SocketAddr::new(ip.parse().unwrap(), port);
        assert_eq!(crate::support::http::get(to, "/livez").await.0, 200, "{ip}");
    }
}

#[tokio::test]
async fn the_relays_listen_on_loopback_only() {
    let shim = Shim::start(&[]);
    for relay in [shim.http(), shim.grpc()] {
        assert_eq!(relay.ip(), LOOPBACK);
        let other = SocketAddr::new([127, 0, 0, 2].into(), relay.port());
        let error = tokio::net::TcpStream::connect(other).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
async fn the_relays_listen_where_they_are_told_ipv6_included() {
    let shim = Shim::start(&[("SHIM_RELAY_LISTEN", "127.0.0.1,::1")]);
    let ips: Vec<String> = shim
        .bound
        .relay_grpc
        .iter()
        .map(|a| a.ip().to_string())
        .collect();
    assert_eq!(ips, ["127.0.0.1", "::1"]);
    for relay in &shim.bound.relay_http {
        let (status, _) = crate::support::http::get(*relay, "/v2/health/live").await;
        assert_eq!(status, 503);
    }
}

#[tokio::test]
async fn it_is_read_only_and_names_its_paths() {
    let shim = Shim::start(&[]);
    let mut client = Client::connect(shim.admin()).await;
    for method in ["POST", "PUT", "DELETE"] {
        let (status, headers, _) = client.call(request(method, "/status", "x")).await;
        assert_eq!(
            (status, headers["allow"].to_str().unwrap()),
            (405, "GET, HEAD")
        );
    }
    let (status, _, _) = client.call(request("HEAD", "/readyz", "")).await;
    assert_eq!(status, 503);
    let (status, _, body) = client.get("/nothing").await;
    assert_eq!(status, 404);
    assert!(String::from_utf8_lossy(&body).contains("/readyz"));
}

/// The shape that scripts rely on. A key that goes or changes its type breaks them.
#[tokio::test]
async fn the_status_document_has_the_documented_shape() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    server.set_models([("iris", "v1", "READY")]);
    let shim = Shim::before("127.0.0.1,::1", server.http(), server.grpc(), &[]);
    shim.ready().await;
    crate::support::eventually("the models", async || {
        (shim.status().await["models"] != serde_json::json!([])).then_some(())
    })
    .await;
    for protocol in ["http", "grpc"] {
        shim.state("::1", protocol, "down").await;
    }
    let status = shim.status().await;
    let mut keys: Vec<&str> = status
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "agent",
            "around",
            "build",
            "capabilities",
            "capacity",
            "conditions",
            "drain",
            "endpoints",
            "findings",
            "mode",
            "models",
            "restoring",
            "selection",
            "server",
            "subscription",
            "transitions",
            "worker"
        ]
    );
    assert_eq!(status["agent"]["state"], "unknown");
    assert_eq!(status["agent"]["live"], true);
    for key in ["since", "reason"] {
        assert!(status["agent"][key].is_string(), "{key}");
    }
    assert_eq!(
        status["drain"],
        serde_json::json!({
            "state": "none", "since": null, "for_s": 0.0, "agent_drains": false, "running": 0, "at_start": 0, "waiting": 0,
            "agent": "", "summary": "", "undone": 0,
        })
    );
    assert_eq!(status["mode"], "correct");
    assert_eq!(
        status["selection"],
        serde_json::json!({"http": "127.0.0.1", "grpc": "127.0.0.1"})
    );
    assert_eq!(
        status["models"],
        serde_json::json!([{"name": "iris", "version": "v1", "state": "READY", "reason": ""}])
    );
    let shown: Vec<String> = status["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            format!(
                "{} {} {} {}",
                e["host"], e["protocol"], e["state"], e["reason"]
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#""127.0.0.1" "http" "up" null"#,
            r#""::1" "http" "down" "refused""#,
            r#""127.0.0.1" "grpc" "up" null"#,
            r#""::1" "grpc" "down" "refused""#,
        ]
    );
    let first = &status["endpoints"][0];
    assert!(first["latency_ms"].as_f64().unwrap() > 0.0);
    let recent = &first["recent"][0];
    assert_eq!(
        (&recent["outcome"], &recent["reason"]),
        (&"ok".into(), &serde_json::Value::Null)
    );
    assert!(recent["probes"].as_u64() >= Some(1) && recent["slots"].as_u64() >= Some(1));
    assert!(recent["slowest_ms"].as_f64() > Some(0.0));
    let transitions = status["transitions"].as_array().unwrap();
    let seen = |kind: &str, subject: &str, from: &str, to: &str| {
        let is = |t: &&serde_json::Value| {
            (t["kind"] == kind)
                && t["subject"].as_str().unwrap().starts_with(subject)
                && (&t["from"], &t["to"]) == (&from.into(), &to.into())
        };
        let found = transitions.iter().find(is);
        found.unwrap_or_else(|| panic!("no {kind} {subject} in {transitions:#?}"))
    };
    seen("endpoint", "HTTP 127.0.0.1:", "unknown", "up");
    let fallen = seen("endpoint", "gRPC [::1]:", "unknown", "down");
    assert!(fallen["reason"].as_str().unwrap().starts_with("refused"));
    seen("condition", "inference-http", "false", "true");
    let used = transitions
        .iter()
        .find(|t| t["kind"] == "selection")
        .unwrap();
    assert_eq!(used["from"], "none");
    assert!(first["since"].as_str().unwrap().ends_with('Z'));
    for condition in status["conditions"].as_array().unwrap() {
        assert_eq!(condition["status"], true, "{condition}");
    }
    for key in ["requested", "observed", "reported", "believed"] {
        assert!(status["capacity"].as_object().unwrap().contains_key(key));
    }
    assert!(status["server"]["name"].is_string() && status["server"]["version"].is_string());
    assert_eq!(status["findings"], serde_json::json!([]));
    assert_eq!(status["build"]["version"], env!("CARGO_PKG_VERSION"));
}
