//! What the garbage collector must not take: a folder of links for each deployment, `<state>/roots/<id>`.
//!
//! Nix finds each link through one in `/nix/var/nix/gcroots/auto`. Where this user may write there, we make and
//! remove that one ourselves, without a start of Nix. Where a user may not, Nix's daemon makes it, and the
//! garbage collector removes it once ours is gone. So nothing is left behind when somebody removes the state
//! folder: links that lie in `gcroots` alone would keep their closures for ever.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{DeploymentId, StorePath};
use rustix::fs::{FlockOperation, flock};

const AUTO_ROOTS: &str = "/nix/var/nix/gcroots/auto";

/// The lock of Nix's garbage collector.
const GC_LOCK: &str = "/nix/var/nix/gc.lock";

/// The root of the closure that a deployment brought; what else is in its folder is only needed while it is
/// under way.
pub(super) const CLOSURE: &str = "closure";

/// The folder of the roots of all deployments, below the agent's state.
#[must_use]
pub fn roots_dir(state: &Utf8Path) -> Utf8PathBuf {
    state.join("roots")
}

/// Where the roots of a deployment are.
pub(crate) fn roots_of(roots: &Utf8Path, id: DeploymentId) -> Utf8PathBuf {
    roots.join(id.to_string())
}

/// Lets go of all deployments in `roots` but two groups: those `under_way` keep all that they need, and those
/// that are `kept` to go back to keep their closures.
///
/// # Errors
/// The folder cannot be read, or one in it cannot be removed.
pub fn release_roots(
    roots: &Utf8Path,
    under_way: &[DeploymentId],
    kept: &[DeploymentId],
) -> io::Result<()> {
    let entries = match roots.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let under_way: HashSet<_> = under_way.iter().collect();
    let kept: HashSet<_> = kept.iter().collect();
    for entry in entries {
        let entry = entry?;
        let Ok(id) = entry.file_name().parse::<DeploymentId>() else {
            continue;
        };
        if !under_way.contains(&id) {
            release(entry.path(), kept.contains(&id))?;
        }
    }
    Ok(())
}

/// Lets go of a deployment, or of all but its closure.
fn release(dir: &Utf8Path, keeps_closure: bool) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in dir.read_dir_utf8()? {
        let name = entry?.file_name().to_owned();
        if !(keeps_closure && name == CLOSURE) {
            names.push(name);
        }
    }
    for name in &names {
        // Once this one is gone, the other means nothing: when we die in between, the garbage collector
        // removes it.
        let link = dir.join(name);
        if link.symlink_metadata()?.is_dir() {
            fs::remove_dir_all(&link)?;
        } else {
            fs::remove_file(&link)?;
        }
        match fs::remove_file(auto_root(dir, name)) {
            Err(error) if !is_nothing_to_us(&error) => return Err(error),
            _ => {}
        }
    }
    if keeps_closure {
        Ok(())
    } else {
        fs::remove_dir(dir)
    }
}

/// Whether a link in [`AUTO_ROOTS`] is not there, or not ours to remove.
fn is_nothing_to_us(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(
        error.kind(),
        NotFound | NotADirectory | PermissionDenied | ReadOnlyFilesystem
    )
}

/// The link through which the garbage collector finds that of the name in the folder of a deployment.
fn auto_root(dir: &Utf8Path, name: &str) -> Utf8PathBuf {
    let id = dir.file_name().unwrap_or("root");
    Utf8Path::new(AUTO_ROOTS).join(format!("hoist-{id}-{name}"))
}

/// Makes the root `<dir>/<name>` of `path` and says whether the garbage collector goes by it: not when this
/// user may not write where it looks.
///
/// `path` need not be there yet. One that is there must be kept by something else at this moment, or be asked
/// for through Nix afterwards, so that a garbage collector under way does not take it.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn link(dir: &Utf8Path, name: &str, path: &StorePath) -> io::Result<bool> {
    let link = dir.join(name);
    replace_link(path.as_str(), &link)?;
    let auto = auto_root(dir, name);
    match replace_link(link.as_str(), &auto) {
        Ok(()) => Ok(true),
        // Nix makes the folder with the first such root.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = fs::create_dir_all(AUTO_ROOTS);
            Ok(made.is_ok() && replace_link(link.as_str(), &auto).is_ok())
        }
        Err(_) => Ok(false),
    }
}

/// Whether every garbage collector goes by the roots that are there now: none is under way that may have looked
/// for them before.
///
/// A collector holds Nix's lock for itself from before it looks for roots until its end (`collectGarbage` in Nix's
/// `gc.cc`). Not so where the lock cannot be read.
pub(super) fn are_seen() -> bool {
    is_free(GC_LOCK.into())
}

fn is_free(lock: &Utf8Path) -> bool {
    match fs::File::open(lock) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockShared).is_ok(),
        // Made by the first collector.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Keeps `path`, which something else keeps right now, as `<dir>/<name>`.
///
/// Since it is kept now, a garbage collector under way cannot take it, and it does not matter that Nix is
/// not asked: that would cost its start. Where the links cannot be made, Nix makes them.
///
/// # Errors
/// Neither way works.
pub(crate) fn keep(dir: &Utf8Path, name: &str, path: &StorePath) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if link(dir, name, path)? {
        return Ok(());
    }
    let output = Command::new("nix-store")
        .args(["--realise", path.as_str()])
        .args(["--add-root", dir.join(name).as_str()])
        .args(["--option", "substitute", "false"])
        .env_clear()
        .envs(super::clean_environment())
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "cannot write to `{AUTO_ROOTS}`, and nix-store ended with {}: {}",
        output.status,
        said.trim()
    )))
}

/// Makes `link` lead to `target`, whatever it led to before, with no moment in between.
pub(crate) fn replace_link(target: &str, link: &Utf8Path) -> io::Result<()> {
    let new = Utf8PathBuf::from(format!("{link}.new"));
    match symlink(target, &new) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&new)?;
            symlink(target, &new)?;
        }
        made => made?,
    }
    fs::rename(&new, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> DeploymentId {
        DeploymentId::new(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn only_deployments_that_nobody_needs_are_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        for number in 1..=4 {
            let roots = roots_of(dir, id(number));
            fs::create_dir_all(roots.join("cache/nix")).unwrap();
            symlink("/nix/store/x", roots.join(CLOSURE)).unwrap();
            symlink("/nix/store/y", roots.join("running")).unwrap();
        }
        fs::create_dir(dir.join("not-ours")).unwrap();
        release_roots(dir, &[id(2)], &[id(3)]).unwrap();
        let names = |number| {
            let mut names: Vec<_> = roots_of(dir, id(number))
                .read_dir_utf8()
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_owned())
                .collect();
            names.sort();
            names
        };
        assert!(!roots_of(dir, id(1)).exists());
        assert_eq!(names(2), ["cache", "closure", "running"]);
        assert_eq!(names(3), ["closure"]);
        assert!(!roots_of(dir, id(4)).exists());
        assert!(dir.join("not-ours").exists());
        release_roots(&dir.join("missing"), &[], &[]).unwrap();
    }

    #[test]
    fn a_root_is_replaced_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let link = dir.join("running");
        for target in ["/nix/store/x", "/nix/store/y"] {
            // What a killed one has left is in nobody's way.
            symlink("/nowhere", dir.join("running.new")).unwrap();
            replace_link(target, &link).unwrap();
            assert_eq!(link.read_link_utf8().unwrap(), target);
        }
    }

    #[test]
    fn a_garbage_collector_under_way_may_not_have_seen_a_new_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("gc.lock");
        assert!(is_free(&path), "none has ever run");
        let lock = fs::File::create(&path).unwrap();
        assert!(is_free(&path));
        lock.lock().unwrap();
        assert!(!is_free(&path));
        lock.unlock().unwrap();
        lock.lock_shared().unwrap();
        assert!(is_free(&path), "who only wants to be seen is no collector");
    }
}
