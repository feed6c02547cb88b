//! What the tests share: a shim on free ports, callers, and bounded waiting.

use std::net::SocketAddr;
use std::time::Duration;

use agent_shim::app::{App, Bound, Error};
use agent_shim::config::load_from;
use agent_shim::demo::standin::StandIn;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub mod grpc;
pub mod http;
pub mod merge;

/// The bound of every wait: long enough for a loaded machine, short enough to fail.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a future, or fails the test saying for what.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for: {what}"),
    }
}

/// Asks again until the answer is some value, within the bound.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(value) = ask().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// A shim in this process.
pub struct Shim {
    pub bound: Bound,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), Error>>,
}

impl Shim {
    /// Starts on free ports with quick settings; `settings` come on top.
    pub fn start(settings: &[(&str, &str)]) -> Shim {
        Shim::try_start(settings).unwrap()
    }

    pub fn try_start(settings: &[(&str, &str)]) -> Result<Shim, Error> {
        let quick = [
            ("SHIM_RELAY_HTTP_PORT", "0"),
            ("SHIM_RELAY_GRPC_PORT", "0"),
            ("SHIM_ADMIN_PORT", "0"),
            ("SHIM_ADMIN_LISTEN", "127.0.0.1"),
            ("SHIM_PROBE_INTERVAL", "100ms"),
            ("SHIM_PROBE_CONNECT_TIMEOUT", "100ms"),
            ("SHIM_PROBE_TIMEOUT", "100ms"),
            ("SHIM_OUTAGE_GRACE", "1s"),
            ("SHIM_FAILBACK_HOLD", "300ms"),
        ];
        let loaded = load_from(quick.iter().chain(settings).copied()).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let app = App::start(&loaded.config)?;
        let (stop, stopped) = oneshot::channel();
        let bound = app.bound().clone();
        let task = tokio::spawn(app.run(async {
            let _ = stopped.await;
        }));
        Ok(Shim {
            bound,
            stop: Some(stop),
            task,
        })
    }

    /// In front of a server whose two ports are given, on the hosts given.
    pub fn before(hosts: &str, http: SocketAddr, grpc: SocketAddr, more: &[(&str, &str)]) -> Shim {
        let (http, grpc) = (http.port().to_string(), grpc.port().to_string());
        let mut settings = vec![
            ("SHIM_INFERENCE_HOSTS", hosts),
            ("SHIM_INFERENCE_HTTP_PORT", http.as_str()),
            ("SHIM_INFERENCE_GRPC_PORT", grpc.as_str()),
        ];
        settings.extend(more);
        Shim::start(&settings)
    }

    pub fn http(&self) -> SocketAddr {
        self.bound.relay_http[0]
    }

    pub fn grpc(&self) -> SocketAddr {
        self.bound.relay_grpc[0]
    }

    pub fn admin(&self) -> SocketAddr {
        self.bound.admin[0]
    }

    /// Tells it to stop, as SIGTERM does.
    pub fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Waits for its end.
    pub async fn ended(self) -> Result<(), Error> {
        within("the shim to end", self.task).await.unwrap()
    }

    /// GET on the admin port: status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        http::get(self.admin(), path).await
    }

    pub async fn status(&self) -> serde_json::Value {
        let (code, body) = self.get("/status").await;
        assert_eq!(code, 200);
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until the probe says ready.
    pub async fn ready(&self) {
        eventually("the shim to be ready", async || {
            (self.get("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }

    /// Waits until the candidate is in a state.
    pub async fn state(&self, host: &str, protocol: &str, state: &str) -> serde_json::Value {
        let what = format!("{protocol} on {host} to be {state}");
        eventually(&what, async || {
            let status = self.status().await;
            let all = status["endpoints"].as_array().unwrap().clone();
            all.into_iter()
                .find(|e| e["host"] == host && e["protocol"] == protocol && e["state"] == state)
        })
        .await
    }

    /// Waits until the selection of a protocol is a host, or null.
    pub async fn selected(&self, protocol: &str, host: Option<&str>) {
        let what = format!("{protocol} to use {host:?}");
        eventually(&what, async || {
            let status = self.status().await;
            (status["selection"][protocol].as_str() == host).then_some(())
        })
        .await;
    }

    /// The value of one series of `/metrics`, by its name and labels as printed.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text
            .lines()
            .find(|l| l.starts_with(series) && l[series.len()..].starts_with(' '));
        let line = line.unwrap_or_else(|| panic!("no series {series} in:\n{text}"));
        line[series.len() + 1..].parse().unwrap()
    }

    /// Waits until a series has reached a value.
    pub async fn metric_reaches(&self, series: &str, value: f64) {
        eventually(&format!("{series} to reach {value}"), async || {
            (self.metric(series).await >= value).then_some(())
        })
        .await;
    }
}

/// A stand-in server on loopback and a ready shim before it.
pub async fn pair(settings: &[(&str, &str)]) -> (StandIn, Shim) {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), settings);
    shim.ready().await;
    (server, shim)
}

/// An address that nobody listens on, with a port that stays free: another address of loopback
/// holds it.
pub async fn refused() -> (SocketAddr, tokio::net::TcpListener) {
    let holder = tokio::net::TcpListener::bind("127.0.0.9:0").await.unwrap();
    let port = holder.local_addr().unwrap().port();
    (SocketAddr::new([127, 0, 0, 1].into(), port), holder)
}
