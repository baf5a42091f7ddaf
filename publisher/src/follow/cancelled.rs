//! That somebody cancels a rollout while it runs.

use hoist_protocol::{AgentName, Deployment, DeploymentId, Text};

/// Somebody has cancelled the rollout that a run is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cancelled {
    /// The deployment that says so; a known key has signed it.
    pub by: DeploymentId,
    /// On the topic of this machine.
    pub agent: AgentName,
    /// Who made it, by its own word.
    pub actor: Option<Text<128>>,
}

impl Cancelled {
    pub(super) fn new(deployment: &Deployment) -> Self {
        Self {
            by: deployment.id(),
            agent: deployment.machine().agent.clone(),
            actor: deployment.parts().provenance.actor.clone(),
        }
    }

    /// By whom, and how one knows, to end a sentence.
    #[must_use]
    pub fn said(&self) -> String {
        let by = self
            .actor
            .as_ref()
            .map_or_else(String::new, |actor| format!("by {actor}, "));
        format!("{by}with deployment {} of {}", self.by.short(), self.agent)
    }
}
