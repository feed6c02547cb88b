//! The steps of the demo. Each says what was done, shows what callers get without the shim and
//! with it, and checks that it was so.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::agent::FakeAgent;
use super::caller::{Answer, CALLS, Caller, GRPC_INFER, GRPC_LIVE, HTTP_INFER, HTTP_LIVE, seconds};
use super::stage::{POD, Stage};
use super::tell::{Side, Teller};
use crate::admin::status::Document;

mod complaint;
mod preferred;

/// How long a caller without the shim is ready to wait.
const PATIENCE: Duration = Duration::from_millis(300);
/// Limit for everything that is waited for; only a broken shim meets it.
const LIMIT: Duration = Duration::from_secs(6);
/// How the sentence begins that a caller gets while the server is down.
const SENTENCE: &str = "agent-shim: the inference server does not answer";
/// What "at once" means on a busy machine; without the shim, or while it waits, it is longer.
const AT_ONCE_MS: f64 = 1000.0;

/// Tells all of it. Gives the agent that is subscribed at the end: the shim is ready while it is.
pub(super) async fn tell(teller: &mut Teller, stage: &Stage) -> FakeAgent {
    teller.say(
        "agent-shim between an agent and its inference server. The server is a stand-in that answers as MLServer does. \"without\" is a caller that dials the server itself; \"with\" is the same caller, and it dials the shim.",
    );
    let mut direct = Caller::new(stage.pod(), PATIENCE);
    let mut with = Caller::new(stage.relays(), LIMIT);
    elsewhere(teller, stage, &mut with).await;
    frozen(teller, stage, &mut direct, &mut with).await;
    killed(teller, stage, &mut direct, &mut with).await;
    back(teller, stage, &mut direct, &mut with).await;
    preferred::tell(teller, stage).await;
    complaint::tell(teller, stage).await
}

async fn elsewhere(teller: &mut Teller, stage: &Stage, with: &mut Caller) {
    let [http, grpc] = stage.pod();
    teller.step(
        "The server is up, and localhost is refused",
        &format!(
            "It listens on {http} (HTTP) and {grpc} (gRPC), as one that is bound to its pod's address. The agent dials localhost:"
        ),
    );
    let mut localhost = Caller::new(stage.localhost(), PATIENCE);
    let refused = all(teller, Side::Without, &mut localhost).await;
    teller.expect(
        refused
            .iter()
            .all(|a| !a.ok && a.answer.contains("refused")),
        "every call to localhost is refused",
    );
    teller.end();

    let [http, grpc] = stage.relays();
    teller.step(
        "The shim finds the server",
        &format!(
            "It tries 127.0.0.1, ::1 and {POD}, and carries {http} (HTTP) and {grpc} (gRPC) to the first that answers. The same calls there:"
        ),
    );
    selected(teller, stage, POD).await;
    let found = all(teller, Side::With, with).await;
    teller.expect(found.iter().all(|a| a.ok), "every call is answered");
    teller.end();
    teller.row(
        "server on another address than localhost",
        &answered(&refused),
        &answered(&found),
    );
}

async fn frozen(teller: &mut Teller, stage: &Stage, direct: &mut Caller, with: &mut Caller) {
    teller.step(
        "The server freezes",
        &format!(
            "As after SIGSTOP: it accepts connections and says nothing. MLServer does so for 2 to 12 s while it imports a framework. From here on the caller without the shim dials the right address, {POD}."
        ),
    );
    stage.server.wedge();
    let started = Instant::now();
    let [mut http, mut grpc] = [(); 2].map(|()| Caller::new(stage.relays(), LIMIT));
    // These two wait all the while, as a caller's inference would.
    let waiting = async { tokio::join!(http.call(HTTP_INFER), grpc.call(GRPC_INFER)) };
    let told = async {
        let (status, _) = until(async || stage.status().await, is_stalled).await;
        teller.expect(is_stalled(&status), "the server is called stalled");
        let mut silent = Vec::new();
        for call in [HTTP_LIVE, GRPC_LIVE] {
            let answer = direct.call(call).await;
            teller.got(Side::Without, &answer);
            silent.push(answer);
        }
        teller.expect(
            silent.iter().all(|a| !a.ok),
            "health without the shim has no answer",
        );
        for call in [HTTP_LIVE, GRPC_LIVE] {
            let answer = with.call(call).await;
            teller.got(Side::With, &answer);
            teller.expect(answer.ok, "the shim says live");
            teller.expect(answer.ms < AT_ONCE_MS, "it says so at once");
        }
        let frozen = started.elapsed();
        stage.server.unwedge();
        frozen
    };
    let (frozen, (http, grpc)) = tokio::join!(told, waiting);
    for answer in [http, grpc] {
        teller.got(Side::With, &answer);
        teller.expect(answer.ok, "an inference waits and is answered");
        teller.expect(
            answer.ms >= frozen.as_secs_f64() * 1e3,
            "it is answered after the freeze",
        );
    }
    // The next step begins with a server that is known to be well.
    let is_up = |s: &Option<Document>| s.as_ref().is_some_and(|s| states(s, "up") == 2);
    let (status, _) = until(async || stage.status().await, is_up).await;
    teller.expect(is_up(&status), "the server is called up again");
    teller.note(&format!(
        "Frozen for {}. The shim calls that \"stalled\", not dead: the inferences waited, and nothing was cut.",
        seconds(frozen)
    ));
    teller.end();
    teller.row(
        "server frozen for a while",
        "health: no answer",
        "health: live; calls wait, then are answered",
    );
}

async fn killed(teller: &mut Teller, stage: &Stage, direct: &mut Caller, with: &mut Caller) {
    let grace = stage.config.outage_grace;
    teller.step(
        "The server is killed",
        "As by SIGKILL: every connection is closed, new ones are refused.",
    );
    stage.server.stop().await;
    let killed = Instant::now();
    let refused = all(teller, Side::Without, direct).await;
    teller.expect(refused.iter().all(|a| !a.ok), "the server is gone");
    for call in [HTTP_LIVE, GRPC_LIVE] {
        let answer = with.call(call).await;
        teller.got(Side::With, &answer);
        teller.expect(answer.ok, "the server counts as live within the grace");
    }
    let is_down = |s: &Option<Document>| s.as_ref().is_some_and(|s| states(s, "down") == 6);
    let (status, _) = until(async || stage.status().await, is_down).await;
    teller.expect(is_down(&status), "the server is called down");
    let sure = killed.elapsed();
    for call in [HTTP_INFER, GRPC_INFER] {
        let (answer, _) = settled(with, call, |a| a.ok || a.answer.contains(SENTENCE)).await;
        teller.got(Side::With, &answer);
        teller.expect(answer.ms < AT_ONCE_MS, "the answer comes at once");
        teller.expect(
            answer.answer.contains(SENTENCE),
            "an inference is refused with the reason",
        );
    }
    teller.note(&format!(
        "Known to be down after {}. Still live for {} after its last answer, so that a quick restart costs the agent nothing (SHIM_OUTAGE_GRACE; 20 s by default).",
        seconds(sure),
        seconds(grace)
    ));
    teller.end();
    teller.row(
        "server killed",
        "refused, no reason given",
        "503 and UNAVAILABLE at once, with the reason; live within the grace",
    );

    teller.step(
        "It stays dead beyond the grace",
        "Health is asked until the answer changes:",
    );
    let mut ended = Duration::ZERO;
    for call in [HTTP_LIVE, GRPC_LIVE] {
        let (answer, _) = settled(with, call, |a| !a.ok).await;
        if ended.is_zero() {
            ended = killed.elapsed();
        }
        teller.got(Side::With, &answer);
        teller.expect(
            !answer.ok && answer.answer.contains("refused"),
            "not live, with the reason",
        );
    }
    // The last answer came before the kill, by one interval at most.
    teller.expect(
        ended + 2 * stage.config.probe.interval >= grace,
        "it counted as live for the whole grace",
    );
    teller.note(&format!("Not live {} after the kill.", seconds(ended)));
    teller.end();
    teller.row(
        "server dead beyond the grace",
        "refused, no reason given",
        "live=false, with the reason",
    );
}

async fn back(teller: &mut Teller, stage: &Stage, direct: &mut Caller, with: &mut Caller) {
    teller.step(
        "The server comes back",
        "At the same address. The callers are those of before: they were not restarted.",
    );
    let before = with.connections;
    let back = Instant::now();
    if let Err(error) = stage.server.restart().await {
        teller.expect(false, format!("the stand-in starts again: {error}"));
        teller.end();
        return;
    }
    let direct = all(teller, Side::Without, direct).await;
    let mut answers = Vec::new();
    for call in CALLS {
        let (answer, _) = settled(with, call, |a| a.ok).await;
        teller.got(Side::With, &answer);
        teller.expect(answer.ok, "the call is answered again");
        answers.push(answer);
    }
    let took = back.elapsed();
    teller.expect(
        with.connections == before,
        "HTTP goes on over the connection that it had",
    );
    teller.note(&format!(
        "All four answered {} after the start, HTTP over the connection that it had all the time, gRPC in the same channels.",
        seconds(took)
    ));
    teller.end();
    teller.row(
        "server back",
        &format!("{}, on new connections", answered(&direct)),
        &format!("{}, on the same connection", answered(&answers)),
    );
}

/// Makes all calls and tells what came.
async fn all(teller: &mut Teller, side: Side, caller: &mut Caller) -> Vec<Answer> {
    let mut answers = Vec::new();
    for call in CALLS {
        let answer = caller.call(call).await;
        teller.got(side, &answer);
        answers.push(answer);
    }
    answers
}

fn answered(answers: &[Answer]) -> String {
    let ok = answers.iter().filter(|a| a.ok).count();
    format!("{ok} of {} answered", answers.len())
}

/// Makes one call until its answer is as wanted, and counts how often.
async fn settled(
    caller: &mut Caller,
    call: &'static str,
    wanted: impl Fn(&Answer) -> bool,
) -> (Answer, usize) {
    until(async || caller.call(call).await, wanted).await
}

/// Asks until the answer is as wanted or the limit is over; gives the last one.
async fn until<T>(mut ask: impl AsyncFnMut() -> T, wanted: impl Fn(&T) -> bool) -> (T, usize) {
    let started = Instant::now();
    let mut asked = 0;
    loop {
        let answer = ask().await;
        asked += 1;
        if wanted(&answer) || started.elapsed() > LIMIT {
            return (answer, asked);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the shim uses a host for both protocols.
async fn selected(teller: &mut Teller, stage: &Stage, host: IpAddr) {
    let host = host.to_string();
    let is = |status: &Option<Document>| {
        status.as_ref().is_some_and(|s| {
            s.selection.http.as_ref() == Some(&host) && s.selection.grpc.as_ref() == Some(&host)
        })
    };
    let (status, _) = until(async || stage.status().await, is).await;
    teller.expect(is(&status), format!("{host} is selected"));
}

/// Whether the server is called stalled, on both protocols.
fn is_stalled(status: &Option<Document>) -> bool {
    status.as_ref().is_some_and(|s| states(s, "stalled") == 2)
}

/// Candidates in a state, of both protocols.
fn states(status: &Document, state: &str) -> usize {
    status.endpoints.iter().filter(|e| e.state == state).count()
}
