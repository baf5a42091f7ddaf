//! What a process takes of the machine, by `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Pid;

/// In what `/proc/PID/stat` counts: `USER_HZ`, part of Linux's interface and 100 wherever Hoist runs.
const TICKS_PER_SECOND: u64 = 100;

/// Memory and CPU time of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Resident memory, in bytes.
    pub(super) resident: u64,
    /// CPU time since it started, of all its threads, in user mode and in the kernel.
    pub(super) cpu: Duration,
}

impl Usage {
    /// Looks at the process.
    pub(super) fn of(pid: Pid) -> Result<Self> {
        let pid = pid.as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kilobytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse().ok())
            .context("/proc says no VmRSS")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything; `utime` and `stime` are the 14th and 15th field.
        let ticks = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_ascii_whitespace().skip(11).take(2))
            .context("/proc says no times")?
            .map(|field| field.parse::<u64>().context("/proc says no times"))
            .sum::<Result<u64>>()?;
        Ok(Self {
            resident: kilobytes * 1024,
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
        })
    }
}
