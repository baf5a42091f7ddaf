//! The log of a job: what programs printed and what the activator says, line by line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use camino::Utf8Path;
use hoist_protocol::{Stream, Text, Timestamp};
use serde::{Deserialize, Serialize};

use super::{JobError, files, result};

/// Most bytes that a job's log may have: what comes after is dropped, and a last line says so.
pub const LOG_MAX: u64 = 4 * 1024 * 1024;

/// Most bytes read at a time; more than the longest line has.
const CHUNK: u64 = 64 * 1024;

/// One line of the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogEntry {
    /// Its number, from 1.
    pub line: u64,
    /// When it was read from the program.
    pub ts: Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// The line without its end, shortened when it was longer.
    pub text: Text<2048>,
}

/// How far somebody has read a log. The default is its start.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogCursor {
    offset: u64,
    lines: u64,
}

/// A line as it stands in the file.
#[derive(Deserialize, Serialize)]
struct Line {
    ts: Timestamp,
    stream: Stream,
    text: Text<2048>,
}

pub(super) fn read_lines(
    path: &Utf8Path,
    cursor: &mut LogCursor,
) -> Result<Vec<LogEntry>, JobError> {
    let read = || {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(cursor.offset))?;
        let mut bytes = Vec::new();
        file.take(CHUNK).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| JobError::io("read", path, source))?;
    let mut entries = Vec::new();
    // The last piece is empty, or a line that is still being written.
    let mut pieces: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    pieces.pop();
    for piece in pieces {
        cursor.offset += piece.len() as u64 + 1;
        cursor.lines += 1;
        let line: Line = serde_json::from_slice(piece).unwrap_or_else(|_| Line {
            ts: Timestamp::default(),
            stream: Stream::Hoist,
            text: Text::lossy("(this line is damaged: the machine stopped while it was written)"),
        });
        entries.push(LogEntry {
            line: cursor.lines,
            ts: line.ts,
            stream: line.stream,
            text: line.text,
        });
    }
    Ok(entries)
}

/// Writes the log. It never fails: an activation is not given up because nobody can read about it.
#[derive(Debug)]
pub(crate) struct LogWriter {
    file: Option<File>,
    len: u64,
    lines: u64,
    tail: VecDeque<Text<256>>,
}

impl LogWriter {
    /// Opens the log at its end. Without a log, what is written is kept for the tail only.
    pub(crate) fn open(path: &Utf8Path) -> Self {
        let mut log = Self {
            file: None,
            len: 0,
            lines: 0,
            tail: VecDeque::new(),
        };
        let mut cursor = LogCursor::default();
        while let Ok(entries) = read_lines(path, &mut cursor) {
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                log.remember(entry.text.as_str());
            }
        }
        log.lines = cursor.lines;
        let open = || {
            let mut file = files::open_private(path)?;
            // Half a line may have been left by an activator that was killed: it is written over.
            file.set_len(cursor.offset)?;
            file.seek(SeekFrom::End(0))?;
            Ok::<_, io::Error>(file)
        };
        match open() {
            Ok(file) => {
                log.file = Some(file);
                log.len = cursor.offset;
            }
            Err(error) => eprintln!("cannot open the log `{path}`: {error}"),
        }
        log
    }

    /// Says something itself.
    pub(crate) fn say(&mut self, text: &str) {
        self.line(Stream::Hoist, text);
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, stream: Stream, text: &str) {
        self.remember(text);
        if self.len >= LOG_MAX {
            return;
        }
        self.write(stream, text);
        if self.len >= LOG_MAX {
            self.write(
                Stream::Hoist,
                "the log is full: what follows is not kept, except for the last lines in the result",
            );
        }
    }

    /// How many lines the file has.
    pub(crate) const fn lines(&self) -> u64 {
        self.lines
    }

    /// The last lines, of those that were dropped too.
    pub(crate) fn tail(&self) -> Vec<Text<256>> {
        self.tail.iter().cloned().collect()
    }

    fn write(&mut self, stream: Stream, text: &str) {
        let line = Line {
            ts: now(),
            stream,
            text: Text::lossy(text),
        };
        let mut json = serde_json::to_vec(&line).expect("plain data always has a JSON form");
        json.push(b'\n');
        let Some(file) = &mut self.file else {
            return;
        };
        match file.write_all(&json) {
            Ok(()) => {
                self.len += json.len() as u64;
                self.lines += 1;
            }
            Err(_) => {
                // A full disk, most likely. Part of the line may be there: it must not spoil the next.
                let mended = file
                    .set_len(self.len)
                    .and_then(|()| file.seek(SeekFrom::End(0)));
                if mended.is_err() {
                    self.file = None;
                }
            }
        }
    }

    fn remember(&mut self, text: &str) {
        if self.tail.len() == result::TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(Text::lossy(text));
    }
}

/// The time by the machine's clock; 1970 when it is set before that.
fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(entries: &[LogEntry]) -> Vec<(u64, &str)> {
        entries.iter().map(|e| (e.line, e.text.as_str())).collect()
    }

    #[test]
    fn lines_are_read_once_each_and_only_when_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("log");
        let mut cursor = LogCursor::default();
        assert!(read_lines(&path, &mut cursor).unwrap().is_empty());

        let mut log = LogWriter::open(&path);
        log.line(Stream::Stdout, "one");
        log.line(Stream::Stderr, "two\u{1b}[31m");
        let entries = read_lines(&path, &mut cursor).unwrap();
        assert_eq!(texts(&entries), [(1, "one"), (2, "two\u{fffd}[31m")]);
        assert_eq!(entries[1].stream, Stream::Stderr);
        assert!(read_lines(&path, &mut cursor).unwrap().is_empty());

        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"ts\":1,\"str")
            .unwrap();
        assert!(read_lines(&path, &mut cursor).unwrap().is_empty());
        let mut log = LogWriter::open(&path);
        assert_eq!(log.lines(), 2);
        log.say("three");
        let entries = read_lines(&path, &mut cursor).unwrap();
        assert_eq!(texts(&entries), [(3, "three")]);
        assert_eq!(log.tail().last().unwrap().as_str(), "three");
    }

    #[test]
    fn a_full_log_says_so_and_keeps_the_last_lines_for_the_result() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("log");
        let mut log = LogWriter::open(&path);
        let long = "x".repeat(2048);
        for _ in 0..LOG_MAX / 2048 + 10 {
            log.line(Stream::Stdout, &long);
        }
        log.say("the end");
        assert!(std::fs::metadata(&path).unwrap().len() < LOG_MAX + 4096);
        assert_eq!(log.tail().len(), result::TAIL);
        assert_eq!(log.tail().last().unwrap().as_str(), "the end");
        let mut cursor = LogCursor::default();
        let mut last = Vec::new();
        loop {
            let entries = read_lines(&path, &mut cursor).unwrap();
            if entries.is_empty() {
                break;
            }
            last = entries;
        }
        let last = last.last().unwrap();
        assert!(last.text.as_str().starts_with("the log is full"));
        assert_eq!(last.line, log.lines());
    }
}
