//! What has to hold after every effect.

use std::collections::{BTreeMap, BTreeSet};

use hoist_agent_core::{JobOrder, Ledger, LocalDone, Origin, Staged, Task, Told};
use hoist_protocol::{
    Action, Deployment, DeploymentId, Goal, Held, HistoryEntry, Order, RollbackTo, State, Status,
    StorePath, Text, digest,
};

use crate::fleet::{Special, local_id};
use crate::world::{Job, World};

/// What the world remembers on its own, to compare with what the agent says.
#[derive(Default)]
pub(crate) struct Promises {
    /// Every outcome that was ever durable.
    outcomes: BTreeMap<DeploymentId, HistoryEntry>,
    /// What really ran with a good end: path, and what ran before it.
    good: BTreeMap<DeploymentId, (StorePath, Option<StorePath>)>,
    /// The deployment that is being offered, when one is.
    pub(crate) offering: Option<usize>,
    /// Which outcomes the broker has acknowledged.
    pub(crate) acknowledged: Vec<Told>,
    /// For which deployments there was a job.
    pub(crate) activated: BTreeSet<DeploymentId>,
    /// In which boot something was staged.
    staged: BTreeMap<DeploymentId, usize>,
    /// What was ordered at the machine and begun: its path.
    local: BTreeMap<DeploymentId, StorePath>,
    /// How often something got its end by a boot.
    pub(crate) booted: usize,
    /// For whom the way to the broker was proven.
    pub(crate) reached: Option<DeploymentId>,
}

impl Promises {
    /// A ledger becomes durable.
    pub(crate) fn persist(world: &mut World, new: &Ledger) -> Result<(), String> {
        Self::floor(world, new)?;
        Self::local(world, new)?;
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
            let told = Told {
                id,
                state: record.entry.state,
            };
            if record.delivered && !world.promises.acknowledged.contains(&told) {
                return Err(format!("the outcome of {id} counts as told, and is not"));
            }
            match world.promises.outcomes.get(&id) {
                Some(known) if *known == record.entry => {}
                Some(known) if known.state == State::Staged => {
                    Self::ends_staged(world, new, &record.entry)?;
                    Self::remember(world, &record.entry);
                }
                Some(known) => {
                    return Err(format!(
                        "the outcome of {id} changed from {} to {}",
                        known.state, record.entry.state
                    ));
                }
                None => {
                    Self::is_true(world, &record.entry)?;
                    if record.entry.state == State::Staged {
                        Self::note_staged(world, new, id)?;
                    }
                    Self::remember(world, &record.entry);
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

    /// What is done in the name of somebody at the machine was ordered there.
    fn local(world: &mut World, new: &Ledger) -> Result<(), String> {
        let local = |task: &&Task| task.origin == Origin::Local;
        let Some(task) = new.current.as_ref().filter(local) else {
            return Ok(());
        };
        let id = task.order.id;
        if !(1..=world.local_orders).any(|n| local_id(n) == id) {
            return Err(format!("begins {id}, which nobody ordered at the machine"));
        }
        if let Some(path) = task.path.clone() {
            world.promises.local.insert(id, path);
        }
        Ok(())
    }

    fn remember(world: &mut World, entry: &HistoryEntry) {
        let id = entry.id;
        let ran = matches!(entry.state, State::Succeeded | State::Unchanged);
        let staged = entry.state == State::Staged;
        if let Some(path) = entry.path.clone().filter(|_| ran || staged) {
            let ran = (path, entry.previous_path.clone());
            world.promises.good.insert(id, ran);
        }
        world.promises.outcomes.insert(id, entry.clone());
    }

    /// Something waits for a reboot: the ledger has to know in which boot it was staged.
    fn note_staged(world: &mut World, new: &Ledger, id: DeploymentId) -> Result<(), String> {
        let job = world.jobs.get(&id).and_then(|job| job.end.as_ref());
        let boot_id = job.and_then(|end| end.boot_id.clone());
        let boot_id = boot_id.unwrap_or_else(|| world.boot_id());
        let staged = new.staged.as_ref().filter(|staged| staged.id() == id);
        // It may have got its end in the same breath; else it has to be remembered.
        if staged.is_some_and(|staged| staged.boot_id != boot_id) {
            return Err(format!(
                "{id} was staged in {boot_id}, and the ledger says otherwise"
            ));
        }
        let boot = boot_id.as_str().trim_start_matches("boot-");
        world.promises.staged.insert(id, boot.parse().unwrap());
        Ok(())
    }

    /// What was staged gets its end.
    fn ends_staged(world: &mut World, new: &Ledger, entry: &HistoryEntry) -> Result<(), String> {
        let id = entry.id;
        let rebooted = world
            .promises
            .staged
            .get(&id)
            .is_some_and(|boot| *boot < world.boots);
        let is_booted = entry.path.as_ref() == Some(&world.booted);
        let replaced = || {
            new.history.iter().any(|record| {
                let state = record.entry.state;
                let sets = matches!(state, State::Succeeded | State::Unchanged | State::Staged);
                record.entry.id != id && sets
            })
        };
        let is_true = match entry.state {
            State::Succeeded => rebooted && is_booted,
            State::RolledBack => rebooted && !is_booted,
            State::Superseded | State::Cancelled => replaced(),
            _ => false,
        };
        if !is_true {
            return Err(format!("{id} was staged, and is told as {}", entry.state));
        }
        if rebooted && matches!(entry.state, State::Succeeded | State::RolledBack) {
            world.promises.booted += 1;
        }
        Ok(())
    }

    /// Something is begun: not while the machine is held, and not before its time.
    pub(crate) fn begin(world: &World, id: DeploymentId) -> Result<(), String> {
        if world.promises.local.contains_key(&id) {
            return Ok(());
        }
        if world.disk.is_held(world.moment().now) {
            return Err(format!("begins {id} on a machine that is held"));
        }
        let mut published = world.fleet.published.iter();
        match published.find(|published| published.id() == id) {
            Some(published) => match published.offer.deployment.deployment().parts().held {
                Held::UntilReleased => Err(format!("begins {id}, which holds the machine")),
                Held::Until(until) if world.moment().now < until => Err(format!(
                    "begins {id}, which holds the machine until {until}"
                )),
                Held::Until(_) | Held::No => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Somebody at the machine was answered.
    pub(crate) fn answer(
        world: &mut World,
        result: Result<LocalDone, Text<1024>>,
    ) -> Result<(), String> {
        match result {
            Ok(LocalDone::Begun { id, path }) => {
                if !world.disk.knows(id) {
                    return Err(format!("says that {id} is begun before it is durable"));
                }
                if world.promises.local.get(&id) != Some(&path) {
                    return Err(format!("says that {id} brings {path}"));
                }
            }
            Ok(LocalDone::Held) if world.disk.hold.is_none() => {
                return Err("says that it is held before that is durable".to_owned());
            }
            Ok(LocalDone::Released) if world.disk.hold.is_some() => {
                return Err("says that it is released before that is durable".to_owned());
            }
            Ok(_) | Err(_) => {}
        }
        Ok(())
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
        let proven = |job: &Job| match job.origin {
            Origin::Publisher => job.order == floor,
            Origin::Local => (job.order.epoch, job.order.sequence) == (floor.epoch, floor.sequence),
        };
        if world.jobs.values().any(proven) && old.is_none_or(|old| old < floor) {
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
                Some(end) if end.state == State::Staged => {
                    let rebooted = end.boot_id != Some(world.boot_id());
                    let state = match world.booted == job.path {
                        true => State::Succeeded,
                        false => State::RolledBack,
                    };
                    (rebooted && told == state)
                        .then_some(())
                        .ok_or_else(|| format!("{id} was staged, and is told as {told}"))
                }
                Some(end) => Err(format!("{id} ended as {}, told is {told}", end.state)),
                None => Err(format!("{id} is told as {told} before its job has ended")),
            },
            None => match told {
                State::Staged => {
                    let is = entry.path.as_ref() == Some(&world.profile);
                    is.then_some(())
                        .ok_or_else(|| format!("{id} is told as staged, and does not boot"))
                }
                State::Unchanged if world.promises.local.contains_key(&id) => {
                    let path = entry.path.as_ref();
                    let same = path == Some(&world.running) && path == Some(&world.profile);
                    same.then_some(())
                        .ok_or_else(|| format!("{id} is told as unchanged, and is not"))
                }
                State::Unchanged if entry.path.is_none() => Self::stayed(world, entry),
                State::Unchanged => {
                    let path = entry.path.as_ref();
                    let mut published = world.fleet.published.iter();
                    if !published.any(|published| {
                        published.id() == id
                            && Self::meant(world, published.offer.deployment.deployment()) == path
                    }) {
                        return Err(format!("{id} is told as unchanged, and means another path"));
                    }
                    let mut published = world.fleet.published.iter();
                    let tests = published.any(|published| {
                        published.id() == id && published.special == Special::Action(Action::Test)
                    });
                    let boots = tests || path == Some(&world.profile);
                    let same = path == Some(&world.running) && boots;
                    same.then_some(())
                        .ok_or_else(|| format!("{id} is told as unchanged, and is not"))
                }
                State::Failed
                | State::Rejected
                | State::Expired
                | State::Superseded
                | State::Cancelled => Ok(()),
                _ => Err(format!("{id} is told as {told}, and was never activated")),
            },
        }
    }

    /// A deployment says that it left the machine as it was: it meant that, and came in time.
    fn stayed(world: &World, entry: &HistoryEntry) -> Result<(), String> {
        let id = entry.id;
        let mut published = world.fleet.published.iter();
        let Some(of) = published.find_map(|published| match published.special {
            Special::Stays(of) if published.id() == id => Some(world.fleet.published[of].id()),
            _ => None,
        }) else {
            return Err(format!("{id} is told as unchanged, and meant a path"));
        };
        let cancelled = world.promises.outcomes.get(&of).map(|entry| entry.state);
        match cancelled {
            Some(State::Succeeded | State::Unchanged | State::Staged) => Err(format!(
                "{id} is told to have cancelled {of}, which was carried out"
            )),
            _ => Ok(()),
        }
    }

    /// The path that a deployment means, by what this machine really ran.
    fn meant<'a>(world: &'a World, deployment: &'a Deployment) -> Option<&'a StorePath> {
        let ran = |id: DeploymentId| world.promises.good.get(&id);
        match &deployment.target().goal {
            Goal::Closure(path) => Some(path),
            Goal::Stay => None,
            Goal::Rollback(RollbackTo::Deployment(id)) => ran(*id)
                .filter(|_| {
                    let outcome = world.promises.outcomes.get(id);
                    outcome.is_none_or(|entry| entry.state != State::Staged)
                })
                .map(|(path, _)| path),
            Goal::Rollback(RollbackTo::Before(id)) => {
                ran(*id).and_then(|(_, previous)| previous.as_ref())
            }
        }
    }

    /// A job is about to be made.
    pub(crate) fn activate(world: &World, job: &JobOrder) -> Result<(), String> {
        let id = job.order.id;
        if !world.promises.activated.is_disjoint(&BTreeSet::from([id])) {
            return Err(format!("activates {id} a second time"));
        }
        Self::begin(world, id)?;
        if let Some(other) = world.jobs.values().find(|job| job.end.is_none()) {
            return Err(format!(
                "makes a job for {id} beside that of {}",
                other.order.id
            ));
        }
        if job.origin == Origin::Local {
            return match world.promises.local.get(&id) {
                Some(path) if *path == job.path => Ok(()),
                _ => Err(format!(
                    "activates {id}, which nobody ordered at the machine"
                )),
            };
        }
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
        let renewed = (deployment.parts().renews).and_then(|of| world.promises.outcomes.get(&of));
        if renewed.is_some_and(|entry| matches!(entry.state, State::Failed | State::RolledBack)) {
            return Err(format!("activates {id}, which renews what has failed"));
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
        let holds = |task: &Task| {
            let mut published = world.fleet.published.iter();
            published.any(|p| p.order() == task.order && p.special == Special::Held)
        };
        let waits = ledger.next.as_ref().is_some_and(|task| !holds(task));
        if ledger.current.is_some() || waits || !world.jobs.is_empty() {
            return Err("something is still under way".to_owned());
        }
        if *ledger != world.disk && ledger.refused == world.disk.refused {
            return Err("the agent knows more than its disk".to_owned());
        }
        if let Some(told) = ledger.undelivered().next() {
            return Err(format!("the outcome {told:?} was never delivered"));
        }
        let late = |staged: &&Staged| staged.boot_id != world.boot_id();
        if let Some(staged) = ledger.staged.as_ref().filter(late) {
            return Err(format!(
                "{} still waits for a reboot that has been",
                staged.id()
            ));
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
        if ledger.next.is_some() {
            return match (status.state, status.id) {
                (State::Held, told) if told == Some(id) => Ok(()),
                told => Err(format!(
                    "the status is {told:?}, and {id} holds the machine"
                )),
            };
        }
        let is_local = status
            .id
            .is_some_and(|id| world.promises.local.contains_key(&id));
        if (status.id != Some(id) && !is_local && !id.as_uuid().is_nil())
            || !status.state.is_final()
        {
            return Err(format!(
                "the status is about {:?}, the newest is {id}",
                status.id
            ));
        }
        let runs = matches!(status.state, State::Succeeded | State::Unchanged);
        // Another boot may have brought something else since.
        let brought = status.path.is_some();
        if runs && brought && world.boots == 1 && status.path.as_ref() != Some(&world.running) {
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

    /// How many orders at the machine were begun.
    pub(crate) fn begun_locally(&self) -> usize {
        self.local.len()
    }

    /// How often deployments ended in `state`.
    pub(crate) fn count(&self, state: State) -> usize {
        let outcomes = self.outcomes.values();
        outcomes.filter(|entry| entry.state == state).count()
    }
}
