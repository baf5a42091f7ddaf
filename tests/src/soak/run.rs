//! One deployment of many, and what is looked at in between.

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::{DeploymentId, HealthCheck, Probe, State, StorePath};

use super::plan::{Kill, Kind, Step};
use crate::closure::{Closure, System};
use crate::machine::{Machine, SYSTEM_PROFILE};
use crate::wait;
use crate::world::World;

/// Everything that is deployed.
pub(super) struct Closures {
    /// Deployed first and never again: garbage in the end.
    first: StorePath,
    /// As many as a machine keeps to go back to, so that they alone are kept however often a deployment was
    /// interrupted.
    turns: [StorePath; 3],
    failing: StorePath,
    unhealthy: StorePath,
    check: StorePath,
}

impl Closures {
    pub(super) fn push(world: &World) -> Result<Self> {
        let system = |version| System::new("soak", version);
        let closures = [
            system("first").closure(),
            system("a").closure(),
            system("b").closure(),
            system("c").closure(),
            system("failing").failing().closure(),
            system("unhealthy").closure(),
            Closure::health_check("exit 1"),
        ];
        let paths = world.builder.build_all(&closures)?;
        world.builder.push_all(&paths, &world.cache)?;
        let [first, a, b, c, failing, unhealthy, check] = <[StorePath; 7]>::try_from(paths)
            .ok()
            .context("each has a path")?;
        Ok(Self {
            first,
            turns: [a, b, c],
            failing,
            unhealthy,
            check,
        })
    }

    /// What a step deploys to a machine that runs `current`.
    fn of(&self, step: &Step, current: Option<&StorePath>) -> StorePath {
        let [a, b, c] = &self.turns;
        match (step.kind, current) {
            (Kind::Good | Kind::Same, None) => &self.first,
            (Kind::Same, Some(current)) => current,
            (Kind::Good, Some(current)) if current == a => b,
            (Kind::Good, Some(current)) if current == b => c,
            (Kind::Good, Some(_)) => a,
            (Kind::Failing, _) => &self.failing,
            (Kind::Unhealthy, _) => &self.unhealthy,
        }
        .clone()
    }
}

/// Deploys, kills, and waits for the end, which has to be one that can come of it.
pub(super) fn deploy(
    world: &World,
    machine: &mut Machine,
    closures: &Closures,
    step: &Step,
) -> Result<(DeploymentId, State)> {
    let old = machine.current_system()?;
    let path = closures.of(step, old.as_ref());
    let mut forge = world.forge(machine, &path)?;
    if step.kind == Kind::Unhealthy {
        let system = hoist_protocol::System::current()?;
        let programs = [(system, closures.check.clone())].into();
        forge.target.health_checks = vec![HealthCheck::new(Probe::Program(programs))];
    }
    let before = machine.activations()?.len();
    let id = world.publish(&forge)?;
    if let Some(kill) = step.kill {
        kill_amid(world, machine, id, kill, step.after)?;
    }
    let status = world.settled(machine, id)?;
    let state = status.state;
    let usual = match step.kind {
        Kind::Good => State::Succeeded,
        Kind::Same => State::Unchanged,
        Kind::Failing => State::Failed,
        Kind::Unhealthy => State::RolledBack,
    };
    let interrupted = step.kill.is_some() && matches!(state, State::Failed | State::RolledBack);
    ensure!(
        state == usual || interrupted,
        "it {state} ({:?}): {}",
        status.reason,
        status.message
    );
    let expected = if state.is_good() { Some(path) } else { old };
    let is = [
        ("runs", machine.current_system()?),
        ("names as its profile", machine.profile(SYSTEM_PROFILE)?),
        ("boots", machine.boot_default()?),
    ];
    for (what, is) in is {
        ensure!(is == expected, "it {what} {is:?} and not {expected:?}");
    }
    let activations = machine.activations()?.split_off(before);
    let most = match (step.kind, step.kill) {
        (Kind::Same, _) => 0,
        (_, None) => 2,
        // An activator that was killed begins once more what it was at.
        (_, Some(_)) => 3,
    };
    ensure!(
        activations.len() <= most,
        "more was activated than needed: {activations:?}"
    );
    Ok((id, state))
}

/// Kills when the machine has reported so many states of the deployment, or has ended it before.
fn kill_amid(
    world: &World,
    machine: &mut Machine,
    id: DeploymentId,
    kill: Kill,
    after: u32,
) -> Result<()> {
    wait::until_true(&format!("{id} gets on"), || {
        let states = world.watch().states(machine.name(), id)?;
        let ended = states.last().is_some_and(|state| state.is_final());
        Ok(ended || u32::try_from(states.len())? >= after)
    })?;
    if kill != Kill::Agent {
        for pid in machine.activators()? {
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                // It has ended between the look and the signal.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context("cannot kill the activator"),
            }
        }
    }
    if kill != Kill::Activator {
        machine.kill_agent()?;
        machine.start_agent()?;
    }
    Ok(())
}

/// How many roots Nix finds that are no generations of a profile.
pub(super) fn gc_roots(machine: &Machine) -> Result<usize> {
    let roots = machine
        .run("nix-store", &["--gc", "--print-roots"])?
        .success()?;
    let ours = |line: &&str| line.starts_with('/') && !line.starts_with("/nix/var/nix/profiles/");
    Ok(roots.lines().filter(ours).count())
}

/// Collects garbage, and looks whether what nobody needs is gone and what is needed is there.
pub(super) fn collect_garbage(machine: &Machine, closures: &Closures) -> Result<()> {
    for args in [
        [
            "nix-env",
            "--profile",
            SYSTEM_PROFILE,
            "--delete-generations",
            "old",
        ]
        .as_slice(),
        &["nix-store", "--gc"],
    ] {
        machine.run(args[0], &args[1..])?.success()?;
    }
    let current = machine.current_system()?.context("a system runs")?;
    ensure!(machine.has(&current), "{current} runs and is gone");
    ensure!(
        !machine.has(&closures.first),
        "{} was replaced long ago and is still kept from the garbage collector",
        closures.first
    );
    Ok(())
}
