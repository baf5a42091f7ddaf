//! What waits to be sent to a client.
//!
//! A client that keeps up gets every message. One that falls behind gets the newest of each retained topic and
//! loses log lines, so what it costs is bounded by the fleet, not by its slowness.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::message::{Message, Qos};

/// From how many waiting messages on older ones of a topic give way to newer ones.
const CONFLATE_FROM: usize = 1024;

/// Most log lines and echoes that wait; further ones are dropped. 256 × 8 KiB = 2 MiB at most.
const RELAYED_LEN: usize = 256;

/// A message on its way to one client.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: Qos,
    /// The retain flag: it is what was retained when the client subscribed, not news; or the client wants the
    /// flag as it was published.
    pub(crate) retain: bool,
    /// Of the subscriptions that it matches, on MQTT 5.
    pub(crate) identifiers: Vec<u32>,
}

/// The queue of one session.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Delivery>,
    relayed: usize,
    /// The queue's length after it was last conflated.
    conflated: usize,
    dropped: u64,
}

impl Outbox {
    pub(crate) fn push(&mut self, delivery: Delivery) {
        if delivery.message.commit.is_none() {
            if self.relayed == RELAYED_LEN {
                self.dropped += 1;
                return;
            }
            self.relayed += 1;
        }
        self.queue.push_back(delivery);
        // Doubling keeps the cost of conflating constant for each message.
        if self.queue.len() >= CONFLATE_FROM.max(2 * self.conflated) {
            self.conflate();
        }
    }

    pub(crate) fn front(&self) -> Option<&Delivery> {
        self.queue.front()
    }

    /// Takes the first one out.
    pub(crate) fn pop(&mut self) -> Option<Delivery> {
        let first = self.queue.pop_front();
        if first
            .as_ref()
            .is_some_and(|delivery| delivery.message.commit.is_none())
        {
            self.relayed -= 1;
        }
        if self.queue.is_empty() {
            // An idle session keeps nothing.
            *self = Self {
                dropped: self.dropped,
                ..Self::default()
            };
        }
        first
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many log lines and echoes were dropped.
    pub(crate) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Keeps the newest of each retained topic, where it stands.
    fn conflate(&mut self) {
        let mut seen = HashSet::new();
        let mut kept: VecDeque<Delivery> = VecDeque::with_capacity(self.queue.len());
        for delivery in self.queue.drain(..).rev() {
            let retained = delivery.message.commit.is_some();
            if !retained || seen.insert(Arc::clone(&delivery.message).topic.clone()) {
                kept.push_front(delivery);
            }
        }
        self.conflated = kept.len();
        self.queue = kept;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hoist_protocol::{AgentName, Channel, FleetName, Machine};

    use crate::message::Commit;

    use super::*;

    pub(crate) fn delivery(agent: usize, commit: Option<u64>) -> Delivery {
        let channel = if commit.is_some() {
            Channel::Status
        } else {
            Channel::Log
        };
        let fleet = FleetName::new("prod").unwrap();
        let machine = Machine::new(fleet, AgentName::new(format!("web-{agent}")).unwrap());
        Delivery {
            message: Arc::new(Message {
                topic: machine.topic(channel),
                payload: Arc::from(b"x".as_slice()),
                qos: Qos::AtLeastOnce,
                commit: commit.map(Commit::new),
                author: Default::default(),
                extras: None,
            }),
            qos: Qos::AtLeastOnce,
            retain: false,
            identifiers: Vec::new(),
        }
    }

    fn drain(mut outbox: Outbox) -> Vec<Option<u64>> {
        let mut commits = Vec::new();
        while let Some(first) = outbox.pop() {
            commits.push(first.message.commit.map(Commit::number));
        }
        commits
    }

    #[test]
    fn who_keeps_up_gets_everything_in_order() {
        let mut outbox = Outbox::default();
        for n in 1..100 {
            outbox.push(delivery(0, Some(n)));
        }
        assert_eq!(drain(outbox), (1..100).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn who_falls_behind_gets_the_newest_of_each_topic() {
        let mut outbox = Outbox::default();
        for n in 0..100_000 {
            outbox.push(delivery(usize::try_from(n % 3).unwrap(), Some(n)));
            assert!(outbox.queue.len() <= CONFLATE_FROM, "the queue is bounded");
        }
        let commits = drain(outbox);
        assert!(commits.is_sorted());
        assert_eq!(
            commits[commits.len() - 3..],
            [Some(99_997), Some(99_998), Some(99_999)]
        );
    }

    #[test]
    fn many_topics_are_all_kept() {
        let mut outbox = Outbox::default();
        for n in 0..10_000 {
            outbox.push(delivery(n, Some(n as u64)));
        }
        assert_eq!(drain(outbox).len(), 10_000);
    }

    #[test]
    fn log_lines_beyond_the_limit_are_dropped_and_counted() {
        let mut outbox = Outbox::default();
        for _ in 0..RELAYED_LEN + 5 {
            outbox.push(delivery(0, None));
        }
        assert_eq!(outbox.dropped(), 5);
        assert_eq!(drain(outbox).len(), RELAYED_LEN);
    }
}
