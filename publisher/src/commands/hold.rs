//! `hoist hold`: machines leave everything as they are, until `hoist release` or for a time.

use std::time::Duration;

use clap::Args;
use hoist_protocol::Held;

use super::CommandError;
use super::choosing::{self, About, Choice, Choose, ChosenArgs};
use crate::duration;
use crate::outcome::Exit;
use crate::select::Selector;
use crate::settings::Flags;

pub(crate) const HOLD_EXAMPLES: &str = "\
Examples:
  hoist hold db-1                         db-1 begins nothing until `hoist release db-1`
  hoist hold '@web' --for 2h --message 'sale until noon'
  hoist hold '*' --dry-run                what would be held with what

What a machine is activating comes to its end; what it fetches or waits with, waits. The deployment on its topic
is published again, held: the newest one is still what a machine gets that was away. What is
deployed to it meanwhile is held too, and is what it begins with when it is let go; `hoist deploy --release` and
`hoist rollback --release` let it go at once. For machines that nobody but their own operators may release there is
`hoist-agent hold`, at the machine.";

/// `hoist hold`
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The machines: names, or selections such as '@web&!@canary'
    #[arg(value_name = "SELECTION", required = true)]
    pub agents: Vec<Selector>,
    /// Only for so long, by each machine's clock; then it begins what it was told before
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    pub limit: Option<Duration>,
    /// The rest
    #[command(flatten)]
    pub chosen: ChosenArgs,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &HoldArgs, flags: Flags) -> Result<Exit, CommandError> {
    if let Some(limit) = args.limit
        && limit >= args.chosen.deployment.expires
    {
        return Err(CommandError::HoldTooLong);
    }
    let hold = Hold { limit: args.limit };
    let of = (&args.agents[..], &args.chosen);
    choosing::run("hold", "hold machines", of, flags, Box::new(hold)).await
}

struct Hold {
    limit: Option<Duration>,
}

impl Choose for Hold {
    fn choose(&self, about: &About<'_>) -> Result<Choice, CommandError> {
        let standing = match about.standing() {
            Ok(standing) => standing,
            Err(why) => return Ok(Choice::Refuse(why.to_string())),
        };
        let held = match self.limit {
            Some(limit) => Held::Until(about.now.plus(limit)),
            None => Held::UntilReleased,
        };
        if held == standing.parts().held {
            return Ok(Choice::Skip("it is held already".to_owned()));
        }
        let until = match held {
            Held::Until(until) => format!("until {until}"),
            Held::UntilReleased | Held::No => "until it is released".to_owned(),
        };
        let said = format!("held {until}; then {}", standing.said());
        Ok(Choice::Send(
            Box::new(standing.again(held, about.now)),
            said,
        ))
    }
}
