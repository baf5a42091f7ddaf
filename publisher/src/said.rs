//! What machines say of themselves, in words that fit on a line.

use hoist_certs::program::show_duration;
use hoist_certs::program::show_size_difference;
use hoist_protocol::{Changes, PackageChange, Reason, RebootReason, Status, Text, Timestamp};

/// `3 packages changed, 1 added, +12 MiB`; empty when nothing is different.
#[must_use]
pub fn changes(changes: &Changes) -> String {
    let mut parts = Vec::new();
    for (count, what) in [
        (changes.packages_changed, "changed"),
        (changes.packages_added, "added"),
        (changes.packages_removed, "removed"),
    ] {
        match count {
            0 => {}
            // The word is said once: `3 packages changed, 1 added`.
            1 if parts.is_empty() => parts.push(format!("1 package {what}")),
            count if parts.is_empty() => parts.push(format!("{count} packages {what}")),
            count => parts.push(format!("{count} {what}")),
        }
    }
    if changes.size_difference != 0 {
        parts.push(show_size_difference(changes.size_difference));
    }
    parts.join(", ")
}

/// `openssl 3.0.1 → 3.0.2`, `git 2.44 added`, `vim 9.0 removed`.
#[must_use]
pub fn package(change: &PackageChange) -> String {
    let name = one_line(change.name.as_str());
    let version = |text: &Text<64>| one_line(text.as_str());
    match (&change.from, &change.to) {
        (Some(from), Some(to)) => format!("{name} {} → {}", version(from), version(to)),
        (None, Some(to)) => format!("{name} {} added", version(to)),
        (Some(from), None) => format!("{name} {} removed", version(from)),
        (None, None) => name,
    }
}

/// How many packages changed that are not named.
#[must_use]
pub fn unnamed_packages(changes: &Changes) -> u64 {
    let all = [
        changes.packages_changed,
        changes.packages_added,
        changes.packages_removed,
    ];
    let all: u64 = all.into_iter().map(u64::from).sum();
    all.saturating_sub(changes.packages.len() as u64)
}

/// `needs a reboot (kernel, initrd)`; empty when it needs none.
#[must_use]
pub fn reboot(reasons: &[RebootReason]) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let reasons: Vec<String> = reasons
        .iter()
        .map(|reason| reason.as_str().replace('_', " "))
        .collect();
    format!("needs a reboot ({})", reasons.join(", "))
}

/// Who holds a machine, and what to do about it; empty when nobody at the machine does.
#[must_use]
pub fn held(status: &Status) -> String {
    if !status.held {
        return String::new();
    }
    held_at_machine(status.held_until)
}

/// That somebody at the machine holds it, and what to do.
#[must_use]
pub fn held_at_machine(until: Option<Timestamp>) -> String {
    let until = until.map_or_else(String::new, |until| format!(" until {until}"));
    format!("held by somebody at the machine{until}; `hoist-agent release` there ends that")
}

/// How long ago something was. Below a second is only noise.
#[must_use]
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.since(at) {
        age if age.as_secs() == 0 => "now".to_owned(),
        age => format!("{} ago", show_duration(age)),
    }
}

/// What somebody who reads this reason may want to do, beside what the machine's own message says: nothing where that
/// says what to do already; none where only the machine's log may tell.
#[must_use]
pub const fn advice(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::DigestMismatch => {
            "a binary cache or the machine has other content than what was signed: find out why before you deploy \
             with --no-digest"
        }
        Reason::PreSwitchCheckFailed => "nothing was activated; the log says which check failed",
        Reason::ActivationScriptFailed => "the log says which part of the script failed",
        Reason::UnitsFailed => {
            "the log names the units; --units-failed keep, or keep-if-failed-before, makes it stay"
        }
        Reason::NeedsReboot => "deploy it with --action boot, and reboot the machine",
        Reason::BootedOther => {
            "the machine did not boot what was staged: see its boot menu and console, then deploy again"
        }
        Reason::BootLoaderFailed => {
            "see that its boot partition has room and is mounted, then deploy again"
        }
        Reason::WrongKind => "see --kind",
        Reason::NoAgent
        | Reason::Busy
        | Reason::MissingPath
        | Reason::UntrustedPath
        | Reason::DiskFull
        | Reason::FetchFailed
        | Reason::UnknownDeployment
        | Reason::TooLate
        | Reason::EpochNotAllowed
        | Reason::TooFarAhead
        | Reason::NotConfirmed => "",
        Reason::Expired => "give --expires more time if that is why",
        Reason::Unverified
        | Reason::OtherMachine
        | Reason::Stale
        | Reason::Unsupported
        | Reason::ActivationFailed
        | Reason::ActivationTimedOut
        | Reason::HealthCheckFailed
        | Reason::Interrupted
        | Reason::CommitFailed
        | Reason::ChangedByOthers
        | Reason::Internal
        | Reason::Other => return None,
    })
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{order, status};
    use hoist_protocol::State;

    #[test]
    fn changes_are_a_few_words() {
        let made = |changed, added, removed, size_difference| {
            changes(&Changes {
                packages_changed: changed,
                packages_added: added,
                packages_removed: removed,
                size_difference,
                packages: Vec::new(),
            })
        };
        assert_eq!(made(3, 0, 0, 12 << 20), "3 packages changed, +12 MiB");
        assert_eq!(
            made(1, 2, 1, -2_048),
            "1 package changed, 2 added, 1 removed, -2.0 KiB"
        );
        assert_eq!(made(0, 1, 0, 0), "1 package added");
        assert_eq!(made(0, 0, 0, 0), "");
    }

    #[test]
    fn a_package_is_one_line_whatever_a_machine_writes() {
        let change = |from: Option<&str>, to: Option<&str>| {
            package(&PackageChange {
                name: Text::lossy("open\nssl"),
                from: from.map(Text::lossy),
                to: to.map(Text::lossy),
            })
        };
        assert_eq!(
            change(Some("3.0.1"), Some("3.0.2")),
            "open ssl 3.0.1 → 3.0.2"
        );
        assert_eq!(change(None, Some("1")), "open ssl 1 added");
        assert_eq!(change(Some("1"), None), "open ssl 1 removed");
    }

    #[test]
    fn who_holds_a_machine_and_what_ends_it_is_said() {
        let mut report = status(order(1), State::Held);
        assert_eq!(held(&report), "");
        report.held = true;
        report.held_until = Some(Timestamp::from_ms(1_795_000_000_000));
        assert_eq!(
            held(&report),
            "held by somebody at the machine until 2026-11-18T11:06:40.000Z; `hoist-agent release` there ends that"
        );
    }

    #[test]
    fn a_reboot_is_said_with_its_reasons() {
        let reasons = [RebootReason::Kernel, RebootReason::KernelModules];
        assert_eq!(reboot(&reasons), "needs a reboot (kernel, kernel modules)");
        assert_eq!(reboot(&[]), "");
    }
}
