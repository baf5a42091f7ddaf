//! `hoist refresh`: what machines shall run stays valid for longer.

use clap::Args;

use super::CommandError;
use super::choosing::{self, About, Choice, Choose, ChosenArgs};
use crate::outcome::Exit;
use crate::select::Selector;
use crate::settings::Flags;

pub(crate) const REFRESH_EXAMPLES: &str = "\
Examples:
  hoist refresh '*'                       valid for 90 days from now, as after a deployment
  hoist refresh '@laptop' --expires 365d --async

The deployment on each machine's topic is signed again with another expiry. A machine that runs it says `unchanged`;
one on which it failed says so again and does not try it again (`hoist retry` does); one that was away begins when it
returns. What has expired is not signed again: deploy it.";

/// `hoist refresh`
#[derive(Debug, Args)]
pub struct RefreshArgs {
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
pub async fn run(args: &RefreshArgs, flags: Flags) -> Result<Exit, CommandError> {
    let of = (&args.agents[..], &args.chosen);
    let task = "renew the expiry of deployments";
    choosing::run("refresh", task, of, flags, Box::new(Refresh)).await
}

struct Refresh;

impl Choose for Refresh {
    fn choose(&self, about: &About<'_>) -> Result<Choice, CommandError> {
        let standing = match about.standing() {
            Ok(standing) => standing,
            Err(why) => return Ok(Choice::Refuse(why.to_string())),
        };
        let held = standing.hold(about.now);
        let said = format!(
            "renewed; it was valid until {}: {}",
            standing.parts().expires,
            standing.said()
        );
        Ok(Choice::Send(
            Box::new(standing.again(held, about.now)),
            said,
        ))
    }
}
