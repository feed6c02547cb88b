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
}

impl Mend {
    /// `off`, `all`, or a list of `stuck` and `lost`.
    pub fn parse(text: &str) -> Option<Mend> {
        let both = Mend {
            stuck: true,
            lost: true,
        };
        match text {
            "off" => return Some(Mend::default()),
            "all" => return Some(both),
            _ => {}
        }
        let mut mend = Mend::default();
        for name in text.split(',') {
            match name.trim() {
                "stuck" => mend.stuck = true,
                "lost" => mend.lost = true,
                _ => return None,
            }
        }
        Some(mend)
    }

    /// As it is written in the environment.
    pub fn as_str(self) -> &'static str {
        match (self.stuck, self.lost) {
            (false, false) => "off",
            (true, false) => "stuck",
            (false, true) => "lost",
            (true, true) => "all",
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
            ("lost, stuck", "all"),
            ("stuck", "stuck"),
            ("lost", "lost"),
        ] {
            assert_eq!(Mend::parse(text).unwrap().as_str(), shown);
        }
        for text in ["", "on", "true", "stuck,", "off,stuck", "fatal"] {
            assert_eq!(Mend::parse(text), None, "{text}");
        }
    }
}
