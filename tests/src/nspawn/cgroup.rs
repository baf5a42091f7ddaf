//! Control groups of a machine's own: two systemds in one would end each other's services.

use std::fs;
use std::io::ErrorKind;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use camino::{Utf8Path, Utf8PathBuf};

use crate::wait;

/// What the name of each begins with; the id of the process that made it follows.
const PREFIX: &str = "hoist-test-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A group in each hierarchy that systemd uses; removed when dropped.
pub(super) struct Cgroup {
    folders: Vec<Utf8PathBuf>,
}

impl Cgroup {
    /// Makes one below the group of this process.
    pub(super) fn create() -> Result<Self> {
        let parents = parents()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut group = Self {
            folders: Vec::new(),
        };
        for parent in parents {
            sweep(&parent)?;
            let folder = parent.join(format!("{PREFIX}{}-{number}", process::id()));
            fs::create_dir(&folder).with_context(|| {
                format!(
                    "cannot make the control group {folder}; in a container, run it with --privileged"
                )
            })?;
            group.folders.push(folder);
        }
        Ok(group)
    }

    /// Its folder in each hierarchy.
    pub(super) fn folders(&self) -> &[Utf8PathBuf] {
        &self.folders
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            // What was killed a moment ago counts until the kernel is done with it.
            let removed =
                wait::until_within(
                    wait::PATIENCE,
                    &format!("{folder} is empty"),
                    || match remove(folder) {
                        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
                        removed => Ok(Some(removed?)),
                    },
                );
            if let Err(error) = removed {
                eprintln!("a control group could not be removed: {error:#}");
            }
        }
    }
}

/// The groups of this process: in the unified hierarchy, and in systemd's own where there still is one.
fn parents() -> Result<Vec<Utf8PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let mut found = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        if !matches!(controllers, "" | "name=systemd") {
            continue;
        }
        let mount = mounts.lines().find_map(|mount| {
            let (place, what) = mount.split_once(" - ")?;
            let mut what = what.split(' ');
            let fits = match what.next()? {
                "cgroup2" => controllers.is_empty(),
                "cgroup" => {
                    !controllers.is_empty() && what.nth(1)?.split(',').any(|o| o == controllers)
                }
                _ => false,
            };
            fits.then(|| place.split(' ').nth(4)).flatten()
        });
        if let Some(mount) = mount {
            found.push(Utf8Path::new(mount).join(path.trim_start_matches('/')));
        }
    }
    ensure!(
        !found.is_empty(),
        "no hierarchy of control groups is mounted, and systemd needs one"
    );
    Ok(found)
}

/// Removes what test processes have left that were killed themselves.
fn sweep(parent: &Utf8Path) -> Result<()> {
    for entry in parent.read_dir_utf8()? {
        let entry = entry?;
        let maker = entry
            .file_name()
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if let Some(maker) = maker
            && !Utf8Path::new("/proc").join(maker).exists()
            // Somebody else may be sweeping, too.
            && let Err(error) = remove(entry.path())
            && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ResourceBusy)
        {
            return Err(error).context(format!("cannot remove {}", entry.path()));
        }
    }
    Ok(())
}

/// Removes a group and those in it. Their files cannot be removed, and need not be.
fn remove(folder: &Utf8Path) -> std::io::Result<()> {
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
