//! The state machine.

use std::collections::VecDeque;
use std::time::Duration;

use hoist_protocol::{
    Deployment, DeploymentId, FleetName, Goal, HealthCheck, HistoryEntry, KeyName, Machine, Reason,
    Refused, RollbackTo, State, Status, StorePath, System, Text, TrustedKeys, VerifiedDeployment,
    VerifyError,
};

use crate::admission::{Admission, admit};
use crate::effect::{Effect, FetchOrder, JobOrder};
use crate::input::{FetchFailure, FoundJob, Input, JobEnd, JobPhase, Moment, Offer, Realised};
use crate::ledger::{Ended, Floor, LOG_TAIL, Ledger, Signed, Task};
use crate::report;

/// How often a deployment is begun: a crash while fetching begins it again.
const ATTEMPTS: u32 = 20;

/// How often one attempt tries to fetch when the failure may pass by itself.
const FETCH_TRIES: u32 = 3;

/// The wait before the second try to fetch; it doubles.
const FETCH_WAIT: Duration = Duration::from_secs(3);

/// The longest wait before a dead activator is started again. It never gives up: until a job has a result,
/// nobody knows what the machine runs.
const ACTIVATOR_WAIT: Duration = Duration::from_secs(60);

/// Progress is reported no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

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
    /// Random for each start of the agent.
    pub session: Text<32>,
}

impl Config {
    pub(crate) fn fleet(&self) -> &FleetName {
        &self.machine.fleet
    }

    pub(crate) fn key_names(&self) -> Vec<KeyName> {
        let keys = self.trusted.keys();
        keys.iter().map(|key| key.name().clone()).collect()
    }

    /// The programs of a deployment's health checks for this machine's system.
    fn health_checks(&self, deployment: &Deployment) -> Vec<StorePath> {
        let checks = deployment.target().health_checks.iter();
        checks
            .filter_map(|HealthCheck::Program(programs)| programs.get(&self.system))
            .cloned()
            .collect()
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

#[derive(Debug)]
pub(crate) struct Fetching {
    deployment: Deployment,
    path: StorePath,
    tries: u32,
    /// When the next try is due; none while one runs.
    retry_at: Option<Duration>,
    pub(crate) percent: Option<u8>,
    pub(crate) message: Text<1024>,
}

#[derive(Debug)]
pub(crate) struct Activating {
    pub(crate) phase: JobPhase,
    /// How often the activator was lost.
    losses: u32,
    /// When it is started again; none while it runs.
    restart_at: Option<Duration>,
    pub(crate) message: Text<1024>,
}

/// How a deployment ended, before it is entered into the ledger.
struct Outcome {
    state: State,
    reason: Option<Reason>,
    message: Text<1024>,
    previous: Option<StorePath>,
    log: Option<(u64, Vec<Text<256>>)>,
}

impl Outcome {
    fn new(state: State, reason: Option<Reason>, message: &str) -> Self {
        Self {
            state,
            reason,
            message: Text::lossy(message),
            previous: None,
            log: None,
        }
    }
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
    /// The verified form of the ledger's next task, when it arrived since the start.
    offered: Option<VerifiedDeployment>,
    effects: Vec<Effect>,
    /// What the last report was about.
    reported: Option<DeploymentId>,
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
            effects: Vec::new(),
            reported: None,
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
        match &self.work {
            Work::Idle => None,
            Work::Fetching(fetching) => fetching.retry_at,
            Work::Activating(activating) => activating.restart_at,
        }
    }

    /// Takes an input and says what to do, in order.
    #[must_use = "an effect that is not carried out is a promise that is not kept"]
    pub fn handle(&mut self, moment: &Moment, input: Input) -> Vec<Effect> {
        match input {
            Input::Started(jobs) => self.started(moment, jobs),
            Input::Offered(offer) => self.offered(moment, *offer),
            Input::Unverified { error, digest } => self.unverified(moment, &error, digest),
            Input::Connected | Input::Refresh => {
                self.report(moment);
                self.report_history();
            }
            Input::Delivered(ids) => self.may_persist |= self.ledger.deliver(&ids),
            Input::FetchProgress { id, percent } => self.fetch_progress(moment, id, percent),
            Input::Fetched { id, result } => self.fetched(moment, id, result),
            Input::JobNotCreated { id, message } => self.job_not_created(moment, id, &message),
            Input::ActivatorLost { id, message } => self.activator_lost(moment, id, message),
            Input::JobPhase { id, phase } => self.job_phase(moment, id, phase),
            Input::JobEnded { id, end } => self.job_ended(moment, id, *end),
            Input::BrokerReached { id } => self.broker_reached(id),
            Input::Tick => self.tick(moment),
        }
        if std::mem::take(&mut self.has_outcome) {
            // A newer one may have ended first, and what is retained has to be about the newest.
            let newest = self.ledger.last.as_ref().map(|last| last.entry.id);
            if self.ledger.current.is_none() && newest != self.reported {
                self.report(moment);
            }
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

    // Admission

    fn offered(&mut self, moment: &Moment, offer: Offer) {
        let Offer { deployment, signed } = offer;
        let id = deployment.deployment().id();
        let floor = match admit(self.ledger.floor.as_ref(), &deployment, moment) {
            Admission::New(_) if self.ledger.knows(id) => {
                // Outcomes are told by id: with two of one id, nobody could tell which is meant.
                let digest = hoist_protocol::digest(&signed);
                let message =
                    format!("the id {id} was used before; a new deployment needs a new one");
                return self.refuse(moment, digest, Reason::Stale, &message);
            }
            Admission::New(floor) => floor,
            Admission::Repeat => return,
            Admission::Refused { reason, message } => {
                let digest = hoist_protocol::digest(&signed);
                return self.refuse(moment, digest, reason, &message);
            }
        };
        let order = floor.order;
        self.must_persist = true;
        // The floor rises before anything else is looked at: also an expired one makes the older ones old.
        self.ledger.floor = Some(floor);
        if let Some(waiting) = self.ledger.next.take() {
            self.superseded(moment, waiting, order.id);
        }
        if let Work::Fetching(_) = self.work
            && let Some(task) = self.ledger.current.take()
        {
            self.work = Work::Idle;
            self.effects.push(Effect::CancelFetch(task.order.id));
            self.effects.push(Effect::Forget(task.order.id));
            self.superseded(moment, task, order.id);
        }
        self.ledger.next = Some(Task {
            order,
            signed: Some(Signed::new(signed)),
            admitted_at: moment.now,
            attempts: 0,
            path: None,
            closure_size: None,
        });
        self.offered = Some(deployment);
        if self.ledger.current.is_some() {
            self.push_report(report::waiting(self, moment, order));
        }
        self.advance(moment);
    }

    fn unverified(&mut self, moment: &Moment, error: &VerifyError, digest: Text<64>) {
        let reason = match error {
            VerifyError::OtherMachine { .. } => Reason::OtherMachine,
            VerifyError::Payload(_) => Reason::Unsupported,
            VerifyError::Envelope(_) | VerifyError::Excess | VerifyError::Untrusted { .. } => {
                Reason::Unverified
            }
        };
        let message = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        self.refuse(moment, digest, reason, &message);
    }

    /// Notes a message that is not followed. Not persisted by itself: the broker retains the message, so that
    /// it comes again after a crash, and a hostile broker must not wear out the disk.
    fn refuse(&mut self, moment: &Moment, digest: Text<64>, reason: Reason, message: &str) {
        let known = self.ledger.refused.as_ref();
        if known.is_some_and(|r| r.refused_digest == digest && r.refused_reason == reason) {
            return;
        }
        self.ledger.refused = Some(Refused {
            refused_digest: digest,
            refused_reason: reason,
            refused_message: Text::lossy(message),
            refused_at: moment.now,
        });
        self.report(moment);
    }

    // From one task to the next

    fn started(&mut self, moment: &Moment, jobs: Vec<FoundJob>) {
        let mut found = None;
        for job in jobs {
            if self.current_id() == Some(job.order.id) {
                found = Some(job);
            } else if self.ledger.has_ended(job.order.id) {
                self.effects.push(Effect::Forget(job.order.id));
            } else {
                self.leftovers.push_back(job);
            }
        }
        if let Some(job) = found {
            self.follow(moment, job);
        } else if let Some(task) = self.ledger.current.take() {
            // No job, so nothing was activated.
            match self.ledger.next.as_ref().map(|next| next.order.id) {
                Some(newer) => {
                    self.must_persist = true;
                    self.superseded(moment, task, newer);
                }
                None => self.ledger.next = Some(task),
            }
        }
        self.advance(moment);
    }

    /// Begins what waits, when nothing is under way.
    fn advance(&mut self, moment: &Moment) {
        while self.ledger.current.is_none() {
            if let Some(job) = self.leftovers.pop_front() {
                self.adopt(moment, job);
            } else if let Some(task) = self.ledger.next.take() {
                self.begin(moment, task);
            } else {
                return;
            }
        }
    }

    /// Takes on a job that the ledger does not know. It was verified when it was made, and lies where only
    /// the agent can write, as the ledger does.
    fn adopt(&mut self, moment: &Moment, job: FoundJob) {
        let order = job.order;
        self.must_persist = true;
        if self
            .ledger
            .floor
            .as_ref()
            .is_none_or(|floor| floor.order < order)
        {
            self.ledger.floor = Some(Floor {
                order,
                content: None,
            });
        }
        self.ledger.current = Some(Task {
            order,
            signed: None,
            admitted_at: moment.now,
            attempts: 1,
            path: Some(job.path.clone()),
            closure_size: None,
        });
        self.follow(moment, job);
    }

    /// Goes on with the job of the current task.
    fn follow(&mut self, moment: &Moment, job: FoundJob) {
        let id = job.order.id;
        let phase = job.phase.unwrap_or(JobPhase::Activating);
        self.work = Work::Activating(Activating {
            phase,
            losses: 0,
            restart_at: None,
            message: Text::default(),
        });
        if let Some(end) = job.end {
            return self.job_ended(moment, id, end);
        }
        if !job.alive {
            self.effects.push(Effect::StartActivator(id));
        } else if phase == JobPhase::Confirming {
            self.effects.push(Effect::ReachBroker(id));
        }
        self.report(moment);
    }

    /// Begins `task` from its start: verifies, resolves, fetches.
    fn begin(&mut self, moment: &Moment, mut task: Task) {
        self.must_persist = true;
        let deployment = match self.verified(&task) {
            Ok(deployment) => deployment,
            Err(outcome) => return self.end(moment, task, outcome),
        };
        if let Some(outcome) = expired(&deployment, moment) {
            return self.end(moment, task, outcome);
        }
        let path = match &deployment.target().goal {
            Goal::Closure(path) => path,
            Goal::Rollback(to) => match self.ledger.resolve(*to) {
                Some(path) => path,
                None => return self.end(moment, task, unknown(*to)),
            },
        };
        let path = path.clone();
        task.path = Some(path.clone());
        if task.attempts >= ATTEMPTS {
            let message = format!(
                "the agent was interrupted {ATTEMPTS} times before it could be activated; deploy again"
            );
            let outcome = Outcome::new(State::Failed, Some(Reason::Interrupted), &message);
            return self.end(moment, task, outcome);
        }
        task.attempts += 1;
        self.ledger.current = Some(task);
        self.work = Work::Fetching(Box::new(Fetching {
            deployment,
            path,
            tries: 0,
            retry_at: None,
            percent: None,
            message: Text::default(),
        }));
        self.fetch(moment);
    }

    /// The deployment of a task that is about to begin, verified with the keys that are trusted now.
    fn verified(&mut self, task: &Task) -> Result<Deployment, Outcome> {
        if let Some(offered) = self.offered.take()
            && offered.deployment().order() == task.order
        {
            return Ok(offered.deployment().clone());
        }
        let Some(signed) = &task.signed else {
            let message =
                "its job directory is gone, and nothing else is known about it; deploy again";
            return Err(Outcome::new(
                State::Failed,
                Some(Reason::Interrupted),
                message,
            ));
        };
        let machine = &self.config.machine;
        match self.config.trusted.verify(signed.as_bytes(), machine) {
            Ok(verified) => Ok(verified.deployment().clone()),
            Err(error) => {
                let message =
                    format!("the trusted keys have changed since it was admitted: {error}");
                Err(Outcome::new(
                    State::Rejected,
                    Some(Reason::Unverified),
                    &message,
                ))
            }
        }
    }

    fn superseded(&mut self, moment: &Moment, task: Task, by: DeploymentId) {
        let message = format!("{by} came before it was activated");
        self.end(
            moment,
            task,
            Outcome::new(State::Superseded, None, &message),
        );
    }

    /// Records how `task`, which is no longer in the ledger, has ended.
    fn end(&mut self, moment: &Moment, task: Task, outcome: Outcome) {
        let Task { order, .. } = task;
        let (log_lines, mut log_tail) = match outcome.log {
            Some((lines, tail)) => (Some(lines), tail),
            None => (None, Vec::new()),
        };
        let surplus = log_tail.len().saturating_sub(LOG_TAIL);
        log_tail.drain(..surplus);
        let ended = Ended {
            entry: HistoryEntry {
                id: order.id,
                epoch: order.epoch,
                sequence: order.sequence,
                state: outcome.state,
                reason: outcome.reason,
                message: Text::lossy(outcome.message.as_str()),
                path: task.path,
                previous_path: outcome.previous,
                started_at: task.admitted_at,
                ended_at: moment.now,
                closure_size: task.closure_size,
            },
            message: outcome.message,
            attempts: task.attempts,
            log_lines,
            log_tail,
        };
        self.push_report(report::ended(self, moment, &ended));
        self.ledger.record(ended);
        self.must_persist = true;
        self.has_outcome = true;
    }

    /// Ends the current task, removes what it left, and goes on with the next.
    fn end_current(&mut self, moment: &Moment, outcome: Outcome) {
        self.work = Work::Idle;
        let Some(task) = self.ledger.current.take() else {
            return;
        };
        self.effects.push(Effect::Forget(task.order.id));
        self.end(moment, task, outcome);
        self.advance(moment);
    }

    // Fetching

    fn fetching(&mut self, id: DeploymentId) -> Option<&mut Fetching> {
        match &mut self.work {
            Work::Fetching(fetching) if fetching.deployment.id() == id => Some(fetching),
            _ => None,
        }
    }

    /// Starts a try to fetch.
    fn fetch(&mut self, moment: &Moment) {
        let Work::Fetching(fetching) = &mut self.work else {
            return;
        };
        fetching.tries += 1;
        fetching.retry_at = None;
        let target = fetching.deployment.target();
        let order = FetchOrder {
            id: fetching.deployment.id(),
            path: fetching.path.clone(),
            kind: target.kind,
            health_checks: self.config.health_checks(&fetching.deployment),
            substituters: target.substituters.clone(),
            keys: target.substituter_keys.clone(),
        };
        self.effects.push(Effect::Fetch(Box::new(order)));
        self.progress_at = Some(moment.uptime);
        self.report(moment);
    }

    fn fetch_progress(&mut self, moment: &Moment, id: DeploymentId, percent: u8) {
        let Some(fetching) = self.fetching(id) else {
            return;
        };
        fetching.percent = Some(percent.min(100));
        let since = self.progress_at.map(|at| moment.uptime.saturating_sub(at));
        if since.is_none_or(|since| since >= PROGRESS_EVERY) {
            self.progress_at = Some(moment.uptime);
            self.report(moment);
        }
    }

    fn fetched(
        &mut self,
        moment: &Moment,
        id: DeploymentId,
        result: Result<Realised, FetchFailure>,
    ) {
        let Some(fetching) = self.fetching(id) else {
            return;
        };
        match result {
            Ok(realised) => self.realised(moment, realised),
            // Such a failure may be the network's, which comes back; the others would only repeat.
            Err(failure)
                if failure.reason == Reason::FetchFailed && fetching.tries < FETCH_TRIES =>
            {
                let wait = FETCH_WAIT * 2_u32.pow(fetching.tries - 1);
                fetching.retry_at = Some(moment.uptime + wait);
                fetching.percent = None;
                let message = format!("trying again in {} s: {}", wait.as_secs(), failure.message);
                fetching.message = Text::lossy(&message);
                self.report(moment);
            }
            Err(FetchFailure { reason, message }) => {
                let outcome = Outcome::new(State::Failed, Some(reason), message.as_str());
                self.end_current(moment, outcome);
            }
        }
    }

    fn realised(&mut self, moment: &Moment, realised: Realised) {
        let Work::Fetching(fetching) = &self.work else {
            return;
        };
        let Some(task) = &mut self.ledger.current else {
            return;
        };
        task.closure_size = realised.closure_size;
        if let Some(outcome) = expired(&fetching.deployment, moment) {
            return self.end_current(moment, outcome);
        }
        if realised.facts.are_all(&fetching.path) {
            let mut outcome = Outcome::new(State::Unchanged, None, "");
            outcome.previous = realised.facts.current;
            return self.end_current(moment, outcome);
        }
        let target = fetching.deployment.target();
        let job = JobOrder {
            order: task.order,
            path: fetching.path.clone(),
            kind: target.kind,
            health_checks: self.config.health_checks(&fetching.deployment),
            activation_timeout: target.activation_timeout(),
            confirm_timeout: target.confirm_timeout(),
        };
        let id = task.order.id;
        self.work = Work::Activating(Activating {
            phase: JobPhase::Activating,
            losses: 0,
            restart_at: None,
            message: Text::default(),
        });
        // The task is in the ledger already and the job is durable itself; the size may follow.
        self.effects.push(Effect::CreateJob(Box::new(job)));
        self.effects.push(Effect::StartActivator(id));
        self.may_persist = true;
        self.report(moment);
    }

    // Activating

    fn activating(&mut self, id: DeploymentId) -> Option<&mut Activating> {
        if self.current_id() != Some(id) {
            return None;
        }
        match &mut self.work {
            Work::Activating(activating) => Some(activating),
            Work::Idle | Work::Fetching(_) => None,
        }
    }

    fn job_not_created(&mut self, moment: &Moment, id: DeploymentId, message: &Text<1024>) {
        if self.activating(id).is_some() {
            let outcome = Outcome::new(State::Failed, Some(Reason::Internal), message.as_str());
            self.end_current(moment, outcome);
        }
    }

    fn activator_lost(&mut self, moment: &Moment, id: DeploymentId, message: Text<1024>) {
        let Some(activating) = self.activating(id) else {
            return;
        };
        if activating.restart_at.is_some() {
            return;
        }
        activating.losses += 1;
        activating.message = message;
        if activating.losses == 1 {
            self.effects.push(Effect::StartActivator(id));
        } else {
            let wait = Duration::from_secs(1 << activating.losses.min(8)) / 4;
            activating.restart_at = Some(moment.uptime + wait.min(ACTIVATOR_WAIT));
        }
        self.report(moment);
    }

    fn job_phase(&mut self, moment: &Moment, id: DeploymentId, phase: JobPhase) {
        let Some(activating) = self.activating(id) else {
            return;
        };
        if activating.phase == phase {
            return;
        }
        activating.phase = phase;
        if phase == JobPhase::Confirming {
            self.effects.push(Effect::ReachBroker(id));
        }
        self.report(moment);
    }

    fn broker_reached(&mut self, id: DeploymentId) {
        if let Some(activating) = self.activating(id)
            && activating.phase == JobPhase::Confirming
        {
            self.effects.push(Effect::Confirm(id));
        }
    }

    fn job_ended(&mut self, moment: &Moment, id: DeploymentId, end: JobEnd) {
        if self.activating(id).is_none() {
            return;
        }
        let mut outcome = Outcome::new(end.state, end.reason, end.message.as_str());
        if !end.state.is_final() {
            let message = format!("the activator ended in the state `{}`", end.state);
            outcome = Outcome::new(State::Failed, Some(Reason::Internal), &message);
        }
        outcome.previous = end.previous;
        outcome.log = Some((end.log_lines, end.log_tail));
        self.end_current(moment, outcome);
    }

    // Time

    fn tick(&mut self, moment: &Moment) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= moment.uptime);
        let id = self.current_id();
        match &mut self.work {
            Work::Fetching(fetching) if due(fetching.retry_at) => self.fetch(moment),
            Work::Activating(activating) if due(activating.restart_at) => {
                activating.restart_at = None;
                self.effects.extend(id.map(Effect::StartActivator));
            }
            Work::Idle | Work::Fetching(_) | Work::Activating(_) => {}
        }
    }

    // Reports

    fn report(&mut self, moment: &Moment) {
        self.push_report(self.status(moment));
    }

    fn push_report(&mut self, status: Status) {
        self.reported = status.id;
        self.effects.push(Effect::Report(Box::new(status)));
    }

    fn report_history(&mut self) {
        self.effects.push(report::history(self));
    }
}

fn expired(deployment: &Deployment, moment: &Moment) -> Option<Outcome> {
    if deployment.expires() > moment.now {
        return None;
    }
    let mut message = format!(
        "it expired at {}, and it is {} here; deploy again",
        deployment.expires(),
        moment.now
    );
    if !moment.synchronised {
        message.push_str(" (this machine's clock is not synchronised)");
    }
    Some(Outcome::new(
        State::Expired,
        Some(Reason::Expired),
        &message,
    ))
}

fn unknown(to: RollbackTo) -> Outcome {
    let message = match to {
        RollbackTo::Deployment(id) => {
            format!("this machine knows no deployment {id} that ended well")
        }
        RollbackTo::Before(id) => {
            format!("this machine does not know what ran before deployment {id}")
        }
    };
    Outcome::new(
        State::Rejected,
        Some(Reason::UnknownDeployment),
        &format!("{message}; `hoist status` lists what it knows"),
    )
}
