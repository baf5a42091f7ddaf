//! The agent without a broker: for who sits at a machine where none runs.

use std::time::Duration;

use hoist_agent_core::{Agent, FoundJob, Input, Moment, Origin};
use hoist_certs::inspect::{Found, inspect};
use hoist_certs::{Pem, Role, files};
use hoist_protocol::{
    AgentName, DeploymentId, FleetName, KeyName, Machine, SigningKey, Status, Text, TrustedKeys,
};

use super::own::Own;
use super::uplink::Uplink;
use super::{Shell, Signals, core_config, start, watch};
use crate::activator::kinds;
use crate::config::Place;
use crate::error::Error;
use crate::job::Jobs;
use crate::{control, ledger};

/// Why nothing can be done here without an agent.
#[derive(Debug, thiserror::Error)]
pub enum AloneError {
    /// It cannot start.
    #[error(transparent)]
    Agent(#[from] Error),
    /// The agent died in the middle of something that only its broker confirms.
    #[error(
        "deployment {0} is in the middle of its activation, and only an agent that reaches the broker can confirm \
         it; start the agent, and try again when it has ended"
    )]
    UnderWay(DeploymentId),
    /// Something waits that only the machine itself may carry out, and nobody knows which one that is.
    #[error(
        "a deployment waits here, and without the certificate nobody can tell whether it is for this machine; start \
         the agent once, or name its certificate in agent.toml"
    )]
    Unnamed,
}

/// An agent in this process that talks to nobody. It ends when it is dropped; an activation goes on then, and is found
/// again by the next.
pub(crate) struct Alone(Shell);

impl Alone {
    /// Takes the state folder, which no agent may have, and opens the control socket.
    ///
    /// # Errors
    /// [`AloneError`]
    pub(crate) async fn start(place: &Place) -> Result<Self, AloneError> {
        start::check(&place.state).map_err(Error::from)?;
        let signals = Signals::new().map_err(|source| Error::System {
            what: "wait for signals",
            source,
        })?;
        let named = machine(place);
        let own = Own::of_place(
            place,
            named.clone().unwrap_or_else(nobody),
            place.trusted.clone().unwrap_or_else(trusting_nobody),
        );
        let mut shell = Shell::new(own, Uplink::None, signals)?;
        let ledger = shell.agent.ledger();
        let waits = (ledger.current.iter().chain(&ledger.next))
            .any(|task| task.origin == Origin::Publisher);
        let found = shell.find_jobs()?;
        let unfinished = |job: &&FoundJob| job.origin == Origin::Publisher && job.end.is_none();
        if let Some(job) = found.iter().find(unfinished) {
            return Err(AloneError::UnderWay(job.order.id));
        }
        if waits && (named.is_none() || place.trusted.is_none()) {
            return Err(AloneError::Unnamed);
        }
        shell.begin(found).await?;
        Ok(Self(shell))
    }

    /// Does what is asked for over the socket, until it is dropped.
    ///
    /// # Errors
    /// [`Error`] when it cannot go on.
    pub(crate) async fn run(&mut self) -> Result<(), Error> {
        self.0.serve().await
    }
}

/// How a machine is whose agent does not run.
pub(crate) struct Preview {
    /// What the agent will report when it starts.
    pub(crate) status: Status,
    /// Whether the names in it are the machine's own.
    pub(crate) is_named: bool,
    /// Whether the keys in it are those that the machine trusts.
    pub(crate) knows_keys: bool,
    /// Whether an activator is at work.
    pub(crate) is_at_work: bool,
}

/// Reads how the machine is, and changes nothing.
///
/// # Errors
/// The ledger cannot be read.
pub(crate) fn preview(place: &Place) -> Result<Preview, Error> {
    let named = machine(place);
    let own = Own::of_place(
        place,
        named.clone().unwrap_or_else(nobody),
        place.trusted.clone().unwrap_or_else(trusting_nobody),
    );
    let mut ledger = ledger::read(&place.state)?.unwrap_or_default();
    let current = ledger.current.as_ref().map(|task| task.order.id);
    let mut found = Vec::new();
    let mut is_at_work = false;
    for job in Jobs::look(&place.state) {
        let spec = job.spec();
        let seen = watch::found(&job).unwrap_or_else(|_| watch::unreadable(&job));
        is_at_work |= seen.alive;
        // One that ended long ago and is there still changes nothing.
        if current == Some(spec.id) || !ledger.has_ended(spec.id) {
            found.push(seen);
        }
    }
    let is_running = found.iter().any(|job| current == Some(job.order.id)) || current.is_none();
    let moment = Moment {
        now: hoist_certs::program::now(),
        synchronised: false,
        uptime: Duration::ZERO,
        facts: kinds::facts_here(&place.profile, ledger.latest_how()).unwrap_or_default(),
        broker: None,
        warnings: Vec::new(),
    };
    if is_running && !found.is_empty() {
        // What waits is not begun before there is an agent.
        ledger.next = None;
        let mut agent = Agent::new(core_config(&own)?, ledger);
        // Only what it knows then is of interest: nothing of what it wants is done.
        drop(agent.handle(&moment, Input::Started(found)));
        return Ok(Preview {
            status: agent.status(&moment),
            is_named: named.is_some(),
            knows_keys: place.trusted.is_some(),
            is_at_work,
        });
    }
    let waits = ledger.current.is_some() || ledger.next.is_some();
    let mut status = Agent::new(core_config(&own)?, ledger).status(&moment);
    if waits && !status.state.is_final() {
        status.message = Text::lossy("it is begun when the agent runs");
    }
    Ok(Preview {
        status,
        is_named: named.is_some(),
        knows_keys: place.trusted.is_some(),
        is_at_work,
    })
}

/// Which machine this is: by its certificate, where that can be read, or by what its agent has left.
fn machine(place: &Place) -> Option<Machine> {
    let certificate = place
        .credentials
        .as_ref()
        .map(|credentials| &credentials.certificate);
    certificate
        .and_then(named_by)
        .or_else(|| control::recall(&place.state).ok().flatten())
}

fn named_by(certificate: &Pem) -> Option<Machine> {
    let found = match certificate {
        Pem::File(path) => inspect(&files::read_limited(path, MAX_LEN).ok()?),
        Pem::Inline(text) => inspect(text.as_bytes()),
    };
    let identity = found.ok()?.into_iter().find_map(|found| match found {
        Found::Certificate(info) => info.identity.ok(),
        _ => None,
    })?;
    (identity.role() == Role::Agent)
        .then(|| Machine::new(identity.fleet().clone(), identity.name().clone()))
}

/// Largest certificate that is read, in bytes.
const MAX_LEN: usize = 256 * 1024;

/// The name of a machine that has none: nothing is ever signed for it.
fn nobody() -> Machine {
    let fleet = FleetName::new("unknown").expect("it is a name");
    Machine::new(fleet, AgentName::new("unknown").expect("it is a name"))
}

/// For who has named no keys: one whose secret half nobody has.
fn trusting_nobody() -> TrustedKeys {
    let name = KeyName::new("nobody").expect("it is a name");
    let key = SigningKey::from_seed(name, &rand::random::<[u8; 32]>().into()).public();
    TrustedKeys::new(vec![key]).expect("one key can be trusted")
}
