//! Looking after the store: `hoist-broker check`, `backup` and `restore`.
//!
//! A backup is a store of its own: written as a whole, and closed, so that one that was cut short is noticed. A
//! running broker hands it out over its control socket; where none runs it is made of the file.

mod control;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::net::UnixStream;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::Channel;
use tempfile::NamedTempFile;

pub(crate) use control::Control;

use crate::store::{Folder, LOG_FILE, STORE_FOLDER, StoreError, Stored, maintain};

/// What could not be done with the store or a backup.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The store is not as it should be.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing.
    #[error("there is no store in `{0}`")]
    NoStore(Utf8PathBuf),
    /// There is no such backup.
    #[error("there is no backup `{0}`")]
    NoBackup(Utf8PathBuf),
    /// The backup was not written to its end.
    #[error("the backup `{0}` is not complete: it ends before its last mark; use another one")]
    Incomplete(Utf8PathBuf),
    /// Something is there already.
    #[error(
        "the store in `{path}` holds {messages} messages; use --force to put the backup in their place"
    )]
    NotEmpty {
        /// The state folder.
        path: Utf8PathBuf,
        /// How many.
        messages: usize,
    },
    /// The store that is there cannot be read.
    #[error(
        "the store in `{path}` cannot be read; use --force to put the backup in its place, which keeps it beside as \
         `retained.before-restore`"
    )]
    Unreadable {
        /// The state folder.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The backup would take the place of a device, a pipe or a folder.
    #[error("`{0}` is no file that a backup could replace; name one")]
    NoFile(Utf8PathBuf),
    /// The backup's file is there already.
    #[error("`{0}` exists already; use --force to replace it")]
    Exists(Utf8PathBuf),
    /// The broker that runs does not hand a backup out.
    #[error("cannot get a backup from the broker that runs on `{path}`")]
    Broker {
        /// The state folder.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The backup cannot be written.
    #[error("cannot write the backup `{path}`")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a store or a backup holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    /// How many messages are retained, by channel.
    pub channels: BTreeMap<Channel, usize>,
    /// Of how many machines.
    pub machines: usize,
    /// In how many fleets.
    pub fleets: usize,
    /// The file's size, in bytes.
    pub bytes: u64,
    /// How many of them are out of date.
    pub stale_bytes: u64,
    /// How many at the end are of a batch that was never complete, and never acknowledged.
    pub torn_bytes: u64,
    /// Whether it was closed in order; a broker that runs, was killed or lost its power has not.
    pub closed: bool,
}

impl Summary {
    /// How many messages are retained.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.channels.values().sum()
    }

    fn of(stored: &Stored) -> Self {
        let mut channels = BTreeMap::new();
        let (mut machines, mut fleets) = (BTreeSet::new(), BTreeSet::new());
        for publication in &stored.publications {
            *channels.entry(publication.topic.channel).or_default() += 1;
            machines.insert(&publication.topic.machine);
            fleets.insert(&publication.topic.machine.fleet);
        }
        Self {
            channels,
            machines: machines.len(),
            fleets: fleets.len(),
            bytes: stored.len(),
            stale_bytes: stored.stale(),
            torn_bytes: stored.torn(),
            closed: stored.is_closed(),
        }
    }
}

/// The file of the store in a broker's state folder.
#[must_use]
pub fn store_file(state: &Utf8Path) -> Utf8PathBuf {
    state.join(STORE_FOLDER).join(LOG_FILE)
}

/// Reads a store or a backup from its first byte to its last. Changes nothing, and a broker may be running: then
/// what it is writing just now may look torn.
///
/// # Errors
/// [`MaintenanceError`]; [`StoreError::Damaged`] and the like when it is not sound.
pub fn check(file: &Utf8Path) -> Result<Summary, MaintenanceError> {
    let stored = maintain::read(file)?;
    let stored = stored.ok_or_else(|| MaintenanceError::NoStore(file.to_owned()))?;
    Ok(Summary::of(&stored))
}

/// How many changes of a damaged store can be read before what is damaged.
///
/// # Errors
/// [`MaintenanceError`]
pub fn count_before_damage(file: &Utf8Path) -> Result<u64, MaintenanceError> {
    Ok(maintain::count(file)?)
}

/// Writes a backup of the store in the state folder to the file `to`: complete, synced and under its name, or not
/// at all. Blocks.
///
/// # Errors
/// [`MaintenanceError`]
pub fn backup(state: &Utf8Path, to: &Utf8Path, replace: bool) -> Result<Summary, MaintenanceError> {
    let written = |source| MaintenanceError::Write {
        path: to.to_owned(),
        source,
    };
    match to.metadata() {
        // `/dev/stdout` would be gone, for all programs.
        Ok(there) if !there.is_file() => return Err(MaintenanceError::NoFile(to.to_owned())),
        Ok(_) if !replace => return Err(MaintenanceError::Exists(to.to_owned())),
        _ => {}
    }
    let folder = match to.parent() {
        Some(parent) if !parent.as_str().is_empty() => parent,
        _ => Utf8Path::new("."),
    };
    // Made with 0600: what is retained is the fleet's own business.
    let file = tempfile::Builder::new()
        .prefix(".hoist-backup-")
        .tempfile_in(folder)
        .map_err(written)?;
    match control::connect(state) {
        Ok(stream) => receive(state, stream, &file)?,
        // Nobody listens: then nobody has the store, or its lock says so.
        Err(_) => {
            // A name that was mistyped is no reason to make a folder.
            let path = store_file(state);
            match path.try_exists() {
                Ok(true) => {}
                Ok(false) => return Err(MaintenanceError::NoStore(state.to_owned())),
                Err(source) => return Err(StoreError::Read { path, source }.into()),
            }
            let taken = take(state)?;
            let stored = maintain::read(&taken.file())?;
            let stored = stored.ok_or_else(|| MaintenanceError::NoStore(state.to_owned()))?;
            let mut out = BufWriter::new(file.as_file());
            maintain::write_closed(&stored.publications, &mut out)
                .and_then(|()| out.flush())
                .map_err(written)?;
        }
    }
    file.as_file().sync_all().map_err(written)?;
    let path = Utf8Path::from_path(file.path())
        .ok_or_else(|| written(io::Error::other("the folder's name is no UTF-8")))?;
    // What a broker has handed out is believed when it is there as a whole.
    let summary = check_complete(path, to)?;
    let named = if replace {
        file.persist(to)
    } else {
        file.persist_noclobber(to)
    };
    match named {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(MaintenanceError::Exists(to.to_owned()))
        }
        Err(error) => Err(written(error.error)),
        Ok(_) => {
            let folder = File::open(folder).map_err(written)?;
            folder.sync_all().map_err(written)?;
            Ok(summary)
        }
    }
}

/// Puts a backup in the place of the store in the state folder, where no broker may be running. What was there
/// before is kept beside it when it is replaced.
///
/// # Errors
/// [`MaintenanceError`]; then the store is as it was.
pub fn restore(
    state: &Utf8Path,
    from: &Utf8Path,
    force: bool,
) -> Result<Summary, MaintenanceError> {
    let stored = read_complete(from, from)?;
    let summary = Summary::of(&stored);
    let folder = take(state)?;
    let file = folder.file();
    match maintain::read(&file) {
        Ok(Some(there)) if !there.publications.is_empty() && !force => {
            return Err(MaintenanceError::NotEmpty {
                path: state.to_owned(),
                messages: there.publications.len(),
            });
        }
        // A store that cannot be read is not thrown away unasked either.
        Err(source) if !force => {
            let path = state.to_owned();
            return Err(MaintenanceError::Unreadable { path, source });
        }
        _ => {}
    }
    maintain::replace(folder, &stored.publications)?;
    Ok(summary)
}

fn take(state: &Utf8Path) -> Result<Folder, MaintenanceError> {
    Ok(maintain::take(&state.join(STORE_FOLDER))?)
}

fn receive(
    state: &Utf8Path,
    mut stream: UnixStream,
    file: &NamedTempFile,
) -> Result<(), MaintenanceError> {
    let received = control::ask_backup(&mut stream).and_then(|()| {
        let mut out = file.as_file();
        io::copy(&mut stream, &mut out).map(|_| ())
    });
    received.map_err(|source| MaintenanceError::Broker {
        path: state.to_owned(),
        source,
    })
}

fn check_complete(file: &Utf8Path, name: &Utf8Path) -> Result<Summary, MaintenanceError> {
    Ok(Summary::of(&read_complete(file, name)?))
}

fn read_complete(file: &Utf8Path, name: &Utf8Path) -> Result<Stored, MaintenanceError> {
    let stored = maintain::read(file)?;
    let stored = stored.ok_or_else(|| MaintenanceError::NoBackup(name.to_owned()))?;
    if !stored.is_closed() {
        return Err(MaintenanceError::Incomplete(name.to_owned()));
    }
    Ok(stored)
}
