//! The topic tree: `hoist/v1/<fleet>/<agent>/<channel>`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::name::{AgentName, FleetName};

/// The first two levels of every topic.
pub const ROOT: &str = "hoist/v1";

/// One machine of one fleet: whom a deployment is for.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Machine {
    /// The fleet it belongs to.
    pub fleet: FleetName,
    /// Its name in the fleet.
    pub agent: AgentName,
}

impl Machine {
    /// The machine `agent` of `fleet`.
    #[must_use]
    pub const fn new(fleet: FleetName, agent: AgentName) -> Self {
        Self { fleet, agent }
    }

    /// The topic of this machine's `channel`.
    #[must_use]
    pub fn topic(&self, channel: Channel) -> Topic {
        Topic {
            machine: self.clone(),
            channel,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.fleet, self.agent)
    }
}

/// What a topic carries; the last level of the topic.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Channel {
    /// The signed deployment, retained. Written by publishers.
    Deploy,
    /// The machine's state now, retained. Written by the agent.
    Status,
    /// `online` or `offline`, retained. Written by the agent and its last will.
    Presence,
    /// The last deployments and how they ended, retained. Written by the agent.
    History,
    /// Lines of what a deployment printed, not retained, QoS 0. Written by the agent.
    Log,
    /// A nonce that an agent sends to itself, not retained.
    Echo,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Deploy,
        Self::Status,
        Self::Presence,
        Self::History,
        Self::Log,
        Self::Echo,
    ];

    /// The topic level.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Status => "status",
            Self::Presence => "presence",
            Self::History => "history",
            Self::Log => "log",
            Self::Echo => "echo",
        }
    }

    /// The channel of a topic level.
    #[must_use]
    pub fn from_level(level: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|channel| channel.as_str() == level)
    }

    /// Whether its messages are retained by the broker.
    #[must_use]
    pub const fn is_retained(self) -> bool {
        !matches!(self, Self::Log | Self::Echo)
    }

    /// The largest payload it may carry, in bytes.
    #[must_use]
    pub const fn max_len(self) -> usize {
        match self {
            Self::Deploy => limits::DEPLOY_LEN,
            Self::Status => limits::STATUS_LEN,
            Self::Presence => 16,
            Self::History => limits::HISTORY_LEN,
            Self::Log => limits::LOG_LEN,
            Self::Echo => limits::ECHO_LEN,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is no topic of Hoist's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a topic of the form `{ROOT}/<fleet>/<agent>/<channel>`")]
pub struct TopicError;

/// One topic of one machine.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Topic {
    /// Whose topic it is.
    pub machine: Machine,
    /// What it carries.
    pub channel: Channel,
}

impl Topic {
    /// Reads a topic name. Filters with wildcards are none.
    ///
    /// # Errors
    /// [`TopicError`] for anything that [`Topic`] does not write exactly so.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let rest = text
            .strip_prefix(ROOT)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or(TopicError)?;
        let mut levels = rest.split('/');
        let (Some(fleet), Some(agent), Some(channel), None) =
            (levels.next(), levels.next(), levels.next(), levels.next())
        else {
            return Err(TopicError);
        };
        Ok(Self {
            machine: Machine {
                fleet: FleetName::new(fleet).map_err(|_| TopicError)?,
                agent: AgentName::new(agent).map_err(|_| TopicError)?,
            },
            channel: Channel::from_level(channel).ok_or(TopicError)?,
        })
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{ROOT}/{}/{}/{}",
            self.machine.fleet, self.machine.agent, self.channel
        )
    }
}

/// The filter that matches `channel` of every machine of `fleet`.
#[must_use]
pub fn fleet_filter(fleet: &FleetName, channel: Channel) -> String {
    format!("{ROOT}/{fleet}/+/{channel}")
}

/// What a `presence` topic says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Presence {
    /// The agent is connected. Says nothing about its health: watch the age of its status.
    Online,
    /// The agent is not connected.
    Offline,
}

impl Presence {
    /// The payload.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }

    /// Reads a payload; none for anything but the two words.
    #[must_use]
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        match payload {
            b"online" => Some(Self::Online),
            b"offline" => Some(Self::Offline),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_topic_reads_back_as_itself(fleet in "[a-z0-9][a-z0-9_-]{0,62}", agent in "[a-z0-9][a-z0-9_-]{0,62}", n in 0..6_usize) {
            let machine = Machine::new(FleetName::new(fleet).unwrap(), AgentName::new(agent).unwrap());
            let topic = machine.topic(Channel::ALL[n]);
            prop_assert_eq!(Topic::parse(&topic.to_string()), Ok(topic));
        }

        #[test]
        fn whatever_parses_is_written_the_same(text in "(hoist/v1/)?[a-z/+#$.é]{0,20}(/status|/deploy)?") {
            if let Ok(topic) = Topic::parse(&text) {
                prop_assert_eq!(topic.to_string(), text);
            }
        }
    }

    #[test]
    fn wildcards_and_other_trees_are_no_topics() {
        for bad in [
            "hoist/v1/prod/+/status",
            "hoist/v1/prod/web-1/#",
            "hoist/v1/prod/web-1",
            "hoist/v1/prod/web-1/status/",
            "/hoist/v1/prod/web-1/status",
            "hoist/v2/prod/web-1/status",
            "hoist/v1/prod/web-1/other",
            "$SYS/x",
            "",
        ] {
            assert_eq!(Topic::parse(bad), Err(TopicError), "{bad:?}");
        }
    }
}
