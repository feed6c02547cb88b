//! What a pod says about its own injection, in annotations.
//!
//! Pure. Two kinds: whether it wants the shim at all ([`wish`]), and overrides of what the
//! administrator has set ([`apply`]). A value that is not understood is the author's mistake and
//! becomes a refusal that names annotation, value and what was expected; it never becomes a guess.

use serde_json::{Map, Value};

use super::review::shown;
use crate::config::Mode;
use crate::inject::{self, Options, Style, Tls};
use crate::nearest::nearest;

/// Prefix of every annotation and label.
pub const PREFIX: &str = "agent-shim.io/";
/// Annotation or label by which a pod asks for the shim, or declines it.
pub const INJECT: &str = "agent-shim.io/inject";
/// Annotation that the webhook leaves on a pod.
pub const STATUS: &str = "agent-shim.io/status";

/// Longest part of a value that is repeated in a message.
const VALUE: usize = 80;

/// What a pod wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The shim.
    Enabled,
    /// Not the shim, whatever else asks for it.
    Disabled,
    /// It says nothing.
    Silent,
}

/// Something that the author of a pod has to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A value that is not understood.
    #[error("{place} {name}={value:?}: expected {expected}")]
    Value {
        /// Annotation or label.
        place: &'static str,
        /// Its name.
        name: String,
        /// Its value, cut.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// A name that is nearly one of ours.
    #[error("there is no annotation {name}; did you mean {PREFIX}{near}?")]
    Name {
        /// What was written.
        name: String,
        /// What was probably meant.
        near: &'static str,
    },
    /// The administrator does not allow it.
    #[error(
        "annotation {PREFIX}{0}: this override is switched off by the administrator of the webhook (--allow-overrides)"
    )]
    NotAllowed(&'static str),
}

/// Which overrides pods may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Allowed {
    /// Every one.
    #[default]
    All,
    /// These.
    Only(Vec<&'static str>),
}

impl std::str::FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "all" => return Ok(Allowed::All),
            "none" => return Ok(Allowed::Only(Vec::new())),
            _ => {}
        }
        let known = |name: &str| OVERRIDES.iter().find(|o| o.name == name).map(|o| o.name);
        let names = text.split(',').map(|name| {
            let name = name.trim();
            known(name).ok_or_else(|| {
                let all: Vec<&str> = OVERRIDES.iter().map(|o| o.name).collect();
                let all = all.join(", ");
                format!("{name:?}: expected all, none, or a list of {all}")
            })
        });
        Ok(Allowed::Only(names.collect::<Result<_, _>>()?))
    }
}

/// One annotation by which a pod changes what the administrator has set.
#[derive(Debug)]
pub struct Override {
    /// The name after [`PREFIX`].
    pub name: &'static str,
    /// What its value has to be.
    pub expected: &'static str,
    /// Sets it; false where the value is not understood.
    set: fn(&mut Options, &str) -> bool,
}

/// All overrides. What a value means in detail, [`Options::validate`] knows.
pub const OVERRIDES: [Override; 18] = [
    over("image", "an image", |o, v| set(&mut o.image, v)),
    over("pull-policy", "Always, IfNotPresent or Never", |o, v| {
        some(&mut o.pull_policy, v)
    }),
    over("style", "native or plain", |o, v| {
        o.style = match v {
            "native" => Style::Native,
            "plain" => Style::Plain,
            _ => return false,
        };
        true
    }),
    over("mode", "correct or observe", |o, v| {
        o.mode = match v {
            "correct" => Mode::Correct,
            "observe" => Mode::Observe,
            _ => return false,
        };
        true
    }),
    over("interpose", BOOL, |o, v| flag(&mut o.interpose, v)),
    over("scheduler", "host:port", |o, v| some(&mut o.scheduler, v)),
    over("scheduler-status", "host:port", |o, v| {
        some(&mut o.scheduler_status, v)
    }),
    over("tls", "auto or off", |o, v| {
        o.tls = match v {
            "auto" => Tls::Auto,
            "off" => Tls::Off,
            _ => return false,
        };
        true
    }),
    over("cpu-request", QUANTITY, |o, v| {
        set(&mut o.resources.cpu_request, v)
    }),
    over("cpu-limit", QUANTITY, |o, v| {
        set(&mut o.resources.cpu_limit, v)
    }),
    over("memory-request", QUANTITY, |o, v| {
        set(&mut o.resources.memory_request, v)
    }),
    over("memory-limit", QUANTITY, |o, v| {
        set(&mut o.resources.memory_limit, v)
    }),
    over("agent-container", LABEL, |o, v| set(&mut o.agent, v)),
    over("inference-container", LABEL, |o, v| {
        set(&mut o.inference, v)
    }),
    over("share-process-namespace", BOOL, |o, v| {
        flag(&mut o.share_process_namespace, v)
    }),
    over("agent-watchdog", BOOL, |o, v| {
        flag(&mut o.agent_watchdog, v)
    }),
    over("drain-hook", BOOL, |o, v| flag(&mut o.drain_hook, v)),
    over("settings", "NAME=value on each line", settings),
];

const BOOL: &str = "\"true\" or \"false\"";
const QUANTITY: &str = "a Kubernetes quantity, such as 100m or 64Mi";
const LABEL: &str = "the name of a container";

const fn over(
    name: &'static str,
    expected: &'static str,
    set: fn(&mut Options, &str) -> bool,
) -> Override {
    Override {
        name,
        expected,
        set,
    }
}

fn set(to: &mut String, value: &str) -> bool {
    *to = value.into();
    !value.is_empty()
}

fn some(to: &mut Option<String>, value: &str) -> bool {
    *to = Some(value.into());
    !value.is_empty()
}

fn flag(to: &mut bool, value: &str) -> bool {
    match value.parse() {
        Ok(value) => *to = value,
        Err(_) => return false,
    }
    true
}

/// Lines of `NAME=value`; values hold commas, so a comma does not end one. They come on top of
/// those of the administrator.
fn settings(options: &mut Options, text: &str) -> bool {
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((name, value)) => {
                let value = value.trim().to_string();
                options.settings.insert(name.trim().to_string(), value);
            }
            None => return false,
        }
    }
    true
}

/// What the pod says to being injected: by annotation or label; a no wins.
pub fn wish(pod: &Value) -> Result<Wish, Refusal> {
    let mut wish = Wish::Silent;
    let mut bad = None;
    for (place, key) in [("annotation", "annotations"), ("label", "labels")] {
        let Some(value) = pod.get("metadata").and_then(|m| m.get(key)?.get(INJECT)) else {
            continue;
        };
        match value.as_str().unwrap_or_default().trim() {
            "enabled" | "true" => wish = Wish::Enabled,
            "disabled" | "false" => return Ok(Wish::Disabled),
            other => {
                bad.get_or_insert(Refusal::Value {
                    place,
                    name: INJECT.into(),
                    value: shown(other, VALUE),
                    expected: "enabled or disabled".into(),
                });
            }
        }
    }
    bad.map_or(Ok(wish), Err)
}

/// The options for this pod, and the names of annotations that mean nothing to this version.
pub fn apply(
    pod: &Value,
    defaults: &Options,
    allowed: &Allowed,
) -> Result<(Options, Vec<String>), Refusal> {
    let mut options = defaults.clone();
    let mut unknown = Vec::new();
    let annotations = pod.get("metadata").and_then(|m| m.get("annotations"));
    let none = Map::new();
    let annotations = annotations.and_then(Value::as_object).unwrap_or(&none);
    for (name, value) in annotations {
        let Some(own) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if [INJECT, STATUS, inject::INJECTED, inject::ORIGINAL].contains(&name.as_str()) {
            continue;
        }
        let Some(known) = OVERRIDES.iter().find(|o| o.name == own) else {
            // A typing mistake is refused. Anything else may be of a later release, and a pod
            // must not be kept out because this webhook is old.
            match nearest(own, OVERRIDES.iter().map(|o| o.name)) {
                Some(near) => {
                    return Err(Refusal::Name {
                        name: shown(name, VALUE),
                        near,
                    });
                }
                None => unknown.push(shown(name, VALUE)),
            }
            continue;
        };
        if let Allowed::Only(names) = allowed
            && !names.contains(&known.name)
        {
            return Err(Refusal::NotAllowed(known.name));
        }
        let value = value.as_str().unwrap_or_default();
        let refusal = |expected: String| Refusal::Value {
            place: "annotation",
            name: name.clone(),
            value: shown(value, VALUE),
            expected,
        };
        let before = options.clone();
        if !(known.set)(&mut options, value.trim()) {
            return Err(refusal(known.expected.into()));
        }
        // Checked one by one, so that the message names the annotation. Requests and limits are
        // judged together: see below.
        if !is_resource(known.name)
            && options != before
            && let Err(error) = options.validate()
        {
            return Err(refusal(format!("{} ({error})", known.expected)));
        }
    }
    if let Err(error) = options.validate() {
        let names: Vec<&str> = OVERRIDES.iter().map(|o| o.name).collect();
        let given = names.into_iter().filter(|n| is_resource(n));
        let given: Vec<String> = given
            .map(|n| format!("{PREFIX}{n}"))
            .filter(|n| annotations.contains_key(n))
            .collect();
        let value = |n: &String| annotations.get(n).and_then(Value::as_str).unwrap_or("");
        let values: Vec<&str> = given.iter().map(value).collect();
        return Err(Refusal::Value {
            place: "annotation",
            name: given.join(", "),
            value: shown(&values.join(", "), VALUE),
            expected: format!("{QUANTITY}, the request not above the limit ({error})"),
        });
    }
    Ok((options, unknown))
}

fn is_resource(name: &str) -> bool {
    name.ends_with("-request") || name.ends_with("-limit")
}
