//! What the program's exit code says.

use hoist_protocol::State;

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum Exit {
    /// It is done; the machine runs what was asked for.
    Ok = 0,
    /// Something is wrong here: nothing was begun, or `doctor` has found a fault.
    Error = 1,
    /// It was begun and has failed, or somebody else changed the machine meanwhile.
    Failed = 3,
    /// The machine went back to what ran before.
    RolledBack = 4,
    /// The machine refused it.
    Rejected = 5,
    /// A newer deployment took its place, or cancelled it.
    Superseded = 7,
    /// Interrupted by a signal; what was begun goes on.
    Interrupted = 130,
}

/// The table of exit codes, for `--help`. They are those of `hoist`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done; `run`: stopped by SIGTERM or SIGINT; `doctor`: all is well
  1    error: nothing was begun; `doctor`: something is wrong
  2    usage: the command line is not valid; nothing was done
  3    failed, in conflict, or not rolled back
  4    rolled back: the machine runs what it ran before
  5    rejected
  7    superseded or cancelled by a newer deployment
  130  interrupted; what was begun goes on by itself";

impl Exit {
    /// What a deployment that ended in this state means for who waited for it.
    pub(super) const fn of(state: State) -> Self {
        match state {
            _ if state.is_good() => Self::Ok,
            State::RolledBack => Self::RolledBack,
            State::Rejected | State::Expired => Self::Rejected,
            State::Superseded | State::Cancelled => Self::Superseded,
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_runs_is_a_success() {
        for state in State::ALL.iter().copied().filter(|state| state.is_final()) {
            assert_eq!(Exit::of(state) == Exit::Ok, state.is_good(), "{state}");
        }
        assert_eq!(Exit::of(State::RollbackFailed), Exit::Failed);
    }

    #[test]
    fn every_exit_code_is_documented() {
        for exit in [
            Exit::Ok,
            Exit::Error,
            Exit::Failed,
            Exit::RolledBack,
            Exit::Rejected,
            Exit::Superseded,
            Exit::Interrupted,
        ] {
            let line = format!("\n  {:<5}", exit as u8);
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }
}
