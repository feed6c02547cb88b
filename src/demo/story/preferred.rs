//! The end of the story: a second server, on an address that comes first in the list.

use tokio::time::Instant;

use super::{AT_ONCE_MS, LIMIT, PATIENCE, all, answered, selected, settled};
use crate::demo::caller::{Answer, CALLS, Caller, GRPC_INFER, HTTP_INFER, seconds};
use crate::demo::stage::{LOCALHOST, POD, Stage};
use crate::demo::standin::StandIn;
use crate::demo::tell::{Side, Teller};

pub(super) async fn tell(teller: &mut Teller, stage: &Stage) {
    let mut localhost = Caller::new(stage.localhost(), PATIENCE);
    if let Some(preferred) = appears(teller, stage, &mut localhost).await {
        falls(teller, stage, &preferred, &mut localhost).await;
        holds(teller, stage, &preferred, &mut localhost).await;
    }
}

async fn appears(teller: &mut Teller, stage: &Stage, localhost: &mut Caller) -> Option<StandIn> {
    teller.step(
        "A server appears on 127.0.0.1 too",
        "It comes first in the list of the shim, and it has never failed: it is used at once. From here on the caller without the shim dials localhost again.",
    );
    let [http, grpc] = stage.localhost();
    let started = Instant::now();
    let preferred = match StandIn::start_at(http, grpc).await {
        Ok(preferred) => preferred,
        Err(error) => {
            teller.expect(false, format!("a second stand-in starts: {error}"));
            teller.end();
            return None;
        }
    };
    let answers = all(teller, Side::Without, localhost).await;
    selected(teller, stage, LOCALHOST).await;
    let took = started.elapsed();
    let moved = infer_by(teller, &mut new(stage), &preferred).await;
    teller.expect(moved, format!("{LOCALHOST} answers"));
    teller.note(&format!(
        "New connections go to {LOCALHOST}, {} after it came up; older ones stay where they are, nothing is cut.",
        seconds(took)
    ));
    teller.end();
    teller.row(
        "server on a preferred address",
        &answered(&answers),
        "new connections go there, nothing is cut",
    );
    Some(preferred)
}

async fn falls(teller: &mut Teller, stage: &Stage, preferred: &StandIn, localhost: &mut Caller) {
    teller.step(
        "It is killed",
        &format!("The one on {POD} is still there. The callers have connections open:"),
    );
    let mut with = new(stage);
    for call in CALLS {
        let answer = with.call(call).await;
        teller.expect(answer.ok, "every call is answered before");
    }
    preferred.stop().await;
    let refused = all(teller, Side::Without, localhost).await;
    teller.expect(refused.iter().all(|a| !a.ok), "localhost is refused again");
    let mut answers: Vec<Answer> = Vec::new();
    for call in CALLS {
        let (answer, tries) = settled(&mut with, call, |a| a.ok).await;
        teller.got(Side::With, &answer);
        if tries > 1 {
            teller.note("The call before met the connection that the server had just closed.");
        }
        teller.expect(answer.ok, "the call is answered by the other server");
        teller.expect(answer.ms < AT_ONCE_MS, "it is answered at once");
        answers.push(answer);
    }
    selected(teller, stage, POD).await;
    teller.end();
    teller.row(
        "preferred server killed",
        &answered(&refused),
        &format!("{}, by the other one", answered(&answers)),
    );
}

async fn holds(teller: &mut Teller, stage: &Stage, preferred: &StandIn, localhost: &mut Caller) {
    let hold = stage.config.failback_hold;
    teller.step(
        "It comes back",
        &format!(
            "It has failed before, so it is used again only when it has been up for {} (SHIM_FAILBACK_HOLD; 10 s by default): a server that comes and goes moves nobody to and fro.",
            seconds(hold)
        ),
    );
    let started = Instant::now();
    if let Err(error) = preferred.restart().await {
        teller.expect(false, format!("the stand-in starts again: {error}"));
        teller.end();
        return;
    }
    all(teller, Side::Without, localhost).await;
    let held = infer_by(teller, &mut new(stage), &stage.server).await;
    // On a machine that is slow enough the hold time may be over already.
    teller.expect(
        held || started.elapsed() > hold,
        format!("{POD} answers meanwhile"),
    );
    selected(teller, stage, LOCALHOST).await;
    let took = started.elapsed();
    teller.expect(took >= hold, "it is not used before the hold time is over");
    let moved = infer_by(teller, &mut new(stage), preferred).await;
    teller.expect(moved, format!("{LOCALHOST} answers then"));
    teller.note(&format!("In use again after {}.", seconds(took)));
    teller.end();
    teller.row(
        "preferred server back",
        "answered",
        "answered; moved after the hold time",
    );
}

/// A caller without open connections: those that are open are not moved.
fn new(stage: &Stage) -> Caller {
    Caller::new(stage.relays(), LIMIT)
}

/// Makes both inferences; true where this server has answered them.
async fn infer_by(teller: &mut Teller, caller: &mut Caller, server: &StandIn) -> bool {
    let ip = server.http().ip();
    let mut all = true;
    for call in [HTTP_INFER, GRPC_INFER] {
        let before = inferences(server);
        let mut answer = caller.call(call).await;
        let by = inferences(server) == before + 1;
        if by {
            answer.answer.push_str(&format!(" on {ip}"));
        }
        teller.got(Side::With, &answer);
        all &= answer.ok && by;
    }
    all
}

/// Inferences that a server has had.
fn inferences(server: &StandIn) -> usize {
    let calls = server.calls();
    calls
        .iter()
        .filter(|c| c.path.to_lowercase().ends_with("infer"))
        .count()
}
