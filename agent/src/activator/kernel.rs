//! What the kernel tells about processes: on Linux by `/proc`, on macOS by `ps`.

#[cfg(target_os = "linux")]
pub(super) use linux::{end_of, has_variable, pids, signal_if};
#[cfg(target_os = "macos")]
pub(super) use macos::{end_of, has_variable, pids, signal_if};

/// What is of use here about a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stat {
    pub(super) dead: bool,
    pub(super) group: i32,
    /// When it started: clock ticks since boot, or another number that changes with the time.
    pub(super) started: u64,
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::Stat;

    impl Stat {
        pub(in crate::activator) fn of(pid: i32) -> Option<Self> {
            Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        }

        /// `/proc/<pid>/stat` (`proc_pid_stat(5)`)
        pub(super) fn parse(text: &str) -> Option<Self> {
            // The program's name, in parentheses, may hold anything; the fields after it do not.
            let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
            Some(Self {
                dead: matches!(*fields.first()?, "Z" | "X"),
                group: fields.get(2)?.parse().ok()?,
                started: fields.get(19)?.parse().ok()?,
            })
        }
    }

    /// All processes.
    pub(in crate::activator) fn pids() -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc")? {
            pids.extend(
                entry?
                    .file_name()
                    .to_str()
                    .and_then(|n| n.parse::<i32>().ok()),
            );
        }
        Ok(pids)
    }

    /// Whether the process was started with this variable, given as `NAME=value`.
    pub(in crate::activator) fn has_variable(pid: i32, wanted: &str) -> bool {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == wanted.as_bytes())
        })
    }

    /// What can be read from, for `poll(2)`, once a child has ended; none where the kernel does not tell.
    pub(in crate::activator) fn end_of(child: Pid) -> Option<OwnedFd> {
        pidfd_open(child, PidfdFlags::empty())
            .inspect_err(|error| {
                tracing::debug!(%error, "the kernel does not tell when a program ends");
            })
            .ok()
    }

    /// Sends a signal when `is` holds for what has the number now.
    pub(in crate::activator) fn signal_if(pid: Pid, signal: Signal, is: impl FnOnce() -> bool) {
        // What the descriptor stands for cannot become another process between the look and the signal.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        if is() {
            pidfd_send_signal(&descriptor, signal).ok();
        }
    }
}

#[cfg(target_os = "macos")]
mod macos {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::process::Command;

    use rustix::process::{Pid, Signal, kill_process};

    use super::Stat;

    fn ps(arguments: &[&str]) -> io::Result<String> {
        let output = Command::new("/bin/ps").args(arguments).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    impl Stat {
        pub(in crate::activator) fn of(pid: i32) -> Option<Self> {
            let text = ps(&["-o", "stat=,pgid=,lstart=", "-p", &pid.to_string()]).ok()?;
            let mut fields = text.split_whitespace();
            let dead = fields.next()?.starts_with('Z');
            let group = fields.next()?.parse().ok()?;
            // A date: it only has to be another number at another time.
            let started = fields.flat_map(str::bytes).fold(0_u64, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(byte.into())
            });
            Some(Self {
                dead,
                group,
                started,
            })
        }
    }

    /// All processes.
    pub(in crate::activator) fn pids() -> io::Result<Vec<i32>> {
        let text = ps(&["-axo", "pid="])?;
        Ok(text
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect())
    }

    /// Whether the process was started with this variable, given as `NAME=value`.
    pub(in crate::activator) fn has_variable(pid: i32, wanted: &str) -> bool {
        ps(&["-E", "-ww", "-o", "command=", "-p", &pid.to_string()])
            .is_ok_and(|text| text.split_whitespace().any(|word| word == wanted))
    }

    /// None: there is no such descriptor here.
    pub(in crate::activator) fn end_of(_child: Pid) -> Option<OwnedFd> {
        None
    }

    /// Sends a signal when `is` holds for what has the number now.
    pub(in crate::activator) fn signal_if(pid: Pid, signal: Signal, is: impl FnOnce() -> bool) {
        if is() {
            kill_process(pid, signal).ok();
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let text = "7 (a) S b) Z 1 5 5 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let stat = Stat {
            dead: true,
            group: 5,
            started: 4711,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S"), None);
    }
}
