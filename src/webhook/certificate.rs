//! The certificate that is shown to the API server: from files, changed while it runs.
//!
//! New connections get the newest pair that could be used; a pair that cannot be used leaves the
//! one before in place and is told in log, metric and `/readyz`. Keys are never shown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

use crate::tls::dates::{self, Validity};
use crate::tls::files::{Change, Error, Kept, certificates, private_key};

use super::metrics::Series;

/// How often the files are looked at. New connections look for themselves, too.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The files of a pair, both in PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate, and those that lead to the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The pair in use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Certificate {
    files: Files,
    kept: Arc<Kept<Pair>>,
    /// What was last said about files that cannot be used; `None` while they can.
    trouble: Arc<Mutex<Option<String>>>,
    series: Series,
}

#[derive(Debug, Clone)]
struct Pair {
    config: Arc<ServerConfig>,
    validity: Option<Validity>,
}

impl Certificate {
    /// For these files. Nothing is read yet: they may come later than the process.
    pub fn new(files: Files, series: Series) -> Self {
        Certificate {
            files,
            kept: Arc::default(),
            trouble: Arc::default(),
            series,
        }
    }

    /// The settings for the next connection; `None` before the first usable pair.
    pub fn current(&self) -> Option<Arc<ServerConfig>> {
        self.look().map(|pair| pair.config)
    }

    /// Whether a caller can accept it now, and in words why or why not.
    pub fn usable(&self) -> (bool, String) {
        let pair = self.look();
        let trouble = self.trouble().clone();
        match (pair, trouble) {
            (None, trouble) => (false, trouble.unwrap_or_else(|| "not read yet".into())),
            (Some(pair), trouble) => {
                let (ok, mut said) = judge(pair.validity, now());
                if let Some(trouble) = trouble {
                    said = format!("{said}; newer files cannot be used: {trouble}");
                }
                (ok, said)
            }
        }
    }

    fn look(&self) -> Option<Pair> {
        let files = &self.files;
        let paths: [&Path; 2] = [&files.cert, &files.key];
        let result = |label| self.series.loads.with_label_values(&[label]).inc();
        match self.kept.look(paths.into_iter(), || load(files)) {
            Ok((pair, change)) => {
                match change {
                    Change::None => {}
                    Change::Read { again } => {
                        *self.trouble() = None;
                        result("ok");
                        let end = pair.validity.map(|v| v.not_after);
                        self.series.expiry.set(end.map_or(f64::NAN, |e| e as f64));
                        let ends = end.map(date);
                        tracing::info!(cert = %files.cert.display(), ends, reload = again, "certificate read");
                    }
                    Change::Refused(error) => {
                        result("refused");
                        tracing::error!(%error, "changed certificate files cannot be used: the pair before stays in use");
                        *self.trouble() = Some(error.to_string());
                    }
                }
                Some(pair)
            }
            Err(error) => {
                let said = error.to_string();
                let mut trouble = self.trouble();
                // Tried again and again; said once.
                if trouble.as_deref() != Some(&said) {
                    result("refused");
                    tracing::error!(%error, "no certificate: callers are turned away until there is one");
                    *trouble = Some(said);
                }
                None
            }
        }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(files: &Files) -> Result<Pair, Error> {
    let chain = certificates(&files.cert)?;
    // The whole chain has to be valid, so the narrowest dates count.
    let validity = chain
        .iter()
        .filter_map(|c| dates::validity(c))
        .reduce(|a, b| Validity {
            not_before: a.not_before.max(b.not_before),
            not_after: a.not_after.min(b.not_after),
        });
    let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private_key(&files.key)?)
        .map_err(|source| Error::Identity {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        })?;
    // The API server prefers HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Pair {
        config: Arc::new(config),
        validity,
    })
}

fn judge(validity: Option<Validity>, now: i64) -> (bool, String) {
    match validity {
        None => (true, "its dates cannot be read".into()),
        Some(v) if now > v.not_after => {
            let end = date(v.not_after);
            let said = format!("expired at {end}: the API server refuses it; renew it");
            (false, said)
        }
        Some(v) if now < v.not_before => {
            let start = date(v.not_before);
            let said = format!("valid from {start} only: is the clock of this node right?");
            (false, said)
        }
        Some(v) => (true, format!("valid until {}", date(v.not_after))),
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

fn date(seconds: i64) -> String {
    // Dates before 1970 and beyond the library's last are shown as the nearest that it has.
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(seconds).unwrap_or(0).min(LAST);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_usable_between_its_dates() {
        let validity = Some(Validity {
            not_before: 1_000_000_000,
            not_after: 2_000_000_000,
        });
        for (now, ok, part) in [
            (999_999_999, false, "valid from 2001-09-09T01:46:40Z only"),
            (1_000_000_000, true, "valid until 2033-05-18T03:33:20Z"),
            (2_000_000_000, true, "valid until"),
            (2_000_000_001, false, "expired at 2033-05-18T03:33:20Z"),
        ] {
            let (usable, said) = judge(validity, now);
            assert_eq!(usable, ok, "{now}: {said}");
            assert!(said.contains(part), "{now}: {said}");
        }
        assert!(judge(None, 0).0);
        assert_eq!(date(i64::MIN), "1970-01-01T00:00:00Z");
        assert_eq!(date(i64::MAX), "9999-12-31T23:59:59Z");
    }
}
