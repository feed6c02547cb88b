//! The agent's own ports on loopback. Only status codes are kept.

use std::time::Duration;

use crate::doctor::evidence::AgentFacts;
use crate::prober::connect::innermost;

/// Asks the agent for its readiness and for its metrics.
pub async fn ask([ready, metrics]: [u16; 2], limit: Duration) -> AgentFacts {
    let Ok(client) = crate::models::client() else {
        return AgentFacts::default();
    };
    let limit = limit.min(Duration::from_secs(1));
    let get = |url: String| client.get(url).timeout(limit).send();
    let (ready, metrics) = tokio::join!(
        get(format!("http://127.0.0.1:{ready}/ready")),
        get(format!("http://127.0.0.1:{metrics}/metrics")),
    );
    let (ready, ready_error) = match ready {
        Ok(answer) => (Some(answer.status().as_u16()), None),
        Err(error) => (None, Some(innermost(&error))),
    };
    AgentFacts {
        ready,
        ready_error,
        metrics: Some(metrics.is_ok_and(|answer| answer.status().is_success())),
    }
}
