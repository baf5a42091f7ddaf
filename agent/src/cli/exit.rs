//! What the program's exit code says.

pub(super) use hoist_protocol::Exit;
use hoist_protocol::State;

/// The table of exit codes, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes, which are those of `hoist`:
  0    done; `run`: stopped by SIGTERM or SIGINT; `doctor`: all is well
  1    error: nothing was begun; `doctor`: something is wrong
  2    usage: the command line is not valid; nothing was done
  3    failed, in conflict, or not rolled back
  4    rolled back: the machine runs what it ran before
  5    rejected
  7    superseded or cancelled by a newer deployment
  9    expired before it was begun
  130  interrupted; what was begun goes on by itself";

/// What a deployment in this state, which it ended in, means for who waited for it.
pub(super) fn exit_of(state: State) -> Exit {
    Exit::of(state).unwrap_or(Exit::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_end_is_documented() {
        let ends = State::ALL.iter().copied().filter(|state| state.is_final());
        let others = [Exit::Error, Exit::Usage, Exit::Interrupted];
        for exit in ends.map(exit_of).chain(others) {
            let line = format!("\n  {:<5}", exit.code());
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }
}
