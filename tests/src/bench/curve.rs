//! What the broker costs as a fleet grows: in line with the number of agents, if nothing in it looks at all of them for
//! each.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, getrlimit};
use tokio::runtime::Runtime;

use crate::bench::contestant::Contestant;
use crate::bench::load::{Load, Measured};
use crate::bench::report::table;
use crate::bench::{OTHER_FILES, allow_files};
use crate::world::Site;

/// How many agents there are, step by step; the last steps only where the limit of open files lets them.
const AGENTS: [usize; 6] = [1000, 2000, 5000, 10_000, 20_000, 50_000];

/// Measures Hoist's broker with each number of agents and prints.
pub(super) fn measure(runtime: &Runtime) -> Result<()> {
    let steps = within_limits()?;
    let most = *steps.last().context("there are steps")?;
    let site = Site::create("bench-curve")?;
    let mut load = Load::prepare(most, &site)?;
    let header = [
        "agents",
        "connect, ms",
        "reconnect, report, ms",
        "CPU of that, ms",
        "deploy, ms",
    ];
    let header = header
        .into_iter()
        .chain(["CPU of that, ms", "snapshot, ms", "KiB a connection"]);
    let mut rows = vec![header.map(str::to_owned).collect::<Vec<_>>()];
    for (round, agents) in (0..).zip(steps) {
        eprintln!("{agents} agents");
        load.take_part(agents);
        let mut broker = Contestant::Hoist.start(&site, &load, round)?;
        let measured = runtime
            .block_on(load.measure(broker.port(), broker.pid()))
            .with_context(|| format!("with {agents} agents"))?;
        broker.stop()?;
        rows.push(row(agents, &measured));
    }
    println!("## Broker, by the number of agents\n");
    println!(
        "In brackets what that is for each agent, in microseconds.\n\n{}",
        table(&rows)
    );
    Ok(())
}

/// The steps that this machine allows: a process has a file for each connection.
fn within_limits() -> Result<Vec<usize>> {
    let limit = getrlimit(Resource::Nofile).maximum;
    let most = limit.map_or(usize::MAX, |files| {
        usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX)
    });
    ensure!(
        most >= AGENTS[0],
        "more open files are needed (`ulimit -Hn`)"
    );
    let mut steps: Vec<usize> = AGENTS
        .into_iter()
        .filter(|agents| *agents <= most)
        .collect();
    if let Some(next) = AGENTS.get(steps.len()) {
        eprintln!(
            "{most} agents instead of {next} and more: the limit of open files (`ulimit -Hn`) allows no more"
        );
        steps.push(most);
    }
    let files = steps
        .last()
        .copied()
        .map_or(0, |most| u64::try_from(most).unwrap_or(u64::MAX));
    allow_files(files.saturating_add(OTHER_FILES))?;
    Ok(steps)
}

fn row(agents: usize, measured: &Measured) -> Vec<String> {
    let each = u32::try_from(agents).unwrap_or(u32::MAX);
    let shown = |time: Duration| {
        let of_each = time / each;
        format!("{} ({:.0})", time.as_millis(), of_each.as_secs_f64() * 1e6)
    };
    let kib = Duration::from_millis(measured.connection).as_secs_f64() * 1000.0 / 1024.0;
    vec![
        agents.to_string(),
        shown(measured.connect),
        shown(measured.storm),
        shown(measured.storm_cpu),
        shown(measured.deploy),
        shown(measured.deploy_cpu),
        shown(measured.snapshot),
        format!("{kib:.1}"),
    ]
}
