//! The commands, one file each, and what they share.

pub mod cancel;
mod choosing;
pub mod deploy;
mod dry_run;
mod ending;
mod error;
pub mod flake;
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

pub use error::CommandError;
use hoist_protocol::{AgentName, Channel, FleetName, nearest};
pub(crate) use provenance::github_run;

use crate::link::{Link, filters};
use crate::snapshot::{self, Snapshot, SnapshotError, Wanted};

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
