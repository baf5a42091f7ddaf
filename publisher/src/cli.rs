//! The command line.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hoist_certs::program::{LogArgs, report};
use hoist_protocol::AgentName;

use crate::commands::{self, CommandError};
use crate::console::print;
use crate::duration;
use crate::flags::{ActivationArgs, CheckArgs, RolloutArgs, SelectionArgs};
use crate::outcome::{EXIT_CODES, Exit};
use crate::select::{SELECTION_HELP, Selector};
use crate::settings::{Flags, SigningFlags};

const EXAMPLES: &str = "\
Examples:
  hoist deploy spec.json                    deploy, and wait for the machines that are online
  hoist deploy spec.json --agent web-1      only this one
  nix eval --json .#deploy | hoist deploy - the spec from standard input
  hoist deploy spec.json --async            publish, read back, and be done
  hoist status                              the whole fleet
  hoist status web-1                        all that web-1 says of itself
  hoist logs web-1 --follow                 what web-1 says while it deploys
  hoist rollback web-1                      back to what web-1 ran before

Settings come from flags, then environment variables, then the configuration file. In CI, secrets
can be given as they are: HOIST_CA, HOIST_CERTIFICATE, HOIST_KEY and HOIST_SIGNING_KEY take a path
or the text itself.";

const DEPLOY_EXAMPLES: &str = "\
Examples:
  hoist deploy spec.json --action dry-activate
                                   what would change, on each machine
  hoist deploy spec.json --action boot
                                   with the next boot of each machine
  hoist deploy spec.json --check-unit nginx.service --check-http http://localhost/ --check-grace 10s
                                   machines on which that does not hold go back
  hoist deploy spec.json --spread 30m
                                   a large fleet, not all at once
  hoist deploy spec.json --require-digest
                                   nothing that a binary cache could have changed unnoticed
  hoist deploy spec.json --canary 1 --batch 20% --bake 5m --max-failed 5% --on-failure rollback
                                   one machine, then a fifth of them at a time; five minutes of being well
                                   before the next; back again when more than a twentieth has failed
  hoist deploy spec.json --agent '@web&!eu-*' --where state=failed --dry-run
                                   which of the web servers outside of eu- that would try again";

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
    Deploy(DeployArgs),
    /// Show where machines stand; of those that are named, all that they say
    #[command(after_help = SELECTION_HELP)]
    Status(StatusArgs),
    /// Show the end of what a machine's newest deployment said, or with --follow what it says
    Logs(LogsArgs),
    /// Send a machine back to what it ran before, by the id of a deployment
    #[command(after_help = EXIT_CODES)]
    Rollback(RollbackArgs),
}

/// The heading of what is said about where closures come from.
const CLOSURES: &str = "Closures";

/// Whether what the closures hold is signed too.
///
/// By default it is where this computer's own store has them: then a binary cache that serves anything else
/// under the same path is found out by the machine, whoever's key it has.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = CLOSURES)]
pub struct DigestArgs {
    /// Do not sign what the closures hold, also where the store of this computer or the spec knows it
    #[arg(long, conflicts_with = "require_digest")]
    pub no_digest: bool,
    /// Deploy nothing unless what every closure holds is signed: each is in the store of this computer, or the
    /// spec has its digest
    #[arg(long)]
    pub require_digest: bool,
}

/// `hoist deploy`
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// The spec, as Cachix Deploy reads it: {"agents": {"web-1": "/nix/store/…"}, "rollbackScript":
    /// {"x86_64-linux": "/nix/store/…"}}; `-` is standard input. In place of a path there may be an object
    /// with a path and what the flags below say, for this machine: {"path": "/nix/store/…", "action": "boot"}
    pub spec: Utf8PathBuf,
    /// Deploy only these machines of the spec, more than once for several: names, or a selection such as
    /// 'web-*', '@web&!@canary', 'kind:nixos,db-1' (below)
    #[arg(long = "agent", value_name = "SELECTION")]
    pub agents: Vec<Selector>,
    /// Only machines of which something holds
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Leave out machines that are offline and have not been heard of for so long
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, help_heading = "Selection")]
    pub stale: Option<std::time::Duration>,
    /// Show which machines would go from what to what, and do nothing: no signing key is needed, and a monitor's
    /// certificate is enough
    #[arg(long, conflicts_with_all = ["wait", "is_async"])]
    pub dry_run: bool,
    /// Machines one after the other
    #[command(flatten)]
    pub rollout: RolloutArgs,
    /// How the closures are activated
    #[command(flatten)]
    pub activation: ActivationArgs,
    /// What must hold afterwards
    #[command(flatten)]
    pub checks: CheckArgs,
    /// What vouches for the closures
    #[command(flatten)]
    pub digest: DigestArgs,
    /// Binary cache that the machines use besides their own, more than once for several
    /// [env: HOIST_SUBSTITUTERS, separated by commas]
    #[arg(long = "substituter", value_name = "URL", help_heading = CLOSURES)]
    pub substituters: Vec<String>,
    /// Key of such a cache, NAME:base64, more than once for several
    /// [env: HOIST_SUBSTITUTER_KEYS, separated by commas]
    #[arg(long = "substituter-key", value_name = "KEY", help_heading = CLOSURES)]
    pub substituter_keys: Vec<String>,
    /// What is said in the deployment
    #[command(flatten)]
    pub deployment: DeploymentArgs,
    /// How machines are followed
    #[command(flatten)]
    pub follow: FollowArgs,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// `hoist rollback`
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The machine
    pub agent: AgentName,
    /// Back to what this deployment brought: its id, or the last 8 digits of an id in the machine's history
    #[arg(long, value_name = "ID")]
    pub to: Option<String>,
    /// How the closure is activated
    #[command(flatten)]
    pub activation: ActivationArgs,
    /// What must hold afterwards
    #[command(flatten)]
    pub checks: CheckArgs,
    /// What is said in the deployment
    #[command(flatten)]
    pub deployment: DeploymentArgs,
    /// How machines are followed
    #[command(flatten)]
    pub follow: FollowArgs,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// `hoist status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The machines: those that are named, with all that they say of themselves; a selection such as 'web-*' or
    /// '@web&!@canary', or the whole fleet when nothing is given, a line for each
    #[arg(value_name = "SELECTION")]
    pub agents: Vec<Selector>,
    /// Only machines of which something holds
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Only machines whose newest deployment did not end well
    #[arg(long, help_heading = "Selection")]
    pub failed: bool,
    /// Write JSON: {"schema": 1, "fleet": …, "machines": [{"agent", "presence", "status": what the machine
    /// itself last said, as it is on its `status` topic}]}
    #[arg(long)]
    pub json: bool,
}

/// `hoist logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The machine
    pub agent: AgentName,
    /// Go on with the lines that come, until interrupted. Lines are not kept on the broker: without this, and for
    /// those that came before, there is only the end of the log that the machine's status carries
    #[arg(short, long)]
    pub follow: bool,
    /// Write JSON: one document, or with --follow one line for each line of the log
    #[arg(long)]
    pub json: bool,
}

/// What is said in the deployment itself.
#[derive(Debug, Args)]
#[command(next_help_heading = "Deployment")]
pub struct DeploymentArgs {
    /// How long the deployment is valid for machines that are offline
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "90d")]
    pub expires: std::time::Duration,
    /// What the deployment is for
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// The revision of the source [default: $GITHUB_SHA or $CI_COMMIT_SHA]
    #[arg(long, value_name = "TEXT")]
    pub revision: Option<String>,
    /// Where the CI run can be seen [default: from $GITHUB_RUN_ID, or $CI_JOB_URL]
    #[arg(long, value_name = "URL")]
    pub run_url: Option<String>,
    /// Who deploys [default: $GITHUB_ACTOR or $GITLAB_USER_LOGIN]
    #[arg(long, value_name = "NAME")]
    pub actor: Option<String>,
    /// Raise the epoch, to get out of a sequence that lies too far ahead; needs a key that may
    #[arg(long)]
    pub raise_epoch: bool,
}

/// How machines are followed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Following")]
pub struct FollowArgs {
    /// Publish, read back, and do not wait for machines; the same as --wait none
    #[arg(long = "async", conflicts_with = "wait")]
    pub is_async: bool,
    /// Which machines are waited for. One is done when its deployment has ended; where that takes a reboot
    /// (`staged`), it is done without it. One that is held is not waited for by `online`
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    pub wait: WaitFor,
    /// How long to publish and wait at most; machines go on by themselves
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "30m")]
    pub timeout: std::time::Duration,
    /// Write one JSON document at the end, and nothing else to stdout
    #[arg(long)]
    pub json: bool,
    /// Do not show progress or the machines' log lines
    #[arg(short, long)]
    pub quiet: bool,
}

/// Which machines are waited for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum WaitFor {
    /// Those that are online and not held; the others get it when they return, or are released
    #[default]
    Online,
    /// All
    All,
    /// None
    None,
}

/// The program: reads the command line, runs the command, and says what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.log.init(0);
    let (name, json) = match &cli.command {
        Command::Deploy(args) => ("deploy", args.follow.json),
        Command::Status(args) => ("status", args.json),
        Command::Logs(args) => ("logs", args.json),
        Command::Rollback(args) => ("rollback", args.follow.json),
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
            Command::Status(args) => commands::status::run(&args, cli.settings).await,
            Command::Logs(args) => commands::logs::run(&args, cli.settings).await,
            Command::Rollback(args) => commands::rollback::run(&args, cli.settings).await,
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
