//! Files with certificates and keys: read, checked, and read again when they change.
//!
//! Shared by both sides of TLS. A change that cannot be used keeps what worked. Keys are never
//! shown.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

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

/// What is made of some files, made again when they change. The first success stays until there
/// is a better one.
#[derive(Debug)]
pub struct Kept<T>(Mutex<Option<Loaded<T>>>);

#[derive(Debug)]
struct Loaded<T> {
    stamps: Vec<Stamp>,
    /// The files as they are now cannot be used; `made` is from those before.
    broken: bool,
    made: T,
}

/// What changes when a file is replaced; secrets are replaced by renaming a directory link.
type Stamp = Option<(SystemTime, u64)>;

/// What a look at the files has shown.
#[derive(Debug)]
pub enum Change {
    /// Nothing new.
    None,
    /// They were read; `again` where something had been made of them before.
    Read {
        /// Not for the first time.
        again: bool,
    },
    /// They have changed and cannot be used. Told once for each change.
    Refused(Error),
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::default())
    }
}

impl<T: Clone> Kept<T> {
    /// Makes it again where one of the files is new. An error only where nothing was ever made.
    pub fn look<'a>(
        &self,
        paths: impl Iterator<Item = &'a Path>,
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<(T, Change), Error> {
        // Taken before the files are read: a change in between shows at the next look.
        let stamps: Vec<Stamp> = paths.map(stamp).collect();
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = &mut *loaded else {
            let made = make()?;
            *loaded = Some(Loaded {
                stamps,
                broken: false,
                made: made.clone(),
            });
            return Ok((made, Change::Read { again: false }));
        };
        let same = known.stamps == stamps;
        if same && !known.broken {
            return Ok((known.made.clone(), Change::None));
        }
        // Broken files are tried each time: they may have been read while they were written,
        // within one tick of the file system's clock.
        let change = match make() {
            Ok(made) => {
                *known = Loaded {
                    stamps,
                    broken: false,
                    made,
                };
                Change::Read { again: true }
            }
            Err(error) => {
                known.stamps = stamps;
                known.broken = true;
                match same {
                    true => Change::None,
                    false => Change::Refused(error),
                }
            }
        };
        Ok((known.made.clone(), change))
    }
}

/// The content of a file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

/// The certificates of a PEM file, in its order; one at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
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

/// The private key of a PEM file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|e| Error::Content {
        path: path.into(),
        what: "private key",
        why: e.to_string(),
    })
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
