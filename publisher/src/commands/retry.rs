//! `hoist retry`: the newest deployment once more, where it failed.

use clap::Args;
use hoist_protocol::{DeploymentId, State};

use super::CommandError;
use super::choosing::{self, About, Choice, Choose, ChosenArgs};
use crate::outcome::Exit;
use crate::select::Selector;
use crate::settings::Flags;

pub(crate) const RETRY_EXAMPLES: &str = "\
Examples:
  hoist retry web-1
  hoist retry '*' --dry-run               where it failed, and what would be tried again
  hoist retry '*' --where reason=disk_full

Only machines whose newest deployment failed are meant, or went back, or rejected it; the others are named with why
there is nothing to try again. The same target is signed again, with another id.";

/// `hoist retry`
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The machines: names, or selections such as '@web&!@canary'
    #[arg(value_name = "SELECTION", required = true)]
    pub agents: Vec<Selector>,
    /// The rest
    #[command(flatten)]
    pub chosen: ChosenArgs,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &RetryArgs, flags: Flags) -> Result<Exit, CommandError> {
    let of = (&args.agents[..], &args.chosen);
    choosing::run("retry", "deploy once more", of, flags, Box::new(Retry)).await
}

struct Retry;

impl Choose for Retry {
    fn choose(&self, about: &About<'_>) -> Result<Choice, CommandError> {
        let status = about.seen.status.as_ref();
        let Some((status, id)) = status.and_then(|status| Some((status, status.id?))) else {
            return Ok(Choice::Skip("it has reported no deployment".to_owned()));
        };
        if let Some(why) = nothing_to_retry(status.state, id) {
            return Ok(Choice::Skip(why));
        }
        let standing = match about.standing() {
            Ok(standing) => standing,
            Err(why) => return Ok(Choice::Refuse(why.to_string())),
        };
        if standing.id() != id {
            return Ok(Choice::Skip(format!(
                "deployment {} is newer than the one that failed, and it has not answered that yet",
                standing.id().short()
            )));
        }
        let said = format!("tried again: {}", standing.said());
        Ok(Choice::Send(Box::new(standing.afresh()), said))
    }
}

fn nothing_to_retry(state: State, id: DeploymentId) -> Option<String> {
    let id = id.short();
    let word = state.as_str().replace('_', " ");
    match state {
        State::Failed
        | State::RolledBack
        | State::RollbackFailed
        | State::Conflict
        | State::Rejected => None,
        state if state.is_good() => Some(format!("its newest deployment {id} went well ({word})")),
        state if state.is_final() => Some(format!(
            "its newest deployment {id} has not failed, it is {word}"
        )),
        _ => Some(format!(
            "its newest deployment {id} has not ended, it is {word}"
        )),
    }
}
