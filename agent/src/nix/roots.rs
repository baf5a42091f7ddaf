//! What the garbage collector must not take: a folder of links for each deployment, `<state>/roots/<id>`.
//!
//! Nix finds each link through one in `/nix/var/nix/gcroots/auto`, and removes that one itself once ours is
//! gone: to let go of a deployment, its folder is removed, and nothing else.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{DeploymentId, StorePath};

const AUTO_ROOTS: &str = "/nix/var/nix/gcroots/auto";

/// The folder of the roots of all deployments, below the agent's state.
#[must_use]
pub fn roots_dir(state: &Utf8Path) -> Utf8PathBuf {
    state.join("roots")
}

/// Where the roots of a deployment are.
pub(crate) fn roots_of(roots: &Utf8Path, id: DeploymentId) -> Utf8PathBuf {
    roots.join(id.to_string())
}

/// Lets go of all deployments in `roots` but those in `keep`.
///
/// # Errors
/// The folder cannot be read, or one in it cannot be removed.
pub fn release_roots(roots: &Utf8Path, keep: &[DeploymentId]) -> io::Result<()> {
    let entries = match roots.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let keep: HashSet<_> = keep.iter().collect();
    for entry in entries {
        let entry = entry?;
        let id = entry.file_name().parse::<DeploymentId>();
        if id.is_ok_and(|id| !keep.contains(&id)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
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
    let link = dir.join(name);
    replace_link(path.as_str(), &link)?;
    let id = dir.file_name().unwrap_or("root");
    let auto = Utf8Path::new(AUTO_ROOTS).join(format!("hoist-{id}-{name}"));
    if replace_link(link.as_str(), &auto).is_ok() {
        return Ok(());
    }
    let output = Command::new("nix-store")
        .args(["--realise", path.as_str(), "--add-root", link.as_str()])
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

    #[test]
    fn only_deployments_that_nobody_needs_are_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let id = |n: u128| DeploymentId::new(uuid::Uuid::from_u128(n));
        for n in 1..=3 {
            fs::create_dir(roots_of(dir, id(n))).unwrap();
        }
        fs::create_dir(dir.join("not-ours")).unwrap();
        release_roots(dir, &[id(2)]).unwrap();
        assert!(!roots_of(dir, id(1)).exists());
        assert!(roots_of(dir, id(2)).exists());
        assert!(!roots_of(dir, id(3)).exists());
        assert!(dir.join("not-ours").exists());
        release_roots(&dir.join("missing"), &[]).unwrap();
    }
}
