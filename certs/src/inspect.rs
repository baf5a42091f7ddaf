//! What a file is: a certificate, a key of one kind or another, or none of that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hoist_protocol::{CacheKey, KeyError, PublicKey, SigningKey, Text};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::certificate::{CertificateInfo, hex};
use crate::pem::{self, Part, PemProblem};

/// One thing that a file holds.
#[derive(Clone, Debug)]
pub enum Found {
    /// A certificate, a CA's or somebody's.
    Certificate(Box<CertificateInfo>),
    /// The private key of a certificate: a secret.
    PrivateKey {
        /// SHA-256 over its public half, as [`CertificateInfo::public_key`] has it.
        public_key: String,
    },
    /// The secret half of a key that signs deployments, by its public half.
    SigningKey(PublicKey),
    /// The public half of a key that signs deployments.
    PublicKey(PublicKey),
    /// The public key of a Nix binary cache.
    CacheKey(CacheKey),
    /// The secret key of a Nix binary cache.
    CacheSecretKey {
        /// What it is called.
        name: Text<128>,
    },
}

/// Why it cannot be told what a file is. Never quotes it: it may be a secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InspectError {
    /// It is PEM and cannot be used.
    #[error("it looks like a certificate or its key, and cannot be used")]
    Pem(#[source] PemProblem),
    /// It is PEM with a certificate in it that is none.
    #[error("it is damaged: what is labelled as a certificate is none")]
    Certificate,
    /// It is PEM with a private key in it that cannot be used.
    #[error("it holds a private key of a kind that Hoist does not use; it uses ECDSA P-256")]
    PrivateKey,
    /// It starts like a signing key and is none.
    #[error("it looks like a Hoist signing key, and cannot be used")]
    SigningKey(#[source] KeyError),
    /// It is something else.
    #[error("it is no certificate and no key that Hoist knows")]
    Unknown,
}

/// Tells what the bytes of a file are; a PEM file can hold several certificates.
///
/// # Errors
/// [`InspectError`]
pub fn inspect(bytes: &[u8]) -> Result<Vec<Found>, InspectError> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(InspectError::Unknown);
    };
    let text = text.trim();
    if text.contains("-----BEGIN") {
        return inspect_pem(bytes);
    }
    if text.starts_with("hoist-") {
        return match SigningKey::parse(text) {
            Ok(key) => Ok(vec![Found::SigningKey(key.public())]),
            Err(KeyError::IsPublic) => text
                .parse()
                .map(|key| vec![Found::PublicKey(key)])
                .map_err(InspectError::SigningKey),
            Err(error) => Err(InspectError::SigningKey(error)),
        };
    }
    if let Ok(key) = CacheKey::new(text) {
        return Ok(vec![Found::CacheKey(key)]);
    }
    match text.split_once(':') {
        Some((name, key))
            if Zeroizing::new(STANDARD.decode(key).unwrap_or_default()).len() == 64 =>
        {
            let name = Text::lossy(name);
            Ok(vec![Found::CacheSecretKey { name }])
        }
        _ => Err(InspectError::Unknown),
    }
}

fn inspect_pem(bytes: &[u8]) -> Result<Vec<Found>, InspectError> {
    match pem::certificates_in(bytes, Part::Certificate) {
        Ok(certificates) => certificates
            .iter()
            .map(|der| {
                CertificateInfo::parse(der)
                    .map(|info| Found::Certificate(Box::new(info)))
                    .map_err(|_| InspectError::Certificate)
            })
            .collect(),
        Err(PemProblem::KeyForCertificate | PemProblem::Nothing(_)) => {
            let key = pem::private_key_in(bytes).map_err(InspectError::Pem)?;
            let public_key = public_half(&key).ok_or(InspectError::PrivateKey)?;
            Ok(vec![Found::PrivateKey { public_key }])
        }
        Err(error) => Err(InspectError::Pem(error)),
    }
}

fn public_half(key: &PrivateKeyDer<'_>) -> Option<String> {
    let key = ring::sign::any_supported_type(key).ok()?;
    Some(hex(&Sha256::digest(key.public_key()?)))
}
