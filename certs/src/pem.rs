//! Certificates and keys in PEM, from a file or given as text.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::files::{self, FileError};

/// Largest PEM file that is read, in bytes: room for a CA file of a hundred authorities.
const MAX_LEN: usize = 256 * 1024;

/// Where a PEM text is found: in a file, or given itself, as CI systems do with their secrets.
#[derive(Clone, Deserialize, Eq, PartialEq)]
#[serde(from = "String")]
pub enum Pem {
    /// In this file.
    File(Utf8PathBuf),
    /// This is the text. It may be a private key, so it is never printed.
    Inline(Zeroizing<String>),
}

impl From<String> for Pem {
    fn from(text: String) -> Self {
        if text.trim_start().starts_with("-----BEGIN") {
            Self::Inline(Zeroizing::new(text))
        } else {
            Self::File(text.into())
        }
    }
}

impl FromStr for Pem {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.to_owned().into())
    }
}

impl From<Utf8PathBuf> for Pem {
    fn from(path: Utf8PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "`{path}`"),
            Self::Inline(_) => f.write_str("the text given"),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which of the three things that TLS needs a text is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// The certificates of the authorities that are trusted.
    Ca,
    /// One's own certificate.
    Certificate,
    /// The private key of one's own certificate.
    Key,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ca => "CA",
            Self::Certificate => "certificate",
            Self::Key => "private key",
        })
    }
}

/// What is wrong with a PEM text. Never quotes it: it may be a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PemProblem {
    /// There is no PEM at all.
    #[error("it is no PEM text, which starts with `-----BEGIN`")]
    NotPem,
    /// A section does not end, or is no base64.
    #[error(
        "its PEM text is damaged; each of the BEGIN and END lines needs a line of its own, \
         which is often lost when a secret is pasted as one line"
    )]
    Damaged,
    /// There is a private key where certificates belong.
    #[error("it holds a private key and no certificate; give the `.pem` file that lies beside it")]
    KeyForCertificate,
    /// There is a certificate where a private key belongs.
    #[error("it holds a certificate and no private key; give the `.key` file that lies beside it")]
    CertificateForKey,
    /// There is something else.
    #[error("it holds no {0}")]
    Nothing(Part),
    /// The private key needs a passphrase.
    #[error(
        "the private key is encrypted; Hoist runs unattended and reads plain keys only: \
         decrypt it with `openssl pkey`, or issue a new one"
    )]
    Encrypted,
    /// There is more than one key, and no telling which one is meant.
    #[error("it holds more than one private key")]
    ManyKeys,
}

/// Why a certificate or key cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The file cannot be read.
    #[error("cannot read the {part}")]
    Read {
        /// What it is for.
        part: Part,
        /// Why not.
        #[source]
        source: FileError,
    },
    /// The key lies where everybody can read it.
    #[error(
        "the {part} {path} lies in the Nix store, which everybody on this machine can read; \
         keep it outside (with agenix or sops-nix, for instance) and issue a new one, since this one is known"
    )]
    InStore {
        /// What it is for.
        part: Part,
        /// Where it lies.
        path: Utf8PathBuf,
    },
    /// The text is not what it should be.
    #[error("the {part} from {origin} cannot be used")]
    Content {
        /// What it is for.
        part: Part,
        /// Where it comes from.
        origin: Pem,
        /// What is wrong.
        #[source]
        source: PemProblem,
    },
}

impl Pem {
    /// The certificates in it, one at least.
    ///
    /// # Errors
    /// [`PemError`]
    pub(crate) fn certificates(
        &self,
        part: Part,
    ) -> Result<Vec<CertificateDer<'static>>, PemError> {
        let text = self.text(part)?;
        certificates_in(&text, part).map_err(|source| self.content(part, source))
    }

    /// The private key in it.
    ///
    /// # Errors
    /// [`PemError`]
    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, PemError> {
        let part = Part::Key;
        if let Self::File(path) = self {
            if let Some(path) = in_store(path) {
                return Err(PemError::InStore { part, path });
            }
            warn_if_readable_by_others(path);
        }
        let text = self.text(part)?;
        private_key_in(&text).map_err(|source| self.content(part, source))
    }

    fn content(&self, part: Part, source: PemProblem) -> PemError {
        PemError::Content {
            part,
            origin: self.clone(),
            source,
        }
    }

    fn text(&self, part: Part) -> Result<Zeroizing<Vec<u8>>, PemError> {
        match self {
            Self::File(path) => {
                files::read_limited(path, MAX_LEN).map_err(|source| PemError::Read { part, source })
            }
            Self::Inline(text) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
        }
    }
}

/// Where everybody can read everything.
pub(crate) const STORE: &str = "/nix/store";

/// Where in the Nix store a file lies, when it does: a secret must not.
pub(crate) fn in_store(path: &Utf8Path) -> Option<Utf8PathBuf> {
    inside(path, STORE)
}

/// Where in `folder` a file lies, when it does: a link into it is as public as what it leads to.
pub(crate) fn inside(path: &Utf8Path, folder: &str) -> Option<Utf8PathBuf> {
    let real = path.canonicalize_utf8().ok()?;
    real.starts_with(folder).then_some(real)
}

pub(crate) fn warn_if_readable_by_others(path: &Utf8Path) {
    if let Ok(metadata) = path.metadata()
        && metadata.is_file()
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(
            file = %path,
            "this private file can be read by others; run `chmod 600 {path}`"
        );
    }
}

pub(crate) fn certificates_in(
    text: &[u8],
    part: Part,
) -> Result<Vec<CertificateDer<'static>>, PemProblem> {
    let mut certificates = Vec::new();
    let mut saw_key = false;
    for section in sections(text)? {
        match section {
            (SectionKind::Certificate, der) => certificates.push(CertificateDer::from(der)),
            (
                SectionKind::PrivateKey | SectionKind::EcPrivateKey | SectionKind::RsaPrivateKey,
                _,
            ) => saw_key = true,
            _ => {}
        }
    }
    match certificates.is_empty() {
        false => Ok(certificates),
        true if saw_key => Err(PemProblem::KeyForCertificate),
        true => Err(PemProblem::Nothing(part)),
    }
}

pub(crate) fn private_key_in(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemProblem> {
    let mut key = None;
    let mut saw_certificate = false;
    for (kind, der) in sections(text)? {
        if let Some(found) = PrivateKeyDer::from_pem(kind, der)
            && key.replace(found).is_some()
        {
            return Err(PemProblem::ManyKeys);
        }
        saw_certificate |= kind == SectionKind::Certificate;
    }
    let encrypted = || {
        text.windows(ENCRYPTED.len())
            .any(|window| window == ENCRYPTED)
    };
    match key {
        Some(key) => Ok(key),
        None if encrypted() => Err(PemProblem::Encrypted),
        None if saw_certificate => Err(PemProblem::CertificateForKey),
        None => Err(PemProblem::Nothing(Part::Key)),
    }
}

const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// The sections that rustls knows. The parser's own errors are dropped: they quote the text.
fn sections(text: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, PemProblem> {
    if !text.windows(10).any(|window| window == b"-----BEGIN") {
        return Err(PemProblem::NotPem);
    }
    <(SectionKind, Vec<u8>)>::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|_| PemProblem::Damaged)
}
