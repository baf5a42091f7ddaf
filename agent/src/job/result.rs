//! How a job ended.

use camino::Utf8Path;
use hoist_protocol::{Kind, Reason, State, StorePath, Text};
use serde::{Deserialize, Serialize};

use super::JobError;
use super::spec::{BootId, Versioned};

/// Disk taken in advance for a result, in bytes: more than the longest one.
pub(super) const RESERVED: u64 = 64 * 1024;

/// The last lines of the log that a result holds.
pub(crate) const TAIL: usize = 20;

/// How a job ended. It is written last of all: when it is there, nothing more happens.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct JobResult {
    /// Final: [`State::Succeeded`], [`State::Staged`], [`State::DryActivated`], [`State::Failed`],
    /// [`State::RolledBack`], [`State::RollbackFailed`] or [`State::Conflict`].
    pub state: State,
    /// Why it did not end well.
    pub reason: Option<Reason>,
    /// The same for people, and what to do.
    pub message: Text<1024>,
    /// How the closure was activated: the kind that `auto` stood for, once that was found out.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// What ran before.
    pub previous: Option<StorePath>,
    /// What runs now.
    pub current: Option<StorePath>,
    /// What the profile names now.
    pub profile: Option<StorePath>,
    /// What the next boot brings, where the boot loader can be read.
    #[serde(default)]
    pub boot_default: Option<StorePath>,
    /// What the machine was booted with.
    pub booted: Option<StorePath>,
    /// The boot in which it ended: what was staged takes effect in another one.
    #[serde(default)]
    pub boot_id: Option<BootId>,
    /// How many lines the log has.
    pub log_lines: u64,
    /// The last of them, 20 at most.
    pub log_tail: Vec<Text<256>>,
}

impl JobResult {
    pub(super) fn to_json(&self) -> Vec<u8> {
        Versioned::to_json(self)
    }

    pub(super) fn read(path: &Utf8Path) -> Result<Option<Self>, JobError> {
        Versioned::read(path)
    }
}
