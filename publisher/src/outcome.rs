//! How a deployment ended, and what the program says by its exit code.

use std::fmt;

pub use hoist_protocol::Exit;
use hoist_protocol::State;
use serde::Serialize;

/// How a deployment ended on one machine, as far as its publisher can tell.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The machine runs it, confirmed.
    Succeeded,
    /// The machine ran it already.
    Unchanged,
    /// The machine's next boot brings it.
    Staged,
    /// The machine says what it would do, and did nothing.
    DryActivated,
    /// The machine is held, as it was told: it leaves everything as it is.
    Held,
    /// It was signed and written into a file, for others to sign.
    Prepared,
    /// There was nothing to do for the machine, and nothing was published.
    Skipped,
    /// It was published and read back, and is not waited for.
    Published,
    /// It did not get to the machine's topic.
    NotPublished,
    /// The rollout ended before its batch came: nothing was published for the machine.
    NotBegun,
    /// It could not be activated; the machine runs what it ran before.
    Failed,
    /// It was activated, did not hold, and the machine went back.
    RolledBack,
    /// It did not hold, and going back failed too.
    RollbackFailed,
    /// Somebody else changed the machine's system meanwhile.
    Conflict,
    /// The machine does not carry it out.
    Rejected,
    /// It had expired before the machine saw it.
    Expired,
    /// A newer deployment took its place.
    Superseded,
    /// A newer deployment cancelled it.
    Cancelled,
    /// The machine was under way, or silent, when the time was up.
    TimedOut,
    /// The machine was under way, or silent, when somebody interrupted the run.
    UnderWay,
    /// The machine is offline and gets it when it returns.
    Offline,
    /// The machine is held for another reason, and takes it on release.
    Deferred,
}

impl Outcome {
    /// The outcome that a machine reports by this state; none while it is under way.
    #[must_use]
    pub const fn of(state: State) -> Option<Self> {
        Some(match state {
            State::Succeeded => Self::Succeeded,
            State::Unchanged => Self::Unchanged,
            State::Staged => Self::Staged,
            State::DryActivated => Self::DryActivated,
            State::Failed => Self::Failed,
            State::RolledBack => Self::RolledBack,
            State::RollbackFailed => Self::RollbackFailed,
            State::Conflict => Self::Conflict,
            State::Rejected => Self::Rejected,
            State::Expired => Self::Expired,
            State::Superseded => Self::Superseded,
            State::Cancelled => Self::Cancelled,
            State::Idle
            | State::Held
            | State::Waiting
            | State::Fetching
            | State::Activating
            | State::Confirming
            | State::RollingBack => return None,
        })
    }

    /// As it is written in JSON, and with spaces for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Unchanged => "unchanged",
            Self::Staged => "staged",
            Self::DryActivated => "dry_activated",
            Self::Held => "held",
            Self::Skipped => "skipped",
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::NotPublished => "not_published",
            Self::NotBegun => "not_begun",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
            Self::RollbackFailed => "rollback_failed",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::UnderWay => "under_way",
            Self::Offline => "offline",
            Self::Deferred => "deferred",
        }
    }

    /// Whether the machine runs it, or nobody asked to wait for that.
    #[must_use]
    pub const fn is_good(self) -> bool {
        matches!(
            self,
            Self::Succeeded
                | Self::Unchanged
                | Self::Staged
                | Self::DryActivated
                | Self::Held
                | Self::Skipped
                | Self::Prepared
                | Self::Published
        )
    }

    /// What it means for the exit code, when it is the only one.
    fn exit(self) -> Exit {
        let reported = |state: &&State| Self::of(**state) == Some(self);
        match self {
            Self::Held | Self::Skipped | Self::Prepared | Self::Published => Exit::Ok,
            Self::NotPublished => Exit::Error,
            // The rollout stopped because of others, which say why.
            Self::NotBegun => Exit::Failed,
            Self::TimedOut | Self::UnderWay => Exit::TimedOut,
            Self::Offline | Self::Deferred => Exit::Offline,
            // The others are the machine's own word, which means the same at the machine.
            _ => {
                let state = State::ALL.iter().find(reported).copied();
                state.and_then(Exit::of).unwrap_or(Exit::Error)
            }
        }
    }

    /// What somebody who reads this outcome may want to do.
    #[must_use]
    pub const fn advice(self, agent_log: &str) -> &str {
        match self {
            // The messages of the last six are the publisher's own and say what to do already.
            Self::Succeeded
            | Self::Unchanged
            | Self::Held
            | Self::Skipped
            | Self::Prepared
            | Self::Published
            | Self::NotBegun
            | Self::Superseded
            | Self::Cancelled
            | Self::TimedOut
            | Self::UnderWay
            | Self::Offline
            | Self::Deferred => "",
            Self::Staged => "the next boot brings it; `hoist status` says then what was booted",
            Self::DryActivated => "nothing was changed; `hoist logs` shows what would be",
            Self::NotPublished => "nothing has changed on it",
            Self::Failed | Self::RolledBack => agent_log,
            Self::RollbackFailed => "it needs somebody to look at it now",
            Self::Conflict => "see who else changes its system, then deploy again",
            Self::Rejected => "see the reason; nothing has changed on it",
            Self::Expired => "deploy again, or give --expires more time",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.as_str().replace('_', " "))
    }
}

/// The table of exit codes, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    every machine that was waited for runs the deployment (also: staged, it will with its next boot;
       dry activated, it said what would change; skipped, there was nothing to do)
  1    error: nothing, or not everything, was published; the message says which
  2    usage: the command line, a setting or the spec is not valid; nothing was done
  3    failed on a machine (also: conflict, and rollback failed, which needs somebody now), or the rollout
       stopped before a machine's batch came
  4    rolled back on a machine: it runs what it ran before
  5    rejected by a machine
  6    timed out: a machine was still under way, or silent
  7    superseded or cancelled by a newer deployment, or the rollout was cancelled before a machine's batch came
  8    offline or held: every machine is, or with `--wait all` one stayed so
  9    expired before a machine saw it
  130  interrupted; the machines go on by themselves
  With several outcomes the first of 1, 3, 4, 5, 9, 6, 7, 8 is taken.";

/// The order in which outcomes decide: the first that occurs is the exit code.
const PRECEDENCE: [Exit; 8] = [
    Exit::Error,
    Exit::Failed,
    Exit::RolledBack,
    Exit::Rejected,
    Exit::Expired,
    Exit::TimedOut,
    Exit::Superseded,
    Exit::Offline,
];

/// The exit code of a run whose machines ended so. `waited_for_all` makes one offline or held machine count;
/// otherwise these count only when there is no other.
#[must_use]
pub fn exit_of(outcomes: &[Outcome], waited_for_all: bool) -> Exit {
    let is_away = |outcome: &Outcome| matches!(outcome, Outcome::Offline | Outcome::Deferred);
    let away_counts = waited_for_all || outcomes.iter().all(is_away);
    let exits: Vec<Exit> = outcomes
        .iter()
        .map(|outcome| match outcome {
            outcome if is_away(outcome) && !away_counts => Exit::Ok,
            outcome => outcome.exit(),
        })
        .collect();
    PRECEDENCE
        .into_iter()
        .find(|exit| exits.contains(exit))
        .unwrap_or(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_outcome_decides() {
        let graver_first = [
            (Outcome::NotPublished, 1),
            (Outcome::Failed, 3),
            (Outcome::NotBegun, 3),
            (Outcome::RolledBack, 4),
            (Outcome::Rejected, 5),
            (Outcome::Expired, 9),
            (Outcome::TimedOut, 6),
            (Outcome::Superseded, 7),
            (Outcome::Offline, 8),
            (Outcome::Succeeded, 0),
        ];
        for (n, (graver, code)) in graver_first.iter().enumerate() {
            for (lighter, _) in &graver_first[n..] {
                let exit = exit_of(&[*lighter, *graver], true);
                assert_eq!(exit.code(), *code, "{graver:?} with {lighter:?}");
            }
        }
    }

    #[test]
    fn an_offline_machine_among_others_is_no_failure_unless_all_are_waited_for() {
        let outcomes = [Outcome::Succeeded, Outcome::Offline];
        assert_eq!(exit_of(&outcomes, false), Exit::Ok);
        assert_eq!(exit_of(&outcomes, true), Exit::Offline);
        assert_eq!(exit_of(&[Outcome::Offline; 2], false), Exit::Offline);
        let away = [Outcome::Deferred, Outcome::Offline];
        assert_eq!(exit_of(&away, false), Exit::Offline);
        assert_eq!(
            exit_of(&[Outcome::Deferred, Outcome::Succeeded], false),
            Exit::Ok
        );
    }

    #[test]
    fn conflict_and_a_failed_rollback_are_failures() {
        for outcome in [Outcome::Conflict, Outcome::RollbackFailed] {
            assert_eq!(exit_of(&[outcome], false), Exit::Failed);
        }
    }

    #[test]
    fn every_final_state_is_an_outcome_and_no_other() {
        for state in State::ALL {
            assert_eq!(Outcome::of(*state).is_some(), state.is_final(), "{state}");
            let as_good = Outcome::of(*state).is_some_and(Outcome::is_good);
            assert_eq!(as_good, state.is_good(), "{state}");
        }
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        for exit in Exit::ALL {
            let line = format!("\n  {:<5}", exit.code());
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }
}
