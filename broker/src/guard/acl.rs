//! The access rules, one line a role.

use hoist_certs::Role;
use hoist_protocol::{Channel, Topic};

use super::Peer;

/// What somebody wants to do with a topic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// Get its messages.
    Read,
    /// Publish a message with a payload.
    Write,
    /// Publish an empty retained message: take away what is retained.
    Clear,
}

/// What an operator may decide about access; everything else follows from the role.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// Monitors may read the log: what deployments print can say more than a status.
    pub monitors_read_log: bool,
}

impl Rules {
    /// Whether `peer` may do `access` on `topic`. Nobody may do anything in another fleet.
    #[must_use]
    pub(crate) fn allow(&self, peer: &Peer, access: Access, topic: &Topic) -> bool {
        use Channel::{Deploy, Echo, History, Log, Presence, Status};
        if topic.machine.fleet != peer.fleet {
            return false;
        }
        let channel = topic.channel;
        match (peer.role, access) {
            (Role::Agent, Access::Read) => {
                topic.machine.agent == peer.name && matches!(channel, Deploy | Echo)
            }
            (Role::Agent, Access::Write) => topic.machine.agent == peer.name && channel != Deploy,
            // An echo is between an agent and itself.
            (Role::Publisher | Role::Admin, Access::Read) => channel != Echo,
            (Role::Publisher, Access::Write) => channel == Deploy,
            (Role::Monitor, Access::Read) => match channel {
                Status | Presence | History => true,
                Log => self.monitors_read_log,
                Deploy | Echo => false,
            },
            (Role::Admin, Access::Clear) => channel.is_retained(),
            (Role::Agent | Role::Publisher, Access::Clear)
            | (Role::Monitor | Role::Admin, Access::Write)
            | (Role::Monitor, Access::Clear)
            | (Role::Broker, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{AgentName, FleetName, Machine};

    use super::super::tests::peer;
    use super::*;

    /// Channels, in the order of [`Channel::ALL`], as letters: deploy, status, presence, history, log, echo.
    const LETTERS: &str = "dsphle";

    fn allowed(rules: Rules, role: Role, access: Access, fleet: &str, agent: &str) -> String {
        let me = peer(role, "prod", "me");
        let machine = Machine::new(
            FleetName::new(fleet).unwrap(),
            AgentName::new(agent).unwrap(),
        );
        Channel::ALL
            .into_iter()
            .zip(LETTERS.chars())
            .filter(|(channel, _)| rules.allow(&me, access, &machine.topic(*channel)))
            .map(|(_, letter)| letter)
            .collect()
    }

    #[test]
    fn every_role_does_what_its_line_says_and_nothing_else() {
        // role, access, on topics of its own name, on topics of another machine of its fleet
        let table = [
            (Role::Agent, Access::Read, "de", ""),
            (Role::Agent, Access::Write, "sphle", ""),
            (Role::Agent, Access::Clear, "", ""),
            (Role::Publisher, Access::Read, "dsphl", "dsphl"),
            (Role::Publisher, Access::Write, "d", "d"),
            (Role::Publisher, Access::Clear, "", ""),
            (Role::Monitor, Access::Read, "sph", "sph"),
            (Role::Monitor, Access::Write, "", ""),
            (Role::Monitor, Access::Clear, "", ""),
            (Role::Admin, Access::Read, "dsphl", "dsphl"),
            (Role::Admin, Access::Write, "", ""),
            (Role::Admin, Access::Clear, "dsph", "dsph"),
            (Role::Broker, Access::Read, "", ""),
            (Role::Broker, Access::Write, "", ""),
            (Role::Broker, Access::Clear, "", ""),
        ];
        assert_eq!(
            table.len(),
            Role::ALL.len() * 3,
            "a role or an access is missing"
        );
        for (role, access, own, other) in table {
            let rules = Rules::default();
            let context = format!("{role} {access:?}");
            assert_eq!(
                allowed(rules, role, access, "prod", "me"),
                own,
                "{context} own"
            );
            assert_eq!(
                allowed(rules, role, access, "prod", "web-1"),
                other,
                "{context} other"
            );
            // Another fleet is closed to everybody, also where the machine's name is the same.
            assert_eq!(
                allowed(rules, role, access, "test", "me"),
                "",
                "{context} fleet"
            );
            assert_eq!(
                allowed(rules, role, access, "test", "web-1"),
                "",
                "{context} fleet"
            );
        }
    }

    #[test]
    fn a_granted_log_is_all_that_monitors_gain() {
        let rules = Rules {
            monitors_read_log: true,
        };
        assert_eq!(
            allowed(rules, Role::Monitor, Access::Read, "prod", "web-1"),
            "sphl"
        );
        assert_eq!(
            allowed(rules, Role::Monitor, Access::Write, "prod", "web-1"),
            ""
        );
        assert_eq!(
            allowed(rules, Role::Agent, Access::Read, "prod", "web-1"),
            ""
        );
    }
}
