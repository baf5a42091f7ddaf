//! The command line.

mod export;
mod store;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::{CommandFactory as _, Parser, Subcommand};
use hoist_broker::{Options, Server, Settings};
use hoist_certs::program::{LogArgs, ManArgs, read_toml, report};

use crate::service;

/// The MQTT broker between publishers and agents: durable retained messages behind mutual TLS.
///
/// Clients are who their certificate says: CN is the name, OU the role, O the fleet. Speaks MQTT 3.1.1 and 5.
#[derive(Parser)]
#[command(name = "hoist-broker", version, max_term_width = 100, after_help = HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

const HELP: &str = "\
Prints `ready: listening on ADDRESS:PORT` on stdout once clients can connect; logs go to stderr.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT
    Run(Box<Run>),
    Export(Box<export::Export>),
    Check(store::Check),
    Backup(store::Backup),
    Restore(store::Restore),
    /// Writes the manual pages into a folder
    Man(ManArgs),
}

#[derive(clap::Args)]
struct Run {
    /// A TOML file with the settings below, `-` written as `_`; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<Utf8PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Runs the program; errors go to stderr, with their causes, once.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.log.init(1);
    let done = match cli.command {
        Command::Run(run) => run.run(),
        Command::Export(export) => export.run(),
        Command::Check(check) => check.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Man(args) => manual(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

fn manual(args: &ManArgs) -> anyhow::Result<()> {
    let written = args.write(Cli::command());
    written.with_context(|| format!("cannot write the pages into `{}`", args.folder))
}

impl Run {
    fn run(self) -> anyhow::Result<()> {
        let options = match &self.config {
            Some(path) => self.options.or(read_toml(path)?),
            None => self.options,
        };
        let settings = Settings::try_from(options)?;
        service::raise_open_files();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let done = runtime.block_on(serve(settings));
        // What did not end in time does not keep the process alive.
        runtime.shutdown_background();
        done
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let stop = service::stop_signal().context("cannot listen for signals")?;
    let mut hangups = service::hangups().context("cannot listen for signals")?;
    let server = Server::bind(settings).await?;
    let (reload, reopen) = (server.reload(), server.reopen_audit_log());
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reload.now();
            reopen();
        }
    });
    let mut stdout = std::io::stdout();
    // Who started us may have closed its end; the service goes on.
    writeln!(stdout, "ready: listening on {}", server.local_addr()).ok();
    stdout.flush().ok();
    service::tell("READY=1");
    server
        .run(async {
            stop.await;
            service::tell("STOPPING=1");
        })
        .await?;
    Ok(())
}
