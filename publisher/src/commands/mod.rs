//! The commands, one file each, and what they share.

mod asking;
pub mod cancel;
mod choosing;
pub mod completions;
pub mod deploy;
pub mod diff;
pub mod doctor;
mod dry_run;
mod ending;
mod error;
pub mod flake;
pub mod forget;
pub mod history;
pub mod hold;
pub mod logs;
mod making;
mod prepare;
mod preview;
mod provenance;
pub mod refresh;
pub mod release;
pub mod retry;
pub mod rollback;
mod rolling;
mod send;
pub mod sign;
mod signed;
mod standing;
pub mod status;
pub mod wait;
pub mod whoami;

pub use error::CommandError;
use hoist_protocol::{AgentName, Channel, FleetName, nearest};
pub(crate) use provenance::github_run;

use crate::drive::Interrupts;
use crate::link::{Link, filters};
use crate::settings::Caller;
use crate::snapshot::{self, Seen, Snapshot, SnapshotError, Wanted};

/// Takes a snapshot of `channels` of the machines `agents`, or of all machines when none is named.
async fn look(
    link: &mut Link,
    fleet: &FleetName,
    agents: &[AgentName],
    channels: &[Channel],
) -> Result<Snapshot, SnapshotError> {
    let filters = filters(fleet, agents, channels);
    let wanted = Wanted {
        fleet,
        agents,
        channels,
        filters: &filters,
    };
    snapshot::take(link, &wanted).await
}

/// The error for a machine that nothing is retained about, with the nearest name in the fleet.
async fn unknown_machine(link: &mut Link, fleet: &FleetName, name: &AgentName) -> CommandError {
    let channels = [Channel::Status, Channel::Presence];
    let all = match look(link, fleet, &[], &channels).await {
        Ok(all) => all,
        Err(error) => return error.into(),
    };
    let known = all.machines().keys().map(AgentName::as_str);
    CommandError::UnknownMachine {
        nearest: nearest(name.as_str(), known).map(str::to_owned),
        name: name.clone(),
        fleet: fleet.clone(),
    }
}

/// Connects, and takes what is retained on `channels` of one machine, which has to be known.
async fn look_at_one(
    caller: &Caller,
    agent: &AgentName,
    channels: &[Channel],
) -> Result<Seen, CommandError> {
    let mut link = Link::open(caller).await?;
    let agents = std::slice::from_ref(agent);
    let snapshot = look(&mut link, &caller.fleet, agents, channels).await?;
    match snapshot.into_machine(agent) {
        Some(seen) if seen.has_reported() || seen.history.is_some() => {
            link.close().await;
            Ok(seen)
        }
        _ => Err(unknown_machine(&mut link, &caller.fleet, agent).await),
    }
}

/// What `work` comes to; none when the user or the system interrupts it.
async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, CommandError>>,
) -> Result<Option<T>, CommandError> {
    let mut interrupts = Interrupts::listen().map_err(CommandError::Runtime)?;
    tokio::select! {
        done = work => done.map(Some),
        () = interrupts.next() => Ok(None),
    }
}
