//! What is said on the socket: JSON, an object a line. One request, and then answers until the agent closes.

use hoist_protocol::{BrokerUrl, DeploymentId, LogLine, Status, Target, Text, Timestamp};
use serde::{Deserialize, Serialize};

/// The version of what is said. Fields are only ever added within a version; a request of another one is refused.
pub const VERSION: u32 = 1;

/// Largest request, in bytes with its line's end.
pub const REQUEST_LEN: usize = 16 * 1024;

/// Largest answer, in bytes with its line's end: a status and what JSON needs around it.
pub const ANSWER_LEN: usize = 64 * 1024;

/// What is asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Request {
    /// [`VERSION`] of whoever asks.
    pub version: u32,
    /// What.
    #[serde(flatten)]
    pub ask: Ask,
}

impl From<Ask> for Request {
    fn from(ask: Ask) -> Self {
        let version = VERSION;
        Self { version, ask }
    }
}

/// What can be asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// How things are: [`Answer::Status`].
    Status,
    /// Begin no deployment from now on: [`Answer::Done`].
    Hold {
        /// When that ends by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
        /// Why, for whoever wonders.
        #[serde(default, skip_serializing_if = "Text::is_empty")]
        reason: Text<256>,
    },
    /// The hold is over: [`Answer::Done`].
    Release,
    /// Go back to what ran before, or to what this deployment brought: [`Answer::Begun`], and what follows it.
    Rollback {
        /// To which deployment.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<DeploymentId>,
    },
    /// Run this: [`Answer::Begun`], and what follows it.
    Activate {
        /// What, and how.
        target: Box<Target>,
    },
    /// How it goes on with something that was begun: [`Answer::Begun`], and what follows it.
    Follow {
        /// With what.
        id: DeploymentId,
    },
}

/// What the agent says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// How things are. The last answer.
    Status {
        /// As it is on the `status` topic.
        status: Box<Status>,
        /// The way to the broker; none in a process that only does what was ordered at the machine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<Connection>,
    },
    /// It is done, and durable. The last answer.
    Done,
    /// It is begun. Then come [`Answer::Log`] and [`Answer::Update`], and of those one with a final state as the
    /// last answer. When the connection ends before, it goes on all the same: ask to [`Ask::Follow`] it.
    Begun {
        /// What it is known by from now on.
        id: DeploymentId,
    },
    /// It has got so far.
    Update {
        /// As it is on the `status` topic.
        status: Box<Status>,
    },
    /// Something was printed on the way. Lines may be left out.
    Log {
        /// As it is on the `log` topic.
        line: LogLine,
    },
    /// It is not done. The last answer.
    Refused {
        /// Why not, and what to do.
        message: Text<1024>,
    },
}

/// How the agent stands with its broker.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Connection {
    /// Whether there is a connection that the broker has accepted.
    pub connected: bool,
    /// To this broker; without a connection the one that is tried next.
    pub broker: BrokerUrl,
    /// Since when there has been a connection, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Text::is_empty")]
    pub problem: Text<512>,
    /// The agent's own topics that the broker does not let it read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<Text<256>>,
    /// Whether what the agent says to itself comes back; none while it was not tried on this connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_that_says_its_version() {
        let request = Request::from(Ask::Hold {
            until: Some(Timestamp::from_ms(7)),
            reason: Text::lossy("a\nline"),
        });
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(
            json,
            r#"{"version":1,"ask":"hold","until":7,"reason":"a\nline"}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request);
    }

    #[test]
    fn what_a_newer_version_adds_is_no_error() {
        let newer = r#"{"version":1,"ask":"hold","loudly":true}"#;
        let request: Request = serde_json::from_str(newer).unwrap();
        assert!(matches!(request.ask, Ask::Hold { until: None, .. }));
    }
}
