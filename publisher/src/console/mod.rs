//! What people see: progress and remarks on stderr, results on stdout.

mod bars;
mod describe;
mod lines;
pub(crate) mod listing;
pub mod table;

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use hoist_protocol::{AgentName, LogLine, Stream, Text};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::follow::{Outlook, Published};
use bars::Bars;
pub use describe::{describe, fetched};
use lines::Lines;

/// How much is said on stderr while a command works.
pub struct Console {
    quiet: bool,
    progress: Progress,
}

enum Progress {
    /// On a terminal: one line for each machine, redrawn.
    Bars(Bars),
    /// Elsewhere: a line for each change.
    Lines(Lines),
}

/// Whether stderr may be coloured: it is a terminal, and `NO_COLOR` (<https://no-color.org>) is not set.
#[must_use]
pub fn stderr_has_colours() -> bool {
    io::stderr().is_terminal() && wants_colours()
}

/// Whether stdout may be coloured.
#[must_use]
pub fn stdout_has_colours() -> bool {
    io::stdout().is_terminal() && wants_colours()
}

fn wants_colours() -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_colour && !is_dumb()
}

/// Columns and rows of the terminal; one that does not say has 80 and 24.
#[must_use]
pub fn terminal_size() -> (u16, u16) {
    match crossterm::terminal::size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => (columns, rows),
        Ok(_) | Err(_) => (80, 24),
    }
}

/// Whether the terminal can do nothing but print.
#[must_use]
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

impl Console {
    /// A console. A quiet one says nothing but warnings.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let is_terminal = io::stderr().is_terminal() && !is_dumb();
        Self {
            quiet,
            progress: if is_terminal && !quiet {
                Progress::Bars(Bars::new(stderr_has_colours()))
            } else {
                Progress::Lines(Lines::default())
            },
        }
    }

    /// Says something in passing.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Warns, also when quiet.
    pub fn warn(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    /// Shows a line of a machine's log, below its name.
    pub fn log_line(&self, agent: &AgentName, line: &LogLine) {
        if !self.quiet {
            self.line(&log_line(agent, line));
        }
    }

    /// Shows where the machines stand, as far as that has changed. A batch that has still to stay well does so for
    /// `bakes_for`.
    pub fn show<'a>(
        &mut self,
        published: Published,
        machines: impl Iterator<Item = Outlook<'a>>,
        bakes_for: Option<Duration>,
    ) {
        if self.quiet {
            return;
        }
        match &mut self.progress {
            Progress::Bars(bars) => bars.show(published, machines, bakes_for),
            Progress::Lines(lines) => {
                for line in lines.changes(published, machines) {
                    to_stderr(&line);
                }
            }
        }
    }

    /// Takes the progress away, so that results can follow.
    pub fn finish(&mut self) {
        if let Progress::Bars(bars) = &mut self.progress {
            bars.clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.progress {
            Progress::Bars(bars) => bars.above(text),
            Progress::Lines(_) => to_stderr(text),
        }
    }
}

/// A line of a machine's log as it is shown: the machine, then what was said, indented.
#[must_use]
pub fn log_line(agent: &AgentName, line: &LogLine) -> String {
    // A line may hold line breaks, with which it could look like another machine's.
    let text = line.text.as_str().replace('\n', " ");
    match line.stream {
        Stream::Stdout | Stream::Stderr => format!("{agent} |   {text}"),
        Stream::Hoist => format!("{agent} | hoist: {text}"),
    }
}

/// One line on stderr. When nobody reads stderr there is nobody left to tell.
pub(crate) fn to_stderr(text: &str) {
    if let Err(error) = writeln!(io::stderr().lock(), "{text}") {
        tracing::trace!(%error, "stderr is closed");
    }
}

/// Writes results to stdout. A reader that has seen enough, such as `head`, is no error.
///
/// # Errors
/// Every other failure to write.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Ready when whoever read stdout reads no more, as `head` when it has seen enough: to go on would tell nobody.
///
/// # Errors
/// When the system gives no thread.
pub async fn reader_gone() -> io::Result<()> {
    let (sender, gone) = tokio::sync::oneshot::channel();
    // A thread of its own, since a runtime waits for files that can be read or written and not for their other end.
    let wait = move || {
        // That nobody reads is told without being asked for.
        let stdout = io::stdout();
        let mut stdout = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut stdout, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                // Then the next line that is written fails, or is read.
                Err(error) => {
                    tracing::debug!(%error, "it cannot be told whether somebody reads stdout");
                    return;
                }
            }
        }
        if sender.send(()).is_err() {
            tracing::trace!("the command has ended meanwhile");
        }
    };
    std::thread::Builder::new()
        .name("reader".to_owned())
        .spawn(wait)?;
    match gone.await {
        Ok(()) => Ok(()),
        Err(_) => std::future::pending().await,
    }
}

/// Text of others on one line, short enough for a table.
#[must_use]
pub fn one_line(text: &str) -> String {
    Text::<300>::line(text).to_string()
}
