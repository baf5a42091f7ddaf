//! What a client is sent: messages within what it takes at once, and its PUBACK, PUBREC and PUBCOMP.

use super::inflight::Entry;
use super::{Ended, Session};
use crate::frame::{Ack, FrameError, Frames, Outgoing, ReasonCode, Sent};
use crate::message::Qos;
use crate::session::outbox::Delivery;

/// From how many bytes that wait to be written on no further message is made into bytes.
pub(super) const OUTPUT_LEN: usize = 32 * 1024;

/// From how many bytes that wait to be written on nothing more is read: more than messages alone ever are, so that a
/// client that takes these slowly is still heard.
const CONGESTED_LEN: usize = 128 * 1024;

impl Session {
    /// Whether so many answers wait to be written that the client has to take some first.
    pub(crate) const fn is_congested(&self) -> bool {
        self.output.len() >= CONGESTED_LEN
    }

    /// The bytes to write. The writer removes from the front what is written.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        while self.ended.is_none()
            && self.is_open()
            && self.output.len() < OUTPUT_LEN
            && (self.send_again() || self.send_next())
        {}
        &mut self.output
    }

    /// Sends the next message that an earlier connection has sent and that was not settled. False when there is
    /// none, or no room for it.
    fn send_again(&mut self) -> bool {
        let inflight = &mut self.kept.inflight;
        if inflight.sent() >= self.receive_maximum {
            return false;
        }
        let Some(entry) = inflight.next_again() else {
            return false;
        };
        let Entry {
            packet_id,
            delivery,
            received,
        } = entry;
        if *received {
            let (ack, code) = (Ack::Release, ReasonCode::Success);
            self.frames
                .acknowledge(ack, *packet_id, code, None, &mut self.output);
        } else {
            let now = (self.kept.policy.clock)();
            // What has expired was begun in time.
            let left = delivery.message.expiry(now);
            let sent = send(
                &self.frames,
                delivery,
                Some(*packet_id),
                true,
                left,
                &mut self.output,
            );
            if sent == Sent::TooLarge {
                inflight.skip();
                return true;
            }
        }
        inflight.sent_again();
        true
    }

    /// Sends the next message that was never sent. False when there is none, or no room for it.
    fn send_next(&mut self) -> bool {
        let Some(delivery) = self.kept.outbox.front() else {
            return false;
        };
        let assured = delivery.qos != Qos::AtMostOnce;
        // What an earlier connection has sent goes first.
        let all = self.kept.inflight.len();
        if assured && (all >= self.receive_maximum || all > self.kept.inflight.sent()) {
            return false;
        }
        let left = delivery.message.expiry((self.kept.policy.clock)());
        if left == Some(0) {
            // It has expired before it was begun (MQTT 5, section 3.3.2.3.3).
            return self.kept.outbox.pop().is_some();
        }
        let packet_id = assured.then(|| self.kept.inflight.free_id());
        let sent = send(
            &self.frames,
            delivery,
            packet_id,
            false,
            left,
            &mut self.output,
        );
        let Some(delivery) = self.kept.outbox.pop() else {
            return false;
        };
        self.sent += u64::from(sent == Sent::Yes);
        if let (Some(packet_id), Sent::Yes) = (packet_id, sent) {
            self.kept.inflight.push(packet_id, delivery);
        }
        true
    }

    /// PUBACK or PUBCOMP: a message is settled.
    pub(super) fn arrived(&mut self, packet_id: u16, qos: Qos) -> Result<(), Ended> {
        let settled = self.kept.inflight.settled(packet_id, qos);
        settled.map_err(|_| FrameError::PacketId)?;
        self.progress = true;
        Ok(())
    }

    /// PUBREC: a message of QoS 2 is there, or is refused.
    pub(super) fn received(&mut self, packet_id: u16, accepted: bool) -> Result<(), Ended> {
        self.progress = true;
        let known = self.kept.inflight.received(packet_id, accepted).is_ok();
        if !accepted {
            return if known {
                Ok(())
            } else {
                Err(FrameError::PacketId.into())
            };
        }
        let code = if known {
            ReasonCode::Success
        } else {
            // Of a message that a session before this one has sent: the client may forget it.
            ReasonCode::PacketIdNotFound
        };
        self.acknowledge(Ack::Release, packet_id, code, None);
        Ok(())
    }
}

fn send(
    frames: &Frames,
    delivery: &Delivery,
    packet_id: Option<u16>,
    again: bool,
    expiry: Option<u32>,
    out: &mut Vec<u8>,
) -> Sent {
    let outgoing = Outgoing {
        message: &delivery.message,
        qos: delivery.qos,
        packet_id,
        retain: delivery.retain,
        again,
        expiry,
        identifiers: &delivery.identifiers,
    };
    frames.publish(&outgoing, out)
}
