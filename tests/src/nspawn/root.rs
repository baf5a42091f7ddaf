//! The root file system that all booted machines share, made by `tests/root.sh`.

use std::env;

use anyhow::{Result, ensure};
use camino::Utf8PathBuf;
use rustix::process::geteuid;

use crate::programs::on_path;

/// Says which root file system fits this harness; `tests/setup.sh` reads it as well.
const VERSION: &str = include_str!("root.version");

/// Set to 1, the scenarios on booted machines are left out, and say so.
pub(super) const SKIP: &str = "HOIST_SKIP_SYSTEMD";

/// Where root file systems are kept, unless the environment says otherwise.
const KEPT: (&str, &str) = ("HOIST_TEST_ROOT", "/var/cache/hoist-tests");

/// Whether the person who runs the tests has asked to leave out what needs booted machines.
pub(super) fn is_skipped() -> bool {
    env::var(SKIP).is_ok_and(|value| value == "1")
}

/// The folder of the root file system.
///
/// # Errors
/// Says what is missing and what to do, when machines cannot be booted here.
pub(super) fn find() -> Result<Utf8PathBuf> {
    let advice = format!("set {SKIP}=1 to leave out the scenarios on booted machines");
    ensure!(
        geteuid().is_root(),
        "only root can boot machines with systemd-nspawn; run the tests as root, or {advice}"
    );
    on_path("systemd-nspawn", "systemd-container")?;
    let kept = env::var(KEPT.0).unwrap_or_else(|_| KEPT.1.to_owned());
    let root = Utf8PathBuf::from(kept).join(format!("trixie-{}", VERSION.trim()));
    ensure!(
        root.is_dir(),
        "{root} is missing, the root file system of machines that boot; run tests/setup.sh, or {advice}"
    );
    Ok(root)
}
