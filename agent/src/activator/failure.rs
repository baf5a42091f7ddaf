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
    /// Whether nothing of the closure was activated, for certain: then nothing has to be activated again.
    pub(super) untouched: bool,
}

impl Failure {
    /// It was never activated as a whole: the machine runs what it ran, untouched or restored.
    pub(super) fn failed(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            state: State::Failed,
            reason,
            message: message.into(),
            untouched: false,
        }
    }

    /// The same, of what ended before it changed anything.
    pub(super) fn untouched(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            untouched: true,
            ..Self::failed(reason, message)
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
