//! What the demo plays on: the stand-in at the pod's address, the shim beside it, and the scheduler
//! behind the shim.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use super::scheduler::FakeScheduler;
use super::standin::StandIn;
use super::tell::complain;
use crate::admin::status::Document;
use crate::app::{self, App};
use crate::config::{self, Config, Loaded};
use crate::endpoint::Protocol;
use crate::telemetry;

/// Where the agent looks for its server.
pub(super) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Stands for the pod's own address: local too, and not localhost.
pub(super) const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// No folder, in the place of `/proc`: a server of this machine that happens to run, and the
/// machine's own memory, are no part of the story.
const NOTHING: &str = "/dev/null";
/// What the stand-in "has installed": there is no Python to look at.
pub(super) const INSTALLED: &str = "mlserver,python,sklearn,mlflow,torch,numpy";

/// Shorter than the defaults, so that the story is short; each is a setting of the shim.
const SETTINGS: [(&str, &str); 14] = [
    ("SHIM_INFERENCE_HOSTS", "127.0.0.1,::1,127.0.0.2"),
    ("SHIM_RELAY_LISTEN", "127.0.0.1"),
    ("SHIM_RELAY_HTTP_PORT", "0"),
    ("SHIM_RELAY_GRPC_PORT", "0"),
    ("SHIM_ADMIN_LISTEN", "127.0.0.1"),
    ("SHIM_PROBE_INTERVAL", "200ms"),
    ("SHIM_PROBE_CONNECT_TIMEOUT", "200ms"),
    ("SHIM_PROBE_TIMEOUT", "200ms"),
    ("SHIM_PROBE_FALL", "2"),
    ("SHIM_FAILBACK_HOLD", "1s"),
    ("SHIM_OUTAGE_GRACE", "3s"),
    ("SHIM_AGENT_PORT", "0"),
    // What the downward API gives for a container with a limit of 4Gi.
    ("SHIM_MEMORY_LIMIT", "4294967296"),
    ("SHIM_CAPABILITIES_LIST", INSTALLED),
];

/// The stand-ins and the shim, all running.
pub(super) struct Stage {
    /// The scheduler that the shim is told of; nobody subscribes by itself.
    pub(super) scheduler: FakeScheduler,
    /// The server at the pod's address.
    pub(super) server: StandIn,
    /// The settings of the shim.
    pub(super) config: Config,
    bound: app::Bound,
    client: reqwest::Client,
}

impl Stage {
    /// Starts all. Of the process's own settings only those of the log are taken.
    pub(super) async fn set(own: &Loaded, admin_port: u16) -> Result<(Stage, App), String> {
        let server = server().await.map_err(|error| {
            format!("cannot start the stand-in server on {POD}: {error}; the demo needs Linux, where all of 127.0.0.0/8 is local")
        })?;
        let scheduler = FakeScheduler::start()
            .await
            .map_err(|error| format!("cannot start the stand-in scheduler: {error}"))?;
        let config = settings(own, &server, &scheduler, admin_port)?;
        telemetry::init(&config.log, config.log_format);
        let (config, app) = start(config).map_err(|error| error.to_string())?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(2))
            .build()
            .map_err(|error| error.to_string())?;
        let stage = Stage {
            scheduler,
            server,
            config,
            bound: app.bound().clone(),
            client,
        };
        Ok((stage, app))
    }

    /// Where the agent would look: the server's ports on localhost.
    pub(super) fn localhost(&self) -> [SocketAddr; 2] {
        Protocol::ALL.map(|p| SocketAddr::new(LOCALHOST, self.server.address(p).port()))
    }

    /// Where the server is.
    pub(super) fn pod(&self) -> [SocketAddr; 2] {
        Protocol::ALL.map(|p| self.server.address(p))
    }

    /// Where the shim relays.
    pub(super) fn relays(&self) -> [SocketAddr; 2] {
        [self.bound.relay_http[0], self.bound.relay_grpc[0]]
    }

    /// Where the shim takes the agent for the scheduler.
    pub(super) fn agent(&self) -> SocketAddr {
        self.bound.agent[0]
    }

    /// Where the shim tells about itself.
    pub(super) fn admin(&self) -> SocketAddr {
        self.bound.admin[0]
    }

    /// What the shim says of itself, as anybody may ask.
    pub(super) async fn status(&self) -> Option<Document> {
        let url = format!("http://{}/status", self.admin());
        self.client.get(url).send().await.ok()?.json().await.ok()
    }
}

/// A server at the pod's address whose ports are free on localhost too.
async fn server() -> std::io::Result<StandIn> {
    loop {
        let server = StandIn::start(POD).await?;
        let free = |p| TcpListener::bind(SocketAddr::new(LOCALHOST, server.address(p).port()));
        if Protocol::ALL.into_iter().all(|p| free(p).is_ok()) {
            return Ok(server);
        }
    }
}

fn settings(
    own: &Loaded,
    server: &StandIn,
    scheduler: &FakeScheduler,
    admin_port: u16,
) -> Result<Config, String> {
    let [subscribe, ask] = [scheduler.agent, scheduler.status].map(|at| at.to_string());
    let [http, grpc] = Protocol::ALL.map(|p| server.address(p).port().to_string());
    let admin_port = admin_port.to_string();
    let mut all = SETTINGS.to_vec();
    all.extend([
        ("SHIM_INFERENCE_HTTP_PORT", http.as_str()),
        ("SHIM_INFERENCE_GRPC_PORT", grpc.as_str()),
        ("SHIM_ADMIN_PORT", admin_port.as_str()),
        ("SHIM_SCHEDULER", subscribe.as_str()),
        ("SHIM_SCHEDULER_STATUS", ask.as_str()),
        // The outages of the story are warnings of the shim; they would be told twice.
        ("SHIM_LOG", "error"),
    ]);
    let log: Vec<(&str, String)> = own
        .effective()
        .into_iter()
        .filter(|(variable, _, _)| variable.name.starts_with("SHIM_LOG"))
        .filter(|(_, _, origin)| *origin == "environment")
        .map(|(variable, value, _)| (variable.name, value))
        .collect();
    all.retain(|(name, _)| !log.iter().any(|(set, _)| set == name));
    all.extend(log.iter().map(|(name, value)| (*name, value.as_str())));
    match config::load_from(all) {
        Ok(loaded) => Ok(loaded.config),
        Err(problems) => Err(problems.to_string()),
    }
}

/// Starts the shim; an admin port that is taken is said and replaced.
fn start(mut config: Config) -> Result<(Config, App), app::Error> {
    match App::start_seeing(&config, Path::new(NOTHING)) {
        Err(app::Error::Bind {
            address,
            purpose: "admin",
            source,
            ..
        }) if address.port() != 0 => {
            complain(&format!(
                "cannot listen on {address}: {source}; the admin port is a free one instead (--admin-port chooses another)"
            ));
            config.admin_port = 0;
            let app = App::start_seeing(&config, Path::new(NOTHING))?;
            Ok((config, app))
        }
        started => started.map(|app| (config, app)),
    }
}
