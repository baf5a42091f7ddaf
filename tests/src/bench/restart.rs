//! How long a broker takes to be ready again with many retained messages.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::bench::contestant::Contestant;
use crate::bench::load::Load;
use crate::bench::report::{Sample, table};
use crate::world::Site;

/// How many messages are retained.
const RETAINED: usize = 100_000;

/// How often it is started with them.
const STARTS: usize = 5;

/// Measures Hoist's broker, ended in order and killed, and prints.
pub(super) fn measure(runtime: &tokio::runtime::Runtime, site: &Site, load: &Load) -> Result<()> {
    eprintln!("starts with {RETAINED} retained messages");
    let mut broker = Contestant::Hoist.start(site, load, u32::MAX)?;
    runtime.block_on(load.fill(broker.port(), RETAINED))?;
    let mut times = Vec::new();
    for signal in [Signal::TERM, Signal::KILL] {
        let started = (0..STARTS)
            .map(|_| -> Result<Duration> {
                broker.end(signal)?;
                let start = Instant::now();
                broker.start_again(site)?;
                Ok(start.elapsed())
            })
            .collect::<Result<Vec<_>>>()?;
        times.push(Sample::of_times(started));
    }
    let complete = runtime.block_on(load.count_retained(broker.port(), RETAINED));
    complete.context("after the starts")?;
    broker.stop()?;
    let [ended, killed] = &times[..] else {
        anyhow::bail!("two ways to end");
    };
    ensure!(ended.median() > 0.0, "a start takes time");
    println!("## Start with {RETAINED} retained messages\n");
    let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
    println!(
        "{}",
        table(&[
            row(["", "median (least to most)", "goal"]),
            row([
                "ready after it was ended in order, ms",
                &ended.shown(0),
                "below 2000"
            ]),
            row(["ready after kill -9, ms", &killed.shown(0), "below 2000"]),
        ])
    );
    Ok(())
}
