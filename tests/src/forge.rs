//! Deployments made by hand: what Hoist's own publisher would never sign, or not any more.

use std::time::Duration;

use anyhow::Result;
pub use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, Deployment, DeploymentId, DeploymentParts, FleetName, Goal, Held, Machine, Order,
    Provenance, SigningKey, StorePath, Target, Timestamp, sign,
};

/// Everything that can be chosen about a deployment; a new one is as the publisher would make it now.
#[derive(Clone, Debug)]
pub struct Forge {
    /// For whom.
    pub machine: Machine,
    /// When, compared with others.
    pub order: Order,
    /// What.
    pub target: Target,
    /// When it was made.
    pub issued: Timestamp,
    /// How long it is valid.
    pub valid: Duration,
}

impl Forge {
    /// `path` for `agent` of `fleet`.
    ///
    /// # Errors
    /// When a name is not valid.
    pub fn new(fleet: &str, agent: &AgentName, path: &StorePath) -> Result<Self> {
        let issued = now();
        Ok(Self {
            machine: Machine::new(FleetName::new(fleet)?, agent.clone()),
            order: Order {
                epoch: 0,
                sequence: issued.as_ms(),
                id: DeploymentId::new(uuid::Uuid::now_v7()),
            },
            target: Target::new(Goal::Closure(path.clone())),
            issued,
            valid: Duration::from_secs(3600),
        })
    }

    /// The same, ordered `sequence`.
    #[must_use]
    pub const fn with_sequence(mut self, sequence: u64) -> Self {
        self.order.sequence = sequence;
        self
    }

    /// Signs it.
    ///
    /// # Errors
    /// When the parts do not hold together.
    pub fn sign(&self, key: SigningKey) -> Result<Vec<u8>> {
        let deployment = Deployment::new(DeploymentParts {
            machine: self.machine.clone(),
            order: self.order,
            issued: self.issued,
            expires: self.issued.plus(self.valid),
            target: self.target.clone(),
            held: Held::No,
            cancels: None,
            renews: None,
            provenance: Provenance::default(),
        })?;
        Ok(sign(&deployment, &[key])?)
    }
}
