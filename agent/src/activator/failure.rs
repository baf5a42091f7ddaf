//! Why a deployment did not hold.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use hoist_protocol::{Reason, State};

use crate::job::{JobError, chain};

/// A deployment that does not hold, and how its result reads once the machine has gone back.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) state: State,
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Failure {
    /// It was never activated as a whole: the machine runs what it ran, untouched or restored.
    pub(super) fn failed(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            state: State::Failed,
            reason,
            message: message.into(),
        }
    }

    /// It was activated, and did not hold.
    pub(super) fn rolled_back(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            state: State::RolledBack,
            ..Self::failed(reason, message)
        }
    }

    /// Somebody else moved the system: nothing more is touched.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self {
            state: State::Conflict,
            ..Self::failed(Reason::ChangedByOthers, message)
        }
    }

    /// Something went wrong around the programs that were to run.
    pub(super) fn internal(what: &str, error: &dyn std::error::Error) -> Self {
        Self::failed(Reason::Internal, format!("{what}: {}", chain(error)))
    }

    /// The same, of what went wrong once the closure was activated.
    pub(super) fn after_activation(self) -> Self {
        Self::rolled_back(self.reason, self.message)
    }

    /// Going back did not work out either.
    pub(super) fn worse(self, message: &str) -> Self {
        Self {
            state: State::RollbackFailed,
            ..self.and(message)
        }
    }

    /// The same with one more sentence.
    pub(super) fn and(mut self, message: &str) -> Self {
        self.message.push_str("; ");
        self.message.push_str(message);
        self
    }
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        Self::failed(Reason::Internal, chain(&error))
    }
}

/// How a program ended, for people.
pub(super) fn shown(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended without an exit code".to_owned(),
    }
}

/// What an exit code of `switch-to-configuration` means (nixpkgs,
/// `pkgs/by-name/sw/switch-to-configuration-ng/src/main.rs`), for people.
pub(super) fn meaning(status: ExitStatus) -> &'static str {
    match status.code() {
        Some(1) => "a check before the activation failed, or the boot loader could not be set",
        Some(2) => "the activation script failed",
        Some(4) => "the system was activated, but some of its units failed to start",
        Some(100) => {
            "the new system needs a reboot: its init is not one that the running one can hand over to"
        }
        Some(126 | 127) => "it, or the interpreter in its first line, cannot be run",
        _ => "see the log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_of_a_switch_says_what_it_means() {
        let text = |code: i32| {
            let status = ExitStatus::from_raw(code << 8);
            format!("{}: {}", shown(status), meaning(status))
        };
        assert!(text(1).starts_with("exited with 1: a check"));
        assert!(text(2).contains("activation script"));
        assert!(text(4).contains("units failed"));
        assert!(text(100).contains("needs a reboot"));
        assert!(text(127).contains("cannot be run"));
        assert_eq!(text(77), "exited with 77: see the log");
        assert_eq!(shown(ExitStatus::from_raw(9)), "was killed by signal 9");
    }
}
