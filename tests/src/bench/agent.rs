//! One agent: what it takes of the machine while nothing happens, and how long a deployment takes that has nothing to
//! fetch and nothing to activate.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hoist_protocol::{State, StorePath};

use crate::bench::publisher::{Publisher, Times};
use crate::bench::report::{Sample, table};
use crate::closure::Closure;
use crate::machine::Machine;
use crate::usage::Usage;
use crate::world::{Options, Site, World};

/// How long the agent is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// How long it is left alone before that: what follows a deployment is over by then.
const CALM: Duration = Duration::from_secs(5);

/// How often a deployment is timed.
const DEPLOYMENTS: usize = 40;

/// How often one that fails is.
const FAILURES: usize = 20;

/// `switch-to-configuration` of a system that differs from another by its name alone.
pub(super) const NOTHING: &str = "#!/bin/sh
[ \"$1\" != test ] || ln -sfn @out@ /run/current-system
";

/// The same of one whose activation fails when it is done.
const FAILS: &str = "#!/bin/sh
ln -sfn @out@ /run/current-system
exit 1
";

/// A profile that nothing else uses.
const SCRATCH: &str = "/nix/var/nix/profiles/bench";

/// A system of the machine `name`.
pub(super) fn system(name: &str, version: &str, script: &str) -> Closure {
    Closure::Nixos {
        name: name.to_owned(),
        version: version.to_owned(),
        script: script.to_owned(),
    }
}

/// Measures and prints.
pub(super) fn measure() -> Result<()> {
    eprintln!(
        "the agent: {} s idle, then {} deployments",
        IDLE.as_secs(),
        2 * DEPLOYMENTS + FAILURES
    );
    let world = World::create(Site::create("bench-agent")?, Options::default())?;
    let mut machine = world.running("web-1")?;
    let mut publisher = Publisher::connect(&world, machine.name())?;
    let closures = [
        system("web-1", "a", NOTHING),
        system("web-1", "b", NOTHING),
        system("web-1", "fails", FAILS),
        Closure::profile("tool", "1"),
        Closure::profile("tool", "2"),
    ];
    let paths = world.builder.build_all(&closures)?;
    world.builder.push_all(&paths, &world.cache)?;
    let [a, b, fails, tool_1, tool_2] = &paths[..] else {
        anyhow::bail!("each closure has a path: {paths:?}");
    };

    // Plain profiles first: a machine that runs a NixOS system says so in its status.
    let tools = [tool_1, tool_2];
    let profiles = deployments(&mut publisher, &world, tools)?;
    let systems = deployments(&mut publisher, &world, [a, b])?;
    let nix_env = nix_env_alone(&machine, tools)?;
    // The first time, it is fetched.
    publisher.deploy(&world, fails, State::Failed)?;
    let failures = (0..FAILURES)
        .map(|_| publisher.deploy(&world, fails, State::Failed))
        .collect::<Result<Vec<_>>>()?;

    sleep(CALM);
    let pid = machine.agent()?.pid();
    let before = Usage::of(pid)?;
    sleep(IDLE);
    let after = Usage::of(pid)?;

    println!("## Agent\n");
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String, goal: &str| {
        rows.push(vec![name.to_owned(), value, goal.to_owned()]);
    };
    row("", "median (least to most)".to_owned(), "goal");
    let nix_env = Sample::of_times(nix_env).shown(1);
    row("`nix-env --set` alone, ms", nix_env, "");
    for (name, times) in [("plain profile", &profiles), ("NixOS", &systems)] {
        let name = |what: &str| format!("{name}, {what}, ms");
        let goal = "below 100";
        row(
            &name("message acknowledged to confirmed result"),
            sample(times, Times::acknowledged_to_end).shown(1),
            goal,
        );
        row(
            &name("published to confirmed result"),
            sample(times, |times| times.until(State::is_final)).shown(1),
            "",
        );
        for state in [State::Activating, State::Confirming] {
            let until = |times: &Times| times.until(|reached| reached == state);
            row(
                &name(&format!("published to `{state}`")),
                sample(times, until).shown(1),
                "",
            );
        }
    }
    row(
        "NixOS, the activation fails: message acknowledged to gone back, ms",
        sample(&failures, Times::acknowledged_to_end).shown(1),
        "",
    );
    row(
        "resident memory, idle, MiB",
        format!("{:.1}", after.mebibytes()),
        "below 10",
    );
    let seconds = IDLE.as_secs_f64();
    let wakeups = u32::try_from(after.wakeups.saturating_sub(before.wakeups))?;
    row(
        "wake-ups a second, idle",
        format!("{:.2}", f64::from(wakeups) / seconds),
        "below 1",
    );
    row(
        &format!("CPU time in {seconds} s idle, ms"),
        format!("{:.0}", (after.cpu - before.cpu).as_secs_f64() * 1000.0),
        "",
    );
    println!("{}", table(&rows));
    Ok(())
}

/// Deploys both in turn, after once each so that nothing has to be fetched while the clock runs.
fn deployments(
    publisher: &mut Publisher,
    world: &World,
    paths: [&StorePath; 2],
) -> Result<Vec<Times>> {
    for path in paths {
        publisher.deploy(world, path, State::Succeeded)?;
    }
    let paths = paths.into_iter().cycle().take(DEPLOYMENTS);
    paths
        .map(|path| publisher.deploy(world, path, State::Succeeded))
        .collect()
}

fn sample(times: &[Times], value: impl Fn(&Times) -> Option<Duration>) -> Sample {
    Sample::of_times(times.iter().filter_map(value))
}

/// What Nix itself takes to set a profile, measured on the machine, without the start of a shell.
pub(super) fn nix_env_alone(machine: &Machine, paths: [&StorePath; 2]) -> Result<Vec<Duration>> {
    let [one, two] = paths;
    let script = format!(
        "for n in $(seq {}); do
            for path in {one} {two}; do
                start=$(date +%s%N)
                nix-env --profile {SCRATCH} --set $path
                echo $(($(date +%s%N) - start))
            done
        done",
        DEPLOYMENTS / 2
    );
    let said = machine.run("/bin/sh", &["-euc", &script])?.success()?;
    said.lines()
        .map(|line| {
            let nanoseconds = line.parse().context("no number")?;
            Ok(Duration::from_nanos(nanoseconds))
        })
        .collect()
}
