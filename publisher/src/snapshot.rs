//! What is retained about machines when a command begins.
//!
//! MQTT does not say when the retained messages of a subscription are complete. So a snapshot is taken for
//! complete when everything that a command needs of the machines it named is there, or else when nothing has
//! come for a while after the broker granted the subscription; a slow connection is given more time, measured
//! by how long the grant took. A publisher cannot mark the end with a message of its own, since no role may
//! write where it reads. What a snapshot misses costs nothing but a better message: orders follow the clock
//! before all else, and what was published is read back.

use std::collections::BTreeMap;
use std::time::Duration;

use hoist_certs::mqtt::ConnectFailure;
use hoist_protocol::{
    AgentName, Channel, FleetName, History, KnownOrders, Machine, Presence, ReportError, Status,
    Text, Topic, TrustedKeys, VerifiedDeployment, VerifyError,
};
use tokio::time::{Instant, timeout_at};

use crate::link::{Event, Filter, Link, LinkError, Ticket};

/// Nothing came for so long, at least: the snapshot is complete.
const QUIET: Duration = Duration::from_millis(300);

/// And then it is looked once more for so long.
const AGAIN: Duration = Duration::from_millis(50);

/// However much keeps coming, a snapshot takes no longer.
const LONGEST: Duration = Duration::from_secs(30);

/// How often a connection may break in the middle.
const BREAKS: u32 = 3;

/// Most machines that are kept: what a hostile broker may fill our memory with is bounded.
const MACHINES: usize = 100_000;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The connection is gone.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It broke too often.
    #[error(
        "the broker closed the connection {BREAKS} times while it was asked what it holds; its log says why"
    )]
    Broken,
    /// It did not come back in time.
    #[error("the connection to the broker was lost and did not come back within {} s", LONGEST.as_secs())]
    Lost(#[source] ConnectFailure),
    /// The broker granted nothing in time.
    #[error("the broker did not answer a subscription within {} s", LONGEST.as_secs())]
    Silent,
    /// The broker refuses a subscription.
    #[error(
        "the broker refuses the subscription to {0}; the certificate's role may not read there"
    )]
    Denied(String),
    /// There is more than anybody can have.
    #[error("the broker holds messages of more than {MACHINES} machines")]
    TooMany,
}

/// What is retained about one machine.
#[derive(Debug, Default)]
pub struct Seen {
    /// What lies on its `deploy` topic, unverified.
    pub deploy: Option<Vec<u8>>,
    /// Its status, if it can be read.
    pub status: Option<Status>,
    /// Whether it is connected.
    pub presence: Option<Presence>,
    /// Its history.
    pub history: Option<History>,
    /// A report of its that cannot be read.
    pub unreadable: Option<(Channel, ReportError)>,
}

impl Seen {
    /// Whether the machine itself has ever said anything.
    #[must_use]
    pub const fn has_reported(&self) -> bool {
        self.status.is_some() || self.presence.is_some() || self.unreadable.is_some()
    }

    /// What a next deployment has to be ordered after, and the retained one, or why that is not among it.
    #[must_use]
    pub fn orders(
        &self,
        machine: &Machine,
        trusted: &TrustedKeys,
    ) -> (KnownOrders, Option<Result<VerifiedDeployment, VerifyError>>) {
        let verified = self
            .deploy
            .as_ref()
            .map(|bytes| trusted.verify(bytes, machine));
        let mut known = KnownOrders {
            retained: None,
            floor: self
                .status
                .as_ref()
                .map(|status| (status.floor_epoch, status.floor)),
        };
        // Where it is unknown here who signed it, it may not push our order up.
        if let Some(Ok(retained)) = &verified {
            let order = retained.deployment().order();
            known.retained = Some((order.epoch, order.sequence));
        }
        (known, verified)
    }
}

/// What is retained about the machines of a fleet.
#[derive(Debug)]
pub struct Snapshot {
    fleet: FleetName,
    machines: BTreeMap<AgentName, Seen>,
}

impl Snapshot {
    /// An empty one.
    #[must_use]
    pub const fn new(fleet: FleetName) -> Self {
        Self {
            fleet,
            machines: BTreeMap::new(),
        }
    }

    /// Whose machines they are.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// Every machine that has anything retained, by name.
    #[must_use]
    pub const fn machines(&self) -> &BTreeMap<AgentName, Seen> {
        &self.machines
    }

    /// One machine; none when nothing is retained about it.
    #[must_use]
    pub fn machine(&self, agent: &AgentName) -> Option<&Seen> {
        self.machines.get(agent)
    }

    /// One machine alone; none when nothing is retained about it.
    #[must_use]
    pub fn into_machine(mut self, agent: &AgentName) -> Option<Seen> {
        self.machines.remove(agent)
    }

    /// Forgets the machines that are not meant: a wildcard brings all of them.
    pub fn keep(&mut self, meant: impl Fn(&AgentName, &Seen) -> bool) {
        self.machines.retain(|agent, seen| meant(agent, seen));
    }

    /// Notes a message.
    ///
    /// # Errors
    /// [`SnapshotError::TooMany`]
    pub fn saw(&mut self, topic: &Topic, payload: &[u8]) -> Result<(), SnapshotError> {
        if topic.machine.fleet != self.fleet || payload.len() > topic.channel.max_len() {
            return Ok(());
        }
        let agent = &topic.machine.agent;
        if self.machines.len() >= MACHINES && !self.machines.contains_key(agent) {
            return Err(SnapshotError::TooMany);
        }
        let seen = self.machines.entry(agent.clone()).or_default();
        let unreadable = match topic.channel {
            Channel::Deploy => {
                seen.deploy = (!payload.is_empty()).then(|| payload.to_vec());
                None
            }
            Channel::Presence => {
                seen.presence = Presence::from_payload(payload);
                None
            }
            Channel::Status if payload.is_empty() => {
                seen.status = None;
                None
            }
            Channel::History if payload.is_empty() => {
                seen.history = None;
                None
            }
            Channel::Status => match Status::from_json(payload, &topic.machine) {
                Ok(status) => {
                    seen.status = Some(status);
                    None
                }
                Err(error) => Some(error),
            },
            Channel::History => match History::from_json(payload, &topic.machine) {
                Ok(history) => {
                    seen.history = Some(history);
                    None
                }
                Err(error) => Some(error),
            },
            Channel::Log | Channel::Echo => None,
        };
        if let Some(error) = unreadable {
            seen.unreadable = Some((topic.channel, error));
        }
        Ok(())
    }

    /// How many of these machines, from the first on, have told everything that they ever tell; `before` of them
    /// were known to have. Looked at anew for each message, thousands of machines would take minutes.
    fn complete(&self, agents: &[AgentName], channels: &[Channel], before: usize) -> usize {
        let is_complete = |agent: &&AgentName| {
            self.machine(agent).is_some_and(|seen| {
                channels.iter().all(|channel| match channel {
                    Channel::Deploy => seen.deploy.is_some(),
                    Channel::Status => seen.status.is_some(),
                    Channel::Presence => seen.presence.is_some(),
                    Channel::History => seen.history.is_some(),
                    Channel::Log | Channel::Echo => true,
                })
            })
        };
        before + agents[before..].iter().take_while(is_complete).count()
    }
}

/// What a snapshot shall hold.
pub struct Wanted<'a> {
    /// The fleet.
    pub fleet: &'a FleetName,
    /// The machines that are named; none for the whole fleet.
    pub agents: &'a [AgentName],
    /// What of them.
    pub channels: &'a [Channel],
    /// The subscription that brings it.
    pub filters: &'a [Filter],
}

/// Subscribes on a fresh connection and takes the snapshot.
///
/// # Errors
/// [`SnapshotError`]
pub async fn take(link: &mut Link, wanted: &Wanted<'_>) -> Result<Snapshot, SnapshotError> {
    let mut snapshot = Snapshot::new(wanted.fleet.clone());
    let latest = Instant::now() + LONGEST;
    let mut asked = Instant::now();
    let mut quiet = None;
    let mut breaks = 0;
    let mut lost = None;
    let mut complete = 0;
    // A program that the system did not let run for a while finds the time up, and the messages unread.
    let mut looked_again = false;
    link.subscribe(Ticket::Everything, wanted.filters);
    loop {
        let until = quiet.map_or(latest, |(quiet_for, since): (Duration, Instant)| {
            let patience = if looked_again { AGAIN } else { quiet_for };
            (since + patience).min(latest)
        });
        let Ok(event) = timeout_at(until, link.next()).await else {
            if quiet.is_some() && !looked_again && Instant::now() < latest {
                looked_again = true;
                quiet = quiet.map(|(quiet_for, _)| (quiet_for, Instant::now()));
                continue;
            }
            return match (quiet, lost) {
                (Some(_), _) => Ok(snapshot),
                (None, Some(failure)) => Err(SnapshotError::Lost(failure)),
                (None, None) => Err(SnapshotError::Silent),
            };
        };
        match event? {
            Event::Message { topic, payload, .. } => {
                snapshot.saw(&topic, &payload)?;
                quiet = quiet.map(|(quiet_for, _)| (quiet_for, Instant::now()));
                looked_again = false;
            }
            Event::Granted(Ticket::Everything, denied) => {
                check(&denied)?;
                let quiet_for = QUIET.max(asked.elapsed() * 2);
                quiet = Some((quiet_for, Instant::now()));
            }
            Event::Disconnected(failure) => {
                // An attempt that fails is no break: the broker may be restarting.
                if lost.is_none() {
                    tracing::warn!("{failure}; trying again");
                    breaks += 1;
                }
                if breaks >= BREAKS {
                    return Err(SnapshotError::Broken);
                }
                lost = Some(failure);
                quiet = None;
            }
            Event::Connected => {
                lost = None;
                asked = Instant::now();
                link.subscribe(Ticket::Everything, wanted.filters);
            }
            Event::Granted(Ticket::ReadBack, _) | Event::Acknowledged(_) => {}
        }
        if quiet.is_some() && !wanted.agents.is_empty() {
            complete = snapshot.complete(wanted.agents, wanted.channels, complete);
            if complete == wanted.agents.len() {
                return Ok(snapshot);
            }
        }
    }
}

/// Log lines and the history are a help; without the rest a command cannot do its work.
fn check(denied: &[String]) -> Result<(), SnapshotError> {
    let is_help = |filter: &str| filter.ends_with("/log") || filter.ends_with("/history");
    for filter in denied {
        if !is_help(filter) {
            return Err(SnapshotError::Denied(
                Text::<256>::lossy(filter).to_string(),
            ));
        }
        tracing::warn!("the broker refuses the subscription to {filter}; going on without it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hoist_protocol::State;

    use super::*;
    use crate::testing::{key, machine, order, status};

    fn snapshot() -> Snapshot {
        Snapshot::new(machine("web-1").fleet)
    }

    fn saw(snapshot: &mut Snapshot, channel: Channel, payload: &[u8]) {
        snapshot
            .saw(&machine("web-1").topic(channel), payload)
            .unwrap();
    }

    #[test]
    fn a_snapshot_is_complete_when_the_named_machines_have_told_everything() {
        let mut snapshot = snapshot();
        let agents = ["web-1", "web-2"].map(|name| machine(name).agent);
        let channels = [Channel::Status, Channel::Presence];
        saw(&mut snapshot, Channel::Presence, b"online");
        assert_eq!(snapshot.complete(&agents, &channels, 0), 0);
        let report = status(order(1), State::Succeeded).to_json();
        saw(&mut snapshot, Channel::Status, &report);
        assert_eq!(snapshot.complete(&agents, &channels, 0), 1);
        assert_eq!(snapshot.complete(&agents[..1], &channels, 1), 1);
    }

    #[test]
    fn a_deployment_that_nobody_known_signed_does_not_push_the_order_up() {
        let mut snapshot = snapshot();
        saw(&mut snapshot, Channel::Deploy, b"junk");
        let mut report = status(order(7), State::Succeeded);
        report.floor = 9;
        saw(&mut snapshot, Channel::Status, &report.to_json());
        let trusted = TrustedKeys::new(vec![key("ci").public()]).unwrap();
        let machine = machine("web-1");
        let seen = snapshot.machine(&machine.agent).unwrap();
        let (known, error) = seen.orders(&machine, &trusted);
        assert_eq!((known.retained, known.floor), (None, Some((0, 9))));
        assert!(error.is_some());
    }

    #[test]
    fn a_report_that_cannot_be_read_is_kept_as_such() {
        let mut snapshot = snapshot();
        saw(&mut snapshot, Channel::Status, b"{}");
        let seen = snapshot.machine(&machine("web-1").agent).unwrap();
        assert!(seen.status.is_none() && seen.has_reported());
    }
}
