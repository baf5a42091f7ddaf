//! Runs a program so that it can be found and stopped whatever becomes of the activator.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use hoist_protocol::Stream;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::process::{GRACE, signal_group, started};
use crate::job::ProcessRecord;

/// Waits for a word on its input before it becomes the program: an activator that dies before it has
/// written down whom it started leaves nobody behind.
const GATE: &str = r#"IFS= read -r word && [ "$word" = go ] || exit 125; exec "$@" </dev/null"#;

/// How often it is looked after a program that says nothing.
const POLL: Duration = Duration::from_millis(5);

/// The same once it has closed its output: most end right after that.
const SOON: Duration = Duration::from_millis(1);

/// How long the last output of a program that has ended is waited for. What it left running in the
/// background may keep the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(200);

/// The same while there is always more, from a background process that writes without end.
const DRAIN_MOST: Duration = Duration::from_secs(2);

/// Longest line that is taken, in bytes; what the log keeps of one is shorter.
const LINE_MAX: usize = 8 * 1024;

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
    lines: Receiver<(Stream, String)>,
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
        let (sender, lines) = sync_channel(256);
        read(
            child.stdout.take().ok_or_else(no_pipe)?,
            Stream::Stdout,
            sender.clone(),
        )?;
        read(
            child.stderr.take().ok_or_else(no_pipe)?,
            Stream::Stderr,
            sender,
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
            lines,
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
        let mut asked_at = None;
        let mut closed_at = None;
        while !has_ended(self.leader)? {
            match self.lines.recv_timeout(POLL) {
                Ok((stream, text)) => line(stream, &text),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let closed_at: &mut Instant = closed_at.get_or_insert_with(Instant::now);
                    // One that goes on without an output may do so for long.
                    let ends_soon = closed_at.elapsed() < POLL;
                    std::thread::sleep(if ends_soon { SOON } else { POLL });
                }
            }
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
        let ended = Instant::now();
        while ended.elapsed() < DRAIN_MOST {
            let left = DRAIN.saturating_sub(ended.elapsed());
            match self.lines.recv_timeout(left) {
                Ok((stream, text)) => line(stream, &text),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
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

/// Reads lines on a thread of its own, which ends with the pipe or with whoever listens.
fn read(
    from: impl Read + Send + 'static,
    stream: Stream,
    to: SyncSender<(Stream, String)>,
) -> io::Result<()> {
    std::thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(move || {
            let mut from = BufReader::new(from);
            // A pipe that cannot be read has no more to say.
            while let Ok(Some(text)) = read_line(&mut from) {
                if to.send((stream, text)).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}

/// A line of at most [`LINE_MAX`] bytes without its end; what is longer is skipped. None at the end.
fn read_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut any = false;
    loop {
        let bytes = match from.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        line.extend(&part[..part.len().min(LINE_MAX - line.len())]);
        let used = part.len() + usize::from(end.is_some());
        any |= used > 0;
        from.consume(used);
        if end.is_some() || used == 0 {
            return Ok(any.then(|| String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::MARK;
    use super::*;

    fn program(script: &str, limit: Duration) -> Program {
        let environment = vec![
            ("PATH".into(), "/usr/bin:/bin".into()),
            (MARK.into(), "x".into()),
        ];
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
        let (end, lines) = run("sleep 1000 & echo $!", LONG);
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
