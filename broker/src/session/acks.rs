//! Publications of a client that wait for the store, and the order of their answers.

use std::collections::VecDeque;

use crate::frame::{Ack, ReasonCode};
use crate::inbox::Ticket;

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    /// None for QoS 0, which nobody answers.
    answer: Option<(Ack, u16)>,
    settled: Option<Verdict>,
}

/// What became of a publication.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Accepted,
    /// On MQTT 5 alone: a reason, also in words.
    Refused(ReasonCode, String),
}

/// An answer that is due.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Answer {
    pub(super) ack: Ack,
    pub(super) packet_id: u16,
    pub(super) verdict: Verdict,
}

/// PUBACKs and PUBRECs leave in the order in which their PUBLISHes came (MQTT 3.1.1, section 4.6).
#[derive(Debug, Default)]
pub(super) struct Acks {
    waiting: VecDeque<Waiting>,
    tickets: u64,
}

impl Acks {
    /// Notes a publication.
    pub(super) fn open(&mut self, answer: Option<(Ack, u16)>) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.push_back(Waiting {
            ticket,
            answer,
            settled: None,
        });
        ticket
    }

    /// Notes what became of a publication.
    pub(super) fn settle(&mut self, ticket: Ticket, verdict: Verdict) {
        // Tickets count up, so that the first that is not below is the one, if it is there at all.
        let at = self
            .waiting
            .partition_point(|waiting| waiting.ticket < ticket);
        if let Some(waiting) = self.waiting.get_mut(at)
            && waiting.ticket == ticket
        {
            waiting.settled = Some(verdict);
        }
    }

    /// The next answer that is due.
    pub(super) fn next(&mut self) -> Option<Answer> {
        while self
            .waiting
            .front()
            .is_some_and(|waiting| waiting.settled.is_some())
        {
            let first = self.waiting.pop_front()?;
            if self.waiting.is_empty() {
                // An idle session keeps nothing.
                self.waiting = VecDeque::new();
            }
            if let (Some((ack, packet_id)), Some(verdict)) = (first.answer, first.settled) {
                return Some(Answer {
                    ack,
                    packet_id,
                    verdict,
                });
            }
        }
        None
    }

    /// Whether an answer to this packet id is still owed.
    pub(super) fn owes(&self, ack: Ack, packet_id: u16) -> bool {
        let answer = Some((ack, packet_id));
        self.waiting.iter().any(|waiting| waiting.answer == answer)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The connection has ended. What was published at QoS 1 is published again on the next one, and answered
    /// then; at QoS 2 the next one still owes the answer.
    pub(super) fn lose_connection(&mut self) {
        for waiting in &mut self.waiting {
            waiting.answer = waiting.answer.filter(|(ack, _)| *ack == Ack::Received);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(acks: &mut Acks) -> Vec<u16> {
        std::iter::from_fn(|| acks.next().map(|answer| answer.packet_id)).collect()
    }

    #[test]
    fn answers_leave_in_the_order_of_the_publishes() {
        let mut acks = Acks::default();
        let first = acks.open(Some((Ack::Publish, 7)));
        let second = acks.open(None);
        let third = acks.open(Some((Ack::Received, 3)));
        acks.settle(third, Verdict::Accepted);
        acks.settle(second, Verdict::Accepted);
        assert!(ids(&mut acks).is_empty());
        acks.settle(first, Verdict::Accepted);
        assert_eq!(ids(&mut acks), [7, 3]);
        assert_eq!(acks.len(), 0);
    }

    #[test]
    fn the_next_connection_owes_answers_of_qos_2_alone() {
        let mut acks = Acks::default();
        let first = acks.open(Some((Ack::Publish, 7)));
        let second = acks.open(Some((Ack::Received, 8)));
        acks.lose_connection();
        assert!(!acks.owes(Ack::Publish, 7));
        assert!(acks.owes(Ack::Received, 8));
        acks.settle(first, Verdict::Accepted);
        acks.settle(second, Verdict::Accepted);
        assert_eq!(ids(&mut acks), [8]);
    }
}
