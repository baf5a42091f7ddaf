//! The machine, its disk, its activator, and the broker.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hoist_agent_core::{
    Agent, BootId, Config, Effect, Facts, FetchFailure, FetchOrder, FoundJob, Input, JobEnd,
    JobOrder, JobPhase, Ledger, Moment, Origin, Realised, Told,
};
use hoist_protocol::{
    Action, DeploymentId, FetchProgress, History, Order, Reason, State, Status, StorePath, Target,
    Text, Timestamp,
};

use crate::fleet::{Fleet, START_MS, fleet};
use crate::promises::Promises;

/// A job directory, and the activator that works on it.
pub(crate) struct Job {
    pub(crate) order: Order,
    pub(crate) origin: Origin,
    pub(crate) path: StorePath,
    pub(crate) target: Target,
    pub(crate) phase: Option<JobPhase>,
    pub(crate) alive: bool,
    pub(crate) confirmed: bool,
    pub(crate) end: Option<JobEnd>,
    pub(crate) previous: StorePath,
    profile_before: StorePath,
}

/// What an activation does next, where it has a choice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    Good,
    Fails,
    /// The new system can only be booted into.
    NeedsBoot,
}

pub(crate) struct World {
    pub(crate) fleet: &'static Fleet,
    // What survives a crash of the agent.
    pub(crate) disk: Ledger,
    pub(crate) jobs: BTreeMap<DeploymentId, Job>,
    pub(crate) running: StorePath,
    /// What the profile names and the boot loader boots.
    pub(crate) profile: StorePath,
    pub(crate) booted: StorePath,
    /// How often the machine was booted.
    pub(crate) boots: usize,
    /// Whether the agent can tell what runs.
    pub(crate) facts_known: bool,
    /// How many orders there were at the machine.
    pub(crate) local_orders: usize,
    pub(crate) now_ms: u64,
    pub(crate) synchronised: bool,
    // The broker.
    pub(crate) retained: Option<usize>,
    pub(crate) status: Option<Status>,
    pub(crate) history: Option<History>,
    // What does not survive.
    pub(crate) agent: Option<Agent>,
    pub(crate) uptime: Duration,
    pub(crate) connected: bool,
    pub(crate) fetch: Option<FetchOrder>,
    pub(crate) reaching: Option<DeploymentId>,
    pub(crate) unacknowledged: Vec<Vec<Told>>,
    seen: BTreeMap<DeploymentId, JobPhase>,
    answers: VecDeque<Input>,
    pub(crate) promises: Promises,
    trace: Option<Vec<String>>,
}

/// Whether the agent lives on after an effect.
pub(crate) enum After {
    GoOn,
    /// The agent dies before this effect.
    Crash,
    /// This effect fails, as far as it can.
    Fault,
}

impl World {
    pub(crate) fn new(tracing: bool) -> Self {
        let fleet = fleet();
        Self {
            fleet,
            disk: Ledger::default(),
            jobs: BTreeMap::new(),
            running: fleet.original.clone(),
            profile: fleet.original.clone(),
            booted: fleet.original.clone(),
            boots: 1,
            facts_known: true,
            local_orders: 0,
            now_ms: START_MS + 60_000,
            synchronised: true,
            retained: None,
            status: None,
            history: None,
            agent: None,
            uptime: Duration::ZERO,
            connected: false,
            fetch: None,
            reaching: None,
            unacknowledged: Vec::new(),
            seen: BTreeMap::new(),
            answers: VecDeque::new(),
            promises: Promises::default(),
            trace: tracing.then(Vec::new),
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    pub(crate) fn take_trace(&mut self) -> Option<String> {
        self.trace.take().map(|lines| lines.join("\n"))
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment {
            now: Timestamp::from_ms(self.now_ms),
            synchronised: self.synchronised,
            uptime: self.uptime,
            facts: match self.facts_known {
                true => self.facts(),
                false => Facts::default(),
            },
            broker: None,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts {
            current: Some(self.running.clone()),
            profile: Some(self.profile.clone()),
            boot_default: Some(self.profile.clone()),
            booted: Some(self.booted.clone()),
            ..Facts::default()
        }
    }

    /// The agent is gone, with all that only it knew.
    pub(crate) fn crash(&mut self) {
        self.note(|| "  the agent dies".to_owned());
        self.agent = None;
        self.connected = false;
        self.fetch = None;
        self.reaching = None;
        self.unacknowledged.clear();
        self.seen.clear();
        self.answers.clear();
        self.promises.reached = None;
    }

    pub(crate) fn boot_id(&self) -> BootId {
        Text::lossy(&format!("boot-{}", self.boots))
    }

    /// Everything stops; a NixOS machine boots what its profile names, or what somebody chose instead.
    pub(crate) fn power_cut(&mut self, chosen: Option<StorePath>) {
        self.note(|| format!("power cut, {chosen:?} is chosen"));
        self.crash();
        for job in self.jobs.values_mut() {
            job.alive = false;
        }
        self.running = chosen.unwrap_or_else(|| self.profile.clone());
        self.booted = self.running.clone();
        self.boots += 1;
    }

    /// The ledger was damaged and set aside: what it promised is gone, the jobs are not.
    pub(crate) fn lose_ledger(&mut self) {
        self.note(|| "the ledger is lost".to_owned());
        self.crash();
        self.disk = Ledger::default();
        self.promises = Promises::default();
    }

    /// The input that a starting agent gets.
    pub(crate) fn start(&mut self) -> Input {
        // What is read back has to be what was written.
        let json = serde_json::to_string(&self.disk).unwrap();
        let ledger: Ledger = serde_json::from_str(&json).unwrap();
        assert_eq!(
            ledger, self.disk,
            "the ledger changed on its way to disk and back"
        );
        let config = Config {
            boot_id: self.boot_id(),
            ..self.fleet.config.clone()
        };
        self.agent = Some(Agent::new(config, ledger));
        let phases = self
            .jobs
            .iter()
            .filter_map(|(id, job)| Some((*id, job.phase?)));
        self.seen = phases.collect();
        let jobs = self.jobs.values();
        let found = jobs.map(|job| FoundJob {
            order: job.order,
            origin: job.origin,
            path: job.path.clone(),
            target: job.target.clone(),
            phase: job.phase,
            alive: job.alive,
            end: job.end.clone(),
        });
        Input::Started(found.collect())
    }

    /// Hands `input` to the agent and carries its effects out; `after` decides before each how it goes.
    pub(crate) fn handle(
        &mut self,
        input: Input,
        mut after: impl FnMut() -> After,
    ) -> Result<(), String> {
        let moment = self.moment();
        self.answers.push_back(input);
        while let Some(input) = self.answers.pop_front() {
            self.note(|| format!("input {}", brief(&input)));
            if let Input::Delivered(told) = &input {
                self.promises.acknowledged.extend(told.iter().copied());
            }
            let Some(agent) = &mut self.agent else {
                return Ok(());
            };
            for effect in agent.handle(&moment, input) {
                match after() {
                    After::Crash => {
                        self.crash();
                        return Ok(());
                    }
                    After::Fault => self.apply(effect, true)?,
                    After::GoOn => self.apply(effect, false)?,
                }
                if self.agent.is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, effect: Effect, fault: bool) -> Result<(), String> {
        self.note(|| {
            format!(
                "  {}{}",
                shown(&effect),
                if fault { " (fault)" } else { "" }
            )
        });
        match effect {
            // A ledger that cannot be written ends the agent.
            Effect::Persist(_) if fault => self.crash(),
            Effect::Persist(ledger) => {
                Promises::persist(self, &ledger)?;
                self.disk = *ledger;
            }
            Effect::Fetch(order) => {
                if self.disk.current.as_ref().map(|task| task.order.id) != Some(order.id) {
                    return Err(format!("fetches {} before it is in the ledger", order.id));
                }
                Promises::begin(self, order.id)?;
                self.fetch = Some(*order);
            }
            Effect::CancelFetch(id) => {
                self.fetch.take_if(|fetch| fetch.id == id);
            }
            Effect::CreateJob(order) => self.create_job(&order, fault)?,
            Effect::StartActivator(id) => self.start_activator(id, fault)?,
            Effect::ReachBroker(id) => self.reaching = Some(id),
            Effect::Confirm(id) => {
                if self.promises.reached != Some(id) {
                    return Err(format!("confirms {id} without having reached the broker"));
                }
                if self.seen.get(&id) != Some(&JobPhase::Confirming) {
                    return Err(format!("confirms {id}, which did not ask for it"));
                }
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.confirmed |= job.phase == Some(JobPhase::Confirming) && job.alive;
                }
            }
            Effect::Forget(id) => {
                if !self.disk.has_ended(id) {
                    return Err(format!("forgets {id} before its outcome is durable"));
                }
                if let Some(job) = self.jobs.remove(&id)
                    && job.end.is_none()
                {
                    return Err(format!("forgets {id}, which is not at its end"));
                }
            }
            Effect::Answer { result, .. } => Promises::answer(self, result)?,
            Effect::Report(status) => {
                Promises::report(self, &status)?;
                if self.connected {
                    self.status = Some(*status);
                }
            }
            Effect::ReportHistory {
                history,
                undelivered,
            } => {
                if let Some(entry) = history.entries.iter().find(|e| !self.disk.has_ended(e.id)) {
                    return Err(format!(
                        "tells the outcome of {} before it is durable",
                        entry.id
                    ));
                }
                if self.connected {
                    self.history = Some(*history);
                    self.unacknowledged.push(undelivered);
                }
            }
        }
        Ok(())
    }

    fn create_job(&mut self, order: &JobOrder, fault: bool) -> Result<(), String> {
        Promises::activate(self, order)?;
        let id = order.order.id;
        if fault {
            let message = Text::lossy("no space left on device");
            self.answers.push_back(Input::JobNotCreated { id, message });
            return Ok(());
        }
        let job = Job {
            order: order.order,
            origin: order.origin,
            path: order.path.clone(),
            target: order.target.clone(),
            phase: None,
            alive: false,
            confirmed: false,
            end: None,
            previous: self.running.clone(),
            profile_before: self.profile.clone(),
        };
        self.jobs.insert(id, job);
        self.promises.activated.insert(id);
        Ok(())
    }

    fn start_activator(&mut self, id: DeploymentId, fault: bool) -> Result<(), String> {
        if let Some(other) = self
            .jobs
            .values()
            .find(|job| job.alive && job.order.id != id)
        {
            return Err(format!("starts {id} while {} is active", other.order.id));
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            // The shell skips this when the job could not be made, which it has reported.
            return match self.answers.is_empty() {
                true => Err(format!("starts the activator of {id}, which has no job")),
                false => Ok(()),
            };
        };
        if fault || job.alive || job.end.is_some() {
            return Ok(());
        }
        job.alive = true;
        match job.phase {
            None | Some(JobPhase::Committing) => {}
            // Not confirmed: a dead activator's successor goes back.
            Some(_) => job.phase = Some(JobPhase::RollingBack),
        }
        Ok(())
    }

    // What happens in the world

    /// The activator of the live job takes a step; says what it did.
    pub(crate) fn activator_step(&mut self, fate: Fate) {
        let Some(job) = self.jobs.values_mut().find(|job| job.alive) else {
            return;
        };
        let mut end = None;
        let boot_id: BootId = Text::lossy(&format!("boot-{}", self.boots));
        let action = job.target.action;
        let stages = action == Action::Boot || fate == Fate::NeedsBoot && action == Action::Switch;
        let next = match (job.phase, fate) {
            (None, _) => JobPhase::Activating,
            (Some(JobPhase::Activating), _) if action == Action::DryActivate => {
                end = Some((State::DryActivated, None));
                JobPhase::Activating
            }
            (Some(JobPhase::Activating), Fate::Good | Fate::NeedsBoot) if stages => {
                self.profile = job.path.clone();
                end = Some((State::Staged, None));
                JobPhase::Committing
            }
            (Some(JobPhase::Activating | JobPhase::Checking), Fate::NeedsBoot) => return,
            (Some(JobPhase::Activating), Fate::Good) => {
                self.running = job.path.clone();
                JobPhase::Checking
            }
            (Some(JobPhase::Checking), Fate::Good) if job.origin == Origin::Local => {
                JobPhase::Committing
            }
            (Some(JobPhase::Checking), Fate::Good) => JobPhase::Confirming,
            (Some(JobPhase::Checking), Fate::Fails) => JobPhase::RollingBack,
            (Some(JobPhase::Activating), Fate::Fails) => {
                self.running = job.path.clone();
                JobPhase::RollingBack
            }
            (Some(JobPhase::Confirming), _) if job.confirmed => JobPhase::Committing,
            (Some(JobPhase::Confirming), Fate::Good | Fate::NeedsBoot) => return,
            (Some(JobPhase::Confirming), Fate::Fails) => JobPhase::RollingBack,
            (Some(JobPhase::Committing), _) => {
                self.running = job.path.clone();
                if action != Action::Test {
                    self.profile = job.path.clone();
                }
                end = Some((State::Succeeded, None));
                JobPhase::Committing
            }
            (Some(JobPhase::RollingBack), _) => {
                self.running = job.previous.clone();
                self.profile = job.profile_before.clone();
                end = Some((State::RolledBack, Some(Reason::NotConfirmed)));
                JobPhase::RollingBack
            }
        };
        job.phase = Some(next);
        if let Some((state, reason)) = end {
            job.alive = false;
            job.end = Some(JobEnd {
                state,
                reason,
                message: Text::default(),
                kind: None,
                boot_id: Some(boot_id),
                previous: Some(job.previous.clone()),
                log_lines: 3,
                log_tail: vec![Text::lossy("a line")],
            });
        }
        let (id, ended) = (job.order.id, job.end.is_some());
        self.note(|| format!("activator of {} is at {next:?}, ended: {ended}", id.short()));
    }

    pub(crate) fn kill_activator(&mut self) {
        self.note(|| "the activator dies".to_owned());
        for job in self.jobs.values_mut() {
            job.alive = false;
        }
    }

    /// What the shell sees when it looks at the jobs.
    pub(crate) fn poll(&mut self) -> Option<Input> {
        for (id, job) in &self.jobs {
            let id = *id;
            if let Some(end) = &job.end {
                let end = Box::new(end.clone());
                return Some(Input::JobEnded { id, end });
            }
            if !job.alive {
                let message = Text::lossy("no activator");
                return Some(Input::ActivatorLost { id, message });
            }
            if let Some(phase) = job.phase
                && self.seen.get(&id) != Some(&phase)
            {
                self.seen.insert(id, phase);
                return Some(Input::JobPhase { id, phase });
            }
        }
        None
    }

    /// Nix is done with what it was told to fetch.
    pub(crate) fn fetched(&mut self, failure: Option<Reason>) -> Option<Input> {
        let id = self.fetch.take()?.id;
        let result = match failure {
            Some(reason) => Err(FetchFailure {
                reason,
                message: Text::lossy("it did not work"),
                fetched: FetchProgress::default(),
            }),
            None => Ok(Realised {
                closure_size: Some(1_000),
                kind: None,
                fetched: FetchProgress::default(),
                changes: None,
                facts: self.facts(),
            }),
        };
        Some(Input::Fetched { id, result })
    }

    /// The fresh connection works.
    pub(crate) fn reached(&mut self) -> Option<Input> {
        let id = self.reaching.take()?;
        self.promises.reached = Some(id);
        self.connected = true;
        Some(Input::BrokerReached { id })
    }

    /// The tick that the agent asked for.
    pub(crate) fn tick(&mut self) -> Option<Input> {
        let at = self.agent.as_ref()?.wake_at()?;
        // The clock on the wall moves with the other one.
        let passed = at.saturating_sub(self.uptime);
        self.now_ms += u64::try_from(passed.as_millis()).unwrap();
        self.uptime = self.uptime.max(at);
        Some(Input::Tick)
    }
}

fn brief(input: &Input) -> String {
    match input {
        Input::Offered(offer) => {
            let order = offer.deployment.deployment().order();
            format!("Offered {} sequence {}", order.id.short(), order.sequence)
        }
        other => format!("{other:?}").chars().take(160).collect(),
    }
}

fn shown(effect: &Effect) -> String {
    match effect {
        Effect::Persist(ledger) => format!(
            "Persist floor {:?} current {:?} next {:?} ended {}",
            ledger.floor.as_ref().map(|floor| floor.order.id.short()),
            ledger.current.as_ref().map(|task| task.order.id.short()),
            ledger.next.as_ref().map(|task| task.order.id.short()),
            ledger.history.len()
        ),
        Effect::Report(status) => {
            let id = status.id.map(DeploymentId::short);
            format!("Report {} {:?} {:?}", status.state, id, status.reason)
        }
        Effect::ReportHistory { undelivered, .. } => {
            format!("ReportHistory, {} undelivered", undelivered.len())
        }
        other => format!("{other:?}").chars().take(160).collect(),
    }
}
