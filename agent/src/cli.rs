//! The command line.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use hoist_certs::program::{LogArgs, report};

use crate::config::ConfigFlags;
use crate::{activator, runtime};

/// Runs on each machine of a fleet: takes signed deployments from the broker, fetches, activates, confirms,
/// and goes back to what ran before when something does not hold.
///
/// It connects out only, and follows nobody but its trusted keys.
#[derive(Parser)]
#[command(name = "hoist-agent", version, max_term_width = 100, after_help = NOTES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

const NOTES: &str = "\
Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong usage.
Logs go to stderr; HOIST_LOG chooses what is logged.";

#[derive(Subcommand)]
enum Command {
    /// Runs the agent until SIGTERM or SIGINT; an activation under way goes on without it
    Run(Box<ConfigFlags>),
    /// Carries out one job; the agent starts this itself
    #[command(hide = true)]
    Activator {
        /// The job's directory
        #[arg(long, value_name = "DIR")]
        job: Utf8PathBuf,
    },
}

/// Runs the program; an error goes to stderr, with its causes, once.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.log.init(1);
    let result = match cli.command {
        Command::Run(flags) => run(*flags),
        Command::Activator { job } => activator::run(&job).map_err(anyhow::Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hoist-agent: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(flags: ConfigFlags) -> anyhow::Result<()> {
    let settings = flags.settings()?;
    Ok(runtime::run(settings)?)
}
