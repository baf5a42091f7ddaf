//! Running programs, with what is needed to find them again in the journal before they begin.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Activator;
use super::failure::{Failure, shown};
use super::forward::timed_out;
use super::kinds::{self, Call, Verdict};
use super::prepare::busy_for;
use super::program::{End, Gated, Program};
use super::system;
use crate::job::Record;

/// How many of the last lines of a program are kept to be judged, beside the log,
const SAID: usize = 200;

/// and how many bytes of each at the most.
const SAID_LEN: usize = 1024;

/// How long it is waited before what found something else at work is tried again.
const BUSY_POLL: Duration = Duration::from_millis(500);

/// A program that came to its end.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) end: End,
    /// The last lines that it printed.
    pub(super) said: Vec<String>,
}

/// An activation that came to its end and did not go wrong.
#[derive(Debug)]
pub(super) enum Ran {
    Well,
    /// It was activated, but these units failed, as far as it said which.
    UnitsFailed(Vec<String>),
    /// Nothing was activated: it takes effect at a boot.
    NeedsBoot,
}

impl Activator {
    /// Runs a program, with `records` and the program itself in the journal before it does anything.
    pub(super) fn run(
        &mut self,
        program: &Program,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Run, Failure> {
        let cannot = |error: &std::io::Error| {
            Failure::internal(&format!("cannot run {}", program.title), error)
        };
        if let Some(exit_code) = &program.exit_code
            && let Err(error) = std::fs::remove_file(exit_code)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Failure::internal("cannot remove an old exit code", &error));
        }
        let begun = Instant::now();
        let gated = Gated::start(program).map_err(|error| cannot(&error))?;
        let mut records: Vec<_> = records.into_iter().collect();
        let durable = !records.is_empty();
        records.push(Record::Running(gated.record().clone()));
        let noted = if durable {
            self.journal.append(records)
        } else {
            self.journal.note(records)
        };
        match noted {
            // On the way back nothing may stop at a journal that cannot be written any more.
            Err(error) if durable => return Err(error.into()),
            Err(error) => self.log.say(&format!("cannot write the journal: {error}")),
            Ok(()) => {}
        }
        let log = &mut self.log;
        let mut said = VecDeque::new();
        let end = gated
            .run(
                |stream, text| {
                    log.line(stream, text);
                    if said.len() == SAID {
                        said.pop_front();
                    }
                    said.push_back(text.chars().take(SAID_LEN).collect());
                },
                system::stop_unit,
            )
            .map_err(|error| cannot(&error))?;
        if let Err(error) = self.journal.note([Record::Ended]) {
            self.log.say(&format!("cannot write the journal: {error}"));
        }
        let end = self.end_in_unit(program, end, begun)?;
        Ok(Run {
            end,
            said: said.into(),
        })
    }

    /// How a program in a unit has really ended: by what it wrote down itself.
    fn end_in_unit(&self, program: &Program, end: End, begun: Instant) -> Result<End, Failure> {
        let (Some(unit), Some(exit_code), End::Exited(status)) =
            (&program.unit, &program.exit_code, end)
        else {
            return Ok(end);
        };
        if status.success() {
            return Ok(end);
        }
        let left = program.limit.saturating_sub(begun.elapsed());
        system::outcome_of_unit(unit, exit_code, left)
            .map(|code| code.map_or(end, End::Exited))
            .map_err(|error| Failure::internal("cannot find out how the switch ended", &error))
    }

    /// Runs an activation, again while something else is at work; what goes wrong is an error. A closure without
    /// a program has nothing to run.
    pub(super) fn run_activation(
        &mut self,
        call: &Call,
        records: Vec<Record>,
    ) -> Result<Ran, Failure> {
        let kind = kinds::of(&call.kind)?;
        let begun = Instant::now();
        let mut records = Some(records);
        loop {
            let Some(program) = kind.activation(call) else {
                return Ok(Ran::Well);
            };
            let what = &program.title;
            let run = self.run(&program, records.take().unwrap_or_default())?;
            let status = match run.end {
                End::Exited(status) => status,
                End::TimedOut => {
                    if let Err(error) = kind.clear_leftovers() {
                        self.log
                            .say(&format!("cannot clear what it left behind: {error}"));
                    }
                    return Err(timed_out(what, call.limit));
                }
            };
            match kind.verdict(status, &run.said) {
                Verdict::Done => return Ok(Ran::Well),
                Verdict::UnitsFailed(units) => return Ok(Ran::UnitsFailed(units)),
                Verdict::NeedsBoot => return Ok(Ran::NeedsBoot),
                Verdict::Busy if begun.elapsed() >= self.busy_limit() => {
                    return Err(busy_for(begun.elapsed()));
                }
                Verdict::Busy => {
                    self.log
                        .say("something else changes the system; trying again");
                    std::thread::sleep(BUSY_POLL);
                }
                Verdict::Failed(wrong) => {
                    return Err(wrong.into_failure(format!(
                        "`{what}` {}: {}",
                        shown(status),
                        wrong.meaning
                    )));
                }
            }
        }
    }

    /// Runs what sets the boot loader, again while something else is at work.
    pub(super) fn run_commitment(
        &mut self,
        call: &Call,
        program: &Program,
    ) -> Result<Run, Failure> {
        let kind = kinds::of(&call.kind)?;
        let begun = Instant::now();
        loop {
            let run = self.run(program, [])?;
            let busy = match run.end {
                End::Exited(status) => kind.verdict(status, &run.said) == Verdict::Busy,
                End::TimedOut => false,
            };
            if !busy || begun.elapsed() >= self.busy_limit() {
                return Ok(run);
            }
            self.log
                .say("something else changes the system; trying again");
            std::thread::sleep(BUSY_POLL);
        }
    }
}
