//! `hoist release`: the end of `hoist hold`.

use clap::Args;
use hoist_protocol::Held;

use super::CommandError;
use super::choosing::{self, About, Choice, Choose, ChosenArgs};
use crate::outcome::Exit;
use crate::select::Selector;
use crate::settings::Flags;

pub(crate) const RELEASE_EXAMPLES: &str = "\
Examples:
  hoist release db-1
  hoist release '*'                       all that `hoist hold` holds

What was deployed to a machine while it was held begins. One that ran what lies on its topic before it was held says `unchanged`; one on which that had failed says so
again and does not try it again (`hoist retry` does); one that had not begun begins. A hold by somebody at the machine
ends there, by `hoist-agent release`.";

/// `hoist release`
#[derive(Debug, Args)]
pub struct ReleaseArgs {
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
pub async fn run(args: &ReleaseArgs, flags: Flags) -> Result<Exit, CommandError> {
    let of = (&args.agents[..], &args.chosen);
    choosing::run("release", "release machines", of, flags, Box::new(Release)).await
}

struct Release;

impl Choose for Release {
    fn choose(&self, about: &About<'_>) -> Result<Choice, CommandError> {
        let standing = match about.standing() {
            Ok(standing) => standing,
            Err(why) => return Ok(Choice::Refuse(why.to_string())),
        };
        if !standing.is_held(about.now) {
            let here = (about.seen.status.as_ref()).is_some_and(|status| status.held);
            let why = match here {
                true => {
                    "no deployment holds it; somebody at the machine does, where `hoist-agent release` ends that"
                }
                false => "it is not held",
            };
            return Ok(Choice::Skip(why.to_owned()));
        }
        let said = format!("released; then {}", standing.said());
        Ok(Choice::Send(
            Box::new(standing.again(Held::No, about.now)),
            said,
        ))
    }
}
