//! One run of systemd-nspawn: from a start to a shutdown, a reboot or a power cut.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process};

use super::cgroup::Cgroup;
use crate::process::{self, Process};
use crate::wait;

/// Where a machine lives.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its host name.
    pub(super) name: String,
    /// Its folder, with `nix`, `boot`, `notes`, `upper`, `work`, `root`.
    pub(super) dir: Utf8PathBuf,
    /// The shared root file system, of which it sees a copy on write.
    pub(super) root: Utf8PathBuf,
    /// Where its console is kept.
    pub(super) logs: Utf8PathBuf,
}

impl Place {
    /// Makes its folders.
    pub(super) fn create(&self) -> Result<()> {
        for folder in [
            "nix/var/hoist-test",
            "nix/var/nix/profiles",
            "boot",
            "notes/gates",
            "notes/reached",
            "upper",
            "work",
            "root",
        ] {
            fs::create_dir_all(self.dir.join(folder))?;
        }
        Ok(())
    }
}

/// A machine that runs. Nothing of it is left when it is dropped, nor when this process is killed.
pub(super) struct Container {
    process: Process,
    name: String,
    // Removed after the process has ended: fields are dropped in order.
    _cgroup: Cgroup,
}

impl Container {
    /// Starts `program` as the first process of the machine at `place`, its output in the log `log`.
    pub(super) fn start(place: &Place, log: &str, program: &[&str]) -> Result<Self> {
        let cgroup = Cgroup::create()?;
        let groups: Vec<&str> = cgroup.folders().iter().map(|f| f.as_str()).collect();
        let mut command = process::command("/bin/sh");
        command
            .args(["-euc", include_str!("launch.sh"), "sh"])
            .args(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("groups", groups.join(" "))
            .env("INSIDE", include_str!("inside.sh"))
            .env("name", &place.name)
            .env("dir", &place.dir)
            .env("root", &place.root)
            // Newer systemds run in no other, whatever the host has.
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        Ok(Self {
            process: Process::start(log, command, &place.logs)?,
            name: place.name.clone(),
            _cgroup: cgroup,
        })
    }

    /// Whether it runs still.
    pub(super) fn is_alive(&mut self) -> Result<bool> {
        self.process.is_alive()
    }

    /// Waits until it has ended by itself, and gives nspawn's exit code.
    pub(super) fn wait(&mut self) -> Result<i32> {
        let status = self.process.wait()?;
        status
            .code()
            .with_context(|| format!("{} was killed: {status}", self.name))
    }

    /// What it has printed.
    pub(super) fn output(&self) -> Result<String> {
        Ok(self.process.stdout()? + &self.process.stderr()?)
    }

    /// Ends everything in it at once, by the end of the first process of its namespace: the kernel kills the others
    /// before that is gone.
    pub(super) fn kill(&mut self) -> Result<()> {
        while self.process.is_alive()? {
            match children(self.process.pid())?.first() {
                // Ended meanwhile: then so has all the rest.
                Some(first) => drop(kill_process(*first, Signal::KILL)),
                // It has not come as far as its namespace; its death is that of what comes after it.
                None => self.process.signal(Signal::KILL)?,
            }
            std::thread::sleep(wait::POLL);
        }
        Ok(())
    }

    /// The machine's own process 1, by its number on the host.
    pub(super) fn leader(&mut self) -> Result<Pid> {
        let what = format!("{} has a process 1", self.name);
        wait::until(&what, || {
            if !self.process.is_alive()? {
                bail!("{} has ended: {}", self.name, self.output()?);
            }
            for shell in children(self.process.pid())? {
                for nspawn in children(shell)? {
                    for leader in children(nspawn)? {
                        if depth(leader) == Some(3) {
                            return Ok(Some(leader));
                        }
                    }
                }
            }
            Ok(None)
        })
    }

    /// A command that runs in the machine whose process 1 is `leader`.
    pub(super) fn enter(leader: Pid, program: &str) -> Command {
        let mut command = process::command("nsenter");
        command
            .args(["--all", "--target", &leader.as_raw_nonzero().to_string()])
            .args(["--", program])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8");
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} could not be switched off: {error:#}", self.name);
        }
    }
}

/// The processes whose parent is `parent`.
fn children(parent: Pid) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in Utf8Path::new("/proc").read_dir_utf8()? {
        let entry = entry?;
        let Some(pid) = entry.file_name().parse().ok().and_then(Pid::from_raw) else {
            continue;
        };
        // One that has ended meanwhile is nobody's child.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let theirs = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if theirs == Some(parent.as_raw_nonzero().get()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// In how many process namespaces the process `pid` is, when it is the first of its own.
fn depth(pid: Pid) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    let ids: Vec<&str> = ids.split_whitespace().collect();
    (ids.last() == Some(&"1")).then_some(ids.len())
}
