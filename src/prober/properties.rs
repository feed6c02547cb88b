//! Health and selection against an oracle: long random histories of probes through the reducer,
//! and what has to follow from them by the documented rules.
//!
//! The oracle keeps every outcome since the beginning and works each state out from all of them,
//! by runs of answers and of failures, where the program keeps counters. It was written from the
//! README's words: answers in a row that make `up`, failures in a row that end it, the time after
//! the last answer for which silence is a stall, and the hold before an earlier candidate is
//! used again.

use super::*;
use crate::drain::Drain;
use crate::readiness::{self, Condition, Facts};
use crate::worker::Worker;
use proptest::prelude::*;

const HOSTS: &str = "127.0.0.1,::1,mlserver.pods.svc";
const CANDIDATES: usize = 3;

struct Never;

impl Probe for Never {
    fn probe(&self, _: &Candidate) -> ProbeFuture {
        unreachable!("the history is the probe")
    }
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    rise: usize,
    fall: usize,
    grace: Duration,
    hold: Duration,
}

/// What one probe found: an answer, or why not.
type Found = Option<Reason>;

/// Everything that one candidate was ever found to be, and what follows from it.
#[derive(Debug, Clone, Default)]
struct Candidacy {
    found: Vec<(Duration, Found)>,
    /// The state after each, with the time at which it began.
    states: Vec<(State, Duration)>,
    has_fallen: bool,
}

impl Candidacy {
    fn state(&self) -> State {
        self.states.last().map_or(State::Unknown, |s| s.0)
    }

    fn since(&self) -> Duration {
        self.states.last().map_or(Duration::ZERO, |s| s.1)
    }

    fn last_answer(&self) -> Option<Duration> {
        let answers = self.found.iter().filter(|(_, f)| f.is_none());
        answers.map(|(at, _)| *at).next_back()
    }

    fn found(&mut self, at: Duration, found: Found, rules: &Rules) {
        self.found.push((at, found));
        let (before, since) = (self.state(), self.since());
        let now = self.worked_out(rules);
        self.has_fallen |= now == State::Down && before != now && self.last_answer().is_some();
        let since = if now == before { since } else { at };
        self.states.push((now, since));
    }

    /// The state, from all that was found.
    fn worked_out(&self, rules: &Rules) -> State {
        let answers = self.found.iter().rev().take_while(|f| f.1.is_none());
        let answers = answers.count();
        let failed = self.found.iter().rev().take_while(|f| f.1.is_some());
        let failed = failed.count();
        let run = answers.max(failed);
        let begun = self.found.len() - run;
        let before = match begun {
            0 => State::Unknown,
            n => self.states[n - 1].0,
        };
        if failed == 0 {
            return match before {
                _ if answers >= rules.rise => State::Up,
                State::Up | State::Stalled => State::Up,
                other => other,
            };
        }
        if before == State::Down {
            return State::Down;
        }
        if failed < rules.fall && before != State::Stalled {
            return before;
        }
        // The fall is confirmed: one word that is not silence, from then on, is the end.
        let confirmed = match before {
            State::Stalled => begun,
            _ => begun + rules.fall - 1,
        };
        let heard = self.found[confirmed..].iter();
        if heard.clone().any(|(_, f)| !f.unwrap().is_silence()) {
            return State::Down;
        }
        // Else it is silent since its last answer; one that never answered, since it fell silent.
        let silent = self.found.iter().rev();
        let silent = silent.take_while(|(_, f)| f.is_some_and(Reason::is_silence));
        let silent = silent.map(|(at, _)| *at).last().unwrap();
        let quiet = self.last_answer().unwrap_or(silent);
        let longest = self.found[confirmed..].last().unwrap().0;
        if longest.saturating_sub(quiet) >= rules.grace {
            State::Down
        } else {
            State::Stalled
        }
    }
}

/// Whether an earlier candidate may be used again at this moment.
fn is_trusted(c: &Candidacy, now: Duration, rules: &Rules) -> bool {
    c.state() == State::Up && (!c.has_fallen || now - c.since() >= rules.hold)
}

#[derive(Debug, Clone)]
enum Step {
    /// One probe of one candidate of one protocol.
    Probe(usize, usize, Found),
    /// Every candidate of a protocol, so that whole outages come about.
    All(usize, Found),
    Pass(u64),
    /// What relayed inferences say of the worker: evidence of another kind.
    Passive(bool),
    Called(bool),
    Draining,
}

fn found() -> impl Strategy<Value = Found> {
    prop_oneof![
        5 => Just(None),
        3 => Just(Some(Reason::Refused)),
        3 => Just(Some(Reason::ResponseTimeout)),
        1 => Just(Some(Reason::Dns)),
        1 => prop::sample::select(&Reason::ALL).prop_map(Some),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..2usize, 0..CANDIDATES, found()).prop_map(|(p, c, f)| Step::Probe(p, c, f)),
        4 => (0..2usize, found()).prop_map(|(p, f)| Step::All(p, f)),
        8 => (1..1500u64).prop_map(Step::Pass),
        1 => (1..40_000u64).prop_map(Step::Pass),
        2 => any::<bool>().prop_map(Step::Passive),
        1 => any::<bool>().prop_map(Step::Called),
        1 => Just(Step::Draining),
    ]
}

/// The first moments of a server of which one protocol answers at once, and the other accepts and says
/// nothing: in long histories everything has answered before long.
fn early_step() -> impl Strategy<Value = Step> {
    let silent = prop_oneof![Just(Reason::ResponseTimeout), Just(Reason::ConnectTimeout)];
    prop_oneof![
        4 => Just(Step::All(0, None)),
        8 => silent.prop_map(|reason| Step::All(1, Some(reason))),
        1 => (0..2usize, 0..CANDIDATES, found()).prop_map(|(p, c, f)| Step::Probe(p, c, f)),
        4 => (1..4000u64).prop_map(Step::Pass),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let each = (1..4usize, 1..5usize, 0..30u64, 0..20u64);
    each.prop_map(|(rise, fall, grace, hold)| Rules {
        rise,
        fall,
        grace: Duration::from_secs(grace),
        hold: Duration::from_secs(hold),
    })
}

struct World {
    rules: Rules,
    prober: Prober<Never>,
    watching: Watching,
    clock: Clock,
    truth: [Vec<Candidacy>; 2],
    chosen: [Option<usize>; 2],
    /// The server's own readiness, which nothing may depend on.
    not_ready: bool,
    drain: Drain,
    worker: Worker,
    kept: Vec<Condition>,
}

impl World {
    fn new(rules: Rules) -> Self {
        let text = |d: Duration| format!("{}ms", d.as_millis());
        let loaded = crate::config::load_from([
            ("SHIM_INFERENCE_HOSTS", HOSTS.to_string()),
            ("SHIM_PROBE_RISE", rules.rise.to_string()),
            ("SHIM_PROBE_FALL", rules.fall.to_string()),
            ("SHIM_OUTAGE_GRACE", text(rules.grace)),
            ("SHIM_FAILBACK_HOLD", text(rules.hold)),
        ])
        .unwrap();
        let clock = Clock::start();
        let (prober, watching) = Prober::new(&loaded.config, Never, clock, &Metrics::new());
        World {
            rules,
            prober,
            watching,
            clock,
            truth: [(); 2].map(|()| vec![Candidacy::default(); CANDIDATES]),
            chosen: [None; 2],
            not_ready: false,
            drain: Drain::default(),
            worker: Worker::new(clock),
            kept: Vec::new(),
        }
    }

    fn probed(&mut self, p: usize, c: usize, found: Found) -> Result<(), TestCaseError> {
        let protocol = Protocol::ALL[p];
        let now = self.clock.now();
        // Not ready half of the time: a model loads.
        self.not_ready = !self.not_ready;
        let outcome = match found {
            None => Outcome::Healthy {
                ready: Some(!self.not_ready),
                latency: Duration::from_millis(1),
            },
            Some(reason) => Outcome::Unhealthy {
                reason,
                detail: String::new(),
            },
        };
        // A name that resolves to another address each time, or to none.
        let address = (c == 2 && found != Some(Reason::Dns))
            .then(|| SocketAddr::from(([10, 0, 0, now.as_secs() as u8], 9000)));
        let told = *self.watching.changes.borrow();
        let (was, chosen) = (self.truth[p][c].state(), self.chosen[p]);
        let report = Report { outcome, address };
        // Who else listens on this machine is not the matter.
        self.prober.looked = [Some(now); 2];
        self.prober.take(protocol, c, report, Duration::ZERO);
        self.truth[p][c].found(now, found, &self.rules);

        let view = self.watching.view.borrow().clone();
        for (i, truth) in self.truth[p].iter().enumerate() {
            let health = &view.of(protocol)[i].health;
            prop_assert_eq!(health.state, truth.state(), "{:?}", truth.found);
            prop_assert_eq!(health.last_success, truth.last_answer());
            if truth.states.len() > 1 {
                prop_assert_eq!(health.since, truth.since());
            }
        }
        self.selection(p, view.selection[p], now)?;
        // Whoever waits for a change is woken by each, and by nothing else.
        let changed = was != self.truth[p][c].state() || chosen != self.chosen[p];
        prop_assert_eq!(*self.watching.changes.borrow() - told, u64::from(changed));
        let none_up = self.truth[p].iter().all(|t| t.state() != State::Up);
        prop_assert!(hurry(&view, protocol, c) == Hurry::NoneUp || !none_up);
        Ok(())
    }

    /// At most one is in use, by these rules.
    fn selection(
        &mut self,
        p: usize,
        chosen: Option<usize>,
        now: Duration,
    ) -> Result<(), TestCaseError> {
        let all = &self.truth[p];
        let first = |state| all.iter().position(|t| t.state() == state);
        let before = std::mem::replace(&mut self.chosen[p], chosen);
        let state = chosen.map(|i| all[i].state());
        // One that nobody answers at is never in use while another is up.
        let best = match (first(State::Up), first(State::Stalled)) {
            (Some(_), _) => Some(State::Up),
            (None, Some(_)) => Some(State::Stalled),
            (None, None) => None,
        };
        prop_assert_eq!(state, best);
        let Some(i) = chosen.filter(|_| state == Some(State::Up)) else {
            return Ok(());
        };
        let still_up = before.filter(|b| all[*b].state() == State::Up);
        match still_up {
            // The way back: to an earlier one, and only one that has held.
            Some(b) if b != i => {
                prop_assert!(i < b && is_trusted(&all[i], now, &self.rules));
            }
            // And it is taken as soon as it may be.
            Some(b) => {
                prop_assert!(!all[..b].iter().any(|t| is_trusted(t, now, &self.rules)));
            }
            None => prop_assert_eq!(Some(i), first(State::Up)),
        }
        Ok(())
    }

    /// What is answered to those who ask, at any moment.
    fn answers(&mut self) -> Result<(), TestCaseError> {
        let now = self.clock.now();
        let view = self.watching.view.borrow().clone();
        let mut usable = true;
        for (p, protocol) in Protocol::ALL.into_iter().enumerate() {
            let truth = &self.truth[p];
            let up = truth.iter().any(|t| t.state() == State::Up);
            let last = truth.iter().filter_map(Candidacy::last_answer).max();
            let recent = last.is_some_and(|at| now - at <= self.rules.grace);
            // Never false within the grace after an answer, never true after it with none up.
            prop_assert_eq!(
                view.live(protocol, now, self.rules.grace).is_ok(),
                up || recent
            );
            let chosen = self.chosen[p].map(|i| truth[i].state());
            usable &= match chosen {
                Some(State::Up) => true,
                Some(State::Stalled) => last.is_some(),
                _ => false,
            };
        }
        let facts = Facts {
            draining: self.drain.has_begun(),
            called: self.drain.is_called(),
        };
        let before = std::mem::take(&mut self.kept);
        let mut all = readiness::conditions(&view, facts, now, &before);
        let worker = self.worker.condition();
        // What callers see is told as a finding, and takes nobody's traffic.
        prop_assert!(worker.holds);
        let probed = self.truth.iter().flatten().all(|t| !t.found.is_empty());
        let expected = probed && usable && !facts.draining && !facts.called;
        prop_assert_eq!(readiness::ready(&all), expected);
        prop_assert_eq!(readiness::started(&all), probed);
        for condition in &all {
            let known = before.iter().find(|c| c.name == condition.name);
            let same = known.filter(|c| c.holds == condition.holds);
            prop_assert_eq!(condition.since, same.map_or(now, |c| c.since));
        }
        self.kept.append(&mut all);
        Ok(())
    }

    async fn does(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Probe(p, c, found) => self.probed(*p, *c, *found)?,
            Step::All(p, found) => {
                for c in 0..CANDIDATES {
                    self.probed(*p, c, *found)?;
                }
            }
            Step::Pass(ms) => tokio::time::advance(Duration::from_millis(*ms)).await,
            Step::Passive(true) => self.worker.worked(),
            Step::Passive(false) => self.worker.failed(),
            Step::Called(on) => self.drain.call(*on),
            // Cannot be taken back, so it comes late in long histories only.
            Step::Draining if self.clock.now() > Duration::from_secs(1500) => self.drain.begin(),
            Step::Draining => {}
        }
        self.answers()
    }
}

fn paused() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap()
}

/// Plays a history; everything is compared after each step.
fn follows(rules: Rules, steps: &[Step]) -> Result<(), TestCaseError> {
    paused().block_on(async {
        let mut world = World::new(rules);
        for step in steps {
            world.does(step).await?;
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn health_and_selection_follow_from_the_whole_history(
        steps in prop::collection::vec(step(), 500..2000),
        rules in rules(),
    ) {
        follows(rules, &steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_server_that_is_silent_from_the_beginning_is_proven_by_an_answer_only(
        steps in prop::collection::vec(early_step(), 10..60),
        rules in rules(),
    ) {
        follows(rules, &steps)?;
    }
}
