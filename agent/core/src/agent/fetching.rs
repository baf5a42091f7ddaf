//! While Nix fetches the closure.

use std::time::Duration;

use hoist_protocol::{Deployment, DeploymentId, Reason, State, StorePath, Text};

use super::activating::Activating;
use super::task::{Outcome, expired};
use super::{Agent, Work};
use crate::effect::{Effect, FetchOrder, JobOrder};
use crate::input::{FetchFailure, JobPhase, Moment, Realised};

/// How often one attempt tries to fetch when the failure may pass by itself.
const FETCH_TRIES: u32 = 3;

/// The wait before the second try to fetch; it doubles.
const FETCH_WAIT: Duration = Duration::from_secs(3);

/// Progress is reported no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

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

impl Fetching {
    pub(super) fn new(deployment: Deployment, path: StorePath) -> Self {
        Self {
            deployment,
            path,
            tries: 0,
            retry_at: None,
            percent: None,
            message: Text::default(),
        }
    }

    /// When the next try is due; none while one runs.
    pub(super) const fn retry_at(&self) -> Option<Duration> {
        self.retry_at
    }
}

impl Agent {
    pub(super) fn fetching(&mut self, id: DeploymentId) -> Option<&mut Fetching> {
        match &mut self.work {
            Work::Fetching(fetching) if fetching.deployment.id() == id => Some(fetching),
            _ => None,
        }
    }

    /// Starts a try to fetch.
    pub(super) fn fetch(&mut self, moment: &Moment) {
        let Work::Fetching(fetching) = &mut self.work else {
            return;
        };
        fetching.tries += 1;
        fetching.retry_at = None;
        let target = fetching.deployment.target();
        let order = FetchOrder {
            id: fetching.deployment.id(),
            path: fetching.path.clone(),
            kind: target.kind.clone(),
            digest: target.closure_digest,
            programs: target.programs(&self.config.system).cloned().collect(),
            substituters: target.substituters.clone(),
            keys: target.substituter_keys.clone(),
        };
        self.effects.push(Effect::Fetch(Box::new(order)));
        self.progress_at = Some(moment.uptime);
        self.report(moment);
    }

    pub(super) fn fetch_progress(&mut self, moment: &Moment, id: DeploymentId, percent: u8) {
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

    pub(super) fn fetched(
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

    pub(super) fn realised(&mut self, moment: &Moment, realised: Realised) {
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
            target: target.clone(),
        };
        let id = task.order.id;
        self.work = Work::Activating(Activating::new(JobPhase::Activating));
        // The task is in the ledger already and the job is durable itself; the size may follow.
        self.effects.push(Effect::CreateJob(Box::new(job)));
        self.effects.push(Effect::StartActivator(id));
        self.may_persist = true;
        self.report(moment);
    }
}
