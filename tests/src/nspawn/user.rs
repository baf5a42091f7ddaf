//! A machine on which a user, and not root, has an agent: by home-manager, below the user's own service manager, with
//! the store behind Nix's daemon.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use anyhow::Result;
use camino::Utf8PathBuf;
use hoist_protocol::{AgentName, StorePath};

use super::home::Home;
use super::system::{AgentPackage, BootedSystem};
use super::{AGENT, Booted};
use crate::machine::{Deployable, Gate, generations, profile};
use crate::process::{self, Finished};
use crate::wait;
use crate::world::World;

/// The user's name, number and home.
pub const USER: &str = "ann";
const UID: u32 = 1000;
const HOME: &str = "/home/ann";

/// Where the user keeps certificate and key of the agent, below the home.
const SECRETS: &str = ".config/hoist-secrets";

/// The user's profile of home-manager generations. Nix makes its folder for whoever it serves, which home-manager then
/// prefers to the one of old: that can be tried with an older Nix alone.
const HOME_PROFILE: &str = "/home/ann/.local/state/nix/profiles/home-manager";

/// Where home-manager finds what it has activated.
const CURRENT_HOME: &str = "/home/ann/.local/state/home-manager/gcroots/current-home";

/// Whether Nix's daemon lets the user bring caches and keys along.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trust {
    /// It does.
    Trusted,
    /// It does not, as it is by default.
    Untrusted,
}

/// The machine; its system has no agent.
pub struct UserMachine {
    machine: Booted,
    agent: AgentPackage,
}

impl UserMachine {
    /// One that is up, on which the user has activated the generation `0`, and whose agent has reported.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn running(world: &World, name: &str, trust: Trust) -> Result<Self> {
        let change = |system: BootedSystem| system.without_agent().with_nix_daemon();
        let machine = Booted::install_with(world, name, change)?;
        let mut agent = machine.agent.clone();
        for (key, file) in [("certificateFile", "agent.pem"), ("keyFile", "agent.key")] {
            agent.settings[key] = format!("{HOME}/{SECRETS}/{file}").into();
        }
        let mut user = Self { machine, agent };
        user.write_files(world, trust)?;
        user.machine.boot()?;
        user.machine.wait_up()?;
        wait::until_true(&format!("the service manager of {USER} is up"), || {
            let state = user.run("systemctl", &["--user", "is-system-running"])?;
            Ok(state.stdout.trim() == "running")
        })?;
        user.switch(&user.push(world, &user.home("0"))?)?;
        user.machine.wait_online(world)?;
        Ok(user)
    }

    /// The user, who lingers, with a home and the agent's identity in it.
    fn write_files(&self, world: &World, trust: Trust) -> Result<()> {
        let place = &self.machine.place;
        let upper = place.dir.join("upper");
        for (file, line) in [
            ("passwd", format!("{USER}:x:{UID}:{UID}::{HOME}:/bin/sh")),
            ("group", format!("{USER}:x:{UID}:")),
            ("shadow", format!("{USER}:!:20000::::::")),
        ] {
            let text = fs::read_to_string(place.root.join("etc").join(file))?;
            fs::write(upper.join("etc").join(file), format!("{text}{line}\n"))?;
        }
        let linger = upper.join("var/lib/systemd/linger");
        fs::create_dir_all(&linger)?;
        fs::write(linger.join(USER), "")?;

        let home = upper.join(HOME.trim_start_matches('/'));
        let secrets = home.join(SECRETS);
        fs::create_dir_all(&secrets)?;
        let identity = world.authority.identity("agent", self.name().as_str());
        for (from, to) in [
            (&identity.certificate, "agent.pem"),
            (&identity.key, "agent.key"),
        ] {
            let to = secrets.join(to);
            fs::copy(from, &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
            chown(&to, Some(UID), Some(UID))?;
        }
        for folder in [&home, &home.join(".config"), &secrets] {
            chown(folder, Some(UID), Some(UID))?;
        }
        if trust == Trust::Trusted {
            let conf = upper.join("etc/nix/nix.conf");
            let text = fs::read_to_string(&conf)?;
            fs::write(&conf, format!("{text}trusted-users = root {USER}\n"))?;
        }
        // What the user's activations write down.
        let notes = self.machine.notes();
        for folder in [&notes, &notes.join("gates"), &notes.join("reached")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
        }
        let activations = fs::Permissions::from_mode(0o666);
        Ok(fs::set_permissions(notes.join("activations"), activations)?)
    }

    /// What `home-manager switch` does, without its part of building.
    fn switch(&self, generation: &StorePath) -> Result<()> {
        let script = format!(
            "nix-store --realise {generation} && mkdir -p $(dirname {HOME_PROFILE}) \
             && nix-env --profile {HOME_PROFILE} --set {generation} \
             && {generation}/activate --driver-version 1"
        );
        self.run("sh", &["-euc", &script])?.success()?;
        Ok(())
    }

    /// The machine itself.
    #[must_use]
    pub const fn machine(&self) -> &Booted {
        &self.machine
    }

    /// The machine itself, to switch it off and on.
    #[must_use]
    pub const fn machine_mut(&mut self) -> &mut Booted {
        &mut self.machine
    }

    /// Version `version` of the user's configuration, which differs from the others in `web.service` alone.
    #[must_use]
    pub fn home(&self, version: &str) -> Home {
        Home::new(version, self.agent.clone())
    }

    /// Builds `home` and pushes it to the cache.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn push(&self, world: &World, home: &Home) -> Result<StorePath> {
        let path = home.build(&world.builder)?;
        world.builder.push(&path, &world.cache)?;
        Ok(path)
    }

    /// Runs a program as the user, as in a login shell.
    ///
    /// # Errors
    /// When the machine is off, or the program does not end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Finished> {
        let mut command = self.machine.command("setpriv")?;
        let id = UID.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--init-groups"])
            .args(["env", "--chdir", HOME])
            .args([format!("USER={USER}"), format!("HOME={HOME}")])
            .arg(format!("XDG_RUNTIME_DIR=/run/user/{UID}"))
            .arg(program)
            .args(args);
        process::run(
            &format!("{}-{USER}", self.name()),
            command,
            &self.machine.place.logs,
        )
    }

    /// One property of a unit of the user's manager.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let args = ["--user", "show", "--value", "--property", property, unit];
        Ok(self.run("systemctl", &args)?.success()?.trim().to_owned())
    }

    /// The process of the agent.
    ///
    /// # Errors
    /// When the user's manager does not answer.
    pub fn agent_pid(&self) -> Result<String> {
        self.property(AGENT, "MainPID")
    }

    /// The agent's program, of the generation that runs.
    #[must_use]
    pub fn agent_program(&self) -> String {
        format!("{CURRENT_HOME}/home-path/bin/hoist-agent")
    }

    /// Lets the activation of `version` stop at its beginning, from now on.
    ///
    /// # Errors
    /// When the file that stands for it cannot be written.
    pub fn gate(&self, version: &str) -> Result<Gate> {
        self.machine.gate(version, "activate")
    }

    /// What the profile of home-manager generations names.
    ///
    /// # Errors
    /// When its links are damaged.
    pub fn home_profile(&self) -> Result<Option<StorePath>> {
        self.profile(HOME_PROFILE)
    }

    /// The numbers and paths of the generations of the profile, oldest first.
    ///
    /// # Errors
    /// When its links are damaged.
    pub fn home_generations(&self) -> Result<Vec<(u32, StorePath)>> {
        generations(&self.host_path(HOME_PROFILE)?)
    }

    /// A path on the machine, seen from the host.
    fn host_path(&self, path: &str) -> Result<Utf8PathBuf> {
        if path.starts_with("/nix/") {
            return Ok(self.machine.host_path(path));
        }
        let leader = self.machine.leader()?.as_raw_nonzero();
        Ok(Utf8PathBuf::from(format!("/proc/{leader}/root{path}")))
    }
}

impl Deployable for UserMachine {
    fn name(&self) -> &AgentName {
        self.machine.name()
    }

    fn current_system(&self) -> Result<Option<StorePath>> {
        self.machine.link(CURRENT_HOME)
    }

    fn profile(&self, name: &str) -> Result<Option<StorePath>> {
        profile(&self.host_path(name)?)
    }
}
