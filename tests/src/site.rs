//! The folder in which everything happens.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use crate::programs::Programs;

/// How many lines of each log are shown when a scenario fails.
const SHOWN: usize = 60;

/// A folder with everything that a scenario makes; gone when dropped, unless `KEEP` is set in the environment.
pub struct Site {
    dir: Utf8PathBuf,
    logs: Utf8PathBuf,
    programs: Programs,
    folder: Option<tempfile::TempDir>,
}

impl Site {
    /// Makes the folder.
    ///
    /// # Errors
    /// When it cannot be made, or a program is missing.
    pub fn create(name: &str) -> Result<Self> {
        let programs = Programs::find()?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("hoist-{name}-"))
            .tempdir()?;
        let dir = Utf8PathBuf::try_from(folder.path().to_owned())?;
        if dir.starts_with("/run") || dir.starts_with("/nix") {
            bail!(
                "{dir} cannot hold test machines, which have a /run and a /nix of their own; set TMPDIR=/tmp"
            );
        }
        let folder = if keeps() {
            // From here on it is the caller's.
            let _kept = folder.keep();
            None
        } else {
            Some(folder)
        };
        let logs = dir.join("logs");
        fs::create_dir(&logs)?;
        Ok(Self {
            dir,
            logs,
            programs,
            folder,
        })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    /// The folder with what every program printed.
    #[must_use]
    pub fn logs(&self) -> &Utf8Path {
        &self.logs
    }

    /// The programs.
    #[must_use]
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The end of every log, for people.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn story(&self) -> Result<String> {
        let mut story = String::new();
        for (name, text) in self.read_logs()? {
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(SHOWN)..];
            story += &format!("--- {name}\n{}\n", last.join("\n"));
        }
        Ok(story)
    }

    /// Name and content of every log that holds something.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn read_logs(&self) -> Result<Vec<(String, String)>> {
        let mut logs = Vec::new();
        for entry in self.logs.read_dir_utf8()? {
            let path = entry?.into_path();
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            if !text.is_empty() {
                logs.push((path.file_name().unwrap_or_default().to_owned(), text));
            }
        }
        logs.sort();
        Ok(logs)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let Some(folder) = self.folder.take() else {
            return;
        };
        if let Err(error) = make_removable(&self.dir).and_then(|()| folder.close()) {
            eprintln!("{} could not be removed: {error}", self.dir);
        }
    }
}

/// Nix makes its store's folders read-only, and only root removes what lies in such a folder.
fn make_removable(dir: &Utf8Path) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    for entry in dir.read_dir_utf8()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_removable(entry.path())?;
        }
    }
    Ok(())
}

/// Whether folders are kept for a person to look at.
#[must_use]
pub fn keeps() -> bool {
    std::env::var_os("KEEP").is_some_and(|value| !value.is_empty())
}
