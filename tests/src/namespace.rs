//! Mount namespaces: a `/nix` and a `/run` of one's own, without containers and without root.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::programs::Programs;
use crate::wait;

/// Runs in the new namespace before the program takes the shell's place. The program dies with the thread that
/// started it, so a test that is killed leaves nothing behind.
const ENTER: &str = r#"
dir=$1; shift
mount --bind "$dir/nix" /nix
mount --bind "$dir/run" /run
mount --bind "$dir/boot_id" /proc/sys/kernel/random/boot_id
exec setpriv --pdeathsig KILL -- "$@"
"#;

/// A folder with all that makes a machine: `nix`, `run`, `boot_id`, `conf/nix.conf`, `home`.
#[derive(Clone, Debug)]
pub struct Namespace {
    dir: Utf8PathBuf,
    path: String,
}

impl Namespace {
    /// Makes the folder, with an empty store; `nix_conf` is the whole configuration of its Nix.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(dir: &Utf8Path, programs: &Programs, nix_conf: &str) -> Result<Self> {
        for folder in ["nix/var/nix/profiles", "run", "conf", "home"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        fs::write(dir.join("conf/nix.conf"), nix_conf)?;
        let namespace = Self {
            dir: dir.to_owned(),
            path: programs.path(),
        };
        namespace.new_boot_id()?;
        // A machine has a store before anything is deployed to it. Nix writes down its database's version last and in
        // place: if what makes the store were the first fetch, and that is cancelled, the store is broken for good.
        let made = namespace.command("nix-store").arg("--init").output()?;
        if !made.status.success() {
            bail!(
                "no store in {dir}: {}",
                String::from_utf8_lossy(&made.stderr)
            );
        }
        Ok(namespace)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    /// Gives it another boot id, as a boot does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new_boot_id(&self) -> Result<()> {
        let id = uuid::Uuid::now_v7();
        // In place: what has it bound sees it as well.
        fs::write(self.dir.join("boot_id"), format!("{id}\n")).context("cannot write the boot id")
    }

    /// Where `path`, as the machine sees it, lies on the host. Only for what lies in `/nix` and `/run`.
    #[must_use]
    pub fn host_path(&self, path: &str) -> Utf8PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// A command that runs `program` inside, with nothing of this process's environment.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["/bin/sh", "-euc", ENTER, "sh", self.dir.as_str(), program])
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.dir.join("home"))
            .env("NIX_CONF_DIR", self.dir.join("conf"))
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Every process that sees this machine's `/nix` as its own, whoever started it.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let ours = fs::metadata(self.dir.join("nix"))?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process that has ended meanwhile, or is of no concern to us, cannot be looked into.
            let Ok(theirs) = fs::metadata(entry.path().join("root/nix")) else {
                continue;
            };
            if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
                found.extend(Pid::from_raw(pid));
            }
        }
        Ok(found)
    }

    /// The processes of the machine whose command line holds `word` as an argument.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn processes_with_argument(&self, word: &str) -> Result<Vec<Pid>> {
        let mut found = self.processes()?;
        found.retain(|pid| {
            // Ended meanwhile: then it is none of them.
            fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|arg| arg == word.as_bytes())
            })
        });
        Ok(found)
    }

    /// Sends `signal` to each of its processes.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        for pid in self.processes()? {
            // It may have ended between the look and the signal.
            if kill_process(pid, signal).is_err() {
                continue;
            }
        }
        Ok(())
    }

    /// Kills every process of the machine at once, and waits until none is left.
    ///
    /// # Errors
    /// When one remains.
    pub fn kill_all(&self) -> Result<()> {
        let what = format!("no process of {} is left", self.dir);
        wait::until_within(wait::PATIENCE, &what, || {
            self.signal_all(Signal::KILL)?;
            Ok(self.processes()?.into_iter().all(is_zombie).then_some(()))
        })
    }
}

/// Whether only its exit code is left of a process: it waits to be collected by its parent.
pub(crate) fn is_zombie(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('Z')))
        .unwrap_or(true)
}
