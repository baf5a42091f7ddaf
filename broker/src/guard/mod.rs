//! Who may do what: pure rules over (role, fleet, name), asked on connect, will, publish and subscribe.

mod acl;
mod client_id;
mod filter;
mod meter;
mod publication;

use std::fmt;

use hoist_certs::{Identity, Role};
use hoist_protocol::{AgentName, FleetName, Machine};

pub(crate) use acl::Access;
pub use acl::Rules;
pub(crate) use client_id::{ClientIdError, admit_client_id};
pub(crate) use filter::{Agents, Channels, FilterError, Pattern};
pub(crate) use meter::{Bucket, FleetMeter, Meter};
pub(crate) use publication::{PublishRefusal, admit_publication};

/// The holder of the certificate at the other end of a connection.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Peer {
    /// The certificate's name.
    pub name: AgentName,
    /// What it may do.
    pub role: Role,
    /// The only fleet it may do it in.
    pub fleet: FleetName,
}

impl Peer {
    /// The machine that an agent with this certificate runs on.
    pub(crate) fn machine(&self) -> Machine {
        Machine::new(self.fleet.clone(), self.name.clone())
    }
}

impl From<&Identity> for Peer {
    fn from(identity: &Identity) -> Self {
        Self {
            name: identity.name().clone(),
            role: identity.role(),
            fleet: identity.fleet().clone(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.role, self.fleet, self.name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn peer(role: Role, fleet: &str, name: &str) -> Peer {
        Peer {
            name: AgentName::new(name).unwrap(),
            role,
            fleet: FleetName::new(fleet).unwrap(),
        }
    }
}
