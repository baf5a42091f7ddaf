//! A deployment on its way to enough signatures.

use crate::deployment::{DecodeError, Deployment, FORMAT};
use crate::envelope::{Envelope, Signature, VerifyError, signed_bytes};
use crate::key::{PublicKey, SigningKey};
use crate::limits::{DEPLOY_LEN, SIGNATURES};
use crate::name::KeyName;

/// Why deployments cannot be signed so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignError {
    /// No key, or more keys than an envelope carries.
    #[error("{0} signing keys were given; 1 to {SIGNATURES} can sign")]
    Keys(usize),
    /// The result is too large for the wire.
    #[error(
        "the signed deployment has {0} bytes; {DEPLOY_LEN} are allowed: shorten its health checks, caches or message"
    )]
    TooLong(usize),
}

/// Why a signature is not added.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AddError {
    /// It was made with another key, or over other bytes.
    #[error("the signature is none of the key `{0}` over this deployment")]
    Wrong(KeyName),
    /// There are as many as an envelope carries.
    #[error("it has {SIGNATURES} signatures already, and more are not allowed")]
    Full,
}

/// A deployment and the signatures that it has so far. Nothing is proven by one: it may come from a file that
/// anybody wrote, for somebody to look at and to sign, or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Draft {
    deployment: Deployment,
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

impl Draft {
    /// One that nobody has signed.
    #[must_use]
    pub fn new(deployment: Deployment) -> Self {
        Self {
            payload: deployment.encode(),
            deployment,
            signatures: Vec::new(),
        }
    }

    /// Reads what [`Draft::finish`] wrote, without believing any signature in it.
    ///
    /// # Errors
    /// [`VerifyError::Envelope`], [`VerifyError::Excess`] or [`VerifyError::Payload`]
    pub fn open(bytes: &[u8]) -> Result<Self, VerifyError> {
        let envelope = Envelope::read(bytes)?;
        let deployment = Deployment::decode(&envelope.payload).map_err(VerifyError::Payload)?;
        // What is shown has to be all that is signed.
        if deployment.encode() != envelope.payload {
            return Err(VerifyError::Payload(DecodeError::Malformed));
        }
        Ok(Self {
            deployment,
            payload: envelope.payload,
            signatures: envelope.signatures,
        })
    }

    /// What would be signed.
    #[must_use]
    pub const fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// The exact bytes that a signature has to be over: a prefix that no other kind of message has, and the
    /// deployment.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        signed_bytes(&self.payload)
    }

    /// The names in the envelope, which prove nothing.
    pub fn named(&self) -> impl Iterator<Item = &KeyName> {
        self.signatures.iter().map(|signature| &signature.key)
    }

    /// Whether this key has signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let message = self.message();
        (self.signatures.iter()).any(|signature| key.verifies(&message, &signature.bytes))
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`SignError::Keys`] when there is no room for another signature.
    pub fn sign(&mut self, key: &SigningKey) -> Result<(), SignError> {
        let bytes = key.sign(&self.message());
        self.push(key.name().clone(), bytes)
            .map_err(|AddFull| SignError::Keys(SIGNATURES + 1))
    }

    /// Adds a signature that was made elsewhere. One of the same key that is there already is replaced.
    ///
    /// # Errors
    /// [`AddError`]
    pub fn add(&mut self, key: &PublicKey, bytes: [u8; 64]) -> Result<(), AddError> {
        if !key.verifies(&self.message(), &bytes) {
            return Err(AddError::Wrong(key.name().clone()));
        }
        self.push(key.name().clone(), bytes)
            .map_err(|AddFull| AddError::Full)
    }

    fn push(&mut self, key: KeyName, bytes: [u8; 64]) -> Result<(), AddFull> {
        // Ed25519 signs the same bytes to the same signature.
        self.signatures.retain(|known| known.bytes != bytes);
        if self.signatures.len() >= SIGNATURES {
            return Err(AddFull);
        }
        self.signatures.push(Signature { key, bytes });
        Ok(())
    }

    /// Whether the envelope has room for the signatures of these keys besides those that there are.
    ///
    /// # Errors
    /// [`SignError`]
    pub fn check_room(&self, more: &[&KeyName]) -> Result<(), SignError> {
        let mut full = self.clone();
        for name in more {
            full.signatures.push(Signature {
                key: (*name).clone(),
                bytes: [0; 64],
            });
        }
        if full.signatures.len() > SIGNATURES {
            return Err(SignError::Keys(full.signatures.len()));
        }
        full.finish().map(|_| ())
    }

    /// What goes to the machine's `deploy` topic, or into a file for the next who signs.
    ///
    /// # Errors
    /// [`SignError`] when it has no signature, or is too long.
    pub fn finish(&self) -> Result<Vec<u8>, SignError> {
        if self.signatures.is_empty() {
            return Err(SignError::Keys(0));
        }
        let envelope = Envelope {
            format: FORMAT,
            payload: self.payload.clone(),
            signatures: self.signatures.clone(),
            delegations: Vec::new(),
        };
        let bytes = postcard::to_stdvec(&envelope).expect("plain data always has a postcard form");
        if bytes.len() > DEPLOY_LEN {
            return Err(SignError::TooLong(bytes.len()));
        }
        Ok(bytes)
    }
}

/// There is no room for another signature.
struct AddFull;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::{DeploymentParts, Held, Provenance};
    use crate::order::{DeploymentId, Order};
    use crate::target::{Goal, Target};
    use crate::time::Timestamp;
    use crate::topic::Machine;
    use crate::{AgentName, FleetName, TrustedKeys, sign};

    fn key(name: &str, seed: u8) -> SigningKey {
        SigningKey::from_seed(KeyName::new(name).unwrap(), &[seed; 32].into())
    }

    fn machine() -> Machine {
        let fleet = FleetName::new("prod").unwrap();
        Machine::new(fleet, AgentName::new("web-1").unwrap())
    }

    fn deployment() -> Deployment {
        Deployment::new(DeploymentParts {
            machine: machine(),
            order: Order {
                epoch: 0,
                sequence: 1,
                id: DeploymentId::new(uuid::Uuid::from_u128(1)),
            },
            issued: Timestamp::from_ms(1),
            expires: Timestamp::from_ms(2),
            target: Target::new(Goal::Stay),
            held: Held::No,
            cancels: None,
            renews: None,
            provenance: Provenance::default(),
        })
        .unwrap()
    }

    #[test]
    fn two_people_sign_one_after_the_other_and_both_count() {
        let (ci, ops) = (key("ci", 1), key("ops", 2));
        let both =
            TrustedKeys::with_policy(vec![ci.public(), ops.public()], 2, Vec::new()).unwrap();
        let first = sign(&deployment(), std::slice::from_ref(&ci)).unwrap();
        assert!(both.verify(&first, &machine()).is_err());
        let mut draft = Draft::open(&first).unwrap();
        assert!(draft.is_signed_by(&ci.public()) && !draft.is_signed_by(&ops.public()));
        draft.sign(&ops).unwrap();
        let second = draft.finish().unwrap();
        assert_eq!(both.verify(&second, &machine()).unwrap().signers().len(), 2);
        assert_eq!(second, sign(&deployment(), &[ci, ops]).unwrap());
    }

    #[test]
    fn a_signature_of_another_key_or_over_other_bytes_is_not_added() {
        let (ci, ops) = (key("ci", 1), key("ops", 2));
        let mut draft = Draft::new(deployment());
        let bytes = ci.sign(&draft.message());
        let wrong = AddError::Wrong(KeyName::new("ops").unwrap());
        assert_eq!(draft.add(&ops.public(), bytes), Err(wrong));
        let without_prefix = ci.sign(&deployment().encode());
        assert!(draft.add(&ci.public(), without_prefix).is_err());
        assert_eq!(draft.finish(), Err(SignError::Keys(0)));
        draft.add(&ci.public(), bytes).unwrap();
        draft.add(&ci.public(), bytes).unwrap();
        assert_eq!(draft.named().count(), 1, "a key counts once");
    }

    #[test]
    fn there_are_no_more_signatures_than_an_envelope_carries() {
        let mut draft = Draft::new(deployment());
        for seed in 0..8 {
            draft.sign(&key("k", seed + 1)).unwrap();
        }
        assert_eq!(draft.sign(&key("k", 99)), Err(SignError::Keys(9)));
        assert!(draft.check_room(&[&KeyName::new("k").unwrap()]).is_err());
        assert!(draft.check_room(&[]).is_ok());
    }
}
