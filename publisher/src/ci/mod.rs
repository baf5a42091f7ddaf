//! What CI systems show of a run: foldable sections, annotations, a summary, and deployment statuses.
//!
//! GitHub reads commands out of everything that a job prints (`::error::…` at the start of a line, `##[…]` anywhere),
//! and what machines log is printed. So from the beginning on commands are turned off, under a word
//! that nobody can guess, and turned on only for our own.

pub mod deployment;
pub mod summary;

use std::cell::RefCell;
use std::io::Write as _;

use hoist_certs::program::now;
use hoist_protocol::Text;

use crate::console::print;
use crate::outcome::Outcome;
use crate::report::Report;
use crate::settings::Environment;

/// Most errors that GitHub shows for one step; of more it drops the last.
const ANNOTATIONS: usize = 10;

/// Which CI system reads what we print.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum System {
    /// GitHub Actions, or what takes its place, such as Gitea's and Forgejo's.
    GitHub,
    /// GitLab CI.
    GitLab,
}

impl System {
    /// That in which this process runs, if any.
    #[must_use]
    pub fn of(environment: Environment<'_>) -> Option<Self> {
        let is_set = |name| environment(name).is_some_and(|value| value == "true");
        if is_set("GITHUB_ACTIONS") {
            Some(Self::GitHub)
        } else if is_set("GITLAB_CI") {
            Some(Self::GitLab)
        } else {
            None
        }
    }
}

/// What is printed for a CI system, on stderr among the remarks. Nothing elsewhere.
pub struct Log {
    system: Option<System>,
    /// Turns GitHub's commands on again.
    word: String,
    /// The section that is open, by a name for programs.
    open: RefCell<Option<String>>,
}

impl Log {
    /// For the CI system of this `environment`: on GitHub its commands are off from now on.
    #[must_use]
    pub fn begin(environment: Environment<'_>) -> Self {
        let log = Self {
            system: System::of(environment),
            word: uuid::Uuid::from_u128(rand::random()).to_string(),
            open: RefCell::new(None),
        };
        write(&log.off());
        log
    }

    /// Opens a section that can be folded, and closes the one before.
    pub fn section(&self, title: &str) {
        let end = self.ending();
        let begin = match self.system {
            None => String::new(),
            Some(System::GitHub) => {
                format!("{}::group::{}\n{}", self.on(), data(title), self.off())
            }
            Some(System::GitLab) => {
                let name = format!("hoist_{}", uuid::Uuid::now_v7().simple());
                let begin = format!(
                    "\u{1b}[0Ksection_start:{}:{name}[collapsed=true]\r\u{1b}[0K{}\n",
                    now().as_ms() / 1000,
                    one_line(title)
                );
                *self.open.borrow_mut() = Some(name);
                begin
            }
        };
        if self.system == Some(System::GitHub) {
            *self.open.borrow_mut() = Some(String::new());
        }
        write(&(end + &begin));
    }

    /// Closes the section that is open: what follows is always shown.
    pub fn end_section(&self) {
        write(&self.ending());
    }

    fn ending(&self) -> String {
        let Some(name) = self.open.borrow_mut().take() else {
            return String::new();
        };
        match self.system {
            None => String::new(),
            Some(System::GitHub) => format!("{}::endgroup::\n{}", self.on(), self.off()),
            Some(System::GitLab) => format!(
                "\u{1b}[0Ksection_end:{}:{name}\r\u{1b}[0K\n",
                now().as_ms() / 1000
            ),
        }
    }

    /// Prints a table for people, in which is what machines say.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn table(&self, text: &str) -> std::io::Result<()> {
        match self.system {
            // Whoever reads two streams does not know their order: where our marks are not, commands may be on.
            Some(System::GitHub) => {
                write(text);
                Ok(())
            }
            Some(System::GitLab) | None => print(text),
        }
    }

    /// Prints a JSON document, for programs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn json(&self, text: &str) -> std::io::Result<()> {
        match self.system {
            Some(System::GitHub) => print(&without_commands(text)),
            Some(System::GitLab) | None => print(text),
        }
    }

    /// Marks the run with what went wrong, machine by machine.
    pub fn annotate(&self, report: &Report) {
        if self.system == Some(System::GitHub) {
            write(&format!(
                "{}{}{}",
                self.on(),
                annotations(report),
                self.off()
            ));
        }
    }

    fn off(&self) -> String {
        match self.system {
            Some(System::GitHub) => format!("::stop-commands::{}\n", self.word),
            _ => String::new(),
        }
    }

    fn on(&self) -> String {
        format!("::{}::\n", self.word)
    }
}

impl Drop for Log {
    /// Later steps of the same job have their commands.
    fn drop(&mut self) {
        let mut last = self.ending();
        if self.system == Some(System::GitHub) {
            last += &self.on();
        }
        write(&last);
    }
}

/// Marks the run with why it has no result.
pub fn failed(message: &str, environment: Environment<'_>) {
    if System::of(environment) == Some(System::GitHub) {
        write(&format!("::error title=Hoist::{}\n", data(message)));
    }
}

/// When nobody reads stderr there is nobody left to tell.
fn write(text: &str) {
    if let Err(error) = std::io::stderr().lock().write_all(text.as_bytes()) {
        tracing::trace!(%error, "stderr is closed");
    }
}

/// The same JSON without what GitHub takes for a command in the middle of a line; at the beginning of one there is none.
fn without_commands(json: &str) -> String {
    json.replace("##[", "\\u0023\\u0023[")
}

fn annotations(report: &Report) -> String {
    let bad: Vec<_> = (report.machines.iter())
        .filter(|machine| is_bad(machine.outcome))
        .collect();
    let shown = match bad.len() {
        all if all <= ANNOTATIONS => all,
        // The last place is for how many there are.
        _ => ANNOTATIONS - 1,
    };
    let mut text = String::new();
    for machine in &bad[..shown] {
        let title = format!("{} {}", machine.agent, machine.outcome);
        let message = match machine.message.as_str() {
            "" => machine.outcome.to_string(),
            message => message.to_owned(),
        };
        text += &format!("::error title={}::{}\n", property(&title), data(&message));
    }
    if shown < bad.len() {
        text += &format!(
            "::error title=Hoist::{} more machines did not end well; the job's summary names them\n",
            bad.len() - shown
        );
    }
    text
}

/// What somebody has to look at. A machine that is away or was overtaken is fine.
const fn is_bad(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Offline
        | Outcome::Deferred
        | Outcome::Superseded
        | Outcome::Cancelled
        | Outcome::NotBegun
        | Outcome::UnderWay => false,
        outcome => !outcome.is_good(),
    }
}

fn one_line(text: &str) -> String {
    Text::<1024>::line(text).to_string()
}

/// A message of a GitHub command: <https://docs.github.com/actions/reference/workflow-commands-for-github-actions>.
fn data(text: &str) -> String {
    Text::<1024>::lossy(text)
        .as_str()
        .replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A property of one, in which colons and commas have a meaning too.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{Closure, MachineReport};
    use crate::testing::machine;

    fn report(outcome: Outcome, count: usize, message: &str) -> Report {
        let machines = (0..count).map(|n| {
            let agent = machine(&format!("web-{n}")).agent;
            let mut report = MachineReport::unsigned(agent, message, Closure::default());
            report.outcome = outcome;
            report
        });
        let machines = machines.collect();
        let fleet = machine("web-1").fleet;
        Report::new("deploy", fleet, machines, Vec::new(), Duration::ZERO)
    }

    #[test]
    fn a_machines_words_stay_inside_of_their_annotation() {
        let hostile = "it\n::add-mask::x\n::error title=a,b::c % d";
        let text = annotations(&report(Outcome::Failed, 1, hostile));
        assert_eq!(
            text,
            "::error title=web-0 failed::it%0A::add-mask::x%0A::error title=a,b::c %25 d\n"
        );
        assert_eq!(property("a:b,c%"), "a%3Ab%2Cc%25");
    }

    #[test]
    fn a_json_document_says_the_same_without_a_command_in_it() {
        let said = serde_json::json!({ "message": "a ###[error]b ##[add-mask]c" });
        let shown = without_commands(&said.to_string());
        assert!(!shown.contains("##["), "{shown}");
        let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(read, said);
    }

    #[test]
    fn there_are_no_more_annotations_than_are_shown() {
        let lines = |count| {
            annotations(&report(Outcome::Failed, count, "m"))
                .lines()
                .count()
        };
        assert_eq!(
            (lines(0), lines(10), lines(11), lines(500)),
            (0, 10, 10, 10)
        );
        let text = annotations(&report(Outcome::RolledBack, 500, "m"));
        assert!(text.contains("491 more machines"), "{text}");
    }

    #[test]
    fn a_machine_that_is_away_is_no_error() {
        for outcome in [Outcome::Offline, Outcome::Succeeded, Outcome::NotBegun] {
            assert_eq!(annotations(&report(outcome, 3, "m")), "", "{outcome}");
        }
    }
}
