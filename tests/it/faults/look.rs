//! What is seen of the shim again and again while a fault lasts: its readiness and its findings. What
//! has to be seen says `judge`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::pace::promised;
use super::stage::{ask_within, ids};

/// What /readyz says of the inference server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// That nothing is wrong with it.
    Fine,
    /// That calls would not be served, and it has looked.
    Gone,
    /// That it has not looked yet.
    NotYet,
}

/// An answer of /readyz.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub code: u16,
    pub text: String,
}

impl Ready {
    /// What it says of the server, whatever it says of a drain; `None` where code and words differ.
    pub fn says(&self) -> Option<Says> {
        let reason = |of: &str| self.text.lines().any(|line| line.starts_with(of));
        let server = reason("inference-");
        let unmet = server || reason("probed:") || self.drains();
        match (self.code, unmet) {
            (200, false) | (503, true) => {}
            _ => return None,
        }
        Some(match (reason("probed:"), server) {
            (true, _) => Says::NotYet,
            (false, true) => Says::Gone,
            (false, false) => Says::Fine,
        })
    }

    /// Whether a drain is among the reasons.
    pub fn drains(&self) -> bool {
        self.text.lines().any(|l| l.starts_with("not-draining:"))
    }
}

/// One look.
#[derive(Debug, Clone)]
pub struct Look {
    pub at: Instant,
    /// `None` where nobody answered in time.
    pub ready: Option<Ready>,
    /// The findings' ids, where they were asked for and said.
    pub found: Option<BTreeSet<String>>,
}

/// Between two looks; findings are looked at every second time.
const PACE: Duration = Duration::from_millis(100);

/// Looks until it is dropped or told to stop.
pub struct Looking {
    looks: Arc<Mutex<Vec<Look>>>,
    _task: JoinSet<()>,
}

impl Looking {
    pub fn start(admin: SocketAddr) -> Looking {
        let looks: Arc<Mutex<Vec<Look>>> = Arc::default();
        let mut task = JoinSet::new();
        let kept = looks.clone();
        task.spawn(async move {
            for n in 0.. {
                let look = look(admin, n % 2 == 0).await;
                kept.lock().unwrap().push(look);
                tokio::time::sleep(PACE).await;
            }
        });
        Looking { looks, _task: task }
    }

    /// What was seen.
    pub fn stop(self) -> Vec<Look> {
        std::mem::take(&mut *self.looks.lock().unwrap())
    }
}

async fn look(admin: SocketAddr, findings: bool) -> Look {
    let at = Instant::now();
    let limit = promised(2.0);
    let ready = ask_within(limit, admin, "GET", "/readyz", "").await;
    let ready = ready.map(|(code, text)| Ready { code, text });
    let mut found = None;
    if findings && let Some((200, body)) = ask_within(limit, admin, "GET", "/status", "").await {
        found = Some(ids(&body).into_iter().collect());
    }
    Look { at, ready, found }
}
