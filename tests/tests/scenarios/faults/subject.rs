//! The machine that a fault is tried on, and what is deployed to it.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use camino::Utf8PathBuf;
use hoist_protocol::{DeploymentId, HealthCheck, Probe, State, StorePath};
use hoist_tests::builder::Cache;
use hoist_tests::closure::{Closure, System};
use hoist_tests::isolation::SmallDisk;
use hoist_tests::machine::Machine;
use hoist_tests::process::Process;
use hoist_tests::wait;
use hoist_tests::world::{Options, Site, World};

use super::fault::{self, Fault};
use super::phase::Phase;

/// Room on the disk of the machine whose disk becomes full, in megabytes: its store, its state and its `/run`.
const DISK: u32 = 48;

/// How long a deployment is valid, as the publisher has it by default: no clock that is a day off ends it.
const VALID: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What is deployed as a health check. It waits at a gate as a system's script does, and is tried before the activation
/// too, on the old system.
const CHECK: &str = r#"notes=/nix/var/hoist-test
version=$(cat "$HOIST_CLOSURE/nixos-version")
: > "$notes/reached/$version.check"
while [ -e "$notes/gates/$version.check" ]; do sleep 0.02; done
[ ! -e "$notes/fails/$version" ]"#;

/// A system as the notes of its activations name it.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) path: StorePath,
}

/// Everything that is deployed, the same to every machine.
pub(super) struct Closures {
    first: Version,
    phases: Vec<(Phase, Version)>,
    check: StorePath,
}

impl Closures {
    /// Builds and pushes them.
    pub(super) fn build(world: &World) -> Result<Self> {
        let mut names = vec!["first".to_owned()];
        names.extend(Phase::ALL.map(|phase| phase.to_string().replace(' ', "-")));
        let mut closures: Vec<Closure> = names
            .iter()
            .map(|name| System::new("web", name).closure())
            .collect();
        closures.push(Closure::health_check(CHECK));
        let paths = world.builder.build_all(&closures)?;
        world.builder.push_all(&paths, &world.cache)?;
        ensure!(paths.len() == closures.len(), "each has a path: {paths:?}");
        let mut versions = names
            .into_iter()
            .zip(paths.iter().cloned())
            .map(|(name, path)| Version { name, path });
        Ok(Self {
            first: versions.next().context("the first comes first")?,
            phases: Phase::ALL.into_iter().zip(versions).collect(),
            check: paths.last().cloned().context("the check comes last")?,
        })
    }

    /// What is deployed when something fails in `phase`.
    pub(super) fn of(&self, phase: Phase) -> Result<&Version> {
        let found = self.phases.iter().find(|(of, _)| *of == phase);
        Ok(&found.context("every phase has a closure")?.1)
    }
}

/// The fleet that the machine belongs to.
enum Home<'w> {
    Shared(&'w World),
    /// With a broker that may be killed without taking it from the others.
    Own(Box<World>),
}

/// A machine for one fault.
pub(super) struct Subject<'w> {
    // Dropped first: the machine before what it lives on.
    pub(super) machine: Machine,
    daemon: Option<Process>,
    pub(super) disk: Option<SmallDisk>,
    /// The binary cache that it alone uses.
    pub(super) cache: Cache,
    home: Home<'w>,
    pub(super) fault: Fault,
    /// What it runs.
    pub(super) runs: Version,
    check: StorePath,
    /// The names in its state folder when nothing is under way.
    pub(super) files: BTreeSet<String>,
    /// How often the agent had to be started again since it had ended by itself.
    pub(super) restarts: usize,
}

impl<'w> Subject<'w> {
    /// A machine on which the first deployment has succeeded.
    pub(super) fn create(fault: Fault, world: &'w World, closures: &Closures) -> Result<Self> {
        let home = if fault == Fault::Broker {
            let site = Site::create("faults-broker")?;
            Home::Own(Box::new(World::create(site, Options::default())?))
        } else {
            Home::Shared(world)
        };
        let name = fault.to_string();
        let cache = world.cache.mirror()?;
        let dir = home.site().dir().join("machines").join(&name);
        let disk = match fault {
            Fault::Disk => Some(SmallDisk::mount(&dir, DISK)?),
            _ => None,
        };
        let mut machine = home.machine_with(&name, &cache.nix_conf()?)?;
        configure(&home, &machine, fault)?;
        // Its notes stand for what is on other disks, such as the boot loader.
        let notes = home.site().dir().join(format!("notes-{name}"));
        for folder in ["reached", "gates", "fails"] {
            fs::create_dir_all(notes.join(folder))?;
        }
        std::os::unix::fs::symlink(&notes, machine.dir().join("nix/var/hoist-test"))?;
        if fault.moves_clock() {
            let clock = notes.join("clock");
            fs::write(&clock, fault::REAL_TIME)?;
            for (name, value) in [
                ("LD_PRELOAD", fake_time()?.as_str()),
                ("FAKETIME_TIMESTAMP_FILE", clock.as_str()),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ] {
                machine.set_variable(name, value);
            }
        }
        if fault == Fault::NixDaemon {
            machine.set_variable("NIX_REMOTE", "daemon");
        }
        let mut subject = Self {
            machine,
            daemon: None,
            disk,
            cache,
            home,
            fault,
            runs: closures.first.clone(),
            check: closures.check.clone(),
            files: BTreeSet::new(),
            restarts: 0,
        };
        if fault == Fault::NixDaemon {
            subject.start_daemon()?;
        }
        subject.machine.start_agent()?;
        let id = subject.publish(&closures.first)?;
        let status = subject.settled(&subject.machine, id)?;
        ensure!(
            status.state == State::Succeeded,
            "the first deployment {}: {}",
            status.state,
            status.message
        );
        subject.files = subject.wait_idle()?.files;
        Ok(subject)
    }

    /// Publishes `version` for the machine.
    pub(super) fn publish(&self, version: &Version) -> Result<DeploymentId> {
        let mut forge = self.forge(&self.machine, &version.path)?;
        forge.valid = VALID;
        let system = hoist_protocol::System::current()?;
        let programs = [(system, self.check.clone())].into();
        forge.target.health_checks = vec![HealthCheck {
            only_if_held_before: true,
            ..HealthCheck::new(Probe::Program(programs))
        }];
        if let Some(timeout) = self.fault.confirm_timeout() {
            forge.target.confirm_timeout_ms = u64::try_from(timeout.as_millis())?;
        }
        World::publish(self, &forge)
    }

    /// Lets the health check of `version` fail.
    pub(super) fn fail_check(&self, version: &Version) -> Result<()> {
        let path = self.notes().join("fails").join(&version.name);
        Ok(fs::write(path, "")?)
    }

    pub(super) fn notes(&self) -> Utf8PathBuf {
        self.site()
            .dir()
            .join(format!("notes-{}", self.machine.name()))
    }

    /// Takes the broker out of the machine's reach.
    pub(super) fn sever(&mut self) -> Result<()> {
        if self.fault == Fault::Broker {
            return self.kill_broker();
        }
        self.machine.cut_network()?;
        wait::until_true("the machine's connections are gone", || {
            Ok(self.machine.proxy().connections() == 0)
        })
    }

    pub(super) fn kill_broker(&mut self) -> Result<()> {
        match &mut self.home {
            Home::Own(world) => world.broker.kill(),
            Home::Shared(_) => Err(anyhow!("the others need this broker")),
        }
    }

    pub(super) fn restart_broker(&mut self) -> Result<()> {
        match &mut self.home {
            Home::Own(world) => world.broker.restart(),
            Home::Shared(_) => Err(anyhow!("this broker runs already")),
        }
    }

    pub(super) fn start_daemon(&mut self) -> Result<()> {
        let daemon = self.machine.command("nix-daemon");
        self.daemon = Some(Process::start("nix-daemon", daemon, self.site().logs())?);
        let socket = self.machine.dir().join("nix/var/nix/daemon-socket/socket");
        wait::until_true("Nix's daemon listens", || Ok(socket.exists()))
    }

    /// `kill -9` of the daemon and of what it has forked for its clients.
    pub(super) fn kill_daemon(&mut self) -> Result<()> {
        for pid in self.machine.processes()? {
            if is_daemon(pid) {
                match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                    // One that served a client has ended with it.
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(error).context("cannot kill Nix's daemon"),
                }
            }
        }
        let mut daemon = self.daemon.take().context("Nix's daemon was started")?;
        daemon.wait()?;
        let socket = self.machine.dir().join("nix/var/nix/daemon-socket/socket");
        Ok(fs::remove_file(socket)?)
    }

    /// Waits until nothing is under way on the machine.
    pub(super) fn wait_idle(&mut self) -> Result<hoist_tests::remains::Remains> {
        self.machine.wait_idle(is_daemon)
    }

    /// Waits until the deployment `id` has ended on the machine itself, whether it can tell anybody or not. An agent
    /// that has ended is started again, as a service manager does.
    pub(super) fn wait_ended(&mut self, id: DeploymentId) -> Result<()> {
        wait::until_true(&format!("{id} has ended"), || {
            if !self.machine.agent()?.is_alive()? {
                self.restarts += 1;
                self.machine.start_agent()?;
            }
            self.machine.has_ended(id)
        })
    }

    /// What went wrong in `phase`, with what the machine's agent and activator said.
    pub(super) fn explain(&mut self, phase: Phase, error: &Error) -> Error {
        let agent = self.machine.agent().and_then(|agent| agent.stderr());
        let story = match &self.home {
            Home::Own(world) => world.site().story(),
            Home::Shared(_) => agent,
        };
        anyhow!("{phase}: {error:#}\n{}", story.unwrap_or_default())
    }
}

impl Deref for Subject<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        &self.home
    }
}

impl Deref for Home<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        match self {
            Self::Shared(world) => world,
            Self::Own(world) => world,
        }
    }
}

/// Lets the agent find the broker again soon; and where the broker itself is to fail, without a proxy in between that
/// would still take connections.
fn configure(world: &World, machine: &Machine, fault: Fault) -> Result<()> {
    let mut config = fs::read_to_string(machine.config())? + "max_backoff = \"1s\"\n";
    if fault == Fault::Broker {
        config = config.replace(
            &format!("127.0.0.1:{}", machine.proxy().port()),
            &format!("127.0.0.1:{}", world.broker.port()),
        );
    }
    Ok(fs::write(machine.config(), config)?)
}

fn is_daemon(pid: rustix::process::Pid) -> bool {
    let comm = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
    comm.is_ok_and(|comm| comm.trim() == "nix-daemon")
}

/// The library that lets a program see another time.
fn fake_time() -> Result<Utf8PathBuf> {
    let folder = format!("/usr/lib/{}-linux-gnu/faketime", std::env::consts::ARCH);
    let library = Utf8PathBuf::from(folder).join("libfaketimeMT.so.1");
    ensure!(
        library.exists(),
        "{library} is missing; install the package faketime, or run tests/setup.sh"
    );
    Ok(library)
}
