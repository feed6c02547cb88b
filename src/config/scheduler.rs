//! Where the scheduler is and how it is spoken to: the types of the settings, and the choice
//! between the shim's own names and the ones that Seldon's agent uses.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::endpoint::Host;

/// Variables of Seldon's agent that say how its control plane is secured; the same values can be
/// given to the shim.
pub const SELDON_VARIABLES: [&str; 5] = [
    "CONTROL_PLANE_SECURITY_PROTOCOL",
    "CONTROL_PLANE_SERVER_TLS_CA_LOCATION",
    "CONTROL_PLANE_CLIENT_TLS_CA_LOCATION",
    "CONTROL_PLANE_CLIENT_TLS_CRT_LOCATION",
    "CONTROL_PLANE_CLIENT_TLS_KEY_LOCATION",
];

/// One `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// Why a text is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected host:port")]
pub struct TargetError;

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (host, port) = text.rsplit_once(':').ok_or(TargetError)?;
        // Without brackets the last group of an IPv6 address would be taken for a port.
        if host.contains(':') && !host.starts_with('[') {
            return Err(TargetError);
        }
        let port = port.parse().ok().filter(|p| *p > 0).ok_or(TargetError)?;
        let host = host.parse().map_err(|_| TargetError)?;
        Ok(Target { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => write!(f, "{}", std::net::SocketAddr::new(*ip, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// `SHIM_SCHEDULER_TLS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// On where the agent's own variable says `SSL`, or a CA file is given.
    Auto,
    /// Plain text.
    Off,
    /// TLS.
    On,
}

impl TlsMode {
    /// As written in the environment.
    pub fn as_str(self) -> &'static str {
        match self {
            TlsMode::Auto => "auto",
            TlsMode::Off => "off",
            TlsMode::On => "on",
        }
    }
}

/// The files of a secured connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that may have signed the scheduler's.
    pub ca: PathBuf,
    /// The shim's own certificate and key, where the scheduler asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Everything about the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// `SHIM_SCHEDULER`, in order; empty: the interposer is off.
    pub targets: Vec<Target>,
    /// `SHIM_SCHEDULER_STATUS`.
    pub status: Option<Target>,
    /// `SHIM_SCHEDULER_TLS`.
    pub tls_mode: TlsMode,
    /// The files to use; `None` for plain text.
    pub tls: Option<TlsFiles>,
    /// `SHIM_SCHEDULER_CA_FILE`, `_CERT_FILE` and `_KEY_FILE` as given.
    pub files: [String; 3],
    /// `SHIM_AGENT_PORT`.
    pub agent_port: u16,
    /// `SHIM_SUBSCRIBE_HOLD`.
    pub subscribe_hold: Duration,
    /// `SHIM_RESUBSCRIBE_MIN_INTERVAL`.
    pub resubscribe_min_interval: Duration,
}

/// The files that follow from the settings. `seldon` reads one of [`SELDON_VARIABLES`].
pub fn tls_files(
    mode: TlsMode,
    [ca, cert, key]: &[String; 3],
    seldon: impl Fn(&str) -> Option<String>,
) -> Result<Option<TlsFiles>, (&'static str, String, &'static str)> {
    let secured = seldon(SELDON_VARIABLES[0]).is_some_and(|p| p.eq_ignore_ascii_case("SSL"));
    let on = match mode {
        TlsMode::On => true,
        TlsMode::Off => false,
        TlsMode::Auto => secured || !ca.is_empty(),
    };
    if !on {
        return Ok(None);
    }
    let own = |value: &String| (!value.is_empty()).then(|| value.clone());
    // As the agent does: the server's CA where it is named, else the client's.
    let ca = own(ca)
        .or_else(|| seldon(SELDON_VARIABLES[1]))
        .or_else(|| seldon(SELDON_VARIABLES[2]));
    let cert = own(cert).or_else(|| seldon(SELDON_VARIABLES[3]));
    let key = own(key).or_else(|| seldon(SELDON_VARIABLES[4]));
    let Some(ca) = ca else {
        return Err((
            "SHIM_SCHEDULER_CA_FILE",
            String::new(),
            "the file with the CA of the scheduler's certificate (or CONTROL_PLANE_SERVER_TLS_CA_LOCATION), because TLS is on",
        ));
    };
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        (None, None) => None,
        (Some(_), None) => {
            return Err((
                "SHIM_SCHEDULER_KEY_FILE",
                String::new(),
                "the key of the certificate that is given: both, or neither",
            ));
        }
        (None, Some(_)) => {
            return Err((
                "SHIM_SCHEDULER_CERT_FILE",
                String::new(),
                "the certificate of the key that is given: both, or neither",
            ));
        }
    };
    Ok(Some(TlsFiles {
        ca: ca.into(),
        identity,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for (text, shown) in [
            ("seldon-scheduler:9005", "seldon-scheduler:9005"),
            ("10.0.0.1:9005", "10.0.0.1:9005"),
            ("[fd00::1]:9055", "[fd00::1]:9055"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown);
        }
        for bad in [
            "seldon-scheduler",
            "fd00::1:9005",
            ":9005",
            "a:0",
            "a:x",
            "",
        ] {
            assert_eq!(bad.parse::<Target>(), Err(TargetError), "{bad}");
        }
    }

    #[test]
    fn the_agents_own_variables_are_enough_and_the_shims_names_win() {
        let seldon = |name: &str| match name {
            "CONTROL_PLANE_SECURITY_PROTOCOL" => Some("SSL".to_string()),
            name => Some(format!("/{name}")),
        };
        let none = [String::new(), String::new(), String::new()];
        let files = tls_files(TlsMode::Auto, &none, seldon).unwrap().unwrap();
        assert_eq!(
            files.ca.to_str(),
            Some("/CONTROL_PLANE_SERVER_TLS_CA_LOCATION")
        );
        let (cert, key) = files.identity.unwrap();
        assert!(cert.ends_with("CONTROL_PLANE_CLIENT_TLS_CRT_LOCATION"));
        assert!(key.ends_with("CONTROL_PLANE_CLIENT_TLS_KEY_LOCATION"));
        let own = ["/ca".to_string(), "/crt".into(), "/key".into()];
        let files = tls_files(TlsMode::Auto, &own, seldon).unwrap().unwrap();
        assert_eq!(files.ca.to_str(), Some("/ca"));
        assert_eq!(tls_files(TlsMode::Off, &own, seldon), Ok(None));
        let nothing = |_: &str| None;
        assert_eq!(tls_files(TlsMode::Auto, &none, nothing), Ok(None));
        assert_eq!(
            tls_files(TlsMode::On, &none, nothing).unwrap_err().0,
            "SHIM_SCHEDULER_CA_FILE"
        );
        let half = ["/ca".to_string(), "/crt".into(), String::new()];
        assert_eq!(
            tls_files(TlsMode::Auto, &half, nothing).unwrap_err().0,
            "SHIM_SCHEDULER_KEY_FILE"
        );
    }
}
