//! Who may do what: every role with every action on every topic, tried over real connections on any broker, and
//! compared with the tables in docs/brokers.md.

mod attempt;
mod docs;
mod stage;

use std::fmt;

use anyhow::{Result, bail};
use hoist_certs::Role;
use hoist_protocol::Channel;

pub use docs::{Differences, Table};
pub use stage::{Cast, Stage};

/// The roles that connect to a broker.
pub const ROLES: [Role; 4] = [Role::Agent, Role::Publisher, Role::Monitor, Role::Admin];

/// Whose topic it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Whose {
    /// That of the machine with the client's own name.
    Own,
    /// Another machine's of the same fleet.
    Other,
    /// A machine's of another fleet.
    Foreign,
}

/// What is tried.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Action {
    /// Connect with the name of the machine as client id.
    Connect,
    /// Publish without the retain flag.
    Publish,
    /// Publish with it.
    Retain,
    /// Publish nothing with it.
    Clear,
    /// Leave a last will, with the retain flag where the channel is retained, and be cut off.
    Will,
    /// Subscribe to the topic.
    Subscribe,
    /// Subscribe to a wildcard that covers it.
    Wildcard,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Decision {
    /// It was done.
    Allowed,
    /// It was refused: the connection or the subscription.
    Refused,
    /// It was acknowledged, and nothing came of it.
    Silent,
}

/// One cell of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cell {
    /// Who.
    pub role: Role,
    /// What.
    pub action: Action,
    /// On whose topic.
    pub whose: Whose,
    /// Which of them; none for [`Action::Connect`].
    pub channel: Option<Channel>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            role,
            action,
            whose,
            channel,
        } = self;
        write!(
            f,
            "{role} | {} | {}",
            word(&ACTIONS, *action),
            word(&WHOSE, *whose)
        )?;
        match channel {
            Some(channel) => write!(f, " | {channel}"),
            None => Ok(()),
        }
    }
}

/// Every cell of the table that can be told, role by role.
///
/// The machine with the name of a publisher, monitor or admin does not exist, since names are unique: nothing but a
/// deployment can be read there, and an echo there has no reader.
#[must_use]
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for role in ROLES {
        for (whose, _) in WHOSE {
            for (action, _) in ACTIONS {
                let channels: Vec<_> = match action {
                    // Last of each role, since it can cost a bystander its connection.
                    Action::Connect => continue,
                    _ => Channel::ALL.into_iter().map(Some).collect(),
                };
                let cell = |channel| Cell {
                    role,
                    action,
                    whose,
                    channel,
                };
                cells.extend(channels.into_iter().map(cell).filter(is_told));
            }
        }
        cells.extend(WHOSE.map(|(whose, _)| Cell {
            role,
            action: Action::Connect,
            whose,
            channel: None,
        }));
    }
    cells
}

fn is_told(cell: &Cell) -> bool {
    let nobody = cell.whose == Whose::Own && cell.role != Role::Agent;
    match cell.action {
        Action::Clear | Action::Subscribe | Action::Wildcard if nobody => {
            cell.channel == Some(Channel::Deploy)
        }
        Action::Publish | Action::Retain | Action::Will if nobody => {
            cell.channel != Some(Channel::Echo)
        }
        // An echo that comes when its agent is gone has no reader.
        Action::Will if cell.whose == Whose::Own => cell.channel != Some(Channel::Echo),
        // Nothing to clear.
        Action::Clear => cell.channel.is_some_and(Channel::is_retained),
        _ => true,
    }
}

/// The decisions on all [`cells`], in their order.
pub type Decisions = Vec<(Cell, Decision)>;

/// Fails when `seen` is not `expected`, and shows every cell that differs as a line.
///
/// # Errors
/// Names the cells.
pub fn compare(expected: &Decisions, seen: &Decisions) -> Result<()> {
    let mut lines = Vec::new();
    for ((cell, expected), (other, seen)) in expected.iter().zip(seen) {
        assert_eq!(cell, other, "both are in the order of cells()");
        if expected != seen {
            let (expected, seen) = (word(&DECISIONS, *expected), word(&DECISIONS, *seen));
            lines.push(format!(
                "{cell}: {seen}, where docs/brokers.md says {expected}"
            ));
        }
    }
    if !lines.is_empty() || expected.len() != seen.len() {
        bail!("{} cells differ:\n{}", lines.len(), lines.join("\n"));
    }
    Ok(())
}

/// The words of the tables.
const WHOSE: [(Whose, &str); 3] = [
    (Whose::Own, "own"),
    (Whose::Other, "another's"),
    (Whose::Foreign, "another fleet's"),
];
const ACTIONS: [(Action, &str); 7] = [
    (Action::Connect, "connect"),
    (Action::Publish, "publish"),
    (Action::Retain, "publish retained"),
    (Action::Clear, "clear"),
    (Action::Will, "last will"),
    (Action::Subscribe, "subscribe"),
    (Action::Wildcard, "wildcard"),
];
const DECISIONS: [(Decision, &str); 3] = [
    (Decision::Allowed, "allowed"),
    (Decision::Refused, "refused"),
    (Decision::Silent, "silent"),
];

fn word<T: Copy + PartialEq>(words: &[(T, &'static str)], value: T) -> &'static str {
    words
        .iter()
        .find(|(known, _)| *known == value)
        .map_or("?", |(_, word)| word)
}
