//! The agent's core against a simulated world, under random schedules of faults.
//!
//! A schedule delivers, repeats, reorders and loses messages, lets fetches and activations fail, kills the
//! agent between any two effects and the activator at any time, cuts the power, and jumps the clock. After
//! every effect the promises are checked; at the end the faults stop, and the machine has to arrive.
//!
//! `HOIST_SIM_SEED=n` replays one schedule with its trace; `HOIST_SIM_SCHEDULES=n` sets how many there are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fleet;
mod promises;
mod rng;
mod schedule;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

/// Runs one schedule; on failure its trace.
fn run(seed: u64) -> Result<schedule::Coverage, String> {
    schedule::run(seed, false).map_err(|broken| {
        // Only a failing schedule is worth the cost of writing its trace.
        let trace = schedule::run(seed, true).err().unwrap_or_default();
        format!("{trace}\nseed {seed}: {broken}\nreplay with HOIST_SIM_SEED={seed}")
    })
}

#[test]
fn every_schedule_keeps_the_promises() {
    if let Some(seed) = setting("HOIST_SIM_SEED") {
        match schedule::run(seed, true) {
            Ok(coverage) => println!("seed {seed} keeps the promises: {coverage:?}"),
            Err(trace) => panic!("{trace}"),
        }
        return;
    }
    let schedules = setting("HOIST_SIM_SCHEDULES").unwrap_or(10_000);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let coverage = std::thread::scope(|scope| {
        let work = || {
            let mut coverage = schedule::Coverage::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= schedules {
                    return Ok(coverage);
                }
                match run(seed) {
                    Ok(one) => coverage.add(&one),
                    Err(failure) => {
                        // The others need not go on.
                        next.store(schedules, Ordering::Relaxed);
                        return Err(failure);
                    }
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = schedule::Coverage::default();
        for thread in threads {
            match thread.join().unwrap() {
                Ok(one) => sum.add(&one),
                Err(failure) => panic!("{failure}"),
            }
        }
        sum
    });
    println!("{schedules} schedules: {coverage:?}");
    if schedules >= 1_000 {
        // A simulator that never gets anywhere keeps every promise.
        coverage.assert_complete();
    }
}
