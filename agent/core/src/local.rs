//! What somebody at the machine can order, without a publisher and without a broker.

use hoist_protocol::{DeploymentId, StorePath, Target, Text, Timestamp};

/// An order, and whom to answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalOrder {
    /// Comes back in the answer.
    pub request: u64,
    /// What an activation is called: a new id of version 7. Unused by what activates nothing.
    pub id: DeploymentId,
    /// What is wanted.
    pub what: LocalWhat,
}

/// What somebody at the machine wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LocalWhat {
    /// Begin nothing that publishers order from now on. What is fetched is stopped and waits; an activation
    /// under way comes to its end, since nobody knows otherwise what the machine runs.
    Hold {
        /// When it ends by itself; without it, when somebody releases the machine.
        until: Option<Timestamp>,
        /// Why, for whoever wonders.
        reason: Text<256>,
    },
    /// The hold is over: the newest deployment is taken. One that a publisher holds waits on.
    Release,
    /// Go back: to what this deployment brought, or to what ran before what runs now. Where something waits
    /// for a reboot, it is that what is taken back.
    Rollback(Option<DeploymentId>),
    /// Run the closure that this target has as its goal.
    Activate(Box<Target>),
}

/// What was done at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LocalDone {
    /// The machine is held.
    Held,
    /// It is not held any more.
    Released,
    /// An activation has begun; its status and its outcome are told under this id.
    Begun {
        /// The id of the order.
        id: DeploymentId,
        /// What it brings.
        path: StorePath,
    },
}
