//! `hoist cancel`: what machines have not begun to activate is not activated any more.

use clap::Args;
use hoist_protocol::{AgentName, DeploymentId, Goal, Presence, Rollout, State, Target};
use uuid::Uuid;

use super::CommandError;
use super::choosing::{self, About, Choice, Choose, Chosen, ChosenArgs, Fleet};
use super::standing::Standing;
use crate::id_end::IdEnd;
use crate::outcome::Exit;
use crate::plan::Wish;
use crate::select::Selector;
use crate::settings::Flags;
use crate::snapshot::Seen;

pub(crate) const CANCEL_EXAMPLES: &str = "\
Examples:
  hoist cancel web-1                      web-1 stays with what it runs
  hoist cancel --rollout 1a2b3c4d         every machine that has a deployment of this rollout before it
  hoist cancel '@laptop' --async          those that are away will never begin it

A deployment that names the cancelled one takes its place and leaves the machine as it is: nothing is fetched or
activated. What is being activated comes to its end; where it was carried out before it could be cancelled the
outcome is `rejected` (too_late), and `hoist rollback` takes it back. With --rollout alone the whole rollout is
cancelled: a `hoist deploy` that is rolling out sees it, wherever it runs, and begins no further batch. Where no machine
has anything left to cancel but batches are to come, one machine is told once more what it has, as the sign for that.";

/// Most rollouts that are named when one is not found.
const NAMED: usize = 4;

/// `hoist cancel`
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The machines: names, or selections such as '@web&!@canary'
    #[arg(value_name = "SELECTION", required_unless_present = "rollout")]
    pub agents: Vec<Selector>,
    /// Only deployments of this rollout: its id, or the last 8 digits of that
    #[arg(long, value_name = "ID")]
    pub rollout: Option<IdEnd>,
    /// The rest
    #[command(flatten)]
    pub chosen: ChosenArgs,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &CancelArgs, flags: Flags) -> Result<Exit, CommandError> {
    let of = (&args.agents[..], &args.chosen);
    let cancel = Box::new(Cancel {
        rollout: args.rollout,
        whole: args.agents.is_empty(),
    });
    choosing::run("cancel", "cancel deployments", of, flags, cancel).await
}

struct Cancel {
    rollout: Option<IdEnd>,
    /// The rollout itself is meant, and not only what some machines have of it.
    whole: bool,
}

impl Choose for Cancel {
    fn choose(&self, about: &About<'_>) -> Result<Choice, CommandError> {
        let standing = about.standing();
        let part =
            (standing.as_ref().ok()).and_then(|standing| standing.parts().provenance.rollout);
        let is_part =
            |meant: IdEnd| part.is_some_and(|part| meant.fits(DeploymentId::new(part.id)));
        if self.rollout.is_some_and(|meant| !is_part(meant)) {
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
            // Whoever rolls out sees by that that the rollout is cancelled, and not only what one machine has of it.
            rollout: part.filter(|_| self.whole),
            ..Wish::of(Target::new(Goal::Stay))
        };
        Ok(Choice::Send(Box::new(wish), said))
    }

    fn complete(&self, chosen: &mut Chosen, fleet: &Fleet<'_>) -> Result<(), CommandError> {
        let Some(meant) = self.rollout else {
            return Ok(());
        };
        if chosen.is_empty() {
            return Err(none_of(meant, fleet));
        }
        if self.whole
            && chosen.wishes.is_empty()
            && let Some((agent, standing, part)) = to_mark(meant, fleet)
        {
            let wish = Wish {
                rollout: Some(part),
                ..standing.again(standing.hold(fleet.now), fleet.now)
            };
            let said = format!(
                "told once more what it has, as the sign that the rollout is cancelled: {} of its {} batches have come",
                part.batch, part.batches
            );
            chosen.send_instead(agent, wish, said);
        }
        Ok(())
    }
}

/// That no machine has anything of it, with what there is.
fn none_of(meant: IdEnd, fleet: &Fleet<'_>) -> CommandError {
    let parts = fleet.standing();
    let ids = parts.filter_map(|(_, _, standing)| Some(standing.parts().provenance.rollout?.id));
    let mut ids: Vec<Uuid> = ids.collect();
    // The ids of version 7 begin with the time.
    ids.sort_unstable();
    ids.dedup();
    let newest = ids.iter().rev().take(NAMED);
    CommandError::NoSuchRollout {
        id: meant,
        known: newest.map(|id| DeploymentId::new(*id).short()).collect(),
    }
}

/// A machine that a cancelled rollout can be marked on, and the last batch that has come. None where all have, or where
/// the rollout is cancelled already.
fn to_mark<'a>(meant: IdEnd, fleet: &'a Fleet<'_>) -> Option<(&'a AgentName, Standing, Rollout)> {
    let of_it = |(agent, seen, standing): (&'a AgentName, &'a Seen, Standing)| {
        let part = standing.parts().provenance.rollout?;
        let is_it = meant.fits(DeploymentId::new(part.id));
        is_it.then_some((agent, seen, standing, part))
    };
    let all: Vec<_> = fleet.standing().filter_map(of_it).collect();
    let last = all
        .iter()
        .map(|(_, _, _, part)| *part)
        .max_by_key(|part| part.batch)?;
    let is_cancelled = |standing: &Standing| {
        let parts = standing.parts();
        parts.target.goal == Goal::Stay || parts.renews.is_some()
    };
    let is_open = last.batch < last.batches && !all.iter().any(|(_, _, one, _)| is_cancelled(one));
    // One that answers at once, and well.
    let worth = |seen: &Seen| {
        let is_good = (seen.status.as_ref()).is_some_and(|status| status.state.is_good());
        (seen.presence == Some(Presence::Online), is_good)
    };
    let best = all.into_iter().max_by_key(|(_, seen, _, _)| worth(seen))?;
    let (agent, _, standing, _) = best;
    is_open.then_some((agent, standing, last))
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
