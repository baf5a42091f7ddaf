//! From one deployment to the next: how each is begun, and how it ends.

use hoist_protocol::{
    Deployment, DeploymentId, Goal, HistoryEntry, Reason, RollbackTo, State, StorePath, Text,
};

use super::activating::Activating;
use super::fetching::Fetching;
use super::{Agent, Work};
use crate::effect::Effect;
use crate::input::{FoundJob, JobPhase, Moment};
use crate::ledger::{Ended, Floor, LOG_TAIL, Task};
use crate::report;

/// How often a deployment is begun: a crash while fetching begins it again.
const ATTEMPTS: u32 = 20;

/// How a deployment ended, before it is entered into the ledger.
pub(super) struct Outcome {
    pub(super) state: State,
    pub(super) reason: Option<Reason>,
    pub(super) message: Text<1024>,
    pub(super) previous: Option<StorePath>,
    pub(super) log: Option<(u64, Vec<Text<256>>)>,
}

impl Outcome {
    pub(super) fn new(state: State, reason: Option<Reason>, message: &str) -> Self {
        Self {
            state,
            reason,
            message: Text::lossy(message),
            previous: None,
            log: None,
        }
    }
}

impl Agent {
    pub(super) fn started(&mut self, moment: &Moment, jobs: Vec<FoundJob>) {
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
    pub(super) fn advance(&mut self, moment: &Moment) {
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
    pub(super) fn adopt(&mut self, moment: &Moment, job: FoundJob) {
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
    pub(super) fn follow(&mut self, moment: &Moment, job: FoundJob) {
        let id = job.order.id;
        let phase = job.phase.unwrap_or(JobPhase::Activating);
        self.work = Work::Activating(Activating::new(phase));
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
    pub(super) fn begin(&mut self, moment: &Moment, mut task: Task) {
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
        self.work = Work::Fetching(Box::new(Fetching::new(deployment, path)));
        self.fetch(moment);
    }

    /// The deployment of a task that is about to begin, verified with the keys that are trusted now.
    pub(super) fn verified(&mut self, task: &Task) -> Result<Deployment, Outcome> {
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

    pub(super) fn superseded(&mut self, moment: &Moment, task: Task, by: DeploymentId) {
        let message = format!("{by} came before it was activated");
        self.end(
            moment,
            task,
            Outcome::new(State::Superseded, None, &message),
        );
    }

    /// Records how `task`, which is no longer in the ledger, has ended.
    pub(super) fn end(&mut self, moment: &Moment, task: Task, outcome: Outcome) {
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
                fetched_bytes: None,
                changes: None,
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
    pub(super) fn end_current(&mut self, moment: &Moment, outcome: Outcome) {
        self.work = Work::Idle;
        let Some(task) = self.ledger.current.take() else {
            return;
        };
        self.effects.push(Effect::Forget(task.order.id));
        self.end(moment, task, outcome);
        self.advance(moment);
    }
}

pub(super) fn expired(deployment: &Deployment, moment: &Moment) -> Option<Outcome> {
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
