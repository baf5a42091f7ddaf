//! What is signed: one deployment for one machine, ordered after all that is known of it.
//!
//! A [`Target`] comes from the operator's spec, names a deployment by id, or was signed before with keys that are
//! trusted here. Of what nobody signed only two numbers get in, the epoch and the sequence, and both are bounded by
//! [`Order::next`]: a publisher never signs a path that it read from the wire.

use std::time::Duration;

use hoist_protocol::{
    Deployment, DeploymentError, DeploymentId, DeploymentParts, Draft, Held, KeyName, KnownOrders,
    Machine, Order, Provenance, Rollout, SequenceError, SignError, Target, Text, Timestamp, digest,
};

use crate::signer::{Signer, SignerError};

/// Why a deployment cannot be made.
#[derive(Debug, thiserror::Error)]
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
    /// Nobody signed it.
    #[error("the deployment was not signed by the key `{0}`")]
    Signer(KeyName, #[source] SignerError),
}

/// What becomes of the hold from afar that a machine may be under.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hold {
    /// It stays: whoever deploys to a machine that somebody holds does not let it go. Which hold that is gets known when
    /// the deployment is made, by what lies on the machine's topic.
    Stays(Held),
    /// This takes its place, as somebody asked for.
    Set(Held),
}

impl Hold {
    /// What the deployment says.
    #[must_use]
    pub const fn held(self) -> Held {
        match self {
            Self::Stays(held) | Self::Set(held) => held,
        }
    }

    /// Whether being held is what was asked for.
    #[must_use]
    pub fn is_asked_for(self) -> bool {
        matches!(self, Self::Set(held) if held != Held::No)
    }

    /// Whether the machine is held already, and goes on to be.
    #[must_use]
    pub fn goes_on(self) -> bool {
        matches!(self, Self::Stays(held) if held != Held::No)
    }

    /// What a deployment that somebody made says of that: one that only says again what the machine had before is
    /// published for the sake of the hold.
    fn of(deployment: &Deployment) -> Self {
        let parts = deployment.parts();
        match parts.renews {
            Some(_) => Self::Set(parts.held),
            None => Self::Stays(parts.held),
        }
    }
}

/// What is wished for one machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wish {
    /// What it runs.
    pub target: Target,
    /// Whether it is held.
    pub hold: Hold,
    /// Which deployment ends by it.
    pub cancels: Option<DeploymentId>,
    /// Which deployment it only says again.
    pub renews: Option<DeploymentId>,
    /// Which rollout it is part of.
    pub rollout: Option<Rollout>,
    /// Where the target comes from, when it was signed before: its revision and run stay what they were.
    pub origin: Option<Provenance>,
}

impl Wish {
    /// That it runs this.
    #[must_use]
    pub const fn of(target: Target) -> Self {
        Self {
            target,
            hold: Hold::Stays(Held::No),
            cancels: None,
            renews: None,
            rollout: None,
            origin: None,
        }
    }
}

/// What all machines of one run have in common.
pub struct Orders<'a> {
    /// Who signs.
    pub signers: &'a [Signer],
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
    /// Whether it holds the machine.
    pub hold: Hold,
    /// What goes to the machine's `deploy` topic.
    pub envelope: Vec<u8>,
    /// What the machine calls the envelope when it trusts nothing in it.
    pub digest: Text<64>,
}

impl Signed {
    /// A draft with the signatures that it has.
    ///
    /// # Errors
    /// [`SignError`]
    pub fn new(draft: &Draft) -> Result<Self, SignError> {
        Ok(Self::of(draft.deployment(), draft.finish()?))
    }

    /// A deployment whose signed form is `envelope`.
    #[must_use]
    pub fn of(deployment: &Deployment, envelope: Vec<u8>) -> Self {
        Self {
            machine: deployment.machine().clone(),
            order: deployment.order(),
            expires: deployment.expires(),
            hold: Hold::of(deployment),
            digest: digest(&envelope),
            envelope,
        }
    }
}

impl Orders<'_> {
    /// Orders, builds and signs a deployment.
    ///
    /// # Errors
    /// [`PlanError`]
    pub async fn sign(
        &self,
        machine: Machine,
        wish: Wish,
        known: KnownOrders,
        id: DeploymentId,
    ) -> Result<Signed, PlanError> {
        let hold = wish.hold;
        let mut draft = self.draft(machine, wish, known, id)?;
        for signer in self.signers {
            let signed = signer.sign(&mut draft).await;
            signed.map_err(|error| PlanError::Signer(signer.name().clone(), error))?;
        }
        let signed = Signed::new(&draft).map_err(PlanError::Sign)?;
        Ok(Signed { hold, ..signed })
    }

    /// Orders and builds a deployment, and sees to it that it could be signed.
    ///
    /// # Errors
    /// [`PlanError`]
    pub fn draft(
        &self,
        machine: Machine,
        wish: Wish,
        known: KnownOrders,
        id: DeploymentId,
    ) -> Result<Draft, PlanError> {
        let origin = wish.origin.unwrap_or_else(|| self.provenance.clone());
        let deployment = Deployment::new(DeploymentParts {
            machine,
            order: self.order(known, id)?,
            issued: self.now,
            expires: self.now.plus(self.valid_for),
            target: wish.target,
            held: wish.hold.held(),
            cancels: wish.cancels,
            renews: wish.renews,
            provenance: Provenance {
                revision: origin.revision,
                run_url: origin.run_url,
                rollout: wish.rollout,
                ..self.provenance.clone()
            },
        })
        .map_err(PlanError::Deployment)?;
        let draft = Draft::new(deployment);
        let names: Vec<&KeyName> = self.signers.iter().map(Signer::name).collect();
        draft.check_room(&names).map_err(PlanError::Sign)?;
        Ok(draft)
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
    use crate::testing::{block_on, id, key, machine};

    const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_000);

    fn signed(raise_epoch: bool, known: KnownOrders) -> Result<Signed, PlanError> {
        let orders = Orders {
            signers: &[Signer::Key(key("ci"))],
            provenance: &Provenance::default(),
            valid_for: Duration::from_secs(60),
            raise_epoch,
            now: NOW,
        };
        let goal = Goal::Rollback(RollbackTo::Deployment(id(1)));
        let wish = Wish::of(Target::new(goal));
        block_on(orders.sign(machine("web-1"), wish, known, id(9)))
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
        assert!(matches!(signed(true, known), Err(PlanError::Epoch)));
    }
}
