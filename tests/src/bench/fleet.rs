//! Twenty machines on one computer, deployed to by `hoist deploy`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hoist_protocol::{AgentName, StorePath};

use crate::bench::agent::{NOTHING, nix_env_alone, system};
use crate::bench::report::{Sample, table};
use crate::machine::Machine;
use crate::world::{Options, Site, World};

/// How many machines there are.
const MACHINES: usize = 20;

/// How often each of two closures is deployed to all of them while the clock runs, and `nix-env --set` beside it.
const ROUNDS: usize = 5;

/// Measures and prints.
pub(super) fn measure() -> Result<()> {
    eprintln!("the fleet: {MACHINES} machines, {} times", 2 * ROUNDS);
    let world = World::create(Site::create("bench-fleet")?, Options::default())?;
    let machines = (1..=MACHINES)
        .map(|n| world.running(&format!("web-{n}")))
        .collect::<Result<Vec<_>>>()?;
    let closures = ["a", "b"].map(|version| system("web", version, NOTHING));
    let paths = world.builder.build_all(&closures)?;
    world.builder.push_all(&paths, &world.cache)?;
    // Each machine has both before the clock runs.
    for path in &paths {
        deploy(&world, &machines, path)?;
    }
    let [one, two] = &paths[..] else {
        anyhow::bail!("each closure has a path: {paths:?}");
    };
    let (mut times, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for path in [one, two] {
            times.push(deploy(&world, &machines, path)?);
        }
        // As often as there are machines, for each deployment.
        let all = nix_env_alone(&machines[0], [one, two], 2 * MACHINES)?;
        alone.extend(
            all.chunks(MACHINES)
                .map(|some| some.iter().sum::<Duration>()),
        );
    }
    let ratios = Sample::ratios(times.iter().copied(), alone.iter().copied());
    println!("## Fleet\n");
    println!(
        "{}",
        table(&[
            [
                "s",
                "median (least to most)",
                "times `nix-env --set`",
                "goal"
            ]
            .map(str::to_owned)
            .to_vec(),
            vec![
                format!("`hoist deploy` to {MACHINES} machines, start to end"),
                Sample::of_seconds(times).shown(2),
                ratios.shown(2),
                "below 2".to_owned(),
            ],
            vec![
                format!("`nix-env --set` alone, {MACHINES} times"),
                Sample::of_seconds(alone).shown(2),
                "1".to_owned(),
                String::new(),
            ],
        ])
    );
    Ok(())
}

/// `hoist deploy` of one closure to all of them, from its start to its end.
fn deploy(world: &World, machines: &[Machine], path: &StorePath) -> Result<Duration> {
    let agents: Vec<(&AgentName, &StorePath)> = machines
        .iter()
        .map(|machine| (machine.name(), path))
        .collect();
    let spec = world.spec(&agents, None)?;
    let start = Instant::now();
    let mut hoist = world.start_hoist("hoist", &["deploy", spec.as_str()])?;
    hoist.wait_closely()?;
    let took = start.elapsed();
    for machine in machines {
        let runs = machine.current_system()?;
        ensure!(
            runs.as_ref() == Some(path),
            "{} runs {runs:?}",
            machine.name()
        );
    }
    Ok(took)
}
