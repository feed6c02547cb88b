//! What is spoken on a connection: HTTP/2, TLS, something else, or nothing.
//!
//! A peer is asked in the language that is expected of it, and where it does not answer in that,
//! in the other one, each on a connection of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{
    self, AlertDescription, CertificateError, ClientConfig, ProtocolVersion, RootCertStore,
};

use crate::endpoint::Host;
use crate::tls;

/// Limit for the first bytes of an answer.
const ANSWER: Duration = Duration::from_millis(700);
/// Limit for a handshake, with the time to refuse a certificate.
const HANDSHAKE: Duration = Duration::from_millis(1100);
/// How long a server may take to refuse the client's certificate after the handshake.
const SECOND_THOUGHTS: Duration = Duration::from_millis(400);
/// The client's first bytes of HTTP/2, with an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Longest piece of a foreign answer that is shown.
const SHOWN: usize = 60;

/// What is spoken at a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
pub enum Speaks {
    /// HTTP/2 in plain text.
    Http2,
    /// TLS.
    Tls,
    /// HTTP/1: the first line of its answer, shortened.
    Http1(String),
    /// Accepts and says nothing.
    Silent,
    /// Accepts and hangs up.
    Closed,
    /// Accepts and resets the connection.
    Reset,
    /// Something else: its first bytes, in hexadecimal.
    Unknown(String),
}

/// How TLS went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
pub enum TlsVerdict {
    /// The certificate is good, and ours, if asked for, was taken.
    Trusted,
    /// TLS is spoken, and there is no authority to judge the certificate by.
    NotJudged,
    /// Not signed by the authority in the CA file.
    UnknownIssuer,
    /// Over.
    Expired,
    /// Its time has not come: often a clock that is wrong.
    NotYetValid,
    /// For other names: those in it, shortened.
    WrongName(String),
    /// The server wants a certificate, and none is configured.
    ClientCertificateRequired,
    /// The server does not take our certificate: its alert.
    ClientCertificateRefused(String),
    /// Our own files cannot be used.
    Files(String),
    /// Any other failure.
    Failed(String),
}

/// The other end.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// As configured: what the certificate has to name.
    pub(super) host: Host,
    pub(super) tls: Option<tls::Client>,
}

impl Peer {
    /// What it speaks, and how TLS went where it speaks that.
    pub(super) async fn listen(&self, secured: bool) -> (Speaks, Option<TlsVerdict>) {
        if secured && let Some(verdict) = self.try_tls().await {
            return (Speaks::Tls, Some(verdict));
        }
        let plain = self.try_plain().await;
        if plain == Speaks::Http2 || secured {
            return (plain, None);
        }
        match self.try_tls().await {
            Some(verdict) => (Speaks::Tls, Some(verdict)),
            None => (plain, None),
        }
    }

    async fn try_plain(&self) -> Speaks {
        let mut bytes = Vec::with_capacity(64);
        let exchange = async {
            let mut stream = super::dial(self.address).await?;
            stream.write_all(PREFACE).await?;
            while bytes.len() < 9 {
                if stream.read_buf(&mut bytes).await? == 0 {
                    break;
                }
            }
            Ok::<_, io::Error>(())
        };
        let ended = timeout(ANSWER, exchange).await;
        match (bytes.as_slice(), ended) {
            // A SETTINGS or GOAWAY frame on stream 0.
            ([_, _, _, 4 | 7, _, 0, 0, 0, 0, ..], _) => Speaks::Http2,
            ([], Err(_)) => Speaks::Silent,
            ([], Ok(Ok(()))) => Speaks::Closed,
            ([], Ok(Err(_))) => Speaks::Reset,
            (bytes, _) if bytes.starts_with(b"HTTP/1") => Speaks::Http1(first_line(bytes)),
            (bytes, _) => {
                let hex: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
                Speaks::Unknown(hex.join(" "))
            }
        }
    }

    /// `None` where the peer does not speak TLS.
    async fn try_tls(&self) -> Option<TlsVerdict> {
        match timeout(HANDSHAKE, self.secured()).await {
            Ok(Ok(_)) => Some(TlsVerdict::Trusted),
            Ok(Err(Insecure::Files(why))) => {
                // It may still speak TLS; without usable files that can only be noticed.
                let bare = Peer {
                    tls: None,
                    ..self.clone()
                };
                let spoken = timeout(HANDSHAKE, bare.secured()).await;
                match spoken {
                    Ok(Err(Insecure::Tls(error))) if speaks_tls(&error) => {
                        Some(TlsVerdict::Files(why))
                    }
                    _ => None,
                }
            }
            Ok(Err(Insecure::Tls(error))) if speaks_tls(&error) => Some(self.judge(&error)),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// A secured connection; a refusal of our certificate, which comes late, is waited for.
    pub(super) async fn secured(&self) -> Result<TlsStream<TcpStream>, Insecure> {
        let connector = match &self.tls {
            Some(client) => client
                .connector()
                .map_err(|e| Insecure::Files(e.to_string()))?,
            None => bare()?,
        };
        let name = match &self.host {
            Host::Ip(ip) => ServerName::from(*ip),
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|_| Insecure::Files(format!("{name:?} is no DNS name")))?,
        };
        let stream = super::dial(self.address).await.map_err(Insecure::Io)?;
        let mut secured = connector.connect(name, stream).await.map_err(sorted)?;
        let (tcp, session) = secured.get_mut();
        // With TLS 1.3 a server judges the client's certificate after the client believes that all
        // is well: tickets follow, or an alert. Data that comes with them stays for the next read.
        if session.protocol_version() == Some(ProtocolVersion::TLSv1_3)
            && let Ok(Ok(())) = timeout(SECOND_THOUGHTS, tcp.readable()).await
            && session.read_tls(&mut AtOnce(tcp)).is_ok()
        {
            session.process_new_packets().map_err(Insecure::Tls)?;
        }
        Ok(secured)
    }

    fn judge(&self, error: &rustls::Error) -> TlsVerdict {
        use CertificateError::*;
        let rustls::Error::InvalidCertificate(wrong) = error else {
            return match error {
                rustls::Error::AlertReceived(alert) => self.alert(*alert),
                other => TlsVerdict::Failed(other.to_string()),
            };
        };
        match wrong {
            _ if self.tls.is_none() => TlsVerdict::NotJudged,
            UnknownIssuer | BadSignature => TlsVerdict::UnknownIssuer,
            Expired | ExpiredContext { .. } => TlsVerdict::Expired,
            NotValidYet | NotValidYetContext { .. } => TlsVerdict::NotYetValid,
            NotValidForName => TlsVerdict::WrongName(String::new()),
            NotValidForNameContext { presented, .. } => {
                TlsVerdict::WrongName(shortened(&presented.join(", ")))
            }
            other => TlsVerdict::Failed(other.to_string()),
        }
    }

    fn alert(&self, alert: AlertDescription) -> TlsVerdict {
        use AlertDescription::*;
        let about_certificate = matches!(
            alert,
            CertificateRequired
                | NoCertificate
                | BadCertificate
                | UnsupportedCertificate
                | CertificateRevoked
                | CertificateExpired
                | CertificateUnknown
                | UnknownCA
                | AccessDenied
                | DecryptError
        );
        let has_own = self.tls.as_ref().is_some_and(tls::Client::has_identity);
        match (about_certificate, has_own) {
            (true, false) => TlsVerdict::ClientCertificateRequired,
            (true, true) => TlsVerdict::ClientCertificateRefused(format!("{alert:?}")),
            (false, _) => TlsVerdict::Failed(format!("the server ended it with {alert:?}")),
        }
    }
}

/// What has arrived on a socket, without waiting.
struct AtOnce<'a>(&'a TcpStream);

impl io::Read for AtOnce<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

/// Why there is no secured connection.
#[derive(Debug)]
pub(super) enum Insecure {
    /// Our own files.
    Files(String),
    /// The library's verdict.
    Tls(rustls::Error),
    /// The connection. What went wrong with it is seen in plain text, too.
    Io(#[allow(dead_code)] io::Error),
}

fn sorted(error: io::Error) -> Insecure {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner.cloned() {
        Some(inner) => Insecure::Tls(inner),
        None => Insecure::Io(error),
    }
}

/// Whether an error shows that the peer speaks TLS: only then can it send a certificate or an
/// alert.
fn speaks_tls(error: &rustls::Error) -> bool {
    !matches!(error, rustls::Error::InvalidMessage(_))
}

/// A client that trusts nobody: enough to notice that TLS is spoken.
fn bare() -> Result<TlsConnector, Insecure> {
    let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(|e| Insecure::Files(e.to_string()))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    shortened(text.lines().next().unwrap_or_default())
}

/// Without control characters, and not long: it comes from somebody else.
pub(super) fn shortened(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(SHOWN)
        .collect()
}
