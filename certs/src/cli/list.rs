//! `hoist-certs list`

use std::process::ExitCode;

use camino::Utf8PathBuf;
use hoist_certs::directory::{self, Listed};
use hoist_certs::{ENDS_SOON, program};
use hoist_protocol::Timestamp;
use serde_json::{Value, json};

use super::print;

/// List what the CA has issued, and what became of it
///
/// The newest of a name is last. Needs no private key.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  hoist-certs list
  hoist-certs list --json | jq -r '.[] | select(.status == \"ends-soon\") | .name'")]
pub(crate) struct List {
    /// The folder of the CA and of all that it issues
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: Utf8PathBuf,
    /// Print one JSON array, with an object for every certificate
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let listed = directory::issued(&self.dir)?;
        let now = program::now();
        if self.json {
            let objects: Vec<Value> = listed.iter().map(|listed| as_json(listed, now)).collect();
            print(&format!("{}\n", serde_json::to_string_pretty(&objects)?))?;
            return Ok(ExitCode::SUCCESS);
        }
        let widest = |width: fn(&Listed) -> usize| listed.iter().map(width).max().unwrap_or(0);
        let (names, fleets) = (
            widest(|listed| listed.certificate.name.as_str().len()),
            widest(|listed| listed.certificate.fleet.as_str().len()),
        );
        for listed in &listed {
            let certificate = &listed.certificate;
            print(&format!(
                "{:names$}  {:9}  {:fleets$}  {:32}  until {}  {}\n",
                certificate.name.as_str(),
                certificate.role,
                certificate.fleet.as_str(),
                certificate.serial,
                certificate.not_after,
                status(listed, now),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn status(listed: &Listed, now: Timestamp) -> &'static str {
    let not_after = listed.certificate.not_after;
    if listed.revoked.is_some() {
        "revoked"
    } else if now > not_after {
        "expired"
    } else if not_after.since(now) < ENDS_SOON {
        "ends-soon"
    } else {
        "valid"
    }
}

fn as_json(listed: &Listed, now: Timestamp) -> Value {
    let certificate = &listed.certificate;
    let revoked = listed.revoked.as_ref();
    json!({
        "name": certificate.name.as_str(),
        "role": certificate.role.as_str(),
        "fleet": certificate.fleet.as_str(),
        "serial": certificate.serial.to_string(),
        "issued": certificate.issued.to_string(),
        "not_after": certificate.not_after.to_string(),
        "status": status(listed, now),
        "revoked": revoked.map(|revoked| revoked.revoked.to_string()),
        "reason": revoked.map(|revoked| revoked.reason),
    })
}
