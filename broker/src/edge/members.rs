//! The identities and fleets that are connected: how many connections each has, and what they send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoist_certs::Role;
use hoist_protocol::FleetName;
use tokio::time::Instant;

use crate::deploys::Deploys;
use crate::guard::{FleetMeter, Meter, Peer};
use crate::message::now_ms;
use crate::session::Policy;
use crate::settings::{Fleet, Fleets, Limits, SessionLimits};

/// Most connections of one agent: the session, the one that takes it over, and room for a network that has
/// lost track of one.
const AGENT_CONNECTIONS: usize = 4;

/// Why somebody with a good certificate gets no place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Full {
    /// The identity has its share.
    #[error("{peer} has {limit} connections already (max_connections_per_identity; an agent 4)")]
    Identity {
        /// Whose.
        peer: String,
        /// How many it may have.
        limit: usize,
    },
    /// The fleet has its share.
    #[error("fleet {fleet} has {limit} connections already (its max_connections)")]
    Fleet {
        /// Which.
        fleet: FleetName,
        /// How many it may have.
        limit: usize,
    },
    /// The fleet is not served here; the certificate was judged by other settings.
    #[error("fleet {0} is not served here")]
    Unknown(FleetName),
}

/// All of them.
pub(crate) struct Members {
    fleets: Arc<Fleets>,
    limits: Limits,
    policies: HashMap<Option<FleetName>, Arc<Policy>>,
    meters: HashMap<Option<FleetName>, Arc<FleetMeter>>,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    identities: HashMap<Arc<Peer>, Member>,
    fleets: HashMap<FleetName, usize>,
}

struct Member {
    connections: usize,
    meter: Arc<Meter>,
}

/// A connection's place; it is free again when this is dropped.
pub(super) struct Slot {
    peer: Arc<Peer>,
    members: Arc<Members>,
}

impl Members {
    pub(crate) fn new(
        fleets: Arc<Fleets>,
        limits: Limits,
        session: SessionLimits,
        deploys: &Arc<Deploys>,
    ) -> Arc<Self> {
        let policy = |fleet: &Fleet| {
            Arc::new(Policy {
                rules: fleet.rules,
                deploys: Arc::clone(deploys),
                limits: session,
                clock: now_ms,
            })
        };
        let all = |(name, fleet): (Option<&FleetName>, &Fleet)| {
            let meter = FleetMeter::new(fleet.quota.publishes);
            ((name.cloned(), policy(fleet)), (name.cloned(), meter))
        };
        let (policies, meters) = fleets.all().map(all).unzip();
        Arc::new(Self {
            fleets,
            limits,
            policies,
            meters,
            counted: Mutex::default(),
        })
    }

    /// Gives a connection of `peer` its place, with what holds for it.
    pub(super) fn reserve(
        members: &Arc<Self>,
        peer: &Arc<Peer>,
    ) -> Result<(Slot, Arc<Policy>, Arc<Meter>), Full> {
        let unknown = || Full::Unknown(peer.fleet.clone());
        let fleet = members.fleets.get(&peer.fleet).ok_or_else(unknown)?;
        let policy = Self::of(&members.policies, peer).ok_or_else(unknown)?;
        let fleet_meter = Self::of(&members.meters, peer).ok_or_else(unknown)?;
        let limit = match peer.role {
            Role::Agent => members
                .limits
                .connections_per_identity
                .min(AGENT_CONNECTIONS),
            Role::Publisher | Role::Monitor | Role::Admin | Role::Broker => {
                members.limits.connections_per_identity
            }
        };
        let mut counted = members.lock();
        let of_fleet = counted.fleets.get(&peer.fleet).copied().unwrap_or_default();
        if let Some(limit) = fleet.quota.connections.filter(|limit| of_fleet >= *limit) {
            let fleet = peer.fleet.clone();
            return Err(Full::Fleet { fleet, limit });
        }
        let member = counted
            .identities
            .entry(Arc::clone(peer))
            .or_insert_with(|| Member {
                connections: 0,
                meter: Arc::new(Meter::new(peer.role, &members.limits, fleet_meter)),
            });
        if member.connections >= limit {
            let peer = peer.to_string();
            return Err(Full::Identity { peer, limit });
        }
        member.connections += 1;
        let meter = Arc::clone(&member.meter);
        *counted.fleets.entry(peer.fleet.clone()).or_default() += 1;
        drop(counted);
        let slot = Slot {
            peer: Arc::clone(peer),
            members: Arc::clone(members),
        };
        Ok((slot, policy, meter))
    }

    /// How many connections each fleet has; none is left out that has any.
    pub(crate) fn connections(&self) -> HashMap<FleetName, usize> {
        self.lock().fleets.clone()
    }

    /// The fleets that are served.
    pub(crate) const fn fleets(&self) -> &Arc<Fleets> {
        &self.fleets
    }

    /// Forgets who is not connected and has earned all that it has sent: nobody starts anew by connecting anew.
    pub(super) fn forget(&self, now: Instant) {
        let gone = |member: &Member| member.connections == 0 && member.meter.is_settled(now);
        self.lock().identities.retain(|_, member| !gone(member));
    }

    fn of<T>(map: &HashMap<Option<FleetName>, Arc<T>>, peer: &Peer) -> Option<Arc<T>> {
        let own = map.get(&Some(peer.fleet.clone()));
        own.or_else(|| map.get(&None)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // Nothing here panics while the lock is held.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counted = self.members.lock();
        if let Some(member) = counted.identities.get_mut(&self.peer) {
            member.connections -= 1;
            if member.connections == 0 && member.meter.is_settled(Instant::now()) {
                counted.identities.remove(&self.peer);
            }
        }
        if let Some(count) = counted.fleets.get_mut(&self.peer.fleet) {
            *count -= 1;
            if *count == 0 {
                counted.fleets.remove(&self.peer.fleet);
            }
        }
    }
}
