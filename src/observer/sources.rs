//! The sources of capabilities in their order, each with what it said last.

use std::path::PathBuf;
use std::time::Duration;

use crate::capability::{Observation, Source, Unanswered, installed, listed};
use crate::config::CapabilitiesConfig;
use crate::observer::{ProbeAnswer, Settings};
use crate::process::{self, NotFound, Server};
use crate::procfs::Unreadable;

/// Packages can be installed into a running server; nobody expects that to be noticed at once.
const RESCAN: Duration = Duration::from_secs(3600);
/// A process that has only just started has not mapped all of its folders.
const SECOND_SCAN: Duration = Duration::from_secs(20);
/// After a failure: permission does not change while a pod runs.
const RETRY_SCAN: Duration = Duration::from_secs(30);
/// How long a new server may fail to show its distributions before the old one's are forgotten.
const KEEP: Duration = Duration::from_secs(60);
/// The file may appear late: the server's container writes it at its own start.
const FILE_INTERVAL: Duration = Duration::from_secs(30);
/// How long after the start a better source may still answer.
const SETTLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct CapabilitySources {
    proc: PathBuf,
    config: CapabilitiesConfig,
    scan: Option<Scan>,
    known: Option<(Duration, installed::Installed)>,
    file: Option<(Duration, Result<listed::Listed, Unreadable>)>,
}

/// The look at the packages of one main process.
#[derive(Debug)]
struct Scan {
    /// Pid and start time.
    of: (u32, u64),
    at: Duration,
    first: Duration,
    failure: Option<installed::NotRead>,
}

impl CapabilitySources {
    pub(super) fn new(settings: &Settings) -> Self {
        CapabilitySources {
            proc: settings.proc.clone(),
            config: settings.capabilities.clone(),
            scan: None,
            known: None,
            file: None,
        }
    }

    /// The first source that answers, and why those before it did not. `answered`: the server
    /// has been up, so its processes are visible now or never.
    pub(super) fn look(
        &mut self,
        found: Result<&Server, &NotFound>,
        probed: Option<&ProbeAnswer>,
        answered: bool,
        now: Duration,
    ) -> Observation {
        let mut unanswered = Vec::new();
        let mut answer = None;
        for source in Source::ALL {
            match self.ask(source, found, probed, now) {
                Ok(observation) => {
                    answer = Some(observation);
                    break;
                }
                Err(reason) => unanswered.push(Unanswered { source, reason }),
            }
        }
        let mut observation = answer.unwrap_or_default();
        observation.unanswered = unanswered;
        let denied =
            self.scan.as_ref().and_then(|scan| scan.failure) == Some(installed::NotRead::Denied);
        let never = denied || (found.is_err() && answered);
        let waiting_for_probe = self.config.probe && probed.is_none();
        let waiting_for_file = self.config.file.is_some() && observation.source == Source::Declared;
        observation.settled = match observation.source {
            Source::Explicit | Source::Distributions | Source::ProbeModel => true,
            Source::File | Source::Declared => {
                now >= SETTLE || (never && !waiting_for_probe && !waiting_for_file)
            }
        };
        observation
    }

    fn ask(
        &mut self,
        source: Source,
        found: Result<&Server, &NotFound>,
        probed: Option<&ProbeAnswer>,
        now: Duration,
    ) -> Result<Observation, String> {
        match source {
            Source::Explicit if self.config.policy.list.is_empty() => {
                Err("SHIM_CAPABILITIES_LIST is not set".into())
            }
            Source::Explicit => {
                let names = self.config.policy.list.clone();
                let listed = listed::Listed {
                    names,
                    ..listed::Listed::default()
                };
                Ok(listed::observation(listed, Source::Explicit))
            }
            Source::Distributions => self.distributions(found, now),
            Source::ProbeModel => match probed {
                Some(Ok(probing)) => Ok(probing.answer.observation(probing.at)),
                Some(Err(why)) => Err(why.clone()),
                None if self.config.probe => Err("no answer yet".into()),
                None => Err("SHIM_CAPABILITIES_PROBE is false".into()),
            },
            Source::File => self.file(now),
            Source::Declared => Ok(Observation {
                at: now,
                ..Observation::default()
            }),
        }
    }

    fn distributions(
        &mut self,
        found: Result<&Server, &NotFound>,
        now: Duration,
    ) -> Result<Observation, String> {
        let failure = match found {
            Ok(server) => self.scan(server, now).map(|why| why.to_string()),
            Err(why) => Some(why.to_string()),
        };
        match (&self.known, failure) {
            (Some((at, installed)), _) => Ok(Observation {
                source: Source::Distributions,
                distributions: installed.distributions.clone(),
                at: *at,
                ..Observation::default()
            }),
            (None, Some(why)) => Err(why),
            (None, None) => Err("nothing was read".into()),
        }
    }

    /// Reads the packages where it is time to; gives the reason if that failed.
    fn scan(&mut self, server: &Server, now: Duration) -> Option<installed::NotRead> {
        let of = (server.main.pid, server.main.start);
        let last = self.scan.as_ref().filter(|scan| scan.of == of);
        let first = last.map_or(now, |scan| scan.first);
        let wait = match last {
            None => Duration::ZERO,
            Some(Scan {
                failure: Some(_), ..
            }) if now.saturating_sub(first) < SETTLE => Duration::ZERO,
            Some(Scan {
                failure: Some(_), ..
            }) => RETRY_SCAN,
            Some(scan) if scan.at == scan.first => SECOND_SCAN,
            Some(_) => RESCAN,
        };
        if let Some(scan) = last.filter(|scan| now.saturating_sub(scan.at) < wait) {
            return scan.failure;
        }
        let result = installed::read(&self.proc, server.main.pid);
        // A server that is going away is no news of what it had.
        if result.is_err() && !process::is_running(&self.proc, &server.main) {
            return result.err();
        }
        let failure = result.as_ref().err().copied();
        match result {
            Ok(installed) => self.known = Some((now, installed)),
            Err(_) if now.saturating_sub(first) >= KEEP => self.known = None,
            Err(_) => {}
        }
        self.scan = Some(Scan {
            of,
            at: now,
            first,
            failure,
        });
        failure
    }

    fn file(&mut self, now: Duration) -> Result<Observation, String> {
        let Some(path) = &self.config.file else {
            return Err("SHIM_CAPABILITIES_FILE is not set".into());
        };
        let due = |(at, last): &(Duration, Result<listed::Listed, Unreadable>)| {
            (now < SETTLE && last.is_err()) || now.saturating_sub(*at) >= FILE_INTERVAL
        };
        if self.file.as_ref().is_none_or(due) {
            let read = listed::read(path);
            // A file that is being written anew keeps its last good state.
            let keep = read.is_err() && matches!(self.file, Some((_, Ok(_))));
            if let (true, Some((at, _))) = (keep, &mut self.file) {
                *at = now;
            } else {
                self.file = Some((now, read));
            }
        }
        match &self.file {
            Some((at, Ok(listed))) => Ok(Observation {
                at: *at,
                ..listed::observation(listed.clone(), Source::File)
            }),
            Some((_, Err(why))) => Err(format!("{}: {why}", path.display())),
            None => Err("not read".into()),
        }
    }
}
