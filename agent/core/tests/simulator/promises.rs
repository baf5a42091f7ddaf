//! What has to hold after every effect.

use std::collections::{BTreeMap, BTreeSet};

use hoist_agent_core::{JobOrder, Ledger};
use hoist_protocol::{
    Deployment, DeploymentId, Goal, HistoryEntry, Order, RollbackTo, State, Status, StorePath,
    digest,
};

use crate::fleet::Special;
use crate::world::World;

/// What the world remembers on its own, to compare with what the agent says.
#[derive(Default)]
pub(crate) struct Promises {
    /// Every outcome that was ever durable.
    outcomes: BTreeMap<DeploymentId, HistoryEntry>,
    /// What really ran with a good end: path, and what ran before it.
    good: BTreeMap<DeploymentId, (StorePath, Option<StorePath>)>,
    /// The deployment that is being offered, when one is.
    pub(crate) offering: Option<usize>,
    /// Whose outcomes the broker has acknowledged.
    pub(crate) acknowledged: BTreeSet<DeploymentId>,
    /// For whom the way to the broker was proven.
    pub(crate) reached: Option<DeploymentId>,
}

impl Promises {
    /// A ledger becomes durable.
    pub(crate) fn persist(world: &mut World, new: &Ledger) -> Result<(), String> {
        Self::floor(world, new)?;
        for task in world.disk.current.iter().chain(&world.disk.next) {
            let id = task.order.id;
            if !new.knows(id) {
                return Err(format!("{id} was admitted and is lost"));
            }
        }
        for (n, record) in new.history.iter().enumerate() {
            let id = record.entry.id;
            if new.history[..n].iter().any(|other| other.entry.id == id) {
                return Err(format!("{id} has two outcomes"));
            }
            if record.delivered && !world.promises.acknowledged.contains(&id) {
                return Err(format!("the outcome of {id} counts as told, and is not"));
            }
            match world.promises.outcomes.get(&id) {
                Some(known) if *known == record.entry => {}
                Some(known) => {
                    return Err(format!(
                        "the outcome of {id} changed from {} to {}",
                        known.state, record.entry.state
                    ));
                }
                None => {
                    Self::is_true(world, &record.entry)?;
                    let entry = record.entry.clone();
                    if let Some(path) = entry.path.clone().filter(|_| entry.state.is_good()) {
                        let ran = (path, entry.previous_path.clone());
                        world.promises.good.insert(id, ran);
                    }
                    world.promises.outcomes.insert(id, entry);
                }
            }
        }
        match world
            .promises
            .outcomes
            .keys()
            .find(|id| !new.has_ended(**id))
        {
            Some(id) => Err(format!("the outcome of {id} is lost")),
            None => Ok(()),
        }
    }

    fn floor(world: &World, new: &Ledger) -> Result<(), String> {
        let old = world.disk.floor.as_ref().map(|floor| floor.order);
        let floor = new.floor.as_ref().map(|floor| floor.order);
        if floor < old {
            return Err(format!("the floor sank from {old:?} to {floor:?}"));
        }
        let Some(floor) = floor.filter(|floor| Some(*floor) != old) else {
            return Ok(());
        };
        if world.jobs.contains_key(&floor.id) && old.is_none_or(|old| old < floor) {
            return Ok(()); // Adopted from a job, after the ledger was lost.
        }
        let offered = world.promises.offering.map(|n| &world.fleet.published[n]);
        let Some(offered) = offered.filter(|offered| offered.order() == floor) else {
            return Err(format!("the floor rose to {floor}, which nobody offered"));
        };
        match offered.special {
            Special::EpochNotAllowed => Err("a key raised the epoch that may not".to_owned()),
            Special::FarAhead if world.synchronised => {
                Err("a sequence far ahead was let in".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Whether an outcome is what really happened.
    fn is_true(world: &World, entry: &HistoryEntry) -> Result<(), String> {
        let id = entry.id;
        let told = entry.state;
        match world.jobs.get(&id) {
            Some(job) => match &job.end {
                Some(end) if end.state == told && Some(&job.path) == entry.path.as_ref() => Ok(()),
                Some(end) => Err(format!("{id} ended as {}, told is {told}", end.state)),
                None => Err(format!("{id} is told as {told} before its job has ended")),
            },
            None => match told {
                State::Unchanged => {
                    let path = entry.path.as_ref();
                    let mut published = world.fleet.published.iter();
                    if !published.any(|published| {
                        published.id() == id
                            && Self::meant(world, published.offer.deployment.deployment()) == path
                    }) {
                        return Err(format!("{id} is told as unchanged, and means another path"));
                    }
                    let same = path == Some(&world.running) && path == Some(&world.profile);
                    same.then_some(())
                        .ok_or_else(|| format!("{id} is told as unchanged, and is not"))
                }
                State::Failed | State::Rejected | State::Expired | State::Superseded => Ok(()),
                _ => Err(format!("{id} is told as {told}, and was never activated")),
            },
        }
    }

    /// The path that a deployment means, by what this machine really ran.
    fn meant<'a>(world: &'a World, deployment: &'a Deployment) -> Option<&'a StorePath> {
        let ran = |id: DeploymentId| world.promises.good.get(&id);
        match &deployment.target().goal {
            Goal::Closure(path) => Some(path),
            Goal::Rollback(RollbackTo::Deployment(id)) => ran(*id).map(|(path, _)| path),
            Goal::Rollback(RollbackTo::Before(id)) => {
                ran(*id).and_then(|(_, previous)| previous.as_ref())
            }
        }
    }

    /// A job is about to be made.
    pub(crate) fn activate(world: &World, job: &JobOrder) -> Result<(), String> {
        let id = job.order.id;
        let Some(floor) = &world.disk.floor else {
            return Err(format!("activates {id} with nothing admitted"));
        };
        if floor.order != job.order {
            return Err(format!(
                "activates {} with the floor at {}",
                job.order, floor.order
            ));
        }
        if world.promises.outcomes.contains_key(&id) {
            return Err(format!("activates {id}, which has ended"));
        }
        if let Some(other) = world.jobs.values().find(|job| job.end.is_none()) {
            return Err(format!(
                "makes a job for {id} beside that of {}",
                other.order.id
            ));
        }
        let signed = world.fleet.published.iter().find(|published| {
            let bytes = published.offer.deployment.deployment().encode();
            published.order() == job.order && floor.content == Some(digest(&bytes))
        });
        let Some(signed) = signed else {
            return Err(format!("activates {id}, which nobody signed"));
        };
        let deployment = signed.offer.deployment.deployment();
        if deployment.expires() <= world.moment().now {
            return Err(format!("activates {id}, which has expired"));
        }
        let meant = Self::meant(world, deployment);
        if meant != Some(&job.path) {
            return Err(format!(
                "activates {} for {id}, meant is {meant:?}",
                job.path
            ));
        }
        Ok(())
    }

    /// A status is about to be published.
    pub(crate) fn report(world: &World, status: &Status) -> Result<(), String> {
        let floor = world
            .disk
            .floor
            .as_ref()
            .map_or(0, |floor| floor.order.sequence);
        if status.floor != floor {
            return Err(format!(
                "reports the floor {}, durable is {floor}",
                status.floor
            ));
        }
        let Some(id) = status.id.filter(|_| status.state.is_final()) else {
            return Ok(());
        };
        let durable = world.promises.outcomes.get(&id).map(|entry| entry.state);
        if durable != Some(status.state) {
            return Err(format!(
                "reports {id} as {}, durable is {durable:?}",
                status.state
            ));
        }
        Ok(())
    }

    /// Faults have stopped and everything was given time.
    pub(crate) fn arrived(world: &World) -> Result<(), String> {
        let agent = world.agent.as_ref().ok_or("there is no agent")?;
        let ledger = agent.ledger();
        if ledger.current.is_some() || ledger.next.is_some() || !world.jobs.is_empty() {
            return Err("something is still under way".to_owned());
        }
        if *ledger != world.disk && ledger.refused == world.disk.refused {
            return Err("the agent knows more than its disk".to_owned());
        }
        if let Some(id) = ledger.undelivered().next() {
            return Err(format!("the outcome of {id} was never delivered"));
        }
        let floor = ledger.floor.as_ref().map(|floor| floor.order);
        if let Some(n) = world.retained {
            let retained = &world.fleet.published[n];
            let refused = match retained.special {
                Special::EpochNotAllowed => true,
                Special::FarAhead => world.synchronised,
                Special::SameId(_) => ledger.knows(retained.id()),
                _ => false,
            };
            if !refused && floor < Some(retained.order()) {
                return Err(format!("the newest, {}, was not taken", retained.order()));
            }
        }
        let Some(Order { id, .. }) = floor else {
            return Ok(());
        };
        let status = world.status.as_ref().ok_or("nothing was reported")?;
        if status.id != Some(id) || !status.state.is_final() {
            return Err(format!(
                "the status is about {:?}, the newest is {id}",
                status.id
            ));
        }
        if status.state.is_good() && status.path.as_ref() != Some(&world.running) {
            return Err(format!(
                "{id} is told as {}, and does not run",
                status.state
            ));
        }
        let told = world.history.as_ref().ok_or("no history was published")?;
        for id in world.promises.outcomes.keys() {
            if told.entries.iter().all(|entry| entry.id != *id) {
                return Err(format!(
                    "the outcome of {id} is not in the published history"
                ));
            }
        }
        Ok(())
    }

    /// How often deployments ended in `state`.
    pub(crate) fn count(&self, state: State) -> usize {
        let outcomes = self.outcomes.values();
        outcomes.filter(|entry| entry.state == state).count()
    }
}
