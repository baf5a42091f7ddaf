//! What a process takes of the machine, by `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Pid;

/// In what `/proc/PID/stat` counts: `USER_HZ`, part of Linux's interface and 100 wherever Hoist runs.
const TICKS_PER_SECOND: u64 = 100;

/// Memory, CPU time and what else a process has.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory, in bytes.
    pub resident: u64,
    /// The part of it that is the process's own and no file's, in bytes: the rest is programs and libraries, of which
    /// all processes that use them have one copy together, and which the kernel may drop and read again.
    pub anonymous: u64,
    /// CPU time since it started, of all its threads, in user mode and in the kernel.
    pub cpu: Duration,
    /// How often its threads went to sleep by themselves since they started: each time, something woke them again.
    /// Threads that have ended do not count.
    pub wakeups: u64,
    /// Its threads.
    pub threads: usize,
    /// Its open files.
    pub files: usize,
}

impl Usage {
    /// Looks at the process.
    ///
    /// # Errors
    /// When it has ended, or another user's process may not be looked into.
    pub fn of(pid: Pid) -> Result<Self> {
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let status = fs::read_to_string(format!("{proc}/status"))?;
        let stat = fs::read_to_string(format!("{proc}/stat"))?;
        // The name in parentheses may hold anything; `utime` and `stime` are the 14th and 15th field.
        let ticks = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_ascii_whitespace().skip(11).take(2))
            .context("/proc says no times")?
            .map(|field| field.parse::<u64>().context("/proc says no times"))
            .sum::<Result<u64>>()?;
        let (mut threads, mut wakeups) = (0, 0);
        for thread in fs::read_dir(format!("{proc}/task"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            wakeups += field(&status, "voluntary_ctxt_switches:")?;
            threads += 1;
        }
        Ok(Self {
            resident: field(&status, "VmRSS:")? * 1024,
            anonymous: field(&status, "RssAnon:")? * 1024,
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
            wakeups,
            threads,
            files: fs::read_dir(format!("{proc}/fd"))?.count(),
        })
    }

    /// Resident memory in MiB.
    #[must_use]
    pub fn mebibytes(&self) -> f64 {
        mebibytes(self.resident)
    }
}

/// Bytes in MB, of a million bytes each, for people.
#[must_use]
pub fn megabytes(bytes: u64) -> f64 {
    Duration::from_micros(bytes).as_secs_f64()
}

/// Bytes in MiB, for people.
#[must_use]
pub fn mebibytes(bytes: u64) -> f64 {
    Duration::from_millis(bytes).as_secs_f64() * 1000.0 / (1024.0 * 1024.0)
}

/// The number behind `name` in a file of `/proc` that holds one field a line.
fn field(status: &str, name: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("/proc says no {name}"))
}
