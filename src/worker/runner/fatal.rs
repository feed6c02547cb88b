//! The server in which every inference fails for good: ended, so that kubelet starts it anew and
//! the shim loads its models again.
//!
//! Nothing less helps. MLServer answers an unload of the model that its workers cannot load with
//! 200 and keeps it: the worker says that it does not have it, so the server does not strike it off
//! the list that the next worker has to load. Putting its files back and loading it helps, which
//! only a person can do.
//!
//! The state begins with a worker's death, and no inference has a result from then on: without
//! that, failures may be those of one model, and the server serves others.

use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::sleep;

use super::{LOOK, Runner};
use crate::process::{self, Process};
use crate::restore::server::address;
use crate::worker::{FAILURES, PASSIVE_FAILURES, WorkerSeen};

/// How long every inference must have failed: one in which a worker is started anew fails as well,
/// for 4 s or for as long as its models take to load.
const MEND_AFTER: Duration = Duration::from_secs(300);
/// The last failure must be as young: else nobody knows how it is now.
const FRESH: Duration = Duration::from_secs(60);
/// Time from one such end to the next: where it does not help, it is not done again and again.
const AGAIN: Duration = Duration::from_secs(30 * 60);
/// How long the server may take to end by itself: with a worker in a call it takes 5 s.
const TERM: Duration = Duration::from_secs(30);

/// What else there is to know of the moment.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    /// The server answers probes.
    up: bool,
    /// Inferences, loads or unloads are under way, or the pod drains.
    busy: bool,
    /// When an inference last had a result, of whatever model.
    result: Option<Duration>,
    /// When the server was last ended for this.
    ended: Option<Duration>,
}

/// Whether the server is to be ended.
fn is_due(seen: &WorkerSeen, moment: Moment, now: Duration) -> bool {
    if !moment.up || moment.busy || moment.ended.is_some_and(|at| now < at + AGAIN) {
        return false;
    }
    if seen
        .exited
        .is_none_or(|exited| moment.result >= Some(exited))
    {
        return false;
    }
    let lasts = |first: Duration, last: Duration| {
        last.saturating_sub(first) >= MEND_AFTER && now.saturating_sub(last) <= FRESH
    };
    let passive = seen.passive;
    if passive.failures >= PASSIVE_FAILURES && lasts(passive.first, passive.last) {
        return true;
    }
    seen.canary.as_ref().is_some_and(|canary| {
        let last = canary.last.as_ref().map(|(_, at)| *at);
        let failing = canary.failing.zip(last);
        canary.failures >= FAILURES && failing.is_some_and(|(first, last)| lasts(first, last))
    })
}

/// Sends a signal to a process, if it is still the one that was found. False where it has ended.
fn signal(proc: &Path, target: &Process, signal: Signal) -> Result<bool, String> {
    let pid = i32::try_from(target.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("a process id out of range")?;
    let why = |error: Errno| match error {
        Errno::PERM => format!(
            "process {} may not be ended by the shim: give it the user of the server{} (securityContext.runAsUser)",
            target.pid,
            target.uid.map(|uid| format!(", {uid}")).unwrap_or_default()
        ),
        error => format!("process {} cannot be ended: {error}", target.pid),
    };
    // The descriptor keeps the process apart from a later one of the same number.
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(false),
        process => process.map_err(why)?,
    };
    if !process::is_running(proc, target) {
        return Ok(false);
    }
    match pidfd_send_signal(process, signal) {
        Err(Errno::SRCH) => Ok(false),
        sent => sent.map(|()| true).map_err(why),
    }
}

/// Ends a process, by force where it does not end within `patience`.
async fn end(proc: &Path, target: &Process, patience: Duration) -> Result<(), String> {
    if !signal(proc, target, Signal::TERM)? {
        return Ok(());
    }
    let begun = tokio::time::Instant::now();
    while process::is_running(proc, target) {
        if begun.elapsed() >= patience {
            return signal(proc, target, Signal::KILL).map(|_| ());
        }
        sleep(LOOK.min(patience)).await;
    }
    Ok(())
}

impl Runner {
    /// Looks for ever, where that is switched on.
    pub(super) async fn fatal(&self) {
        if !self.parts.mend.fatal {
            return std::future::pending().await;
        }
        let mut ended = None;
        let (mut result, mut results) = (None, self.parts.in_flight.answers());
        loop {
            sleep(LOOK).await;
            let now = self.now();
            let memory = &self.parts.memory;
            let before = std::mem::replace(&mut results, self.parts.in_flight.answers());
            if results != before {
                result = Some(now);
            }
            let moment = Moment {
                up: address(&self.parts.watching.view.borrow()).is_some(),
                busy: memory.is_changing() || memory.drains() || self.parts.in_flight.now() > 0,
                result,
                ended,
            };
            if !is_due(&self.parts.worker.0.seen.borrow(), moment, now) {
                continue;
            }
            ended = Some(now);
            tracing::warn!(
                "every inference has failed in the server for {} s, since a worker of it has ended: ending it, so that it is started again",
                MEND_AFTER.as_secs()
            );
            let outcome = self.end_server().await;
            self.mended("fatal", "all", outcome);
        }
    }

    async fn end_server(&self) -> Result<(), String> {
        let (proc, ports) = (self.parts.proc.clone(), self.parts.ports.clone());
        let look = tokio::task::spawn_blocking(move || process::find(&proc, &ports));
        let found = look.await.map_err(|error| error.to_string())?;
        let server = found.map_err(|why| format!("its process is not seen: {why}"))?;
        end(&self.parts.proc, &server.main, TERM).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Role;
    use crate::worker::Passive;
    use crate::worker::canary::{Answer, Canary};

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn failing(first: u64, last: u64) -> WorkerSeen {
        WorkerSeen {
            passive: Passive {
                failures: 9,
                first: s(first),
                last: s(last),
            },
            exited: Some(s(first - 5)),
            ..WorkerSeen::default()
        }
    }

    const UP: Moment = Moment {
        up: true,
        busy: false,
        result: None,
        ended: None,
    };

    #[test]
    fn the_server_is_ended_only_for_what_has_lasted_and_is_so_now() {
        assert!(is_due(&failing(10, 310), UP, s(311)));
        assert!(!is_due(&failing(10, 309), UP, s(311)), "not for so long");
        assert!(!is_due(&failing(10, 310), UP, s(371)), "long ago");
        assert!(!is_due(&WorkerSeen::default(), UP, s(999)));
        let mut few = failing(10, 310);
        few.passive.failures = PASSIVE_FAILURES - 1;
        assert!(!is_due(&few, UP, s(311)), "too few");
        let mut one = failing(10, 310);
        one.exited = None;
        assert!(!is_due(&one, UP, s(311)), "one model's, perhaps");
    }

    #[test]
    fn a_canary_is_evidence_as_well() {
        let mut canary = Canary::default();
        for at in [10, 100, 309] {
            canary.ended(Answer::WorkerFailed("500".into()), s(at));
        }
        let mut seen = WorkerSeen {
            canary: Some(canary.clone()),
            exited: Some(s(9)),
            ..WorkerSeen::default()
        };
        assert!(!is_due(&seen, UP, s(310)));
        canary.ended(Answer::WorkerFailed("500".into()), s(310));
        seen.canary = Some(canary);
        assert!(is_due(&seen, UP, s(310)));
    }

    #[test]
    fn nobody_who_still_gets_something_is_cut_off_and_it_is_not_done_in_a_loop() {
        let seen = failing(10, 310);
        for moment in [
            Moment { up: false, ..UP },
            Moment { busy: true, ..UP },
            Moment {
                result: Some(s(5)),
                ..UP
            },
            Moment {
                ended: Some(s(5)),
                ..UP
            },
        ] {
            assert!(!is_due(&seen, moment, s(311)), "{moment:?}");
        }
        let later = failing(1600, 1900);
        let before = Moment {
            result: Some(s(4)),
            ended: Some(s(5)),
            ..UP
        };
        assert!(is_due(&later, before, s(1900)));
    }

    /// A process of its own that heeds SIGTERM or does not, as `/proc` shows it.
    fn child(script: &str) -> (std::process::Child, Process) {
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let after = stat.rsplit(')').next().unwrap();
        let start = after.split_whitespace().nth(19).unwrap().parse().unwrap();
        let process = Process {
            pid: child.id(),
            ppid: std::process::id(),
            start,
            uid: None,
            role: Role::Main,
        };
        (child, process)
    }

    #[tokio::test]
    async fn a_process_is_ended_by_force_where_it_does_not_end_and_no_other_one_is() {
        use std::os::unix::process::ExitStatusExt;
        let proc = Path::new("/proc");
        let (mut heeds, process) = child("echo; exec sleep 600");
        let other = Process {
            start: process.start + 1,
            ..process.clone()
        };
        end(proc, &other, s(0)).await.unwrap();
        assert_eq!(heeds.try_wait().unwrap(), None, "another of that number");
        end(proc, &process, s(60)).await.unwrap();
        assert_eq!(heeds.wait().unwrap().signal(), Some(15));
        let (mut deaf, process) = child("trap '' TERM; echo; while :; do sleep 0.1; done");
        end(proc, &process, s(0)).await.unwrap();
        assert_eq!(deaf.wait().unwrap().signal(), Some(9));
        assert_eq!(end(proc, &process, s(0)).await, Ok(()), "it has ended");
    }
}
