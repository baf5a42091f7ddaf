//! Processes as the kernel tells them, and how those are stopped that an activator left behind.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::job::ProcessRecord;

/// How long a program has between being asked to end and being killed.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How long the kernel has to take a killed program away. One that waits for a disk stays longer.
const BURIAL: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(10);

/// The environment variable by which everything that an activator starts is known.
pub(super) const MARK: &str = "HOIST_DEPLOYMENT_ID";

/// The fields of `/proc/<pid>/stat` (`proc_pid_stat(5)`) that are of use here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    dead: bool,
    group: i32,
    started: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The program's name, in parentheses, may hold anything; the fields after it do not.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(Self {
            dead: matches!(*fields.first()?, "Z" | "X"),
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

/// When a process started, in clock ticks since boot.
pub(super) fn started(pid: i32) -> io::Result<u64> {
    Stat::of(pid).map(|stat| stat.started).ok_or_else(|| {
        io::Error::other(format!("cannot read `/proc/{pid}/stat`; is /proc mounted?"))
    })
}

/// Ends what is left of a program and of all in its group: asks, and then kills. `mark` is the deployment's
/// id. Returns whether there was anything, or an error when something is still there.
pub(super) fn stop_leftovers(process: &ProcessRecord, mark: &str) -> io::Result<bool> {
    let begun = Instant::now();
    let mut asked = false;
    loop {
        let members = members(process, mark)?;
        if members.is_empty() {
            return Ok(asked);
        }
        if begun.elapsed() > GRACE + BURIAL {
            return Err(io::Error::other(format!(
                "processes {members:?} of the killed activator do not end"
            )));
        }
        if !asked {
            signal(process, &members, mark, Signal::TERM);
            asked = true;
        } else if begun.elapsed() > GRACE {
            signal(process, &members, mark, Signal::KILL);
        }
        std::thread::sleep(POLL);
    }
}

/// The living processes of the program's group.
///
/// While its leader lives, the group is known by the leader's start time. Later its number may have been
/// given to somebody else: then only those count that carry the deployment's mark.
fn members(process: &ProcessRecord, mark: &str) -> io::Result<Vec<i32>> {
    let own = leads(process);
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if is_member(process, pid) && (own || is_marked(pid, mark)) {
            members.push(pid);
        }
    }
    Ok(members)
}

fn leads(process: &ProcessRecord) -> bool {
    Stat::of(process.pid).is_some_and(|stat| stat.started == process.started)
}

fn is_member(process: &ProcessRecord, pid: i32) -> bool {
    Stat::of(pid).is_some_and(|stat| !stat.dead && stat.group == process.pid)
}

fn is_marked(pid: i32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    })
}

/// Sends a signal to each member. One that is gone needs none, and one that cannot be signalled is seen by
/// whoever waits for it to end.
fn signal(process: &ProcessRecord, members: &[i32], mark: &str, signal: Signal) {
    for pid in members.iter().copied().filter_map(Pid::from_raw) {
        // What the descriptor stands for cannot become another process between the look and the signal.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let pid = pid.as_raw_nonzero().get();
        if is_member(process, pid) && (leads(process) || is_marked(pid, mark)) {
            pidfd_send_signal(&descriptor, signal).ok();
        }
    }
}

/// Signals a group whose leader is a child that was not waited for yet: the number is its own until then.
pub(super) fn signal_group(leader: Pid, signal: Signal) {
    // It fails when all of the group have ended, which is what was wanted.
    kill_process_group(leader, signal).ok();
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    use super::*;

    fn spawn(script: &str, mark: &str) -> (Child, ProcessRecord) {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .env(MARK, mark)
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let record = ProcessRecord {
            pid,
            started: started(pid).unwrap(),
            unit: None,
        };
        (child, record)
    }

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

    #[test]
    fn a_program_is_stopped_with_what_it_started() {
        let (mut child, record) = spawn("sleep 1000 & sleep 1000", "one");
        assert!(stop_leftovers(&record, "one").unwrap());
        child.wait().unwrap();
        assert!(!stop_leftovers(&record, "one").unwrap());
    }

    #[test]
    fn what_outlives_its_leader_is_stopped_by_its_mark() {
        let (mut child, record) = spawn("sleep 1000 & exit 0", "two");
        child.wait().unwrap();
        assert!(!stop_leftovers(&record, "another").unwrap());
        assert!(stop_leftovers(&record, "two").unwrap());
    }

    #[test]
    fn a_process_that_got_the_number_of_a_dead_one_is_left_alone() {
        let (mut child, record) = spawn("exec sleep 1000", "three");
        let recycled = ProcessRecord {
            started: record.started - 1,
            ..record
        };
        assert!(!stop_leftovers(&recycled, "another").unwrap());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
