//! Which deployments may be retained: what the fleet's trusted keys have signed, for that machine, in order.
//!
//! MQTT 3.1.1 has no way to refuse a publish: an acknowledgement would tell the publisher that its deployment
//! stands. So a refused deploy is never acknowledged and its connection is closed; a publisher that reads back
//! after it reconnects finds what is retained instead, and a lost race shows as a higher order there.

use hoist_protocol::{Machine, Order, TrustedKeys, VerifyError};

/// Why a deployment may not be retained.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeployRefusal {
    /// No trusted key has signed it for this machine.
    #[error("the deployment for {machine} is refused")]
    Unverified {
        /// Whose topic it was published on.
        machine: Machine,
        /// Why it is not verified.
        #[source]
        source: Box<VerifyError>,
    },
    /// What is retained is newer, or as new.
    #[error(
        "the deployment for {machine} has the order {given}, which is not above the retained {retained}"
    )]
    Order {
        /// Whose topic it was published on.
        machine: Machine,
        /// Its order.
        given: Order,
        /// The retained deployment's order.
        retained: Order,
    },
    /// It raises the epoch, and no key that signed it may.
    #[error(
        "the deployment for {machine} raises the epoch from {retained} to {given} without a key that may"
    )]
    Epoch {
        /// Whose topic it was published on.
        machine: Machine,
        /// Its epoch.
        given: u32,
        /// The retained deployment's epoch.
        retained: u32,
    },
}

/// What a verified deployment is compared by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Proof {
    order: Order,
    may_raise_epoch: bool,
}

/// The rules for what is published on `deploy` topics.
#[derive(Debug)]
pub(crate) struct Deploys {
    keys: Option<TrustedKeys>,
}

impl Deploys {
    /// The rules of a broker that knows `keys`; without them every publisher's word is taken.
    #[must_use]
    pub(crate) const fn new(keys: Option<TrustedKeys>) -> Self {
        Self { keys }
    }

    /// Verifies `payload`, published on the `deploy` topic of `machine`. There is no proof without trusted keys.
    ///
    /// # Errors
    /// [`DeployRefusal::Unverified`]
    pub(crate) fn verify(
        &self,
        machine: &Machine,
        payload: &[u8],
    ) -> Result<Option<Proof>, DeployRefusal> {
        let Some(keys) = &self.keys else {
            return Ok(None);
        };
        let verified =
            keys.verify(payload, machine)
                .map_err(|error| DeployRefusal::Unverified {
                    machine: machine.clone(),
                    source: Box::new(error),
                })?;
        Ok(Some(Proof {
            order: verified.deployment().order(),
            may_raise_epoch: verified.may_raise_epoch(),
        }))
    }

    /// Whether a deployment with `proof` may take the place of one with the proof `retained`. What is retained
    /// without a proof, from a time with other keys or none, never stands in the way.
    ///
    /// # Errors
    /// [`DeployRefusal::Order`] and [`DeployRefusal::Epoch`]
    pub(crate) fn supersedes(
        machine: &Machine,
        proof: Option<Proof>,
        retained: Option<Proof>,
    ) -> Result<(), DeployRefusal> {
        let (Some(proof), Some(retained)) = (proof, retained) else {
            return Ok(());
        };
        if proof.order <= retained.order {
            return Err(DeployRefusal::Order {
                machine: machine.clone(),
                given: proof.order,
                retained: retained.order,
            });
        }
        if proof.order.epoch > retained.order.epoch && !proof.may_raise_epoch {
            return Err(DeployRefusal::Epoch {
                machine: machine.clone(),
                given: proof.order.epoch,
                retained: retained.order.epoch,
            });
        }
        Ok(())
    }
}
