//! Files that are never half written, never readable by others when private, never overwritten by accident.

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::SigningKey;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::signing_key::{SigningKeyError, SigningKeySource};

/// Whether a file that exists may be replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overwrite {
    /// It stays, and writing is an error.
    No,
    /// It is replaced, at once and as a whole.
    Yes,
}

/// What could not be done with which file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is larger than anything sensible.
    #[error("`{path}` is larger than the {max} bytes that are allowed")]
    TooLong {
        /// The file.
        path: Utf8PathBuf,
        /// Bytes allowed.
        max: usize,
    },
    /// It is there already.
    #[error("`{0}` exists already; use --force to replace it")]
    Exists(Utf8PathBuf),
    /// It cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file of at most `max_bytes`. The bytes are wiped from memory when they are dropped.
///
/// # Errors
/// [`FileError::Read`] or [`FileError::TooLong`]
pub fn read_limited(path: &Utf8Path, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let read = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)
        .map_err(read)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if bytes.len() > max_bytes {
        return Err(FileError::TooLong {
            path: path.to_owned(),
            max: max_bytes,
        });
    }
    Ok(bytes)
}

/// Writes a file that only its owner may read (0600), from its first byte on.
///
/// # Errors
/// [`FileError::Exists`] or [`FileError::Write`]; then nothing has changed.
pub fn write_private(path: &Utf8Path, bytes: &[u8], overwrite: Overwrite) -> Result<(), FileError> {
    Staged::private(path, bytes)?.commit(overwrite)
}

/// Writes a file that everybody may read (0644).
///
/// # Errors
/// [`FileError::Exists`] or [`FileError::Write`]; then nothing has changed.
pub fn write_public(path: &Utf8Path, bytes: &[u8], overwrite: Overwrite) -> Result<(), FileError> {
    Staged::public(path, bytes)?.commit(overwrite)
}

/// Reads a signing key, from a file or given as text.
///
/// # Errors
/// [`SigningKeyError`], which never quotes the key.
pub fn read_signing_key(source: &SigningKeySource) -> Result<SigningKey, SigningKeyError> {
    source.read()
}

/// A file that is written completely, but not under its name yet. Dropped, it leaves nothing behind.
pub(crate) struct Staged {
    path: Utf8PathBuf,
    file: NamedTempFile,
}

impl Staged {
    pub(crate) fn private(path: &Utf8Path, bytes: &[u8]) -> Result<Self, FileError> {
        Self::new(path, bytes, 0o600)
    }

    pub(crate) fn public(path: &Utf8Path, bytes: &[u8]) -> Result<Self, FileError> {
        Self::new(path, bytes, 0o644)
    }

    fn new(path: &Utf8Path, bytes: &[u8], mode: u32) -> Result<Self, FileError> {
        let stage = || -> io::Result<NamedTempFile> {
            // Created with 0600, whatever the umask: the mode widens only after the last byte.
            let mut file = tempfile::Builder::new()
                .prefix(".hoist-")
                .tempfile_in(folder(path))?;
            file.write_all(bytes)?;
            file.as_file()
                .set_permissions(Permissions::from_mode(mode))?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        Ok(Self {
            file: stage().map_err(|source| FileError::Write {
                path: path.to_owned(),
                source,
            })?,
            path: path.to_owned(),
        })
    }

    /// Gives the file its name, as one step that a crash cannot split.
    pub(crate) fn commit(self, overwrite: Overwrite) -> Result<(), FileError> {
        let Self { path, file } = self;
        let persisted = match overwrite {
            Overwrite::Yes => file.persist(&path),
            Overwrite::No => file.persist_noclobber(&path),
        };
        let synced = match persisted {
            Ok(_) => File::open(folder(&path)).and_then(|folder| folder.sync_all()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(FileError::Exists(path));
            }
            Err(error) => Err(error.error),
        };
        synced.map_err(|source| FileError::Write { path, source })
    }
}

fn folder(path: &Utf8Path) -> &Utf8Path {
    match path.parent() {
        Some(parent) if !parent.as_str().is_empty() => parent,
        _ => Utf8Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn mode(path: &Utf8Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_private_file_is_for_its_owner_alone() {
        let (_guard, dir) = folder();
        write_private(&dir.join("key"), b"secret", Overwrite::No).unwrap();
        write_public(&dir.join("pem"), b"public", Overwrite::No).unwrap();
        assert_eq!(mode(&dir.join("key")), 0o600);
        assert_eq!(mode(&dir.join("pem")), 0o644);
    }

    #[test]
    fn a_private_file_that_replaces_a_readable_one_is_private() {
        let (_guard, dir) = folder();
        let path = dir.join("key");
        write_public(&path, b"old", Overwrite::No).unwrap();
        write_private(&path, b"new", Overwrite::Yes).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn what_exists_is_not_overwritten_and_nothing_is_left_behind() {
        let (_guard, dir) = folder();
        let path = dir.join("key");
        write_private(&path, b"one", Overwrite::No).unwrap();
        let error = write_private(&path, b"two", Overwrite::No).unwrap_err();
        assert!(matches!(error, FileError::Exists(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(dir.read_dir_utf8().unwrap().count(), 1);
    }

    #[test]
    fn a_file_over_the_limit_is_refused_and_one_at_the_limit_is_read() {
        let (_guard, dir) = folder();
        let path = dir.join("file");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(*read_limited(&path, 5).unwrap(), b"12345");
        let error = read_limited(&path, 4).unwrap_err();
        assert!(
            matches!(error, FileError::TooLong { max: 4, .. }),
            "{error}"
        );
    }
}
