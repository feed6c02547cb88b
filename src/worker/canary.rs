//! What canary inferences say. Pure.

use std::time::Duration;

use super::{FAILURES, HELD_UP, HUNG, PASSIVE_FRESH, PATIENCE};

/// How one canary ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// With a result.
    Worked,
    /// With an internal error that is no model's, or because the worker has died.
    WorkerFailed(String),
    /// The model is READY and the worker does not have it.
    Lost,
    /// The server refuses the request itself, or the model fails: this says nothing of the worker.
    Refused(String),
    /// The connection broke; the prober knows more.
    Broken,
}

impl Answer {
    /// All names, as they are counted.
    pub const ALL: [&'static str; 6] = ["worked", "failed", "lost", "refused", "broken", "skipped"];

    /// The label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Answer::Worked => "worked",
            Answer::WorkerFailed(_) => "failed",
            Answer::Lost => "lost",
            Answer::Refused(_) => "refused",
            Answer::Broken => "broken",
        }
    }

    /// Judges an answer: its status, whether it is plain text, and MLServer's own reason.
    pub fn judge(status: u16, plain: bool, reason: Option<String>) -> Answer {
        let said = reason.unwrap_or_default();
        match status {
            200 => Answer::Worked,
            500 if plain => Answer::WorkerFailed("500 in plain text".into()),
            500 if said.starts_with("Worker process stopped") => Answer::WorkerFailed(said),
            404 => Answer::Lost,
            status => Answer::Refused(match said.is_empty() {
                true => status.to_string(),
                false => format!("{status}: {said}"),
            }),
        }
    }
}

/// A canary beside other inferences that has had no answer for so long is told.
const LATE: Duration = Duration::from_secs(5);

/// Since when inferences run and none of them is answered, from looks.
#[derive(Debug, Clone, Default)]
pub struct Silence {
    since: Option<Duration>,
    answers: u64,
    /// How many there were when something else was shown last.
    before: u64,
}

impl Silence {
    /// A look: how many run, how many were ever answered with a result, and whether a load or
    /// unload is under way, behind which they wait. True where one was answered since the last.
    pub fn look(&mut self, now: Duration, running: usize, answers: u64, loads: bool) -> bool {
        let heard = std::mem::replace(&mut self.answers, answers) != answers;
        if heard || loads || running == 0 {
            self.since = None;
        }
        if running > 0 && !loads {
            self.since.get_or_insert(now);
        }
        heard
    }

    /// Since when; `None` where nothing runs.
    pub fn since(&self) -> Option<Duration> {
        self.since
    }

    /// Whether an inference was answered since something else was shown.
    pub fn was_broken(&self) -> bool {
        self.answers != self.before
    }

    /// Something else has shown whether the worker answers.
    pub fn ends(&mut self) {
        self.since = None;
        self.before = self.answers;
    }
}

/// The canary as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Canary {
    /// When the one was sent that is not answered yet.
    pub outstanding: Option<Duration>,
    /// From when its waiting counts: since it was sent, an inference of a caller's was answered
    /// last, or the last load or unload ended, behind which it waits.
    counts: Option<Duration>,
    /// Where it was sent beside inferences that run: since when none of those was answered.
    beside: Option<Duration>,
    /// How the last one ended, and when.
    pub last: Option<(Answer, Duration)>,
    /// When one last worked.
    pub worked: Option<Duration>,
    /// Failures of the worker in a row.
    pub failures: u32,
    /// When the first of those ended.
    pub failing: Option<Duration>,
    /// Since when nothing more was heard of the worker, neither good nor bad.
    doubted: Option<Duration>,
    /// Why none is sent at the moment.
    pub skipped: Option<&'static str>,
}

impl Canary {
    /// One is sent: beside inferences of which none has been answered since `beside`, where some
    /// run.
    pub fn sent(&mut self, now: Duration, beside: Option<Duration>) {
        self.outstanding = Some(now);
        self.counts = Some(now);
        self.beside = beside;
        self.skipped = None;
    }

    /// It is not answered yet, and there is a reason: an inference was answered, so the worker
    /// works, or a load or unload is under way.
    pub fn excused(&mut self, now: Duration) {
        self.counts = Some(now);
        self.beside = self.beside.and(Some(now));
    }

    /// It has ended.
    pub fn ended(&mut self, answer: Answer, now: Duration) {
        self.outstanding = None;
        self.counts = None;
        self.beside = None;
        match &answer {
            Answer::WorkerFailed(_) => {
                self.failures += 1;
                self.failing.get_or_insert(now);
                self.doubted = None;
            }
            // A refusal came from a worker, or from before it: no news.
            Answer::Refused(_) | Answer::Broken => self.no_news(now),
            Answer::Worked | Answer::Lost => self.contradicted(),
        }
        if answer == Answer::Worked {
            self.worked = Some(now);
        }
        self.last = Some((answer, now));
    }

    /// None is sent, for this reason.
    pub fn skipped(&mut self, why: &'static str, now: Duration) {
        self.skipped = Some(why);
        self.no_news(now);
    }

    /// The failures are believed for a while only without another one.
    fn no_news(&mut self, now: Duration) {
        let since = *self.doubted.get_or_insert(now);
        if now.saturating_sub(since) > PASSIVE_FRESH {
            self.forget();
        }
    }

    /// An inference of somebody else's was seen to work.
    pub fn contradicted(&mut self) {
        self.failures = 0;
        self.failing = None;
        self.doubted = None;
    }

    /// What failed says nothing any more. True where anything had.
    pub fn forget(&mut self) -> bool {
        let failed = matches!(&self.last, Some((Answer::WorkerFailed(_), _)));
        let known = failed || self.failures > 0;
        self.last.take_if(|_| failed);
        self.contradicted();
        known
    }

    /// Why every inference fails, as far as a canary can tell.
    pub fn broken(&self, now: Duration) -> Option<String> {
        // Before the first success the request may simply be a slow one.
        if let (Some(from), Some(_)) = (self.counts, self.worked)
            && now.saturating_sub(from) >= HUNG
            // What it was sent beside may be one honest call that takes its time.
            && self.beside.is_none_or(|since| now.saturating_sub(since) >= HELD_UP)
        {
            let silent = now.saturating_sub(self.beside.unwrap_or(from)).as_secs();
            return Some(match self.beside {
                None => format!(
                    "a canary inference has had no answer for {silent} s: the worker hangs, or is held up by one long call"
                ),
                Some(_) => format!(
                    "inferences run, and none has been answered for {silent} s, nor a canary inference beside them: the worker hangs, or has been held up by one call for all that time"
                ),
            });
        }
        let since = self.failing.filter(|_| self.failures >= FAILURES)?;
        (now.saturating_sub(since) >= PATIENCE).then(|| {
            format!(
                "{} canary inferences in a row have failed in the server ({}): its worker does not work",
                self.failures,
                self.reason().unwrap_or_default()
            )
        })
    }

    /// For how long none of the inferences that run has been answered, where a canary was sent
    /// beside them and has had time for an answer, too.
    pub fn unanswered(&self, now: Duration) -> Option<Duration> {
        let late = now.saturating_sub(self.counts?) >= LATE;
        self.worked.filter(|_| late)?;
        Some(now.saturating_sub(self.beside?))
    }

    /// What the server said to the last one, where it failed or was refused.
    pub fn said(&self) -> Option<&str> {
        match &self.last {
            Some((Answer::WorkerFailed(why) | Answer::Refused(why), _)) => Some(why),
            _ => None,
        }
    }

    fn reason(&self) -> Option<&str> {
        match &self.last {
            Some((Answer::WorkerFailed(why), _)) => Some(why),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn answers_are_judged_by_what_they_say_of_the_worker() {
        let judge = |status, plain, reason: &str| {
            Answer::judge(status, plain, Some(reason.to_string())).as_str()
        };
        assert_eq!(judge(200, false, ""), "worked");
        assert_eq!(judge(500, true, ""), "failed");
        let died = "Worker process stopped unexpectedly with exit code 9.";
        assert_eq!(judge(500, false, died), "failed");
        assert_eq!(
            judge(500, false, "builtins.ValueError: 3 features"),
            "refused"
        );
        assert_eq!(judge(422, false, ""), "refused");
        assert_eq!(
            judge(404, false, "mlserver.errors.ModelNotFound: Model a"),
            "lost"
        );
    }

    #[test]
    fn a_canary_condemns_only_by_time_and_number() {
        let mut canary = Canary::default();
        canary.sent(s(1), None);
        assert_eq!(canary.broken(s(1000)), None, "it has never worked");
        canary.ended(Answer::Worked, s(2));
        canary.sent(s(10), None);
        assert_eq!(canary.broken(s(69)), None);
        assert!(canary.broken(s(70)).is_some());
        for at in [71, 80, 99] {
            canary.ended(Answer::WorkerFailed("x".into()), s(at));
            assert_eq!(canary.broken(s(at)), None);
        }
        assert!(canary.broken(s(101)).is_some());
        canary.ended(Answer::Refused("422".into()), s(102));
        assert!(canary.broken(s(102)).is_some(), "no news");
        canary.ended(Answer::Worked, s(103));
        assert_eq!(canary.broken(s(1000)), None);
    }

    #[test]
    fn failures_that_no_canary_can_contradict_are_forgotten() {
        let failed = || {
            let mut canary = Canary::default();
            for at in [1, 2, 40] {
                canary.ended(Answer::WorkerFailed("x".into()), s(at));
            }
            canary
        };
        let long = s(50) + PASSIVE_FRESH;
        let mut canary = failed();
        canary.skipped("no moment", s(50));
        canary.skipped("no moment", long);
        assert!(canary.broken(long).is_some());
        canary.skipped("no moment", long + s(1));
        assert_eq!((canary.broken(long + s(1)), canary.said()), (None, None));
        let mut canary = failed();
        canary.skipped("no moment", s(50));
        canary.ended(Answer::WorkerFailed("x".into()), s(60));
        canary.ended(Answer::Refused("422".into()), long);
        assert!(canary.broken(long).is_some(), "told anew in between");
        let late = long + PASSIVE_FRESH + s(1);
        canary.ended(Answer::Refused("422".into()), late);
        assert_eq!((canary.broken(late), canary.said()), (None, Some("422")));
    }

    #[test]
    fn what_a_load_or_another_answer_explains_is_not_held_against_the_worker() {
        let mut canary = Canary::default();
        canary.ended(Answer::Worked, s(1));
        canary.sent(s(10), None);
        // A load of 72 s, and then as long as any other hang.
        for at in 11..=83 {
            canary.excused(s(at));
            assert_eq!(canary.broken(s(at)), None);
        }
        assert_eq!(canary.broken(s(142)), None);
        assert!(canary.broken(s(143)).is_some());
        canary.excused(s(144));
        assert_eq!(canary.broken(s(144)), None, "an inference was answered");
    }

    #[test]
    fn one_long_call_is_told_and_condemns_nobody_for_ten_minutes() {
        let mut canary = Canary::default();
        canary.sent(s(5), Some(s(1)));
        assert_eq!(canary.unanswered(s(100)), None, "it has never worked");
        canary.ended(Answer::Worked, s(6));
        canary.sent(s(70), Some(s(10)));
        assert_eq!(canary.unanswered(s(74)), None);
        assert_eq!(canary.unanswered(s(75)), Some(s(65)));
        assert_eq!(canary.broken(s(609)), None, "it may be honest");
        let why = canary.broken(s(610)).unwrap();
        assert!(why.contains("none has been answered for 600 s"), "{why}");
        canary.excused(s(611));
        assert_eq!(
            (canary.broken(s(611)), canary.unanswered(s(611))),
            (None, None)
        );
        canary.ended(Answer::Worked, s(620));
        assert_eq!(canary.unanswered(s(999)), None);
    }

    #[test]
    fn silence_is_of_inferences_that_run_and_ends_with_an_answer_or_a_load() {
        let mut silence = Silence::default();
        assert!(!silence.look(s(1), 0, 0, false));
        assert_eq!(silence.since(), None);
        silence.look(s(2), 2, 0, false);
        silence.look(s(9), 1, 0, false);
        assert_eq!(silence.since(), Some(s(2)), "an end alone is no answer");
        assert!(silence.look(s(10), 1, 1, false));
        assert_eq!(silence.since(), Some(s(10)));
        silence.look(s(20), 1, 1, true);
        assert_eq!(silence.since(), None);
        silence.look(s(90), 1, 1, false);
        assert_eq!(silence.since(), Some(s(90)));
        silence.ends();
        silence.look(s(91), 1, 1, false);
        assert_eq!(silence.since(), Some(s(91)));
        assert!(!silence.was_broken());
        silence.look(s(92), 1, 2, false);
        silence.look(s(99), 1, 2, false);
        assert!(silence.was_broken(), "since the end");
        silence.ends();
        assert!(!silence.was_broken());
    }
}
