//! The certificates of a cell: an authority, what it signs, and those of a stranger.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Signs for the scheduler and for the pod; the pod's files are in `folder`.
pub struct Authority {
    issuer: Mutex<Issuer>,
    folder: PathBuf,
    host: IpAddr,
}

fn issuer() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Authority {
    pub fn new(folder: &Path, host: IpAddr) -> Authority {
        let authority = Authority {
            issuer: Mutex::new(issuer()),
            folder: folder.to_path_buf(),
            host,
        };
        authority.hand_out();
        authority
    }

    /// Another authority from now on, and new files for the pod, as a rotation does it.
    pub fn rotate(&self) {
        *self.issuer.lock().unwrap() = issuer();
        self.hand_out();
    }

    fn hand_out(&self) {
        let (cert, key) = signed(&self.issuer.lock().unwrap(), "agent");
        let write = |name: &str, text: &str| {
            let new = self.folder.join(format!("{name}.new"));
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, self.folder.join(name)).unwrap();
        };
        write("tls.crt", &cert);
        write("tls.key", &key);
        write("ca.crt", &self.issuer.lock().unwrap().pem());
    }

    /// The variables that name the pod's files.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        vec![
            ("SHIM_SCHEDULER_TLS", "on".into()),
            ("SHIM_SCHEDULER_CA_FILE", path("ca.crt")),
            ("SHIM_SCHEDULER_CERT_FILE", path("tls.crt")),
            ("SHIM_SCHEDULER_KEY_FILE", path("tls.key")),
        ]
    }

    /// The scheduler's side, with a certificate that the pod trusts.
    pub fn identity(&self) -> Arc<ServerConfig> {
        let issuer = self.issuer.lock().unwrap();
        config(self.host, &issuer, &issuer)
    }

    /// The same, with a certificate of somebody else.
    pub fn stranger(&self) -> Arc<ServerConfig> {
        config(self.host, &issuer(), &self.issuer.lock().unwrap())
    }
}

fn signed(issuer: &Issuer, host: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![host.to_string()]).unwrap();
    (
        params.signed_by(&key, issuer).unwrap().pem(),
        key.serialize_pem(),
    )
}

/// A server for an address, which asks its callers for a certificate of `trusted`.
fn config(host: IpAddr, signer: &Issuer, trusted: &Issuer) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![rcgen::SanType::IpAddress(host)];
    let cert = params.signed_by(&key, signer).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let chain = vec![CertificateDer::from_pem_slice(cert.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
