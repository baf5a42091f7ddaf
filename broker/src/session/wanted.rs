//! What a session wants done, and deployments, which are verified on the way out.
//!
//! Deployments that came in one read are verified together, which costs far less than one after the other.

use hoist_protocol::{Machine, ScreenedDeployment};

use super::{Admitted, Effect, Ended, Session, verdict};
use crate::deploys::{DeployRefusal, Deploys};
use crate::inbox::Ticket;
use crate::store::Publication;

/// What is wanted, in order.
#[derive(Debug)]
pub(super) enum Wanted {
    Effect(Effect),
    /// To be published if it verifies.
    Deploy {
        unverified: Unverified,
        ticket: Ticket,
        /// Whether the client is told what became of it.
        answered: bool,
    },
}

impl Wanted {
    /// Of something published.
    const fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Effect(Effect::Publish(_, ticket)) | Self::Deploy { ticket, .. } => Some(*ticket),
            Self::Effect(_) => None,
        }
    }
}

/// A deployment before anybody has looked whether a trusted key signed it.
#[derive(Debug)]
pub(super) struct Unverified(Publication);

impl Unverified {
    pub(super) const fn new(publication: Publication) -> Self {
        Self(publication)
    }

    fn signed(&self) -> (&Machine, &[u8]) {
        (&self.0.topic.machine, &self.0.payload)
    }

    /// Looks at this one alone.
    ///
    /// # Errors
    /// [`DeployRefusal::Unverified`]
    pub(super) fn verify(self, deploys: &Deploys) -> Result<Admitted, DeployRefusal> {
        let proof = deploys.verify_one(&self.0.topic.machine, &self.0.payload)?;
        Ok(self.proven(proof))
    }

    fn proven(self, proof: Option<ScreenedDeployment>) -> Admitted {
        Admitted::Store(Publication { proof, ..self.0 })
    }
}

impl Session {
    pub(super) fn want(&mut self, effect: Effect) {
        self.wanted.push(Wanted::Effect(effect));
    }

    fn verify(&self, wanted: &[Wanted]) -> Vec<Result<Option<ScreenedDeployment>, DeployRefusal>> {
        let deploys: Vec<_> = wanted
            .iter()
            .filter_map(|wanted| match wanted {
                Wanted::Deploy { unverified, .. } => Some(unverified.signed()),
                Wanted::Effect(_) => None,
            })
            .collect();
        if deploys.is_empty() {
            return Vec::new();
        }
        let known = &self.kept.policy.deploys;
        known.verify(&self.peer().fleet, &deploys)
    }

    /// Takes the effects out. Deployments among them are verified; those that do not are refused, which ends the
    /// session where nothing else can tell the client.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        let wanted = std::mem::take(&mut self.wanted);
        let mut verified = self.verify(&wanted).into_iter();
        let mut effects = Vec::with_capacity(wanted.len());
        let mut closed_for = None;
        for wanted in wanted {
            if let (Some(refusal), Some(ticket)) = (&closed_for, wanted.ticket()) {
                // It came after what the connection is closed for. A client whose session is kept sends it again.
                self.kept.acks.settle(ticket, verdict(refusal));
                continue;
            }
            match wanted {
                Wanted::Effect(effect) => effects.push(effect),
                Wanted::Deploy {
                    unverified,
                    ticket,
                    answered,
                } => match verified.next() {
                    Some(Ok(proof)) => {
                        effects.push(Effect::Publish(unverified.proven(proof), ticket));
                    }
                    Some(Err(refusal)) => {
                        let refusal = Ended::from(refusal);
                        self.kept.acks.settle(ticket, verdict(&refusal));
                        if self.can_refuse(answered) {
                            effects.push(Effect::Refused(refusal));
                        } else {
                            closed_for = Some(refusal);
                        }
                    }
                    // Each has its answer. If one had not, it would not be published.
                    None => self.end(Ended::BrokerFailed),
                },
            }
        }
        match closed_for {
            // Also when something that came later has ended the session: it never got so far.
            Some(refusal) => self.ended = Some(refusal),
            None => self.send_answers(),
        }
        effects
    }
}
