//! The agent that made a job, as far as its activator has to know it.

use std::io;

use camino::Utf8PathBuf;
use hoist_protocol::UnitName;
use serde::{Deserialize, Serialize};

/// The agent that made a job.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AgentIdentity {
    /// Its program, as the kernel names it.
    pub executable: Utf8PathBuf,
    /// The systemd unit that it runs in; none outside of systemd.
    pub unit: Option<UnitName>,
    /// Whether that is a unit of a user's manager.
    #[serde(default)]
    pub user_unit: bool,
    /// What follows the program on its command line: where its settings come from.
    pub arguments: Vec<String>,
}

impl AgentIdentity {
    /// That of this process.
    ///
    /// # Errors
    /// The kernel does not tell, or tells something that is no UTF-8.
    pub fn current() -> io::Result<Self> {
        let executable = Utf8PathBuf::from_path_buf(std::env::current_exe()?)
            .map_err(|path| io::Error::other(format!("`{}` is no UTF-8", path.display())))?;
        let unit = if is_main_process() {
            own_cgroup()?.as_deref().and_then(unit_of_cgroup)
        } else {
            None
        };
        let (unit, user_unit) = unit.map_or((None, false), |(unit, user)| (Some(unit), user));
        let arguments = std::env::args_os()
            .skip(1)
            .map(|argument| {
                argument.into_string().map_err(|argument| {
                    io::Error::other(format!("the argument {argument:?} is no UTF-8"))
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            executable,
            unit,
            user_unit,
            arguments,
        })
    }
}

/// Whether systemd itself has started this process (`SYSTEMD_EXEC_PID` in systemd.exec(5)): what somebody starts
/// by hand in a unit is not that unit's agent.
fn is_main_process() -> bool {
    std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

/// The control group of this process as `/proc/self/cgroup` (`cgroups(7)`) tells it; none where there are no
/// control groups.
#[cfg(target_os = "linux")]
fn own_cgroup() -> io::Result<Option<String>> {
    match std::fs::read_to_string("/proc/self/cgroup") {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn own_cgroup() -> io::Result<Option<String>> {
    Ok(None)
}

/// The service that a process with this control group belongs to, and whether a user's manager runs it.
fn unit_of_cgroup(text: &str) -> Option<(UnitName, bool)> {
    // The one of the unified hierarchy, or of systemd's own in the old one. Where both are mounted, a container's
    // systemd uses one of them alone, and all its processes lie at the other's root.
    let mut paths = text.lines().filter_map(|line| {
        line.strip_prefix("0::")
            .or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))
    });
    let (mut parts, unit) = paths.find_map(|path| {
        let mut parts = path.split('/').rev().map(unescaped);
        let unit = parts.find(|part| part.ends_with(".service"))?;
        Some((parts, unit))
    })?;
    let user = parts.any(|part| part.starts_with("user@") && part.ends_with(".service"));
    // A login session's own manager is no service of anybody's.
    if unit.starts_with("user@") {
        return None;
    }
    Some((UnitName::new(unit).ok()?, user))
}

/// systemd puts `_` before a name that could be mistaken for a file of the control group's own.
fn unescaped(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_names_the_service() {
        let of = |text| unit_of_cgroup(text).map(|(unit, user)| (unit.to_string(), user));
        let service = Some(("hoist-agent.service".to_owned(), false));
        assert_eq!(of("0::/system.slice/hoist-agent.service\n"), service);
        assert_eq!(
            of("0::/system.slice/hoist-agent.service/payload\n"),
            service
        );
        assert_eq!(
            of("12:pids:/x\n1:name=systemd:/system.slice/hoist-agent.service\n"),
            service
        );
        assert_eq!(
            of("9:name=systemd:/\n0::/system.slice/hoist-agent.service\n"),
            service
        );
        assert_eq!(
            of("0::/user.slice/user-1000.slice/user@1000.service/app.slice/hoist-agent.service\n"),
            Some(("hoist-agent.service".to_owned(), true))
        );
        for none in [
            "",
            "0::/\n",
            "0::/user.slice/user-1000.slice/session-2.scope\n",
            "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n",
        ] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
