//! Child processes that never outlive their test.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// What `sh -c` runs with the id of the process that starts it, and a command: goes on only while that is its parent. One
/// that was killed before the signal at its death was asked for sends none.
pub(crate) const UNLESS_ORPHANED: &str = r#"[ "$PPID" = "$1" ] || exit 0; shift; exec "$@""#;

/// A command for `program` that dies with the thread that starts it, even when that is killed.
#[must_use]
pub fn command(program: impl AsRef<str>) -> Command {
    command_under(std::process::id(), program.as_ref())
}

fn command_under(parent: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            "/bin/sh",
            "-c",
            UNLESS_ORPHANED,
        ])
        .args(["sh", &parent.to_string(), program]);
    command
}

/// One running program; its output goes to `<logs>/<name>.out` and `.err`. Ended when dropped.
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    out: Log,
    err: Log,
}

/// What this start of the process has written to one of its streams.
struct Log {
    path: Utf8PathBuf,
    from: u64,
}

impl Log {
    /// Opens the file for one more start: former output stays, and is not read again.
    fn open(path: Utf8PathBuf) -> Result<(Self, File)> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {path}"))?;
        let from = file.metadata()?.len();
        Ok((Self { path, from }, file))
    }

    fn read(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read_after(0)?).into_owned())
    }

    /// What comes after the first `skipped` bytes.
    fn read_after(&self, skipped: u64) -> Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from + skipped))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Process {
    /// Starts `command` in a process group of its own, so that a terminal's Ctrl-C does not reach it.
    ///
    /// # Errors
    /// When it cannot be started or its logs cannot be written.
    pub fn start(name: &str, mut command: Command, logs: &Utf8Path) -> Result<Self> {
        let (out, stdout) = Log::open(logs.join(format!("{name}.out")))?;
        let (err, stderr) = Log::open(logs.join(format!("{name}.err")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            ended: None,
            out,
            err,
        })
    }

    /// Its process id.
    ///
    /// # Panics
    /// Never: the kernel gives no id that is not positive.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it runs still.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn is_alive(&mut self) -> Result<bool> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended.is_none())
    }

    /// All that this start has written to its standard output.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn stdout(&self) -> Result<String> {
        self.out.read()
    }

    /// What this start has written to its standard output after the first `skipped` bytes.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn stdout_after(&self, skipped: u64) -> Result<Vec<u8>> {
        self.out.read_after(skipped)
    }

    /// All that this start has written to its standard error.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn stderr(&self) -> Result<String> {
        self.err.read()
    }

    /// Waits for a whole line of its standard output that starts with `prefix`, and gives the rest of it.
    ///
    /// # Errors
    /// When it ends before, or the line does not come.
    pub fn wait_for_line(&mut self, prefix: &str) -> Result<String> {
        let what = format!("{} prints a line starting with {prefix:?}", self.name);
        wait::until(&what, || {
            let alive = self.is_alive()?;
            let text = self.stdout()?;
            let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(rest) = complete.lines().find_map(|line| line.strip_prefix(prefix)) {
                return Ok(Some(rest.to_owned()));
            }
            if !alive {
                bail!("{} ended before: {}", self.name, self.stderr()?);
            }
            Ok(None)
        })
    }

    /// Sends a signal to the process alone.
    ///
    /// # Errors
    /// When it cannot be sent; that the process has ended already is no error.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.is_alive()? {
            kill_process(self.pid(), signal)
                .with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait().map(drop)
    }

    /// SIGTERM, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end within 10 s.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        wait::until_within(GRACE, &format!("{} ends after SIGTERM", self.name), || {
            Ok((!self.is_alive()?).then_some(()))
        })?;
        self.wait()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it goes on beyond the patience of [`wait`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        wait::until(&what, || {
            Ok(if self.is_alive()? { None } else { self.ended })
        })
    }

    /// Waits until it ends by itself with code 0, for who takes the time: what it is looked at for is its end alone.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn wait_closely(&mut self) -> Result<()> {
        let status = match self.ended {
            Some(status) => status,
            None => self.child.wait()?,
        };
        self.ended = Some(status);
        if !status.success() {
            bail!("{} failed: {}{}", self.name, self.stdout()?, self.stderr()?);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_alive().unwrap_or(true) && self.terminate().is_err() {
            // It had its chance; its group goes with it.
            let ended = kill_process_group(self.pid(), Signal::KILL);
            if ended.is_ok() && self.child.wait().is_err() {
                eprintln!("{} could not be waited for", self.name);
            }
        }
    }
}

/// What a program that ran to its end has left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Of a process that ends by itself.
    ///
    /// # Errors
    /// When it does not end within the patience of [`wait`].
    pub fn wait(mut process: Process) -> Result<Self> {
        let status = process.wait()?;
        let code = status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(Self {
            code: code.context("a process ends by exit or signal")?,
            stdout: process.stdout()?,
            stderr: process.stderr()?,
        })
    }

    /// Its standard output, when it ended with code 0.
    ///
    /// # Errors
    /// Shows what it printed otherwise.
    pub fn success(self) -> Result<String> {
        self.expect_code(0).map(|finished| finished.stdout)
    }

    /// Itself, when it ended with `code`.
    ///
    /// # Errors
    /// Shows what it printed otherwise.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code != code {
            bail!(
                "exit code {} instead of {code}\n{}{}",
                self.code,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }
}

/// Runs `command` to its end, its output kept under `logs` too.
///
/// # Errors
/// When it cannot be started or does not end.
pub fn run(name: &str, command: Command, logs: &Utf8Path) -> Result<Finished> {
    Finished::wait(Process::start(name, command, logs)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(parent: u32) -> String {
        let mut command = command_under(parent, "echo");
        let output = command.args(["it", "runs  here"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_program_whose_parent_has_died_already_is_not_run() {
        assert_eq!(said(std::process::id()), "it runs  here\n");
        // Its parent is another one by now.
        assert_eq!(said(std::process::id() + 1), "");
    }
}
