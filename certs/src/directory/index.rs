//! What the authority's folder remembers: a JSON line for each certificate that was issued, and for each that was
//! revoked.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{AgentName, FleetName, Timestamp};
use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::DirectoryError;
use crate::role::Role;
use crate::serial::Serial;

/// One certificate that was issued: a line of [`INDEX`](super::INDEX).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Issued {
    /// The serial number of the authority, so that a new authority in the same folder starts anew.
    pub authority: Serial,
    /// Its serial number.
    pub serial: Serial,
    /// Whose it is.
    pub name: AgentName,
    /// What its holder may do.
    pub role: Role,
    /// The fleet of its holder.
    pub fleet: FleetName,
    /// When it was issued.
    pub issued: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
}

/// An index: a file of JSON lines, locked against another `hoist-certs` for as long as this lives.
pub(super) struct Index {
    path: Utf8PathBuf,
    file: File,
}

impl Index {
    /// Opens an index, or makes an empty one.
    pub(super) fn open(path: &Utf8Path) -> Result<Self, DirectoryError> {
        let open = || -> io::Result<File> {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Self {
                path: path.to_owned(),
                file,
            }),
            Err(source) => Err(DirectoryError::Index {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// All its lines, the oldest first.
    pub(super) fn entries<T: DeserializeOwned>(&mut self) -> Result<Vec<T>, DirectoryError> {
        let mut text = String::new();
        self.file
            .seek(io::SeekFrom::Start(0))
            .and_then(|_| self.file.read_to_string(&mut text))
            .map_err(|source| self.error(source))?;
        // A line without its end was cut off by a crash, before its certificate was written.
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        text[..complete]
            .lines()
            .enumerate()
            .map(|(n, line)| {
                serde_json::from_str(line).map_err(|_| DirectoryError::IndexLine {
                    path: self.path.clone(),
                    line: n + 1,
                })
            })
            .collect()
    }

    /// Adds a line, which is durable when this returns.
    pub(super) fn append<T: Serialize>(&mut self, entry: &T) -> Result<(), DirectoryError> {
        let mut line = serde_json::to_vec(entry).expect("an entry is plain data");
        line.push(b'\n');
        self.truncate_to_last_line()
            .and_then(|()| self.file.write_all(&line))
            .and_then(|()| self.file.sync_all())
            .map_err(|source| self.error(source))
    }

    fn truncate_to_last_line(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.file.seek(io::SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        let complete = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        if complete < bytes.len() {
            self.file
                .set_len(u64::try_from(complete).expect("a file's length fits"))?;
        }
        Ok(())
    }

    fn error(&self, source: io::Error) -> DirectoryError {
        DirectoryError::Index {
            path: self.path.clone(),
            source,
        }
    }
}
