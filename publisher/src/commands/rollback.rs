//! `hoist rollback`: back to what a machine ran before, named by the id of a deployment.
//!
//! The machine looks the id up in its own ledger of what it once verified and ran. No path is signed here:
//! those that are shown come from the machine's reports, which nobody has signed.

use clap::Args;
use hoist_protocol::{DeploymentId, Goal, Held, RollbackTo, State, StorePath};

use super::CommandError;
use super::choosing::{self, About, Choose, ChosenArgs};
use crate::flags::{ActivationArgs, CheckArgs, options};
use crate::id_end::IdEnd;
use crate::options::Options;
use crate::outcome::Exit;
use crate::plan::{Hold, Wish};
use crate::select::Selector;
use crate::settings::Flags;
use crate::snapshot::Seen;

pub(crate) const ROLLBACK_EXAMPLES: &str = "\
Examples:
  hoist rollback web-1                    back to what web-1 ran before
  hoist rollback web-1 --to 9b30771b      back to what this deployment brought (`hoist history web-1`)
  hoist rollback '@web' --dry-run         what each of them would go back to";

/// `hoist rollback`
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The machines: names, or selections such as '@web&!@canary'; each goes back by what it says of itself
    #[arg(value_name = "SELECTION", required = true)]
    pub agents: Vec<Selector>,
    /// Back to what this deployment brought: its id, or the last 8 digits of an id in the machine's history. For
    /// several machines it has to be in the history of each
    #[arg(long, value_name = "ID")]
    pub to: Option<IdEnd>,
    /// Let machines go that `hoist hold` holds; otherwise they stay held, and go back when they are released
    #[arg(long)]
    pub release: bool,
    /// How the closure is activated
    #[command(flatten)]
    pub activation: ActivationArgs,
    /// What must hold afterwards
    #[command(flatten)]
    pub checks: CheckArgs,
    /// The rest
    #[command(flatten)]
    pub chosen: ChosenArgs,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &RollbackArgs, flags: Flags) -> Result<Exit, CommandError> {
    let is_one = matches!(&args.agents[..], [one] if one.name().is_some());
    let rollback = Rollback {
        to: args.to,
        is_one,
        releases: args.release,
        options: options(&args.activation, &args.checks),
    };
    let of = (&args.agents[..], &args.chosen);
    choosing::run(
        "rollback",
        "roll machines back",
        of,
        flags,
        Box::new(rollback),
    )
    .await
}

struct Rollback {
    to: Option<IdEnd>,
    /// Whether one machine is named: then an id may be one that only the machine itself still knows.
    is_one: bool,
    releases: bool,
    options: Options,
}

impl Choose for Rollback {
    fn choose(&self, about: &About<'_>) -> Result<choosing::Choice, CommandError> {
        let choice = match self.to {
            Some(given) => to(about.seen, given, self.is_one),
            None => choose(about.seen),
        };
        Ok(match choice {
            Some(choice) => {
                let target = self.options.target(Goal::Rollback(choice.to))?;
                let mut wish = Wish::of(target);
                if self.releases {
                    wish.hold = Hold::Set(Held::No);
                }
                choosing::Choice::Send(Box::new(wish), choice.said)
            }
            None if self.to.is_some() => choosing::Choice::Refuse(
                "the deployment that --to names is not in its history".to_owned(),
            ),
            None => choosing::Choice::Refuse(
                "it has reported no deployment that it runs, so there is nothing to go back to; name one with --to"
                    .to_owned(),
            ),
        })
    }
}

/// What a machine is sent back to, and how that is said.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Choice {
    to: RollbackTo,
    said: String,
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
        format!("deployment {}{path}", self.id.short())
    }
}

/// Takes the id that was given.
fn to(seen: &Seen, given: IdEnd, is_one: bool) -> Option<Choice> {
    let entries = seen.history.iter().flat_map(|history| &history.entries);
    let known = given.among(entries.map(|entry| entry.id));
    // One machine may know what its history, which is short, does not tell any more.
    let id = match given {
        IdEnd::Whole(id) if is_one => Some(id),
        IdEnd::Whole(_) | IdEnd::End(_) => known,
    };
    id.map(|id| Choice {
        to: RollbackTo::Deployment(id),
        said: format!("back to deployment {}", id.short()),
    })
}

/// Chooses from what the machine reports.
fn choose(seen: &Seen) -> Option<Choice> {
    let good = good(seen);
    let runs = good.first()?;
    // A repeat of what runs is no way back.
    let before = good[1..]
        .iter()
        .find(|other| other.ran && (runs.path.is_none() || other.path != runs.path));
    Some(match before {
        Some(before) => Choice {
            to: RollbackTo::Deployment(before.id),
            said: format!(
                "back to {}, which ran before {}",
                before.said(),
                runs.said()
            ),
        },
        None => Choice {
            to: RollbackTo::Before(runs.id),
            said: format!("back to what ran before {}", runs.said()),
        },
    })
}

/// What ended well, newest first. The status may be ahead of the history.
fn good(seen: &Seen) -> Vec<Good<'_>> {
    let entries = seen.history.iter().flat_map(|history| &history.entries);
    let mut good: Vec<Good<'_>> = entries
        .filter(|entry| is_there(entry.state, entry.path.as_ref()))
        .map(|entry| Good {
            id: entry.id,
            path: entry.path.as_ref(),
            ran: entry.state != State::Staged,
        })
        .collect();
    if let Some(status) = seen.status.as_ref()
        && is_there(status.state, status.path.as_ref())
        && let Some(id) = status.id
        && good.iter().all(|known| known.id != id)
    {
        let path = status.path.as_ref().or(status.current_path.as_ref());
        let ran = status.state != State::Staged;
        good.insert(0, Good { id, path, ran });
    }
    good
}

/// Whether a deployment that ended so, and brought that, is on the machine. One that was tried dry is not, and one with
/// which the machine stayed as it was, such as that which cancelled another, brought nothing.
fn is_there(state: State, path: Option<&StorePath>) -> bool {
    let stayed = state == State::Unchanged && path.is_none();
    state.is_good() && state != State::DryActivated && !stayed
}

#[cfg(test)]
mod tests {
    use hoist_protocol::History;

    use super::*;
    use crate::testing::{entry, id, machine, order, path, status};

    /// Newest first: the id, how it ended, and what it brought.
    fn seen(entries: &[(u64, State, &str)]) -> Seen {
        let machine = machine("web-1");
        let entries = entries
            .iter()
            .map(|(n, state, name)| entry(*n, *state, name))
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
        choose(seen).map(|choice| choice.to)
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
    fn a_deployment_with_which_the_machine_stayed_as_it_was_is_no_way_back() {
        let mut seen = seen(&[
            (4, State::Succeeded, "c"),
            (3, State::Unchanged, "none"),
            (2, State::Succeeded, "b"),
        ]);
        if let Some(history) = &mut seen.history {
            history.entries[1].path = None;
        }
        assert_eq!(chosen(&seen), Some(RollbackTo::Deployment(id(2))));
        // Nor is it what runs.
        let mut report = status(order(5), State::Unchanged);
        report.current_path = Some(path("c"));
        seen.status = Some(report);
        assert_eq!(chosen(&seen), Some(RollbackTo::Deployment(id(2))));
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
    fn what_one_machine_alone_still_knows_is_named_by_its_whole_id() {
        let seen = seen(&[(7, State::Succeeded, "a")]);
        let to = |given: String, is_one| {
            let choice = to(&seen, given.parse().unwrap(), is_one);
            choice.map(|choice| choice.to)
        };
        let deployment = |n| Some(RollbackTo::Deployment(id(n)));
        for is_one in [true, false] {
            assert_eq!(to(id(7).short(), is_one), deployment(7));
            assert_eq!(to(id(7).to_string(), is_one), deployment(7));
            assert_eq!(to(id(9).short(), is_one), None);
        }
        assert_eq!(to(id(9).to_string(), true), deployment(9));
        assert_eq!(to(id(9).to_string(), false), None);
    }
}
