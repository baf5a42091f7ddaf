//! The command line.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use hoist_certs::program::{LogArgs, ManArgs, report};

use crate::commands::cancel::{CANCEL_EXAMPLES, CancelArgs};
use crate::commands::completions::{COMPLETIONS_EXAMPLES, CompletionsArgs};
use crate::commands::deploy::{DEPLOY_EXAMPLES, DeployArgs};
use crate::commands::diff::{DIFF_EXAMPLES, DiffArgs};
use crate::commands::doctor::DoctorArgs;
use crate::commands::flake::{BUILD_EXAMPLES, BuildArgs, PUSH_EXAMPLES, PushArgs};
use crate::commands::forget::{FORGET_EXAMPLES, ForgetArgs};
use crate::commands::history::{HISTORY_EXAMPLES, HistoryArgs};
use crate::commands::hold::{HOLD_EXAMPLES, HoldArgs};
use crate::commands::logs::LogsArgs;
use crate::commands::refresh::{REFRESH_EXAMPLES, RefreshArgs};
use crate::commands::release::{RELEASE_EXAMPLES, ReleaseArgs};
use crate::commands::retry::{RETRY_EXAMPLES, RetryArgs};
use crate::commands::rollback::{ROLLBACK_EXAMPLES, RollbackArgs};
use crate::commands::sign::{SIGN_EXAMPLES, SignArgs};
use crate::commands::status::StatusArgs;
use crate::commands::wait::{WAIT_EXAMPLES, WaitArgs};
use crate::commands::whoami::WhoamiArgs;
use crate::commands::{self, CommandError};
use crate::console::print;
use crate::outcome::{EXIT_CODES, Exit};
use crate::select::SELECTION_HELP;
use crate::settings::Flags;

const EXAMPLES: &str = "\
Examples:
  hoist deploy spec.json                    deploy, and wait for the machines that are online
  hoist deploy spec.json --agent web-1      only this one
  hoist deploy --flake .                    the same from a flake: build, copy to the cache, deploy
  nix eval --json .#deploy | hoist deploy - the spec from standard input
  hoist deploy spec.json --async            publish, read back, and be done
  hoist status                              the whole fleet; with --watch as it changes
  hoist status web-1                        all that web-1 says of itself
  hoist logs web-1 --follow                 what web-1 says while it deploys
  hoist history web-1                       what was deployed to it; `hoist diff web-1` what that changed
  hoist rollback web-1                      back to what web-1 ran before
  hoist doctor                              what is wrong, where something is

Settings come from flags, then environment variables, then the configuration file. In CI, secrets
can be given as they are: HOIST_CA, HOIST_CERTIFICATE, HOIST_KEY and HOIST_SIGNING_KEY take a path
or the text itself.";

/// Deploys fleets of Nix machines over MQTT
#[derive(Debug, Parser)]
#[command(name = "hoist", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    settings: Flags,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Deploy what a spec says, and follow the machines
    #[command(after_help = format!("{DEPLOY_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Deploy(Box<DeployArgs>),
    /// Build what the machines of a flake shall run, and write the spec
    #[command(after_help = BUILD_EXAMPLES)]
    Build(BuildArgs),
    /// Copy the closures of a spec to a binary cache
    #[command(after_help = PUSH_EXAMPLES)]
    Push(PushArgs),
    /// Show where machines stand; of those that are named, all that they say
    #[command(after_help = SELECTION_HELP)]
    Status(StatusArgs),
    /// Show the end of what a machine's newest deployment said, or with --follow what it says
    Logs(LogsArgs),
    /// Send machines back to what they ran before, by the id of a deployment
    #[command(after_help = format!("{ROLLBACK_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Rollback(Box<RollbackArgs>),
    /// Show what was deployed to a machine, and how it ended
    #[command(after_help = HISTORY_EXAMPLES)]
    History(HistoryArgs),
    /// Show what is different between two closures, or what a deployment changed
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Wait until what is deployed has ended, whoever published it
    #[command(after_help = format!("{WAIT_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Wait(WaitArgs),
    /// Find out what keeps this computer from deploying, and what to do about it
    Doctor(DoctorArgs),
    /// Clear all that the broker retains about a machine that is no more
    #[command(after_help = FORGET_EXAMPLES)]
    Forget(ForgetArgs),
    /// Show whose certificate and signing key are used, and whether the broker lets us in
    Whoami(WhoamiArgs),
    /// Write what a shell needs to complete the command line
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write the manual pages into a folder
    Man(ManArgs),
    /// Have machines leave everything as it is, until they are released or for a time
    #[command(after_help = format!("{HOLD_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Hold(Box<HoldArgs>),
    /// Let machines go that `hoist hold` holds
    #[command(after_help = format!("{RELEASE_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Release(Box<ReleaseArgs>),
    /// Cancel what machines have not begun to activate
    #[command(after_help = format!("{CANCEL_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Cancel(Box<CancelArgs>),
    /// Try the newest deployment again where it failed
    #[command(after_help = format!("{RETRY_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Retry(Box<RetryArgs>),
    /// Renew the expiry of what machines shall run
    #[command(after_help = format!("{REFRESH_EXAMPLES}\n\n{SELECTION_HELP}\n\n{EXIT_CODES}"))]
    Refresh(Box<RefreshArgs>),
    /// Add a signature to deployments that somebody else has prepared
    #[command(after_help = SIGN_EXAMPLES)]
    Sign(SignArgs),
}

/// The program: reads the command line, runs the command, and says what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // The doctor's findings are what would be warned of.
    let warns = !matches!(cli.command, Command::Doctor(_)) || cli.log.verbose > 0;
    if warns {
        cli.log.init(0);
    }
    let (name, json) = match &cli.command {
        Command::Deploy(args) => ("deploy", args.follow.json),
        Command::Build(_) => ("build", false),
        Command::Push(_) => ("push", false),
        Command::Status(args) => ("status", args.json),
        Command::Logs(args) => ("logs", args.json),
        Command::History(args) => ("history", args.json),
        Command::Diff(args) => ("diff", args.json),
        Command::Wait(args) => ("wait", args.json),
        Command::Doctor(args) => ("doctor", args.json),
        Command::Forget(args) => ("forget", args.json),
        Command::Whoami(args) => ("whoami", args.json),
        Command::Completions(_) => ("completions", false),
        Command::Man(_) => ("man", false),
        Command::Rollback(args) => ("rollback", args.chosen.follow.json),
        Command::Hold(args) => ("hold", args.chosen.follow.json),
        Command::Release(args) => ("release", args.chosen.follow.json),
        Command::Cancel(args) => ("cancel", args.chosen.follow.json),
        Command::Retry(args) => ("retry", args.chosen.follow.json),
        Command::Refresh(args) => ("refresh", args.chosen.follow.json),
        Command::Sign(args) => ("sign", args.json),
    };
    let exit = run(cli).unwrap_or_else(|error| {
        let exit = error.exit();
        fail(name, json, exit, &report(&error.into()));
        exit
    });
    ExitCode::from(exit.code())
}

fn run(cli: Cli) -> Result<Exit, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    runtime.block_on(async {
        match cli.command {
            Command::Deploy(args) => commands::deploy::run(&args, cli.settings).await,
            Command::Build(args) => commands::flake::build(&args).await,
            Command::Push(args) => commands::flake::run_push(&args, cli.settings).await,
            Command::Status(args) => commands::status::run(&args, cli.settings).await,
            Command::Logs(args) => commands::logs::run(&args, cli.settings).await,
            Command::Rollback(args) => commands::rollback::run(&args, cli.settings).await,
            Command::History(args) => commands::history::run(&args, cli.settings).await,
            Command::Diff(args) => commands::diff::run(&args, cli.settings).await,
            Command::Wait(args) => commands::wait::run(&args, cli.settings).await,
            Command::Doctor(args) => commands::doctor::run(&args, cli.settings).await,
            Command::Forget(args) => commands::forget::run(&args, cli.settings).await,
            Command::Whoami(args) => commands::whoami::run(&args, cli.settings).await,
            Command::Completions(args) => commands::completions::run(&args, Cli::command()),
            Command::Man(args) => match args.write(Cli::command()) {
                Ok(()) => Ok(Exit::Ok),
                Err(source) => Err(CommandError::Write(args.folder, source)),
            },
            Command::Hold(args) => commands::hold::run(&args, cli.settings).await,
            Command::Release(args) => commands::release::run(&args, cli.settings).await,
            Command::Cancel(args) => commands::cancel::run(&args, cli.settings).await,
            Command::Retry(args) => commands::retry::run(&args, cli.settings).await,
            Command::Refresh(args) => commands::refresh::run(&args, cli.settings).await,
            Command::Sign(args) => commands::sign::run(&args, cli.settings).await,
        }
    })
}

/// Says on stderr what went wrong, and on stdout where JSON was asked for.
fn fail(command: &str, json: bool, exit: Exit, message: &str) {
    use std::io::Write as _;
    if json {
        let document = serde_json::json!({
            "schema": crate::report::SCHEMA,
            "command": command,
            "exit_code": exit.code(),
            "error": message,
        });
        if let Err(error) = print(&format!("{document}\n")) {
            tracing::debug!(%error, "stdout is closed");
        }
    }
    crate::ci::failed(message, &crate::settings::process_environment);
    if let Err(error) = writeln!(std::io::stderr(), "error: {message}") {
        tracing::trace!(%error, "stderr is closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_manual_names_every_command_and_every_variable() {
        let mut command = Cli::command();
        let mut help = command.render_long_help().to_string();
        let own = command
            .get_subcommands_mut()
            .filter(|sub| sub.get_name() != "help");
        for sub in own {
            crate::manual::assert_mentions(&format!("`hoist {}", sub.get_name()));
            help += &sub.render_long_help().to_string();
        }
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        for part in help.split("HOIST_").skip(1) {
            let end = part.find(|c| !is_name(c)).unwrap_or(part.len());
            crate::manual::assert_mentions(&format!("`HOIST_{}`", &part[..end]));
        }
    }
}
