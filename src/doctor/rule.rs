//! What a rule is: data and one pure function.

use serde::{Deserialize, Serialize};

use super::evidence::Evidence;

/// A link of the chain from the server's process to a request that is answered. The order of the
/// variants is the order of cause: what is broken early explains what is broken later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// Kubernetes makes the pod and lets it live.
    Pod,
    /// The server's process runs.
    ServerProcess,
    /// It listens where it is looked for.
    ServerListens,
    /// It speaks the protocol that is expected there.
    Protocol,
    /// The shim runs and stands in the path.
    Shim,
    /// The agent runs and goes through the shim.
    Agent,
    /// The scheduler's name resolves.
    Names,
    /// The scheduler's port can be reached.
    Network,
    /// The connection to it is secured as both sides want it.
    Tls,
    /// The agent's subscription stands.
    Subscribed,
    /// The scheduler lists the replica.
    Registered,
    /// The replica has memory for models.
    Capacity,
    /// It says that it can run what models require.
    Capabilities,
    /// The scheduler finds a place for the model.
    Placement,
    /// The server loads it.
    Load,
    /// Requests reach it.
    Traffic,
}

impl Link {
    /// All, in the order of cause.
    pub const ALL: [Link; 16] = [
        Link::Pod,
        Link::ServerProcess,
        Link::ServerListens,
        Link::Protocol,
        Link::Shim,
        Link::Agent,
        Link::Names,
        Link::Network,
        Link::Tls,
        Link::Subscribed,
        Link::Registered,
        Link::Capacity,
        Link::Capabilities,
        Link::Placement,
        Link::Load,
        Link::Traffic,
    ];

    /// The name that is shown, in a few words.
    pub fn title(self) -> &'static str {
        match self {
            Link::Pod => "pod",
            Link::ServerProcess => "server runs",
            Link::ServerListens => "server listens",
            Link::Protocol => "server answers",
            Link::Shim => "shim",
            Link::Agent => "agent",
            Link::Names => "scheduler's name",
            Link::Network => "network",
            Link::Tls => "TLS",
            Link::Subscribed => "subscribed",
            Link::Registered => "registered",
            Link::Capacity => "capacity",
            Link::Capabilities => "capabilities",
            Link::Placement => "placement",
            Link::Load => "model load",
            Link::Traffic => "traffic",
        }
    }
}

/// Evidence that a rule cannot do without. Where it is missing the rule is unknown, and the
/// reason why it is missing is what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// What probes of the inference server say: fresh ones, or the shim's.
    Server,
    /// The shim's `/status`.
    Status,
    /// The shim's subscription side, which is off without `SHIM_SCHEDULER`.
    Subscription,
    /// What the scheduler's own API says.
    Scheduler,
    /// Attempts to connect to the scheduler's ports: fresh ones, or the subscription's.
    Ports,
    /// The agent's own ports.
    Agent,
    /// Objects of Kubernetes.
    Kube,
}

impl Need {
    /// What is missing where it is, in words.
    pub fn title(self) -> &'static str {
        match self {
            Need::Server => "the inference server's ports",
            Need::Status => "the shim's /status",
            Need::Subscription => "the agent's subscription",
            Need::Scheduler => "what the scheduler believes",
            Need::Ports => "the scheduler's ports",
            Need::Agent => "the agent's own ports",
            Need::Kube => "the objects in Kubernetes",
        }
    }
}

/// Whether a finding can be explained by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A fault of its own: it stays when everything before it is mended.
    Cause,
    /// It follows from any cause before it in the chain, and is shown beneath that.
    Effect,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something does not work.
    Broken,
    /// Everything works now; it may not tomorrow.
    Warning,
}

/// A finding of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// One sentence in plain words, with figures and names.
    pub text: String,
    /// The exact line of YAML or the command.
    pub fix: String,
    /// What was seen, one line each.
    pub evidence: Vec<String>,
    /// How bad it is.
    pub severity: Severity,
}

impl Found {
    /// Something does not work.
    pub fn broken(text: impl Into<String>, fix: impl Into<String>) -> Self {
        Found {
            text: text.into(),
            fix: fix.into(),
            evidence: Vec::new(),
            severity: Severity::Broken,
        }
    }

    /// Something may not work tomorrow.
    pub fn warning(text: impl Into<String>, fix: impl Into<String>) -> Self {
        Found {
            severity: Severity::Warning,
            ..Found::broken(text, fix)
        }
    }

    /// With one more line of evidence.
    pub fn seen(mut self, line: impl Into<String>) -> Self {
        self.evidence.push(line.into());
        self
    }

    /// With more lines of evidence.
    pub fn all_seen(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(lines);
        self
    }
}

impl From<Found> for Verdict {
    fn from(found: Found) -> Self {
        Verdict::Found(found)
    }
}

/// What a rule says of the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is not so. The sentence says what is fine; empty where another rule of the link says it.
    Clear(String),
    /// It is so.
    Found(Found),
    /// It could not be told, and why not.
    Unknown(String),
}

impl Verdict {
    /// It is not so, and there is nothing to say about it.
    pub const CLEAR: Verdict = Verdict::Clear(String::new());
}

/// One thing that is known to go wrong.
#[derive(Debug)]
pub struct Rule {
    /// `AS` and three digits. Never used again for another fault.
    pub id: &'static str,
    /// Kebab case; stable as well.
    pub name: &'static str,
    /// Where in the chain it is.
    pub link: Link,
    /// Whether something earlier can explain it.
    pub kind: Kind,
    /// What is wrong, in general.
    pub title: &'static str,
    /// Lines that people paste: of the agent, the scheduler, the server, Kubernetes, the shim.
    pub symptoms: &'static [&'static str],
    /// Evidence that it cannot do without.
    pub needs: &'static [Need],
    /// Names of rules that see the same fault less clearly: they do not speak where this one does.
    pub rules_out: &'static [&'static str],
    /// What to do, in general; the finding has the exact line.
    pub fix: &'static str,
    /// The judgement.
    pub check: fn(&Evidence) -> Verdict,
}

impl Rule {
    /// A cause without its words yet: a table fills them in.
    pub const fn cause(
        id: &'static str,
        name: &'static str,
        link: Link,
        needs: &'static [Need],
        check: fn(&Evidence) -> Verdict,
    ) -> Rule {
        Rule {
            id,
            name,
            link,
            kind: Kind::Cause,
            title: "",
            symptoms: &[],
            needs,
            rules_out: &[],
            fix: "",
            check,
        }
    }
}
