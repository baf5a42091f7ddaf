//! Where the programs are: Hoist's own next to the test executable, the others on the machine.

use std::env;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};

/// Every program that a scenario starts.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `hoist-broker`
    pub broker: Utf8PathBuf,
    /// `hoist-agent`
    pub agent: Utf8PathBuf,
    /// `hoist`
    pub publisher: Utf8PathBuf,
    /// `hoist-certs`
    pub certs: Utf8PathBuf,
    /// The folder that holds Nix's programs; outside of `/nix`, since a test machine has a `/nix` of its own.
    pub nix: Utf8PathBuf,
}

impl Programs {
    /// Finds them all.
    ///
    /// # Errors
    /// Names the first that is missing, and what to do about it.
    pub fn find() -> Result<Self> {
        let folder = built()?;
        let ours = |name: &str| {
            let path = folder.join(name);
            ensure!(
                path.is_file(),
                "{path} is missing; build the programs first: cargo build --workspace"
            );
            Ok(path)
        };
        for (name, package) in [
            ("unshare", "util-linux"),
            ("setpriv", "util-linux"),
            ("mount", "mount"),
        ] {
            on_path(name, package)?;
        }
        let nix = on_path("nix-store", "nix-bin")?;
        ensure!(
            !nix.canonicalize_utf8()?.starts_with("/nix"),
            "{nix} lies in /nix, which a test machine replaces by its own; \
             the scenarios need a Nix that is installed outside of /nix, such as Debian's nix-bin"
        );
        Ok(Self {
            broker: ours("hoist-broker")?,
            agent: ours("hoist-agent")?,
            publisher: ours("hoist")?,
            certs: ours("hoist-certs")?,
            nix: nix
                .parent()
                .context("a program lies in a folder")?
                .to_owned(),
        })
    }

    /// The search path of a test machine: Nix, and what every machine has.
    #[must_use]
    pub fn path(&self) -> String {
        format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.nix
        )
    }
}

/// `target/<profile>`, from where this executable lies: there itself, or in `deps` or `examples` below it.
fn built() -> Result<Utf8PathBuf> {
    let executable = env::current_exe().context("cannot tell where this program lies")?;
    let executable = Utf8PathBuf::try_from(executable)?;
    let folder = executable.parent().context("a program lies in a folder")?;
    Ok(match folder.file_name() {
        Some("deps" | "examples") => folder.parent().unwrap_or(folder).to_owned(),
        _ => folder.to_owned(),
    })
}

/// The program `name` on the search path or in `sbin`, where Debian puts daemons.
///
/// # Errors
/// Names the package that has it.
pub fn on_path(name: &str, package: &str) -> Result<Utf8PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    for folder in path
        .split(':')
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"])
    {
        let candidate = Utf8Path::new(folder).join(name);
        if !folder.is_empty() && Path::new(&candidate).is_file() {
            return Ok(candidate);
        }
    }
    bail!("`{name}` is missing; install the package {package}, or run tests/setup.sh");
}
