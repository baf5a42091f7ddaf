//! The command line.

mod init;
mod issue;
mod list;
mod revoke;
mod show;
mod signing_key;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::{CommandFactory as _, Parser, Subcommand};
use hoist_certs::authority::{Validity, days};
use hoist_certs::files::Overwrite;
use hoist_certs::program::{LogArgs, ManArgs, report};

/// Makes and shows the certificates and keys of a fleet.
///
/// A fleet has one certificate authority (CA), made by `init`. With it, `issue` makes a certificate for every
/// machine, person and broker; its subject says who somebody is: CN is the name, OU the role, O the fleet.
/// Deployments are signed by keys of their own, made by `signing-key`, so that neither the broker nor the CA
/// can deploy anything.
#[derive(Parser)]
#[command(name = "hoist-certs", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

const EXAMPLES: &str = "\
Examples:
  hoist-certs init --fleet prod                            certs/ca.pem, certs/ca.key
  hoist-certs issue broker main --host mqtt.example.org    certs/broker-main.pem, .key
  hoist-certs issue agent web-1                            certs/agent-web-1.pem, .key
  hoist-certs issue publisher ci                           certs/publisher-ci.pem, .key
  hoist-certs signing-key ci                               certs/ci.signing-key, .pub
  hoist-certs show certs/*.pem                             whose they are, when they end
  hoist-certs list                                         what was issued, and what became of it
  hoist-certs revoke web-1                                 certs/crl.pem, for every broker

Exit codes: 0 done, 1 failed, 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Issue(issue::Issue),
    SigningKey(signing_key::SigningKeyCommand),
    Show(show::Show),
    List(list::List),
    Revoke(revoke::Revoke),
    Crl(revoke::CrlCommand),
    /// Writes the manual pages into a folder
    Man(ManArgs),
}

/// Where files go, and whether they may replace others.
#[derive(clap::Args)]
struct Output {
    /// The folder of the CA and of all that it issues
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: Utf8PathBuf,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
}

impl Output {
    const fn overwrite(&self) -> Overwrite {
        if self.force {
            Overwrite::Yes
        } else {
            Overwrite::No
        }
    }
}

/// From an hour ago, for clocks that are behind, until so many days from now.
fn for_days(count: u32) -> Validity {
    days(count).into()
}

/// Runs the program; errors go to stderr, with their causes, once.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.log.init(0);
    let done = match cli.command {
        Command::Init(command) => command.run(),
        Command::Issue(command) => command.run(),
        Command::SigningKey(command) => command.run(),
        Command::Show(command) => command.run(),
        Command::List(command) => command.run(),
        Command::Revoke(command) => command.run(),
        Command::Crl(command) => command.run(),
        Command::Man(args) => manual(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

fn manual(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let written = args.write(Cli::command());
    written.with_context(|| format!("cannot write the pages into `{}`", args.folder))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints to stdout; a reader that has gone (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
