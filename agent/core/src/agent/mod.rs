//! The state machine.

mod activating;
mod desired;
mod fetching;
mod local;
mod staged;
mod standing;
mod task;
mod waiting;

use std::collections::VecDeque;
use std::time::Duration;

use hoist_protocol::{
    Deployment, DeploymentId, FleetName, KeyName, Machine, Status, System, Tag, Text, Timestamp,
    TrustedKeys,
};

use crate::effect::Effect;
use crate::input::{BootId, FoundJob, Input, Moment};
use crate::ledger::Ledger;
use crate::report;
use activating::Activating;
use fetching::Fetching;
pub(crate) use fetching::percent;
pub(crate) use waiting::Wait;

/// What the machine is, and whom it trusts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose agent this is.
    pub machine: Machine,
    /// Its Nix system.
    pub system: System,
    /// Who may say what it runs.
    pub trusted: TrustedKeys,
    /// The agent's version.
    pub version: Text<32>,
    /// What the machine is selected by.
    pub tags: Vec<Tag>,
    /// Random for each start of the agent.
    pub session: Text<32>,
    /// The boot that the agent lives in.
    pub boot_id: BootId,
}

impl Config {
    pub(crate) fn fleet(&self) -> &FleetName {
        &self.machine.fleet
    }

    pub(crate) fn key_names(&self) -> Vec<KeyName> {
        let keys = self.trusted.keys();
        keys.iter().map(|key| key.name().clone()).collect()
    }
}

/// What is being done for the ledger's current task; lost in a crash, and found again from the jobs on disk.
#[derive(Debug)]
pub(crate) enum Work {
    /// Nothing is under way.
    Idle,
    /// Nix fetches the closure.
    Fetching(Box<Fetching>),
    /// A job exists: the activator is at work, or has to be started again.
    Activating(Activating),
}

/// The agent of one machine.
#[derive(Debug)]
pub struct Agent {
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) work: Work,
    /// Jobs that the ledger does not know: it was lost, and they are finished one after another.
    leftovers: VecDeque<FoundJob>,
    /// When progress was last reported.
    progress_at: Option<Duration>,
    /// The ledger's next task as it was verified, once that was done since the start.
    offered: Option<Deployment>,
    /// The clocks at the latest input: the wall's, and that of the agent's life.
    clocks: (Timestamp, Duration),
    effects: Vec<Effect>,
    /// The ledger has changed in a way that the effects depend on.
    must_persist: bool,
    /// The ledger has changed in a way that only later inputs depend on.
    may_persist: bool,
    /// An outcome is new: the history has to be published.
    has_outcome: bool,
}

impl Agent {
    /// The agent that goes on from `ledger`. Its first input has to be [`Input::Started`].
    #[must_use]
    pub const fn new(config: Config, ledger: Ledger) -> Self {
        Self {
            config,
            ledger,
            work: Work::Idle,
            leftovers: VecDeque::new(),
            progress_at: None,
            offered: None,
            clocks: (Timestamp::from_ms(0), Duration::ZERO),
            effects: Vec::new(),
            must_persist: false,
            may_persist: false,
            has_outcome: false,
        }
    }

    /// What is known durably, once all effects so far are carried out.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The report of how things are.
    #[must_use]
    pub fn status(&self, moment: &Moment) -> Status {
        report::status(self, moment)
    }

    /// When [`Input::Tick`] is due, as time since the agent's start.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let work = match &self.work {
            Work::Idle => None,
            Work::Fetching(fetching) => fetching.retry_at(),
            Work::Activating(activating) => activating.restart_at(),
        };
        work.into_iter().chain(self.wait_ends_at()).min()
    }

    /// Takes an input and says what to do, in order.
    #[must_use = "an effect that is not carried out is a promise that is not kept"]
    pub fn handle(&mut self, moment: &Moment, input: Input) -> Vec<Effect> {
        self.clocks = (moment.now, moment.uptime);
        self.follow_clock(moment);
        let released = self.end_hold(moment);
        if !matches!(input, Input::Started(_)) {
            self.settle_staged(moment);
            if released {
                self.report(moment);
            }
        }
        match input {
            Input::Started(jobs) => {
                self.started(moment, jobs);
                // A job that ended before the reboot comes first: it may be what was booted.
                self.settle_staged(moment);
            }
            Input::Offered(offer) => self.offered(moment, *offer),
            Input::Unverified { error, digest } => self.unverified(moment, &error, digest),
            Input::Connected | Input::Refresh => {
                self.report(moment);
                self.report_history();
            }
            Input::Delivered(told) => self.may_persist |= self.ledger.deliver(&told),
            Input::FetchProgress { id, progress } => self.fetch_progress(moment, id, progress),
            Input::Fetched { id, result } => self.fetched(moment, id, result),
            Input::JobNotCreated { id, message } => self.job_not_created(moment, id, &message),
            Input::ActivatorLost { id, message } => self.activator_lost(moment, id, message),
            Input::JobPhase { id, phase } => self.job_phase(moment, id, phase),
            Input::JobEnded { id, end } => self.job_ended(moment, id, *end),
            Input::BrokerReached { id } => self.broker_reached(id),
            Input::Local(order) => self.local(moment, order),
            Input::Tick => self.tick(moment),
        }
        self.advance(moment);
        if std::mem::take(&mut self.has_outcome) {
            self.report_history();
        }
        let mut effects = std::mem::take(&mut self.effects);
        let ledger = || Effect::Persist(Box::new(self.ledger.clone()));
        if std::mem::take(&mut self.must_persist) {
            effects.insert(0, ledger());
        } else if self.may_persist {
            effects.push(ledger());
        }
        self.may_persist = false;
        effects
    }

    fn current_id(&self) -> Option<DeploymentId> {
        self.ledger.current.as_ref().map(|task| task.order.id)
    }

    fn tick(&mut self, moment: &Moment) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= moment.uptime);
        let id = self.current_id();
        match &mut self.work {
            Work::Fetching(fetching) if due(fetching.retry_at()) => self.fetch(moment),
            Work::Activating(activating) if due(activating.restart_at()) => {
                activating.restarted();
                self.effects.extend(id.map(Effect::StartActivator));
            }
            _ => {}
        }
    }

    fn report(&mut self, moment: &Moment) {
        self.push_report(self.status(moment));
    }

    fn push_report(&mut self, status: Status) {
        self.effects.push(Effect::Report(Box::new(status)));
    }

    fn report_history(&mut self) {
        self.effects.push(report::history(self));
    }
}
