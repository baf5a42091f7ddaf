//! What a client publishes: PUBLISH, PUBREL, and their answers.

use std::sync::Arc;

use hoist_protocol::Channel;

use super::acks::{Answer, Verdict};
use super::opening::{RECEIVE_MAXIMUM, expires_at_ms};
use super::wanted::{Unverified, Wanted};
use super::{Admitted, Effect, Ended, Session, verdict};
use crate::deploys::{DeployRefusal, Deploys};
use crate::frame::{Ack, FrameError, Publish, ReasonCode, Said};
use crate::guard::admit_publication;
use crate::inbox::Ticket;
use crate::message::{Extras, Message, Qos};
use crate::store::{Outcome, Publication};

/// What the guard has let in.
pub(super) enum Entry {
    Admitted(Admitted),
    /// A deployment, of which the guard knows no more than its topic.
    Unverified(Unverified),
}

impl Entry {
    /// With a deployment verified by itself: a will comes alone.
    pub(super) fn verified(self, deploys: &Deploys) -> Result<Admitted, DeployRefusal> {
        match self {
            Self::Admitted(admitted) => Ok(admitted),
            Self::Unverified(unverified) => unverified.verify(deploys),
        }
    }
}

impl Session {
    pub(super) fn publish(&mut self, publish: Publish) -> Result<(), Ended> {
        let answer = match (publish.qos, publish.packet_id) {
            (Qos::AtLeastOnce, Some(id)) => Some((Ack::Publish, id)),
            (Qos::ExactlyOnce, Some(id)) => Some((Ack::Received, id)),
            _ => None,
        };
        if let Some((ack, id)) = answer {
            let known = self.kept.received.contains(&id);
            match ack {
                // The client does not know yet that it has arrived. While the store has it, the answer is to come.
                Ack::Received if known => {
                    if !self.kept.acks.owes(ack, id) {
                        self.acknowledge(Ack::Received, id, ReasonCode::Success, None);
                    }
                    return Ok(());
                }
                Ack::Received if self.kept.received.len() >= usize::from(RECEIVE_MAXIMUM) => {
                    return Err(FrameError::ReceiveMaximum.into());
                }
                Ack::Received => drop(self.kept.received.insert(id)),
                _ if known => return Err(FrameError::PacketId.into()),
                _ => {}
            }
        }
        let ticket = self.kept.acks.open(answer);
        let Publish {
            topic,
            payload,
            qos,
            retain,
            said,
            ..
        } = publish;
        match self.admit(&topic, payload, qos, retain, said) {
            Ok(Entry::Admitted(admitted)) => {
                self.want(Effect::Publish(admitted, ticket));
                Ok(())
            }
            Ok(Entry::Unverified(unverified)) => {
                let answered = answer.is_some();
                self.wanted.push(Wanted::Deploy {
                    unverified,
                    ticket,
                    answered,
                });
                Ok(())
            }
            Err(refusal) if self.can_refuse(answer.is_some()) => {
                self.refuse(ticket, refusal);
                Ok(())
            }
            Err(refusal) => {
                self.kept.acks.settle(ticket, verdict(&refusal));
                Err(refusal)
            }
        }
    }

    /// Whether a publish can be refused otherwise than by closing: MQTT 3.1.1 knows no other way, and at QoS 0 nobody
    /// is answered.
    pub(super) fn can_refuse(&self, answered: bool) -> bool {
        answered && self.speaks_v5()
    }

    /// Lets a publish or a will in, or says why not.
    pub(super) fn admit(
        &self,
        topic: &str,
        payload: Arc<[u8]>,
        qos: Qos,
        retain: bool,
        said: Said,
    ) -> Result<Entry, Ended> {
        let policy = &self.kept.policy;
        let topic = admit_publication(policy.rules, self.peer(), topic, &payload, retain)?;
        let extras = self.extras(said);
        let author = self.kept.author;
        if !topic.channel.is_retained() {
            return Ok(Entry::Admitted(Admitted::Relay(Message {
                topic,
                payload,
                qos,
                commit: None,
                author,
                extras,
            })));
        }
        let is_deployment = topic.channel == Channel::Deploy && !payload.is_empty();
        let publication = Publication {
            topic,
            qos,
            payload,
            author,
            extras,
            proof: None,
        };
        Ok(if is_deployment {
            Entry::Unverified(Unverified::new(publication))
        } else {
            Entry::Admitted(Admitted::Store(publication))
        })
    }

    fn extras(&self, said: Said) -> Option<Arc<Extras>> {
        if said == Said::default() {
            return None;
        }
        let now = self.kept.policy.clock;
        Some(Arc::new(Extras {
            properties: said.properties.into_boxed_slice(),
            expires_at_ms: said.expiry.map(|seconds| expires_at_ms(now(), seconds)),
        }))
    }

    /// What became of a publication.
    pub(crate) fn settled(&mut self, ticket: Ticket, outcome: Outcome) {
        match Ended::of_outcome(outcome) {
            Ok(()) => {
                self.kept.acks.settle(ticket, Verdict::Accepted);
                self.send_answers();
            }
            Err(refusal) if self.speaks_v5() => self.refuse(ticket, refusal),
            // Not acknowledged: MQTT 3.1.1 has no other way to say no.
            Err(refusal) => {
                self.kept.acks.settle(ticket, verdict(&refusal));
                self.end(refusal);
            }
        }
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Ended) {
        self.kept.acks.settle(ticket, verdict(&refusal));
        self.want(Effect::Refused(refusal));
        self.send_answers();
    }

    /// Sends the answers that are due. A session that has ended gives none: on MQTT 3.1.1 each would say that all is well.
    pub(super) fn send_answers(&mut self) {
        while self.ended.is_none()
            && let Some(answer) = self.kept.acks.next()
        {
            let Answer {
                ack,
                packet_id,
                verdict,
            } = answer;
            if verdict != Verdict::Accepted {
                // With that the exchange is over, and the id is free (MQTT 5, section 4.3.3).
                self.kept.received.remove(&packet_id);
            }
            match verdict {
                Verdict::Accepted => self.acknowledge(ack, packet_id, ReasonCode::Success, None),
                Verdict::Refused(code, why) if self.speaks_v5() => {
                    self.acknowledge(ack, packet_id, code, Some(&why));
                }
                // Refused on an earlier connection that spoke MQTT 5: this one has no word for it.
                Verdict::Refused(..) => {}
            }
        }
    }

    /// PUBREL: the client has heard that its message has arrived and will not send it again.
    pub(super) fn release(&mut self, packet_id: u16) {
        let known = self.kept.received.remove(&packet_id);
        let code = if known {
            ReasonCode::Success
        } else {
            ReasonCode::PacketIdNotFound
        };
        self.acknowledge(Ack::Complete, packet_id, code, None);
    }

    pub(super) fn acknowledge(
        &mut self,
        ack: Ack,
        packet_id: u16,
        code: ReasonCode,
        why: Option<&str>,
    ) {
        self.frames
            .acknowledge(ack, packet_id, code, why, &mut self.output);
    }
}
