//! What canary inferences say. Pure.

use std::time::Duration;

use super::{FAILURES, HUNG, PATIENCE};

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

/// The canary as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Canary {
    /// When the one was sent that is not answered yet.
    pub outstanding: Option<Duration>,
    /// How the last one ended, and when.
    pub last: Option<(Answer, Duration)>,
    /// When one last worked.
    pub worked: Option<Duration>,
    /// Failures of the worker in a row.
    pub failures: u32,
    /// When the first of those ended.
    pub failing: Option<Duration>,
    /// Why none is sent at the moment.
    pub skipped: Option<&'static str>,
}

impl Canary {
    /// One is sent.
    pub fn sent(&mut self, now: Duration) {
        self.outstanding = Some(now);
        self.skipped = None;
    }

    /// It has ended.
    pub fn ended(&mut self, answer: Answer, now: Duration) {
        self.outstanding = None;
        match &answer {
            Answer::WorkerFailed(_) => {
                self.failures += 1;
                self.failing.get_or_insert(now);
            }
            // A refusal came from a worker, or from before it: no news.
            Answer::Refused(_) | Answer::Broken => {}
            Answer::Worked | Answer::Lost => {
                self.failures = 0;
                self.failing = None;
            }
        }
        if answer == Answer::Worked {
            self.worked = Some(now);
        }
        self.last = Some((answer, now));
    }

    /// Why every inference fails, as far as a canary can tell.
    pub fn broken(&self, now: Duration) -> Option<String> {
        // Before the first success the request may simply be a slow one.
        if let (Some(sent), Some(_)) = (self.outstanding, self.worked)
            && now.saturating_sub(sent) >= HUNG
        {
            let outstanding = now.saturating_sub(sent).as_secs();
            return Some(format!(
                "a canary inference has had no answer for {outstanding} s: the worker hangs, or is held up by one long call or load"
            ));
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
        canary.sent(s(1));
        assert_eq!(canary.broken(s(1000)), None, "it has never worked");
        canary.ended(Answer::Worked, s(2));
        canary.sent(s(10));
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
}
