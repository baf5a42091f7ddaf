//! The command line.

mod activate;
mod doctor;
mod exit;
mod history;
mod hold;
mod order;
mod seen;
mod show;
mod status;

use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::{CommandFactory as _, Parser, Subcommand};
use hoist_certs::program::{LogArgs, ManArgs, report};

use crate::config::ConfigFlags;
use crate::{activator, runtime};
use exit::{EXIT_CODES, Exit};

/// Runs on each machine of a fleet: takes signed deployments from the broker, fetches, activates, confirms,
/// and goes back to what ran before when something does not hold.
///
/// It connects out only, and follows nobody but its trusted keys and who sits at the machine.
#[derive(Parser)]
#[command(name = "hoist-agent", version, max_term_width = 100, after_help = notes())]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

fn notes() -> String {
    format!(
        "{EXIT_CODES}\n\nAll but `run` and `man` are for whoever sits at the machine: as root, or as the user that the agent \
         runs as.\nLogs go to stderr; HOIST_LOG chooses what is logged."
    )
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent until SIGTERM or SIGINT; an activation under way goes on without it
    Run(Box<ConfigFlags>),
    /// Shows how this machine is: by the agent that runs, or by what it left when none does
    Status(status::StatusArgs),
    /// Lists what was deployed to this machine and how it ended, newest first
    History(history::HistoryArgs),
    /// Leaves this machine as it is: what publishers order waits until the hold ends
    Hold(hold::HoldArgs),
    /// Ends a hold: the newest deployment is taken
    Release(hold::ReleaseArgs),
    /// Goes back to what ran before, or to what a deployment brought, and waits for the outcome
    Rollback(activate::RollbackArgs),
    /// Runs a closure without a publisher and without a broker, and waits for the outcome
    ///
    /// It is fetched where it is missing, activated, tried by its health checks alone, and rolled back when it does
    /// not hold. A deployment that comes later takes its place as usual.
    Activate(Box<activate::ActivateArgs>),
    /// Looks for what keeps this machine from being deployed, and says what to do
    Doctor(doctor::DoctorArgs),
    /// Writes the manual pages into a folder
    Man(ManArgs),
    /// Carries out one job; the agent starts this itself
    #[command(hide = true)]
    Activator {
        /// The job's directory
        #[arg(long, value_name = "DIR")]
        job: Utf8PathBuf,
    },
}

impl Command {
    /// How much is logged: services tell what they do, people at a terminal hear what went wrong. `doctor` says
    /// itself what is wrong.
    const fn verbosity(&self) -> Option<u8> {
        match self {
            Self::Run(_) | Self::Activator { .. } => Some(1),
            Self::Doctor(_) => None,
            _ => Some(0),
        }
    }
}

/// Runs the program; an error goes to stderr, with its causes, once.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command, log } = Cli::parse();
    match command.verbosity() {
        Some(base) => log.init(base),
        None if log.verbose > 0 => log.init(0),
        None => {}
    }
    match run(command) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            eprintln!("hoist-agent: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(flags) => {
            runtime::run(flags.settings()?)?;
            Ok(Exit::Ok)
        }
        Command::Activator { job } => {
            activator::run(&job)?;
            Ok(Exit::Ok)
        }
        Command::Status(args) => wait_for(status::run(args)),
        Command::History(args) => history::run(&args),
        Command::Hold(args) => wait_for(hold::hold(args)),
        Command::Release(args) => wait_for(hold::release(args)),
        Command::Rollback(args) => wait_for(activate::rollback(args)),
        Command::Activate(args) => wait_for(activate::activate(*args)),
        Command::Doctor(args) => wait_for(doctor::run(args)),
        Command::Man(args) => {
            let written = args.write(Cli::command());
            written.with_context(|| format!("cannot write the pages into `{}`", args.folder))?;
            Ok(Exit::Ok)
        }
    }
}

fn wait_for(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(command);
    // A name lookup that hangs must not keep the program from ending.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_manual_page_for_every_command_but_the_agents_own() {
        let folder = tempfile::tempdir().unwrap();
        let man = Utf8PathBuf::from_path_buf(folder.path().join("man1")).unwrap();
        run(Command::Man(ManArgs {
            folder: man.clone(),
        }))
        .unwrap();
        let own = Cli::command();
        for command in own.get_subcommands() {
            let page = man.join(format!("hoist-agent-{}.1", command.get_name()));
            let is_own = command.is_hide_set();
            assert_eq!(page.is_file(), !is_own, "{page}");
        }
        let page = std::fs::read_to_string(man.join("hoist-agent-run.1")).unwrap();
        assert!(page.contains("trusted"), "{page}");
    }

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_the_program_has_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("130  interrupted"), "{help}");
        assert!(!help.contains("activator "), "{help}");
    }
}
