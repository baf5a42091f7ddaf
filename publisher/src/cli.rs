//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hoist_certs::program::{LogArgs, report};

use crate::commands::cancel::{CANCEL_EXAMPLES, CancelArgs};
use crate::commands::deploy::{DEPLOY_EXAMPLES, DeployArgs};
use crate::commands::flake::{BUILD_EXAMPLES, BuildArgs, PUSH_EXAMPLES, PushArgs};
use crate::commands::hold::{HOLD_EXAMPLES, HoldArgs};
use crate::commands::logs::LogsArgs;
use crate::commands::refresh::{REFRESH_EXAMPLES, RefreshArgs};
use crate::commands::release::{RELEASE_EXAMPLES, ReleaseArgs};
use crate::commands::retry::{RETRY_EXAMPLES, RetryArgs};
use crate::commands::rollback::{ROLLBACK_EXAMPLES, RollbackArgs};
use crate::commands::sign::{SIGN_EXAMPLES, SignArgs};
use crate::commands::status::StatusArgs;
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
  hoist status                              the whole fleet
  hoist status web-1                        all that web-1 says of itself
  hoist logs web-1 --follow                 what web-1 says while it deploys
  hoist rollback web-1                      back to what web-1 ran before

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
    cli.log.init(0);
    let (name, json) = match &cli.command {
        Command::Deploy(args) => ("deploy", args.follow.json),
        Command::Build(_) => ("build", false),
        Command::Push(_) => ("push", false),
        Command::Status(args) => ("status", args.json),
        Command::Logs(args) => ("logs", args.json),
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
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
