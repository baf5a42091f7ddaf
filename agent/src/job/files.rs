//! Files that are there whole or not at all, and room for them that is taken in advance.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};

use super::JobError;

/// Makes a directory, and what it lies in, that only this user can enter.
pub(super) fn make_private_dir(dir: &Utf8Path) -> Result<(), JobError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| JobError::io("make", dir, source))
}

/// Opens a file for writing that only this user can read, without emptying it.
pub(super) fn open_private(path: &Utf8Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Where the next content of `path` is written before it gets its name.
pub(super) fn staging(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.new"))
}

/// Writes a new file, durable when this returns; its directory is for the caller to sync.
pub(super) fn write_durably(path: &Utf8Path, bytes: &[u8]) -> Result<(), JobError> {
    write(path, bytes)
        .and_then(|file| file.sync_all())
        .map_err(|source| JobError::io("write", path, source))
}

/// Writes over what is there from its start, never emptying it first: that would give away the room that was
/// taken for it.
pub(super) fn write(path: &Utf8Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = open_private(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    Ok(file)
}

/// Takes `len` bytes of disk for an empty file, so that writing it later needs none.
///
/// A file system without such a call (ZFS, for one) gets an empty file: nothing is worse than before.
pub(super) fn reserve(path: &Utf8Path, len: u64) -> Result<(), JobError> {
    let file = open_private(path).map_err(|source| JobError::io("make", path, source))?;
    reserve_file(&file, len).map_err(|source| JobError::io("reserve room for", path, source))
}

/// The same for an open file: `len` bytes from its start, its length left as it is.
pub(super) fn reserve_file(file: &File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::io::Errno;
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, len);
    Ok(())
}

/// Puts `bytes` at `path`, all or nothing, durable when this returns.
pub(super) fn replace(path: &Utf8Path, bytes: &[u8]) -> Result<(), JobError> {
    let staging = staging(path);
    write_durably(&staging, bytes)?;
    std::fs::rename(&staging, path).map_err(|source| JobError::io("write", path, source))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// The same for what means nothing after a power cut: all or nothing for whoever reads it, and not synced.
pub(super) fn put(path: &Utf8Path, bytes: &[u8]) -> Result<(), JobError> {
    let staging = staging(path);
    write(&staging, bytes)
        .and_then(|_| std::fs::rename(&staging, path))
        .map_err(|source| JobError::io("write", path, source))
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Utf8Path) -> Result<(), JobError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| JobError::io("sync", dir, source))
}
