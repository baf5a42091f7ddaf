//! Deployments that bring nothing of their own: what says again what another said, and what leaves the machine
//! as it is.

use hoist_protocol::{Deployment, DeploymentId, HistoryEntry, Reason, State};

use super::Agent;
use super::task::Outcome;

impl Agent {
    /// How a deployment ends at once that only renews another one, which has failed here: to say it again is no
    /// wish to try it again. None where there is something to carry out.
    pub(super) fn renews_a_failure(&self, deployment: &Deployment) -> Option<Outcome> {
        let entry = self.outcome(deployment.parts().renews?)?;
        let failed = matches!(
            entry.state,
            State::Failed
                | State::RolledBack
                | State::RollbackFailed
                | State::Conflict
                | State::Rejected
        );
        let message = format!(
            "it renews {}, which ended here as {}, and is not tried again by that (`hoist retry` does): {}",
            entry.id,
            entry.state.as_str().replace('_', " "),
            entry.message
        );
        failed.then(|| Outcome::new(State::Failed, entry.reason, &message))
    }

    /// How a deployment ends that leaves the machine as it is.
    pub(super) fn stays(&self, deployment: &Deployment) -> Outcome {
        let Some(cancelled) = deployment.parts().cancels else {
            return Outcome::new(State::Unchanged, None, "");
        };
        let took = |entry: &&HistoryEntry| {
            matches!(
                entry.state,
                State::Succeeded | State::Unchanged | State::Staged
            )
        };
        match self.outcome(cancelled).filter(took) {
            Some(entry) => {
                let message = format!(
                    "{cancelled} was to be cancelled, and had been carried out by then ({}); a rollback takes it back",
                    entry.state
                );
                Outcome::new(State::Rejected, Some(Reason::TooLate), &message)
            }
            None => Outcome::new(State::Unchanged, None, ""),
        }
    }

    fn outcome(&self, id: DeploymentId) -> Option<&HistoryEntry> {
        let mut entries = self.ledger.history.iter().map(|record| &record.entry);
        entries.find(|entry| entry.id == id)
    }
}
