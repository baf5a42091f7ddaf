//! `hoist-certs revoke` and `hoist-certs crl`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use hoist_certs::authority::{RevocationReason, days};
use hoist_certs::directory::{self, WrittenList};
use hoist_certs::files::Overwrite;

use super::print;

/// Take certificates back, and write the revocation list (CRL)
///
/// Everything that holds today and was issued to the name is revoked, or the one with the serial number. Brokers
/// let nobody in with it, and end what is connected, within seconds of getting the new `crl.pem`. A new
/// certificate for the same name can be issued afterwards; revoking cannot be undone.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  hoist-certs revoke web-1
  hoist-certs revoke 4f0c21c5a0 --reason key-compromise")]
pub(crate) struct Revoke {
    /// A name, or a serial number as `hoist-certs list` shows it
    #[arg(value_name = "NAME|SERIAL")]
    whom: String,
    /// Why; it is only noted
    #[arg(long, value_enum, default_value_t)]
    reason: RevocationReason,
    #[command(flatten)]
    list: List,
}

/// Write the revocation list (CRL)
///
/// Writes `crl.pem` into the CA's folder, for every broker of the fleet. It is written when there is a reason: what
/// is revoked has changed, or half of its time is over. Run it from time to time, a monthly job will do: by
/// its nextUpdate a broker expects a newer one.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  hoist-certs crl && scp certs/crl.pem broker:/etc/hoist/")]
pub(crate) struct CrlCommand {
    /// Write it in any case, also in the place of a file that is something else
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    list: List,
}

#[derive(clap::Args)]
struct List {
    /// The folder of the CA and of all that it issues
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: Utf8PathBuf,
    /// How many days the list holds (its nextUpdate)
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3652))]
    days: u32,
}

impl List {
    fn valid_for(&self) -> Duration {
        days(self.days)
    }
}

impl Revoke {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let dir = &self.list.dir;
        let done = directory::revoke(dir, &self.whom, self.reason, self.list.valid_for());
        let (revoked, list) = done.with_context(|| format!("cannot revoke `{}`", self.whom))?;
        for certificate in &revoked {
            print(&format!(
                "revoked  {} {} of fleet {}, serial {}, valid until {}\n",
                certificate.role,
                certificate.name,
                certificate.fleet,
                certificate.serial,
                certificate.not_after,
            ))?;
        }
        if revoked.is_empty() {
            print("it was revoked before\n")?;
        }
        show(&list)
    }
}

impl CrlCommand {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let overwrite = if self.force {
            Overwrite::Yes
        } else {
            Overwrite::No
        };
        show(&directory::write_list(
            &self.list.dir,
            self.list.valid_for(),
            overwrite,
        )?)
    }
}

fn show(list: &WrittenList) -> anyhow::Result<ExitCode> {
    let what = if list.is_new {
        "give it to every broker"
    } else {
        "it is good as it is"
    };
    print(&format!(
        "{}  the CRL, {} revoked, until {}: {what}\n",
        list.path, list.len, list.next_update,
    ))?;
    Ok(ExitCode::SUCCESS)
}
