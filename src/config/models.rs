//! Settings of what is done about lost models and a worker that does not work.

use std::path::PathBuf;
use std::time::Duration;

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelsConfig {
    /// Whether models that the server has lost in a restart are loaded again.
    pub restore: bool,
    /// Whether needless loads of the agent's are answered without loading.
    pub coalesce: bool,
    /// The canary; `None` where no model is named.
    pub canary: Option<Canary>,
    /// `SHIM_CANARY_INTERVAL`, also where there is no canary.
    pub canary_interval: Duration,
    /// Which bad states are mended.
    pub mend: Mend,
}

/// A request of the operator's that is sent now and then, to see whether the worker works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The model.
    pub model: String,
    /// The file with the request's JSON body.
    pub request: PathBuf,
    /// Time from the end of one to the next.
    pub interval: Duration,
}

/// Which bad states are mended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mend {
    /// A model that is UNKNOWN without being loaded is unloaded.
    pub stuck: bool,
    /// A READY model that its worker has lost is unloaded and loaded.
    pub lost: bool,
    /// A server in which every inference fails is ended, so that it is started again.
    pub fatal: bool,
}

impl Mend {
    /// `off`, `all`, or a list of `stuck`, `lost` and `fatal`.
    pub fn parse(text: &str) -> Option<Mend> {
        let all = Mend {
            stuck: true,
            lost: true,
            fatal: true,
        };
        match text {
            "off" => return Some(Mend::default()),
            "all" => return Some(all),
            _ => {}
        }
        let mut mend = Mend::default();
        for name in text.split(',') {
            match name.trim() {
                "stuck" => mend.stuck = true,
                "lost" => mend.lost = true,
                "fatal" => mend.fatal = true,
                _ => return None,
            }
        }
        Some(mend)
    }

    /// As it is written in the environment.
    pub fn shown(self) -> String {
        let named = [
            (self.stuck, "stuck"),
            (self.lost, "lost"),
            (self.fatal, "fatal"),
        ];
        let on: Vec<&str> = named.iter().filter(|n| n.0).map(|n| n.1).collect();
        match on.len() {
            0 => "off".into(),
            3 => "all".into(),
            _ => on.join(","),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mend;

    #[test]
    fn what_is_mended_is_a_closed_set() {
        for (text, shown) in [
            ("off", "off"),
            ("all", "all"),
            ("lost, stuck", "stuck,lost"),
            ("fatal,lost,stuck", "all"),
            ("fatal", "fatal"),
            ("stuck", "stuck"),
            ("lost", "lost"),
        ] {
            assert_eq!(Mend::parse(text).unwrap().shown(), shown);
        }
        for text in ["", "on", "true", "stuck,", "off,stuck", "worker"] {
            assert_eq!(Mend::parse(text), None, "{text}");
        }
    }
}
