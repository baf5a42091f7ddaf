//! Certificate revocation lists (RFC 5280, section 5): what a CA has taken back.

use std::collections::HashSet;
use std::sync::Arc;

use hoist_protocol::{Text, Timestamp};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::Anchor;
use crate::serial::Serial;

/// Largest file of revocation lists, in bytes: room for 400,000 certificates.
pub(crate) const CRL_LEN: usize = 16 * 1024 * 1024;

/// Why a revocation list cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CrlError {
    /// There is none in the file.
    #[error("it holds no CRL, neither as PEM (`-----BEGIN X509 CRL-----`) nor as DER")]
    Nothing,
    /// A section does not end, or is no base64.
    #[error("its PEM text is damaged")]
    Damaged,
    /// It is no revocation list, or one with an extension that would change its meaning.
    #[error("it is no CRL that can be used ({0})")]
    Malformed(String),
    /// It does not say until when it holds.
    #[error("the CRL of {0} has no nextUpdate")]
    NoNextUpdate(Text<256>),
    /// None of the trusted CAs has signed it.
    #[error(
        "the CRL of {0} was signed by none of the CAs that are trusted here; give the CRL of a CA in `ca`, \
         or take it out of the file"
    )]
    Stranger(Text<256>),
    /// One is in use, and now there is none.
    #[error("the CRL of {0} is gone: what it revokes would be let in")]
    Gone(Text<256>),
    /// The one in use is newer.
    #[error(
        "the CRL of {issuer} has number {found}, below the {used} of the one in use: it is an old one, and \
         what was revoked since would be let in"
    )]
    Older {
        /// Whose it is.
        issuer: Text<256>,
        /// Its number.
        found: Serial,
        /// The number of the one in use.
        used: Serial,
    },
}

/// What one CA has revoked.
#[derive(Debug)]
pub struct Crl {
    issuer: Text<256>,
    /// The bytes of its number; numbers grow from list to list.
    number: Option<Serial>,
    this_update: Timestamp,
    next_update: Timestamp,
    serials: HashSet<Serial>,
}

impl Crl {
    /// Reads one that one of `anchors` has signed, and says which one.
    fn parse(der: &[u8], anchors: &[Arc<Anchor>]) -> Result<(usize, Self), CrlError> {
        // webpki refuses what would have to be understood: unknown critical extensions, lists that only say what
        // has changed, lists on behalf of others.
        let sound = webpki::OwnedCertRevocationList::from_der(der);
        let sound = sound.map_err(|error| CrlError::Malformed(error.to_string()))?;
        let parsed = CertificateRevocationList::from_der(der);
        let (_, list) = parsed.map_err(|error| CrlError::Malformed(error.to_string()))?;
        let issuer = Text::lossy(&list.issuer().to_string());
        let list_scope = webpki::CertRevocationList::from(sound);
        if list_scope.issuing_distribution_point().is_some() {
            let why = "it covers a part of the certificates only";
            return Err(CrlError::Malformed(why.to_owned()));
        }
        let signer = anchors.iter().position(|anchor| {
            let key = SubjectPublicKeyInfo::from_der(anchor.public_key());
            anchor.has_subject(list.issuer().as_raw())
                && key.is_ok_and(|(_, key)| list.verify_signature(&key).is_ok())
        });
        let Some(signer) = signer else {
            return Err(CrlError::Stranger(issuer));
        };
        let Some(next_update) = list.next_update() else {
            return Err(CrlError::NoNextUpdate(issuer));
        };
        let number = list.crl_number();
        let serials = list.iter_revoked_certificates();
        let crl = Self {
            number: number.map(|number| Serial::from_be_bytes(&number.to_bytes_be())),
            this_update: timestamp(list.last_update().timestamp()),
            next_update: timestamp(next_update.timestamp()),
            serials: serials
                .map(|entry| Serial::from_be_bytes(&entry.serial().to_bytes_be()))
                .collect(),
            issuer,
        };
        Ok((signer, crl))
    }

    /// Reads all in a file, PEM or DER, each with the place of its signer among `anchors`.
    pub(crate) fn parse_all(
        bytes: &[u8],
        anchors: &[Arc<Anchor>],
    ) -> Result<Vec<(usize, Self)>, CrlError> {
        if !bytes.windows(10).any(|window| window == b"-----BEGIN") {
            if bytes.is_empty() {
                return Err(CrlError::Nothing);
            }
            return Ok(vec![Self::parse(bytes, anchors)?]);
        }
        let sections: Vec<(SectionKind, Vec<u8>)> = <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .map_err(|_| CrlError::Damaged)?;
        let lists: Vec<_> = sections
            .iter()
            .filter(|(kind, _)| *kind == SectionKind::Crl)
            .map(|(_, der)| Self::parse(der, anchors))
            .collect::<Result<_, _>>()?;
        if lists.is_empty() {
            return Err(CrlError::Nothing);
        }
        Ok(lists)
    }

    /// Whether this one came after `other`.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        self.age() > other.age()
    }

    /// Refuses to go back behind `used`, the one of the same CA that is in use.
    pub(crate) fn check_not_older(&self, used: &Self) -> Result<(), CrlError> {
        match (&self.number, &used.number) {
            (Some(found), Some(number)) if self.age() < used.age() => Err(CrlError::Older {
                issuer: self.issuer.clone(),
                found: found.clone(),
                used: number.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Longer numbers are higher ones: there are no leading zeros.
    fn age(&self) -> (usize, &[u8], Timestamp) {
        let number = self.number.as_ref().map_or(&[][..], Serial::as_bytes);
        (number.len(), number, self.this_update)
    }

    /// Whether the CA has taken this certificate back.
    pub(crate) fn revokes(&self, serial: &Serial) -> bool {
        self.serials.contains(serial)
    }

    /// Whether the next one is overdue.
    #[must_use]
    pub fn has_expired(&self, now: Timestamp) -> bool {
        now > self.next_update
    }

    /// Whose it is.
    #[must_use]
    pub const fn issuer(&self) -> &Text<256> {
        &self.issuer
    }

    /// Its number, which grows from list to list.
    #[must_use]
    pub const fn number(&self) -> Option<&Serial> {
        self.number.as_ref()
    }

    /// When the CA promises the next one.
    #[must_use]
    pub const fn next_update(&self) -> Timestamp {
        self.next_update
    }

    /// How many certificates it revokes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// Whether it revokes none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }
}

/// A time before 1970 counts as 1970: all that is asked of it is whether it has passed.
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_ms(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}
