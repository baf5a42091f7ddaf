//! `hoist completions`: what a shell needs to complete the command line.

use clap::Args;
use clap_complete::Shell;

use super::CommandError;
use crate::console::print;
use crate::outcome::Exit;

pub(crate) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  source <(hoist completions bash)          in this shell
  hoist completions bash > ~/.local/share/bash-completion/completions/hoist
  hoist completions zsh > ~/.zfunc/_hoist
  hoist completions fish > ~/.config/fish/completions/hoist.fish";

/// `hoist completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: Shell,
}

/// Runs the command for the program `command`.
///
/// # Errors
/// [`CommandError::Output`]
pub fn run(args: &CompletionsArgs, mut command: clap::Command) -> Result<Exit, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "hoist", &mut script);
    print(&String::from_utf8_lossy(&script)).map_err(CommandError::Output)?;
    Ok(Exit::Ok)
}
