//! Which deployments may be retained: what the fleet's trusted keys have signed, for that machine, in order.
//!
//! MQTT 3.1.1 has no way to refuse a publish: an acknowledgement would tell the publisher that its deployment
//! stands. So a refused deploy is never acknowledged and its connection is closed; a publisher that reads back
//! after it reconnects finds what is retained instead, and a lost race shows as a higher order there.

use std::sync::Arc;

use hoist_protocol::{FleetName, Machine, Order, ScreenedDeployment, TrustedKeys, VerifyError};

use crate::observe::Reason;
use crate::settings::{Fleets, Quota};

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

impl DeployRefusal {
    /// As a word for counters and the audit log.
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::Unverified { .. } => Reason::DeployUnverified,
            Self::Order { .. } => Reason::DeployOrder,
            Self::Epoch { .. } => Reason::DeployEpoch,
        }
    }
}

/// The rules for what is published on `deploy` topics.
#[derive(Debug)]
pub(crate) struct Deploys {
    fleets: Arc<Fleets>,
}

impl Deploys {
    /// The rules of a broker that knows the keys of `fleets`; without them every publisher's word is taken.
    #[must_use]
    pub(crate) const fn new(fleets: Arc<Fleets>) -> Self {
        Self { fleets }
    }

    /// Those of a broker that knows no keys.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn unsigned() -> Self {
        Self::new(Arc::default())
    }

    /// What `fleet` may use; nothing when it is not served.
    pub(crate) fn quota(&self, fleet: &FleetName) -> Quota {
        let served = self.fleets.get(fleet);
        served.map_or(Quota::NONE, |served| served.quota)
    }

    /// Verifies what was published on the `deploy` topics of machines of `fleet`, all of it together. The answers
    /// have the order of `deploys`. There is no proof without trusted keys.
    pub(crate) fn verify(
        &self,
        fleet: &FleetName,
        deploys: &[(&Machine, &[u8])],
    ) -> Vec<Result<Option<ScreenedDeployment>, DeployRefusal>> {
        let Some(keys) = self.keys(fleet) else {
            return vec![Ok(None); deploys.len()];
        };
        let screened = keys.screen(deploys).into_iter().zip(deploys);
        screened
            .map(|(screened, (machine, _))| {
                screened
                    .map(Some)
                    .map_err(|error| unverified(machine, error))
            })
            .collect()
    }

    /// Verifies one by itself.
    ///
    /// # Errors
    /// [`DeployRefusal::Unverified`]
    pub(crate) fn verify_one(
        &self,
        machine: &Machine,
        payload: &[u8],
    ) -> Result<Option<ScreenedDeployment>, DeployRefusal> {
        let Some(keys) = self.keys(&machine.fleet) else {
            return Ok(None);
        };
        let verified = keys.verify(payload, machine);
        verified
            .map(|verified| Some(verified.into()))
            .map_err(|error| unverified(machine, error))
    }

    fn keys(&self, fleet: &FleetName) -> Option<&TrustedKeys> {
        self.fleets.get(fleet)?.trusted_keys.as_ref()
    }

    /// Whether a deployment with `proof` may take the place of one with the proof `retained`. What is retained
    /// without a proof, from a time with other keys or none, never stands in the way.
    ///
    /// # Errors
    /// [`DeployRefusal::Order`] and [`DeployRefusal::Epoch`]
    pub(crate) fn supersedes(
        machine: &Machine,
        proof: Option<ScreenedDeployment>,
        retained: Option<ScreenedDeployment>,
    ) -> Result<(), DeployRefusal> {
        let (Some(proof), Some(retained)) = (proof, retained) else {
            return Ok(());
        };
        if proof.order() <= retained.order() {
            return Err(DeployRefusal::Order {
                machine: machine.clone(),
                given: proof.order(),
                retained: retained.order(),
            });
        }
        if proof.order().epoch > retained.order().epoch && !proof.may_raise_epoch() {
            return Err(DeployRefusal::Epoch {
                machine: machine.clone(),
                given: proof.order().epoch,
                retained: retained.order().epoch,
            });
        }
        Ok(())
    }
}

fn unverified(machine: &Machine, error: VerifyError) -> DeployRefusal {
    DeployRefusal::Unverified {
        machine: machine.clone(),
        source: Box::new(error),
    }
}
