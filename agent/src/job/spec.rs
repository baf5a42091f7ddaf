//! What a job is to do, and what confirms it.

use std::fmt;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{DeploymentId, Order, StorePath, Target, Text};
use serde::{Deserialize, Serialize};

use super::{AgentIdentity, JobError};

/// The format of `spec`, `confirmation` and `result`. Fields may be added within a format when an older
/// version may leave them out and a newer one has a default for them.
pub(super) const FORMAT: u32 = 1;

/// Disk taken in advance for a confirmation, in bytes.
pub(super) const RESERVED: u64 = 4096;

/// A random number that ties a confirmation to its job: 32 hexadecimal digits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Nonce(String);

impl Nonce {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which run of the machine's kernel this is: another one after every boot.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct BootId(String);

impl BootId {
    /// The one of the running kernel.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn current() -> io::Result<Self> {
        Ok(Self(boot_id()?.trim().to_owned()))
    }
}

#[cfg(target_os = "linux")]
fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
}

#[cfg(target_os = "macos")]
fn boot_id() -> io::Result<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl")
        .args(["-n", "kern.bootsessionuuid"])
        .output()?;
    match String::from_utf8(output.stdout) {
        Ok(text) if output.status.success() => Ok(text),
        _ => Err(io::Error::other(
            "sysctl does not tell kern.bootsessionuuid",
        )),
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What an activator is to do.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct JobSpec {
    /// The deployment.
    pub id: DeploymentId,
    /// The epoch of its order.
    pub epoch: u32,
    /// The sequence of its order.
    pub sequence: u64,
    /// Comes back in the confirmation.
    pub nonce: Nonce,
    /// The boot in which the job was made.
    pub boot_id: BootId,
    /// What the machine shall run; realised and kept from the garbage collector.
    pub closure: StorePath,
    /// How it gets there, as it was signed.
    pub target: Target,
    /// What shows that the machine works with it.
    pub confirm: ConfirmBy,
    /// The profile that is set when the closure is no system with a profile of its own, and the target names
    /// none.
    pub profile: Utf8PathBuf,
    /// The agent that made the job.
    pub agent: AgentIdentity,
}

/// What shows that a machine works with what was activated.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfirmBy {
    /// The health checks, and the agent's word that it reached the broker over a fresh connection.
    Broker,
    /// The health checks alone: somebody at the machine ordered it, and there need not be a broker.
    HealthChecks,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Versioned<T> {
    pub(super) format: u32,
    #[serde(flatten)]
    pub(super) value: T,
}

impl<T: Serialize> Versioned<T> {
    pub(super) fn to_json(value: T) -> Vec<u8> {
        let format = FORMAT;
        serde_json::to_vec(&Self { format, value }).expect("plain data always has a JSON form")
    }
}

impl<T: for<'de> Deserialize<'de>> Versioned<T> {
    pub(super) fn from_json(path: &Utf8Path, json: &[u8]) -> Result<T, JobError> {
        /// Read first: of an unknown format, nothing else may be understood.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let malformed = |source| JobError::Malformed {
            path: path.to_owned(),
            source,
        };
        let head: Head = serde_json::from_slice(json).map_err(malformed)?;
        if head.format != FORMAT {
            return Err(JobError::Format {
                path: path.to_owned(),
                found: head.format,
                known: FORMAT,
            });
        }
        Ok(serde_json::from_slice::<Self>(json)
            .map_err(malformed)?
            .value)
    }

    /// None when there is no such file.
    pub(super) fn read(path: &Utf8Path) -> Result<Option<T>, JobError> {
        match std::fs::read(path) {
            Ok(json) => Self::from_json(path, &json).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(JobError::io("read", path, source)),
        }
    }
}

impl JobSpec {
    /// Where the deployment stands among those of the machine: an agent that lost its ledger reads it here.
    #[must_use]
    pub const fn order(&self) -> Order {
        Order {
            epoch: self.epoch,
            sequence: self.sequence,
            id: self.id,
        }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        Versioned::to_json(self)
    }

    pub(super) fn from_json(path: &Utf8Path, json: &[u8]) -> Result<Self, JobError> {
        Versioned::from_json(path, json)
    }
}

/// The agent's word that the machine works and reaches its broker over a fresh connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Confirmation {
    /// The job's nonce.
    pub nonce: Nonce,
    /// The boot in which the connection was made.
    pub boot_id: BootId,
    /// The agent's program, as the kernel names it; the log tells it.
    pub executable: Utf8PathBuf,
}

impl Confirmation {
    pub(super) fn to_json(&self) -> Vec<u8> {
        Versioned::to_json(self)
    }

    pub(super) fn read(path: &Utf8Path) -> Result<Option<Self>, JobError> {
        Versioned::read(path)
    }
}

/// The agent's word that the broker itself is away: the machine is not to blame, and waits longer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Outage {
    /// The job's nonce.
    pub nonce: Nonce,
    /// The boot in which it was found.
    pub boot_id: BootId,
    /// What was found, for people.
    pub message: Text<512>,
}

/// The agent's word on why it has not reached the broker so far.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trouble {
    /// The job's nonce.
    pub nonce: Nonce,
    /// The boot in which it was met.
    pub boot_id: BootId,
    /// What failed, for people, and what to do.
    pub message: Text<768>,
}

impl Trouble {
    pub(super) fn to_json(&self) -> Vec<u8> {
        Versioned::to_json(self)
    }

    pub(super) fn read(path: &Utf8Path) -> Result<Option<Self>, JobError> {
        Versioned::read(path)
    }
}

impl Outage {
    pub(super) fn to_json(&self) -> Vec<u8> {
        Versioned::to_json(self)
    }

    pub(super) fn read(path: &Utf8Path) -> Result<Option<Self>, JobError> {
        Versioned::read(path)
    }
}
