//! TLS towards the scheduler: the files, read again when they change, and what their dates say.
//!
//! Knows nothing of gRPC. A reload that fails keeps what worked and says so; only the first load
//! can leave nothing to connect with, and then each attempt tries again. Keys are never shown.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::GaugeVec;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::config::scheduler::TlsFiles;
use crate::metrics::Metrics;

/// Why no secured connection can be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(
        "cannot read {}: {source}; is the secret with the certificates mounted into this container?",
        path.display()
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no usable {what}: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// Why it is not.
        why: String,
    },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("the certificate in {} cannot be used with the key in {}: {source}", cert.display(), key.display())]
    Identity {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The library refuses its own settings.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// Makes secured connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    files: TlsFiles,
    loaded: Arc<Mutex<Option<Loaded>>>,
    expiry: GaugeVec,
}

#[derive(Debug)]
struct Loaded {
    stamps: Vec<Stamp>,
    config: Arc<ClientConfig>,
}

/// What changes when a file is replaced; secrets are replaced by renaming a directory link.
type Stamp = Option<(SystemTime, u64)>;

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
        let stamps: Vec<Stamp> = self.paths().map(stamp).collect();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match &mut *loaded {
            Some(known) if known.stamps == stamps => &*known,
            known => match (self.load(), known) {
                (Ok(config), known) => {
                    tracing::info!(ca = %self.files.ca.display(), reload = known.is_some(), "TLS files read");
                    known.insert(Loaded { stamps, config })
                }
                (Err(error), Some(known)) => {
                    tracing::error!(%error, "changed TLS files cannot be used: the old ones stay in use");
                    // Said once for each change.
                    known.stamps = stamps;
                    &*known
                }
                (Err(error), None) => return Err(error),
            },
        };
        Ok(current.config.clone().into())
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
                let secret = read(key)?;
                let secret =
                    PrivateKeyDer::from_pem_slice(&secret).map_err(|e| Error::Content {
                        path: key.clone(),
                        what: "private key",
                        why: e.to_string(),
                    })?;
                builder
                    .with_client_auth_cert(chain, secret)
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
        let Some(end) = chain.iter().filter_map(|c| not_after(c)).min() else {
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

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let content = |why: String| Error::Content {
        path: path.into(),
        what: "certificate",
        why,
    };
    let pem = read(path)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| content(e.to_string()))?;
    match all.is_empty() {
        true => Err(content("there is no PEM block of one in it".into())),
        false => Ok(all),
    }
}

/// The end of a certificate's validity, in seconds since 1970. Only as much of DER as leads there.
fn not_after(certificate: &[u8]) -> Option<i64> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    // An optional version, then serial number, algorithm and issuer, then the validity.
    if rest.first() == Some(&0xa0) {
        rest = element(rest)?.2;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (_, _, end) = element(validity)?;
    let (kind, text, _) = element(end)?;
    date(kind, text)
}

/// One DER element: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits.iter().fold(0, |n, d| n << 8 | usize::from(*d));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDhhmmssZ` (UTCTime) or `YYYYMMDDhhmmssZ` (GeneralizedTime).
fn date(kind: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match kind {
        0x17 => {
            let year: i64 = text.get(..2)?.parse().ok()?;
            (
                if year < 50 { 2000 + year } else { 1900 + year },
                text.get(2..)?,
            )
        }
        0x18 => (text.get(..4)?.parse().ok()?, text.get(4..)?),
        _ => return None,
    };
    let part = |i: usize| rest.get(i..i + 2)?.parse::<i64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    let seconds = part(4)? * 3600 + part(6)? * 60 + part(8)?;
    // Days from 1970-03-01, with years that begin in March.
    let (y, m) = (year - i64::from(month <= 2), (month + 9) % 12);
    let days =
        y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (m * 153 + 2) / 5 + day
            - 1
            - 719_468;
    Some(days * 86_400 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn dates_are_read_from_real_certificates() {
        for (until, expected) in [
            ((2031, 3, 1), 1_930_089_600),
            ((2049, 12, 31), 2_524_521_600),
            ((2051, 2, 28), 2_561_155_200i64),
            ((2000, 2, 29), 951_782_400),
        ] {
            let pem = certificate(until).0;
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            assert_eq!(not_after(&der), Some(expected), "{until:?}");
        }
        assert_eq!(not_after(b"no certificate"), None);
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
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
