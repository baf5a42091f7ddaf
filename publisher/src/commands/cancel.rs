//! `hoist cancel`: what machines have not begun to activate is not activated any more.

use clap::Args;
use hoist_protocol::{DeploymentId, Goal, Rollout, State, Target};

use super::CommandError;
use super::choosing::{self, About, Choice, Choose, ChosenArgs};
use crate::outcome::Exit;
use crate::plan::Wish;
use crate::select::Selector;
use crate::settings::Flags;

pub(crate) const CANCEL_EXAMPLES: &str = "\
Examples:
  hoist cancel web-1                      web-1 stays with what it runs
  hoist cancel --rollout 1a2b3c4d         every machine that has a deployment of this rollout before it
  hoist cancel '@laptop' --async          those that are away will never begin it

A deployment that names the cancelled one takes its place and leaves the machine as it is: nothing is fetched or
activated. What is being activated comes to its end; where it was carried out before it could be cancelled the
outcome is `rejected` (too_late), and `hoist rollback` takes it back. A `hoist deploy` that is rolling out has to be
stopped first (Ctrl-C): the batches that have not come are not on any topic.";

/// `hoist cancel`
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The machines: names, or selections such as '@web&!@canary'
    #[arg(value_name = "SELECTION", required_unless_present = "rollout")]
    pub agents: Vec<Selector>,
    /// Only deployments of this rollout: its id, or the last 8 digits of that
    #[arg(long, value_name = "ID")]
    pub rollout: Option<String>,
    /// The rest
    #[command(flatten)]
    pub chosen: ChosenArgs,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &CancelArgs, flags: Flags) -> Result<Exit, CommandError> {
    let rollout = args
        .rollout
        .as_deref()
        .map(WhichRollout::parse)
        .transpose()?;
    let of = (&args.agents[..], &args.chosen);
    let cancel = Box::new(Cancel { rollout });
    choosing::run("cancel", "cancel deployments", of, flags, cancel).await
}

/// A rollout as it is named on a command line.
#[derive(Clone, Debug, Eq, PartialEq)]
enum WhichRollout {
    Id(DeploymentId),
    Short(String),
}

impl WhichRollout {
    fn parse(text: &str) -> Result<Self, CommandError> {
        let text = text.trim().to_lowercase();
        if text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self::Short(text));
        }
        text.parse().map(Self::Id).map_err(CommandError::Rollout)
    }

    fn is(&self, rollout: &Rollout) -> bool {
        let id = DeploymentId::new(rollout.id);
        match self {
            Self::Id(meant) => *meant == id,
            Self::Short(short) => *short == id.short(),
        }
    }
}

struct Cancel {
    rollout: Option<WhichRollout>,
}

impl Choose for Cancel {
    fn choose(&self, about: &About<'_>) -> Result<Choice, CommandError> {
        let standing = about.standing();
        let part =
            (standing.as_ref().ok()).and_then(|standing| standing.parts().provenance.rollout);
        if let Some(meant) = &self.rollout
            && !part.as_ref().is_some_and(|part| meant.is(part))
        {
            return Ok(Choice::NotMeant);
        }
        // Nothing of it is signed again but its id: so one that no known key signed can be cancelled too.
        let status = about.seen.status.as_ref();
        let open = status.filter(|status| !status.state.is_final() && !status.local);
        let id = match (&standing, open.and_then(|status| status.id)) {
            (Ok(standing), _) => standing.id(),
            (Err(_), Some(id)) => id,
            (Err(why), None) => return Ok(Choice::Refuse(why.to_string())),
        };
        if let Some(state) = ended(about, id) {
            let word = state.as_str().replace('_', " ");
            let then = match state.is_good() {
                true => "; `hoist rollback` takes it back",
                false => "",
            };
            let short = id.short();
            let why = format!("its newest deployment {short} has ended already ({word}){then}");
            return Ok(Choice::Skip(why));
        }
        if let Ok(standing) = &standing
            && standing.parts().target.goal == Goal::Stay
            && !standing.is_held(about.now)
        {
            return Ok(Choice::Skip(
                "what it had to do is cancelled already".to_owned(),
            ));
        }
        let said = match &standing {
            Ok(standing) => format!("stays as it is; cancelled is {}", standing.said()),
            Err(_) => format!("stays as it is; cancelled is deployment {}", id.short()),
        };
        let wish = Wish {
            cancels: Some(id),
            rollout: part,
            ..Wish::of(Target::new(Goal::Stay))
        };
        Ok(Choice::Send(Box::new(wish), said))
    }
}

/// How a deployment ended on a machine, by what that says.
fn ended(about: &About<'_>, id: DeploymentId) -> Option<State> {
    let status = about.seen.status.as_ref();
    let now = status
        .filter(|status| status.id == Some(id))
        .map(|status| status.state);
    let entries = about
        .seen
        .history
        .iter()
        .flat_map(|history| &history.entries);
    let then = entries
        .filter(|entry| entry.id == id)
        .map(|entry| entry.state);
    then.chain(now).find(|state| state.is_final())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_named_by_its_id_or_the_end_of_that() {
        let rollout = Rollout {
            id: uuid::Uuid::from_u128(0x0196_0000_0000_7000_8000_0000_ABCD_EF01),
            batch: 1,
            batches: 1,
        };
        for name in [
            "abcdef01",
            "ABCDEF01",
            "01960000-0000-7000-8000-0000abcdef01",
        ] {
            assert!(WhichRollout::parse(name).unwrap().is(&rollout), "{name}");
        }
        assert!(!WhichRollout::parse("abcdef02").unwrap().is(&rollout));
        assert!(WhichRollout::parse("web-1").is_err());
    }
}
