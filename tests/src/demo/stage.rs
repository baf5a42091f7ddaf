//! What the audience sees: a line of narration, the command, and what the program really prints.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use camino::Utf8PathBuf;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::process;
use crate::programs::Programs;
use crate::wait;

const BOLD: &str = "\u{1b}[1m";
const DIM: &str = "\u{1b}[2m";
const GREEN: &str = "\u{1b}[32m";
const PLAIN: &str = "\u{1b}[0m";

/// Where the demo plays.
pub(super) struct Stage {
    dir: Utf8PathBuf,
    programs: Programs,
    colours: bool,
}

impl Stage {
    /// Commands run in `dir`, where `hoist` finds its configuration.
    pub(super) fn new(dir: Utf8PathBuf, programs: Programs) -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            dir,
            programs,
            colours,
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours {
            format!("{colour}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }

    /// A new step.
    pub(super) fn step(&self, title: &str) {
        println!("\n{}", self.paint(BOLD, title));
    }

    /// A line of narration.
    pub(super) fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// What the step has shown, after it was checked.
    pub(super) fn shown(&self, text: &str) {
        println!("  {} {text}", self.paint(GREEN, "✓"));
    }

    /// Runs `hoist`, shows what it prints, and gives its output; it must exit with `code`.
    pub(super) fn hoist(&self, args: &[&str], code: i32) -> Result<String> {
        self.start(args)?.finish(code)
    }

    /// Starts `hoist`, and shows what it prints as it comes.
    pub(super) fn start(&self, args: &[&str]) -> Result<Act> {
        println!(
            "  {}",
            self.paint(BOLD, &format!("$ hoist {}", args.join(" ")))
        );
        // One pipe for both, so that lines come in the order in which a terminal would show them.
        let (reader, writer) = std::io::pipe()?;
        let mut command = process::command(&self.programs.publisher);
        let child = command
            .args(args)
            .current_dir(&self.dir)
            // Whatever the audience has configured for fleets of its own.
            .env("HOIST_CONFIG", "hoist.toml")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()
            .context("cannot start hoist")?;
        // It holds the writing ends; while one is open the reader waits for more.
        drop(command);
        Ok(Act {
            title: format!("hoist {}", args.join(" ")),
            child,
            reader: Some(self.show(reader)),
        })
    }

    /// Prints every line as it comes, and keeps it.
    fn show(&self, from: impl Read + Send + 'static) -> JoinHandle<Result<String>> {
        let bar = self.paint(DIM, "│");
        let log = self.dir.join("logs/hoist.log");
        thread::spawn(move || {
            let mut log = OpenOptions::new().create(true).append(true).open(log)?;
            let mut text = String::new();
            for line in BufReader::new(from).lines() {
                let line = line?;
                println!("  {bar} {line}");
                writeln!(log, "{line}")?;
                text += &line;
                text.push('\n');
            }
            Ok(text)
        })
    }
}

/// A program that runs on the stage; killed when dropped.
pub(super) struct Act {
    title: String,
    child: Child,
    reader: Option<JoinHandle<Result<String>>>,
}

impl Act {
    /// Waits for its end, and gives what it printed; it must exit with `code`.
    pub(super) fn finish(mut self, code: i32) -> Result<String> {
        let status = wait::until(&format!("`{}` ends", self.title), || {
            Ok(self.child.try_wait()?)
        })?;
        let text = match self.reader.take().map(JoinHandle::join) {
            Some(Ok(read)) => read?,
            Some(Err(_)) | None => bail!("the output of `{}` was lost", self.title),
        };
        if status.code() != Some(code) {
            bail!(
                "`{}` ended with {status}; exit code {code} was expected",
                self.title
            );
        }
        Ok(text)
    }
}

impl Drop for Act {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_)))
            && kill_process_group(Pid::from_child(&self.child), Signal::KILL).is_ok()
            && self.child.wait().is_err()
        {
            eprintln!("`{}` could not be waited for", self.title);
        }
    }
}
