//! `hoist-certs issue`

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use hoist_certs::Role;
use hoist_certs::authority::Host;
use hoist_certs::directory::{self, Request};
use hoist_protocol::{AgentName, FleetName};

use super::{Output, for_days, print};

/// Issue a certificate with a new private key
///
/// Writes `ROLE-NAME.pem` and `ROLE-NAME.key` into the CA's folder. A name means one holder for ever, over all
/// roles and fleets of the CA: `issued.jsonl` beside the CA remembers them, so keep it with the CA. Run it
/// again with --force to renew.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  hoist-certs issue agent web-1
  hoist-certs issue agent web-1 --force --days 90
  hoist-certs issue broker main --host mqtt.example.org --host 10.0.0.5
  hoist-certs issue broker n1 --host n1.example.org --cluster")]
pub(crate) struct Issue {
    #[command(subcommand)]
    whose: Whose,
}

#[derive(Subcommand)]
enum Whose {
    /// A machine: reads its own deployments, writes its own reports
    Agent(Client),
    /// CI or an operator: writes deployments of the fleet, reads all of the fleet
    Publisher(Client),
    /// A dashboard: reads the fleet's reports, writes nothing
    Monitor(Client),
    /// Whoever cleans up: clears what a removed machine left behind
    Admin(Client),
    /// The broker itself
    Broker(Broker),
}

#[derive(clap::Args)]
struct Client {
    /// The name: 1 to 63 of a-z, 0-9, - and _
    name: AgentName,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Broker {
    /// The name: 1 to 63 of a-z, 0-9, - and _
    name: AgentName,
    /// A DNS name or IP address that clients connect to; repeat it for several
    #[arg(long = "host", required = true, value_name = "HOST")]
    hosts: Vec<Host>,
    /// It is one node of a cluster, such as NATS's: nodes are also clients of each other
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Common {
    /// How many days it is valid [default: 365, or as long as the CA]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_525))]
    days: Option<u32>,
    /// The fleet, when it is not the one that the CA was made for
    #[arg(long)]
    fleet: Option<FleetName>,
    #[command(flatten)]
    output: Output,
}

impl Issue {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let node = matches!(&self.whose, Whose::Broker(broker) if broker.cluster);
        let (role, name, hosts, common) = match self.whose {
            Whose::Agent(client) => (Role::Agent, client.name, Vec::new(), client.common),
            Whose::Publisher(client) => (Role::Publisher, client.name, Vec::new(), client.common),
            Whose::Monitor(client) => (Role::Monitor, client.name, Vec::new(), client.common),
            Whose::Admin(client) => (Role::Admin, client.name, Vec::new(), client.common),
            Whose::Broker(broker) => (Role::Broker, broker.name, broker.hosts, broker.common),
        };
        let request = Request {
            role,
            name,
            fleet: common.fleet,
            hosts,
            node,
            validity: common.days.map(for_days),
        };
        let written = directory::issue(&common.output.dir, &request, common.output.overwrite())
            .with_context(|| format!("cannot issue {role} {}", request.name))?;
        print(&format!(
            "{}  the certificate of {role} {}, valid until {}\n\
             {}  its private key: move it to where it is used, readable by its owner alone\n",
            written.certificate, request.name, written.not_after, written.key,
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
