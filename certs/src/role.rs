//! What a certificate's holder may do.

use std::fmt;
use std::str::FromStr;

use hoist_protocol::nearest;
use serde::{Deserialize, Serialize};

/// What the holder of a certificate may do; its subject's OU, in lower case.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A machine: reads its own deployments, writes its own reports.
    Agent,
    /// Writes deployments of its fleet and reads all of the fleet.
    Publisher,
    /// Reads the fleet's reports and writes nothing.
    Monitor,
    /// Clears what a removed machine left behind.
    Admin,
    /// The broker itself, the only one that others connect to.
    Broker,
}

/// A text that is no role.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{given}` is no role; it is one of agent, publisher, monitor, admin, broker{hint}")]
pub struct RoleError {
    given: String,
    hint: String,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Agent,
        Self::Publisher,
        Self::Monitor,
        Self::Admin,
        Self::Broker,
    ];

    /// The OU.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Publisher => "publisher",
            Self::Monitor => "monitor",
            Self::Admin => "admin",
            Self::Broker => "broker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError {
                given: text.chars().take(60).flat_map(char::escape_debug).collect(),
                hint: nearest(text, Self::ALL.map(Self::as_str))
                    .map_or_else(String::new, |role| format!(" (did you mean `{role}`?)")),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_written_as_it_is_read() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
        }
    }

    #[test]
    fn what_is_nearly_a_role_gets_a_hint_and_is_no_role() {
        for bad in ["Agent", "", "agents", "agent ", "root"] {
            assert!(bad.parse::<Role>().is_err(), "{bad:?}");
        }
        let error = "agnet".parse::<Role>().unwrap_err().to_string();
        assert!(error.contains("did you mean `agent`"), "{error}");
    }
}
