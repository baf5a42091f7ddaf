//! From one deployment to the next: how each is begun, and how it ends.

use hoist_protocol::{
    Changes, Deployment, DeploymentId, Goal, HistoryEntry, Kind, Order, Reason, RollbackTo, State,
    StorePath, Text,
};
use uuid::Uuid;

use super::activating::Activating;
use super::fetching::Fetching;
use super::{Agent, Work};
use crate::effect::Effect;
use crate::input::{BootId, FoundJob, JobPhase, Moment, Origin};
use crate::ledger::{Ended, Floor, How, LOG_TAIL, Task};
use crate::report;

/// How often a deployment is begun: a crash while fetching begins it again.
const ATTEMPTS: u32 = 20;

/// How a deployment ended, before it is entered into the ledger.
pub(super) struct Outcome {
    pub(super) state: State,
    pub(super) reason: Option<Reason>,
    pub(super) message: Text<1024>,
    pub(super) previous: Option<StorePath>,
    pub(super) kind: Option<Kind>,
    pub(super) boot_id: Option<BootId>,
    pub(super) log: Option<(u64, Vec<Text<256>>)>,
}

impl Outcome {
    pub(super) fn new(state: State, reason: Option<Reason>, message: &str) -> Self {
        Self {
            state,
            reason,
            message: Text::lossy(message),
            previous: None,
            kind: None,
            boot_id: None,
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
        self.verify_next(moment);
        if let Some(job) = found {
            self.follow(moment, job);
        } else if let Some(task) = self.ledger.current.take() {
            // No job, so nothing was activated.
            self.must_persist = true;
            if task.origin == Origin::Local {
                return self.begin(moment, task);
            }
            match self
                .ledger
                .next
                .as_ref()
                .map(|next| (next.order.id, next.cancels))
            {
                Some((newer, cancels)) => self.displaced(moment, task, newer, cancels),
                None => {
                    self.ledger.next = Some(task);
                    self.verify_next(moment);
                }
            }
        }
    }

    /// Begins what waits, when nothing is under way and nothing keeps it.
    pub(super) fn advance(&mut self, moment: &Moment) {
        while self.ledger.current.is_none() {
            if let Some(job) = self.leftovers.pop_front() {
                self.adopt(moment, job);
            } else if let Some(task) = self.ledger.next.take() {
                let expired = self
                    .offered
                    .as_ref()
                    .and_then(|offered| expired(offered, moment));
                if let Some(outcome) = expired {
                    self.must_persist = true;
                    self.end(moment, task, outcome);
                    continue;
                }
                self.ledger.next = Some(task);
                if self.wait(moment.now).is_some() {
                    return;
                }
                self.begin_next(moment);
            } else {
                return;
            }
        }
    }

    fn begin_next(&mut self, moment: &Moment) {
        if let Some(task) = self.ledger.next.take() {
            self.begin(moment, task);
        }
    }

    /// Takes on a job that the ledger does not know. It was verified when it was made, and lies where only
    /// the agent can write, as the ledger does.
    pub(super) fn adopt(&mut self, moment: &Moment, job: FoundJob) {
        let order = job.order;
        self.must_persist = true;
        // What was ordered at the machine only tells up to where publishers had come by then.
        let proven = match job.origin {
            Origin::Publisher => order,
            Origin::Local => Order {
                id: DeploymentId::new(Uuid::nil()),
                ..order
            },
        };
        let floor = self.ledger.floor.as_ref().map(|floor| floor.order);
        if floor.is_none_or(|floor| floor < proven) {
            self.ledger.floor = Some(Floor {
                order: proven,
                content: None,
            });
        }
        self.ledger.current = Some(Task {
            attempts: 1,
            path: Some(job.path.clone()),
            how: Some(How::of(&job.target)),
            action: Some(job.target.action),
            ..Task::unknown(order, job.origin, moment.now)
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
        if job.alive {
            self.reach_broker(id, phase);
        } else {
            self.effects.push(Effect::StartActivator(id));
        }
        self.report(moment);
    }

    /// Begins `task` from its start: verifies, resolves, fetches.
    pub(super) fn begin(&mut self, moment: &Moment, mut task: Task) {
        self.must_persist = true;
        let deployment = match self.verified(&task) {
            Ok(deployment) => deployment,
            Err(outcome) => return self.end(moment, task, *outcome),
        };
        if let Some(outcome) = expired(&deployment, moment) {
            return self.end(moment, task, outcome);
        }
        if let Some(outcome) = self.renews_a_failure(&deployment) {
            return self.end(moment, task, outcome);
        }
        let mut target = deployment.target().clone();
        let path = match &target.goal {
            Goal::Closure(path) => path.clone(),
            Goal::Stay => {
                let outcome = self.stays(&deployment);
                return self.end(moment, task, outcome);
            }
            Goal::Rollback(to) => match self.ledger.resolve(*to) {
                Some((path, how)) => {
                    let path = path.clone();
                    how.complete(&mut target);
                    path
                }
                None => return self.end(moment, task, unknown(*to)),
            },
        };
        task.path = Some(path.clone());
        task.how = Some(How::of(&target));
        task.action = Some(target.action);
        if task.attempts >= ATTEMPTS {
            let message = format!(
                "the agent was interrupted {ATTEMPTS} times before it could be activated; deploy again"
            );
            let outcome = Outcome::new(State::Failed, Some(Reason::Interrupted), &message);
            return self.end(moment, task, outcome);
        }
        task.attempts += 1;
        self.ledger.current = Some(task);
        self.work = Work::Fetching(Box::new(Fetching::new(deployment, target, path)));
        self.fetch(moment);
    }

    /// Makes sure that the next task is one that the keys still sign; else it ends.
    fn verify_next(&mut self, moment: &Moment) {
        let Some(task) = self.ledger.next.take() else {
            return;
        };
        match self.verified(&task) {
            Ok(deployment) => {
                self.offered = Some(deployment);
                self.ledger.next = Some(task);
            }
            Err(outcome) => {
                self.must_persist = true;
                self.end(moment, task, *outcome);
            }
        }
    }

    /// The deployment of a task, verified with the keys that are trusted now.
    pub(super) fn verified(&mut self, task: &Task) -> Result<Deployment, Box<Outcome>> {
        if let Some(local) = &task.local {
            return Ok((**local).clone());
        }
        if let Some(offered) = self
            .offered
            .take_if(|offered| offered.order() == task.order)
        {
            return Ok(offered);
        }
        let Some(signed) = &task.signed else {
            let message =
                "its job directory is gone, and nothing else is known about it; deploy again";
            return Err(Box::new(Outcome::new(
                State::Failed,
                Some(Reason::Interrupted),
                message,
            )));
        };
        let machine = &self.config.machine;
        match self.config.trusted.verify(signed.as_bytes(), machine) {
            Ok(verified) => Ok(verified.deployment().clone()),
            Err(error) => {
                let message =
                    format!("the trusted keys have changed since it was admitted: {error}");
                Err(Box::new(Outcome::new(
                    State::Rejected,
                    Some(Reason::Unverified),
                    &message,
                )))
            }
        }
    }

    /// Ends a task that was not activated, since a newer one takes its place.
    pub(super) fn displaced(
        &mut self,
        moment: &Moment,
        task: Task,
        by: DeploymentId,
        cancels: Option<DeploymentId>,
    ) {
        let (state, message) = if cancels == Some(task.order.id) {
            (
                State::Cancelled,
                format!(
                    "deployment {} cancelled it before it was activated",
                    by.short()
                ),
            )
        } else {
            (
                State::Superseded,
                format!("deployment {} came before it was activated", by.short()),
            )
        };
        self.end(moment, task, Outcome::new(state, None, &message));
    }

    /// Records how `task`, which is no longer in the ledger, has ended.
    pub(super) fn end(&mut self, moment: &Moment, task: Task, outcome: Outcome) {
        let Task { order, cancels, .. } = task;
        let how = task.how.map(|how| match outcome.kind {
            Some(kind) => How { kind, ..how },
            None => how,
        });
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
                local: task.origin == Origin::Local,
                state: outcome.state,
                reason: outcome.reason,
                message: Text::lossy(outcome.message.as_str()),
                path: task.path,
                previous_path: outcome.previous,
                started_at: task.admitted_at,
                ended_at: moment.now,
                closure_size: task.closure_size,
                fetched_bytes: task.fetch.map(|fetch| fetch.fetched_bytes),
                changes: task.changes.as_ref().map(counts),
            },
            message: outcome.message,
            attempts: task.attempts,
            how,
            action: task.action,
            fetch: task.fetch,
            changes: task.changes,
            log_lines,
            log_tail,
        };
        self.push_report(report::ended(self, moment, &ended));
        self.ledger.record(ended.clone());
        self.stage(moment, &ended, cancels, outcome.boot_id);
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
    }

    /// Stops the fetch for the current task, which is the caller's to end.
    pub(super) fn stop_fetching(&mut self) -> Option<Task> {
        let Work::Fetching(_) = self.work else {
            return None;
        };
        self.note_progress();
        self.work = Work::Idle;
        let task = self.ledger.current.take()?;
        self.effects.push(Effect::CancelFetch(task.order.id));
        self.effects.push(Effect::Forget(task.order.id));
        Some(task)
    }
}

/// How much has changed, without the packages by name: the history has to stay short.
fn counts(changes: &Changes) -> Changes {
    Changes {
        packages: Vec::new(),
        ..changes.clone()
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
