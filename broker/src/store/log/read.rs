//! Reading a log from its first frame to its last, and telling what a crash has torn from what is damaged.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek as _, SeekFrom};

use camino::Utf8Path;

use super::frame::{self, Body, CHECKSUM_LEN, HEAD_LEN, HEADER_LEN, MAGIC, Salt};

/// How much is read at once, in bytes.
const BUFFER_LEN: usize = 256 * 1024;

/// What was found besides the changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) struct Contents {
    pub(super) salt: Salt,
    /// Where the last whole frame ends.
    pub(in super::super) len: u64,
    pub(in super::super) frames: u64,
    pub(in super::super) changes: u64,
    /// Bytes after the last whole frame: the batch that was being written when it ended.
    pub(in super::super) torn: u64,
    /// Zeros after the last whole frame, when nothing else is there: room for the next ones.
    pub(super) room: u64,
    /// Whether it was closed in order, and nothing came after that.
    pub(in super::super) closed: bool,
    /// How many bytes of keys and values were replaced by later ones; filled in by who keeps track of them.
    pub(in super::super) stale: u64,
}

/// Why a log cannot be read.
#[derive(Debug)]
pub(in super::super) enum ReadError {
    /// It cannot be opened or read.
    Io(io::Error),
    /// It does not start as a log does.
    NoLog,
    /// What stands at this position is no batch, although whole ones come after it.
    Damaged(u64),
    /// The batch at this position is whole, and no broker has written what is in it.
    Foreign(u64),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads the log in `path` and hands every change to `each`, in order: key, and value, which is empty when the
/// key is removed. `each` says whether it makes sense.
pub(in super::super) fn read(
    path: &Utf8Path,
    each: impl FnMut(&str, &[u8]) -> bool,
) -> Result<Contents, ReadError> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    read_from(BufReader::with_capacity(BUFFER_LEN, file), len, each)
}

fn read_from(
    mut file: BufReader<File>,
    file_len: u64,
    mut each: impl FnMut(&str, &[u8]) -> bool,
) -> Result<Contents, ReadError> {
    let mut header = [0; HEADER_LEN];
    match file.read_exact(&mut header) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(ReadError::NoLog),
        result => result?,
    }
    let (magic, salt) = header.split_last_chunk::<8>().ok_or(ReadError::NoLog)?;
    if magic != MAGIC {
        return Err(ReadError::NoLog);
    }
    let salt = *salt;
    let mut contents = Contents {
        salt,
        len: u64::try_from(HEADER_LEN).unwrap_or(u64::MAX),
        frames: 0,
        changes: 0,
        torn: 0,
        room: 0,
        closed: false,
        stale: 0,
    };
    let mut frame = Vec::new();
    while let Some(body) = next(&mut file, file_len - contents.len, &contents, &mut frame)? {
        match frame::parse(body) {
            None => return Err(ReadError::Foreign(contents.len)),
            Some(Body::Closed) => contents.closed = true,
            Some(Body::Changes(changes)) => {
                contents.closed = false;
                for (key, value) in changes {
                    if !each(key, value) {
                        return Err(ReadError::Foreign(contents.len));
                    }
                    contents.changes += 1;
                }
            }
        }
        contents.frames += 1;
        contents.len += u64::try_from(frame.len()).unwrap_or(u64::MAX);
    }
    if file_len > contents.len {
        read_rest(&mut file, &mut contents)?;
    }
    Ok(contents)
}

/// Reads what is behind the last whole frame: room, or what a crash has torn, or frames behind one that is damaged.
fn read_rest(file: &mut BufReader<File>, contents: &mut Contents) -> Result<(), ReadError> {
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(contents.len))?;
    file.read_to_end(&mut rest)?;
    let torn = rest.iter().rposition(|byte| *byte != 0);
    let len = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    let Some(torn) = torn else {
        contents.room = len(rest.len());
        return Ok(());
    };
    contents.torn = len(torn + 1);
    contents.closed = false;
    // There cannot be more frames than bytes. The torn one itself has the first number and is not looked for.
    let numbers = contents.frames + 1..contents.frames + 2 + contents.torn;
    if frame::find(contents.salt, &numbers, &rest).is_some() {
        return Err(ReadError::Damaged(contents.len));
    }
    Ok(())
}

/// The body of the next frame, with the whole frame in `frame`; none when there is no whole one.
fn next<'a>(
    file: &mut BufReader<File>,
    left: u64,
    before: &Contents,
    frame: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>, ReadError> {
    let mut head = [0; HEAD_LEN];
    if !fill(file, &mut head)? {
        return Ok(None);
    }
    let Some((len, number)) = frame::head(&head) else {
        return Ok(None);
    };
    let whole = HEAD_LEN + len + CHECKSUM_LEN;
    if number != before.frames || u64::try_from(whole).is_ok_and(|whole| whole > left) {
        return Ok(None);
    }
    frame.clear();
    frame.extend_from_slice(&head);
    frame.resize(whole, 0);
    if !fill(file, &mut frame[HEAD_LEN..])? {
        return Ok(None);
    }
    Ok(frame::checked(before.salt, number, &frame[HEAD_LEN..]))
}

/// Reads as many bytes as `bytes` has; false when there are fewer.
fn fill(file: &mut BufReader<File>, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
