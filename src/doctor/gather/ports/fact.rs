//! What was gathered, as the rules want it: one outcome, one sentence.

use super::{Connect, PortFacts, Purpose, Speaks, TlsVerdict, Verdict};
use crate::doctor::evidence::{PortFact, PortOutcome, PortUse};

impl PortFacts {
    /// One attempt, with its first fault; `configured`: whether this port is the one in use.
    pub fn fact(&self, configured: bool) -> PortFact {
        let verdict = self.verdict();
        let (host, port) = self.target.rsplit_once(':').unwrap_or((&self.target, ""));
        let last = self.tried.iter().find(|t| t.connect == Connect::Connected);
        let last = last.or(self.tried.last());
        PortFact {
            purpose: match self.purpose {
                Purpose::Agent | Purpose::AgentTls => PortUse::AgentService,
                Purpose::Api | Purpose::ApiTls => PortUse::SchedulerApi,
                Purpose::Xds => PortUse::Xds,
            },
            host: host.trim_matches(['[', ']']).to_string(),
            port: port.parse().unwrap_or(0),
            tls: self.secured,
            configured,
            outcome: outcome(&verdict),
            detail: words(&verdict),
            address: last.map(|t| t.address.to_string()),
            ms: self.took_ms,
        }
    }
}

fn outcome(verdict: &Verdict) -> PortOutcome {
    match verdict {
        Verdict::Fine => PortOutcome::Connected,
        Verdict::UnknownName(_) | Verdict::NoNameServer(_) => PortOutcome::Unresolved,
        Verdict::NotConnected(Connect::TimedOut) => PortOutcome::TimedOut,
        Verdict::NotConnected(Connect::Reset) => PortOutcome::Reset,
        Verdict::NotConnected(_) => PortOutcome::Refused,
        // A proxy that accepts for a backend that is not there ends it as well.
        Verdict::Mute(Speaks::Closed | Speaks::Reset) => PortOutcome::Reset,
        Verdict::Mute(_) => PortOutcome::Silent,
        Verdict::Untold => PortOutcome::TimedOut,
        Verdict::PlainWhereTls => PortOutcome::NotTls,
        Verdict::TlsWherePlain => PortOutcome::WantsTls,
        Verdict::NotGrpc(_) | Verdict::OtherService(_) => PortOutcome::WrongProtocol,
        Verdict::Tls(tls) => match tls {
            TlsVerdict::Trusted | TlsVerdict::NotJudged => PortOutcome::Connected,
            TlsVerdict::UnknownIssuer => PortOutcome::TlsUntrusted,
            TlsVerdict::Expired | TlsVerdict::NotYetValid => PortOutcome::TlsExpired,
            TlsVerdict::WrongName(_) => PortOutcome::TlsWrongName,
            TlsVerdict::Files(_) => PortOutcome::TlsFiles,
            TlsVerdict::ClientCertificateRequired
            | TlsVerdict::ClientCertificateRefused(_)
            | TlsVerdict::Failed(_) => PortOutcome::TlsRefused,
        },
    }
}

fn words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Fine => "it answers as it should".into(),
        Verdict::UnknownName(why) => format!("there is no such name: {why}"),
        Verdict::NoNameServer(why) => format!("the name server does not answer: {why}"),
        Verdict::NotConnected(connect) => match connect {
            Connect::Connected => "connected".into(),
            Connect::Refused => {
                "connection refused: nobody listens there, or a rule rejects".into()
            }
            Connect::TimedOut => "no answer to the connection: packets are dropped".into(),
            Connect::Reset => "the connection was reset while it opened".into(),
            Connect::Unreachable(why) => format!("the network says that there is no way: {why}"),
            Connect::Other(why) => why.clone(),
        },
        Verdict::Mute(Speaks::Closed) => "accepts connections and closes them at once".into(),
        Verdict::Mute(Speaks::Reset) => "accepts connections and resets them".into(),
        Verdict::Mute(_) => "accepts connections and says nothing".into(),
        Verdict::PlainWhereTls => "speaks plain text where TLS is expected".into(),
        Verdict::TlsWherePlain => "speaks TLS where plain text is expected".into(),
        Verdict::NotGrpc(what) => format!("no gRPC server answers there: {what}"),
        Verdict::OtherService(serves) => format!("{} answers there", serves.title()),
        Verdict::Untold => "the time was over before it could be told".into(),
        Verdict::Tls(tls) => match tls {
            TlsVerdict::Trusted => "TLS is fine".into(),
            TlsVerdict::NotJudged => {
                "speaks TLS; there is no CA file to judge the certificate by".into()
            }
            TlsVerdict::UnknownIssuer => {
                "its certificate is not signed by the CA in the CA file".into()
            }
            TlsVerdict::Expired => "its certificate has expired".into(),
            TlsVerdict::NotYetValid => {
                "its certificate is not valid yet; is the clock right?".into()
            }
            TlsVerdict::WrongName(names) => format!("its certificate is for {names}"),
            TlsVerdict::ClientCertificateRequired => {
                "it wants a client certificate, and none is configured".into()
            }
            TlsVerdict::ClientCertificateRefused(alert) => {
                format!("it does not take our certificate: {alert}")
            }
            TlsVerdict::Files(why) | TlsVerdict::Failed(why) => why.clone(),
        },
    }
}
