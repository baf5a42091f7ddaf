//! Everything at once: a fleet with its authority, broker, cache and machines.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use camino::Utf8PathBuf;
use hoist_protocol::{
    AgentName, Channel, DeploymentId, State, Status, StorePath, System as Platform,
};
use serde_json::json;

use crate::authority::{Authority, Identity, SigningKeyFile};
use crate::broker::Broker;
use crate::builder::{Builder, Cache};
use crate::closure::{Closure, System};
use crate::engines::{self, Engine};
use crate::foreign::{Client, Watch};
use crate::forge::Forge;
use crate::machine::{Deployable, Machine, MachineParts, PLAIN_PROFILE};
use crate::namespace::Namespace;
use crate::process::{self, Finished, Process};
pub use crate::site::Site;
use crate::wait;

/// The fleet of every scenario.
pub const FLEET: &str = "prod";

/// How a world differs from the usual one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// The broker knows no trusted keys, and so lets everything through that the certificates allow.
    pub broker_without_keys: bool,
    /// Another engine in place of Hoist's broker.
    pub engine: Option<engines::Kind>,
}

/// A whole fleet on this computer.
pub struct World {
    // Dropped first: machines before what they depend on.
    watch: Watch,
    /// The broker.
    pub broker: Broker,
    /// The binary cache that machines use and trust.
    pub cache: Cache,
    /// Where closures are built.
    pub builder: Builder,
    /// The certificate authority.
    pub authority: Authority,
    /// The key whose signature machines trust.
    pub signing_key: SigningKeyFile,
    /// The certificate of the publisher `ci`.
    pub publisher: Identity,
    site: Site,
}

impl World {
    /// Makes authority, broker, cache and publisher.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn create(site: Site, options: Options) -> Result<Self> {
        let (dir, programs, logs) = (site.dir(), site.programs(), site.logs());
        let authority = Authority::create(&dir.join("certs"), FLEET, programs, logs)?;
        let publisher = authority.issue("publisher", "ci", &[])?;
        let watcher = authority.issue("publisher", "watcher", &[])?;
        let signing_key = authority.signing_key("ci")?;
        let keys = format!("trusted_keys = [{:?}]\n", signing_key.public.to_string());
        let folder = dir.join("broker");
        let broker = match options.engine {
            Some(kind) => Engine::start(kind, &folder, &authority, programs, logs)?.into(),
            None => {
                let identity = authority.issue("broker", "main", &["--host", "127.0.0.1"])?;
                let config = match options.broker_without_keys {
                    true => "",
                    false => &keys,
                };
                Broker::start(&folder, &identity, config, programs, logs)?
            }
        };
        let builder = Builder::create(&dir.join("builder"), programs, logs)?;
        let cache = Cache::create(&dir.join("cache"), "cache-1", &builder)?;
        let watch = Watch::start(
            &Client::new(watcher, "watcher.1", broker.port(), logs),
            FLEET,
        )?;
        let world = Self {
            watch,
            broker,
            cache,
            builder,
            authority,
            signing_key,
            publisher,
            site,
        };
        fs::write(
            world.publisher_config(),
            world.publisher_settings(&world.publisher, true),
        )?;
        Ok(world)
    }

    /// The folder.
    #[must_use]
    pub const fn site(&self) -> &Site {
        &self.site
    }

    /// What the fleet says of itself.
    #[must_use]
    pub const fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The configuration of `hoist` for the publisher `ci`.
    #[must_use]
    pub fn publisher_config(&self) -> Utf8PathBuf {
        self.site.dir().join("hoist.toml")
    }

    /// A configuration of `hoist` for whoever has `identity`.
    #[must_use]
    pub fn publisher_settings(&self, identity: &Identity, signs: bool) -> String {
        let key = match signs {
            true => format!("signing_key = {:?}\n", self.signing_key.path.as_str()),
            false => String::new(),
        };
        format!(
            "broker = {:?}\n{}{key}",
            self.broker.url(),
            identity.config()
        )
    }

    /// A machine with a certificate of its own; its agent does not run yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        self.machine_with(name, &self.cache.nix_conf()?)
    }

    /// A machine whose Nix is configured otherwise.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn machine_with(&self, name: &str, nix_conf: &str) -> Result<Machine> {
        let identity = self.authority.issue("agent", name, &[])?;
        self.broker.admit()?;
        let dir = self.site.dir().join("machines").join(name);
        let namespace = Namespace::create(&dir, self.site.programs(), nix_conf)?;
        let keys = format!(
            "trusted_keys = [{:?}]\n",
            self.signing_key.public.to_string()
        );
        let parts = MachineParts {
            name: AgentName::new(name)?,
            namespace,
            broker_port: self.broker.port(),
            config: identity.config() + &keys,
        };
        Machine::create(parts, self.site.programs(), self.site.logs())
    }

    /// A machine whose agent runs and has reported.
    ///
    /// # Errors
    /// When it does not report.
    pub fn running(&self, name: &str) -> Result<Machine> {
        let mut machine = self.machine(name)?;
        machine.start_agent()?;
        wait::until(&format!("{name} reports for the first time"), || {
            if !machine.agent()?.is_alive()? {
                bail!(
                    "the agent of {name} has ended: {}",
                    machine.agent()?.stderr()?
                );
            }
            self.watch.status(machine.name())
        })?;
        self.watch.wait_presence(machine.name(), "online")?;
        Ok(machine)
    }

    /// Builds `closure` and pushes it to the cache.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn push(&self, closure: &Closure) -> Result<StorePath> {
        let path = self.builder.build(closure)?;
        self.builder.push(&path, &self.cache)?;
        Ok(path)
    }

    /// Builds and pushes a system.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn system(&self, system: &System) -> Result<StorePath> {
        self.push(&system.closure())
    }

    /// Writes a spec.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn spec(
        &self,
        agents: &[(&AgentName, &StorePath)],
        check: Option<&StorePath>,
    ) -> Result<Utf8PathBuf> {
        let agents: serde_json::Map<String, serde_json::Value> = agents
            .iter()
            .map(|(name, path)| (name.to_string(), json!(path)))
            .collect();
        let mut spec = json!({ "agents": agents });
        if let Some(check) = check {
            spec["rollbackScript"] = json!({ Platform::current()?.to_string(): check });
        }
        let path = self
            .site
            .dir()
            .join(format!("spec-{}.json", uuid::Uuid::now_v7()));
        fs::write(&path, spec.to_string())?;
        Ok(path)
    }

    /// `hoist` with the configuration of the publisher `ci`, ready for its arguments.
    #[must_use]
    pub fn hoist_command(&self) -> Command {
        let mut command = process::command(&self.site.programs().publisher);
        command.env("HOIST_CONFIG", self.publisher_config());
        command
    }

    /// Runs `hoist` to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn hoist(&self, args: &[&str]) -> Result<Finished> {
        Finished::wait(self.start_hoist("hoist", args)?)
    }

    /// Runs `hoist` to its end where the closures are built, as CI does: its Nix knows what they hold.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn hoist_in_ci(&self, args: &[&str]) -> Result<Finished> {
        process::run("hoist-in-ci", self.ci_command(args), self.site.logs())
    }

    /// `hoist` as [`World::hoist_in_ci`] runs it.
    #[must_use]
    pub fn ci_command(&self, args: &[&str]) -> Command {
        let mut command = self
            .builder
            .command(self.site.programs().publisher.as_str());
        command
            .env("HOIST_CONFIG", self.publisher_config())
            .args(args);
        command
    }

    /// Starts `hoist`, its output under `name`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_hoist(&self, name: &str, args: &[&str]) -> Result<Process> {
        let mut command = self.hoist_command();
        command.args(args);
        Process::start(name, command, self.site.logs())
    }

    /// `hoist deploy` of one closure to one machine, waiting for the outcome.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn deploy(
        &self,
        machine: &impl Deployable,
        path: &StorePath,
        more: &[&str],
    ) -> Result<Finished> {
        let spec = self.spec(&[(machine.name(), path)], None)?;
        self.hoist(&[&["deploy", spec.as_str()], more].concat())
    }

    /// Signs `forge` with the fleet's key and publishes it with mosquitto's client; gives its id.
    ///
    /// # Errors
    /// When it cannot be signed, or the broker does not take it.
    pub fn publish(&self, forge: &Forge) -> Result<DeploymentId> {
        let topic = forge.machine.topic(Channel::Deploy).to_string();
        let bytes = forge.sign(self.signing_key.read()?)?;
        let id = forge.order.id;
        self.client(self.publisher.clone(), &format!("ci.{}", id.short()))
            .publish(&topic, &bytes, true)?
            .success()
            .with_context(|| format!("the broker does not take the deployment {id}"))?;
        Ok(id)
    }

    /// A deployment of `path` for `machine` as it would be published now.
    ///
    /// # Errors
    /// When a name is not valid.
    pub fn forge(&self, machine: &impl Deployable, path: &StorePath) -> Result<Forge> {
        Forge::new(FLEET, machine.name(), path)
    }

    /// Publishes `path` for `machine`, and waits for how it ends.
    ///
    /// # Errors
    /// When it does not end.
    pub fn carry_out(&self, machine: &impl Deployable, path: &StorePath) -> Result<Status> {
        let id = self.publish(&self.forge(machine, path)?)?;
        self.settled(machine, id)
    }

    /// Waits until `machine` is in `state` with the deployment `id`.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn reaches(&self, machine: &impl Deployable, id: DeploymentId, state: State) -> Result<()> {
        wait::until_true(&format!("{} is {state} with {id}", machine.name()), || {
            Ok(self.watch.states(machine.name(), id)?.contains(&state))
        })
    }

    /// Waits until the deployment `id` has ended on `machine`, and checks that everything that can be asked
    /// gives the same answer: status, history, what runs and what the profile names.
    ///
    /// # Errors
    /// When it does not end, or the answers differ.
    pub fn settled(&self, machine: &impl Deployable, id: DeploymentId) -> Result<Status> {
        let name = machine.name();
        let status = self
            .watch
            .wait_status(name, &format!("{id} has ended"), |status| {
                status.id == Some(id) && status.state.is_final()
            })?;
        wait::until_true(&format!("the history of {name} names {id}"), || {
            let history = self.watch.history(name)?;
            let entries: Vec<State> = history
                .iter()
                .flat_map(|history| &history.entries)
                .filter(|entry| entry.id == id)
                .map(|entry| entry.state)
                .collect();
            if entries.len() > 1 || entries.iter().any(|state| *state != status.state) {
                bail!(
                    "the history of {name} says {entries:?} of {id}, its status {}",
                    status.state
                );
            }
            Ok(!entries.is_empty())
        })?;
        let ended: Vec<State> = self
            .watch
            .states(name, id)?
            .into_iter()
            .filter(|state| state.is_final())
            .collect();
        if ended != [status.state] {
            bail!("{name} reported {ended:?} as the end of {id}");
        }
        let runs = match machine.current_system()? {
            Some(system) => Some(system),
            None => machine.profile(PLAIN_PROFILE)?,
        };
        if status.current_path != runs {
            bail!(
                "{name} runs {runs:?}, its status says {:?}",
                status.current_path
            );
        }
        Ok(status)
    }

    /// A foreign client with the certificate of `role` and `name`, which is issued now.
    ///
    /// # Errors
    /// When the certificate cannot be issued.
    pub fn foreigner(&self, role: &str, name: &str) -> Result<Client> {
        let identity = self.authority.issue(role, name, &[])?;
        self.broker.admit()?;
        Ok(self.client(identity, &client_id(role, name)))
    }

    /// A foreign client with `identity`, calling itself `id`.
    #[must_use]
    pub fn client(&self, identity: Identity, id: &str) -> Client {
        Client::new(identity, id, self.broker.port(), self.site.logs())
    }

    /// Fails when a log, or the command line of a process that runs now, holds a secret, or when a program
    /// panicked.
    ///
    /// # Errors
    /// Names the log.
    pub fn check_logs(&self) -> Result<()> {
        let mut secrets = self.authority.secrets()?;
        secrets.push(
            fs::read_to_string(self.cache.secret_file())?
                .trim()
                .to_owned(),
        );
        let mut texts = self.site.read_logs()?;
        for text in command_lines()? {
            texts.push(("a command line or environment".to_owned(), text));
        }
        for (name, text) in texts {
            if secrets
                .iter()
                .any(|secret| secret.len() >= 16 && text.contains(secret))
            {
                bail!("{name} holds a secret");
            }
            if text.contains("panicked at") && name.ends_with(".err") {
                bail!("{name} holds a panic");
            }
        }
        Ok(())
    }
}

fn client_id(role: &str, name: &str) -> String {
    match role {
        "agent" => name.to_owned(),
        _ => format!("{name}.1"),
    }
}

/// Arguments and environment of every process that may be looked into.
fn command_lines() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        for file in ["cmdline", "environ"] {
            // Ended meanwhile, or none of ours.
            if let Ok(bytes) = fs::read(path.join(file)) {
                lines.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
    Ok(lines)
}

/// Runs one scenario in a world of its own. When it fails the end of every log is printed. Afterwards no log may
/// hold a secret or a panic.
///
/// # Panics
/// When the scenario fails.
pub fn scenario(options: Options, run: impl FnOnce(&mut World) -> Result<()>) {
    let thread = std::thread::current();
    let name = thread
        .name()
        .and_then(|name| name.rsplit("::").next())
        .unwrap_or("scenario");
    let short: String = name.chars().take(30).collect();
    let outcome = Site::create(&short).and_then(|site| World::create(site, options));
    let mut world = match outcome {
        Ok(world) => world,
        Err(error) => panic!("the world of the scenario could not be made: {error:#}"),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        run(&mut world)?;
        world.check_logs().context("afterwards")
    }));
    if matches!(outcome, Ok(Ok(()))) {
        return;
    }
    match world.site.story() {
        Ok(story) => println!("{story}"),
        Err(error) => println!("the logs cannot be read: {error:#}"),
    }
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:#}"),
        Err(panic) => resume_unwind(panic),
    }
}
