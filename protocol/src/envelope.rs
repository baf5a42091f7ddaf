//! Signed deployments: what lies on a `deploy` topic, and the one way to trust it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::deployment::{DecodeError, Deployment, FORMAT};
use crate::draft::{Draft, SignError};
use crate::key::{PublicKey, SigningKey};
use crate::limits::{DEPLOY_LEN, SIGNATURES};
use crate::name::KeyName;
use crate::text::Text;
use crate::topic::Machine;

/// Signed together with the payload, so that a signature for anything else is none for a deployment.
const PREFIX: &[u8] = b"hoist deployment format 1\0";

/// The exact bytes that a signature is over.
pub(crate) fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    [PREFIX, payload].concat()
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Signature {
    /// Which key made it: a hint. What counts is whose public half it holds under.
    pub(crate) key: KeyName,
    #[serde(with = "bytes64")]
    pub(crate) bytes: [u8; 64],
}

/// serde knows arrays up to 32; a signature is two halves of that.
mod bytes64 {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 64], to: S) -> Result<S::Ok, S::Error> {
        let (left, right) = bytes.split_at(32);
        let half =
            |half: &[u8]| <[u8; 32]>::try_from(half).expect("64 bytes have two halves of 32");
        (half(left), half(right)).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 64], D::Error> {
        let (left, right) = <([u8; 32], [u8; 32])>::deserialize(from)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&left);
        bytes[32..].copy_from_slice(&right);
        Ok(bytes)
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Envelope {
    pub(crate) format: u8,
    #[serde(with = "serde_bytes")]
    pub(crate) payload: Vec<u8>,
    pub(crate) signatures: Vec<Signature>,
    /// Room for keys that trusted keys vouch for. Empty in format 1, and refused when it is not.
    pub(crate) delegations: Vec<Vec<u8>>,
}

impl Envelope {
    /// Takes an envelope apart, without believing anything in it.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, VerifyError> {
        if bytes.len() > DEPLOY_LEN {
            let error = DecodeError::TooLong {
                found: bytes.len(),
                max: DEPLOY_LEN,
            };
            return Err(VerifyError::Envelope(error));
        }
        // The format comes first in the bytes, so that another one is named rather than called damaged.
        if let Some(&format) = bytes.first().filter(|format| **format != FORMAT) {
            return Err(VerifyError::Envelope(DecodeError::Format(format)));
        }
        let (envelope, rest) = postcard::take_from_bytes::<Self>(bytes)
            .map_err(|_| VerifyError::Envelope(DecodeError::Malformed))?;
        if !rest.is_empty() {
            return Err(VerifyError::Envelope(DecodeError::TrailingBytes(
                rest.len(),
            )));
        }
        if envelope.signatures.len() > SIGNATURES || !envelope.delegations.is_empty() {
            return Err(VerifyError::Excess);
        }
        Ok(envelope)
    }
}

/// An envelope that was taken apart, and what signatures over it are over.
pub(crate) struct Opened {
    pub(crate) envelope: Envelope,
    pub(crate) message: Vec<u8>,
}

impl Opened {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, VerifyError> {
        let envelope = Envelope::read(bytes)?;
        Ok(Self {
            message: signed_bytes(&envelope.payload),
            envelope,
        })
    }

    /// Whether `key` made the signature.
    pub(crate) fn is_signed(&self, key: &PublicKey, signature: &Signature) -> bool {
        key.verifies(&self.message, &signature.bytes)
    }
}

/// Signs `deployment` with every key of `keys`; the result is what goes to the machine's `deploy` topic.
///
/// # Errors
/// [`SignError`]
pub fn sign(deployment: &Deployment, keys: &[SigningKey]) -> Result<Vec<u8>, SignError> {
    let mut draft = Draft::new(deployment.clone());
    for key in keys {
        draft.sign(key)?;
    }
    draft.finish()
}

/// The SHA-256 of a received message, in hexadecimal: what a message is known by when nothing in it could be
/// trusted.
#[must_use]
pub fn digest(bytes: &[u8]) -> Text<64> {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Text::lossy(&hex)
}

/// Why a received deployment is not carried out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// The envelope cannot be read.
    #[error("the envelope cannot be read")]
    Envelope(#[source] DecodeError),
    /// There are more signatures than allowed, or something that format 1 has no meaning for.
    #[error("the envelope holds more than format {FORMAT} allows")]
    Excess,
    /// Too few trusted keys have signed.
    #[error("{valid} of the {required} required trusted keys have signed it (it names: {named})")]
    Untrusted {
        /// How many distinct trusted keys have signed.
        valid: usize,
        /// How many must have.
        required: usize,
        /// The key names in the envelope, which prove nothing.
        named: String,
    },
    /// It is signed, but its content cannot be read: written by a newer program, most likely.
    #[error(
        "it is signed by a trusted key but cannot be read here; a newer version may have written it"
    )]
    Payload(#[source] DecodeError),
    /// It is signed, but for another machine.
    #[error("it is signed for {found}, not for {expected}")]
    OtherMachine {
        /// Whom it was signed for.
        found: Box<Machine>,
        /// Whose topic it was found on.
        expected: Box<Machine>,
    },
}

/// A deployment that enough trusted keys have signed for this machine.
///
/// Only [`TrustedKeys::verify`] makes one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedDeployment {
    deployment: Deployment,
    signers: Vec<KeyName>,
    may_raise_epoch: bool,
}

impl VerifiedDeployment {
    /// What it says.
    #[must_use]
    pub const fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// The names, as configured here, of the trusted keys that signed it.
    #[must_use]
    pub fn signers(&self) -> &[KeyName] {
        &self.signers
    }

    /// Whether one of its signers has the right to raise the epoch.
    #[must_use]
    pub const fn may_raise_epoch(&self) -> bool {
        self.may_raise_epoch
    }
}

/// Why keys cannot be trusted together.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TrustedKeysError {
    /// One key stands there twice, perhaps under two names: it would count once.
    #[error("the key `{0}` is listed twice")]
    Twice(KeyName),
    /// More signatures are required than there are keys, or none at all.
    #[error(
        "{required} signatures are required of {keys} trusted keys; this must be 1 to the number of keys"
    )]
    Required {
        /// Signatures required.
        required: usize,
        /// Keys listed.
        keys: usize,
    },
    /// A key with the right to raise the epoch is not trusted.
    #[error("the key `{0}` may raise the epoch but is not among the trusted keys")]
    EpochKey(KeyName),
}

/// The keys whose signatures count, and how many of them are needed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustedKeys {
    keys: Vec<PublicKey>,
    required: usize,
    epoch_keys: Vec<PublicKey>,
}

impl TrustedKeys {
    /// Trusts `keys`, one signature of any of them being enough.
    ///
    /// # Errors
    /// [`TrustedKeysError`] when there is no key, or one twice.
    pub fn new(keys: Vec<PublicKey>) -> Result<Self, TrustedKeysError> {
        Self::with_policy(keys, 1, Vec::new())
    }

    /// Trusts `keys`, requires `required` distinct ones of them, and lets `epoch_keys` raise the epoch.
    ///
    /// # Errors
    /// [`TrustedKeysError`]
    pub fn with_policy(
        keys: Vec<PublicKey>,
        required: usize,
        epoch_keys: Vec<PublicKey>,
    ) -> Result<Self, TrustedKeysError> {
        for (n, key) in keys.iter().enumerate() {
            if keys[..n].iter().any(|other| other.bytes() == key.bytes()) {
                return Err(TrustedKeysError::Twice(key.name().clone()));
            }
        }
        if required == 0 || required > keys.len() {
            return Err(TrustedKeysError::Required {
                required,
                keys: keys.len(),
            });
        }
        if let Some(key) = epoch_keys
            .iter()
            .find(|key| keys.iter().all(|k| k.bytes() != key.bytes()))
        {
            return Err(TrustedKeysError::EpochKey(key.name().clone()));
        }
        Ok(Self {
            keys,
            required,
            epoch_keys,
        })
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// The one door to a [`VerifiedDeployment`]: checks the received `bytes`, found on the `deploy` topic of
    /// `machine`. The payload is not decoded before enough signatures hold over its exact bytes.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn verify(
        &self,
        bytes: &[u8],
        machine: &Machine,
    ) -> Result<VerifiedDeployment, VerifyError> {
        let opened = Opened::read(bytes)?;
        self.judge(&opened, machine, |key, signature| {
            opened.is_signed(key, signature)
        })
    }

    /// What [`Self::verify`] says of an envelope when `holds` tells which key made a signature.
    pub(crate) fn judge(
        &self,
        opened: &Opened,
        machine: &Machine,
        holds: impl FnMut(&PublicKey, &Signature) -> bool,
    ) -> Result<VerifiedDeployment, VerifyError> {
        let Envelope {
            payload,
            signatures,
            ..
        } = &opened.envelope;
        let signers = signers(&self.keys, signatures, holds);
        if signers.len() < self.required {
            let named: Vec<&str> = signatures.iter().map(|s| s.key.as_str()).collect();
            let named = if named.is_empty() {
                "none".to_owned()
            } else {
                named.join(", ")
            };
            return Err(VerifyError::Untrusted {
                valid: signers.len(),
                required: self.required,
                named,
            });
        }
        let deployment = Deployment::decode(payload).map_err(VerifyError::Payload)?;
        if deployment.machine() != machine {
            return Err(VerifyError::OtherMachine {
                found: Box::new(deployment.machine().clone()),
                expected: Box::new(machine.clone()),
            });
        }
        let may_raise_epoch = signers
            .iter()
            .any(|key| self.epoch_keys.iter().any(|k| k.bytes() == key.bytes()));
        let signers = signers.into_iter().map(|key| key.name().clone()).collect();
        Ok(VerifiedDeployment {
            deployment,
            signers,
            may_raise_epoch,
        })
    }
}

/// Those of `keys` that have signed, in their order. The name in a signature says which key to try first: what is signed as
/// it should be costs one check a signature, however many keys are trusted.
fn signers<'a>(
    keys: &'a [PublicKey],
    signatures: &[Signature],
    mut holds: impl FnMut(&PublicKey, &Signature) -> bool,
) -> Vec<&'a PublicKey> {
    let mut signed = vec![false; keys.len()];
    for signature in signatures {
        let is_named = |n: &usize| *keys[*n].name() == signature.key;
        let (named, others): (Vec<usize>, Vec<usize>) =
            (0..keys.len()).filter(|n| !signed[*n]).partition(is_named);
        let signer = named
            .into_iter()
            .chain(others)
            .find(|n| holds(&keys[*n], signature));
        if let Some(signer) = signer {
            signed[signer] = true;
        }
    }
    let with_it = keys.iter().zip(signed);
    with_it
        .filter_map(|(key, signed)| signed.then_some(key))
        .collect()
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn key(name: &str, seed: u8) -> SigningKey {
        SigningKey::from_seed(KeyName::new(name).unwrap(), &Zeroizing::new([seed; 32]))
    }

    /// Who has signed, and how many checks that took.
    fn look(signers_of: &[SigningKey]) -> (Vec<String>, usize) {
        let keys = [key("a", 1), key("b", 2), key("c", 3)].map(|key| key.public());
        let signatures: Vec<Signature> = signers_of
            .iter()
            .map(|key| Signature {
                key: key.name().clone(),
                bytes: key.sign(b"it"),
            })
            .collect();
        let mut checks = 0;
        let found = signers(&keys, &signatures, |key, signature| {
            checks += 1;
            key.verifies(b"it", &signature.bytes)
        });
        let names = found.iter().map(|key| key.name().to_string());
        (names.collect(), checks)
    }

    #[test]
    fn a_name_spares_checks_and_proves_nothing() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(look(&[key("c", 3)]), (names(&["c"]), 1));
        assert_eq!(look(&[key("c", 3), key("a", 1)]), (names(&["a", "c"]), 2));
        // Another key's name, and one that nobody has.
        assert_eq!(look(&[key("a", 3)]), (names(&["c"]), 3));
        assert_eq!(look(&[key("x", 2)]), (names(&["b"]), 2));
        assert_eq!(look(&[key("a", 9)]), (names(&[]), 3));
        // The same key again counts once.
        assert_eq!(look(&[key("a", 1), key("a", 1)]), (names(&["a"]), 3));
    }
}
