//! The programs that change a machine, and what the machine says about itself.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{DeploymentId, Reason, StorePath};

use super::failure::Failure;
use super::process::MARK;
use super::program::Program;
use crate::{job, nix};

/// How long `nix-env` may take to set a profile: it writes two links.
const PROFILE_LIMIT: Duration = Duration::from_secs(120);

/// The environment of what is started for a deployment.
pub(super) fn environment(id: DeploymentId) -> Vec<(OsString, OsString)> {
    let mut environment = nix::clean_environment();
    environment.push((MARK.into(), id.to_string().into()));
    environment
}

/// What programs need besides it that work in a user's home: whose it is.
pub(super) fn user_environment() -> Vec<(OsString, OsString)> {
    let mut environment: Vec<_> = job::USER_VARIABLES
        .iter()
        .filter_map(|name| Some(((*name).into(), std::env::var_os(name)?)))
        .collect();
    if std::env::var_os("USER").is_none()
        && let Ok(user) = user()
    {
        environment.push(("USER".into(), user.into()));
    }
    environment
}

/// What a program is told about the deployment that it is run for.
pub(super) fn about(
    id: DeploymentId,
    closure: &StorePath,
    previous: Option<&StorePath>,
    profile: &Utf8Path,
) -> Vec<(OsString, OsString)> {
    let mut about: Vec<(OsString, OsString)> = vec![
        ("HOIST_DEPLOYMENT".into(), id.to_string().into()),
        ("HOIST_CLOSURE".into(), closure.as_str().into()),
        ("HOIST_PROFILE".into(), profile.as_str().into()),
    ];
    if let Some(previous) = previous {
        about.push(("HOIST_PREVIOUS".into(), previous.as_str().into()));
    }
    about
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The home of the account that this process runs as.
pub(super) fn home() -> Result<Utf8PathBuf, Failure> {
    let home = std::env::var("HOME").map(Utf8PathBuf::from).ok();
    home.filter(|home| home.is_absolute()).ok_or_else(|| {
        Failure::untouched(
            Reason::Internal,
            "HOME is not set, so the user's profiles cannot be found; set it for hoist-agent",
        )
    })
}

/// The name of that account.
pub(super) fn user() -> Result<String, Failure> {
    // Found out once: it takes a program, and a status report asks for it.
    static FOUND: OnceLock<String> = OnceLock::new();
    if let Ok(user) = std::env::var("USER") {
        return Ok(user);
    }
    if let Some(user) = FOUND.get() {
        return Ok(user.clone());
    }
    let cannot = |error| Failure::internal("cannot find out the name of this user", &error);
    let output = Command::new("id").arg("-un").output().map_err(cannot)?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(FOUND.get_or_init(|| name).clone())
}

/// The same program in a unit of its own, with the variables of this process that are named, where systemd runs.
pub(super) fn in_unit(
    program: Program,
    name: &str,
    variables: &[String],
    exit_code: &Utf8Path,
) -> Program {
    if !job::systemd_runs() {
        return program;
    }
    let unit = format!("{name}-{:08x}", rand::random::<u32>());
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
    arguments.push(format!("--description=Hoist: {}", program.title).into());
    for name in variables {
        arguments.extend(["--setenv".into(), OsString::from(name)]);
    }
    arguments.push("--".into());
    arguments.extend(["/bin/sh", "-c", KEEP_EXIT_CODE].map(OsString::from));
    arguments.push(exit_code.as_str().into());
    arguments.extend(program.arguments);
    Program {
        arguments,
        unit: Some(unit),
        exit_code: Some(exit_code.to_owned()),
        ..program
    }
}

/// systemd-run loses sight of a switch that restarts the bus or systemd itself: the exit code goes to a file.
const KEEP_EXIT_CODE: &str =
    r#""$@"; code=$?; echo "$code" > "$0.new" && mv "$0.new" "$0"; exit "$code""#;

/// What `systemctl` prints for these arguments.
fn systemctl(arguments: &[&str]) -> io::Result<(ExitStatus, String)> {
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    let said = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    Ok((
        output.status,
        String::from_utf8_lossy(&said).trim().to_owned(),
    ))
}

/// Stops a unit of the machine and waits until it has stopped. One that is gone is stopped.
pub(super) fn stop_unit(unit: &str) -> io::Result<()> {
    Manager::System.stop(unit)
}

/// A service manager.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Manager {
    /// The machine's.
    System,
    /// That of the user as whom this process runs.
    User,
}

impl Manager {
    /// What `systemctl` has to be told.
    pub(super) const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::System => &[],
            Self::User => &["--user"],
        }
    }

    /// Stops a unit and waits until it has stopped. One that is gone is stopped.
    pub(super) fn stop(self, unit: &str) -> io::Result<()> {
        /// `systemctl(1)`: the unit is not loaded.
        const NOT_LOADED: i32 = 5;
        let (status, said) = systemctl(&[self.flags(), &["stop", "--", unit]].concat())?;
        if status.success() || status.code() == Some(NOT_LOADED) {
            return Ok(());
        }
        Err(io::Error::other(format!("systemctl stop: {said}")))
    }

    /// Stops a transient unit and forgets its file. systemd itself keeps it for as long as another unit refers to
    /// it, and it goes before a file that a system brings.
    pub(super) fn forget_transient(self, unit: &str) -> io::Result<()> {
        let file = self.property(unit, "FragmentPath")?;
        self.stop(unit)?;
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (status, said) = systemctl(&[self.flags(), &["daemon-reload"]].concat())?;
        if status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("systemctl daemon-reload: {said}")))
    }

    /// The files of a unit as it knows them, one after another, also of one that no file on the disk has.
    pub(super) fn unit_files(self, unit: &str) -> io::Result<String> {
        let arguments = [self.flags(), &["cat", "--no-pager", "--", unit]].concat();
        let (status, said) = systemctl(&arguments)?;
        if status.success() && !said.is_empty() {
            return Ok(said);
        }
        Err(io::Error::other(format!("systemctl cat: {said}")))
    }

    /// What it says of a unit's property.
    pub(super) fn property(self, unit: &str, property: &str) -> io::Result<String> {
        let property = format!("--property={property}");
        let show = ["show", &property, "--value", "--", unit];
        Ok(systemctl(&[self.flags(), &show].concat())?.1)
    }
}

/// The units that have failed; none where there is no systemd.
pub(super) fn failed_units() -> io::Result<Vec<String>> {
    if !job::systemd_runs() {
        return Ok(Vec::new());
    }
    let (status, text) = systemctl(&[
        "list-units",
        "--state=failed",
        "--plain",
        "--no-legend",
        "--no-pager",
        "--full",
    ])?;
    if !status.success() {
        return Err(io::Error::other(format!("systemctl list-units: {text}")));
    }
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// Whether the machine is shutting down: nothing is decided then that a boot would decide anyway.
pub(super) fn is_shutting_down() -> bool {
    // A systemd that cannot be asked any more says nothing about it.
    job::systemd_runs()
        && systemctl(&["is-system-running"]).is_ok_and(|(_, state)| state == "stopping")
}

/// How a program in a unit ended, by what it wrote down itself: systemd-run may have lost it. Waits for the unit
/// for `limit` at most; none when it wrote down nothing.
pub(super) fn outcome_of_unit(
    unit: &str,
    exit_code: &Utf8Path,
    limit: Duration,
) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        // Asked before the file is looked for: a unit that is done then has written it.
        let state = Manager::System.property(unit, "ActiveState")?;
        let active = matches!(
            state.as_str(),
            "active" | "activating" | "deactivating" | "reloading"
        );
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
    let mut all = vec!["nix-env", "--profile", profile.as_str()];
    all.extend(arguments);
    // All is in the store: a cache that cannot be reached must not hold up a machine without network.
    all.extend(["--option", "substitute", "false"]);
    Program::new(&all, environment(id), PROFILE_LIMIT)
}

/// Brings to disk what a commit has changed: the profile's folder, and for a system the boot partitions.
///
/// `switch-to-configuration boot` syncs the file system of the store itself; a boot partition is another.
pub(super) fn sync(profile: &Utf8Path, boots: bool) -> io::Result<()> {
    if let Some(dir) = profile.parent() {
        fs::File::open(dir)?.sync_all()?;
    }
    if !boots {
        return Ok(());
    }
    sync_boot()
}

#[cfg(target_os = "linux")]
fn sync_boot() -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
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

#[cfg(not(target_os = "linux"))]
fn sync_boot() -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}
