//! The output of a program, line by line: bounded lines, and nothing lost that was written before it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hoist_protocol::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread, read};

/// Longest line that is taken, in bytes; what the log keeps of one is shorter.
pub(super) const LINE_MAX: usize = 8 * 1024;

/// How many bytes of a stream are taken before it is the other's turn.
const CHUNK: usize = 8 * 1024;

/// How long those that a program started and left behind have to say what they still have to say. They may
/// keep the pipe open for ever.
const LATE: Duration = Duration::from_millis(200);

/// How much of it is taken, in bytes: they may write without end.
const LATE_MAX: usize = 1024 * 1024;

/// Both streams of a program, read when somebody waits for them and never ahead: a flood waits in the pipe.
#[derive(Debug)]
pub(super) struct Output {
    pipes: [Pipe; 2],
}

impl Output {
    /// Reads from these from now on.
    pub(super) fn new(stdout: impl Into<OwnedFd>, stderr: impl Into<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            pipes: [
                Pipe::new(stdout.into(), Stream::Stdout)?,
                Pipe::new(stderr.into(), Stream::Stderr)?,
            ],
        })
    }

    /// Takes what there is, some of each stream. When there is nothing, waits until there is, until `end` can be
    /// read, or for `at_most` so long. Returns how many bytes it took; it may come back early without any.
    pub(super) fn take(
        &mut self,
        end: Option<&OwnedFd>,
        at_most: Duration,
        line: &mut impl FnMut(Stream, &str),
    ) -> io::Result<usize> {
        let mut events: Vec<_> = self
            .pipes
            .iter()
            .filter_map(|pipe| pipe.from.as_ref())
            .chain(end)
            .map(|descriptor| PollFd::new(descriptor, PollFlags::IN))
            .collect();
        // What is too long for the kernel is for ever.
        let timeout = Timespec::try_from(at_most).ok();
        match poll(&mut events, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Each is asked, whatever the wait said: none of them blocks.
        Ok(self
            .pipes
            .iter_mut()
            .map(|pipe| pipe.take(CHUNK, line))
            .sum())
    }

    /// Takes the rest of a program that has ended: all that it wrote itself, however late this is called, and then
    /// what those that it left behind write within [`LATE`] and [`LATE_MAX`].
    pub(super) fn finish(mut self, line: &mut impl FnMut(Stream, &str)) -> io::Result<()> {
        for pipe in &mut self.pipes {
            pipe.take_written(line)?;
        }
        let since = Instant::now();
        let mut taken = 0;
        while self.pipes.iter().any(|pipe| pipe.from.is_some()) && taken < LATE_MAX {
            let left = LATE.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            taken += self.take(None, left, line)?;
        }
        for pipe in &mut self.pipes {
            pipe.lines.finish(pipe.stream, line);
        }
        Ok(())
    }
}

/// One stream.
#[derive(Debug)]
struct Pipe {
    stream: Stream,
    /// None when nobody can write to it any more.
    from: Option<OwnedFd>,
    lines: Lines,
}

impl Pipe {
    fn new(from: OwnedFd, stream: Stream) -> io::Result<Self> {
        // Only this end: the program's own stays as programs expect it.
        ioctl_fionbio(&from, true)?;
        Ok(Self {
            stream,
            from: Some(from),
            lines: Lines::default(),
        })
    }

    /// Takes what was written so far, and no more of what comes meanwhile.
    fn take_written(&mut self, line: &mut impl FnMut(Stream, &str)) -> io::Result<()> {
        let Some(from) = &self.from else {
            return Ok(());
        };
        let written = ioctl_fionread(from)?;
        let mut left = usize::try_from(written).unwrap_or(usize::MAX);
        while left > 0 {
            match self.take(left.min(CHUNK), line) {
                0 => break,
                taken => left -= taken,
            }
        }
        Ok(())
    }

    /// Takes up to `most` bytes, at most [`CHUNK`]. Returns how many there were, none also at the end.
    fn take(&mut self, most: usize, line: &mut impl FnMut(Stream, &str)) -> usize {
        let Some(from) = &self.from else {
            return 0;
        };
        let mut room = [0; CHUNK];
        let taken = loop {
            match read(from, &mut room[..most.min(CHUNK)]) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return 0,
                // A pipe that cannot be read has no more to say.
                taken => break taken.unwrap_or(0),
            }
        };
        if taken == 0 {
            self.from = None;
        }
        self.lines.add(&room[..taken], self.stream, line);
        taken
    }
}

/// Makes lines of bytes: without their ends, and only the first [`LINE_MAX`] bytes of each.
#[derive(Debug, Default)]
struct Lines {
    begun: Vec<u8>,
    /// An empty line that has begun is none before its end comes.
    any: bool,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], stream: Stream, line: &mut impl FnMut(Stream, &str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n");
            let ends = text.is_some();
            let text = text.unwrap_or(part);
            let room = LINE_MAX - self.begun.len();
            self.begun.extend(&text[..text.len().min(room)]);
            self.any = true;
            if ends {
                self.finish(stream, line);
            }
        }
    }

    /// What has begun is a line as it is.
    fn finish(&mut self, stream: Stream, line: &mut impl FnMut(Stream, &str)) {
        if std::mem::take(&mut self.any) {
            line(stream, &String::from_utf8_lossy(&self.begun));
            self.begun.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Write as _, pipe};

    use super::*;

    fn outputs() -> (Output, PipeWriter, PipeWriter) {
        let (stdout, to_stdout) = pipe().unwrap();
        let (stderr, to_stderr) = pipe().unwrap();
        let output = Output::new(OwnedFd::from(stdout), OwnedFd::from(stderr)).unwrap();
        (output, to_stdout, to_stderr)
    }

    fn rest(output: Output) -> Vec<(Stream, String)> {
        let mut lines = Vec::new();
        output
            .finish(&mut |stream, text| lines.push((stream, text.to_owned())))
            .unwrap();
        lines
    }

    #[test]
    fn all_that_was_written_before_the_end_is_taken_whoever_keeps_the_pipes_open() {
        let (output, mut stdout, mut stderr) = outputs();
        // Neither may fill its pipe: nobody reads yet.
        let said: String = (0..8000).map(|n| format!("{n:04}\n")).collect();
        stdout.write_all(said.as_bytes()).unwrap();
        stdout.write_all(b"\nno end").unwrap();
        stderr.write_all(said.as_bytes()).unwrap();
        let lines = rest(output);
        let of = |wanted| lines.iter().filter(move |(stream, _)| *stream == wanted);
        assert_eq!(of(Stream::Stderr).count(), 8000);
        let (numbers, last): (Vec<_>, Vec<_>) = of(Stream::Stdout)
            .map(|(_, text)| text.as_str())
            .partition(|text| text.len() == 4);
        assert_eq!(numbers.len(), 8000);
        assert!(numbers.is_sorted());
        assert_eq!(last, ["", "no end"]);
    }

    #[test]
    fn who_writes_on_without_end_holds_nobody_up() {
        let (output, mut stdout, _stderr) = outputs();
        let flood = std::thread::spawn(move || while stdout.write_all(&[b'\n'; CHUNK]).is_ok() {});
        let mut lines = 0;
        output.finish(&mut |_, _| lines += 1).unwrap();
        // A whole pipe of an unprivileged process, and what came in late.
        assert!(lines <= LATE_MAX + LATE_MAX + 2 * CHUNK, "{lines}");
        flood.join().unwrap();
    }

    #[test]
    fn lines_are_cut_at_their_limit_wherever_the_reads_fall() {
        let long = LINE_MAX + 100;
        let text = format!("{}\n\n{}\nshort", "a".repeat(long), "b".repeat(LINE_MAX));
        for size in [1, 7, LINE_MAX, text.len()] {
            let mut lines = Lines::default();
            let mut said = Vec::new();
            let mut line = |_, text: &str| said.push(text.to_owned());
            for part in text.as_bytes().chunks(size) {
                lines.add(part, Stream::Stdout, &mut line);
            }
            lines.finish(Stream::Stdout, &mut line);
            lines.finish(Stream::Stdout, &mut line);
            let expected = [
                "a".repeat(LINE_MAX),
                String::new(),
                "b".repeat(LINE_MAX),
                "short".to_owned(),
            ];
            assert_eq!(said, expected, "read {size} bytes at a time");
        }
    }
}
