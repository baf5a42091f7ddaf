//! What deployments leave behind on a machine: an outcome, and nothing that grows.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use anyhow::{Context as _, Result, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::DeploymentId;
use rustix::process::Pid;

use crate::machine::Machine;
use crate::wait;

/// How many deployments may have something kept from the garbage collector: the one that runs, those that can be
/// gone back to, and the one that ended last.
pub(crate) const MOST_ROOTS: usize = 5;

/// A machine with nothing under way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remains {
    /// What lies in the state folder itself, but for ledgers that were set aside, and for `*.new`: what is about to
    /// replace a file comes and goes.
    pub files: BTreeSet<String>,
    /// How many ledgers were set aside.
    pub damaged: usize,
    /// The deployments that have something kept from the garbage collector.
    pub roots: BTreeSet<String>,
    /// The size of the state folder, in bytes, without `*.new`: room that is taken in advance.
    pub bytes: u64,
}

impl Machine {
    /// Waits until nothing of a deployment is under way: no job, and no process besides the agent and what `is_ours`.
    ///
    /// # Errors
    /// Names what stays.
    pub fn wait_idle(&mut self, is_ours: impl Fn(Pid) -> bool) -> Result<Remains> {
        let state = self.state();
        let agent = self.agent()?.pid();
        let mut left = String::new();
        let idle = wait::until_true(&format!("{} is idle", self.name()), || {
            let jobs = names(&state.join("jobs"))?;
            let mut processes = self.processes()?;
            processes.retain(|pid| *pid != agent && !is_ours(*pid));
            left = format!(
                "jobs {jobs:?}, processes {:?}",
                processes.into_iter().map(shown).collect::<Vec<_>>()
            );
            Ok(jobs.is_empty() && left.ends_with("processes []"))
        });
        idle.with_context(|| format!("what is left: {left}"))?;
        self.remains()
    }

    fn remains(&self) -> Result<Remains> {
        let state = self.state();
        let (damaged, mut files): (BTreeSet<String>, _) = names(&state)?
            .into_iter()
            .partition(|name| name.contains(".damaged-"));
        files.retain(|name| !name.ends_with(".new"));
        let roots = names(&state.join("roots"))?;
        for id in &roots {
            for root in names(&state.join("roots").join(id))? {
                let link = state.join("roots").join(id).join(root);
                let path = match link.read_link_utf8() {
                    // Let go meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    path => path?,
                };
                ensure!(
                    self.dir()
                        .join(path.as_str().trim_start_matches('/'))
                        .exists(),
                    "{link} keeps {path} from the garbage collector, which is not there"
                );
            }
        }
        ensure!(
            roots.len() <= MOST_ROOTS,
            "{} keeps what {} deployments need: {roots:?}",
            self.name(),
            roots.len()
        );
        Ok(Remains {
            files,
            damaged: damaged.len(),
            roots,
            bytes: size(&state)?,
        })
    }

    /// Whether the agent's ledger on disk says how the deployment `id` ended.
    ///
    /// # Errors
    /// When there is a ledger that cannot be read.
    pub fn has_ended(&self, id: DeploymentId) -> Result<bool> {
        let path = self.state().join("ledger");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            text => text?,
        };
        let (_, json) = text.split_once('\n').context("a ledger has a first line")?;
        let ledger: serde_json::Value = serde_json::from_str(json)?;
        let history = ledger["history"]
            .as_array()
            .context("a ledger has a history")?;
        Ok(history
            .iter()
            .any(|record| record["entry"]["id"] == id.to_string()))
    }

    /// The journal of the deployment `id`, while its job is there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn journal(&self, id: DeploymentId) -> Result<String> {
        let path: Utf8PathBuf = self
            .state()
            .join("jobs")
            .join(id.to_string())
            .join("journal");
        match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            text => Ok(text?),
        }
    }
}

/// The names in a folder; none when it is not there.
fn names(dir: &Utf8Path) -> Result<BTreeSet<String>> {
    let entries = match dir.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_owned()))
        .collect()
}

/// The sizes of all files in a folder and below, `*.new` left out. What goes meanwhile has none.
fn size(dir: &Utf8Path) -> Result<u64> {
    let mut bytes = 0;
    for name in names(dir)? {
        if name.ends_with(".new") {
            continue;
        }
        let path = dir.join(name);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += size(&path)?,
            Ok(metadata) => bytes += metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// A process for people.
fn shown(pid: Pid) -> String {
    let pid = pid.as_raw_nonzero();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!(
        "{pid} {}",
        String::from_utf8_lossy(&line).replace('\0', " ")
    )
}
