//! Machines that boot: systemd, Nix 2.26 and a NixOS-like system in a container, each with its own `/nix` and `/boot`.
//!
//! A [`Booted`] machine starts what its boot loader names, by the `init` of that system; the agent is the unit that
//! `nix/modules/agent.nix` makes. All machines share one root file system, which `tests/setup.sh` makes once, and keep
//! what they change in a folder of the scenario: it survives a reboot and a power cut, and not the scenario.
//!
//! They use the host's network; what keeps one from the broker is the proxy of the harness.

mod cgroup;
mod container;
mod home;
mod root;
mod system;
mod user;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{AgentName, StorePath};
use rustix::process::Pid;
use serde_json::json;

use crate::machine::{Deployable, Gate, SYSTEM_PROFILE, generations, profile};
use crate::process::{self, Finished};
use crate::proxy::Proxy;
use crate::wait;
use crate::world::{Options, World, scenario};
use container::{Container, Place};
pub use home::Home;
pub use system::BootedSystem;
use system::{AgentPackage, NETWORK_CUT};
pub use user::{Trust, USER, UserMachine};

/// What nspawn exits with when the machine asked for a reboot.
const REBOOT: i32 = 133;

/// The unit of the agent.
pub const AGENT: &str = "hoist-agent.service";

/// Where the agent's certificate and key lie on a machine, readable by root alone.
const SECRETS: &str = "/var/lib/secrets";

/// Runs a scenario with booted machines, like [`scenario`]; leaves it out only when the environment says so.
///
/// # Panics
/// When the scenario fails, or no machine can be booted here.
pub fn booted_scenario(run: impl FnOnce(&mut World) -> Result<()>) {
    if root::is_skipped() {
        println!("left out, since {}=1", root::SKIP);
        return;
    }
    scenario(Options::default(), run);
}

/// A machine that boots. Switched off when dropped.
pub struct Booted {
    name: AgentName,
    place: Place,
    proxy: Proxy,
    agent: AgentPackage,
    container: Option<Container>,
    leader: Option<Pid>,
}

impl Booted {
    /// A machine on which somebody has installed version `0`; it is off.
    ///
    /// # Errors
    /// When machines cannot be booted here, or the installation fails.
    pub fn install(world: &World, name: &str) -> Result<Self> {
        Self::install_with(world, name, |system| system)
    }

    /// The same with version `0` as `change` makes it.
    ///
    /// # Errors
    /// As [`Booted::install`].
    pub fn install_with(
        world: &World,
        name: &str,
        change: impl FnOnce(BootedSystem) -> BootedSystem,
    ) -> Result<Self> {
        let place = Place {
            name: name.to_owned(),
            dir: world.site().dir().join("machines").join(name),
            root: root::find()?,
            logs: world.site().logs().to_owned(),
        };
        place.create()?;
        let cut = place.dir.join("notes").join(NETWORK_CUT);
        let stalled = place.dir.join("notes/network-stalled");
        let proxy = Proxy::start(world.broker.port(), cut, stalled)?;
        let agent = AgentPackage {
            program: stripped(world)?.into_string(),
            revision: "1".to_owned(),
            settings: json!({
                "broker": format!("mqtts://127.0.0.1:{}", proxy.port()),
                "caFile": "/etc/hoist/ca.pem",
                "certificateFile": format!("{SECRETS}/agent.pem"),
                "keyFile": format!("{SECRETS}/agent.key"),
                "trustedKeys": [world.signing_key.public.to_string()],
                "settings": {},
            }),
        };
        let machine = Self {
            name: AgentName::new(name)?,
            place,
            proxy,
            agent,
            container: None,
            leader: None,
        };
        machine.write_files(world)?;
        let system = machine.push(world, &change(machine.system("0")))?;
        machine.install_system(&system)?;
        Ok(machine)
    }

    /// A machine that was installed, is up, and has reported.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn running(world: &World, name: &str) -> Result<Self> {
        let mut machine = Self::install(world, name)?;
        machine.boot()?;
        machine.wait_up()?;
        machine.wait_online(world)?;
        Ok(machine)
    }

    /// What only this machine has: identity, Nix's configuration, machine id.
    fn write_files(&self, world: &World) -> Result<()> {
        let identity = world.authority.issue("agent", self.name.as_str(), &[])?;
        let upper = self.place.dir.join("upper");
        let secrets = upper.join(SECRETS.trim_start_matches('/'));
        for folder in [&secrets, &upper.join("etc/hoist"), &upper.join("etc/nix")] {
            fs::create_dir_all(folder)?;
        }
        for (from, to) in [
            (&identity.certificate, "agent.pem"),
            (&identity.key, "agent.key"),
        ] {
            fs::copy(from, secrets.join(to))?;
            fs::set_permissions(secrets.join(to), fs::Permissions::from_mode(0o600))?;
        }
        fs::copy(&identity.ca, upper.join("etc/hoist/ca.pem"))?;
        fs::write(upper.join("etc/nix/nix.conf"), world.cache.nix_conf()?)?;
        fs::write(upper.join("etc/hostname"), format!("{}\n", self.name))?;
        let id = uuid::Uuid::now_v7().simple().to_string();
        Ok(fs::write(upper.join("etc/machine-id"), id + "\n")?)
    }

    /// What `nixos-install` does, with the machine's own Nix: fetch, set the profile and the boot loader.
    fn install_system(&self, system: &StorePath) -> Result<()> {
        let script = format!(
            "nix-store --realise {system} && nix-env --profile {SYSTEM_PROFILE} --set {system} \
             && {system}/bin/switch-to-configuration boot"
        );
        let log = format!("install-{}", self.name);
        let mut container = Container::start(&self.place, &log, &["/bin/sh", "-euc", &script])?;
        let code = container.wait()?;
        ensure!(
            code == 0,
            "{} cannot be installed: {}",
            self.name,
            container.output()?
        );
        ensure!(
            self.boot_default()?.as_ref() == Some(system),
            "{} does not boot what was installed",
            self.name
        );
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &AgentName {
        &self.name
    }

    /// Its network.
    #[must_use]
    pub const fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Version `version` of its system, which differs from the others in `web.service` alone.
    #[must_use]
    pub fn system(&self, version: &str) -> BootedSystem {
        BootedSystem::new(self.name.as_str(), version, self.agent.clone())
    }

    /// Builds `system` and pushes it to the cache.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn push(&self, world: &World, system: &BootedSystem) -> Result<StorePath> {
        let path = system.build(&world.builder)?;
        world.builder.push(&path, &world.cache)?;
        Ok(path)
    }

    /// Switches it on.
    ///
    /// # Errors
    /// When it is on, or cannot be started.
    pub fn boot(&mut self) -> Result<()> {
        if let Some(container) = &mut self.container {
            ensure!(!container.is_alive()?, "{} is on already", self.name);
        }
        let log = format!("console-{}", self.name);
        let stage_1 = ["/bin/sh", "-c", include_str!("stage-1.sh")];
        self.container = Some(Container::start(&self.place, &log, &stage_1)?);
        self.leader = None;
        Ok(())
    }

    /// Waits until systemd has started everything that belongs to the boot, the agent among it.
    ///
    /// # Errors
    /// When it does not get so far.
    pub fn wait_up(&mut self) -> Result<()> {
        self.wait_for_leader()?;
        let up = wait::until(&format!("{} is up", self.name), || {
            self.check_alive()?;
            let state = self.run("systemctl", &["is-system-running"])?;
            Ok(matches!(state.stdout.trim(), "running" | "degraded").then_some(()))
        });
        up.with_context(|| self.keep_journal())
    }

    /// Waits until it is online, and its agent has reported.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_online(&self, world: &World) -> Result<()> {
        world.watch().wait_presence(&self.name, "online")?;
        wait::until_true(&format!("{} reports", self.name), || {
            Ok(world.watch().status(&self.name)?.is_some())
        })
    }

    fn wait_for_leader(&mut self) -> Result<Pid> {
        let name = &self.name;
        let container = self.container.as_mut();
        let leader = container
            .with_context(|| format!("{name} is off"))?
            .leader()?;
        self.leader = Some(leader);
        Ok(leader)
    }

    fn leader(&self) -> Result<Pid> {
        self.leader.with_context(|| format!("{} is off", self.name))
    }

    fn check_alive(&mut self) -> Result<()> {
        let container = self.container.as_mut().context("it is off")?;
        if !container.is_alive()? {
            bail!("{} has ended: {}", self.name, container.output()?);
        }
        Ok(())
    }

    /// A command that runs in it.
    ///
    /// # Errors
    /// When it is off.
    pub fn command(&self, program: &str) -> Result<Command> {
        Ok(Container::enter(self.leader()?, program))
    }

    /// Runs a program in it to its end.
    ///
    /// # Errors
    /// When it is off, or the program does not end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Finished> {
        let mut command = self.command(program)?;
        command.args(args);
        process::run(&format!("{}-run", self.name), command, &self.place.logs)
    }

    /// One property of a unit.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let args = ["show", "--value", "--property", property, unit];
        Ok(self.run("systemctl", &args)?.success()?.trim().to_owned())
    }

    /// The units that run now and whose name fits `pattern`.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn units(&self, pattern: &str) -> Result<Vec<String>> {
        let args = [
            "list-units",
            "--full",
            "--plain",
            "--no-legend",
            "--state=active,activating",
            pattern,
        ];
        let text = self.run("systemctl", &args)?.success()?;
        let names = text
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// All that its journal holds of the last boots.
    ///
    /// # Errors
    /// When it is off.
    pub fn journal(&self) -> Result<String> {
        self.run("journalctl", &["--no-pager", "--output=short-precise"])?
            .success()
    }

    /// Puts the journal to the logs of the scenario, which are shown when it fails and searched for secrets.
    fn keep_journal(&self) -> String {
        let path = self.place.logs.join(format!("journal-{}.err", self.name));
        match self.journal().and_then(|text| Ok(fs::write(&path, text)?)) {
            Ok(()) => format!("its journal is in {path}"),
            Err(error) => format!("its journal cannot be read: {error:#}"),
        }
    }

    /// Writes a file in it.
    ///
    /// # Errors
    /// When it is off, or the file cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let root = format!("/proc/{}/root", self.leader()?.as_raw_nonzero());
        fs::write(root.clone() + path, text).with_context(|| format!("cannot write {path}"))
    }

    /// Its boot id; another after every boot.
    ///
    /// # Errors
    /// When it is off.
    pub fn boot_id(&self) -> Result<String> {
        self.run("cat", &["/proc/sys/kernel/random/boot_id"])?
            .success()
    }

    /// Ends everything in it at once. What is in memory is gone, `/run` with it.
    ///
    /// # Errors
    /// When it is off.
    pub fn cut_power(&mut self) -> Result<()> {
        self.keep_journal();
        self.leader = None;
        let container = self.container.as_mut();
        container
            .with_context(|| format!("{} is off", self.name))?
            .kill()
    }

    /// Shuts it down as its owner does, and waits until it is off.
    ///
    /// # Errors
    /// When it does not go off.
    pub fn shut_down(&mut self) -> Result<()> {
        self.leave("poweroff", 0)
    }

    /// Reboots it as its owner does, and waits until it is up again.
    ///
    /// # Errors
    /// When it does not go down or come up.
    pub fn reboot(&mut self) -> Result<()> {
        self.leave("reboot", REBOOT)?;
        self.boot()?;
        self.wait_up()
    }

    fn leave(&mut self, how: &str, expected: i32) -> Result<()> {
        self.keep_journal();
        // Whether systemctl gets its answer before everything ends is a matter of luck.
        drop(self.run("systemctl", &["--no-block", how])?);
        self.leader = None;
        let container = self.container.as_mut();
        let container = container.with_context(|| format!("{} is off", self.name))?;
        let code = container.wait()?;
        ensure!(
            code == expected,
            "{how} of {} ended with {code}: {}",
            self.name,
            container.output()?
        );
        Ok(())
    }

    /// Ends its connections, and lets none come about, until a system is activated that has a network.
    ///
    /// # Errors
    /// When the file that stands for it cannot be written.
    pub fn cut_network(&self) -> Result<()> {
        Ok(fs::write(self.notes().join(NETWORK_CUT), "")?)
    }

    /// Lets connections come about again.
    ///
    /// # Errors
    /// When the file that stands for it cannot be removed.
    pub fn restore_network(&self) -> Result<()> {
        Ok(fs::remove_file(self.notes().join(NETWORK_CUT))?)
    }

    fn notes(&self) -> Utf8PathBuf {
        self.place.dir.join("notes")
    }

    /// Every run of `init` and `switch-to-configuration` so far, as `VERSION ACTION`, in order.
    ///
    /// # Errors
    /// When the notes cannot be read.
    pub fn activations(&self) -> Result<Vec<String>> {
        match fs::read_to_string(self.notes().join("activations")) {
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
        Gate::close(&self.notes(), self.name.as_str(), version, action)
    }

    /// What runs.
    ///
    /// # Errors
    /// When it is off, or runs something else than a store path.
    pub fn current_system(&self) -> Result<Option<StorePath>> {
        self.link("/run/current-system")
    }

    /// What was booted.
    ///
    /// # Errors
    /// When it is off, or runs something else than a store path.
    pub fn booted_system(&self) -> Result<Option<StorePath>> {
        self.link("/run/booted-system")
    }

    fn link(&self, path: &str) -> Result<Option<StorePath>> {
        let root = format!("/proc/{}/root", self.leader()?.as_raw_nonzero());
        match Utf8Path::new(&(root + path)).read_link_utf8() {
            Ok(target) => Ok(Some(StorePath::new(target.into_string())?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where `path`, in `/nix` or `/boot` of the machine, lies on the host.
    fn host_path(&self, path: &str) -> Utf8PathBuf {
        self.place.dir.join(path.trim_start_matches('/'))
    }

    /// What the profile names.
    ///
    /// # Errors
    /// When its links are damaged.
    pub fn profile(&self, name: &str) -> Result<Option<StorePath>> {
        profile(&self.host_path(name))
    }

    /// The numbers and paths of the generations of a profile, oldest first.
    ///
    /// # Errors
    /// When its links are damaged.
    pub fn generations(&self, name: &str) -> Result<Vec<(u32, StorePath)>> {
        generations(&self.host_path(name))
    }

    /// What the boot loader's default entry starts.
    ///
    /// # Errors
    /// When the files of the boot loader do not hold together.
    pub fn boot_default(&self) -> Result<Option<StorePath>> {
        let loader = self.host_path("/boot/loader");
        let config = match fs::read_to_string(loader.join("loader.conf")) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let entry = config
            .lines()
            .find_map(|line| line.strip_prefix("default "))
            .context("loader.conf names no default")?;
        Ok(Some(started_by(&loader.join("entries").join(entry))?))
    }

    /// Somebody will choose `system` in the menu of the next boot.
    ///
    /// # Errors
    /// When the boot loader has no entry for it.
    pub fn choose_at_boot(&self, system: &StorePath) -> Result<()> {
        let loader = self.host_path("/boot/loader");
        for entry in loader.join("entries").read_dir_utf8()? {
            let entry = entry?;
            if started_by(entry.path())? == *system {
                return Ok(fs::write(loader.join("chosen"), entry.file_name())?);
            }
        }
        bail!("the boot menu of {} has no {system}", self.name)
    }
}

impl Deployable for Booted {
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

impl Drop for Booted {
    fn drop(&mut self) {
        if self.leader.is_some() {
            self.keep_journal();
        }
    }
}

/// The agent without what only a debugger reads: it is copied into each machine's store.
fn stripped(world: &World) -> Result<Utf8PathBuf> {
    let path = world.site().dir().join("hoist-agent");
    if !path.exists() {
        let mut command = process::command("strip");
        command.args(["-o", path.as_str(), world.site().programs().agent.as_str()]);
        process::run("strip", command, world.site().logs())?.success()?;
    }
    Ok(path)
}

/// The system that an entry of the boot loader starts.
fn started_by(entry: &Utf8Path) -> Result<StorePath> {
    let text = fs::read_to_string(entry)?;
    let init = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("init="))
        .with_context(|| format!("{entry} starts no init"))?;
    let system = init.strip_suffix("/init").context("an init of a system")?;
    Ok(StorePath::new(system)?)
}
