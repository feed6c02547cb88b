//! One GET at a time from the API server, with limits, and every failure as words that say which
//! permission would help. Never anything but GET.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::access::Access;
use crate::subscription::upstream::Bytes as Stream;

/// Largest answer that is read, in bytes.
const SIZE: usize = 16 << 20;
/// Limit for a connection.
const CONNECT: Duration = Duration::from_millis(1500);
/// Where systems keep the authorities that they trust, for clusters that name none.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// 401.
    Unauthorised,
    /// 403.
    Forbidden,
    /// 404: no such object, or no such kind.
    NotFound,
    /// Anything else, in words.
    Other(String),
}

/// Asks one API server.
#[derive(Clone)]
pub(super) struct Client {
    host: String,
    port: u16,
    prefix: String,
    authority: String,
    token: Option<header::HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Client {
    pub(super) fn new(access: &Access) -> Result<Client, String> {
        let bad = |what: &str| format!("{} of {}: {what}", access.server, access.from);
        let uri: Uri = access.server.parse().map_err(|_| bad("is no URL"))?;
        let host = uri.host().ok_or_else(|| bad("has no host"))?;
        let host = host.trim_matches(['[', ']']).to_string();
        let secured = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("is neither http:// nor https://")),
        };
        let token = match &access.token {
            None => None,
            Some(token) => {
                let value = header::HeaderValue::from_str(&format!("Bearer {token}"));
                let mut value = value.map_err(|_| bad("the token has characters that none has"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let tls = match secured {
            false => None,
            true => {
                let expected = access.server_name.clone().unwrap_or_else(|| host.clone());
                let name = ServerName::try_from(expected).map_err(|_| bad("is no DNS name"))?;
                Some((connector(access).map_err(|why| bad(&why))?, name))
            }
        };
        Ok(Client {
            port: uri.port_u16().unwrap_or(if secured { 443 } else { 80 }),
            prefix: uri.path().trim_end_matches('/').into(),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            host,
            token,
            tls,
        })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let other = |what: String| Failure::Other(what);
        let stream = self.connect().await.map_err(other)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| other(e.to_string()))?;
        let mut request = Request::get(format!("{}{path}", self.prefix))
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "application/json")
            .header(
                header::USER_AGENT,
                concat!("agent-shim/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|e| other(e.to_string()))?;
        let exchange = async {
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|e| other(e.to_string()))?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED => return Err(Failure::Unauthorised),
                StatusCode::FORBIDDEN => return Err(Failure::Forbidden),
                StatusCode::NOT_FOUND => return Err(Failure::NotFound),
                status => return Err(other(format!("the API server answered {status}"))),
            }
            let body = Limited::new(answer.into_body(), SIZE).collect().await;
            let body = body.map_err(|e| other(format!("the answer broke off: {e}")))?;
            serde_json::from_slice(&body.to_bytes())
                .map_err(|_| other("the answer is no JSON; is this an API server?".into()))
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                // The last bytes may still have to be taken.
                Ok(()) => exchange.await,
                Err(error) => Err(other(error.to_string())),
            },
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let at = format!("the API server {}:{}", self.host, self.port);
        let opened = timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port)));
        let stream = opened
            .await
            .map_err(|_| format!("{at} does not answer within {CONNECT:?}"))?
            .map_err(|e| format!("cannot connect to {at}: {e}"))?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some((connector, name)) => {
                let secured = connector.connect(name.clone(), stream).await;
                let secured = secured.map_err(|e| format!("TLS with {at}: {e}"))?;
                Ok(Box::new(secured))
            }
        }
    }
}

fn connector(access: &Access) -> Result<TlsConnector, String> {
    let pem = match &access.ca {
        Some(pem) => pem.clone(),
        None => SYSTEM
            .iter()
            .find_map(|path| std::fs::read(path).ok())
            .ok_or("it names no certificate-authority, and this machine has none")?,
    };
    let mut roots = RootCertStore::empty();
    let found: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| "its certificate-authority is no PEM")?;
    roots.add_parsable_certificates(found);
    if roots.is_empty() {
        return Err("its certificate-authority holds no certificate".into());
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let mut config = match &access.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = CertificateDer::pem_slice_iter(cert)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| "its client certificate is no PEM")?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|_| "its client key is no PEM of a key")?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|_| "its client certificate and key do not belong together")?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}
