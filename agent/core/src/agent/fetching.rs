//! While Nix fetches the closure.

use std::time::Duration;

use hoist_protocol::{
    Action, Deployment, DeploymentId, FetchProgress, Reason, State, StorePath, Target, Text,
};

use super::activating::Activating;
use super::task::{Outcome, expired};
use super::waiting::share;
use super::{Agent, Work};
use crate::effect::{Effect, FetchOrder, JobOrder};
use crate::input::{Facts, FetchFailure, JobPhase, Moment, Realised};

/// How often one attempt tries to fetch when the failure may pass by itself.
const FETCH_TRIES: u32 = 4;

/// The longest wait before the second try to fetch; it doubles.
const FETCH_WAIT: Duration = Duration::from_secs(3);

/// Progress is reported no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Fetching {
    deployment: Deployment,
    /// Its target; of a rollback, with what the ledger knows about the former activation.
    target: Target,
    path: StorePath,
    tries: u32,
    /// When the next try is due; none while one runs.
    retry_at: Option<Duration>,
    /// What the tries that have failed have fetched: Nix keeps it.
    before: FetchProgress,
    pub(crate) progress: Option<FetchProgress>,
    pub(crate) message: Text<1024>,
}

impl Fetching {
    pub(super) fn new(deployment: Deployment, target: Target, path: StorePath) -> Self {
        Self {
            deployment,
            target,
            path,
            tries: 0,
            retry_at: None,
            before: FetchProgress::default(),
            progress: None,
            message: Text::default(),
        }
    }

    /// When the next try is due; none while one runs.
    pub(super) const fn retry_at(&self) -> Option<Duration> {
        self.retry_at
    }

    /// What has come in all, when this try has come so far.
    const fn in_all(&self, progress: FetchProgress) -> FetchProgress {
        let before = self.before;
        FetchProgress {
            fetched_bytes: before.fetched_bytes.saturating_add(progress.fetched_bytes),
            fetch_bytes: before.fetched_bytes.saturating_add(progress.fetch_bytes),
            fetched_paths: before.fetched_paths.saturating_add(progress.fetched_paths),
            fetch_paths: before.fetched_paths.saturating_add(progress.fetch_paths),
        }
    }

    /// The deployment, when nothing more comes of this.
    pub(super) fn into_deployment(self) -> Deployment {
        self.deployment
    }
}

/// How much of a fetch is done, in percent: by bytes, or by paths where the caches do not tell the bytes.
pub(crate) fn percent(progress: FetchProgress) -> Option<u8> {
    let (done, all) = if progress.fetch_bytes > 0 {
        (progress.fetched_bytes, progress.fetch_bytes)
    } else {
        (progress.fetched_paths, progress.fetch_paths)
    };
    let percent = u128::from(done) * 100 / u128::from(all).max(1);
    (all > 0).then(|| u8::try_from(percent.min(100)).unwrap_or(100))
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
        let target = &fetching.target;
        let order = FetchOrder {
            id: fetching.deployment.id(),
            path: fetching.path.clone(),
            target: target.clone(),
            digest: target.closure_digest,
            programs: target.programs(&self.config.system).cloned().collect(),
            substituters: target.substituters.clone(),
            keys: target.substituter_keys.clone(),
        };
        self.effects.push(Effect::Fetch(Box::new(order)));
        self.progress_at = Some(moment.uptime);
        self.report(moment);
    }

    pub(super) fn fetch_progress(
        &mut self,
        moment: &Moment,
        id: DeploymentId,
        progress: FetchProgress,
    ) {
        let Some(fetching) = self.fetching(id) else {
            return;
        };
        fetching.progress = Some(fetching.in_all(progress));
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
        let machine = self.config.machine.clone();
        let Some(fetching) = self.fetching(id) else {
            return;
        };
        match result {
            Ok(mut realised) => {
                realised.fetched = fetching.in_all(realised.fetched);
                self.realised(moment, realised);
            }
            // Such a failure may be the network's, which comes back; the others would only repeat.
            Err(failure)
                if failure.reason == Reason::FetchFailed && fetching.tries < FETCH_TRIES =>
            {
                // What keeps one machine from the cache keeps a fleet from it, which must not come back in step.
                let longest = FETCH_WAIT * 2_u32.pow(fetching.tries - 1);
                let what = format!("{machine} {id} try {}", fetching.tries);
                let wait = share(&what, longest);
                fetching.retry_at = Some(moment.uptime + wait);
                fetching.before = fetching.in_all(failure.fetched);
                fetching.progress = Some(fetching.before);
                let seconds = wait.as_secs_f64();
                let message = format!("trying again in {seconds:.1} s: {}", failure.message);
                fetching.message = Text::lossy(&message);
                self.report(moment);
            }
            Err(FetchFailure {
                reason,
                message,
                fetched,
            }) => {
                fetching.progress = Some(fetching.in_all(fetched));
                self.note_progress();
                let outcome = Outcome::new(State::Failed, Some(reason), message.as_str());
                self.end_current(moment, outcome);
            }
        }
    }

    /// Keeps how far the fetch has come, which ends without a closure.
    pub(super) fn note_progress(&mut self) {
        if let (Work::Fetching(fetching), Some(task)) = (&self.work, &mut self.ledger.current) {
            let came = |progress: &FetchProgress| *progress != FetchProgress::default();
            task.fetch = fetching.progress.filter(came);
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
        task.fetch = Some(realised.fetched);
        task.changes = realised.changes;
        if let (Some(how), Some(kind)) = (&mut task.how, realised.kind) {
            how.kind = kind;
        }
        if let Some(outcome) = expired(&fetching.deployment, moment) {
            return self.end_current(moment, outcome);
        }
        let job = JobOrder {
            order: task.order,
            origin: task.origin,
            path: fetching.path.clone(),
            target: fetching.target.clone(),
        };
        if let Some(state) = self.nothing_to_do(&job, &realised.facts) {
            let mut outcome = Outcome::new(state, None, "");
            outcome.previous = realised.facts.current;
            return self.end_current(moment, outcome);
        }
        let id = job.order.id;
        self.work = Work::Activating(Activating::new(JobPhase::Activating));
        // The task is in the ledger already and the job is durable itself; the size may follow.
        self.effects.push(Effect::CreateJob(Box::new(job)));
        self.effects.push(Effect::StartActivator(id));
        self.may_persist = true;
        self.report(moment);
    }

    /// How a deployment ends for which there is nothing to do; none when it has to be activated.
    fn nothing_to_do(&self, job: &JobOrder, facts: &Facts) -> Option<State> {
        let path = &job.path;
        let target = &job.target;
        // Which path runs then is not known here, and to activate it again does no harm.
        if target.specialisation.is_some() {
            return None;
        }
        match target.action {
            Action::DryActivate => None,
            // It leaves alone what the profile names and what the next boot brings.
            Action::Test => (facts.current.as_ref() == Some(path)).then_some(State::Unchanged),
            Action::Switch | Action::Boot if facts.are_all(path) => Some(State::Unchanged),
            Action::Boot => self.is_staged(path, facts).then_some(State::Staged),
            Action::Switch => None,
        }
    }
}
