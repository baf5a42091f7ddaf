//! An append-only file of batches: each is durable when [`Log::append`] returns, or leaves no trace.
//!
//! Behind the last batch the file has room: zeros that are on the disk already. A batch that is written over them
//! changes no length and takes no new block, so its sync waits for its own bytes alone and not for the journal of
//! the file system, which waits for whatever else the machine writes.
//!
//! Everything that is stored is in memory as well. So the file needs no index and no merging: when most of it is
//! out of date it is written anew from memory beside the old one and takes its place in one step. The same heals
//! a file that the disk has failed: after a failed sync nobody knows which pages it has, and a later sync would
//! not say.

mod frame;
mod read;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use tracing::debug;

pub(super) use frame::Batch;
use frame::Salt;
pub(super) use read::{Contents, ReadError, read};

/// The file in the store's folder.
pub(crate) const FILE: &str = "retained.log";

/// The one that will take its place.
const NEXT: &str = "retained.next";

/// The one that a backup has taken the place of.
const ASIDE: &str = "retained.before-restore";

/// Held by the process that uses the folder.
const LOCK: &str = "lock";

/// From how many bytes on the next frame of a file that is written anew begins.
const FRAME_LEN: usize = 256 * 1024;

/// How many zeros are put behind a batch for which there were too few: an eighth of the file, between these bounds, in
/// bytes.
const LEAST_ROOM: u64 = 64 * 1024;
const MOST_ROOM: u64 = 4 * 1024 * 1024;

/// How far a file grows without room, once there was none for it, before it is tried again, in bytes: where the disk is
/// nearly full not every batch shall write megabytes in vain.
const ROOMLESS: u64 = 1024 * 1024;

/// What a probe for room on the disk writes, in bytes: more than the largest message.
const PROBE_LEN: usize = 64 * 1024;

/// The folder of a store that no other process uses.
#[derive(Debug)]
pub(crate) struct Folder {
    path: Utf8PathBuf,
    _lock: File,
}

/// Why a folder cannot be used.
#[derive(Debug)]
pub(super) enum FolderError {
    InUse,
    Io(io::Error),
}

impl From<io::Error> for FolderError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Folder {
    /// Takes the folder; it has to be there.
    pub(super) fn lock(path: &Utf8Path) -> Result<Self, FolderError> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// The log's file.
    pub(crate) fn file(&self) -> Utf8PathBuf {
        self.path.join(FILE)
    }

    /// Keeps the log under another name, beside the one that will take its place. False when there is none.
    pub(super) fn set_aside(&self) -> io::Result<bool> {
        match std::fs::hard_link(self.file(), self.path.join(ASIDE)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(self.path.join(ASIDE))?;
                self.set_aside()
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a file that was written beside the log the log's name, in one step that a crash cannot split.
    fn replace(&self) -> io::Result<()> {
        std::fs::rename(self.path.join(NEXT), self.file())?;
        File::open(&self.path)?.sync_all()
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Log {
    folder: Folder,
    file: File,
    salt: Salt,
    /// Where the last whole frame ends.
    len: u64,
    /// Where the file ends: zeros from `len` on.
    end: u64,
    /// Up to which end of the file no room is made, since there was none.
    roomless: u64,
    /// The number of the next frame.
    next: u64,
    /// How long the file was when it was last written anew.
    fresh_len: u64,
    /// The disk has failed it: nothing is appended until it is written anew.
    suspect: bool,
}

impl Log {
    /// Continues a file that was read. What a crash has left of a last frame is cut off.
    pub(super) fn resume(folder: Folder, contents: &Contents) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(folder.file())?;
        if contents.torn > 0 {
            file.set_len(contents.len)?;
            file.sync_all()?;
        }
        Ok(Self {
            folder,
            file,
            salt: contents.salt,
            len: contents.len,
            end: contents.len + contents.room,
            roomless: 0,
            next: contents.frames,
            fresh_len: contents.len.saturating_sub(contents.stale),
            suspect: false,
        })
    }

    /// Makes a file that holds what `changes` adds, in place of the one that may be there.
    pub(super) fn create(
        folder: Folder,
        changes: impl Iterator<Item = impl FnOnce(&mut Batch)>,
    ) -> io::Result<Self> {
        let written = write_next(&folder, changes)?;
        folder.replace()?;
        Ok(Self {
            folder,
            file: written.file,
            salt: written.salt,
            len: written.len,
            end: written.len,
            roomless: 0,
            next: written.frames,
            fresh_len: written.len,
            suspect: false,
        })
    }

    /// Writes the file anew, with what `changes` adds and nothing else.
    ///
    /// # Errors
    /// Then the old file is still there, and as it was.
    pub(super) fn rewrite(
        &mut self,
        changes: impl Iterator<Item = impl FnOnce(&mut Batch)>,
    ) -> io::Result<()> {
        let written = match write_next(&self.folder, changes) {
            Ok(written) => written,
            Err(error) => {
                // Not again before it has grown by as much.
                self.fresh_len = self.len;
                return Err(error);
            }
        };
        if let Err(error) = self.folder.replace() {
            // It may have got its name or not: only another try tells.
            self.suspect = true;
            return Err(error);
        }
        self.file = written.file;
        self.salt = written.salt;
        self.len = written.len;
        self.end = written.len;
        self.roomless = 0;
        self.next = written.frames;
        self.fresh_len = written.len;
        self.suspect = false;
        Ok(())
    }

    /// The file.
    pub(super) fn path(&self) -> Utf8PathBuf {
        self.folder.file()
    }

    /// Whether it has to be written anew before anything is appended.
    pub(super) const fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// How many bytes of it are out of date at least, once it has grown since it was last written anew.
    pub(super) const fn grown(&self) -> u64 {
        self.len.saturating_sub(self.fresh_len)
    }

    /// How long it was when it was last written anew, in bytes.
    pub(super) const fn fresh_len(&self) -> u64 {
        self.fresh_len
    }

    /// Appends a batch and waits until the disk has it.
    ///
    /// # Errors
    /// Then it is as if it had not been tried, or the file is suspect.
    pub(super) fn append(&mut self, batch: &mut Batch) -> io::Result<()> {
        if self.suspect {
            return Err(io::Error::other("the file is waiting to be written anew"));
        }
        let bytes = batch.sealed(self.salt, self.next);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if let Err(error) = write_at(&self.file, self.len, bytes) {
            self.cut();
            return Err(error);
        }
        let frame_end = self.len + len;
        if frame_end > self.end {
            self.end = frame_end;
            self.make_room();
        }
        if let Err(error) = self.file.sync_data() {
            self.suspect = true;
            return Err(error);
        }
        self.len = frame_end;
        self.next += 1;
        Ok(())
    }

    /// Puts zeros behind the frame that was just written, room for later ones; its sync is theirs as well. Where there is
    /// no space for them the frame is as good without: a later batch then waits for the file system's journal.
    fn make_room(&mut self) {
        if self.end < self.roomless {
            return;
        }
        let room = (self.end / 8).clamp(LEAST_ROOM, MOST_ROOM);
        let zeros = vec![0; usize::try_from(room).unwrap_or(0)];
        match write_at(&self.file, self.end, &zeros) {
            Ok(()) => self.end += room,
            Err(error) => {
                debug!(%error, "no room is made for later batches");
                self.roomless = self.end + ROOMLESS;
                // Others may need what space some of them have taken; where they stay they are in nobody's way.
                if let Err(error) = self.file.set_len(self.end) {
                    debug!(%error, "zeros stay behind the last batch");
                }
            }
        }
    }

    /// Finds out whether the disk has room again.
    pub(super) fn probe(&mut self) -> io::Result<()> {
        let written = write_at(&self.file, self.len, &[0; PROBE_LEN]);
        self.cut();
        written
    }

    /// Says in the file that it is complete, and gives the folder back.
    pub(super) fn close(mut self) -> io::Result<()> {
        let mut closed = Batch::closed();
        self.append(&mut closed)?;
        // Nobody needs the room any more.
        self.file.set_len(self.len)
    }

    /// Takes back what was written after the last whole frame, and the room there.
    fn cut(&mut self) {
        self.end = self.len;
        if self.file.set_len(self.len).is_err() {
            self.suspect = true;
        }
    }
}

fn write_at(mut file: &File, position: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(position))?;
    file.write_all(bytes)
}

struct Written {
    file: File,
    salt: Salt,
    len: u64,
    frames: u64,
}

fn write_next(
    folder: &Folder,
    changes: impl Iterator<Item = impl FnOnce(&mut Batch)>,
) -> io::Result<Written> {
    let path = folder.path.join(NEXT);
    // What an earlier try has left is nobody's.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    let written = write_all(&file, changes, false).and_then(|written| {
        file.sync_all()?;
        Ok(written)
    });
    match written {
        Ok((salt, len, frames)) => Ok(Written {
            file,
            salt,
            len,
            frames,
        }),
        Err(error) => {
            // On a full disk it would be in the way. Where that fails, the next try removes it.
            std::fs::remove_file(&path).ok();
            Err(error)
        }
    }
}

/// Writes a whole file: a header, and frames with what `changes` adds. Returns its salt, length and frames.
pub(super) fn write_all(
    mut out: impl Write,
    changes: impl Iterator<Item = impl FnOnce(&mut Batch)>,
    closed: bool,
) -> io::Result<(Salt, u64, u64)> {
    let salt = rand::random::<Salt>();
    let header = frame::header(salt);
    out.write_all(&header)?;
    let (mut len, mut frames) = (header.len(), 0);
    let mut write = |batch: &mut Batch| {
        let bytes = batch.sealed(salt, frames);
        frames += 1;
        len += bytes.len();
        out.write_all(bytes)
    };
    let mut batch = Batch::default();
    for change in changes {
        change(&mut batch);
        if batch.len() >= FRAME_LEN {
            write(&mut batch)?;
            batch = Batch::default();
        }
    }
    if !batch.is_empty() {
        write(&mut batch)?;
    }
    if closed {
        write(&mut Batch::closed())?;
    }
    Ok((salt, u64::try_from(len).unwrap_or(u64::MAX), frames))
}

#[cfg(test)]
mod tests;
