//! What a client has subscribed to, and which messages that means.

use std::ops::Range;

use hoist_protocol::{AgentName, Channel, Topic};

use crate::guard::{Agents, Pattern};
use crate::inbox::Via;
use crate::message::{Author, Commit, Message, Qos};

/// One granted subscription.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    /// The filter as it was sent.
    pub(crate) filter: String,
    pub(crate) pattern: Pattern,
    pub(crate) qos: Qos,
    /// What the client has published itself does not come back.
    pub(crate) no_local: bool,
    /// Messages keep the retain flag that they were published with.
    pub(crate) retain_as_published: bool,
    /// The client's number for it.
    pub(crate) identifier: Option<u32>,
    /// The last commit that its snapshot holds: what comes up to it has been delivered.
    pub(crate) as_of: Commit,
}

/// How a message is to be delivered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) identifiers: Vec<u32>,
}

/// The subscriptions of one session.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    /// Of one machine each, in the order of their names.
    exact: Vec<(AgentName, Subscription)>,
    /// Of all machines.
    wild: Vec<Subscription>,
    /// Up to which commits the channels were read from the store after a gap.
    refreshed: Vec<(Channel, Commit)>,
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        self.exact.len() + self.wild.len()
    }

    /// How many are served by the router.
    pub(crate) fn wild_len(&self) -> usize {
        self.wild.len()
    }

    /// Adds one; the same filter again replaces the one before.
    pub(crate) fn insert(&mut self, subscription: Subscription) {
        if let Some(before) = self.find_mut(&subscription.filter) {
            *before = subscription;
            return;
        }
        match &subscription.pattern.agents {
            Agents::One(agent) => {
                let agent = agent.clone();
                let at = self.exact.partition_point(|(other, _)| *other <= agent);
                if self.exact.len() < 4 {
                    // An agent has one or two: no room for more is kept.
                    self.exact.reserve_exact(1);
                }
                self.exact.insert(at, (agent, subscription));
            }
            Agents::All => self.wild.push(subscription),
        }
    }

    /// Removes one. Returns the machine that no subscription names any more.
    pub(crate) fn remove(&mut self, filter: &str) -> Option<AgentName> {
        let Some(range) = self.named_by(filter) else {
            self.wild
                .retain(|subscription| subscription.filter != filter);
            return None;
        };
        let last = range.len() == 1;
        let of_agent = &self.exact[range.clone()];
        let at = of_agent.iter().position(|(_, it)| it.filter == filter)?;
        let (agent, _) = self.exact.remove(range.start + at);
        last.then_some(agent)
    }

    /// The machines that are named, some perhaps twice.
    pub(crate) fn agents(&self) -> impl Iterator<Item = &AgentName> {
        self.exact.iter().map(|(agent, _)| agent)
    }

    /// The commit up to which the subscription with this filter has everything, when there is one.
    pub(crate) fn as_of(&self, filter: &str) -> Option<Commit> {
        let found = match self.named_by(filter) {
            Some(range) => {
                let mut of_agent = self.exact[range].iter().map(|(_, it)| it);
                of_agent.find(|it| it.filter == filter)
            }
            None => self.wild.iter().find(|it| it.filter == filter),
        };
        Some(found?.as_of)
    }

    /// How a message is delivered to the session `me`; none when no subscription wants it, or has it already.
    pub(crate) fn wants(&self, message: &Message, via: Via, me: Author) -> Option<Wanted> {
        match via {
            Via::Direct => {
                let of_machine = self.of(&message.topic).iter();
                wanted(
                    of_machine.map(|(_, subscription)| subscription),
                    message,
                    me,
                )
            }
            Via::Router if self.is_refreshed(message) => None,
            Via::Router => wanted(self.wild.iter(), message, me),
        }
    }

    /// Notes that everything of `channel` up to `as_of` was read from the store.
    pub(crate) fn refresh(&mut self, channel: Channel, as_of: Commit) {
        self.refreshed.retain(|(other, _)| *other != channel);
        self.refreshed.push((channel, as_of));
    }

    fn is_refreshed(&self, message: &Message) -> bool {
        self.refreshed.iter().any(|(channel, as_of)| {
            *channel == message.topic.channel && message.commit.is_some_and(|c| c <= *as_of)
        })
    }

    fn of(&self, topic: &Topic) -> &[(AgentName, Subscription)] {
        &self.exact[self.range_of(topic.machine.agent.as_str())]
    }

    fn find_mut(&mut self, filter: &str) -> Option<&mut Subscription> {
        let mut of_agent = match self.named_by(filter) {
            Some(range) => self.exact[range].iter_mut().map(|(_, it)| it),
            None => return self.wild.iter_mut().find(|it| it.filter == filter),
        };
        of_agent.find(|it| it.filter == filter)
    }

    /// Where the subscriptions are of the machine that a filter names; none when it names none. A client may have
    /// thousands, and ask for each of them in one packet.
    fn named_by(&self, filter: &str) -> Option<Range<usize>> {
        let agent = filter.split('/').nth(3)?;
        (agent != "+" && agent != "#").then(|| self.range_of(agent))
    }

    fn range_of(&self, agent: &str) -> Range<usize> {
        let before = |other: &AgentName| other.as_str() < agent;
        let start = self.exact.partition_point(|(other, _)| before(other));
        let end = self.exact[start..].partition_point(|(other, _)| other.as_str() == agent);
        start..start + end
    }
}

/// One delivery for all of the subscriptions that want a message (section 3.3.5 of MQTT 3.1.1 and 3.3.4 of MQTT 5).
fn wanted<'a>(
    subscriptions: impl Iterator<Item = &'a Subscription>,
    message: &Message,
    me: Author,
) -> Option<Wanted> {
    let mut wanted: Option<Wanted> = None;
    for subscription in subscriptions {
        let new = message
            .commit
            .is_none_or(|commit| commit > subscription.as_of);
        let own = subscription.no_local && message.author == me;
        if !new || own || !subscription.pattern.matches(&message.topic) {
            continue;
        }
        let all = wanted.get_or_insert(Wanted {
            qos: Qos::AtMostOnce,
            retain: false,
            identifiers: Vec::new(),
        });
        all.qos = all.qos.max(subscription.qos.min(message.qos));
        // Everything on a retained channel was published with the flag, and nothing else was.
        all.retain |= subscription.retain_as_published && message.commit.is_some();
        all.identifiers.extend(subscription.identifier);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hoist_protocol::{FleetName, Machine};

    use super::*;

    fn fleet() -> FleetName {
        FleetName::new("prod").unwrap()
    }

    fn to(filter: &str, qos: Qos, as_of: u64) -> Subscription {
        Subscription {
            filter: filter.to_owned(),
            pattern: Pattern::parse(filter, &fleet()).unwrap().unwrap(),
            qos,
            no_local: false,
            retain_as_published: false,
            identifier: None,
            as_of: Commit::new(as_of),
        }
    }

    fn message(agent: &str, channel: Channel, commit: u64) -> Message {
        let machine = Machine::new(fleet(), AgentName::new(agent).unwrap());
        Message {
            topic: machine.topic(channel),
            payload: Arc::from(b"x".as_slice()),
            qos: Qos::AtLeastOnce,
            commit: Some(Commit::new(commit)),
            author: Default::default(),
            extras: None,
        }
    }

    const ME: Author = Author(7);

    fn qos(subscriptions: &Subscriptions, message: &Message, via: Via) -> Option<Qos> {
        subscriptions
            .wants(message, via, ME)
            .map(|wanted| wanted.qos)
    }

    #[test]
    fn mqtt_5_says_which_subscriptions_and_whose_message() {
        let mut subscriptions = Subscriptions::default();
        for (filter, identifier, no_local, retain_as_published) in [
            ("hoist/v1/prod/web-1/+", 3, false, false),
            ("hoist/v1/prod/web-1/status", 9, true, true),
        ] {
            subscriptions.insert(Subscription {
                identifier: Some(identifier),
                no_local,
                retain_as_published,
                ..to(filter, Qos::AtMostOnce, 0)
            });
        }
        let mut status = message("web-1", Channel::Status, 1);
        let wanted = subscriptions.wants(&status, Via::Direct, ME).unwrap();
        assert_eq!((wanted.identifiers, wanted.retain), (vec![3, 9], true));
        status.author = ME;
        let wanted = subscriptions.wants(&status, Via::Direct, ME).unwrap();
        assert_eq!((wanted.identifiers, wanted.retain), (vec![3], false));
    }

    #[test]
    fn what_the_snapshot_held_does_not_come_again() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(to("hoist/v1/prod/web-1/+", Qos::AtLeastOnce, 5));
        let wants = |commit| {
            let message = message("web-1", Channel::Status, commit);
            qos(&subscriptions, &message, Via::Direct)
        };
        assert_eq!(wants(5), None);
        assert_eq!(wants(6), Some(Qos::AtLeastOnce));
    }

    #[test]
    fn the_highest_granted_qos_counts_and_never_above_the_publishers() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(to("hoist/v1/prod/web-1/+", Qos::AtMostOnce, 0));
        subscriptions.insert(to("hoist/v1/prod/web-1/status", Qos::AtLeastOnce, 0));
        let mut status = message("web-1", Channel::Status, 1);
        assert_eq!(
            qos(&subscriptions, &status, Via::Direct),
            Some(Qos::AtLeastOnce)
        );
        status.qos = Qos::AtMostOnce;
        assert_eq!(
            qos(&subscriptions, &status, Via::Direct),
            Some(Qos::AtMostOnce)
        );
        let history = message("web-1", Channel::History, 1);
        assert_eq!(
            qos(&subscriptions, &history, Via::Direct),
            Some(Qos::AtMostOnce)
        );
        assert_eq!(
            qos(
                &subscriptions,
                &message("web-2", Channel::Status, 1),
                Via::Direct
            ),
            None
        );
        assert_eq!(qos(&subscriptions, &history, Via::Router), None);
    }

    #[test]
    fn the_same_filter_again_replaces_and_a_machine_is_left_with_its_last() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(to("hoist/v1/prod/web-1/status", Qos::AtMostOnce, 0));
        subscriptions.insert(to("hoist/v1/prod/web-1/status", Qos::AtLeastOnce, 3));
        subscriptions.insert(to("hoist/v1/prod/web-1/deploy", Qos::AtLeastOnce, 3));
        assert_eq!(subscriptions.len(), 2);
        assert_eq!(subscriptions.remove("hoist/v1/prod/web-1/status"), None);
        let left = subscriptions.remove("hoist/v1/prod/web-1/deploy");
        assert_eq!(left, Some(AgentName::new("web-1").unwrap()));
        assert_eq!(subscriptions.len(), 0);
    }

    #[test]
    fn after_a_gap_the_late_ones_of_that_channel_do_not_come_again() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(to("hoist/v1/prod/+/+", Qos::AtLeastOnce, 0));
        subscriptions.refresh(Channel::Status, Commit::new(9));
        let wants = |channel, commit| {
            qos(
                &subscriptions,
                &message("web-1", channel, commit),
                Via::Router,
            )
            .is_some()
        };
        assert!(!wants(Channel::Status, 9));
        assert!(wants(Channel::Status, 10));
        assert!(wants(Channel::History, 9));
    }
}
