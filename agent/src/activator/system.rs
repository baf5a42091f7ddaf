//! The programs that change a machine, and the links that tell what they did.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use hoist_protocol::{DeploymentId, StorePath};

use super::process::MARK;
use super::program::Program;
use crate::{job, nix};

/// How long `nix-env` may take to set a profile: it writes two links.
const PROFILE_LIMIT: Duration = Duration::from_secs(120);

/// How long the boot loader may take: some copy kernels to slow disks.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The variables that nixos-rebuild hands to `switch-to-configuration` through systemd-run.
const SWITCH_VARIABLES: &[&str] = &[
    "LOCALE_ARCHIVE",
    "NIXOS_INSTALL_BOOTLOADER",
    "NIXOS_NO_CHECK",
];

/// Where a switch that was killed leaves the units it meant to start, restart or reload.
const SWITCH_LISTS: &str = "/run/nixos";

/// What `switch-to-configuration` is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Switch {
    /// Activate, and leave the boot loader alone.
    Test,
    /// Make it what boots, and activate nothing.
    Boot,
}

impl Switch {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Boot => "boot",
        }
    }
}

/// The environment of what is started for a deployment.
pub(super) fn environment(id: DeploymentId) -> Vec<(OsString, OsString)> {
    let mut environment = nix::clean_environment();
    environment.push((MARK.into(), id.to_string().into()));
    environment
}

/// `switch-to-configuration` of a NixOS system.
///
/// Where systemd runs, it does so in a unit of its own, as nixos-rebuild does it: the switch may stop
/// everything that is started from the agent's or the activator's unit.
pub(super) fn switch(
    id: DeploymentId,
    system: &StorePath,
    action: Switch,
    exit_code: &Utf8Path,
    limit: Duration,
) -> Program {
    let program = format!("{system}/bin/switch-to-configuration");
    let environment = environment(id);
    if !job::systemd_runs() {
        return Program {
            arguments: vec![program.into(), action.as_str().into()],
            environment,
            unit: None,
            limit,
        };
    }
    let unit = format!(
        "hoist-switch-{}-{}-{:08x}",
        id.short(),
        action.as_str(),
        rand::random::<u32>()
    );
    let mut arguments: Vec<OsString> = [
        "systemd-run",
        "--collect",
        "--no-ask-password",
        "--pipe",
        "--wait",
        "--quiet",
        "--service-type=exec",
        "--property=TimeoutStopSec=10",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.push(format!("--unit={unit}").into());
    arguments.push(format!("--description=Hoist: {program} {}", action.as_str()).into());
    for name in SWITCH_VARIABLES {
        if std::env::var_os(name).is_some() {
            arguments.extend(["--setenv".into(), OsString::from(name)]);
        }
    }
    arguments.push("--".into());
    arguments.extend(["/bin/sh", "-c", KEEP_EXIT_CODE].map(OsString::from));
    arguments.extend([exit_code.as_str(), &program, action.as_str()].map(OsString::from));
    Program {
        arguments,
        environment,
        unit: Some(unit),
        limit,
    }
}

/// systemd-run loses sight of a switch that restarts the bus or systemd itself: the exit code goes to a file.
const KEEP_EXIT_CODE: &str =
    r#""$@"; code=$?; echo "$code" > "$0.new" && mv "$0.new" "$0"; exit "$code""#;

/// Stops a systemd unit and waits until it has stopped. One that is gone is stopped.
pub(super) fn stop_unit(unit: &str) -> io::Result<()> {
    let output = Command::new("systemctl").args(["stop", unit]).output()?;
    /// `systemctl(1)`: the unit is not loaded.
    const NOT_LOADED: i32 = 5;
    if output.status.success() || output.status.code() == Some(NOT_LOADED) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("systemctl stop: {}", said.trim())))
}

/// Whether a unit still does something.
fn unit_is_active(unit: &str) -> io::Result<bool> {
    let output = Command::new("systemctl")
        .args(["show", "--property=ActiveState", "--value", unit])
        .output()?;
    let state = String::from_utf8_lossy(&output.stdout);
    Ok(matches!(
        state.trim(),
        "active" | "activating" | "deactivating" | "reloading"
    ))
}

/// How a switch in a unit ended, by what it wrote down itself: systemd-run may have lost it. Waits for the
/// unit for `limit` at most; none when it wrote down nothing.
pub(super) fn outcome_of_unit(
    unit: &str,
    exit_code: &Utf8Path,
    limit: Duration,
) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        // Asked before the file is looked for: a unit that is done then has written it.
        let active = unit_is_active(unit)?;
        match fs::read_to_string(exit_code) {
            Ok(text) => {
                let code = text.trim().parse::<u8>().map_err(io::Error::other)?;
                return Ok(Some(ExitStatus::from_raw(i32::from(code) << 8)));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) if !active => return Ok(None),
            Err(_) if begun.elapsed() >= limit => {
                stop_unit(unit)?;
                return Ok(None);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Sets a profile to a store path, as a new generation unless the newest one holds it already.
pub(super) fn set_profile(id: DeploymentId, profile: &Utf8Path, path: &StorePath) -> Program {
    nix_env(id, profile, &["--set", path.as_str()])
}

/// Sets a profile to a generation that it has.
pub(super) fn switch_generation(id: DeploymentId, profile: &Utf8Path, number: u64) -> Program {
    nix_env(id, profile, &["--switch-generation", &number.to_string()])
}

fn nix_env(id: DeploymentId, profile: &Utf8Path, arguments: &[&str]) -> Program {
    let mut all = vec![
        OsString::from("nix-env"),
        "--profile".into(),
        profile.as_str().into(),
    ];
    all.extend(arguments.iter().map(OsString::from));
    // All is in the store: a cache that cannot be reached must not hold up a machine without network.
    all.extend(["--option", "substitute", "false"].map(OsString::from));
    Program {
        arguments: all,
        environment: environment(id),
        unit: None,
        limit: PROFILE_LIMIT,
    }
}

/// Forgets the units that a killed switch meant to start, so that the next one does not inherit them.
pub(super) fn clear_switch_lists() -> io::Result<()> {
    let entries = match fs::read_dir(SWITCH_LISTS) {
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

/// Brings to disk what a commit has changed.
///
/// `switch-to-configuration boot` syncs the file system of the store itself; a boot partition is another.
pub(super) fn sync(profile: &Utf8Path, nixos: bool) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    if let Some(dir) = profile.parent() {
        fs::File::open(dir)?.sync_all()?;
    }
    if !nixos {
        return Ok(());
    }
    let store = fs::metadata(hoist_protocol::STORE)?.dev();
    for boot in ["/boot", "/boot/efi", "/efi"] {
        let Ok(dir) = fs::File::open(boot) else {
            continue;
        };
        if dir.metadata()?.dev() != store {
            rustix::fs::syncfs(&dir)?;
        }
    }
    Ok(())
}
