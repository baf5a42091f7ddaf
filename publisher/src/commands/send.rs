//! What all commands share that publish: connect, look, sign, publish, follow, report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, Channel, DeploymentId, Draft, FleetName, Held, KnownOrders, Machine, Provenance,
    Target,
};
use uuid::Uuid;

use super::CommandError;
use super::choosing::{Choose, Chosen};
use super::ending::Ending;
use super::making::Made;
use super::rolling::{Divided, Outside};
use crate::ci::Log;
use crate::console::Console;
use crate::drive::{Driver, Interrupts, Stop};
use crate::follow::{Published, Run, Wait};
use crate::lines_shown::LinesShown;
use crate::link::{Link, filters};
use crate::options::Options;
use crate::outcome::Exit;
use crate::plan::{Hold, Orders, Wish};
use crate::report::{MachineReport, Report, RolloutReport};
use crate::rollout::Rollout;
use crate::select::Selection;
use crate::settings::{Caller, Keys, process_environment};
use crate::snapshot::{self, Snapshot, Wanted};
use crate::{DeploymentArgs, FollowArgs, WaitFor};

/// What is to be sent.
pub(super) enum Task {
    /// These targets to these machines, as far as they are meant.
    Targets(BTreeMap<AgentName, Target>, Selection),
    /// To machines of the fleet, what a command makes of what is known of each.
    Chosen(Selection, Box<dyn Choose>),
    /// These, which are signed already.
    Signed(Vec<Draft>),
}

/// Everything that is known before the connection.
pub(super) struct Sending<'a> {
    command: &'static str,
    deployment: &'a DeploymentArgs,
    follow: &'a FollowArgs,
    caller: Caller,
    keys: Keys,
    provenance: Provenance,
    log: Log,
    /// How the machines come one after the other; all at once without it.
    pub(super) rollout: Option<Rollout>,
    /// Whether machines that have the same deployment already are left out.
    pub(super) leaves_out: bool,
    /// Whether machines are let go that are held from afar.
    pub(super) releases: bool,
    /// The rollout of one batch that the deployments are when nobody here follows them: by its id `hoist wait` finds them,
    /// and `hoist deploy --signed` divides them into more.
    picked_up_as: Option<Uuid>,
    /// How machines go back when a rollout fails.
    pub(super) way_back: Options,
    /// What is said before anything else.
    pub(super) notes: Vec<String>,
    /// What is warned of before anything else.
    pub(super) warnings: Vec<String>,
}

impl<'a> Sending<'a> {
    pub(super) fn new(
        command: &'static str,
        deployment: &'a DeploymentArgs,
        follow: &'a FollowArgs,
        caller: Caller,
        keys: Keys,
    ) -> Result<Self, CommandError> {
        let waits_for_none = follow.is_async || follow.wait == WaitFor::None;
        Ok(Self {
            command,
            deployment,
            follow,
            caller,
            keys,
            picked_up_as: (waits_for_none || deployment.prepare.is_some()).then(Uuid::now_v7),
            provenance: super::provenance::gather(deployment, &process_environment)?,
            log: Log::begin(&process_environment),
            rollout: None,
            leaves_out: false,
            releases: false,
            way_back: Options::default(),
            notes: Vec::new(),
            warnings: Vec::new(),
        })
    }

    pub(super) const fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) const fn fleet(&self) -> &FleetName {
        &self.caller.fleet
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.follow.timeout
    }

    /// Does it. An error means that nothing was published.
    pub(super) async fn run(self, task: Task) -> Result<Exit, CommandError> {
        if self.deployment.prepare.is_none() && !matches!(task, Task::Signed(_)) {
            check_signers(&self.keys)?;
        }
        if let Task::Targets(targets, _) = &task {
            self.try_to_sign(targets)?;
        }
        let mut interrupts = Interrupts::listen().map_err(CommandError::Runtime)?;
        let mut console = Console::new(self.follow.quiet);
        for note in &self.notes {
            console.note(note);
        }
        let begin = Instant::now();
        let prepared = tokio::select! {
            prepared = self.prepare(task, &console) => prepared?,
            () = interrupts.next() => {
                console.warn("interrupted; nothing was published");
                return Ok(Exit::Interrupted);
            }
        };
        let warnings = self.announce(&prepared.made, &console);
        if let Some(file) = &self.deployment.prepare {
            let Prepared { link, made, .. } = prepared;
            link.close().await;
            return super::prepare::write(&self, made, warnings, file, &console, begin.elapsed());
        }
        let followed = self
            .carry_out(prepared, &mut console, &mut interrupts)
            .await;
        self.conclude(followed, warnings, begin, &console)
    }

    /// Says what is about to be published, and what is to be known of that; warnings come back for the report.
    fn announce(&self, made: &Made, console: &Console) -> Vec<String> {
        if !made.left_out.is_empty() {
            console.note(&made.said_of_left_out());
        } else if made.signed.is_empty() {
            console.note(match made.unsigned.is_empty() {
                true => "no machine is meant by that: nothing was published",
                false => "nothing was published",
            });
        }
        match made.signed.len() {
            0 => {}
            _ if self.deployment.prepare.is_some() => {}
            1 => self.log.section("Deploying to 1 machine"),
            machines => self
                .log
                .section(&format!("Deploying to {machines} machines")),
        }
        if let Some(divided) = &made.divided {
            console.note(&divided.said());
        }
        let mut warnings = self.warnings.clone();
        warnings.extend(made.warnings.sentences());
        for warning in &warnings {
            console.warn(warning);
        }
        warnings
    }

    /// Publishes what was made, follows it, and does what follows from how that ended.
    async fn carry_out(
        &self,
        prepared: Prepared,
        console: &mut Console,
        interrupts: &mut Interrupts,
    ) -> Followed {
        let Prepared {
            mut link,
            made,
            snapshot,
        } = prepared;
        let Made {
            divided,
            rollout: rollout_id,
            signed,
            unsigned,
            left_out,
            closures,
            ..
        } = made;
        let agents: Vec<AgentName> = signed
            .iter()
            .map(|signed| signed.machine.agent.clone())
            .collect();
        let filters = filters(&self.caller.fleet, &agents, self.channels());
        let mut run = Run::new(signed, self.keys.trusted.clone(), self.wait())
            .of_rollout(divided.as_ref().map(Divided::id));
        let mut pace = divided.as_ref().map(Divided::pace);
        if let Some(divided) = &divided {
            for (number, agent) in agents.iter().enumerate() {
                run.put_off(number, divided.batch(agent));
            }
        }
        let began = Instant::now();
        for agent in &agents {
            if let Some(seen) = snapshot.machine(agent) {
                run.knows(agent, seen);
            }
        }
        // What it holds of thousands of machines is in the run now, as far as it matters.
        drop(snapshot);
        let fleet = &self.caller.fleet;
        let mut driver = Driver::new(&mut link, console, fleet, &filters, self.follow.timeout);
        let stop = driver
            .drive(&mut run, pace.as_mut(), began, interrupts)
            .await;
        let lines_shown = driver.into_lines_shown();
        let rollout = divided.as_ref().zip(pace.as_ref());
        let report = rollout.map(|(divided, pace)| divided.report(pace, &stop));
        let outside = Outside {
            link: &mut link,
            console,
            filters: &filters,
            interrupts,
        };
        let ended = self.after(stop, rollout, &run, outside).await;
        console.finish();
        link.close().await;
        for warning in &ended.warnings {
            console.warn(warning);
        }
        let mut machines: Vec<MachineReport> = run
            .ends(began.elapsed(), now())
            .map(|(signed, end, said)| {
                let agent = &signed.machine.agent;
                let closure = closures.get(agent).cloned().unwrap_or_default();
                let mut machine = MachineReport::new(signed, end, said, closure);
                machine.batch = divided.as_ref().map(|divided| divided.part(agent).batch);
                if let Some(way_back) = &ended.way_back {
                    way_back.note(&mut machine);
                }
                machine
            })
            .collect();
        machines.extend(unsigned);
        machines.extend(left_out);
        Followed {
            stop: ended.stop,
            warnings: ended.warnings,
            published: run.published(),
            machines,
            rollout: report.or_else(|| {
                let nobody_waits = self.wait().is_none();
                rollout_id
                    .filter(|_| nobody_waits)
                    .map(RolloutReport::of_one)
            }),
            lines_shown,
        }
    }

    /// Reports it.
    fn conclude(
        &self,
        followed: Followed,
        mut warnings: Vec<String>,
        begin: Instant,
        console: &Console,
    ) -> Result<Exit, CommandError> {
        let Followed {
            stop,
            published,
            machines,
            rollout,
            lines_shown,
            ..
        } = followed;
        warnings.extend(followed.warnings);
        let fleet = self.caller.fleet.clone();
        let mut report = Report::new(self.command, fleet, machines, warnings, begin.elapsed());
        report.rollout = rollout;
        let ending = Ending {
            console,
            log: &self.log,
            waits_for_all: self.wait() == Some(Wait::All),
            timeout: self.follow.timeout,
            json: self.follow.json,
        };
        let exit = ending.finish(&mut report, &stop, &lines_shown, published)?;
        self.leave(console, &report);
        let is_left = self.wait().is_none() && published.there > 0;
        if let Some(rollout) = report.rollout.filter(|_| is_left) {
            let id = DeploymentId::new(rollout.id).short();
            console.note(&format!("`hoist wait --rollout {id}` waits for them"));
        }
        Ok(exit)
    }

    pub(super) const fn picked_up_as(&self) -> Option<Uuid> {
        self.picked_up_as
    }

    pub(super) fn wait(&self) -> Option<Wait> {
        match self.follow.wait {
            _ if self.follow.is_async => None,
            WaitFor::None => None,
            WaitFor::Online => Some(Wait::Online),
            WaitFor::All => Some(Wait::All),
        }
    }

    fn channels(&self) -> &'static [Channel] {
        use Channel::{Deploy, History, Log, Presence, Status};
        match self.wait() {
            None => &[Deploy, Status, Presence],
            Some(_) if self.follow.quiet => &[Deploy, Status, Presence, History],
            Some(_) => &[Deploy, Status, Presence, History, Log],
        }
    }

    pub(super) fn orders(&self) -> Orders<'_> {
        Orders {
            signers: &self.keys.signing,
            provenance: &self.provenance,
            valid_for: self.deployment.expires,
            raise_epoch: self.deployment.raise_epoch,
            now: now(),
        }
    }

    /// Whatever is wrong with what was asked for shows before there is a connection.
    fn try_to_sign(&self, targets: &BTreeMap<AgentName, Target>) -> Result<(), CommandError> {
        let orders = self.orders();
        for (agent, target) in targets {
            let machine = Machine::new(self.caller.fleet.clone(), agent.clone());
            let wish = Wish::of(target.clone());
            orders
                .draft(machine, wish, KnownOrders::default(), new_id())
                .map_err(CommandError::Plan)?;
        }
        Ok(())
    }

    fn wish(&self, target: Target) -> Wish {
        let wish = Wish::of(target);
        match self.releases {
            true => Wish {
                hold: Hold::Set(Held::No),
                ..wish
            },
            false => wish,
        }
    }

    /// Connects, looks at the machines, and signs.
    async fn prepare(&self, task: Task, console: &Console) -> Result<Prepared, CommandError> {
        let (mut link, snapshot) = self.look(&task).await?;
        let made = match task {
            Task::Targets(mut targets, selection) => {
                let at = now();
                targets.retain(|agent, _| selection.means(agent, snapshot.machine(agent), at));
                let wishes = (targets.into_iter())
                    .map(|(agent, target)| (agent, self.wish(target)))
                    .collect();
                self.make(wishes, &snapshot).await?
            }
            Task::Chosen(selection, choose) => {
                super::choosing::check_names(&mut link, &self.caller.fleet, &selection, &snapshot)
                    .await?;
                let chosen = Chosen::new(&snapshot, &selection, &*choose, &self.keys.trusted)?;
                chosen.tell(console);
                let mut made = self.make(chosen.wishes, &snapshot).await?;
                made.unsigned.extend(chosen.others);
                made
            }
            Task::Signed(drafts) => {
                super::signed::made(drafts, self.rollout, &snapshot, &self.keys.trusted)?
            }
        };
        Ok(Prepared {
            link,
            made,
            snapshot,
        })
    }

    /// Connects, and looks at the machines that a task may mean.
    pub(super) async fn look(&self, task: &Task) -> Result<(Link, Snapshot), CommandError> {
        use Channel::{Deploy, History, Log, Presence, Status};
        let (agents, channels, subscribed): (Vec<AgentName>, &[Channel], &[Channel]) = match task {
            Task::Signed(drafts) => (
                (drafts.iter())
                    .map(|draft| draft.deployment().machine().agent.clone())
                    .collect(),
                &[Deploy, Status, Presence],
                self.channels(),
            ),
            // A machine without a history is nothing to wait for, unless something is chosen from it.
            Task::Targets(targets, _) => (
                targets.keys().cloned().collect(),
                &[Deploy, Status, Presence],
                self.channels(),
            ),
            Task::Chosen(selection, _) => (
                selection.only_names().unwrap_or_default(),
                &[Deploy, Status, Presence, History],
                match self.wait() {
                    Some(_) if !self.follow.quiet => &[Deploy, Status, Presence, History, Log],
                    _ => &[Deploy, Status, Presence, History],
                },
            ),
        };
        let mut link = Link::open(&self.caller).await?;
        let wanted = Wanted {
            fleet: &self.caller.fleet,
            agents: &agents,
            channels,
            filters: &filters(&self.caller.fleet, &agents, subscribed),
        };
        let snapshot = snapshot::take(&mut link, &wanted).await?;
        Ok((link, snapshot))
    }

    pub(super) const fn follow(&self) -> &FollowArgs {
        self.follow
    }

    pub(super) const fn deployment(&self) -> &DeploymentArgs {
        self.deployment
    }

    pub(super) const fn log(&self) -> &Log {
        &self.log
    }

    pub(super) const fn command(&self) -> &'static str {
        self.command
    }
}

/// Whether what is signed here is enough for the machines, as far as somebody has said how much they want.
pub(super) fn check_signers(keys: &Keys) -> Result<(), CommandError> {
    let (have, required) = (keys.signing.len(), keys.required);
    if have < required {
        return Err(CommandError::TooFewSigners { have, required });
    }
    Ok(())
}

/// What [`Sending::carry_out`] leaves.
struct Followed {
    stop: Stop,
    /// What came up while it was carried out.
    warnings: Vec<String>,
    published: Published,
    machines: Vec<MachineReport>,
    rollout: Option<RolloutReport>,
    lines_shown: LinesShown,
}

/// What [`Sending::prepare`] leaves.
struct Prepared {
    link: Link,
    made: Made,
    snapshot: Snapshot,
}

pub(super) fn new_id() -> DeploymentId {
    DeploymentId::new(Uuid::now_v7())
}
