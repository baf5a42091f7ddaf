//! What `deploy` and `rollback` share: connect, look, sign, publish, follow, report.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, Channel, DeploymentId, FORMAT, FleetName, Goal, KnownOrders, Machine, Provenance,
    Target,
};
use uuid::Uuid;

use super::rolling::{Divided, WayBack};
use super::{CommandError, rollback, unknown_machine};
use crate::already::Already;
use crate::ci::{Log, summary};
use crate::console::{Console, print};
use crate::drive::{Driver, Interrupts, Stop};
use crate::follow::{Published, Run, Wait};
use crate::lines_shown::LinesShown;
use crate::link::{Link, filters};
use crate::options::Options;
use crate::outcome::{Exit, Outcome, exit_of};
use crate::plan::{Orders, Signed};
use crate::report::{Closure, MachineReport, Report};
use crate::rollout::Rollout;
use crate::select::Selection;
use crate::settings::{Caller, Keys, process_environment};
use crate::snapshot::{self, Seen, Snapshot, Wanted};
use crate::{DeploymentArgs, FollowArgs, WaitFor};

/// Most machines that are named in one sentence.
const NAMED: usize = 8;

/// What is to be sent.
pub(super) enum Task {
    /// These targets to these machines, as far as they are meant.
    Targets(BTreeMap<AgentName, Target>, Selection),
    /// This machine back, to this deployment when one is given.
    Rollback {
        agent: AgentName,
        to: Option<String>,
        options: Options,
    },
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
    pub(super) skips: bool,
    /// How machines go back when a rollout fails.
    pub(super) way_back: Options,
    /// What is said before anything else.
    pub(super) notes: Vec<String>,
    /// What is warned of before anything else.
    pub(super) warnings: Vec<String>,
}

/// What was made for the machines.
struct Made {
    divided: Option<Divided>,
    signed: Vec<Signed>,
    unsigned: Vec<MachineReport>,
    skipped: Vec<MachineReport>,
    closures: BTreeMap<AgentName, Closure>,
    warnings: Warnings,
}

impl<'a> Sending<'a> {
    pub(super) fn new(
        command: &'static str,
        deployment: &'a DeploymentArgs,
        follow: &'a FollowArgs,
        caller: Caller,
        keys: Keys,
    ) -> Result<Self, CommandError> {
        Ok(Self {
            command,
            deployment,
            follow,
            caller,
            keys,
            provenance: super::provenance::gather(deployment, &process_environment)?,
            log: Log::begin(&process_environment),
            rollout: None,
            skips: false,
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
        let Prepared {
            mut link,
            made,
            snapshot,
        } = prepared;
        if made.signed.is_empty() && made.unsigned.is_empty() && made.skipped.is_empty() {
            console.note("no machine is meant by that: nothing was published");
        }
        if !made.skipped.is_empty() {
            console.note(&skipped(&made));
        }
        match made.signed.len() {
            0 => {}
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
        let wait = self.wait();
        let agents: Vec<AgentName> = made
            .signed
            .iter()
            .map(|signed| signed.machine.agent.clone())
            .collect();
        let all_filters = filters(&self.caller.fleet, &agents, self.channels());
        let mut run = Run::new(made.signed, self.keys.trusted.clone(), wait);
        let mut pace = made.divided.as_ref().map(Divided::pace);
        if let Some(divided) = &made.divided {
            for (number, agent) in agents.iter().enumerate() {
                run.put_off(number, divided.batch(agent));
            }
        }
        let run_began = Instant::now();
        for agent in &agents {
            if let Some(seen) = snapshot.machine(agent) {
                run.knows(agent, seen);
            }
        }
        // What it holds of thousands of machines is in the run now, as far as it matters.
        drop(snapshot);
        let mut driver = Driver::new(
            &mut link,
            &mut console,
            &self.caller.fleet,
            &all_filters,
            self.follow.timeout,
        );
        let mut stop = driver
            .drive(&mut run, pace.as_mut(), run_began, &mut interrupts)
            .await;
        let lines_shown = driver.into_lines_shown();
        let rollout = (made.divided.as_ref().zip(pace.as_ref()))
            .map(|(divided, pace)| divided.report(pace, &stop));
        let mut way_back = None;
        if let (Stop::Halted(why), Some(divided)) = (&stop, &made.divided) {
            let why = *why;
            if divided.goes_back() {
                let back =
                    self.take_back(&run, &mut link, &mut console, &all_filters, &mut interrupts);
                way_back = Some(back.await?);
            }
            let sent_back = way_back.as_ref().map_or((0, 0), WayBack::counts);
            warnings.push(divided.halted(why, sent_back));
        }
        console.finish();
        link.close().await;
        if let (Stop::Halted(_), Some(warning)) = (&stop, warnings.last()) {
            console.warn(warning);
        }
        let mut machines: Vec<MachineReport> = run
            .ends(run_began.elapsed(), now())
            .map(|(signed, end, said)| {
                let agent = &signed.machine.agent;
                let closure = made.closures.get(agent).cloned();
                let mut machine =
                    MachineReport::new(signed, end, said, closure.unwrap_or_default());
                machine.batch = (made.divided.as_ref()).map(|divided| divided.part(agent).batch);
                if let Some(way_back) = &way_back {
                    way_back.note(&mut machine);
                }
                machine
            })
            .collect();
        if let Some(WayBack {
            stop: back @ (Stop::Interrupted | Stop::Lost(_)),
            ..
        }) = way_back
        {
            stop = back;
        }
        machines.extend(made.unsigned);
        machines.extend(made.skipped);
        let fleet = self.caller.fleet.clone();
        let mut report = Report::new(self.command, fleet, machines, warnings, begin.elapsed());
        report.rollout = rollout;
        self.finish(&console, report, &stop, &lines_shown, run.published())
    }

    /// Writes the files that tell of the run.
    fn leave(&self, console: &Console, report: &Report) {
        if let Some(path) = &self.follow.report {
            not_written(console, path, std::fs::write(path, report.to_json()));
        }
        if let Some(path) = &self.follow.summary {
            not_written(
                console,
                path,
                std::fs::write(path, summary::markdown(report)),
            );
        } else if let Some(path) = process_environment("GITHUB_STEP_SUMMARY") {
            // Other commands of the same step write there too.
            let file = OpenOptions::new().append(true).create(true).open(&path);
            let text = summary::markdown(report);
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            not_written(console, path.as_str().into(), written);
        }
    }

    fn wait(&self) -> Option<Wait> {
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
            keys: &self.keys.signing,
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
            orders
                .sign(
                    machine,
                    target.clone(),
                    KnownOrders::default(),
                    new_id(),
                    None,
                )
                .map_err(CommandError::Plan)?;
        }
        Ok(())
    }

    /// Connects, looks at the machines, and signs.
    async fn prepare(&self, task: Task, console: &Console) -> Result<Prepared, CommandError> {
        let mut link = Link::open(&self.caller).await?;
        let agents: Vec<AgentName> = match &task {
            Task::Targets(targets, _) => targets.keys().cloned().collect(),
            Task::Rollback { agent, .. } => vec![agent.clone()],
        };
        use Channel::{Deploy, History, Presence, Status};
        let wanted = Wanted {
            fleet: &self.caller.fleet,
            agents: &agents,
            // A machine without a history is nothing to wait for, unless one is chosen from it.
            channels: match task {
                Task::Targets(..) => &[Deploy, Status, Presence],
                Task::Rollback { .. } => &[Deploy, Status, Presence, History],
            },
            filters: &filters(
                &self.caller.fleet,
                &agents,
                match task {
                    Task::Targets(..) => self.channels(),
                    Task::Rollback { .. } => &[Deploy, Status, Presence, History, Channel::Log],
                },
            ),
        };
        let snapshot = snapshot::take(&mut link, &wanted).await?;
        let targets = match task {
            Task::Targets(mut targets, selection) => {
                let at = now();
                targets.retain(|agent, _| selection.means(agent, snapshot.machine(agent), at));
                targets
            }
            Task::Rollback { agent, to, options } => {
                let Some(seen) = snapshot.machine(&agent) else {
                    return Err(unknown_machine(&mut link, &self.caller.fleet, &agent).await);
                };
                let choice = rollback::choose(&agent, seen, to.as_deref())?;
                console.note(&choice.said);
                let target = options.target(Goal::Rollback(choice.to))?;
                let targets = BTreeMap::from([(agent, target)]);
                self.try_to_sign(&targets)?;
                targets
            }
        };
        let made = self.make(targets, &snapshot);
        Ok(Prepared {
            link,
            made,
            snapshot,
        })
    }

    fn make(&self, mut targets: BTreeMap<AgentName, Target>, snapshot: &Snapshot) -> Made {
        let orders = self.orders();
        let skipped = self.skip(&mut targets, snapshot);
        let mut made = Made {
            divided: (self.rollout.filter(|_| !targets.is_empty()))
                .map(|rollout| Divided::new(rollout, &targets, snapshot)),
            signed: Vec::new(),
            unsigned: Vec::new(),
            skipped,
            closures: BTreeMap::new(),
            warnings: Warnings::default(),
        };
        let nothing = Seen::default();
        for (agent, target) in targets {
            let machine = Machine::new(self.caller.fleet.clone(), agent.clone());
            let seen = snapshot.machine(&agent).unwrap_or(&nothing);
            let (known, unknown) = seen.orders(&machine, &self.keys.trusted);
            for warning in self.warnings(seen) {
                made.warnings.add(warning, &agent);
            }
            if let Some(error) = unknown {
                let warning = format!(
                    "the deployment on its topic is not taken into account: {error}; another publisher's public \
                     key belongs into --trusted-key or `trusted_keys`"
                );
                made.warnings.add(warning, &agent);
            }
            let closure = Closure::of(&target);
            let part = (made.divided.as_ref()).map(|divided| divided.part(&agent));
            match orders.sign(machine, target, known, new_id(), part) {
                Ok(signed) => {
                    made.closures.insert(agent, closure);
                    made.signed.push(signed);
                }
                Err(error) => {
                    let message = hoist_certs::program::report(&error.into());
                    made.warnings.add(message.clone(), &agent);
                    made.unsigned
                        .push(MachineReport::unsigned(agent, &message, closure));
                }
            }
        }
        made
    }

    /// Takes out of `targets` what machines have already.
    fn skip(
        &self,
        targets: &mut BTreeMap<AgentName, Target>,
        snapshot: &Snapshot,
    ) -> Vec<MachineReport> {
        // A higher epoch is something new for every machine.
        if !self.skips || self.deployment.raise_epoch {
            return Vec::new();
        }
        let already = match Already::new(&self.keys.signing, now(), self.deployment.expires) {
            Ok(already) => already,
            Err(error) => {
                tracing::debug!(%error, "no machine is left out");
                return Vec::new();
            }
        };
        let mut skipped = Vec::new();
        targets.retain(|agent, target| {
            let machine = Machine::new(self.caller.fleet.clone(), agent.clone());
            let seen = snapshot.machine(agent);
            let Some(by) = seen.and_then(|seen| already.by(&machine, seen, target)) else {
                return true;
            };
            skipped.push(MachineReport::skipped(&by, Closure::of(target)));
            false
        });
        skipped
    }

    /// What may keep the machine from carrying it out, by its own word.
    fn warnings(&self, seen: &Seen) -> Vec<String> {
        if !seen.has_reported() {
            let warning = "never reported; the deployment waits for it. Is the name right?";
            return vec![warning.to_owned()];
        }
        let mut warnings = Vec::new();
        if let Some((channel, error)) = &seen.unreadable {
            warnings.push(format!(
                "what it says on its {channel} topic cannot be read ({error}); a newer version of Hoist may \
                 have written it"
            ));
        }
        let Some(status) = &seen.status else {
            return warnings;
        };
        if !status.formats.contains(&FORMAT) {
            warnings.push(format!(
                "it does not say that it reads format {FORMAT}, which this version of hoist writes"
            ));
        }
        let signs = |name| self.keys.signing.iter().any(|key| key.name() == name);
        if !status.trusted_keys.is_empty() && !status.trusted_keys.iter().any(signs) {
            let names: Vec<&str> = status.trusted_keys.iter().map(AsRef::as_ref).collect();
            warnings.push(format!(
                "it trusts the keys {} and none that signs here, so it will refuse the deployment",
                names.join(", ")
            ));
        }
        warnings
    }

    fn finish(
        &self,
        console: &Console,
        mut report: Report,
        stop: &Stop,
        lines_shown: &LinesShown,
        published: Published,
    ) -> Result<Exit, CommandError> {
        let exit = match stop {
            Stop::Over | Stop::Halted(_) | Stop::TimeUp => {
                exit_of(&report.outcomes(), self.wait() == Some(Wait::All))
            }
            Stop::Interrupted => Exit::Interrupted,
            Stop::Lost(_) => Exit::Error,
        };
        if matches!(stop, Stop::Interrupted | Stop::Lost(_)) {
            report.time_was_not_up();
        }
        report.exit_code = exit.code();
        report.interrupted = matches!(stop, Stop::Interrupted);
        show_tails(console, &report, lines_shown);
        self.log.end_section();
        if self.follow.json {
            print(&report.to_json()).map_err(CommandError::Output)?;
        } else {
            print(&report.table()).map_err(CommandError::Output)?;
        }
        match stop {
            Stop::Over | Stop::Halted(_) => {}
            Stop::TimeUp => console.note(&format!(
                "the time was up after {}; {}",
                crate::duration::show(self.follow.timeout),
                how_to_watch(&report)
            )),
            Stop::Interrupted => {
                if !published.is_over() {
                    let Published { there, of, .. } = published;
                    console.warn(&format!(
                        "interrupted after {there} of {of} deployments had been published and read back"
                    ));
                }
                console.note(&format!(
                    "interrupted: the machines are left alone and go on by themselves; {}",
                    how_to_watch(&report)
                ));
            }
            Stop::Lost(error) => {
                let error = std::error::Error::source(error)
                    .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
                console.warn(&format!("{error}; {}", how_to_watch(&report)));
            }
        }
        let took = Duration::from_secs_f64(report.seconds);
        console.note(&format!(
            "{} in {}",
            report.summary(),
            crate::duration::show(took)
        ));
        self.log.annotate(&report);
        self.leave(console, &report);
        Ok(exit)
    }
}

/// That machines are left out, and what to do about it.
fn skipped(made: &Made) -> String {
    let (skipped, all) = (made.skipped.len(), made.skipped.len() + made.signed.len());
    let have = match (skipped, made.signed.is_empty()) {
        (1, true) => "the machine has it already: nothing was published".to_owned(),
        (_, true) => format!("all {skipped} machines have it already: nothing was published"),
        (1, false) => format!("1 of {all} machines has it already and is left out"),
        (_, false) => format!("{skipped} of {all} machines have it already and are left out"),
    };
    format!("{have} (--no-skip deploys again)")
}

/// A failure to write what CI is shown: what was done is done.
fn not_written(console: &Console, path: &Utf8Path, written: std::io::Result<()>) {
    if let Err(error) = written {
        console.warn(&format!("cannot write `{path}`: {error}"));
    }
}

/// What [`Sending::prepare`] leaves.
struct Prepared {
    link: Link,
    made: Made,
    snapshot: Snapshot,
}

/// Warnings about machines: what is true of a thousand is said once.
#[derive(Default)]
struct Warnings(Vec<(String, Vec<AgentName>)>);

impl Warnings {
    fn add(&mut self, warning: String, agent: &AgentName) {
        match self.0.iter_mut().find(|(known, _)| *known == warning) {
            Some((_, agents)) => agents.push(agent.clone()),
            None => self.0.push((warning, vec![agent.clone()])),
        }
    }

    fn sentences(&self) -> Vec<String> {
        let sentence = |(warning, agents): &(String, Vec<AgentName>)| {
            let names: Vec<&str> = agents.iter().take(NAMED).map(AgentName::as_str).collect();
            let more = match agents.len() - names.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{}{more}: {warning}", names.join(", "))
        };
        self.0.iter().map(sentence).collect()
    }
}

/// The end of the log of what did not go well, unless it has been seen as it came.
fn show_tails(console: &Console, report: &Report, lines_shown: &LinesShown) {
    for machine in &report.machines {
        let told = matches!(
            machine.outcome,
            Outcome::Failed | Outcome::RolledBack | Outcome::RollbackFailed | Outcome::Conflict
        );
        let all = machine.log_lines.unwrap_or(0);
        if !told || lines_shown.count(&machine.agent) >= all {
            continue;
        }
        let agent = &machine.agent;
        console.note(&format!(
            "{agent} | the last {} of {all} lines of its log:",
            machine.log_tail.len()
        ));
        for line in &machine.log_tail {
            console.note(&format!("{agent} |   {}", line.as_str().replace('\n', " ")));
        }
    }
}

fn how_to_watch(report: &Report) -> String {
    let open: Vec<&str> = report
        .machines
        .iter()
        .filter(|machine| matches!(machine.outcome, Outcome::TimedOut | Outcome::Offline))
        .map(|machine| machine.agent.as_str())
        .collect();
    if open.is_empty() || open.len() > NAMED {
        return "`hoist status` shows how they do".to_owned();
    }
    format!(
        "`hoist status {}` shows how they do, `hoist logs {} --follow` what they say",
        open.join(" "),
        open[0]
    )
}

pub(super) fn new_id() -> DeploymentId {
    DeploymentId::new(Uuid::now_v7())
}
