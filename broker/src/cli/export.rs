//! `hoist-broker export`

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::Subcommand;
use hoist_broker::Rules;
use hoist_broker::export::{
    self, ConfigFile, EnginePath, IssuedClients, Mosquitto, Nats, Node, Nodes, Seconds,
};

/// Write the configuration of another engine for the same fleet
///
/// Reads what `hoist-certs` has issued and revoked, and gives each holder on the engine what this broker would let it
/// do, as far as the engine can: docs/brokers.md lists what differs. Run it again when certificates were issued or
/// revoked, and let the engine read its configuration again. Writes no secret.
#[derive(clap::Args)]
pub(crate) struct Export {
    #[command(subcommand)]
    engine: Engine,
}

#[derive(Subcommand)]
enum Engine {
    /// A NATS server with JetStream, or a cluster of three and more
    Nats(NatsArgs),
    /// A mosquitto
    Mosquitto(MosquittoArgs),
}

#[derive(clap::Args)]
struct Common {
    /// The CA's folder, with the list of what it has issued and revoked; its private key is not needed
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: Utf8PathBuf,
    /// The folder to write the configuration to; it has to exist
    #[arg(long, value_name = "DIR")]
    out: Utf8PathBuf,
    /// The CA's certificate, on the computer where the engine runs
    #[arg(long, default_value = "/etc/hoist/ca.pem", value_name = "PATH")]
    ca: EnginePath,
    /// The broker's certificate there
    #[arg(long, default_value = "/etc/hoist/broker.pem", value_name = "PATH")]
    certificate: EnginePath,
    /// Its private key there
    #[arg(long, default_value = "/etc/hoist/broker.key", value_name = "PATH")]
    key: EnginePath,
    /// Monitors may read the log
    #[arg(long)]
    monitors_read_log: bool,
}

#[derive(clap::Args)]
#[command(after_help = "Example:
  hoist-broker export nats --out nats --node n1.example.org --node n2.example.org --node n3.example.org")]
struct NatsArgs {
    #[command(flatten)]
    common: Common,
    /// A computer of the cluster, by the host name in its certificate; one, or three and more
    #[arg(
        long = "node",
        required = true,
        value_name = "HOST[:MQTT-PORT[:CLUSTER-PORT]]"
    )]
    nodes: Vec<Node>,
    /// The address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "ADDRESS")]
    listen: IpAddr,
    /// The folder of what is retained, there
    #[arg(long, default_value = "/var/lib/nats", value_name = "PATH")]
    state: EnginePath,
}

#[derive(clap::Args)]
#[command(after_help = "Example:
  hoist-broker export mosquitto --out mosquitto --folder /etc/hoist")]
struct MosquittoArgs {
    #[command(flatten)]
    common: Common,
    /// Address and port to listen on
    #[arg(long, default_value = "0.0.0.0:8883", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where the files that are written will lie, on the computer where mosquitto runs
    #[arg(long, default_value = "/etc/hoist", value_name = "PATH")]
    folder: EnginePath,
    /// The CA's list of revoked certificates there; without it they stay valid
    #[arg(long, value_name = "PATH")]
    crl: Option<EnginePath>,
    /// The folder of what is retained, there
    #[arg(long, default_value = "/var/lib/mosquitto", value_name = "PATH")]
    state: EnginePath,
    /// Write down what is retained so often, and not after every change: for a fleet of more than some hundred
    /// machines, since mosquitto writes all of it each time
    #[arg(long, value_name = "SECONDS")]
    save_every: Option<Seconds>,
    /// Let two programs use one certificate at the same time; then any certificate can disconnect any client
    #[arg(long)]
    free_client_ids: bool,
}

impl Export {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.engine {
            Engine::Nats(args) => {
                let nats = Nats {
                    nodes: Nodes::new(args.nodes)?,
                    listen: args.listen,
                    ca: args.common.ca.clone(),
                    certificate: args.common.certificate.clone(),
                    key: args.common.key.clone(),
                    state: args.state,
                };
                args.common
                    .write(|issued, rules| nats.configuration(issued, rules))
            }
            Engine::Mosquitto(args) => {
                let mosquitto = Mosquitto {
                    listen: args.listen,
                    folder: args.folder,
                    ca: args.common.ca.clone(),
                    certificate: args.common.certificate.clone(),
                    key: args.common.key.clone(),
                    crl: args.crl,
                    state: args.state,
                    save_every: args.save_every,
                    free_client_ids: args.free_client_ids,
                };
                args.common
                    .write(|issued, rules| mosquitto.configuration(issued, rules))
            }
        }
    }
}

impl Common {
    fn write(
        &self,
        configuration: impl FnOnce(&IssuedClients, Rules) -> Vec<ConfigFile>,
    ) -> anyhow::Result<()> {
        let issued = IssuedClients::read(&self.dir)?;
        let rules = Rules {
            monitors_read_log: self.monitors_read_log,
        };
        let written = export::write(&self.out, &configuration(&issued, rules))?;
        let mut text = String::new();
        for path in written {
            text += &format!("{path}\n");
        }
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot print what was written")?;
        for name in issued.twofold() {
            eprintln!(
                "warning: `{name}` has a certificate that was revoked and one that holds; an engine that knows clients by \
                 their names lets in both, so revoke the other one too and issue one under another name"
            );
        }
        eprintln!("{} clients are let in", issued.len());
        Ok(())
    }
}
