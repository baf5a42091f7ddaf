//! NixOS systems. What is activated does not survive a boot until it is made what boots.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::Facts;
use hoist_protocol::{Kind, Reason, STORE, StorePath};

use super::{
    Call, ClosureKind, Extent, Units, Verdict, Wrong, has_program, need_program, wrong_kind,
};
use crate::activator::failure::Failure;
use crate::activator::program::Program;
use crate::activator::system::{self, Manager};
use crate::job::JobSpec;
use crate::nix::{self, SYSTEM_PROFILE};

/// How long the boot loader may take: some copy kernels to slow disks.
const BOOT_LIMIT: Duration = Duration::from_secs(15 * 60);

const SWITCH: &str = "bin/switch-to-configuration";

/// Held by every switch; another one ends at once then.
const LOCK: &str = "/run/nixos/switch-to-configuration.lock";

/// Where a switch that was killed leaves the units it meant to start, restart or reload.
const LISTS: &str = "/run/nixos";

/// The variables that nixos-rebuild hands to `switch-to-configuration` through systemd-run.
const VARIABLES: &[&str] = &[
    "LOCALE_ARCHIVE",
    "NIXOS_INSTALL_BOOTLOADER",
    "NIXOS_NO_CHECK",
];

pub(super) struct Nixos;

impl ClosureKind for Nixos {
    fn is(&self, kind: &Kind) -> bool {
        *kind == Kind::Nixos
    }

    fn found(&self) -> Option<Kind> {
        Some(Kind::Nixos)
    }

    fn markers(&self) -> &'static [&'static str] {
        &["nixos-version"]
    }

    fn check(&self, spec: &JobSpec, _kind: &Kind) -> Result<(), Failure> {
        need_program(
            &spec.closure,
            SWITCH,
            "check `system.switch.enable` of its configuration",
        )
    }

    fn profile(&self, _spec: &JobSpec) -> Result<Utf8PathBuf, Failure> {
        Ok(SYSTEM_PROFILE.into())
    }

    fn brings(&self, spec: &JobSpec) -> Result<StorePath, Failure> {
        let Some(name) = &spec.target.specialisation else {
            return Ok(spec.closure.clone());
        };
        let link = format!("{}/specialisation/{name}", spec.closure);
        // It is a system of its own, and knows itself by its own path.
        let path = Utf8Path::new(&link).canonicalize_utf8().ok();
        path.and_then(|path| StorePath::new(path.as_str()).ok())
            .filter(|path| has_program(path, SWITCH))
            .ok_or_else(|| {
                wrong_kind(format!(
                    "{} has no specialisation `{name}` that could be activated",
                    spec.closure
                ))
            })
    }

    fn facts(&self, _profile: &Utf8Path) -> io::Result<Facts> {
        nix::facts_of_nixos()
    }

    fn is_volatile(&self) -> bool {
        true
    }

    fn activation(&self, call: &Call) -> Option<Program> {
        Some(switch(call, "test"))
    }

    fn dry_activation(&self, call: &Call) -> Option<Program> {
        Some(switch(call, "dry-activate"))
    }

    fn commitment(&self, call: &Call) -> Option<Program> {
        let limit = BOOT_LIMIT;
        Some(switch(
            &Call {
                limit,
                ..call.clone()
            },
            "boot",
        ))
    }

    /// The exit codes of nixpkgs' `pkgs/by-name/sw/switch-to-configuration-ng/src/main.rs`.
    fn verdict(&self, status: ExitStatus, said: &[String]) -> Verdict {
        let says = |text: &str| said.iter().any(|line| line.contains(text));
        let failed = |reason, extent, meaning| {
            Verdict::Failed(Wrong {
                reason,
                meaning,
                extent,
            })
        };
        match status.code() {
            Some(0) => Verdict::Done,
            // It has no exit code of its own.
            Some(_) if says("Could not acquire lock") => Verdict::Busy,
            // Other errors have the same exit code, and may come when units were stopped.
            Some(1) => failed(
                Reason::PreSwitchCheckFailed,
                if says("Pre-switch check") {
                    Extent::Nothing
                } else {
                    Extent::Unknown
                },
                "a check before the activation failed, or it could not begin",
            ),
            Some(2) => failed(
                Reason::ActivationScriptFailed,
                Extent::All,
                "the activation script failed",
            ),
            Some(4) => Verdict::UnitsFailed(failed_units(said)),
            Some(100) => Verdict::NeedsBoot,
            Some(126 | 127) => failed(
                Reason::ActivationFailed,
                Extent::Unknown,
                "it, or the interpreter in its first line, cannot be run",
            ),
            _ => failed(Reason::ActivationFailed, Extent::Unknown, "see the log"),
        }
    }

    /// By its switch inhibitors: the same comparison as the pre-switch check `switchInhibitors` of nixpkgs.
    fn needs_boot(
        &self,
        brings: &StorePath,
        running: Option<&StorePath>,
    ) -> io::Result<Option<String>> {
        // Whoever set this has said that they do not count.
        if std::env::var_os("NIXOS_NO_CHECK").is_some_and(|value| value == "1") {
            return Ok(None);
        }
        let Some(running) = running else {
            return Ok(None);
        };
        let now = inhibitors(running)?;
        let then = inhibitors(brings)?;
        let differ: Vec<_> = now
            .iter()
            .filter(|(name, value)| then.get(*name).is_some_and(|new| new != *value))
            .map(|(name, _)| name.as_str())
            .collect();
        Ok((!differ.is_empty()).then(|| {
            format!(
                "it changes {}, which a running system cannot exchange",
                differ.join(", ")
            )
        }))
    }

    fn is_busy(&self) -> io::Result<bool> {
        let lock = match fs::File::open(LOCK) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            lock => lock?,
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn lacks_room(&self, closure: &StorePath) -> io::Result<Option<String>> {
        let store = fs::metadata(STORE)?.dev();
        for boot in ["/boot", "/efi", "/boot/efi"] {
            let boot = Utf8Path::new(boot);
            // One on the file system of the store shares its room, and holds no copies of kernels.
            if boot.metadata().is_ok_and(|dir| dir.dev() != store)
                && let Some(why) = boot_lacks_room(boot, closure)?
            {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// Forgets the units that a killed switch meant to start, so that the next one does not inherit them.
    fn clear_leftovers(&self) -> io::Result<()> {
        let entries = match fs::read_dir(LISTS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with("-list") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn units(&self) -> Option<Units> {
        Some(Units {
            folder: "etc/systemd/system",
            manager: Manager::System,
        })
    }
}

fn switch(call: &Call, action: &str) -> Program {
    let mut program = call.program(SWITCH, &[action]);
    let mut variables: Vec<_> = VARIABLES
        .iter()
        .filter(|name| std::env::var_os(name).is_some())
        .map(|name| (*name).to_owned())
        .collect();
    if call.back {
        // What ran before has passed its checks once; one against what runs now must not keep it away.
        program
            .environment
            .push(("NIXOS_NO_CHECK".into(), "1".into()));
        variables.push("NIXOS_NO_CHECK".to_owned());
    }
    // The switch may stop everything that is started from the agent's or the activator's unit.
    system::in_unit(
        program,
        &format!("hoist-switch-{}-{action}", call.id.short()),
        &variables,
        &call.exit_code,
    )
}

/// The units of a line such as `warning: the following units failed: a.service, b.service`.
fn failed_units(said: &[String]) -> Vec<String> {
    let mut units: Vec<_> = said
        .iter()
        .filter_map(|line| line.split_once("units failed: "))
        .flat_map(|(_, units)| units.split(','))
        .map(|unit| unit.trim().to_owned())
        .filter(|unit| !unit.is_empty())
        .collect();
    units.sort();
    units.dedup();
    units
}

/// What of a system makes a boot necessary when it differs, by its name. Older systems have no such file.
fn inhibitors(system: &StorePath) -> io::Result<BTreeMap<String, serde_json::Value>> {
    match fs::read(format!("{system}/switch-inhibitors")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        // In another form, they are for the switch itself to read.
        bytes => Ok(serde_json::from_slice(&bytes?).unwrap_or_default()),
    }
}

/// Why a boot partition has no room for the kernel and the initial RAM disk of a system.
///
/// systemd-boot and GRUB copy them under the name of their store path (nixpkgs, `systemd-boot-builder.py` and
/// `install-grub.pl`), in a folder that is there once they did so.
fn boot_lacks_room(boot: &Utf8Path, system: &StorePath) -> io::Result<Option<String>> {
    let copies: Vec<_> = ["EFI/nixos", "kernels"]
        .map(|folder| boot.join(folder))
        .into_iter()
        .filter(|folder| folder.is_dir())
        .collect();
    let Some(copies) = copies.first() else {
        return Ok(None);
    };
    let mut needed = 0;
    for part in ["kernel", "initrd"] {
        let Ok(file) = Utf8Path::new(system.as_str())
            .join(part)
            .canonicalize_utf8()
        else {
            continue;
        };
        let name = file.as_str().trim_start_matches(STORE).replace('/', "-");
        if !copies.join(&name).exists() && !copies.join(format!("{name}.efi")).exists() {
            needed += file.metadata()?.len();
        }
    }
    let disk = rustix::fs::statvfs(boot.as_std_path())?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok((needed > free).then(|| {
        format!(
            "{boot} has {free} bytes free, and its kernel and initial RAM disk need {needed}; \
             collect old generations there, or make it larger"
        )
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn verdict(code: i32, said: &[&str]) -> Verdict {
        let said: Vec<_> = said.iter().map(|line| (*line).to_owned()).collect();
        Nixos.verdict(ExitStatus::from_raw(code << 8), &said)
    }

    fn reason(verdict: &Verdict) -> Option<(Reason, Extent)> {
        match verdict {
            Verdict::Failed(wrong) => Some((wrong.reason, wrong.extent)),
            _ => None,
        }
    }

    #[test]
    fn every_exit_code_of_a_switch_has_its_own_meaning() {
        assert_eq!(verdict(0, &[]), Verdict::Done);
        let check = Reason::PreSwitchCheckFailed;
        assert_eq!(reason(&verdict(1, &[])), Some((check, Extent::Unknown)));
        let said = ["Pre-switch check 'disk' failed", "Pre-switch checks failed"];
        assert_eq!(reason(&verdict(1, &said)), Some((check, Extent::Nothing)));
        let script = Reason::ActivationScriptFailed;
        assert_eq!(reason(&verdict(2, &[])), Some((script, Extent::All)));
        assert_eq!(verdict(100, &[]), Verdict::NeedsBoot);
        for code in [1, 11, 255] {
            assert_eq!(verdict(code, &["Could not acquire lock"]), Verdict::Busy);
        }
        let other = Reason::ActivationFailed;
        assert_eq!(reason(&verdict(127, &[])), Some((other, Extent::Unknown)));
        let killed = Nixos.verdict(ExitStatus::from_raw(9), &[]);
        assert_eq!(reason(&killed), Some((other, Extent::Unknown)));
    }

    #[test]
    fn units_that_failed_are_named() {
        let said = [
            "warning: the following units failed: b.service, a.service",
            "b.service",
        ];
        let units = ["a.service", "b.service"].map(str::to_owned).to_vec();
        assert_eq!(verdict(4, &said), Verdict::UnitsFailed(units));
        assert_eq!(verdict(4, &[]), Verdict::UnitsFailed(Vec::new()));
    }
}
