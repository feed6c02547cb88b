//! What is awaited of a cell while it is played: readiness, findings, belief, models, and that what
//! was held is given back.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::judge::Played;
use super::pace::{GRACE, promised, scaled};
use super::row::{Phase, Ready, Row};
use super::scheduler::until_right;
use super::stage::{Stage, until};

/// What of MLServer's models and of the scheduler's belief is awaited without the shim, which
/// nobody mends.
const UNMENDED: Duration = Duration::from_millis(500);

/// Server, readiness, belief and models are as they should be.
pub async fn all_right(stage: &Stage, played: &mut Played, when: &str) {
    let drained = when == "after the fault" && draining(stage).await;
    if stage.with_shim && when == "before the fault" {
        let ready = until(promised(15.0), async || is_ready(stage).await).await;
        if ready.is_none() {
            played.complain(format!("not ready {when}"));
        }
    }
    let limit = match stage.with_shim {
        true => promised(30.0),
        false => promised(2.0),
    };
    if let Some(wrong) = until_right(&stage.scheduler, stage.total(), limit).await {
        played.belief = Some(format!("30 s {when}: {wrong}"));
    }
    let limit = match stage.with_shim {
        true => promised(10.0),
        false => UNMENDED,
    };
    let models = until(limit, async || stage.lost_models().await.is_empty()).await;
    if models.is_none() && !drained {
        played.lost_models = stage.lost_models().await;
    }
}

async fn draining(stage: &Stage) -> bool {
    let answer = stage.get("/readyz").await;
    answer.is_some_and(|(_, text)| text.contains("not-draining"))
}

async fn is_ready(stage: &Stage) -> bool {
    says(stage, 200).await
}

async fn says(stage: &Stage, code: u16) -> bool {
    let answer = stage.get("/readyz").await;
    answer.is_some_and(|(said, _)| said == code)
}

/// Readiness is truthful while the fault lasts.
pub async fn told_of_fault(stage: &Stage, row: &Row, phase: Phase, played: &mut Played) {
    let expected = match phase {
        // A drain makes it not ready whatever else is so.
        Phase::Draining if row.ready != Ready::Unasked => Ready::Goes,
        _ => row.ready,
    };
    match expected {
        Ready::Unasked => {}
        Ready::Recovers => {
            played.told_fault = until(promised(3.0), async || is_ready(stage).await).await;
            if played.told_fault.is_none() {
                let said = stage.get("/readyz").await;
                played.complain(format!(
                    "not ready again 3 s after the fault, while it lasts: {said:?}"
                ));
            }
        }
        Ready::Stays => stays(stage, row, phase, played).await,
        Ready::Goes | Ready::GoesAfterGrace => {
            let grace = match expected {
                Ready::GoesAfterGrace => scaled(GRACE),
                _ => Duration::ZERO,
            };
            let limit = grace + promised(3.0);
            played.told_fault = until(limit, async || says(stage, 503).await).await;
            if played.told_fault.is_none() {
                played.complain("still ready 3 s after the fault");
            }
        }
    }
}

async fn stays(stage: &Stage, row: &Row, phase: Phase, played: &mut Played) {
    if phase == Phase::ColdStart {
        played.told_fault = until(promised(5.0), async || is_ready(stage).await).await;
        if played.told_fault.is_none() {
            return played.complain("not ready, although the fault does not concern the pod");
        }
    }
    let since = Instant::now();
    while since.elapsed() < row.lasts {
        match stage.get("/readyz").await {
            Some((200, _)) => {}
            other => return played.complain(format!("readiness went: {other:?}")),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A finding names the fault within so many seconds.
pub async fn named(stage: &Stage, wanted: &[&str], limit: f64, played: &mut Played) {
    if wanted.is_empty() {
        return;
    }
    let mut seen = Vec::new();
    let named = until(promised(limit), async || {
        seen = stage.findings().await.unwrap_or_default();
        seen.iter().any(|id| wanted.contains(&id.as_str()))
    });
    if named.await.is_none() {
        played.complain(format!("no finding of {wanted:?}, but {seen:?}"));
    }
}

/// Keeps what is found. What is not `true_of` the fault may be there for a moment, while one probe
/// knows of it and the next does not yet.
pub async fn found(
    stage: &Stage,
    true_of: &[&str],
    before: &BTreeSet<String>,
    played: &mut Played,
) {
    let (_, seen) = until_only(stage, true_of, before, 2.0).await;
    played.found = seen.into_iter().collect();
}

/// Waits until nothing is found but these and what was found before, for so many seconds at most.
/// Whether that came about, and what is found that was not before.
async fn until_only(
    stage: &Stage,
    these: &[&str],
    before: &BTreeSet<String>,
    limit: f64,
) -> (bool, Vec<String>) {
    let mut seen = Vec::new();
    let only = until(promised(limit), async || {
        let Some(now) = stage.findings().await else {
            return false;
        };
        seen = now;
        seen.retain(|id| !before.contains(id));
        seen.iter().all(|id| these.contains(&id.as_str()))
    })
    .await;
    (only.is_some(), seen)
}

/// The end of the fault is told, too: it is ready, and the last probe of either protocol was
/// answered. Readiness alone may hold while an outage is about to be told: one protocol is heard
/// again, and a probe of the other one, begun in the fault, has yet to run out.
pub async fn told_of_end(stage: &Stage, phase: Phase, played: &mut Played) {
    played.told_healed = until(promised(3.0), async || {
        let ready = match phase {
            // It is not ready for the drain alone. A shim that was started anew does not drain.
            Phase::Draining => stage
                .get("/readyz")
                .await
                .is_some_and(|(_, text)| !text.contains("inference-") && !text.contains("probed")),
            _ => is_ready(stage).await,
        };
        ready && stage.answers().await
    })
    .await;
    if played.told_healed.is_none() {
        let text = stage.get("/readyz").await;
        played.complain(format!(
            "not ready 3 s after the end of the fault: {text:?}"
        ));
    }
}

/// No finding stays of a fault that has ended, but what is `lasting`.
pub async fn nothing_left(
    stage: &Stage,
    lasting: &[&str],
    before: &BTreeSet<String>,
    played: &mut Played,
) {
    let (gone, mut left) = until_only(stage, lasting, before, 30.0).await;
    if !gone {
        left.retain(|id| !lasting.contains(&id.as_str()));
        played.complain(format!("30 s after the fault it is still found: {left:?}"));
    }
}

/// Nobody calls any more: what is held is given back, and SIGTERM ends it in order.
pub async fn end(stage: &Stage, row: &Row, played: &mut Played) {
    let mut shim = stage.shim.lock().await;
    let Some(shim) = shim.as_mut() else {
        return;
    };
    if let Some(code) = shim.ended() {
        played.complain(format!("the shim has ended: {code:?}"));
        return;
    }
    if let Some(before) = played.before {
        let mut now = shim.held();
        // Idle connections to the server are kept for 4 s.
        let back = until(promised(6.0), async || {
            now = shim.held();
            now.descriptors <= before.descriptors + 4
                && now.anonymous <= before.anonymous + row.memory
        });
        if back.await.is_none() {
            played.complain(format!("holds {now:?}, before the fault {before:?}"));
        }
    }
    stage.kill_agent();
    super::process::signal(shim.pid(), "TERM");
    match shim.wait(Duration::from_secs(4) + promised(3.0)).await {
        Some(Some(0)) => {}
        other => played.complain(format!("SIGTERM ended it with {other:?}, not 0")),
    }
}
