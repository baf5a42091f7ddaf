//! Deployment after deployment to one agent, with whatever goes wrong in between: nothing is lost, told twice, left
//! behind or grows.
//!
//! In the first half agent and activator are killed now and then. In the second half the agent lives on, so that its
//! memory and its open files can be watched.

mod plan;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use hoist_protocol::DeploymentId;

use crate::machine::{Machine, SYSTEM_PROFILE};
use crate::remains::Remains;
use crate::usage::{Usage, mebibytes};
use crate::world::{self, Site, World};
use plan::Plan;
use run::Closures;

/// How much more memory the agent may have at the end than after the first few deployments, in bytes: what the
/// allocator keeps differs.
const MEMORY_SLACK: u64 = 2 * 1024 * 1024;

/// How many more files the agent may have open at the end: a connection that is being closed, a program that ends.
const FILES_SLACK: usize = 4;

/// How much larger the state folder may be at the end, in bytes: the ledger remembers a bounded number of deployments,
/// and the count is taken when it may not know as many yet.
const STATE_SLACK: u64 = 128 * 1024;

/// After how many deployments it says how far it is.
const PROGRESS: u32 = 50;

/// Deploys to one machine again and again, kills what can be killed, and looks at what is left
#[derive(Parser)]
#[command(name = "hoist-soak")]
pub struct Options {
    /// How many deployments
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    pub deployments: u32,
}

/// What came of it.
pub struct Report {
    deployments: u32,
    outcomes: BTreeMap<String, u32>,
    kills: u32,
    took: Duration,
    /// At the start of the second half, and at the end.
    usage: [Usage; 2],
    remains: [Remains; 2],
    gc_roots: [usize; 2],
    generations: usize,
}

/// Runs it in a world of its own and prints the figures.
///
/// # Errors
/// What does not hold, with the ends of all logs.
pub fn run(options: &Options) -> Result<()> {
    let world = World::create(Site::create("soak")?, world::Options::default())?;
    let report = soak(&world, options.deployments).map_err(|error| {
        let story = world
            .site()
            .story()
            .unwrap_or_else(|error| error.to_string());
        error.context(story)
    })?;
    println!("{report}");
    Ok(())
}

/// Deploys `deployments` times to a new machine of `world`.
///
/// # Errors
/// What does not hold.
pub fn soak(world: &World, deployments: u32) -> Result<Report> {
    let start = Instant::now();
    let mut machine = world.running("soak")?;
    let closures = Closures::push(world)?;
    let plan = Plan::new(deployments);
    let mut outcomes = BTreeMap::new();
    let mut ids = BTreeSet::new();
    let mut kills = 0;
    let mut middle = None;
    for step in plan {
        if step.number == deployments / 2 {
            machine.stop_agent()?;
            machine.start_agent()?;
        }
        let (id, state) =
            run::deploy(world, &mut machine, &closures, &step).with_context(|| {
                format!("deployment {} of {deployments}: {step:?}", step.number + 1)
            })?;
        ensure!(ids.insert(id), "{id} was used twice");
        *outcomes.entry(state.to_string()).or_default() += 1;
        if (step.number + 1).is_multiple_of(PROGRESS) {
            eprintln!("{} of {deployments} deployments", step.number + 1);
        }
        kills += u32::from(step.kill.is_some());
        // A few deployments after the agent has started: it has all that it needs by then.
        if step.number == deployments / 2 + deployments / 10 {
            middle = Some(Look::at(&mut machine)?);
        }
    }
    let first = middle.context("the plan has a second half")?;
    let last = Look::at(&mut machine)?;
    each_told_once(world, &machine, &ids)?;
    let generations = machine.generations(SYSTEM_PROFILE)?.len();
    run::collect_garbage(&machine, &closures)?;
    let report = Report {
        deployments,
        outcomes,
        kills,
        took: start.elapsed(),
        usage: [first.usage, last.usage],
        remains: [first.remains, last.remains],
        gc_roots: [first.gc_roots, last.gc_roots],
        generations,
    };
    report.check()?;
    Ok(report)
}

/// The machine with nothing under way.
struct Look {
    usage: Usage,
    remains: Remains,
    gc_roots: usize,
}

impl Look {
    fn at(machine: &mut Machine) -> Result<Self> {
        let remains = machine.wait_idle(|_| false)?;
        Ok(Self {
            usage: Usage::of(machine.agent()?.pid())?,
            gc_roots: run::gc_roots(machine)?,
            remains,
        })
    }
}

/// Looks through all that the machine ever said: each deployment ended once, and never again otherwise.
fn each_told_once(world: &World, machine: &Machine, ids: &BTreeSet<DeploymentId>) -> Result<()> {
    let mut ends: BTreeMap<DeploymentId, BTreeSet<String>> = BTreeMap::new();
    for status in world.watch().statuses(machine.name())? {
        if let Some(id) = status.id.filter(|_| status.state.is_final()) {
            ends.entry(id).or_default().insert(status.state.to_string());
        }
    }
    for (id, states) in &ends {
        ensure!(states.len() == 1, "{id} ended as each of {states:?}");
    }
    let told: BTreeSet<DeploymentId> = ends.into_keys().collect();
    ensure!(
        told == *ids,
        "never heard of the end of {:?}, and of {:?} that nobody deployed",
        ids.difference(&told).collect::<Vec<_>>(),
        told.difference(ids).collect::<Vec<_>>()
    );
    Ok(())
}

impl Report {
    fn check(&self) -> Result<()> {
        let [first, last] = &self.usage;
        ensure!(
            last.resident <= first.resident + MEMORY_SLACK,
            "the agent's memory grows: {self}"
        );
        ensure!(
            last.files <= first.files + FILES_SLACK && last.threads <= first.threads + 1,
            "the agent's files or threads become more: {self}"
        );
        let [first, last] = &self.remains;
        ensure!(
            last.files == first.files && last.damaged == 0,
            "the state folder holds other files than before: {self}"
        );
        ensure!(
            last.bytes <= first.bytes + STATE_SLACK,
            "the state folder grows: {self}"
        );
        let [first, last] = self.gc_roots;
        ensure!(
            last <= first + crate::remains::MOST_ROOTS,
            "what is kept from the garbage collector becomes more: {self}"
        );
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut outcomes = String::new();
        for (state, times) in &self.outcomes {
            write!(outcomes, ", {times} {state}")?;
        }
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "{} deployments in {seconds:.0} s, {:.0} ms each{outcomes}; {} kills",
            self.deployments,
            seconds * 1000.0 / f64::from(self.deployments),
            self.kills
        )?;
        let [before, after] = &self.usage;
        writeln!(
            f,
            "agent: {:.1} MiB, then {:.1} MiB; files {}, then {}; threads {}, then {}",
            before.mebibytes(),
            after.mebibytes(),
            before.files,
            after.files,
            before.threads,
            after.threads
        )?;
        let [before, after] = &self.remains;
        writeln!(
            f,
            "state folder: {:.0} KiB, then {:.0} KiB: {:?}; roots of {} deployments, then of {}",
            mebibytes(before.bytes) * 1024.0,
            mebibytes(after.bytes) * 1024.0,
            after.files,
            before.roots.len(),
            after.roots.len()
        )?;
        let [before, after] = self.gc_roots;
        write!(
            f,
            "roots that Nix finds besides the profile's {} generations: {before}, then {after}",
            self.generations
        )
    }
}
