//! How things are: by the word of the agent that runs, or else by what it left on the disk.

use anyhow::Context as _;
use hoist_agent_core::Hold;
use hoist_protocol::Status;

use crate::config::Place;
use crate::control::{Answer, Ask, Client, ClientError, Connection};
use crate::{ledger, runtime};

/// What is known about the machine.
pub(super) struct Seen {
    /// As an agent reports it.
    pub(super) status: Status,
    /// Whether the names in the status are the machine's own: without its certificate nobody knows them.
    pub(super) is_named: bool,
    /// The agent.
    pub(super) agent: AgentSeen,
    /// The hold, with its reason.
    pub(super) hold: Option<Hold>,
}

/// What is known about the agent.
pub(super) enum AgentSeen {
    /// It runs, and this is its way to the broker.
    Running(Connection),
    /// A command does what was ordered at the machine, as no agent runs.
    Alone,
    /// It does not run.
    Stopped,
    /// One runs that cannot be asked, for this reason.
    Silent(String),
}

impl AgentSeen {
    /// The way to the broker, of an agent that runs.
    pub(super) const fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Running(connection) => Some(connection),
            Self::Alone | Self::Stopped | Self::Silent(_) => None,
        }
    }
}

/// Looks.
///
/// # Errors
/// Neither the agent nor what is on the disk can be read.
pub(super) async fn look(place: &Place) -> anyhow::Result<Seen> {
    let agent = match Client::new(&place.state).ask(Ask::Status).await {
        Ok(Answer::Status { status, connection }) => {
            // The status does not say why.
            let hold = if status.held { hold(place)? } else { None };
            return Ok(Seen {
                status: *status,
                is_named: true,
                agent: connection.map_or(AgentSeen::Alone, AgentSeen::Running),
                hold,
            });
        }
        Ok(_) => AgentSeen::Silent("it answers something else".to_owned()),
        Err(ClientError::NoAgent { .. }) if ledger::is_locked(&place.state)? => {
            AgentSeen::Silent("it has no control socket, or just starts".to_owned())
        }
        Err(ClientError::NoAgent { .. }) => AgentSeen::Stopped,
        Err(error @ ClientError::NotAllowed { .. }) => return Err(error.into()),
        Err(error) => AgentSeen::Silent(crate::job::chain(&error)),
    };
    let mut preview = runtime::preview(place).context("cannot tell how this machine is")?;
    if !preview.knows_keys {
        preview.status.trusted_keys.clear();
    }
    Ok(Seen {
        status: preview.status,
        is_named: preview.is_named,
        agent,
        hold: hold(place)?,
    })
}

fn hold(place: &Place) -> anyhow::Result<Option<Hold>> {
    Ok(ledger::read(&place.state)?.and_then(|ledger| ledger.hold))
}
