//! Starts the activator so that it outlives who started it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Job, JobError, files};
use crate::nix;

/// Where systemd finds the activator's environment, in the job's folder. Whoever is on the machine may read command
/// lines, and what systemd says of a unit: but `NIX_CONFIG`, for one, may hold an access token.
pub(super) const ENVIRONMENT: &str = "environment";

/// Disk taken in advance for it, in bytes: an activator has to be started on a full disk too.
pub(super) const RESERVED: u64 = 16 * 1024;

/// What programs of a user find the user's things by.
pub(crate) const USER_VARIABLES: &[&str] = &[
    "LOGNAME",
    "SHELL",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "HOME_MANAGER_BACKUP_EXT",
];

/// Starts `activator --job DIR` for `job`.
pub(super) fn start(job: &Job) -> Result<(), JobError> {
    let failed = |source| JobError::Start {
        dir: job.dir().to_owned(),
        source,
    };
    if let Some(manager) = manager() {
        match in_unit(job, manager) {
            Ok(()) => return Ok(()),
            // Better beside the agent in its unit than not at all: the agent recovers what dies with it.
            Err(error) => tracing::warn!(
                job = %job.spec().id, %error,
                "cannot start the activator in a unit of its own; a restart of the agent's unit will stop it"
            ),
        }
    }
    in_session(job).map_err(failed)
}

/// Whether systemd is the machine's service manager, as `sd_booted(3)` finds out.
pub(crate) fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// What `systemd-run` has to be told to reach the service manager that can start the activator; none where
/// there is none.
fn manager() -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        return systemd_runs().then_some(&[]);
    }
    // The user's own manager, which runs while the user is logged in or lingers.
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")?;
    let socket = Path::new(&runtime).join("systemd/private");
    socket.exists().then_some(&["--user"])
}

/// In a transient unit: stopping or restarting the agent's unit leaves it alone.
fn in_unit(job: &Job, manager: &[&str]) -> io::Result<()> {
    // Systemd starts it, to whom /proc/self/exe is another program.
    let program = std::env::current_exe()?;
    if !program.exists() {
        return Err(io::Error::other(format!(
            "`{}` is there no more",
            program.display()
        )));
    }
    let log = job.dir().join("activator.log");
    let mut command = Command::new("systemd-run");
    command
        .args(manager)
        .args(["--collect", "--quiet", "--no-ask-password"])
        .arg("--service-type=exec")
        // The unit of a dead activator may not be gone yet, so every start has a name of its own.
        .arg(format!(
            "--unit=hoist-activator-{}-{:08x}",
            job.spec().id.short(),
            rand::random::<u32>()
        ))
        .arg(format!(
            "--description=Hoist activates {}",
            job.spec().closure
        ))
        .arg(format!("--property=StandardOutput=append:{log}"))
        .arg(format!("--property=StandardError=append:{log}"))
        // What it started is in units of its own, or has to be stopped by the recovery that knows why.
        .arg("--property=KillMode=process")
        // A shutdown waits this long for what must not be cut off, such as the boot loader.
        .arg("--property=TimeoutStopSec=30");
    if manager.is_empty() {
        // No right of a user's manager.
        command.arg("--property=OOMScoreAdjust=-900");
    }
    let environment = job.dir().join(ENVIRONMENT);
    files::write(
        &environment,
        environment_file(activator_environment()).as_bytes(),
    )?;
    command
        .arg(format!("--property=EnvironmentFile={environment}"))
        .arg("--")
        .arg(program)
        .args(["activator", "--job", job.dir().as_str()]);
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "systemd-run ended with {}: {}",
        output.status,
        said.trim()
    )))
}

/// The running program itself, even when an update has taken its file away.
#[cfg(target_os = "linux")]
fn this_program() -> io::Result<std::path::PathBuf> {
    Ok("/proc/self/exe".into())
}

#[cfg(not(target_os = "linux"))]
fn this_program() -> io::Result<std::path::PathBuf> {
    std::env::current_exe()
}

/// What an activator gets of the agent's environment: what finds Nix, and what finds a user's things.
fn activator_environment() -> Vec<(OsString, OsString)> {
    let mut environment = nix::clean_environment();
    environment.extend(
        USER_VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))),
    );
    environment
}

/// Variables as systemd reads them from a file (`EnvironmentFile=` in systemd.exec(5)), which takes UTF-8 only: what is
/// none is left out.
fn environment_file(variables: Vec<(OsString, OsString)>) -> String {
    let mut settings = String::new();
    for (name, value) in variables {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
            continue;
        };
        settings.push_str(name);
        settings.push_str("=\"");
        for letter in value.chars() {
            if matches!(letter, '"' | '\\' | '`' | '$') {
                settings.push('\\');
            }
            settings.push(letter);
        }
        settings.push_str("\"\n");
    }
    settings
}

/// As a child that makes itself a session as its first act, so that no signal of a terminal or of the
/// agent's process group reaches it.
fn in_session(job: &Job) -> Result<(), io::Error> {
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(job.dir().join("activator.log"))?;
    let mut child = Command::new(this_program()?)
        .args(["activator", "--job", job.dir().as_str()])
        .env_clear()
        .envs(activator_environment())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // Somebody has to take note of its end, or it stays a zombie for as long as the agent lives.
    std::thread::Builder::new()
        .name("activator-end".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || match child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(%status, "the activator ended"),
            Err(error) => tracing::error!(%error, "cannot wait for the activator"),
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn a_value_stays_what_it_is_whatever_is_in_it() {
        let variables = vec![
            ("NIX_CONFIG".into(), "a = b\nc = \"$HOME\" `d` \\".into()),
            ("HOME".into(), "/root".into()),
            ("NIX_ODD".into(), OsString::from_vec(vec![0xff])),
        ];
        assert_eq!(
            environment_file(variables),
            "NIX_CONFIG=\"a = b\nc = \\\"\\$HOME\\\" \\`d\\` \\\\\"\nHOME=\"/root\"\n"
        );
    }
}
