//! Messages of QoS 1 and 2 on their way to a client, and what is owed when it comes back (MQTT 3.1.1, section 4.4).

use std::collections::VecDeque;

use super::outbox::Delivery;
use crate::message::Qos;

/// An answer of the client that fits no message on its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct NotOnItsWay;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) packet_id: u16,
    pub(super) delivery: Delivery,
    /// PUBREC has come: the message is there, PUBREL is what is sent again.
    pub(super) received: bool,
}

/// In the order in which they were first sent.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    entries: VecDeque<Entry>,
    /// How many of the first were sent on this connection.
    sent: usize,
    last_id: u16,
}

impl Inflight {
    /// How many were sent and are not settled.
    pub(super) const fn sent(&self) -> usize {
        self.sent
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A packet id that is free. There is one: far fewer than 65,535 are on their way.
    pub(super) fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.at(self.last_id).is_none() {
                return self.last_id;
            }
        }
    }

    /// Notes a message that is sent for the first time; everything before it was sent.
    pub(super) fn push(&mut self, packet_id: u16, delivery: Delivery) {
        debug_assert_eq!(self.sent, self.entries.len(), "older ones go first");
        self.entries.push_back(Entry {
            packet_id,
            delivery,
            received: false,
        });
        self.sent += 1;
    }

    /// The next one that was sent on an earlier connection and is to be sent again.
    pub(super) fn next_again(&self) -> Option<&Entry> {
        self.entries.get(self.sent)
    }

    /// Notes that it was sent.
    pub(super) fn sent_again(&mut self) {
        self.sent = (self.sent + 1).min(self.entries.len());
    }

    /// Gives up on the one that is to be sent again: the client does not take packets of its size.
    pub(super) fn skip(&mut self) {
        self.entries.remove(self.sent);
    }

    /// PUBACK or PUBCOMP.
    pub(super) fn settled(&mut self, packet_id: u16, qos: Qos) -> Result<(), NotOnItsWay> {
        let at = self.at(packet_id).ok_or(NotOnItsWay)?;
        let entry = &self.entries[at];
        if at >= self.sent
            || entry.delivery.qos != qos
            || entry.received != (qos == Qos::ExactlyOnce)
        {
            return Err(NotOnItsWay);
        }
        self.remove(at);
        Ok(())
    }

    /// PUBREC: the message is there, or was refused and is settled with that.
    pub(super) fn received(&mut self, packet_id: u16, accepted: bool) -> Result<(), NotOnItsWay> {
        let at = self.at(packet_id).ok_or(NotOnItsWay)?;
        let entry = &mut self.entries[at];
        if at >= self.sent || entry.delivery.qos != Qos::ExactlyOnce {
            return Err(NotOnItsWay);
        }
        entry.received = true;
        if !accepted {
            self.remove(at);
        }
        Ok(())
    }

    /// The connection has ended: everything is to be sent again.
    pub(super) const fn lose_connection(&mut self) {
        self.sent = 0;
    }

    fn remove(&mut self, at: usize) {
        self.entries.remove(at);
        self.sent -= 1;
        if self.entries.is_empty() {
            // An idle session keeps nothing.
            self.entries = VecDeque::new();
        }
    }

    fn at(&self, packet_id: u16) -> Option<usize> {
        // Most answers come in order.
        self.entries
            .iter()
            .position(|entry| entry.packet_id == packet_id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::tests::delivery;
    use super::*;

    fn with(qos: &[Qos]) -> Inflight {
        let mut inflight = Inflight::default();
        for qos in qos {
            let id = inflight.free_id();
            let delivery = Delivery {
                qos: *qos,
                ..delivery(0, Some(1))
            };
            inflight.push(id, delivery);
        }
        inflight
    }

    fn again(inflight: &mut Inflight) -> Vec<(u16, bool)> {
        inflight.lose_connection();
        let mut all = Vec::new();
        while let Some(entry) = inflight.next_again() {
            all.push((entry.packet_id, entry.received));
            inflight.sent_again();
        }
        all
    }

    #[test]
    fn what_is_not_settled_is_sent_again_in_its_order_and_with_its_id() {
        use Qos::{AtLeastOnce, ExactlyOnce};
        let mut inflight = with(&[AtLeastOnce, ExactlyOnce, AtLeastOnce, ExactlyOnce]);
        inflight.settled(1, AtLeastOnce).unwrap();
        inflight.received(4, true).unwrap();
        assert_eq!(again(&mut inflight), [(2, false), (3, false), (4, true)]);
        inflight.settled(3, AtLeastOnce).unwrap();
        inflight.settled(4, ExactlyOnce).unwrap();
        assert_eq!(again(&mut inflight), [(2, false)]);
    }

    #[test]
    fn an_answer_that_fits_nothing_is_none() {
        let mut inflight = with(&[Qos::AtLeastOnce, Qos::ExactlyOnce]);
        assert_eq!(inflight.settled(1, Qos::ExactlyOnce), Err(NotOnItsWay));
        assert_eq!(inflight.settled(2, Qos::ExactlyOnce), Err(NotOnItsWay));
        assert_eq!(inflight.received(1, true), Err(NotOnItsWay));
        assert_eq!(inflight.settled(9, Qos::AtLeastOnce), Err(NotOnItsWay));
        inflight.lose_connection();
        assert_eq!(
            inflight.settled(1, Qos::AtLeastOnce),
            Err(NotOnItsWay),
            "it was not sent on this connection"
        );
    }

    #[test]
    fn ids_go_round_and_miss_what_is_in_use() {
        let mut inflight = with(&[Qos::AtLeastOnce]);
        for n in 2..=u16::MAX {
            assert_eq!(inflight.free_id(), n);
        }
        assert_eq!(inflight.free_id(), 2);
    }
}
