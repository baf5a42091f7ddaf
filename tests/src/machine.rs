//! A machine with an agent: can be killed in part, put to sleep, cut off and have its power cut.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{AgentName, StorePath};
use rustix::process::{Pid, Signal};

use crate::closure::{NETWORK_CUT, NETWORK_STALLED};
use crate::namespace::{self, Namespace};
use crate::process::{self, Finished, Process};
use crate::programs::Programs;
use crate::proxy::Proxy;
use crate::wait;

/// Where the made-up systems write down what they do; see `switch-to-configuration.sh`.
const NOTES: &str = "/nix/var/hoist-test";

/// The profile of a NixOS system.
pub const SYSTEM_PROFILE: &str = "/nix/var/nix/profiles/system";

/// The profile of everything else, as agents are configured here.
pub const PLAIN_PROFILE: &str = "/nix/var/nix/profiles/hoist";

/// How long a machine is watched for something that must not happen.
const WATCHED: Duration = Duration::from_millis(600);

/// What can be deployed to: a machine, however it is made.
pub trait Deployable {
    /// Its name.
    fn name(&self) -> &AgentName;

    /// What runs: where `/run/current-system` leads.
    ///
    /// # Errors
    /// When it leads somewhere else than to a store path.
    fn current_system(&self) -> Result<Option<StorePath>>;

    /// What the profile names.
    ///
    /// # Errors
    /// When its links are damaged.
    fn profile(&self, profile: &str) -> Result<Option<StorePath>>;
}

impl Deployable for Machine {
    fn name(&self) -> &AgentName {
        &self.name
    }

    fn current_system(&self) -> Result<Option<StorePath>> {
        self.current_system()
    }

    fn profile(&self, profile: &str) -> Result<Option<StorePath>> {
        self.profile(profile)
    }
}

/// What a machine is made of.
pub struct MachineParts {
    /// Its name.
    pub name: AgentName,
    /// Its folder and its Nix.
    pub namespace: Namespace,
    /// Its way to the broker's port.
    pub broker_port: u16,
    /// Its certificates, keys and whatever else its agent's configuration holds, without `broker` and `state`.
    pub config: String,
}

/// One machine; switched off when dropped.
pub struct Machine {
    name: AgentName,
    namespace: Namespace,
    proxy: Proxy,
    program: Utf8PathBuf,
    logs: Utf8PathBuf,
    config: Utf8PathBuf,
    agent: Option<Process>,
    environment: Vec<(String, String)>,
}

impl Machine {
    /// Sets it up; its agent does not run yet.
    ///
    /// # Errors
    /// When its folder cannot be written.
    pub fn create(parts: MachineParts, programs: &Programs, logs: &Utf8Path) -> Result<Self> {
        let MachineParts {
            name,
            namespace,
            broker_port,
            config: rest,
        } = parts;
        let proxy = Proxy::start(
            broker_port,
            namespace.host_path(NETWORK_CUT),
            namespace.host_path(NETWORK_STALLED),
        )?;
        let config = namespace.dir().join("agent.toml");
        let broker = format!("mqtts://127.0.0.1:{}", proxy.port());
        let state = namespace.dir().join("state");
        fs::write(
            &config,
            format!("broker = {broker:?}\nstate = {:?}\n{rest}", state.as_str()),
        )?;
        Ok(Self {
            name,
            namespace,
            proxy,
            program: programs.agent.clone(),
            logs: logs.to_owned(),
            config,
            agent: None,
            environment: Vec::new(),
        })
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &AgentName {
        &self.name
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Utf8Path {
        self.namespace.dir()
    }

    /// Its agent's configuration.
    #[must_use]
    pub fn config(&self) -> &Utf8Path {
        &self.config
    }

    /// The folder of its agent's ledger and jobs.
    #[must_use]
    pub fn state(&self) -> Utf8PathBuf {
        self.dir().join("state")
    }

    /// Gives its agent this environment variable too, from its next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Its network.
    #[must_use]
    pub const fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// A command that runs inside of it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// Runs a program inside of it to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Finished> {
        let mut command = self.command(program);
        command.args(args);
        process::run(&format!("{}-run", self.name), command, &self.logs)
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start_agent(&mut self) -> Result<()> {
        if let Some(agent) = &mut self.agent
            && agent.is_alive()?
        {
            bail!("the agent of {} runs already", self.name);
        }
        let mut command = self.command(self.program.as_str());
        command
            .args(["run", "--config", self.config.as_str()])
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.agent = Some(Process::start(
            &format!("agent-{}", self.name),
            command,
            &self.logs,
        )?);
        Ok(())
    }

    /// The agent that was started last.
    ///
    /// # Errors
    /// When none was.
    pub fn agent(&mut self) -> Result<&mut Process> {
        self.agent
            .as_mut()
            .with_context(|| format!("no agent of {} was started", self.name))
    }

    /// SIGTERM to the agent, as a service manager sends it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent()?.terminate().map(drop)
    }

    /// `kill -9` of the agent alone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent()?.kill()
    }

    /// Every process that runs on it now; those that have ended and wait to be collected do not count.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut processes = self.namespace.processes()?;
        processes.retain(|pid| !namespace::is_zombie(*pid));
        Ok(processes)
    }

    /// The activators that run now.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn activators(&self) -> Result<Vec<Pid>> {
        self.namespace.processes_with_argument("activator")
    }

    /// `kill -9` of the activator, which must run; its activation's own processes live on.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill_activator(&self) -> Result<()> {
        let pids = wait::until(&format!("an activator runs on {}", self.name), || {
            let pids = self.activators()?;
            Ok((!pids.is_empty()).then_some(pids))
        })?;
        for pid in pids {
            rustix::process::kill_process(pid, Signal::KILL).context("the activator had ended")?;
        }
        Ok(())
    }

    /// Freezes every process and takes the network away, as closing a laptop's lid does.
    ///
    /// # Errors
    /// When that does not work.
    pub fn sleep(&self) -> Result<()> {
        self.namespace.signal_all(Signal::STOP)?;
        self.cut_network()?;
        wait::until_true("its connections are gone", || {
            Ok(self.proxy.connections() == 0)
        })
    }

    /// Opens the lid.
    ///
    /// # Errors
    /// When that does not work.
    pub fn wake(&self) -> Result<()> {
        self.restore_network()?;
        self.namespace.signal_all(Signal::CONT)
    }

    /// Ends its connections, and lets none come about.
    ///
    /// # Errors
    /// When the file that stands for it cannot be written.
    pub fn cut_network(&self) -> Result<()> {
        Ok(fs::write(self.namespace.host_path(NETWORK_CUT), "")?)
    }

    /// Lets connections come about again.
    ///
    /// # Errors
    /// When the file that stands for it cannot be removed.
    pub fn restore_network(&self) -> Result<()> {
        Ok(fs::remove_file(self.namespace.host_path(NETWORK_CUT))?)
    }

    /// Kills every process at once. What is in memory is gone, `/run` with it.
    ///
    /// # Errors
    /// When a process remains.
    pub fn cut_power(&mut self) -> Result<()> {
        self.namespace.kill_all()?;
        if let Some(mut agent) = self.agent.take() {
            agent.wait()?;
        }
        let run = self.namespace.host_path("/run");
        for entry in fs::read_dir(&run)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Boots what the boot loader names, and starts the agent.
    ///
    /// # Errors
    /// When the agent cannot be started.
    pub fn boot(&mut self) -> Result<()> {
        self.namespace.new_boot_id()?;
        if let Some(system) = self.boot_default()? {
            for link in ["booted-system", "current-system"] {
                std::os::unix::fs::symlink(
                    system.as_str(),
                    self.namespace.host_path("/run").join(link),
                )?;
            }
        }
        self.start_agent()
    }

    /// What runs: where `/run/current-system` leads.
    ///
    /// # Errors
    /// When it leads somewhere else than to a store path.
    pub fn current_system(&self) -> Result<Option<StorePath>> {
        self.link("/run/current-system")
    }

    /// What the boot loader would start.
    ///
    /// # Errors
    /// When it names no store path.
    pub fn boot_default(&self) -> Result<Option<StorePath>> {
        match fs::read_to_string(self.namespace.host_path(NOTES).join("boot-default")) {
            Ok(path) => Ok(Some(StorePath::new(path)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the profile names.
    ///
    /// # Errors
    /// When its links are damaged.
    pub fn profile(&self, profile: &str) -> Result<Option<StorePath>> {
        self::profile(&self.namespace.host_path(profile))
    }

    /// The numbers and paths of the generations of a profile, oldest first.
    ///
    /// # Errors
    /// When its links are damaged.
    pub fn generations(&self, profile: &str) -> Result<Vec<(u32, StorePath)>> {
        generations(&self.namespace.host_path(profile))
    }

    /// Whether its store has `path`.
    #[must_use]
    pub fn has(&self, path: &StorePath) -> bool {
        self.namespace.host_path(path.as_str()).exists()
    }

    /// Every activation so far, as `VERSION ACTION`, in order.
    ///
    /// # Errors
    /// When the notes cannot be read.
    pub fn activations(&self) -> Result<Vec<String>> {
        match fs::read_to_string(self.namespace.host_path(NOTES).join("activations")) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the action (`test`, `boot`) of the system `version` stop at its beginning, from now on.
    ///
    /// # Errors
    /// When the file that stands for it cannot be written.
    pub fn gate(&self, version: &str, action: &str) -> Result<Gate> {
        let notes = self.namespace.host_path(NOTES);
        Gate::close(&notes, self.name.as_str(), version, action)
    }

    /// Fails when `happened` becomes true within a short while. It can only find what goes wrong soon; that
    /// nothing goes wrong at all is what the agent's simulator shows.
    ///
    /// # Errors
    /// When it has happened.
    pub fn never(&self, what: &str, mut happened: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let start = std::time::Instant::now();
        while start.elapsed() < WATCHED {
            if happened(self)? {
                bail!("{} on {}, which must not happen", what, self.name);
            }
            std::thread::sleep(wait::POLL);
        }
        Ok(())
    }

    fn link(&self, path: &str) -> Result<Option<StorePath>> {
        match self.namespace.host_path(path).read_link_utf8() {
            Ok(target) => Ok(Some(StorePath::new(target.into_string())?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.namespace.kill_all() {
            eprintln!("{} could not be switched off: {error:#}", self.name);
        }
    }
}

/// A place in an activation where it stops until the gate opens. Opened when dropped.
pub struct Gate {
    what: String,
    closed: Utf8PathBuf,
    reached: Utf8PathBuf,
}

impl Gate {
    /// Closes the gate before `action` of the system `version` on `machine`, whose notes lie in `notes`.
    pub(crate) fn close(
        notes: &Utf8Path,
        machine: &str,
        version: &str,
        action: &str,
    ) -> Result<Self> {
        let gate = Self {
            what: format!("{version} {action} on {machine}"),
            closed: notes.join("gates").join(format!("{version}.{action}")),
            reached: notes.join("reached").join(format!("{version}.{action}")),
        };
        for file in [&gate.closed, &gate.reached] {
            fs::create_dir_all(file.parent().context("a gate lies in a folder")?)?;
        }
        if gate.reached.exists() {
            fs::remove_file(&gate.reached)?;
        }
        fs::write(&gate.closed, "")?;
        Ok(gate)
    }

    /// Waits until the activation stands at the gate.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_reached(&self) -> Result<()> {
        wait::until_true(&format!("the activation reaches {}", self.what), || {
            Ok(self.reached.exists())
        })
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When the file that stands for it cannot be removed.
    pub fn open(self) -> Result<()> {
        Ok(fs::remove_file(&self.closed)?)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.closed.exists()
            && let Err(error) = fs::remove_file(&self.closed)
        {
            eprintln!("the gate {} could not be opened: {error}", self.what);
        }
    }
}

/// What the profile `link`, a path on the host, names.
pub(crate) fn profile(link: &Utf8Path) -> Result<Option<StorePath>> {
    let Ok(generation) = link.read_link_utf8() else {
        return Ok(None);
    };
    let folder = link.parent().context("a profile lies in a folder")?;
    let target = folder.join(generation).read_link_utf8()?;
    Ok(Some(StorePath::new(target.into_string())?))
}

/// The numbers and paths of the generations of the profile `link`, oldest first.
pub(crate) fn generations(link: &Utf8Path) -> Result<Vec<(u32, StorePath)>> {
    let (folder, name) = link
        .parent()
        .zip(link.file_name())
        .context("a profile lies in a folder")?;
    let mut found = Vec::new();
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        let number = entry
            .file_name()
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-')?.strip_suffix("-link")?.parse().ok());
        if let Some(number) = number {
            found.push((
                number,
                StorePath::new(entry.path().read_link_utf8()?.into_string())?,
            ));
        }
    }
    found.sort();
    Ok(found)
}
