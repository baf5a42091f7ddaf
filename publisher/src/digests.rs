//! What closures hold, to the byte, where this computer's own store has them.
//!
//! Nix is asked twice, however many closures there are: which of them are in the store, and then for all paths
//! of all of them at once; the closure of each is found among these here. Asked for one by one, a thousand
//! systems take two minutes instead of half a second.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::Duration;

use hoist_protocol::{ClosureDigest, ClosureInfoError, Closures, StorePath, Text};
use tokio::process::Command;
use tokio::time::timeout;

use crate::nix_command::nix_command;

/// Most paths in one call: their names are on its command line, on which 2 MB have room.
const BATCH: usize = 4_000;

/// How long Nix may take for one call.
const LONGEST: Duration = Duration::from_secs(300);

/// Why Nix did not tell what closures hold.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// There is no Nix here.
    #[error("`{0}` is not installed here")]
    NotInstalled(&'static str),
    /// It cannot be started.
    #[error("cannot run `{0}`")]
    Start(&'static str, #[source] std::io::Error),
    /// It does not come to an end.
    #[error("`{program}` took longer than {} s", LONGEST.as_secs())]
    TooLong {
        /// Which program.
        program: &'static str,
    },
    /// It failed.
    #[error("`{program}` failed: {said}")]
    Failed {
        /// Which program.
        program: &'static str,
        /// What it wrote to stderr last.
        said: Text<512>,
    },
    /// What it wrote is not what it should be.
    #[error("`{0}` wrote what cannot be read")]
    Output(&'static str, #[source] ClosureInfoError),
}

const STORE: &str = "nix-store";
const NIX: &str = "nix";

/// The digests of these closures, as far as they are in the store of this computer.
///
/// # Errors
/// [`DigestError`]
pub async fn of(
    paths: &BTreeSet<StorePath>,
) -> Result<BTreeMap<StorePath, ClosureDigest>, DigestError> {
    let closures = closures(paths).await?;
    let digests = paths.iter().filter_map(|path| {
        let digest = closures.digest(path)?;
        Some((path.clone(), digest))
    });
    Ok(digests.collect())
}

/// All about these closures, as far as they are in the store of this computer. Nothing is fetched.
///
/// # Errors
/// [`DigestError`]
pub async fn closures(paths: &BTreeSet<StorePath>) -> Result<Closures, DigestError> {
    let paths: Vec<&StorePath> = paths.iter().collect();
    let mut missing = BTreeSet::new();
    for batch in paths.chunks(BATCH) {
        missing.extend(not_here(batch).await?);
    }
    let here: Vec<&StorePath> = paths
        .into_iter()
        .filter(|path| !missing.contains(path.as_str()))
        .collect();
    let mut told = Vec::new();
    for batch in here.chunks(BATCH) {
        told.push(path_info(batch).await?);
    }
    Closures::from_path_info(told.iter().map(Vec::as_slice))
        .map_err(|error| DigestError::Output(NIX, error))
}

/// Which of these are not in the store. Without this call, Nix would ask the binary caches for them.
async fn not_here(paths: &[&StorePath]) -> Result<BTreeSet<String>, DigestError> {
    let mut command = nix_command(STORE);
    command.args(["--check-validity", "--print-invalid"]);
    let output = run(STORE, command, paths).await?;
    let lines = String::from_utf8_lossy(&output.stdout);
    Ok(lines.lines().map(|line| line.trim().to_owned()).collect())
}

async fn path_info(paths: &[&StorePath]) -> Result<Vec<u8>, DigestError> {
    let mut command = nix_command(NIX);
    // An array of what may be off by default, and off what asks the network.
    command.args(["--extra-experimental-features", "nix-command", "--offline"]);
    command.args(["path-info", "--json", "--recursive"]);
    Ok(run(NIX, command, paths).await?.stdout)
}

async fn run(
    program: &'static str,
    mut command: Command,
    paths: &[&StorePath],
) -> Result<Output, DigestError> {
    command.args(paths.iter().map(|path| path.as_str()));
    let output = match timeout(LONGEST, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DigestError::NotInstalled(program));
        }
        Ok(Err(error)) => return Err(DigestError::Start(program, error)),
        Err(_) => return Err(DigestError::TooLong { program }),
    };
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Err(DigestError::Failed {
        program,
        said: Text::lossy(last.unwrap_or("it said nothing")),
    })
}
