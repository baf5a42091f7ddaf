//! Runs a program so that it can be found and stopped whatever becomes of the activator.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use hoist_protocol::Stream;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use self::output::Output;
use super::kernel;
use super::process::{GRACE, signal_group, started};
use crate::job::ProcessRecord;

mod output;

/// Waits for a word on its input before it becomes the program: an activator that dies before it has
/// written down whom it started leaves nobody behind.
const GATE: &str = r#"IFS= read -r word && [ "$word" = go ] || exit 125; exec "$@" </dev/null"#;

/// How often it is looked after a program where the kernel does not tell that one has ended, and after one that
/// should have.
const POLL: Duration = Duration::from_millis(5);

/// A program to run.
#[derive(Debug)]
pub(super) struct Program {
    /// What it is, for people: its name and its arguments, without what it is wrapped in.
    pub(super) title: String,
    /// The program and its arguments.
    pub(super) arguments: Vec<OsString>,
    /// All of its environment.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// The systemd unit that it starts and waits for.
    pub(super) unit: Option<String>,
    /// Where it writes down its exit code by itself, when it runs in a unit of its own.
    pub(super) exit_code: Option<Utf8PathBuf>,
    /// How long it may take.
    pub(super) limit: Duration,
}

impl Program {
    /// A program with its arguments, as a child of this process.
    pub(super) fn new(
        arguments: &[&str],
        environment: Vec<(OsString, OsString)>,
        limit: Duration,
    ) -> Self {
        Self {
            title: arguments.join(" "),
            arguments: arguments.iter().map(OsString::from).collect(),
            environment,
            unit: None,
            exit_code: None,
            limit,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It was stopped, with all of its group, since its time was over.
    TimedOut,
}

/// A program that waits to be let go.
#[derive(Debug)]
pub(super) struct Gated {
    child: Child,
    leader: Pid,
    gate: ChildStdin,
    output: Output,
    record: ProcessRecord,
    limit: Duration,
}

impl Gated {
    /// Starts the process; the program itself begins with [`Gated::run`].
    pub(super) fn start(program: &Program) -> io::Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", GATE, "hoist"])
            .args(&program.arguments)
            .env_clear()
            .envs(
                program
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let leader = Pid::from_child(&child);
        let pid = leader.as_raw_nonzero().get();
        let no_pipe = || io::Error::other("a pipe that was asked for is missing");
        let gate = child.stdin.take().ok_or_else(no_pipe)?;
        let output = Output::new(
            child.stdout.take().ok_or_else(no_pipe)?,
            child.stderr.take().ok_or_else(no_pipe)?,
        )?;
        let record = ProcessRecord {
            pid,
            started: started(pid)?,
            unit: program.unit.clone(),
        };
        Ok(Self {
            child,
            leader,
            gate,
            output,
            record,
            limit: program.limit,
        })
    }

    /// How it can be found again.
    pub(super) const fn record(&self) -> &ProcessRecord {
        &self.record
    }

    /// Lets it go, and waits until it ends or its time is over. `stop_unit` stops its systemd unit.
    pub(super) fn run(
        mut self,
        mut line: impl FnMut(Stream, &str),
        stop_unit: impl Fn(&str) -> io::Result<()>,
    ) -> io::Result<End> {
        let begun = Instant::now();
        self.gate.write_all(b"go\n")?;
        drop(self.gate);
        let end = kernel::end_of(self.leader);
        let mut asked_at: Option<Instant> = None;
        while !has_ended(self.leader)? {
            let at_most = match (&end, asked_at) {
                (None, _) => POLL,
                (Some(_), None) => self.limit.saturating_sub(begun.elapsed()).max(POLL),
                (Some(_), Some(at)) => GRACE.saturating_sub(at.elapsed()).max(POLL),
            };
            self.output.take(end.as_ref(), at_most, &mut line)?;
            match asked_at {
                None if begun.elapsed() >= self.limit => {
                    asked_at = Some(Instant::now());
                    if let Some(unit) = &self.record.unit
                        && let Err(error) = stop_unit(unit)
                    {
                        line(Stream::Hoist, &format!("cannot stop {unit}: {error}"));
                    }
                    signal_group(self.leader, Signal::TERM);
                }
                Some(at) if at.elapsed() >= GRACE => signal_group(self.leader, Signal::KILL),
                _ => {}
            }
        }
        if asked_at.is_some() {
            // Its children may have ignored the request that ended it.
            signal_group(self.leader, Signal::KILL);
        }
        let status = self.child.wait()?;
        self.output.finish(&mut line)?;
        Ok(match asked_at {
            None => End::Exited(status),
            Some(_) => End::TimedOut,
        })
    }
}

/// Whether a child has ended, which leaves its number to it until somebody waits for it.
fn has_ended(child: Pid) -> io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(child), options) {
            Ok(status) => return Ok(status.is_some()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::MARK;
    use super::output::LINE_MAX;
    use super::*;

    fn program(script: &str, limit: Duration) -> Program {
        // The programs are not everywhere in /usr/bin: a build by Nix has no such folder.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let environment = vec![("PATH".into(), path), (MARK.into(), "x".into())];
        Program::new(&["/bin/sh", "-c", script], environment, limit)
    }

    fn run(script: &str, limit: Duration) -> (End, Vec<(Stream, String)>) {
        let mut lines = Vec::new();
        let gated = Gated::start(&program(script, limit)).unwrap();
        let end = gated
            .run(
                |stream, text| lines.push((stream, text.to_owned())),
                |_| Ok(()),
            )
            .unwrap();
        (end, lines)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_and_exit_code_are_those_of_the_program() {
        let (end, mut lines) = run("echo out; echo err >&2; printf last; cat; exit 7", LONG);
        assert!(matches!(end, End::Exited(status) if status.code() == Some(7)));
        lines.sort_by_key(|(stream, _)| *stream == Stream::Stderr);
        let expected = [
            (Stream::Stdout, "out"),
            (Stream::Stdout, "last"),
            (Stream::Stderr, "err"),
        ];
        assert_eq!(
            lines,
            expected.map(|(stream, text)| (stream, text.to_owned()))
        );
    }

    #[test]
    fn a_program_that_is_never_let_go_never_runs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ran");
        let script = format!("touch {}", file.display());
        let mut gated = Gated::start(&program(&script, LONG)).unwrap();
        // As if the activator had died: its end of the pipe closes.
        drop(gated.gate);
        assert_eq!(gated.child.wait().unwrap().code(), Some(125));
        assert!(!file.exists());
    }

    #[test]
    fn a_program_that_hangs_is_stopped_with_all_it_started_even_when_it_does_not_listen() {
        let limit = Duration::from_millis(50);
        let (end, _) = run("sleep 1000 & sleep 1000", limit);
        assert!(matches!(end, End::TimedOut));
        let (end, lines) = run("trap '' TERM; echo $$; while :; do sleep 0.01; done", limit);
        assert!(matches!(end, End::TimedOut));
        let pid: i32 = lines[0].1.parse().unwrap();
        assert!(started(pid).is_err(), "it is gone");
    }

    #[test]
    fn what_runs_on_in_the_background_does_not_hold_up() {
        let (end, lines) = run("sleep 1000 & printf $!", LONG);
        assert!(matches!(end, End::Exited(status) if status.success()));
        let pid = Pid::from_raw(lines[0].1.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    #[test]
    fn a_flood_of_output_ends_with_the_program_and_lines_are_bounded() {
        let (end, lines) = run(
            "head -c 100000 /dev/zero | tr '\\0' x; echo; seq 5000",
            LONG,
        );
        assert!(matches!(end, End::Exited(status) if status.success()));
        assert_eq!(lines.len(), 5001);
        assert_eq!(lines[0].1.len(), LINE_MAX);
        assert_eq!(lines[5000].1, "5000");
    }
}
