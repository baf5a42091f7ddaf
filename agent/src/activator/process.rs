//! Processes as the kernel tells them, and how those are stopped that an activator left behind.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::kernel::{self, Stat};
use crate::job::ProcessRecord;

/// How long a program has between being asked to end and being killed.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How long the kernel has to take a killed program away. One that waits for a disk stays longer.
const BURIAL: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(10);

/// The environment variable by which everything that an activator starts is known.
pub(super) const MARK: &str = "HOIST_DEPLOYMENT_ID";

/// When a process started, in units that only compare.
pub(super) fn started(pid: i32) -> io::Result<u64> {
    Stat::of(pid)
        .map(|stat| stat.started)
        .ok_or_else(|| io::Error::other(format!("cannot find out when process {pid} started")))
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
    for pid in kernel::pids()? {
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
    kernel::has_variable(pid, &format!("{MARK}={mark}"))
}

/// Sends a signal to each member. One that is gone needs none, and one that cannot be signalled is seen by
/// whoever waits for it to end.
fn signal(process: &ProcessRecord, members: &[i32], mark: &str, signal: Signal) {
    for pid in members.iter().copied().filter_map(Pid::from_raw) {
        let number = pid.as_raw_nonzero().get();
        kernel::signal_if(pid, signal, || {
            is_member(process, number) && (leads(process) || is_marked(number, mark))
        });
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
