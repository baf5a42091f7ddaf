//! One phase, one fault.

use std::fmt;

use anyhow::{Result, bail, ensure};
use hoist_protocol::{Reason, State};
use hoist_tests::machine::SYSTEM_PROFILE;

use super::expected::Expected;
use super::fault::Fault;
use super::phase::Phase;
use super::subject::{Closures, Subject, Version};

/// Where a machine ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    New,
    Old,
    NotTried,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::New => "new",
            Self::Old => "old",
            Self::NotTried => "-",
        })
    }
}

/// Deploys, lets the fault of `subject` happen in `phase`, and looks whether everything is as it was promised.
pub(super) fn try_out(
    subject: &mut Subject<'_>,
    phase: Phase,
    closures: &Closures,
    expected: Expected,
) -> Result<Outcome> {
    let fault = subject.fault;
    let new = closures.of(phase)?.clone();
    let old = subject.runs.clone();
    let before = subject.machine.activations()?.len();

    let (id, hold) = phase.reach(subject, &new)?;
    fault.strike(subject, phase, id, hold)?;

    let status = subject.settled(&subject.machine, id)?;
    let forward = status.state.is_good();
    ensure!(
        expected == Expected::Either || forward == (expected == Expected::New),
        "{} ({:?}): {}",
        status.state,
        status.reason,
        status.message
    );
    ensure!(
        forward || matches!(status.state, State::Failed | State::RolledBack),
        "it {}: {}",
        status.state,
        status.message
    );
    if fault == Fault::ClockBehind && status.reason == Some(Reason::NotConfirmed) {
        let message = status.message.as_str();
        ensure!(
            message.contains("not valid before") && message.contains("this machine's clock says"),
            "it does not say why it was not confirmed: {message}"
        );
    }
    subject.runs = if forward { new.clone() } else { old.clone() };
    let machine = &subject.machine;
    let path = Some(&subject.runs.path);
    let is = [
        ("runs", machine.current_system()?),
        ("names as its profile", machine.profile(SYSTEM_PROFILE)?),
        ("boots", machine.boot_default()?),
    ];
    for (what, is) in is {
        ensure!(is.as_ref() == path, "it {what} {is:?} and not {path:?}");
    }
    let activations = machine.activations()?.split_off(before);
    check_activations(&activations, phase, fault, &old, &new)?;

    ensure!(
        fault == Fault::Disk || subject.restarts == 0,
        "the agent ended by itself"
    );
    let remains = subject.wait_idle()?;
    ensure!(
        remains.files == subject.files,
        "the state folder holds {:?} and not {:?}",
        remains.files,
        subject.files
    );
    ensure!(
        fault.damages_ledger() || remains.damaged == 0,
        "a ledger was set aside"
    );
    Ok(if forward { Outcome::New } else { Outcome::Old })
}

/// Nothing is activated more often than the fault makes needed.
fn check_activations(
    activations: &[String],
    phase: Phase,
    fault: Fault,
    old: &Version,
    new: &Version,
) -> Result<()> {
    let stopped = matches!(fault, Fault::Activator | Fault::Both | Fault::Power);
    for activation in activations {
        let times = activations
            .iter()
            .filter(|other| *other == activation)
            .count();
        let most = match activation.split_once(' ') {
            // After the confirmation a boot brings the old system, and the new one has to be activated again.
            Some((version, "test")) if version == new.name => {
                1 + usize::from(phase == Phase::Committing && fault == Fault::Power)
            }
            Some((version, "boot")) if version == new.name => {
                1 + usize::from(phase == Phase::Committing && stopped)
            }
            Some((version, "test")) if version == old.name => {
                1 + usize::from(phase == Phase::RollingBack && stopped)
            }
            Some((version, "boot")) if version == old.name => 1,
            _ => bail!("{activation} is none of this deployment: {activations:?}"),
        };
        ensure!(
            times <= most,
            "{activation} happened {times} times: {activations:?}"
        );
    }
    Ok(())
}
