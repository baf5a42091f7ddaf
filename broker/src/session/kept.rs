//! What of a session outlives its connection (MQTT 3.1.1, section 3.1.2.4; MQTT 5, section 4.1).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hoist_protocol::{Channel, Machine, Topic};

use super::acks::{Acks, Verdict};
use super::inflight::Inflight;
use super::outbox::{Delivery, Outbox};
use super::subscriptions::Subscriptions;
use super::{Ended, Policy, verdict};
use crate::guard::{Access, Peer};
use crate::inbox::{Event, Via};
use crate::message::{Author, Commit, Message, Qos};
use crate::store::Snapshot;

/// A session without its connection.
pub(crate) struct Kept {
    pub(super) peer: Arc<Peer>,
    pub(super) policy: Arc<Policy>,
    /// Who its messages are from, over all its connections.
    pub(super) author: Author,
    /// How long it lives without a connection.
    pub(super) expiry: Duration,
    /// Publications that wait for the store.
    pub(super) acks: Acks,
    /// Packet ids of messages of QoS 2 that were taken and whose PUBREL has not come.
    pub(super) received: BTreeSet<u16>,
    pub(super) subscriptions: Subscriptions,
    pub(super) outbox: Outbox,
    pub(super) inflight: Inflight,
}

impl Kept {
    pub(super) fn new(peer: Arc<Peer>, policy: Arc<Policy>, author: Author) -> Self {
        Self {
            peer,
            policy,
            author,
            expiry: Duration::ZERO,
            acks: Acks::default(),
            received: BTreeSet::new(),
            subscriptions: Subscriptions::default(),
            outbox: Outbox::default(),
            inflight: Inflight::default(),
        }
    }

    /// Whose it is.
    pub(crate) const fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// How long it lives without a connection.
    pub(crate) const fn expiry(&self) -> Duration {
        self.expiry
    }

    /// Whether more waits than a client may miss. Then it is better off with a new session: a subscription
    /// brings the newest of everything.
    pub(crate) fn has_missed_too_much(&self) -> bool {
        self.outbox.len() > self.policy.limits.absence.queued
    }

    /// How many log lines were dropped because there were too many.
    pub(crate) const fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    /// The machines that its subscriptions name.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        let agents = self.subscriptions.agents();
        agents
            .map(|agent| Machine::new(self.peer.fleet.clone(), agent.clone()))
            .collect()
    }

    /// Whether the client may read a topic.
    pub(super) fn allows(&self, topic: &Topic) -> bool {
        self.policy.rules.allow(&self.peer, Access::Read, topic)
    }

    /// Takes an event while there is no connection. Returns what has to be read from the store.
    pub(crate) fn on(&mut self, event: Event) -> Option<(Channel, Commit)> {
        match event {
            Event::Settled(ticket, outcome) => {
                let settled = match Ended::of_outcome(outcome) {
                    Ok(()) => Verdict::Accepted,
                    Err(refusal) => verdict(&refusal),
                };
                self.acks.settle(ticket, settled);
                self.discard_answers();
                None
            }
            Event::Message(message, via) => {
                self.deliver(message, via, true);
                None
            }
            Event::Gap(channel, since) => Some((channel, since)),
        }
    }

    /// Takes a message that may match a subscription. One of QoS 0 is not kept for an absent client.
    pub(super) fn deliver(&mut self, message: Arc<Message>, via: Via, absent: bool) {
        if !self.allows(&message.topic) {
            return;
        }
        let Some(wanted) = self.subscriptions.wants(&message, via, self.author) else {
            return;
        };
        if absent && wanted.qos == Qos::AtMostOnce {
            return;
        }
        self.outbox.push(Delivery {
            message,
            qos: wanted.qos,
            retain: wanted.retain,
            identifiers: wanted.identifiers,
        });
    }

    /// What the router had skipped on `channel` was read from the store, while there is no connection.
    pub(crate) fn refreshed_in_absence(&mut self, channel: Channel, changes: Snapshot) {
        self.refreshed(channel, changes, true);
    }

    pub(super) fn refreshed(&mut self, channel: Channel, changes: Snapshot, absent: bool) {
        for message in changes.messages {
            self.deliver(message, Via::Router, absent);
        }
        self.subscriptions.refresh(channel, changes.as_of);
    }

    /// Answers are for the connection that asked; what is sent again is answered again. What was refused has not
    /// arrived.
    fn discard_answers(&mut self) {
        while let Some(answer) = self.acks.next() {
            if answer.verdict != Verdict::Accepted {
                self.received.remove(&answer.packet_id);
            }
        }
    }

    /// The connection has ended.
    pub(super) fn lose_connection(&mut self) {
        self.discard_answers();
        self.acks.lose_connection();
        self.inflight.lose_connection();
    }
}
