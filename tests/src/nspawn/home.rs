//! Home-manager generations for the user of a booted machine.

use anyhow::Result;
use hoist_protocol::StorePath;
use serde::Serialize;

use super::system::{AgentPackage, activation, build};
use crate::builder::Builder;

/// What `home.nix` makes a generation of.
#[derive(Clone, Debug, Serialize)]
struct Spec<'a> {
    version: &'a str,
    agent: Option<&'a AgentPackage>,
    activate: String,
    /// What `gen-version` says; generations of old have none.
    #[serde(rename = "genVersion")]
    gen_version: &'static str,
}

/// A generation with the agent, and `web.service` of the user's manager, which says its version and runs.
#[derive(Clone, Debug)]
pub struct Home {
    version: String,
    agent: Option<AgentPackage>,
    sets_profile: bool,
    cut_off: bool,
    script: String,
}

impl Home {
    pub(super) fn new(version: &str, agent: AgentPackage) -> Self {
        Self {
            version: version.to_owned(),
            agent: Some(agent),
            sets_profile: false,
            cut_off: false,
            script: String::new(),
        }
    }

    /// As home-manager made them before `gen-version`: its activation sets the profile itself.
    #[must_use]
    pub const fn of_old(mut self) -> Self {
        self.sets_profile = true;
        self
    }

    /// No agent, as of somebody who forgot the module.
    #[must_use]
    pub fn without_agent(mut self) -> Self {
        self.agent = None;
        self
    }

    /// The agent from another package: another store path.
    #[must_use]
    pub fn agent_revision(mut self, revision: &str) -> Self {
        if let Some(agent) = &mut self.agent {
            revision.clone_into(&mut agent.revision);
        }
        self
    }

    /// Its activation keeps the machine from the broker.
    #[must_use]
    pub const fn without_network(mut self) -> Self {
        self.cut_off = true;
        self
    }

    /// `script` is a part of its activation, before the units of the user.
    #[must_use]
    pub fn activation(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// Builds it; it lies in no cache yet.
    pub(super) fn build(&self, builder: &Builder) -> Result<StorePath> {
        let spec = Spec {
            version: &self.version,
            agent: self.agent.as_ref(),
            activate: activation(include_str!("home-activate.sh"), self.cut_off, &self.script),
            gen_version: if self.sets_profile { "" } else { "1" },
        };
        build(builder, "home.nix", include_str!("home.nix"), &spec)
    }
}
