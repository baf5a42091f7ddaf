//! What is written in a certificate, for showing it and for judging how long it lasts.

use std::fmt::Write as _;
use std::net::IpAddr;

use hoist_protocol::Timestamp;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use crate::identity::{Identity, IdentityError};
use crate::serial::Serial;

/// Bytes that are no certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the bytes are no X.509 certificate")]
pub struct CertificateError;

pub(crate) fn parse<'a>(
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        // Bytes after the certificate are not signed by anybody.
        Ok(_) | Err(_) => Err(CertificateError),
    }
}

/// What a certificate says. Nothing of it is proven: only a TLS handshake does that.
#[derive(Clone, Debug)]
pub struct CertificateInfo {
    /// Whose it is, or why it is nobody's of Hoist's.
    pub identity: Result<Identity, IdentityError>,
    /// Whether it may sign other certificates.
    pub is_ca: bool,
    /// The subject as text, free of control characters.
    pub subject: String,
    /// The issuer as text, free of control characters.
    pub issuer: String,
    /// The serial number.
    pub serial: Serial,
    /// When it starts to be valid.
    pub not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// The host names and addresses it is valid for.
    pub hosts: Vec<String>,
    /// SHA-256 over the whole certificate, in lower-case hexadecimal.
    pub fingerprint: String,
    /// SHA-256 over the public key (its `SubjectPublicKeyInfo`), in lower-case hexadecimal.
    pub public_key: String,
}

impl CertificateInfo {
    /// Reads `der`.
    ///
    /// # Errors
    /// [`CertificateError`] when it is no certificate.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let validity = certificate.validity();
        Ok(Self {
            identity: Identity::from_subject(certificate.subject()),
            is_ca: certificate.is_ca(),
            subject: printable(&certificate.subject().to_string()),
            issuer: printable(&certificate.issuer().to_string()),
            serial: Serial::from_be_bytes(&certificate.serial.to_bytes_be()),
            not_before: timestamp(validity.not_before.timestamp()),
            not_after: timestamp(validity.not_after.timestamp()),
            hosts: hosts(&certificate),
            fingerprint: hex(&Sha256::digest(der)),
            public_key: hex(&Sha256::digest(certificate.public_key().raw)),
        })
    }
}

/// A time before 1970 counts as 1970: all that is asked of it is whether it has passed.
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_ms(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.extensions().iter().filter_map(|extension| {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        }
    });
    names
        .flatten()
        .map(|name| match name {
            GeneralName::DNSName(name) => printable(name),
            GeneralName::IPAddress(bytes) => address(bytes),
            other => printable(&other.to_string()),
        })
        .collect()
}

fn address(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    match v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)) {
        Ok(address) => address.to_string(),
        Err(_) => format!("an address of {} bytes", bytes.len()),
    }
}

fn printable(text: &str) -> String {
    hoist_protocol::Text::<512>::line(text).to_string()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written to it");
        text
    })
}
