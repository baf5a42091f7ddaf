//! The retained messages in memory: all reads go here, the disk is read once, at the start.

use std::array;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use hoist_protocol::{AgentName, Channel, FleetName, Machine, Presence, Topic};

use super::Publication;
use super::quota::Usage;
use crate::guard::{Agents, Pattern};
use crate::message::{Author, Commit, Message, Qos};

/// The channels that are retained, in the order of their slots.
const RETAINED: [Channel; 4] = [
    Channel::Deploy,
    Channel::Status,
    Channel::Presence,
    Channel::History,
];

type Slots = [Option<Arc<Message>>; RETAINED.len()];

/// How many clearings are remembered, of all fleets together, so that a subscriber that missed one can be told: far
/// more than come while it catches up. They take no room of a fleet's quota.
const CLEARED: usize = 10_000;

/// All retained messages, by machine and channel.
#[derive(Debug, Default)]
pub(crate) struct Index {
    fleets: HashMap<FleetName, BTreeMap<AgentName, Slots>>,
    /// The last clearings, in their order.
    cleared: VecDeque<Arc<Message>>,
    last: Commit,
    /// What each fleet retains.
    usage: HashMap<FleetName, Usage>,
    /// How many messages are retained.
    len: usize,
}

/// What was retained at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// The messages.
    pub(crate) messages: Vec<Arc<Message>>,
    /// The last commit that they contain.
    pub(crate) as_of: Commit,
}

impl Index {
    /// An index of what was stored; every machine in it is offline until it connects.
    pub(crate) fn of_stored(stored: Vec<Publication>) -> Self {
        let mut index = Self::default();
        let mut machines: Vec<Machine> = Vec::new();
        for publication in stored {
            if machines.last() != Some(&publication.topic.machine) {
                machines.push(publication.topic.machine.clone());
            }
            index.apply(publication);
        }
        machines.sort_unstable();
        machines.dedup();
        let offline: Arc<[u8]> = Arc::from(Presence::Offline.as_str().as_bytes());
        for machine in machines {
            index.apply(Publication {
                topic: machine.topic(Channel::Presence),
                qos: Qos::AtLeastOnce,
                payload: Arc::clone(&offline),
                author: Author::default(),
                extras: None,
                proof: None,
            });
        }
        index
    }

    /// The message retained on `topic`.
    pub(crate) fn get(&self, topic: &Topic) -> Option<&Arc<Message>> {
        let slots = self
            .fleets
            .get(&topic.machine.fleet)?
            .get(&topic.machine.agent)?;
        slots[slot(topic.channel)?].as_ref()
    }

    /// Retains a publication, or clears its topic when the payload is empty. None when there was nothing to
    /// clear, or the channel is not retained.
    pub(crate) fn apply(&mut self, publication: Publication) -> Option<Arc<Message>> {
        let Publication {
            topic,
            qos,
            payload,
            author,
            extras,
            proof: _,
        } = publication;
        let slot = slot(topic.channel)?;
        if payload.is_empty() && self.get(&topic).is_none() {
            return None;
        }
        self.last = self.last.next();
        let message = Arc::new(Message {
            topic,
            payload,
            qos,
            commit: Some(self.last),
            author,
            extras,
        });
        let before = if message.is_clear() {
            self.clear(slot, &message)
        } else {
            self.slots(&message.topic.machine)[slot].replace(Arc::clone(&message))
        };
        let usage = self.usage.entry(message.topic.machine.fleet.clone());
        usage.or_default().change(before.as_deref(), &message);
        self.len -= usize::from(before.is_some());
        self.len += usize::from(!message.is_clear());
        Some(message)
    }

    fn slots(&mut self, machine: &Machine) -> &mut Slots {
        let agents = self.fleets.entry(machine.fleet.clone()).or_default();
        let slots = agents.entry(machine.agent.clone());
        slots.or_insert_with(|| array::from_fn(|_| None))
    }

    /// Takes away what is retained and remembers that it was; of a machine without any message nothing is left.
    fn clear(&mut self, slot: usize, clearing: &Arc<Message>) -> Option<Arc<Message>> {
        let machine = &clearing.topic.machine;
        let slots = self.slots(machine);
        let before = slots[slot].take();
        let empty = slots.iter().all(Option::is_none);
        if empty && let Some(agents) = self.fleets.get_mut(&machine.fleet) {
            agents.remove(&machine.agent);
        }
        if self.cleared.len() == CLEARED {
            self.cleared.pop_front();
        }
        self.cleared.push_back(Arc::clone(clearing));
        before
    }

    /// What each fleet retains.
    pub(super) const fn usages(&self) -> &HashMap<FleetName, Usage> {
        &self.usage
    }

    /// What a fleet retains.
    pub(super) fn usage(&self, fleet: &FleetName) -> Usage {
        self.usage.get(fleet).copied().unwrap_or_default()
    }

    /// How many messages are retained.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// All retained messages on topics that `wanted` picks.
    pub(super) fn all(&self, wanted: impl Fn(&Topic) -> bool) -> Vec<Arc<Message>> {
        let slots = self.fleets.values().flat_map(BTreeMap::values);
        let messages = slots.flatten().flatten();
        messages
            .filter(|message| wanted(&message.topic))
            .cloned()
            .collect()
    }

    /// What is retained in `fleet`, of what `pattern` matches and `allow` lets through.
    pub(crate) fn snapshot(
        &self,
        fleet: &FleetName,
        pattern: &Pattern,
        allow: impl Fn(&Topic) -> bool,
    ) -> Snapshot {
        let messages = self
            .matching(fleet, pattern)
            .filter(|message| allow(&message.topic))
            .cloned()
            .collect();
        Snapshot {
            messages,
            as_of: self.last,
        }
    }

    /// What has changed in `fleet` after `since`, clearings included, of what `pattern` matches; in the order
    /// of the changes.
    pub(crate) fn changes(&self, fleet: &FleetName, pattern: &Pattern, since: Commit) -> Snapshot {
        let changed = self.matching(fleet, pattern);
        let is_news = |message: &Arc<Message>| message.commit > Some(since);
        let known = self.cleared.partition_point(|clearing| !is_news(clearing));
        let cleared = self.cleared.range(known..).filter(|clearing| {
            let topic = &clearing.topic;
            topic.machine.fleet == *fleet && pattern.matches(topic) && self.get(topic).is_none()
        });
        let mut messages: Vec<_> = changed
            .filter(|message| is_news(message))
            .chain(cleared)
            .cloned()
            .collect();
        messages.sort_unstable_by_key(|message| message.commit);
        Snapshot {
            messages,
            as_of: self.last,
        }
    }

    fn matching<'a>(
        &'a self,
        fleet: &FleetName,
        pattern: &'a Pattern,
    ) -> impl Iterator<Item = &'a Arc<Message>> {
        let agents = self.fleets.get(fleet);
        let (all, one) = match &pattern.agents {
            Agents::All => (agents.map(BTreeMap::values), None),
            Agents::One(name) => (None, agents.and_then(|agents| agents.get(name))),
        };
        all.into_iter()
            .flatten()
            .chain(one)
            .flatten()
            .flatten()
            .filter(|message| pattern.channels.hold(message.topic.channel))
    }
}

fn slot(channel: Channel) -> Option<usize> {
    RETAINED.iter().position(|retained| *retained == channel)
}

#[cfg(test)]
mod tests {
    use crate::guard::Channels;
    use crate::message::Extras;

    use super::*;

    fn topic(agent: &str, channel: Channel) -> Topic {
        let fleet = FleetName::new("prod").unwrap();
        Machine::new(fleet, AgentName::new(agent).unwrap()).topic(channel)
    }

    fn publication(agent: &str, channel: Channel, payload: &str) -> Publication {
        Publication {
            topic: topic(agent, channel),
            qos: Qos::AtLeastOnce,
            payload: Arc::from(payload.as_bytes()),
            author: Author::default(),
            extras: None,
            proof: None,
        }
    }

    fn retain(index: &mut Index, agent: &str, channel: Channel, payload: &str) -> bool {
        index.apply(publication(agent, channel, payload)).is_some()
    }

    const ALL: Pattern = Pattern {
        agents: Agents::All,
        channels: Channels::All,
    };

    fn texts(messages: &[Arc<Message>]) -> Vec<String> {
        let text = |m: &Arc<Message>| {
            format!("{}={}", m.topic, String::from_utf8_lossy(&m.payload)).split_off(14)
        };
        messages.iter().map(text).collect()
    }

    #[test]
    fn every_retained_channel_has_a_slot_and_no_other() {
        for channel in Channel::ALL {
            assert_eq!(slot(channel).is_some(), channel.is_retained(), "{channel}");
        }
    }

    #[test]
    fn a_snapshot_holds_the_newest_of_what_is_allowed() {
        let mut index = Index::default();
        retain(&mut index, "b", Channel::Status, "1");
        retain(&mut index, "a", Channel::Status, "2");
        retain(&mut index, "a", Channel::Deploy, "3");
        retain(&mut index, "b", Channel::Status, "4");
        let fleet = FleetName::new("prod").unwrap();
        let snapshot = index.snapshot(&fleet, &ALL, |topic| topic.channel == Channel::Status);
        assert_eq!(texts(&snapshot.messages), ["a/status=2", "b/status=4"]);
        assert_eq!(snapshot.as_of, Commit::new(4));
        let other = FleetName::new("test").unwrap();
        assert!(index.snapshot(&other, &ALL, |_| true).messages.is_empty());
    }

    #[test]
    fn a_clearing_empties_the_snapshot_and_is_told_to_whom_missed_it() {
        let mut index = Index::default();
        retain(&mut index, "a", Channel::Status, "1");
        retain(&mut index, "b", Channel::Status, "2");
        assert!(retain(&mut index, "a", Channel::Status, ""));
        assert!(
            !retain(&mut index, "a", Channel::Status, ""),
            "it was cleared already"
        );
        assert!(
            !retain(&mut index, "c", Channel::Status, ""),
            "it never was there"
        );
        let fleet = FleetName::new("prod").unwrap();
        let snapshot = index.snapshot(&fleet, &ALL, |_| true);
        assert_eq!(texts(&snapshot.messages), ["b/status=2"]);
        assert_eq!(index.get(&topic("a", Channel::Status)), None);
        let changes = index.changes(&fleet, &ALL, Commit::new(1));
        assert_eq!(texts(&changes.messages), ["b/status=2", "a/status="]);
    }

    #[test]
    fn what_is_cleared_takes_no_room_and_is_told_until_it_is_retained_again() {
        let mut index = Index::default();
        for n in 0..CLEARED + 5 {
            retain(&mut index, &format!("m-{n}"), Channel::Status, "x");
            retain(&mut index, &format!("m-{n}"), Channel::Status, "");
        }
        let fleet = FleetName::new("prod").unwrap();
        assert!(index.fleets[&fleet].is_empty());
        assert_eq!((index.len(), index.usage(&fleet)), (0, Usage::default()));
        let changes = index.changes(&fleet, &ALL, Commit::default());
        assert_eq!(changes.messages.len(), CLEARED);
        let all_but_two = Commit::new(index.last.number() - 3);
        let changes = index.changes(&fleet, &ALL, all_but_two);
        assert_eq!(
            texts(&changes.messages),
            ["m-10003/status=", "m-10004/status="]
        );
        assert!(index.changes(&fleet, &ALL, index.last).messages.is_empty());
        retain(&mut index, "m-9", Channel::Status, "again");
        let one = Pattern {
            agents: Agents::One(AgentName::new("m-9").unwrap()),
            channels: Channels::All,
        };
        let changes = index.changes(&fleet, &one, Commit::default());
        assert_eq!(texts(&changes.messages), ["m-9/status=again"]);
    }

    #[test]
    fn properties_take_room_as_payloads_do() {
        let mut index = Index::default();
        let fleet = FleetName::new("prod").unwrap();
        retain(&mut index, "a", Channel::Status, "x");
        let without = index.usage(&fleet).bytes;
        index.apply(Publication {
            extras: Some(Arc::new(Extras {
                properties: Box::from([0; 100]),
                expires_at_ms: None,
            })),
            ..publication("a", Channel::Status, "x")
        });
        assert_eq!(index.usage(&fleet).bytes, without + 100);
        retain(&mut index, "a", Channel::Status, "");
        assert_eq!(index.usage(&fleet), Usage::default());
    }

    #[test]
    fn after_a_start_every_known_machine_is_offline() {
        let stored = ["a", "b"].map(|agent| publication(agent, Channel::Status, "x"));
        let index = Index::of_stored(stored.to_vec());
        for agent in ["a", "b"] {
            let presence = index.get(&topic(agent, Channel::Presence)).unwrap();
            assert_eq!(&*presence.payload, b"offline");
        }
    }
}
