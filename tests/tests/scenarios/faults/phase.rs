//! Where a deployment stands when something fails, and how it is held there.

use std::fmt;

use anyhow::Result;
use hoist_protocol::DeploymentId;
use hoist_tests::machine::Gate;
use hoist_tests::server::Mode;
use hoist_tests::wait;

use super::subject::{Subject, Version};

/// What the machine is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// Admitted; Nix waits for the cache.
    Fetching,
    /// The activator looks before it changes anything: a health check is tried on the old system.
    Preparing,
    /// `switch-to-configuration test` of the new system runs.
    Activating,
    /// The health check runs on the new system.
    Checking,
    /// The activator waits for the agent, which cannot reach the broker.
    Confirming,
    /// Confirmed; `switch-to-configuration boot` of the new system runs.
    Committing,
    /// The health check has failed; `switch-to-configuration test` of the old system runs.
    RollingBack,
    /// All is done, and nobody was told so far.
    Reporting,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fetching => "fetching",
            Self::Preparing => "preparing",
            Self::Activating => "activating",
            Self::Checking => "checking",
            Self::Confirming => "confirming",
            Self::Committing => "committing",
            Self::RollingBack => "rolling back",
            Self::Reporting => "reporting",
        })
    }
}

/// What holds a machine, until it is let go.
pub(super) enum Hold {
    /// A script waits for a file to go.
    Gate(Gate),
    /// The cache hands nothing out.
    Cache,
    /// The broker is out of reach.
    Severed,
}

impl Hold {
    pub(super) fn release(self, subject: &Subject<'_>) -> Result<()> {
        match self {
            Self::Gate(gate) => gate.open(),
            // What it fails to answer now is no longer held either.
            Self::Cache if subject.cache.server.mode() == Mode::Holding => {
                subject.cache.server.set(Mode::Serving);
                Ok(())
            }
            Self::Cache => Ok(()),
            // After a boot the file is gone, as everything in /run is.
            Self::Severed => subject.machine.restore_network().or(Ok(())),
        }
    }
}

impl Phase {
    pub(super) const ALL: [Self; 8] = [
        Self::Fetching,
        Self::Preparing,
        Self::Activating,
        Self::Checking,
        Self::Confirming,
        Self::Committing,
        Self::RollingBack,
        Self::Reporting,
    ];

    /// Deploys `new` and holds the machine in this phase of it.
    pub(super) fn reach(
        self,
        subject: &mut Subject<'_>,
        new: &Version,
    ) -> Result<(DeploymentId, Hold)> {
        let name = new.name.as_str();
        let stop = match self {
            Self::Fetching => {
                subject.cache.server.set(Mode::Holding);
                let id = subject.publish(new)?;
                wait::until_true("Nix waits for the cache", || {
                    Ok(subject.cache.server.held() > 0)
                })?;
                return Ok((id, Hold::Cache));
            }
            Self::Preparing => subject.machine.gate(&subject.runs.name, "check")?,
            Self::Activating => subject.machine.gate(name, "test")?,
            Self::Checking | Self::Confirming => subject.machine.gate(name, "check")?,
            Self::Committing | Self::Reporting => subject.machine.gate(name, "boot")?,
            Self::RollingBack => {
                subject.fail_check(new)?;
                subject.machine.gate(&subject.runs.name, "test")?
            }
        };
        let id = subject.publish(new)?;
        stop.wait_reached()?;
        if !matches!(self, Self::Confirming | Self::Reporting) {
            return Ok((id, Hold::Gate(stop)));
        }
        subject.sever()?;
        stop.open()?;
        wait::until_true(&format!("the deployment is {self}"), || {
            if self == Self::Reporting {
                subject.machine.has_ended(id)
            } else {
                Ok(subject.machine.journal(id)?.contains("\"confirming\""))
            }
        })?;
        Ok((id, Hold::Severed))
    }
}
