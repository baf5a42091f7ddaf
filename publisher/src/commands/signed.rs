//! `hoist deploy --signed FILE`: publishes what was prepared and signed by enough people.

use std::collections::BTreeMap;

use camino::Utf8Path;
use hoist_certs::Role;
use hoist_certs::program::now;
use hoist_protocol::{AgentName, Draft, Target, Timestamp, TrustedKeys};
use uuid::Uuid;

use super::CommandError;
use super::deploy::DeployArgs;
use super::making::{Made, Warnings};
use super::rolling::Divided;
use super::send::{Sending, Task};
use crate::follow::{End, Said};
use crate::outcome::{Exit, Outcome};
use crate::plan::{Hold, Signed};
use crate::report::{Closure, MachineReport};
use crate::rollout::{OnFailure, Rollout};
use crate::settings::Settings;
use crate::signed_file::SignedFile;
use crate::snapshot::{Seen, Snapshot};

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub(super) async fn run(
    args: &DeployArgs,
    settings: &Settings<'_>,
    path: &Utf8Path,
) -> Result<Exit, CommandError> {
    let caller = settings.caller("deploy", &[Role::Publisher])?;
    let keys = settings.trusted(&args.signing)?;
    let file = SignedFile::read(path)?;
    if file.fleet != caller.fleet {
        return Err(CommandError::OtherFleet {
            file: file.fleet,
            certificate: caller.fleet,
        });
    }
    if let Some((agent, error)) = file.lacking(&keys.trusted).into_iter().next() {
        return Err(CommandError::NotSigned(agent, error));
    }
    let mut sending = Sending::new("deploy", &args.deployment, &args.follow, caller, keys)?;
    sending.rollout = args.rollout.rollout();
    if sending
        .rollout
        .is_some_and(|rollout| rollout.on_failure == OnFailure::Rollback)
    {
        return Err(CommandError::SignedWayBack);
    }
    sending.run(Task::Signed(file.drafts)).await
}

/// What of the file is still to be published, and in which batches: those that are asked for now, since who is online
/// is known only now.
pub(super) fn made(
    drafts: Vec<Draft>,
    rollout: Option<Rollout>,
    snapshot: &Snapshot,
    trusted: &TrustedKeys,
) -> Result<Made, CommandError> {
    let mut made = Made {
        divided: None,
        rollout: None,
        signed: Vec::new(),
        unsigned: Vec::new(),
        left_out: Vec::new(),
        closures: BTreeMap::new(),
        warnings: Warnings::default(),
    };
    let at = now();
    let nothing = Seen::default();
    let mut meant: Vec<(AgentName, Target, Hold)> = Vec::new();
    for draft in drafts {
        let signed = Signed::new(&draft)
            .map_err(|error| CommandError::Plan(crate::plan::PlanError::Sign(error)))?;
        let agent = signed.machine.agent.clone();
        let closure = Closure::of(draft.deployment().target());
        let seen = snapshot.machine(&agent).unwrap_or(&nothing);
        if !seen.has_reported() {
            let warning = "never reported; the deployment waits for it. Is the name right?";
            made.warnings.add(warning.to_owned(), &agent);
        }
        match past(&signed, seen, trusted, at) {
            Some(end) => {
                let report = MachineReport::new(&signed, end, &Said::default(), closure);
                made.warnings.add(report.message.to_string(), &agent);
                made.unsigned.push(report);
            }
            None => {
                let parts = draft.deployment().parts();
                // They were prepared together, or are cancelled one by one.
                let rollout = parts.provenance.rollout;
                made.rollout = made.rollout.or(rollout.map(|rollout| rollout.id));
                meant.push((agent.clone(), parts.target.clone(), signed.hold));
                made.closures.insert(agent, closure);
                made.signed.push(signed);
            }
        }
    }
    made.divided = rollout.filter(|_| !meant.is_empty()).map(|rollout| {
        let machines = (meant.iter()).map(|(agent, target, hold)| (agent, target, *hold));
        let id = made.rollout.unwrap_or_else(Uuid::now_v7);
        Divided::new(id, rollout, machines, snapshot)
    });
    Ok(made)
}

/// How it has ended already, when it comes too late.
fn past(signed: &Signed, seen: &Seen, trusted: &TrustedKeys, now: Timestamp) -> Option<End> {
    if signed.expires <= now {
        let message = format!("it expired at {}; prepare it again", signed.expires);
        return Some(End::new(Outcome::Expired, &message));
    }
    let (known, _) = seen.orders(&signed.machine, trusted);
    let ours = (signed.order.epoch, signed.order.sequence);
    let newer = known
        .retained
        .into_iter()
        .chain(known.floor)
        .any(|order| order > ours);
    newer.then(|| {
        let message = "something newer was deployed since it was prepared; prepare it again if it is still wanted";
        End::new(Outcome::Superseded, message)
    })
}
