//! Signing keys: Ed25519, written so that no other kind of key can be mistaken for one.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, VerifyingKey};
use ed25519_zebra::VerificationKeyBytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::name::{KeyName, NameError};

/// What every key's text starts with; the name follows, then a colon and base64.
pub(crate) const PREFIX: &str = "hoist-";

/// Why a text is no signing key. Never quotes the text: it may be a secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// It does not start with `hoist-`.
    #[error(
        "not a Hoist key: it must start with `{PREFIX}` and be written `{PREFIX}NAME:base64` \
         (a Nix cache key signs store paths, not deployments; `hoist-certs signing-key NAME` makes one)"
    )]
    Prefix,
    /// There is no colon.
    #[error("not a Hoist key: no `:` between name and base64")]
    Colon,
    /// The name is none.
    #[error("the key's name is not valid")]
    Name(#[source] NameError),
    /// The base64 is none.
    #[error("the key is damaged: what follows the `:` is not base64")]
    Base64,
    /// The secret half was given where the public one belongs.
    #[error(
        "this is the secret half of a key; give the public half, which `hoist-certs show FILE` prints"
    )]
    IsSecret,
    /// The public half was given where the secret one belongs.
    #[error(
        "this is the public half of a key, which cannot sign; give the file that `hoist-certs signing-key` wrote"
    )]
    IsPublic,
    /// The length fits neither half.
    #[error("the key is damaged: {0} bytes are neither a public half (32) nor a secret key (64)")]
    Length(usize),
    /// The bytes are no point of the curve, or a weak one.
    #[error("the key is damaged: it is no usable Ed25519 public key")]
    Weak,
    /// The two halves do not belong together.
    #[error("the key is damaged: its two halves do not belong together")]
    Mismatch,
}

fn split(text: &str) -> Result<(KeyName, Zeroizing<Vec<u8>>), KeyError> {
    let rest = text.trim().strip_prefix(PREFIX).ok_or(KeyError::Prefix)?;
    let (name, base64) = rest.split_once(':').ok_or(KeyError::Colon)?;
    let name = KeyName::new(name).map_err(KeyError::Name)?;
    Ok((
        name,
        Zeroizing::new(STANDARD.decode(base64).map_err(|_| KeyError::Base64)?),
    ))
}

/// The public half of a signing key, written `hoist-NAME:base64`.
#[derive(Clone, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    name: KeyName,
    key: VerifyingKey,
}

impl PublicKey {
    /// What the key is called; a hint for finding it, nothing is proven by it.
    #[must_use]
    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    /// The 32 bytes that tell keys apart.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Whether `signature` over `message` was made with the secret half. Strict: one signature has one form.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key
            .verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
            .is_ok()
    }
}

/// Whether all of the signatures were made with the secret halves of the keys beside them, for a quarter of what
/// checking one after the other costs, if there are dozens and few keys. Not strict: who has the secret half can make
/// some that hold here and not for [`PublicKey::verifies`].
pub(crate) fn verify_together<'a>(
    checks: impl IntoIterator<Item = (&'a PublicKey, &'a [u8], &'a [u8; 64])>,
) -> bool {
    // This library and not the other's batches: it adds up what is of the same key, which halves the cost, and draws
    // its numbers at random.
    let mut batch = ed25519_zebra::batch::Verifier::new();
    for (key, message, signature) in checks {
        let signature = ed25519_zebra::Signature::from_bytes(signature);
        batch.queue((VerificationKeyBytes::from(*key.bytes()), signature, message));
    }
    batch.verify(rand::rng()).is_ok()
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split(text)?;
        let bytes: &[u8; 32] = match bytes.len() {
            64 => return Err(KeyError::IsSecret),
            _ => bytes
                .as_slice()
                .try_into()
                .map_err(|_| KeyError::Length(bytes.len()))?,
        };
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Weak)?;
        // With a key of small order anybody could sign.
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self { name, key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}{}:{}",
            self.name,
            STANDARD.encode(self.key.as_bytes())
        )
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// A key that signs deployments. Its secret is wiped from memory when it is dropped, and never printed.
pub struct SigningKey {
    name: KeyName,
    key: ed25519_dalek::SigningKey,
}

impl SigningKey {
    /// The key called `name` that grows out of 32 random bytes.
    #[must_use]
    pub fn from_seed(name: KeyName, seed: &Zeroizing<[u8; 32]>) -> Self {
        Self {
            name,
            key: ed25519_dalek::SigningKey::from_bytes(seed),
        }
    }

    /// Reads what [`SigningKey::to_text`] wrote.
    ///
    /// # Errors
    /// [`KeyError`], which never quotes the text.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split(text)?;
        let pair = match bytes.len() {
            32 => return Err(KeyError::IsPublic),
            _ => Zeroizing::new(
                <[u8; 64]>::try_from(bytes.as_slice())
                    .map_err(|_| KeyError::Length(bytes.len()))?,
            ),
        };
        let key =
            ed25519_dalek::SigningKey::from_keypair_bytes(&pair).map_err(|_| KeyError::Mismatch)?;
        Ok(Self { name, key })
    }

    /// The key's file: `hoist-NAME:` and the base64 of both halves, 64 bytes. A secret.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(self.key.to_keypair_bytes());
        let base64 = Zeroizing::new(STANDARD.encode(pair.as_slice()));
        Zeroizing::new(format!("{PREFIX}{}:{}", self.name, *base64))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey {
            name: self.name.clone(),
            key: self.key.verifying_key(),
        }
    }

    /// What the key is called.
    #[must_use]
    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({PREFIX}{}, secret)", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(KeyName::new("ci").unwrap(), &Zeroizing::new([7; 32]))
    }

    #[test]
    fn both_halves_read_back() {
        let text = key().to_text();
        assert_eq!(SigningKey::parse(&text).unwrap().public(), key().public());
        assert_eq!(
            key().public().to_string().parse::<PublicKey>().unwrap(),
            key().public()
        );
    }

    #[test]
    fn the_halves_are_not_mistaken_for_each_other() {
        assert_eq!(
            key().to_text().parse::<PublicKey>().unwrap_err(),
            KeyError::IsSecret
        );
        assert_eq!(
            SigningKey::parse(&key().public().to_string()).unwrap_err(),
            KeyError::IsPublic
        );
    }

    #[test]
    fn a_nix_cache_key_is_refused() {
        let cache = "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        assert_eq!(cache.parse::<PublicKey>().unwrap_err(), KeyError::Prefix);
    }

    #[test]
    fn a_key_with_which_anybody_could_sign_is_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let text = format!("hoist-x:{}", STANDARD.encode(identity));
        assert_eq!(text.parse::<PublicKey>().unwrap_err(), KeyError::Weak);
    }

    #[test]
    fn a_secret_is_never_printed() {
        let text = key().to_text();
        let secret = text.split_once(':').unwrap().1;
        assert!(!format!("{:?}", key()).contains(&secret[..16]));
        let damaged = format!("{}AAAA", text.as_str());
        let error = SigningKey::parse(&damaged).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret[..16]));
    }
}
