//! The fault matrix: in every phase of a deployment, every fault. Whatever happens and whenever, the machine ends on
//! the new system, confirmed, or on the one before, and says so exactly once.
//!
//! Each fault has a machine of its own, which goes through all phases, one deployment after another; the machines do
//! so at the same time. What comes out is printed as a table.

mod cell;
mod expected;
mod fault;
mod phase;
mod subject;

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use hoist_tests::isolation::isolated;
use hoist_tests::world::{Options, World, scenario};

use cell::Outcome;
use expected::{Expected, expected};
use fault::Fault;
use phase::Phase;
use subject::{Closures, Subject};

/// How often is deployed where `make soak` deploys a thousand times.
const SHORT_SOAK: u32 = 30;

/// What the cells of one fault came to, in the order of the phases; those after a failure were not tried.
struct Column {
    fault: Fault,
    outcomes: Vec<Outcome>,
    took: Duration,
    failure: Option<String>,
}

#[test]
fn whatever_fails_and_whenever_a_machine_ends_on_one_system_and_tells_it_once() {
    isolated(|| {
        let mut report = String::new();
        scenario(Options::default(), |world| {
            let start = Instant::now();
            let closures = &Closures::build(world)?;
            let world = &*world;
            let columns: Vec<Column> = thread::scope(|scope| {
                let threads =
                    Fault::ALL.map(|fault| scope.spawn(move || column(fault, world, closures)));
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("a column returns what fails"))
                    .collect()
            });
            report = table(&columns, start);
            let failures: String = columns.into_iter().filter_map(|c| c.failure).collect();
            assert!(failures.is_empty(), "\n{failures}\n{report}");
            Ok(())
        });
        report
    });
}

/// Lets the machine of one fault go through all phases.
fn column(fault: Fault, world: &World, closures: &Closures) -> Column {
    let start = Instant::now();
    let mut outcomes = Vec::new();
    let tried = Subject::create(fault, world, closures).and_then(|mut subject| {
        for phase in Phase::ALL {
            let outcome = match expected(phase, fault) {
                Expected::NoSuchCase => Outcome::NotTried,
                expected => {
                    let tried = cell::try_out(&mut subject, phase, closures, expected);
                    tried.map_err(|error| subject.explain(phase, &error))?
                }
            };
            outcomes.push(outcome);
        }
        Ok(())
    });
    Column {
        fault,
        outcomes,
        took: start.elapsed(),
        failure: tried.err().map(|error| format!("{fault}: {error:#}\n")),
    }
}

/// Phases as rows, faults as columns.
fn table(columns: &[Column], start: Instant) -> String {
    let mut text = format!("\n{:14}", "");
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        for cell in cells {
            write!(text, "{cell:>12}").expect("a string takes everything");
        }
        text.push('\n');
    };
    line(&mut columns.iter().map(|column| column.fault.to_string()));
    for (row, phase) in Phase::ALL.into_iter().enumerate() {
        let cell = |column: &Column| match column.outcomes.get(row) {
            Some(outcome) => outcome.to_string(),
            None if column.outcomes.len() == row => "FAILED".to_owned(),
            None => "?".to_owned(),
        };
        line(&mut std::iter::once(format!("{phase:<14}")).chain(columns.iter().map(cell)));
    }
    let seconds = |column: &Column| format!("{:.0} s", column.took.as_secs_f64());
    line(&mut std::iter::once(format!("{:14}", "")).chain(columns.iter().map(seconds)));
    text + &format!(
        "new: on the new system, confirmed; old: on the one before; both reported once. -: {}.\n{:.0} s in all\n",
        expected::NO_SUCH_CASE,
        start.elapsed().as_secs_f64()
    )
}

#[test]
fn many_deployments_leave_nothing_behind_and_lose_nothing() {
    scenario(Options::default(), |world| {
        println!("{}", hoist_tests::soak::soak(world, SHORT_SOAK)?);
        Ok(())
    });
}
