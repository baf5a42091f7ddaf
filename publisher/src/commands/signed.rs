//! `hoist deploy --signed FILE`: publishes what was prepared and signed by enough people.

use std::collections::BTreeMap;

use camino::Utf8Path;
use hoist_certs::Role;
use hoist_certs::program::now;
use hoist_protocol::{Draft, FleetName, Timestamp, TrustedKeys};

use super::CommandError;
use super::deploy::DeployArgs;
use super::making::{Made, Warnings};
use super::send::{Sending, Task};
use crate::follow::{End, Said};
use crate::outcome::{Exit, Outcome};
use crate::plan::Signed;
use crate::report::{Closure, MachineReport};
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
    let sending = Sending::new("deploy", &args.deployment, &args.follow, caller, keys)?;
    sending.run(Task::Signed(file.drafts)).await
}

/// What of the file is still to be published.
pub(super) fn made(
    drafts: Vec<Draft>,
    fleet: &FleetName,
    snapshot: &Snapshot,
    trusted: &TrustedKeys,
) -> Result<Made, CommandError> {
    let mut made = Made {
        divided: None,
        signed: Vec::new(),
        unsigned: Vec::new(),
        skipped: Vec::new(),
        closures: BTreeMap::new(),
        warnings: Warnings::default(),
    };
    debug_assert!((drafts.iter()).all(|draft| draft.deployment().machine().fleet == *fleet));
    let at = now();
    let nothing = Seen::default();
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
                made.closures.insert(agent, closure);
                made.signed.push(signed);
            }
        }
    }
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
