//! Other engines in the place of Hoist's broker, as `hoist-broker export` configures them: mosquitto, and a NATS
//! cluster of three.

pub mod access;
mod ports;
pub mod session;

use std::env;
use std::fs;
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Signal, kill_process};

use crate::authority::{Authority, Identity};
use crate::process::{self, Process};
use crate::programs::{Programs, on_path};
use crate::wait;
pub use ports::Port;

/// How many nodes a NATS cluster has.
const NODES: usize = 3;

/// Which engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// mosquitto.
    Mosquitto,
    /// A NATS cluster of three.
    Nats,
}

/// The certificate of a node, as a fleet's authority issues it.
const NODE: &str = "node";

/// A running engine; ended when dropped.
pub struct Engine {
    kind: Kind,
    servers: Vec<Server>,
    folder: Utf8PathBuf,
    export: Utf8PathBuf,
    arguments: Vec<String>,
    logs: Utf8PathBuf,
}

/// One process of an engine, on a port that it keeps over restarts.
struct Server {
    name: String,
    program: Utf8PathBuf,
    config: Utf8PathBuf,
    state: Utf8PathBuf,
    mqtt: Port,
    /// NATS's port for the other nodes: kept from others as long as this lives.
    cluster: Option<Port>,
    process: Process,
}

impl Engine {
    /// Starts the engine in `dir` for everybody whose certificate `authority` has issued, and waits until clients
    /// can connect.
    ///
    /// # Errors
    /// When a program is missing, or does not get ready.
    pub fn start(
        kind: Kind,
        dir: &Utf8Path,
        authority: &Authority,
        programs: &Programs,
        logs: &Utf8Path,
    ) -> Result<Self> {
        let hosts = ["--host", "localhost", "--host", "127.0.0.1"];
        let identity = authority.issue("broker", NODE, &[&hosts[..], &["--cluster"]].concat())?;
        let folder = dir.join("exported");
        fs::create_dir_all(&folder)?;
        let ports = Ports::reserve(kind)?;
        let mut engine = Self {
            kind,
            servers: Vec::new(),
            arguments: arguments(kind, &folder, dir, authority, &identity, &ports),
            export: programs.broker.clone(),
            folder,
            logs: logs.to_owned(),
        };
        engine.export()?;
        for (mqtt, cluster) in ports.0 {
            let server = engine.server(dir, mqtt, cluster)?;
            engine.servers.push(server);
        }
        engine.wait_listening()?;
        Ok(engine)
    }

    /// Which one it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The port for MQTT of each of its servers.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.servers
            .iter()
            .map(|server| server.mqtt.number())
            .collect()
    }

    /// The port for other nodes of each of its servers.
    #[must_use]
    pub fn cluster_ports(&self) -> Vec<u16> {
        let ports = self
            .servers
            .iter()
            .filter_map(|server| server.cluster.as_ref());
        ports.map(Port::number).collect()
    }

    /// The folder with its configuration.
    #[must_use]
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// The process of one of its servers.
    pub fn process(&mut self, server: usize) -> &mut Process {
        &mut self.servers[server].process
    }

    /// `kill -9` of one of its servers.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self, server: usize) -> Result<()> {
        self.servers[server].process.kill()
    }

    /// Starts a server again on its port, and waits until it listens.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn restart(&mut self, server: usize) -> Result<()> {
        let Server {
            name,
            program,
            config,
            ..
        } = &self.servers[server];
        let process = start(name, program, config, &self.logs)?;
        self.servers[server].process = process;
        self.wait_listening()
    }

    /// `kill -9` of all servers, and all that they have kept is gone; then they start again.
    ///
    /// # Errors
    /// When they do not get ready.
    pub fn lose_everything(&mut self) -> Result<()> {
        for server in &mut self.servers {
            server.process.kill()?;
        }
        for server in &mut self.servers {
            fs::remove_dir_all(&server.state)?;
            fs::create_dir(&server.state)?;
            let Server {
                name,
                program,
                config,
                ..
            } = server;
            server.process = start(name, program, config, &self.logs)?;
        }
        self.wait_listening()
    }

    /// Exports again, for who has got a certificate meanwhile, and lets the servers read it.
    ///
    /// # Errors
    /// When the export fails, or a server does not say that it has read its configuration.
    pub fn reload(&self) -> Result<()> {
        self.export()?;
        let said = match self.kind {
            Kind::Mosquitto => "Reloading config.",
            Kind::Nats => "Reloaded server configuration",
        };
        for Server { name, process, .. } in &self.servers {
            let before = process.stderr()?.matches(said).count();
            kill_process(process.pid(), Signal::HUP)
                .with_context(|| format!("{name} had ended"))?;
            wait::until_true(&format!("{name} has read its configuration again"), || {
                Ok(process.stderr()?.matches(said).count() > before)
            })?;
        }
        Ok(())
    }

    fn export(&self) -> Result<()> {
        let mut command = process::command(&self.export);
        command.arg("export").args(&self.arguments);
        process::run("hoist-broker-export", command, &self.logs)?
            .success()
            .map(drop)
    }

    /// Starts the server on the port `mqtt`.
    fn server(&self, dir: &Utf8Path, mqtt: Port, cluster: Option<Port>) -> Result<Server> {
        let state = dir.join("state");
        let (name, program, config, state) = match self.kind {
            Kind::Mosquitto => {
                // As root it would drop to a user that cannot read the test's folder.
                let user = match rustix::process::geteuid().is_root() {
                    true => "user root\n",
                    false => "",
                };
                let config = dir.join("run.conf");
                fs::write(&config, format!("{user}include_dir {}\n", self.folder))?;
                let program = on_path("mosquitto", "mosquitto")?;
                ("mosquitto".to_owned(), program, config, state)
            }
            Kind::Nats => {
                let name = format!("localhost-{}", mqtt.number());
                let config = self.folder.join(format!("{name}.conf"));
                // Each node has the same place for its data, on a computer of its own. These share one.
                let text = fs::read_to_string(&config)?;
                let own = dir.join(&name);
                let config = self.folder.join(format!("{name}.run"));
                fs::write(&config, text.replace(state.as_str(), own.as_str()))?;
                (name, nats_server()?, config, own)
            }
        };
        fs::create_dir_all(&state)?;
        let process = start(&name, &program, &config, &self.logs)?;
        Ok(Server {
            name,
            program,
            config,
            state,
            mqtt,
            cluster,
            process,
        })
    }

    fn wait_listening(&mut self) -> Result<()> {
        for server in &mut self.servers {
            let port = server.mqtt.number();
            wait::until_true(&format!("{} listens", server.name), || {
                let process = &mut server.process;
                ensure!(
                    process.is_alive()?,
                    "it ended: {}{}",
                    process.stdout()?,
                    process.stderr()?
                );
                Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
            })?;
        }
        Ok(())
    }
}

/// NATS as Debian has it, or the program that `HOIST_TEST_NATS` names, to try another version.
fn nats_server() -> Result<Utf8PathBuf> {
    match env::var("HOIST_TEST_NATS") {
        Ok(program) => Ok(program.into()),
        Err(_) => on_path("nats-server", "nats-server"),
    }
}

fn start(name: &str, program: &Utf8Path, config: &Utf8Path, logs: &Utf8Path) -> Result<Process> {
    let mut command = process::command(program);
    command.args(["-c", config.as_str()]);
    Process::start(name, command, logs)
}

/// The ports of each server: for MQTT, and for NATS's other nodes.
struct Ports(Vec<(Port, Option<Port>)>);

impl Ports {
    fn reserve(kind: Kind) -> Result<Self> {
        Ok(Self(match kind {
            Kind::Mosquitto => vec![(Port::reserve()?, None)],
            Kind::Nats => (0..NODES)
                .map(|_| Ok((Port::reserve()?, Some(Port::reserve()?))))
                .collect::<Result<_>>()?,
        }))
    }
}

/// What `hoist-broker export` is called with.
fn arguments(
    kind: Kind,
    folder: &Utf8Path,
    dir: &Utf8Path,
    authority: &Authority,
    identity: &Identity,
    ports: &Ports,
) -> Vec<String> {
    let state = dir.join("state");
    let pairs = [
        ("--dir", authority.dir()),
        ("--out", folder),
        ("--ca", &identity.ca),
        ("--certificate", &identity.certificate),
        ("--key", &identity.key),
        ("--state", &state),
    ];
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    for (name, path) in pairs {
        add(name, path.to_string());
    }
    for (mqtt, cluster) in &ports.0 {
        match cluster {
            Some(cluster) => {
                add(
                    "--node",
                    format!("localhost:{}:{}", mqtt.number(), cluster.number()),
                );
            }
            None => {
                add("--listen", format!("127.0.0.1:{}", mqtt.number()));
                add("--folder", folder.to_string());
            }
        }
    }
    let engine = match kind {
        Kind::Mosquitto => "mosquitto",
        Kind::Nats => {
            add("--listen", "127.0.0.1".to_owned());
            "nats"
        }
    };
    arguments.insert(0, engine.to_owned());
    arguments
}
