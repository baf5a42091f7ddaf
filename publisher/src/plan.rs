//! What is signed: one deployment for one machine, ordered after all that is known of it.
//!
//! A [`Target`] comes from the operator's spec or names a deployment by id. Of what was read from the broker
//! only two numbers get in, the epoch and the sequence, and both are bounded by [`Order::next`]: a publisher
//! never signs a path that it read from the wire.

use std::time::Duration;

use hoist_protocol::{
    Deployment, DeploymentError, DeploymentId, DeploymentParts, KnownOrders, Machine, Order,
    Provenance, Rollout, SequenceError, SignError, SigningKey, Target, Text, Timestamp, digest,
    sign,
};

/// Why a deployment cannot be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// It cannot be ordered after what is known.
    #[error("no order above the known ones can be chosen")]
    Order(#[source] SequenceError),
    /// The epoch is at its end.
    #[error("the epoch is at its end and cannot be raised")]
    Epoch,
    /// Its parts do not hold together.
    #[error("the deployment is not valid")]
    Deployment(#[source] DeploymentError),
    /// It cannot be signed.
    #[error("the deployment cannot be signed")]
    Sign(#[source] SignError),
}

/// What all machines of one run have in common.
pub struct Orders<'a> {
    /// The keys that sign.
    pub keys: &'a [SigningKey],
    /// Where the deployments come from.
    pub provenance: &'a Provenance,
    /// How long they are valid.
    pub valid_for: Duration,
    /// Whether the epoch is raised, to get out of a sequence that went too far.
    pub raise_epoch: bool,
    /// The time by this computer's clock.
    pub now: Timestamp,
}

/// A deployment that is ready to be published.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signed {
    /// Whom it is for.
    pub machine: Machine,
    /// Where it stands among the machine's deployments.
    pub order: Order,
    /// When it ends.
    pub expires: Timestamp,
    /// What goes to the machine's `deploy` topic.
    pub envelope: Vec<u8>,
    /// What the machine calls the envelope when it trusts nothing in it.
    pub digest: Text<64>,
}

impl Orders<'_> {
    /// Orders, builds and signs the deployment of `target` on `machine`, alone or as part of a rollout.
    ///
    /// # Errors
    /// [`PlanError`]
    pub fn sign(
        &self,
        machine: Machine,
        target: Target,
        known: KnownOrders,
        id: DeploymentId,
        rollout: Option<Rollout>,
    ) -> Result<Signed, PlanError> {
        let order = self.order(known, id)?;
        let deployment = Deployment::new(DeploymentParts {
            machine: machine.clone(),
            order,
            issued: self.now,
            expires: self.now.plus(self.valid_for),
            target,
            held: false,
            cancels: None,
            provenance: Provenance {
                rollout,
                ..self.provenance.clone()
            },
        })
        .map_err(PlanError::Deployment)?;
        let envelope = sign(&deployment, self.keys).map_err(PlanError::Sign)?;
        Ok(Signed {
            machine,
            order,
            expires: deployment.expires(),
            digest: digest(&envelope),
            envelope,
        })
    }

    fn order(&self, known: KnownOrders, id: DeploymentId) -> Result<Order, PlanError> {
        if !self.raise_epoch {
            return Order::next(self.now, known, id).map_err(PlanError::Order);
        }
        let epoch = known
            .retained
            .into_iter()
            .chain(known.floor)
            .map(|(epoch, _)| epoch)
            .max();
        Ok(Order {
            epoch: epoch.unwrap_or(0).checked_add(1).ok_or(PlanError::Epoch)?,
            sequence: self.now.as_ms(),
            id,
        })
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Goal, RollbackTo, TrustedKeys};

    use super::*;
    use crate::testing::{id, key, machine};

    const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_000);

    fn signed(raise_epoch: bool, known: KnownOrders) -> Result<Signed, PlanError> {
        let orders = Orders {
            keys: &[key("ci")],
            provenance: &Provenance::default(),
            valid_for: Duration::from_secs(60),
            raise_epoch,
            now: NOW,
        };
        let goal = Goal::Rollback(RollbackTo::Deployment(id(1)));
        orders.sign(machine("web-1"), Target::new(goal), known, id(9), None)
    }

    #[test]
    fn what_is_signed_verifies_for_its_machine_and_ends_in_time() {
        let made = signed(false, KnownOrders::default()).unwrap();
        let trusted = TrustedKeys::new(vec![key("ci").public()]).unwrap();
        let verified = trusted.verify(&made.envelope, &machine("web-1")).unwrap();
        assert_eq!(verified.deployment().order(), made.order);
        assert_eq!(made.expires.since(NOW), Duration::from_secs(60));
        assert_eq!(made.digest, digest(&made.envelope));
    }

    #[test]
    fn a_sequence_that_went_too_far_is_refused_until_the_epoch_is_raised() {
        let known = KnownOrders {
            retained: None,
            floor: Some((3, u64::MAX)),
        };
        assert!(matches!(signed(false, known), Err(PlanError::Order(_))));
        let raised = signed(true, known).unwrap();
        assert_eq!(
            (raised.order.epoch, raised.order.sequence),
            (4, NOW.as_ms())
        );
    }

    #[test]
    fn an_epoch_at_its_end_is_no_panic() {
        let known = KnownOrders {
            retained: None,
            floor: Some((u32::MAX, 1)),
        };
        assert_eq!(signed(true, known).unwrap_err(), PlanError::Epoch);
    }
}
