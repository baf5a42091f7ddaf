//! `hoist man`: the manual pages, from what `--help` says.

use std::fs;

use camino::Utf8PathBuf;
use clap::Args;

use super::CommandError;
use crate::outcome::Exit;

/// `hoist man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder that gets a page for `hoist` and one for each command, such as /usr/local/share/man/man1; it is made
    /// if need be
    pub folder: Utf8PathBuf,
}

/// Runs the command for the program `command`.
///
/// # Errors
/// [`CommandError::Write`]
pub fn run(args: &ManArgs, command: clap::Command) -> Result<Exit, CommandError> {
    let failed = |source| CommandError::Write(args.folder.clone(), source);
    fs::create_dir_all(&args.folder).map_err(failed)?;
    clap_mangen::generate_to(command, &args.folder).map_err(failed)?;
    Ok(Exit::Ok)
}
