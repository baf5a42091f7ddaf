//! `hoist rollback`: back to what a machine ran before, named by the id of a deployment.
//!
//! The machine looks the id up in its own ledger of what it once verified and ran. No path is signed here:
//! those that are shown come from the machine's reports, which nobody has signed.

use clap::Args;
use hoist_certs::Role;
use hoist_protocol::{AgentName, DeploymentId, History, RollbackTo, State, StorePath};

use super::CommandError;
use super::send::{Sending, Task};
use crate::flags::{ActivationArgs, CheckArgs, DeploymentArgs, FollowArgs, options};
use crate::outcome::Exit;
use crate::settings::{Flags, Settings, SigningFlags, process_environment};
use crate::snapshot::Seen;

/// `hoist rollback`
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The machine
    pub agent: AgentName,
    /// Back to what this deployment brought: its id, or the last 8 digits of an id in the machine's history
    #[arg(long, value_name = "ID")]
    pub to: Option<String>,
    /// How the closure is activated
    #[command(flatten)]
    pub activation: ActivationArgs,
    /// What must hold afterwards
    #[command(flatten)]
    pub checks: CheckArgs,
    /// What is said in the deployment
    #[command(flatten)]
    pub deployment: DeploymentArgs,
    /// How machines are followed
    #[command(flatten)]
    pub follow: FollowArgs,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &RollbackArgs, flags: Flags) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let caller = settings.caller("roll a machine back", &[Role::Publisher])?;
    let keys = settings.keys(&args.signing)?;
    let sending = Sending::new("rollback", &args.deployment, &args.follow, caller, keys)?;
    let task = Task::Rollback {
        agent: args.agent.clone(),
        to: args.to.clone(),
        options: options(&args.activation, &args.checks),
    };
    sending.run(task).await
}

/// What a machine is sent back to, and how that is said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Choice {
    pub(super) to: RollbackTo,
    pub(super) said: String,
}

/// A deployment that ended well: the machine ran it, or still does, or will with its next boot.
struct Good<'a> {
    id: DeploymentId,
    path: Option<&'a StorePath>,
    ran: bool,
}

impl Good<'_> {
    fn said(&self) -> String {
        let path = self.path.map_or_else(String::new, |path| {
            format!(" ({})", super::status::short_path(path))
        });
        format!("deployment {}{path}", self.id)
    }
}

/// Chooses from what the machine reports, or takes the id that was given.
pub(super) fn choose(
    agent: &AgentName,
    seen: &Seen,
    given: Option<&str>,
) -> Result<Choice, CommandError> {
    if let Some(given) = given {
        let id = find(seen.history.as_ref(), given)?;
        return Ok(Choice {
            to: RollbackTo::Deployment(id),
            said: format!("{agent}: back to deployment {id}"),
        });
    }
    let good = good(seen);
    let Some(runs) = good.first() else {
        return Err(CommandError::NothingBefore(agent.clone()));
    };
    // A repeat of what runs is no way back.
    let before = good[1..]
        .iter()
        .find(|other| other.ran && (runs.path.is_none() || other.path != runs.path));
    Ok(match before {
        Some(before) => Choice {
            to: RollbackTo::Deployment(before.id),
            said: format!(
                "{agent}: back to {}, which ran before {}",
                before.said(),
                runs.said()
            ),
        },
        None => Choice {
            to: RollbackTo::Before(runs.id),
            said: format!("{agent}: back to what ran before {}", runs.said()),
        },
    })
}

/// What ended well, newest first. The status may be ahead of the history.
fn good(seen: &Seen) -> Vec<Good<'_>> {
    let entries = seen.history.iter().flat_map(|history| &history.entries);
    let mut good: Vec<Good<'_>> = entries
        .filter(|entry| is_there(entry.state))
        .map(|entry| Good {
            id: entry.id,
            path: entry.path.as_ref(),
            ran: entry.state != State::Staged,
        })
        .collect();
    if let Some(status) = seen.status.as_ref().filter(|status| is_there(status.state))
        && let Some(id) = status.id
        && good.iter().all(|known| known.id != id)
    {
        let path = status.path.as_ref().or(status.current_path.as_ref());
        let ran = status.state != State::Staged;
        good.insert(0, Good { id, path, ran });
    }
    good
}

/// Whether a deployment that ended so is on the machine; one that was tried dry is not.
fn is_there(state: State) -> bool {
    state.is_good() && state != State::DryActivated
}

fn find(history: Option<&History>, given: &str) -> Result<DeploymentId, CommandError> {
    let given = given.trim().to_lowercase();
    let entries = history.iter().flat_map(|history| &history.entries);
    let mut matching = entries
        .map(|entry| entry.id)
        .filter(|id| id.short() == given);
    match (matching.next(), matching.next()) {
        (Some(id), None) => Ok(id),
        _ => given.parse().map_err(CommandError::To),
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{HistoryEntry, Text, Timestamp};

    use super::*;
    use crate::testing::{id, machine, order, status};

    fn path(name: &str) -> StorePath {
        StorePath::new(format!(
            "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-{name}"
        ))
        .unwrap()
    }

    /// Newest first: the id, how it ended, and what it brought.
    fn seen(entries: &[(u128, State, &str)]) -> Seen {
        let machine = machine("web-1");
        let entries = entries
            .iter()
            .map(|(n, state, name)| HistoryEntry {
                id: id(*n),
                epoch: 0,
                sequence: 1,
                local: false,
                state: *state,
                reason: None,
                message: Text::default(),
                path: Some(path(name)),
                previous_path: None,
                started_at: Timestamp::default(),
                ended_at: Timestamp::default(),
                closure_size: None,
                fetched_bytes: None,
                changes: None,
            })
            .collect();
        Seen {
            history: Some(History {
                agent: machine.agent,
                fleet: machine.fleet,
                entries,
            }),
            ..Seen::default()
        }
    }

    fn chosen(seen: &Seen) -> Option<RollbackTo> {
        choose(&machine("web-1").agent, seen, None)
            .ok()
            .map(|choice| choice.to)
    }

    #[test]
    fn it_goes_back_to_what_ran_before_what_runs() {
        let seen = seen(&[
            (3, State::RolledBack, "c"),
            (2, State::Succeeded, "b"),
            (1, State::Succeeded, "a"),
        ]);
        assert_eq!(chosen(&seen), Some(RollbackTo::Deployment(id(1))));
    }

    #[test]
    fn a_repeat_of_what_runs_is_no_way_back() {
        let seen = seen(&[
            (3, State::Unchanged, "b"),
            (2, State::Succeeded, "b"),
            (1, State::Succeeded, "a"),
        ]);
        assert_eq!(chosen(&seen), Some(RollbackTo::Deployment(id(1))));
    }

    #[test]
    fn what_was_tried_dry_or_only_staged_has_not_run() {
        let seen = seen(&[
            (5, State::DryActivated, "e"),
            (4, State::Succeeded, "d"),
            (3, State::Staged, "c"),
            (2, State::Succeeded, "b"),
        ]);
        assert_eq!(chosen(&seen), Some(RollbackTo::Deployment(id(2))));
    }

    #[test]
    fn what_waits_for_a_boot_goes_back_to_what_runs() {
        let seen = seen(&[
            (3, State::Staged, "c"),
            (2, State::Succeeded, "b"),
            (1, State::Succeeded, "a"),
        ]);
        assert_eq!(chosen(&seen), Some(RollbackTo::Deployment(id(2))));
    }

    #[test]
    fn the_first_deployment_goes_back_to_what_was_there_before_it() {
        let seen = seen(&[(1, State::Succeeded, "a")]);
        assert_eq!(chosen(&seen), Some(RollbackTo::Before(id(1))));
    }

    #[test]
    fn the_status_may_be_ahead_of_the_history() {
        let mut seen = seen(&[(1, State::Succeeded, "a")]);
        let mut report = status(order(2), State::Succeeded);
        report.path = Some(path("b"));
        seen.status = Some(report);
        assert_eq!(chosen(&seen), Some(RollbackTo::Deployment(id(1))));
    }

    #[test]
    fn where_nothing_ever_ran_there_is_nothing_to_go_back_to() {
        assert_eq!(chosen(&seen(&[(1, State::Failed, "a")])), None);
        assert_eq!(chosen(&Seen::default()), None);
    }

    #[test]
    fn an_id_may_be_given_by_its_last_digits() {
        let seen = seen(&[(7, State::Succeeded, "a")]);
        let find = |given: &str| find(seen.history.as_ref(), given).ok();
        assert_eq!(find(&id(7).short()), Some(id(7)));
        assert_eq!(find(&id(9).to_string()), Some(id(9)));
        assert_eq!(find("0000000"), None);
    }
}
