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
use crate::usage::{Usage, megabytes};
use crate::world::{Options, Site, World};

/// How long the agent is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// How long it is left alone before that: what follows a deployment is over by then.
const CALM: Duration = Duration::from_secs(5);

/// How often each kind of deployment is timed beside `nix-env --set`: what disturbs the machine disturbs all of them.
const ROUNDS: usize = 10;

/// How often each is timed in a round, one closure after the other.
const IN_ROUND: usize = 4;

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

/// What was timed, by round.
#[derive(Default)]
struct Timed {
    nix_env: Vec<Duration>,
    profiles: Vec<Times>,
    systems: Vec<Times>,
    failures: Vec<Times>,
}

/// Measures and prints.
pub(super) fn measure() -> Result<()> {
    eprintln!(
        "the agent: {} deployments, then {} s idle",
        3 * ROUNDS * IN_ROUND,
        IDLE.as_secs(),
    );
    let world = World::create(Site::create("bench-agent")?, Options::default())?;
    let mut machine = world.running("web-1")?;
    let timed = deployments(&world, &machine)?;
    sleep(CALM);
    let pid = machine.agent()?.pid();
    let before = Usage::of(pid)?;
    sleep(IDLE);
    let after = Usage::of(pid)?;

    println!("## Agent\n");
    println!(
        "A closure that is present, an activation that does nothing. From the broker's acknowledgement to the result,\n\
         confirmed over a fresh connection; {ROUNDS} rounds of {IN_ROUND} deployments of each kind and as many \
         `nix-env --set`, in turn.\n"
    );
    let header = [
        "ms",
        "median (least to most)",
        "times `nix-env --set`",
        "goal",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let alone = Sample::of_times(timed.nix_env.iter().copied()).shown(1);
    rows.push(vec![
        "`nix-env --set` alone".to_owned(),
        alone,
        "1".to_owned(),
        String::new(),
    ]);
    rows.extend(timed.rows("plain profile", &timed.profiles, "below 100"));
    rows.extend(timed.rows("NixOS", &timed.systems, "below 100"));
    rows.push(timed.row(
        "NixOS, the activation fails, gone back",
        &timed.failures,
        Times::acknowledged_to_end,
        "",
    ));
    println!("{}", table(&rows));
    println!("{}", table(&idle(before, after)?));
    Ok(())
}

impl Timed {
    fn rows(&self, name: &str, times: &[Times], goal: &str) -> Vec<Vec<String>> {
        let until = |state| move |times: &Times| times.until(|reached| reached == state);
        vec![
            self.row(name, times, Times::acknowledged_to_end, goal),
            self.row(
                &format!("{name}, published to `activating`"),
                times,
                until(State::Activating),
                "",
            ),
            self.row(
                &format!("{name}, published to `confirming`"),
                times,
                until(State::Confirming),
                "",
            ),
        ]
    }

    fn row(
        &self,
        name: &str,
        times: &[Times],
        value: impl Fn(&Times) -> Option<Duration>,
        goal: &str,
    ) -> Vec<String> {
        let values: Vec<_> = times.iter().filter_map(value).collect();
        vec![
            name.to_owned(),
            Sample::of_times(values.iter().copied()).shown(1),
            Sample::ratios(values, self.nix_env.iter().copied()).shown(2),
            goal.to_owned(),
        ]
    }
}

/// What it takes while nothing happens.
fn idle(before: Usage, after: Usage) -> Result<Vec<Vec<String>>> {
    let seconds = IDLE.as_secs_f64();
    let wakeups = u32::try_from(after.wakeups.saturating_sub(before.wakeups))?;
    let file = after.resident.saturating_sub(after.anonymous);
    let rows = [
        ["idle", "", "goal"].map(str::to_owned),
        [
            "resident memory, MB".to_owned(),
            format!("{:.1}", megabytes(after.resident)),
            "below 10".to_owned(),
        ],
        [
            "  its own".to_owned(),
            format!("{:.1}", megabytes(after.anonymous)),
            String::new(),
        ],
        [
            "  of the program's and libraries' files".to_owned(),
            format!("{:.1}", megabytes(file)),
            String::new(),
        ],
        [
            "wake-ups a second".to_owned(),
            format!("{:.2}", f64::from(wakeups) / seconds),
            "below 1".to_owned(),
        ],
        [
            format!("CPU time in {seconds} s, ms"),
            format!("{:.0}", (after.cpu - before.cpu).as_secs_f64() * 1000.0),
            String::new(),
        ],
    ];
    Ok(rows.map(|row| row.to_vec()).to_vec())
}

/// Times all of them, after once each so that nothing has to be fetched while the clock runs.
fn deployments(world: &World, machine: &Machine) -> Result<Timed> {
    let mut publisher = Publisher::connect(world, machine.name())?;
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
    for path in [tool_1, tool_2, a, b] {
        publisher.deploy(world, path, State::Succeeded)?;
    }
    publisher.deploy(world, fails, State::Failed)?;

    let mut timed = Timed::default();
    for _ in 0..ROUNDS {
        timed
            .nix_env
            .extend(nix_env_alone(machine, [tool_1, tool_2], IN_ROUND)?);
        let mut round = |into: &mut Vec<Times>, paths: [&StorePath; 2], state| {
            for path in paths.into_iter().cycle().take(IN_ROUND) {
                into.push(publisher.deploy(world, path, state)?);
            }
            anyhow::Ok(())
        };
        round(&mut timed.profiles, [tool_1, tool_2], State::Succeeded)?;
        round(&mut timed.systems, [a, b], State::Succeeded)?;
        round(&mut timed.failures, [fails, fails], State::Failed)?;
    }
    Ok(timed)
}

/// What Nix itself takes to set a profile, `times` times, measured on the machine without the start of a shell.
pub(super) fn nix_env_alone(
    machine: &Machine,
    paths: [&StorePath; 2],
    times: usize,
) -> Result<Vec<Duration>> {
    let [one, two] = paths;
    let script = format!(
        "for n in $(seq {}); do
            for path in {one} {two}; do
                start=$(date +%s%N)
                nix-env --profile {SCRATCH} --set $path
                echo $(($(date +%s%N) - start))
            done
        done",
        times / 2
    );
    let said = machine.run("/bin/sh", &["-euc", &script])?.success()?;
    said.lines()
        .map(|line| {
            let nanoseconds = line.parse().context("no number")?;
            Ok(Duration::from_nanos(nanoseconds))
        })
        .collect()
}
