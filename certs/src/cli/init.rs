//! `hoist-certs init`

use std::process::ExitCode;

use hoist_certs::directory;
use hoist_protocol::FleetName;

use super::{Output, for_days, print};

/// Make the certificate authority (CA) of a fleet
///
/// Writes `ca.pem`, which every machine, publisher and broker of the fleet gets, and `ca.key`, which stays
/// here: whoever has it can pass as anybody. With --force an existing CA is replaced, and all that it issued
/// is worth nothing to those who get the new `ca.pem`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  hoist-certs init --fleet prod --dir certs")]
pub(crate) struct Init {
    /// What the fleet is called: the level of all its topics
    #[arg(long)]
    fleet: FleetName,
    /// How many days the CA is valid
    #[arg(long, default_value_t = 3652, value_parser = clap::value_parser!(u32).range(1..=36_525))]
    days: u32,
    #[command(flatten)]
    output: Output,
}

impl Init {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let written = directory::init(
            &self.output.dir,
            &self.fleet,
            for_days(self.days),
            self.output.overwrite(),
        )?;
        print(&format!(
            "{}  the CA of fleet {}, valid until {}: give it to every machine, publisher and broker\n\
             {}  its private key: keep it here, and back it up; whoever has it can pass as anybody\n",
            written.certificate, self.fleet, written.not_after, written.key,
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
