//! What is awaited of a cell while it is played: readiness, findings, belief, models, and that what
//! was held is given back.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::judge::{Played, truth};
use super::look;
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

/// Readiness says what is so of the server, in time; that it goes on to say so is judged by `looks`.
pub async fn told_of_fault(stage: &Stage, ready: Ready, phase: Phase, played: &mut Played) {
    let Some(wanted) = truth::wanted(ready) else {
        return;
    };
    let limit = match ready {
        Ready::GoesAfterGrace => scaled(GRACE) + promised(3.0),
        // It has to start first.
        Ready::Stays if phase == Phase::ColdStart => promised(5.0),
        _ => promised(3.0),
    };
    let mut said = None;
    played.told_fault = until(limit, async || {
        let answer = stage.get("/readyz").await;
        said = answer.map(|(code, text)| look::Ready { code, text });
        said.as_ref().and_then(look::Ready::says) == Some(wanted)
    })
    .await;
    if played.told_fault.is_none() {
        return played.complain(format!(
            "readiness is to be {wanted:?} {limit:?} after the fault: {said:?}"
        ));
    }
    // The drain is a reason of its own, and the only one where the server is as it should be.
    let drains = phase == Phase::Draining;
    if said.as_ref().is_some_and(|said| said.drains() != drains) {
        played.complain(format!(
            "a drain is to be among the reasons: {drains}: {said:?}"
        ));
    }
}

/// A finding names each fault that strikes, within its seconds, one of those that its row lists. Where
/// one fault follows another, both have been there, if not at once.
pub async fn named(stage: &Stage, rows: &[&Row], played: &mut Played) {
    let since = Instant::now();
    let mut open: Vec<&Row> = rows.to_vec();
    open.retain(|row| !row.findings.is_empty());
    while !open.is_empty() {
        let seen = stage.findings().await.unwrap_or_default();
        open.retain(|row| !seen.iter().any(|id| row.findings.contains(&id.as_str())));
        let over = |row: &&Row| since.elapsed() > promised(row.named);
        for row in open.extract_if(.., |row| over(row)) {
            let (name, wanted) = (row.name, row.findings);
            played.complain(format!("{name}: no finding of {wanted:?}, but {seen:?}"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A model that could not be loaded has its finding, by what the scheduler says of it.
pub async fn failed_loads_are_named(stage: &Stage, played: &mut Played) {
    let failed = stage.scheduler.failed();
    if failed.is_empty() {
        return;
    }
    let named = async || {
        let found = stage.findings().await.unwrap_or_default();
        found.iter().any(|id| id == "AS090")
    };
    if until(promised(30.0), named).await.is_none() {
        played.complain(format!(
            "{failed:?} could not be loaded, and AS090 is not found"
        ));
    }
}

/// Keeps what is found. What is not `true_of` the fault may be there for a moment, while one probe
/// knows of it and the next does not yet.
pub async fn found(stage: &Stage, true_of: &[&str], played: &mut Played) {
    let before = played.found_before.clone();
    let (_, seen) = until_only(stage, true_of, &before, 2.0).await;
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
pub async fn nothing_left(stage: &Stage, lasting: &[&str], played: &mut Played) {
    let before = played.found_before.clone();
    let (gone, mut left) = until_only(stage, lasting, &before, 30.0).await;
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
