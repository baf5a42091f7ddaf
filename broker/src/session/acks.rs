//! Publications of a client that wait for the store, and the order of their acknowledgements.

use std::collections::VecDeque;

use crate::inbox::Ticket;

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    /// None for QoS 0, which nobody acknowledges.
    packet_id: Option<u16>,
    settled: bool,
}

/// PUBACKs leave in the order in which their PUBLISHes came (MQTT 3.1.1, section 4.6).
#[derive(Debug, Default)]
pub(crate) struct Acks {
    waiting: VecDeque<Waiting>,
    tickets: u64,
}

impl Acks {
    /// Notes a publication.
    pub(crate) fn open(&mut self, packet_id: Option<u16>) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.push_back(Waiting {
            ticket,
            packet_id,
            settled: false,
        });
        ticket
    }

    /// Notes that a publication is retained or delivered.
    pub(crate) fn settle(&mut self, ticket: Ticket) {
        let found = self
            .waiting
            .iter_mut()
            .find(|waiting| waiting.ticket == ticket);
        if let Some(waiting) = found {
            waiting.settled = true;
        }
    }

    /// The next packet id to acknowledge.
    pub(crate) fn next(&mut self) -> Option<u16> {
        while self.waiting.front().is_some_and(|waiting| waiting.settled) {
            let first = self.waiting.pop_front()?;
            if self.waiting.is_empty() {
                // An idle session keeps nothing.
                self.waiting = VecDeque::new();
            }
            if first.packet_id.is_some() {
                return first.packet_id;
            }
        }
        None
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_leave_in_the_order_of_the_publishes() {
        let mut acks = Acks::default();
        let first = acks.open(Some(7));
        let second = acks.open(None);
        let third = acks.open(Some(3));
        acks.settle(third);
        acks.settle(second);
        assert_eq!(acks.next(), None);
        acks.settle(first);
        assert_eq!(acks.next(), Some(7));
        assert_eq!(acks.next(), Some(3));
        assert_eq!((acks.next(), acks.len()), (None, 0));
    }
}
