//! Speed and memory, measured beside mosquitto in the same run and printed as tables.
//!
//! Nothing here passes or fails: on a busy machine the numbers mean little, and it is for people to judge them.

mod agent;
mod binaries;
mod contestant;
mod curve;
mod fleet;
pub(crate) mod load;
pub(crate) mod mqtt;
mod publisher;
mod report;
mod restart;
mod scale;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;

use crate::bench::contestant::Contestant;
use crate::bench::load::{Load, Measured};
use crate::world::Site;

/// Files that this program and a broker need besides one for each connection.
const OTHER_FILES: u64 = 200;

/// Measures Hoist's broker beside mosquitto, Hoist's agent and a fleet; takes some minutes
#[derive(Parser)]
#[command(name = "hoist-bench")]
pub struct Options {
    /// How many agents connect to a broker
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    clients: u32,
    /// How often everything is measured; the tables show medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Measure also the mosquitto that writes everything to disk at every change, which takes most of the time then
    #[arg(long)]
    saving: bool,
    /// Measure only this
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// What there is to measure.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Part {
    /// The broker beside mosquitto
    Broker,
    /// What the broker costs with 1,000 to 50,000 agents; measured only when it is asked for
    Curve,
    /// The agent, and the sizes of the programs
    Agent,
    /// `hoist deploy` to a fleet
    Fleet,
    /// `hoist` with thousands of machines, which are simulated
    Publisher,
}

/// Measures and prints.
///
/// # Errors
/// When a program is missing, does not start or does something wrong: a wrong answer is no measurement.
pub fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        println!(
            "These programs are not optimised; `make bench` builds and runs optimised ones.\n"
        );
    }
    let measures = |part| options.only.is_none_or(|only| only == part);
    if measures(Part::Broker) {
        brokers(options)?;
    }
    if options.only == Some(Part::Curve) {
        curve::measure(&runtime()?)?;
    }
    if measures(Part::Agent) {
        binaries::measure()?;
        agent::measure()?;
    }
    if measures(Part::Fleet) {
        fleet::measure()?;
    }
    if measures(Part::Publisher) {
        allow_files(u64::try_from(scale::FILES)? + OTHER_FILES)?;
        scale::measure(&runtime()?)?;
    }
    Ok(())
}

/// Of the load generator.
fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime of the load generator")
}

fn brokers(options: &Options) -> Result<()> {
    allow_files(u64::from(options.clients) + OTHER_FILES)?;
    let runtime = runtime()?;
    let site = Site::create("bench")?;
    let load = Load::prepare(usize::try_from(options.clients)?, &site)?;
    let mut measured: Vec<(Contestant, Vec<Measured>)> = Contestant::ALL
        .into_iter()
        .filter(|contestant| options.saving || *contestant != Contestant::MosquittoSaving)
        .map(|contestant| (contestant, Vec::new()))
        .collect();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        // Each round another one goes first, so that none has the cold or the warm machine for itself.
        let (count, first) = (measured.len(), usize::try_from(round)?);
        for step in 0..count {
            let (contestant, results) = &mut measured[(first + step) % count];
            let mut broker = contestant.start(&site, &load, round)?;
            let result = runtime
                .block_on(load.measure(broker.port(), broker.pid()))
                .with_context(|| format!("{contestant} in round {}", round + 1))?;
            broker.stop()?;
            results.push(result);
        }
    }
    report::print_brokers(&load, &measured);
    restart::measure(&runtime, &site, &load)?;
    Ok(())
}

/// Raises the limit of open files as far as needed, for this process and all that it starts.
fn allow_files(needed: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        bail!(
            "{needed} open files are needed and {} allowed; raise the limit (`ulimit -Hn {needed}` as root), \
             or measure with fewer --clients",
            limit.maximum.unwrap_or_default()
        );
    }
    let raised = Rlimit {
        current: Some(needed),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}
