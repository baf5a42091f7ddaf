//! A CA that is trusted.

use std::fmt;

use hoist_protocol::{Text, Timestamp};
use rustls::pki_types::{CertificateDer, TrustAnchor};

use crate::certificate::{self, CertificateError};

/// A CA that is trusted. Two are the same when name and public key are, whatever certificates they have.
#[derive(Clone, Debug)]
pub struct Anchor {
    subject: Box<[u8]>,
    public_key: Box<[u8]>,
    not_after: Timestamp,
    shown: Text<128>,
}

impl Anchor {
    /// Reads a CA's certificate, with what webpki makes of it.
    pub(crate) fn parse(
        der: &CertificateDer<'_>,
    ) -> Result<(TrustAnchor<'static>, Self), CertificateError> {
        let parsed = certificate::parse(der)?;
        let root = webpki::anchor_from_trusted_cert(der).map_err(|_| CertificateError)?;
        let info = certificate::CertificateInfo::parse(der)?;
        let anchor = Self {
            subject: parsed.subject().as_raw().into(),
            public_key: parsed.public_key().raw.into(),
            not_after: info.not_after,
            shown: Text::lossy(&format!("{} (serial {})", info.subject, info.serial)),
        };
        Ok((root.to_owned(), anchor))
    }

    /// Whether this is its name, in DER.
    pub(super) fn has_subject(&self, name: &[u8]) -> bool {
        *self.subject == *name
    }

    /// Its `SubjectPublicKeyInfo` in DER.
    pub(super) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// When it ends.
    pub(super) const fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl PartialEq for Anchor {
    fn eq(&self, other: &Self) -> bool {
        self.subject == other.subject && self.public_key == other.public_key
    }
}

impl Eq for Anchor {}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.shown, f)
    }
}
