//! While the activator is at work.

use std::time::Duration;

use hoist_protocol::{DeploymentId, Reason, State, Text};

use super::task::Outcome;
use super::{Agent, Work};
use crate::effect::Effect;
use crate::input::{JobEnd, JobPhase, Moment, Origin};

/// The longest wait before a dead activator is started again. It never gives up: until a job has a result,
/// nobody knows what the machine runs.
const ACTIVATOR_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Activating {
    pub(crate) phase: JobPhase,
    /// How often the activator was lost.
    losses: u32,
    /// When it is started again; none while it runs.
    restart_at: Option<Duration>,
    pub(crate) message: Text<1024>,
}

impl Activating {
    pub(super) fn new(phase: JobPhase) -> Self {
        Self {
            phase,
            losses: 0,
            restart_at: None,
            message: Text::default(),
        }
    }

    /// When the activator is started again; none while it runs.
    pub(super) const fn restart_at(&self) -> Option<Duration> {
        self.restart_at
    }

    /// It is started again now.
    pub(super) const fn restarted(&mut self) {
        self.restart_at = None;
    }
}

impl Agent {
    pub(super) fn activating(&mut self, id: DeploymentId) -> Option<&mut Activating> {
        if self.current_id() != Some(id) {
            return None;
        }
        match &mut self.work {
            Work::Activating(activating) => Some(activating),
            Work::Idle | Work::Fetching(_) => None,
        }
    }

    pub(super) fn job_not_created(
        &mut self,
        moment: &Moment,
        id: DeploymentId,
        message: &Text<1024>,
    ) {
        if self.activating(id).is_some() {
            let outcome = Outcome::new(State::Failed, Some(Reason::Internal), message.as_str());
            self.end_current(moment, outcome);
        }
    }

    pub(super) fn activator_lost(
        &mut self,
        moment: &Moment,
        id: DeploymentId,
        message: Text<1024>,
    ) {
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

    pub(super) fn job_phase(&mut self, moment: &Moment, id: DeploymentId, phase: JobPhase) {
        let Some(activating) = self.activating(id) else {
            return;
        };
        if activating.phase == phase {
            return;
        }
        activating.phase = phase;
        self.reach_broker(id, phase);
        self.report(moment);
    }

    /// Proves the way to the broker where that is what confirms the job.
    pub(super) fn reach_broker(&mut self, id: DeploymentId, phase: JobPhase) {
        let task = self.ledger.current.as_ref();
        if phase == JobPhase::Confirming
            && task.is_some_and(|task| task.origin == Origin::Publisher)
        {
            self.effects.push(Effect::ReachBroker(id));
        }
    }

    pub(super) fn broker_reached(&mut self, id: DeploymentId) {
        if let Some(activating) = self.activating(id)
            && activating.phase == JobPhase::Confirming
        {
            self.effects.push(Effect::Confirm(id));
        }
    }

    pub(super) fn job_ended(&mut self, moment: &Moment, id: DeploymentId, end: JobEnd) {
        if self.activating(id).is_none() {
            return;
        }
        let mut outcome = match end.state {
            State::Staged => self.staged_outcome(moment, &end),
            state if state.is_final() => Outcome::new(state, end.reason, end.message.as_str()),
            state => {
                let message = format!("the activator ended in the state `{state}`");
                Outcome::new(State::Failed, Some(Reason::Internal), &message)
            }
        };
        outcome.previous = end.previous;
        outcome.kind = end.kind;
        outcome.boot_id = end.boot_id;
        outcome.log = Some((end.log_lines, end.log_tail));
        self.end_current(moment, outcome);
    }
}
