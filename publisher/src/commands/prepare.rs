//! `--prepare FILE`: signed deployments for others to sign too, instead of publishing them.

use camino::Utf8Path;
use hoist_protocol::{Draft, VerifyError};

use super::CommandError;
use super::making::Made;
use super::send::Sending;
use crate::console::Console;
use crate::follow::{End, Said};
use crate::outcome::{Exit, Outcome, exit_of};
use crate::plan::Signed;
use crate::report::{MachineReport, Report};
use crate::signed_file::SignedFile;

/// Writes what was made into the file.
pub(super) fn write(
    sending: &Sending<'_>,
    made: Made,
    warnings: Vec<String>,
    file: &Utf8Path,
    console: &Console,
    took: std::time::Duration,
) -> Result<Exit, CommandError> {
    let drafts: Result<Vec<Draft>, VerifyError> = (made.signed.iter())
        .map(|signed: &Signed| Draft::open(&signed.envelope))
        .collect();
    let signed_file = SignedFile {
        fleet: sending.fleet().clone(),
        drafts: drafts.map_err(CommandError::Prepared)?,
    };
    if signed_file.drafts.is_empty() {
        console.warn(&format!(
            "there is nothing to sign, so `{file}` was not written"
        ));
    } else {
        signed_file.write(file)?;
    }
    let mut machines: Vec<MachineReport> = (made.signed.iter())
        .map(|signed| {
            let closure = made.closures.get(&signed.machine.agent).cloned();
            let end = End::new(Outcome::Prepared, "");
            MachineReport::new(signed, end, &Said::default(), closure.unwrap_or_default())
        })
        .collect();
    machines.extend(made.unsigned);
    machines.extend(made.left_out);
    let fleet = sending.fleet().clone();
    let mut report = Report::new(sending.command(), fleet, machines, warnings, took);
    let exit = exit_of(&report.outcomes(), false);
    report.exit_code = exit.code();
    let printed = match sending.follow().json {
        true => sending.log().json(&report.to_json()),
        false => sending.log().table(&report.table()),
    };
    printed.map_err(CommandError::Output)?;
    if !signed_file.drafts.is_empty() {
        let names: Vec<&str> = (sending.keys().signing.iter())
            .map(|signer| signer.name().as_str())
            .collect();
        console.note(&format!(
            "{} in `{file}`, signed by {}; nothing was published: `hoist sign {file}` adds another's signature, \
             `hoist deploy --signed {file}` publishes",
            report.summary(),
            names.join(", ")
        ));
    }
    sending.leave(console, &report);
    Ok(exit)
}
