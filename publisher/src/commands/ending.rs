//! How a command that follows machines ends: its report, its exit code, and what to do next.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use camino::Utf8Path;

use super::CommandError;
use super::send::Sending;
use crate::FollowArgs;
use crate::ci::{Log, summary};
use crate::console::Console;
use crate::drive::Stop;
use crate::follow::Published;
use crate::lines_shown::LinesShown;
use crate::outcome::{Exit, Outcome, exit_of};
use crate::report::Report;
use crate::settings::process_environment;

/// Most machines that are named in one sentence.
pub(super) const NAMED: usize = 8;

/// Where the end is said, and what it depends on.
pub(super) struct Ending<'a> {
    pub(super) console: &'a Console,
    pub(super) log: &'a Log,
    pub(super) waits_for_all: bool,
    /// How long it was allowed to take.
    pub(super) timeout: Duration,
    pub(super) json: bool,
}

/// What is said last of all.
enum Last {
    Note(String),
    Warning(String),
}

impl Ending<'_> {
    /// Puts the exit code into the report, prints it, and says what somebody may do about it.
    ///
    /// # Errors
    /// [`CommandError::Output`]
    pub(super) fn finish(
        &self,
        report: &mut Report,
        stop: &Stop,
        lines_shown: &LinesShown,
        published: Published,
    ) -> Result<Exit, CommandError> {
        let console = self.console;
        let all = self.waits_for_all;
        // Every way to end: the exit code, and what is to be said after the report.
        let (exit, last) = match stop {
            Stop::Over | Stop::Halted(_) => (exit_of(&report.outcomes(), all), Vec::new()),
            Stop::Cancelled(_) => (exit_of_cancelled(&report.outcomes(), all), Vec::new()),
            Stop::TimeUp => {
                let after = crate::duration::show(self.timeout);
                let said = format!("the time was up after {after}; {}", how_to_watch(report));
                (exit_of(&report.outcomes(), all), vec![Last::Note(said)])
            }
            Stop::Interrupted => {
                report.time_was_not_up();
                report.interrupted = true;
                let mut last = Vec::new();
                if !published.is_over() {
                    let Published { there, of, .. } = published;
                    last.push(Last::Warning(format!(
                        "interrupted after {there} of {of} deployments had been published and read back"
                    )));
                }
                last.push(Last::Note(format!(
                    "interrupted: the machines are left alone and go on by themselves; {}",
                    how_to_watch(report)
                )));
                (Exit::Interrupted, last)
            }
            Stop::Lost(error) => {
                report.time_was_not_up();
                let error = std::error::Error::source(error)
                    .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
                let said = format!("{error}; {}", how_to_watch(report));
                (Exit::Error, vec![Last::Warning(said)])
            }
        };
        report.exit_code = exit.code();
        show_tails(console, report, lines_shown);
        self.log.end_section();
        let printed = match self.json {
            true => self.log.json(&report.to_json()),
            false => self.log.table(&report.table()),
        };
        printed.map_err(CommandError::Output)?;
        for said in last {
            match said {
                Last::Note(text) => console.note(&text),
                Last::Warning(text) => console.warn(&text),
            }
        }
        if report.machines.is_empty() {
            return Ok(exit);
        }
        let took = Duration::from_secs_f64(report.seconds);
        console.note(&format!(
            "{} in {}",
            report.summary(),
            crate::duration::show(took)
        ));
        self.log.annotate(report);
        Ok(exit)
    }
}

impl Sending<'_> {
    /// Writes the files that tell of the run.
    pub(super) fn leave(&self, console: &Console, report: &Report) {
        let summary = || summary::markdown(report);
        leave(self.follow(), console, || report.to_json(), summary);
    }
}

/// Writes the files that tell of a run, or of what one would do: the JSON document, and the Markdown.
pub(super) fn leave(
    follow: &FollowArgs,
    console: &Console,
    json: impl Fn() -> String,
    summary: impl Fn() -> String,
) {
    if let Some(path) = &follow.report {
        not_written(console, path, std::fs::write(path, json()));
    }
    if let Some(path) = &follow.summary {
        not_written(console, path, std::fs::write(path, summary()));
    } else if let Some(path) = process_environment("GITHUB_STEP_SUMMARY") {
        // Other commands of the same step write there too.
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(summary().as_bytes()));
        not_written(console, path.as_str().into(), written);
    }
}

/// The exit code of a rollout that somebody cancelled: it is the reason why batches did not come, and no success.
fn exit_of_cancelled(outcomes: &[Outcome], waited_for_all: bool) -> Exit {
    let of_cancelled = |outcome: &Outcome| match outcome {
        Outcome::NotBegun => Outcome::Cancelled,
        outcome => *outcome,
    };
    let outcomes: Vec<Outcome> = outcomes.iter().map(of_cancelled).collect();
    match exit_of(&outcomes, waited_for_all) {
        Exit::Ok | Exit::Offline => Exit::Superseded,
        graver => graver,
    }
}

/// A failure to write what CI is shown: what was done is done.
fn not_written(console: &Console, path: &Utf8Path, written: std::io::Result<()>) {
    if let Err(error) = written {
        console.warn(&format!("cannot write `{path}`: {error}"));
    }
}

/// The end of the log of what did not go well, unless it has been seen as it came.
fn show_tails(console: &Console, report: &Report, lines_shown: &LinesShown) {
    for machine in &report.machines {
        let told = matches!(
            machine.outcome,
            Outcome::Failed | Outcome::RolledBack | Outcome::RollbackFailed | Outcome::Conflict
        );
        let all = machine.log_lines.unwrap_or(0);
        if !told || lines_shown.count(&machine.agent) >= all {
            continue;
        }
        let agent = &machine.agent;
        console.note(&format!(
            "{agent} | the last {} of {all} lines of its log:",
            machine.log_tail.len()
        ));
        for line in &machine.log_tail {
            console.note(&format!("{agent} |   {}", line.as_str().replace('\n', " ")));
        }
    }
}

fn how_to_watch(report: &Report) -> String {
    let open: Vec<&str> = report
        .machines
        .iter()
        .filter(|machine| matches!(machine.outcome, Outcome::TimedOut | Outcome::Offline))
        .map(|machine| machine.agent.as_str())
        .collect();
    if open.is_empty() || open.len() > NAMED {
        return "`hoist status` shows how they do".to_owned();
    }
    format!(
        "`hoist status {}` shows how they do, `hoist logs {} --follow` what they say",
        open.join(" "),
        open[0]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_that_was_cancelled_is_no_success_and_hides_no_failure() {
        let exit = |outcomes: &[Outcome]| exit_of_cancelled(outcomes, false);
        let done = [Outcome::Succeeded, Outcome::NotBegun];
        assert_eq!(exit(&done), Exit::Superseded);
        assert_eq!(exit(&[Outcome::Succeeded]), Exit::Superseded);
        assert_eq!(exit(&[Outcome::Offline]), Exit::Superseded);
        assert_eq!(
            exit(&[Outcome::RolledBack, Outcome::NotBegun]),
            Exit::RolledBack
        );
    }
}
