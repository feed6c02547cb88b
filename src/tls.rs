//! TLS towards the scheduler: the files, read again when they change, and what their dates say.
//!
//! Knows nothing of gRPC. A reload that fails keeps what worked and says so; only the first load
//! can leave nothing to connect with, and then each attempt tries again. Keys are never shown.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::GaugeVec;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::scheduler::TlsFiles;
use crate::metrics::Metrics;

pub mod dates;
pub mod files;

pub use files::Error;

use files::{Change, Kept, certificates, private_key};

/// Makes secured connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    files: TlsFiles,
    loaded: Arc<Kept<Arc<ClientConfig>>>,
    expiry: GaugeVec,
}

impl Client {
    /// A client for these files. Nothing is read yet: the files may come later than the shim.
    pub fn new(files: TlsFiles, metrics: &Metrics) -> Self {
        Client {
            files,
            loaded: Arc::default(),
            expiry: metrics.gauge_vec(
                "agent_shim_certificate_expiry_timestamp_seconds",
                "When the certificate that is used towards the scheduler ends; the earliest in the file.",
                &["certificate"],
            ),
        }
    }

    /// Reads the files where they are new, and makes a connector from them.
    pub fn connector(&self) -> Result<TlsConnector, Error> {
        let (config, change) = self.loaded.look(self.paths(), || self.load())?;
        match change {
            Change::None => {}
            Change::Read { again } => {
                tracing::info!(ca = %self.files.ca.display(), reload = again, "TLS files read");
            }
            Change::Refused(error) => {
                tracing::error!(%error, "changed TLS files cannot be used: the old ones stay in use");
            }
        }
        Ok(config.into())
    }

    /// Whether there is a certificate of our own to show.
    pub fn has_identity(&self) -> bool {
        self.files.identity.is_some()
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let identity = self.files.identity.iter();
        let identity = identity.flat_map(|(cert, key)| [cert.as_path(), key.as_path()]);
        std::iter::once(self.files.ca.as_path()).chain(identity)
    }

    fn load(&self) -> Result<Arc<ClientConfig>, Error> {
        let ca_path = &self.files.ca;
        let authorities = certificates(ca_path)?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots
                .add(authority.clone())
                .map_err(|error| Error::Content {
                    path: ca_path.clone(),
                    what: "certificate of an authority",
                    why: error.to_string(),
                })?;
        }
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        self.show_expiry("ca", &authorities);
        let mut config = match &self.files.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert)?;
                self.show_expiry("client", &chain);
                builder
                    .with_client_auth_cert(chain, private_key(key)?)
                    .map_err(|source| Error::Identity {
                        cert: cert.clone(),
                        key: key.clone(),
                        source,
                    })?
            }
        };
        // gRPC servers refuse a secured connection that does not ask for HTTP/2.
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn show_expiry(&self, which: &str, chain: &[CertificateDer<'_>]) {
        let Some(end) = dates::earliest_end(chain) else {
            return;
        };
        self.expiry.with_label_values(&[which]).set(end as f64);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        if end <= now as i64 {
            tracing::error!(
                certificate = which,
                "a certificate has expired: the scheduler will refuse it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    fn client(files: TlsFiles) -> (Client, Metrics) {
        let metrics = Metrics::new();
        (Client::new(files, &metrics), metrics)
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("agent-shim-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn certificate(until: (i32, u8, u8)) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let cert = params.self_signed(&key).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    #[test]
    fn every_mistake_names_its_file() {
        let folder = Folder::new("mistakes");
        let (pem, key) = certificate((2040, 1, 1));
        let (_, other_key) = certificate((2040, 1, 1));
        let ca = folder.write("ca.crt", &pem);
        let cert = folder.write("tls.crt", &pem);
        let key = folder.write("tls.key", &key);
        let other = folder.write("other.key", &other_key);
        let empty = folder.write("empty", "");
        let missing = folder.0.join("missing");
        let with = |ca: &PathBuf, cert: &PathBuf, key: &PathBuf| TlsFiles {
            ca: ca.clone(),
            identity: Some((cert.clone(), key.clone())),
        };
        for (files, part) in [
            (
                with(&missing, &cert, &key),
                "is the secret with the certificates mounted",
            ),
            (
                with(&empty, &cert, &key),
                "empty holds no usable certificate",
            ),
            (with(&ca, &empty, &key), "empty holds no usable certificate"),
            (
                with(&ca, &cert, &empty),
                "empty holds no usable private key",
            ),
            (with(&ca, &cert, &other), "cannot be used with the key in"),
        ] {
            let error = client(files).0.connector().err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(client(with(&ca, &cert, &key)).0.connector().is_ok());
    }

    #[test]
    fn changed_files_are_read_again_and_bad_ones_leave_the_old_in_use() {
        let folder = Folder::new("reload");
        let ca = folder.write("ca.crt", &certificate((2040, 1, 1)).0);
        let (client, metrics) = client(TlsFiles { ca, identity: None });
        client.connector().unwrap();
        let text = String::from_utf8(metrics.render()).unwrap();
        let series = r#"agent_shim_certificate_expiry_timestamp_seconds{certificate="ca"}"#;
        assert!(text.contains(&format!("{series} 2208988800")), "{text}");
        folder.write("ca.crt", "gone");
        assert!(client.connector().is_ok());
        folder.write("ca.crt", &(certificate((2041, 1, 1)).0 + "\n"));
        client.connector().unwrap();
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains(&format!("{series} 2240611200")), "{text}");
    }
}
