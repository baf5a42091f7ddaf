//! What the exit codes of the programs say: a number means the same whichever of them ends with it.

use crate::status::State;

/// How a command has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// It is done; every machine that was waited for runs the deployment.
    Ok = 0,
    /// Something is wrong here: nothing was begun, or not everything was published.
    Error = 1,
    /// The command line, a setting or the spec is not valid. Nothing was done.
    Usage = 2,
    /// The deployment failed, was in conflict, or could not be rolled back.
    Failed = 3,
    /// It was rolled back: the machine runs what it ran before.
    RolledBack = 4,
    /// A machine refused it.
    Rejected = 5,
    /// The time was up.
    TimedOut = 6,
    /// A newer deployment took its place, or cancelled it.
    Superseded = 7,
    /// A machine is offline, or held.
    Offline = 8,
    /// It expired.
    Expired = 9,
    /// Interrupted by a signal; what was begun goes on.
    Interrupted = 130,
}

impl Exit {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Ok,
        Self::Error,
        Self::Usage,
        Self::Failed,
        Self::RolledBack,
        Self::Rejected,
        Self::TimedOut,
        Self::Superseded,
        Self::Offline,
        Self::Expired,
        Self::Interrupted,
    ];

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What a deployment that a machine ended in this state means for who waited for it; none while it is under
    /// way.
    #[must_use]
    pub const fn of(state: State) -> Option<Self> {
        Some(match state {
            State::Succeeded | State::Unchanged | State::Staged | State::DryActivated => Self::Ok,
            State::Failed | State::RollbackFailed | State::Conflict => Self::Failed,
            State::RolledBack => Self::RolledBack,
            State::Rejected => Self::Rejected,
            State::Expired => Self::Expired,
            State::Superseded | State::Cancelled => Self::Superseded,
            State::Idle
            | State::Waiting
            | State::Fetching
            | State::Activating
            | State::Confirming
            | State::RollingBack
            | State::Held => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_machine_runs_is_a_success() {
        for state in State::ALL.iter().copied() {
            let exit = Exit::of(state);
            assert_eq!(exit.is_some(), state.is_final(), "{state}");
            assert_eq!(exit == Some(Exit::Ok), state.is_good(), "{state}");
        }
    }
}
