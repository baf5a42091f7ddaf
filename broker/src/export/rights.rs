//! What a certificate's holder may do on an engine: the broker's own rules, as topic filters.

use hoist_protocol::{AgentName, Channel, FleetName, Machine, fleet_filter};

use crate::guard::{Access, Peer, Rules};

/// The topics that somebody may read and write, as MQTT filters.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Rights {
    pub(super) read: Vec<String>,
    pub(super) write: Vec<String>,
}

impl Rights {
    /// Of `peer` under `rules`.
    ///
    /// Engines know one kind of publish: who may clear a topic may write there as well, and the other way round.
    pub(super) fn of(rules: Rules, peer: &Peer) -> Self {
        let mut rights = Self::default();
        for channel in Channel::ALL {
            rights
                .read
                .extend(filter(rules, peer, &[Access::Read], channel));
            rights.write.extend(filter(
                rules,
                peer,
                &[Access::Write, Access::Clear],
                channel,
            ));
        }
        rights
    }
}

/// The filter for all topics of `channel` where `peer` has one of `accesses`; none when there are no such topics.
fn filter(rules: Rules, peer: &Peer, accesses: &[Access], channel: Channel) -> Option<String> {
    let own = peer.machine();
    let allowed = |machine: &Machine| {
        let topic = machine.topic(channel);
        accesses
            .iter()
            .any(|access| rules.allow(peer, *access, &topic))
    };
    if allowed(&other(&peer.fleet, &peer.name)) {
        Some(fleet_filter(&peer.fleet, channel))
    } else if allowed(&own) {
        Some(own.topic(channel).to_string())
    } else {
        None
    }
}

/// A machine of `fleet` that is not `name`'s.
fn other(fleet: &FleetName, name: &AgentName) -> Machine {
    let other = ["a", "b"]
        .map(|text| AgentName::new(text).expect("a letter is a name"))
        .into_iter()
        .find(|other| other != name)
        .expect("nobody has two names");
    Machine::new(fleet.clone(), other)
}

#[cfg(test)]
mod tests {
    use hoist_certs::Role;

    use super::super::super::guard::tests::peer;
    use super::*;

    fn rights(role: Role, name: &str) -> Rights {
        Rights::of(Rules::default(), &peer(role, "prod", name))
    }

    #[test]
    fn an_agent_has_its_own_topics_and_no_others() {
        let rights = rights(Role::Agent, "a");
        assert_eq!(
            rights.read,
            ["hoist/v1/prod/a/deploy", "hoist/v1/prod/a/echo"]
        );
        let channels = ["status", "presence", "history", "log", "echo"];
        assert_eq!(
            rights.write,
            channels.map(|channel| format!("hoist/v1/prod/a/{channel}"))
        );
    }

    #[test]
    fn whoever_sees_the_fleet_sees_all_machines_of_it_but_their_echo() {
        let expected = ["deploy", "status", "presence", "history", "log"]
            .map(|channel| format!("hoist/v1/prod/+/{channel}"));
        assert_eq!(rights(Role::Publisher, "ci").read, expected);
        assert_eq!(rights(Role::Admin, "root").read, expected);
        assert_eq!(rights(Role::Monitor, "web").read, expected[1..4]);
        assert_eq!(rights(Role::Monitor, "web").write, Vec::<String>::new());
        assert_eq!(
            rights(Role::Publisher, "ci").write,
            ["hoist/v1/prod/+/deploy"]
        );
        assert_eq!(rights(Role::Admin, "root").write, expected[..4]);
    }
}
