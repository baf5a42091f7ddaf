//! Tests that mount something: they run once more, as a process whose mounts end with it.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::geteuid;

/// Tells the process inside that it is the one, and where to write what its parent shall print.
const INSIDE: &str = "HOIST_TEST_INSIDE";

/// Runs `test`, which is the test with this very name, in a process with mounts of its own. What it returns is printed,
/// also when the test passes.
///
/// # Panics
/// When it fails.
pub fn isolated(test: impl FnOnce() -> String) {
    if let Some(report) = env::var_os(INSIDE) {
        fs::write(report, test()).expect("the report can be written");
        return;
    }
    match run_inside() {
        // Not by `println!`, which is shown only when the test fails.
        Ok(report) => io::stdout()
            .write_all(report.as_bytes())
            .expect("standard output takes it"),
        Err(error) => panic!("{error:#}"),
    }
}

fn run_inside() -> Result<String> {
    let thread = std::thread::current();
    let name = thread.name().context("a test's thread has its name")?;
    let report = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .args(["--", "setpriv", "--pdeathsig", "KILL", "--"])
        .arg(env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, report.path())
        .stdin(Stdio::null())
        .output()
        .context("cannot run unshare")?;
    let report = fs::read_to_string(report.path())?;
    if !output.status.success() {
        bail!(
            "{}{}{report}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(report)
}

/// A disk in memory; gone when dropped.
pub struct SmallDisk {
    dir: Utf8PathBuf,
}

impl SmallDisk {
    /// Mounts one that holds `megabytes` on the folder `dir`, which is made.
    ///
    /// # Errors
    /// When this process has no mounts of its own, see [`isolated`].
    pub fn mount(dir: &Utf8Path, megabytes: u32) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let options = format!("size={megabytes}m");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "none", dir.as_str()]);
        ensure!(
            command.status().context("cannot run mount")?.success(),
            "cannot mount a disk on {dir}"
        );
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When that fails for another reason than that it is full.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filling())?;
        // The last piece that does not fit whole is tried again in smaller ones.
        for size in [1 << 20, 1 << 12, 1] {
            let piece = vec![0; size];
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("cannot fill the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filling())?)
    }

    fn filling(&self) -> Utf8PathBuf {
        self.dir.join("filling")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .args(["--lazy", self.dir.as_str()])
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.dir);
        }
    }
}
