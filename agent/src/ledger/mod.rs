//! The core's ledger on disk, and the lock that keeps a second agent away from it.
//!
//! `<state>/ledger` is one line `hoist-ledger FORMAT SHA256`, then the ledger as JSON. It is replaced as a
//! whole: written beside, synced, renamed, and the folder synced. `<state>/ledger.copy` is the same once more:
//! whatever befalls one of them, the machine knows which orders it has seen and owes nobody an outcome. Room
//! for the next ones is taken in advance, so that a deployment that fills the disk can still be recorded as
//! having failed.
//!
//! A deployment may bring an agent that knows a newer format, and may then be taken back: so an agent goes on
//! writing the format that it found until a deployment has ended well.

mod format;

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::{Ended, Ledger};
use hoist_protocol::Text;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;

pub use format::Damage;
use format::{Choice, Format, Found, choose, decode, encode};

/// Largest ledger that is read, in bytes: many times what [`Ledger`]'s own limits allow.
const MAX_LEN: u64 = 4 * 1024 * 1024;

/// Disk taken in advance for each of the next ledgers, in bytes: more than the largest usual one.
const RESERVED: u64 = 256 * 1024;

/// How many damaged ledgers are kept for whoever looks for the cause.
const DAMAGED: u32 = 8;

/// Why the ledger cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another agent works with this folder.
    #[error(
        "another hoist-agent runs with the state folder `{0}`; stop it, or give this one a `state` of its own"
    )]
    Locked(Utf8PathBuf),
    /// The file system refuses something.
    #[error("cannot {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: Utf8PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file system is read-only, or the file belongs to somebody else.
    #[error(
        "cannot {what} `{path}`; the state folder has to belong to the user that hoist-agent runs as, on a file \
         system that can be written to"
    )]
    NotOurs {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: Utf8PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A newer version wrote it: this one would forget what it does not know.
    #[error(
        "the ledger `{path}` is of format {found}, and this hoist-agent reads up to {}: a newer one wrote it; \
         start that one again", Format::NEWEST.number()
    )]
    Newer {
        /// Where it is.
        path: Utf8PathBuf,
        /// Its format.
        found: u32,
    },
    /// There is one that cannot be used.
    #[error(
        "the ledger `{path}` is damaged, and so is its copy; an agent that starts sets them aside and goes on without"
    )]
    Damaged {
        /// Where it is.
        path: Utf8PathBuf,
        /// What is wrong.
        #[source]
        source: Damage,
    },
}

fn io_error(what: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            LedgerError::NotOurs { what, path, source }
        }
        _ => LedgerError::Io { what, path, source },
    }
}

/// Reads the ledger of the folder `state` as it is at this moment, whoever works with it; none when there is
/// none yet.
///
/// # Errors
/// [`LedgerError`], when it cannot be read and neither can its copy.
pub fn read(state: &Utf8Path) -> Result<Option<Ledger>, LedgerError> {
    let path = ledger_path(state);
    match choose(find(&path)?, find(&copy_of(&path))?) {
        Choice::New => Ok(None),
        Choice::Good(found) | Choice::FromCopy(found, _) => Ok(Some(found.ledger)),
        Choice::Newer(found) => Err(LedgerError::Newer { path, found }),
        Choice::Lost(source) => Err(LedgerError::Damaged { path, source }),
    }
}

/// Whether an agent works with the folder `state`.
///
/// # Errors
/// [`LedgerError::Io`] or [`LedgerError::NotOurs`]
pub fn is_locked(state: &Utf8Path) -> Result<bool, LedgerError> {
    let path = lock_path(state);
    let lock = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        lock => lock.map_err(io_error("open", &path))?,
    };
    // Shared, and for a moment: only an agent that starts right now would be kept from it.
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(io_error("lock", &path)(errno.into())),
    }
}

fn ledger_path(state: &Utf8Path) -> Utf8PathBuf {
    state.join("ledger")
}

fn copy_of(ledger: &Utf8Path) -> Utf8PathBuf {
    ledger.with_extension("copy")
}

fn lock_path(state: &Utf8Path) -> Utf8PathBuf {
    state.join("lock")
}

/// What a read fails with when the file's blocks are gone. Any other error is not about what is in the file.
const BLOCKS_GONE: &[Errno] = &[
    Errno::IO,
    Errno::BADMSG,
    #[cfg(target_os = "linux")]
    Errno::UCLEAN,
];

/// Reads one of the two files.
fn find(path: &Utf8Path) -> Result<Found, LedgerError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LEN).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(decode(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => match Errno::from_io_error(&error) {
            Some(errno) if BLOCKS_GONE.contains(&errno) => Ok(Some(Err(Damage::Unreadable(error)))),
            _ => Err(io_error("read the ledger", path)(error)),
        },
    }
}

/// The ledger's file. While this exists, no other agent can open the same folder.
#[derive(Debug)]
pub struct LedgerFile {
    state: Utf8PathBuf,
    /// What the files are written in.
    format: Cell<Format>,
    /// Held locked; the kernel lets go of it when the agent ends, however it does.
    _lock: File,
}

impl LedgerFile {
    /// Takes the folder `state` for this process, and makes it when it is not there.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn open(state: &Utf8Path) -> Result<Self, LedgerError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .map_err(io_error("make the state folder", state))?;
        let path = lock_path(state);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(LedgerError::Locked(state.to_owned())),
            Err(errno) => return Err(io_error("lock", &path)(errno.into())),
        }
        Ok(Self {
            state: state.to_owned(),
            format: Cell::new(Format::OLDEST),
            _lock: lock,
        })
    }

    fn path(&self) -> Utf8PathBuf {
        ledger_path(&self.state)
    }

    /// Reads the ledger; an empty one when there is none yet.
    ///
    /// A damaged one is set aside, and its copy takes its place. Where both are damaged, an empty one does: a
    /// machine that nobody can deploy to helps nobody. What that means is logged as an error and stands in the
    /// ledger, for the status.
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be read, set aside or replaced, or when a newer version wrote it.
    pub fn load(&self) -> Result<Ledger, LedgerError> {
        let path = self.path();
        let copy = copy_of(&path);
        let (found, damage, damaged, means) = match choose(find(&path)?, find(&copy)?) {
            Choice::New => return Ok(Ledger::default()),
            Choice::Good(found) => {
                self.format.set(found.format);
                return Ok(found.ledger);
            }
            Choice::Newer(found) => return Err(LedgerError::Newer { path, found }),
            Choice::FromCopy(found, damage) => {
                let means = "the ledger was damaged and was read from its copy, with nothing lost; check the disk";
                (Some(*found), damage, vec![path], means)
            }
            Choice::Lost(damage) => {
                let means = "the ledger and its copy were damaged: this machine has forgotten which deployments it \
                             has seen and how they ended; until the next one, an old signed deployment would be \
                             followed again; check the disk";
                (None, damage, vec![path, copy], means)
            }
        };
        let damage = crate::job::chain(&damage);
        for path in damaged {
            if let Some(aside) = self.set_aside(&path)? {
                tracing::error!(%path, %aside, "a damaged ledger was set aside");
            }
        }
        tracing::error!(%damage, "{means}");
        let mut ledger = match found {
            Some(found) => {
                self.format.set(found.format);
                found.ledger
            }
            None => Ledger::default(),
        };
        ledger.damage = Some(Text::lossy(means));
        self.save(&ledger)?;
        Ok(ledger)
    }

    /// Puts a damaged file where its next version does not replace it; none when there is no such file.
    fn set_aside(&self, path: &Utf8Path) -> Result<Option<Utf8PathBuf>, LedgerError> {
        let name = |n: u32| self.state.join(format!("ledger.damaged-{n}"));
        let free = (1..=DAMAGED).map(name).find(|path| !path.exists());
        // The first ones say more about the cause than any later one.
        let aside = free.unwrap_or_else(|| name(DAMAGED));
        match fs::rename(path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("set aside the damaged ledger", path)(error)),
        }
    }

    /// Makes `ledger` durable. When this returns, a power cut brings it back or a newer one.
    ///
    /// # Errors
    /// [`LedgerError`]; the ledger that was there before is untouched then, or replaced as a whole.
    pub fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let format = self.format.get().max(format_for(ledger));
        let bytes = encode(ledger, format);
        let path = self.path();
        let copy = copy_of(&path);
        // Both are written before either is synced: the second sync has little left to do.
        let file = write_new(&path, &bytes)?;
        let copied = write_new(&copy, &bytes)?;
        // Both are synced before either is renamed: file systems with a journal do the work once.
        sync(&path, &file)?;
        sync(&copy, &copied)?;
        put_in_place(&path)?;
        put_in_place(&copy)?;
        self.sync_folder()?;
        self.format.set(format);
        for path in [path, copy] {
            if let Err(error) = reserve(&path) {
                // Not every file system can, and this one is saved.
                tracing::debug!(%error, "no room for the next ledger was taken");
            }
        }
        Ok(())
    }

    fn sync_folder(&self) -> Result<(), LedgerError> {
        let sync = || File::open(&self.state)?.sync_all();
        sync().map_err(io_error("sync the state folder", &self.state))
    }
}

/// The newest format that a ledger can be written in without shutting out the agent that would come back.
///
/// While something is under way or waits for a boot, the system from before may come back with its agent; and when
/// the newest deployment did not hold, it has, and this agent may be the one that is about to be replaced.
fn format_for(ledger: &Ledger) -> Format {
    let held = |ended: &Ended| ended.entry.state.is_good();
    let settled = ledger.current.is_none() && ledger.staged.is_none();
    if settled && ledger.last.as_ref().is_some_and(held) {
        Format::NEWEST
    } else {
        Format::OLDEST
    }
}

/// What becomes the next version of `path`.
fn new_path(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.new"))
}

/// Opens the file that becomes the next version of `path`, with the room that was taken for it.
fn open_new(path: &Utf8Path) -> Result<File, LedgerError> {
    let new = new_path(path);
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&new)
        .map_err(io_error("open", &new))
}

fn write_new(path: &Utf8Path, bytes: &[u8]) -> Result<File, LedgerError> {
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let mut file = open_new(path)?;
    file.write_all(bytes)
        .and_then(|()| file.set_len(len))
        .map_err(io_error("write the ledger", &new_path(path)))?;
    Ok(file)
}

fn sync(path: &Utf8Path, file: &File) -> Result<(), LedgerError> {
    file.sync_all()
        .map_err(io_error("sync the ledger", &new_path(path)))
}

fn put_in_place(path: &Utf8Path) -> Result<(), LedgerError> {
    fs::rename(new_path(path), path).map_err(io_error("replace the ledger", path))
}

fn reserve(path: &Utf8Path) -> Result<(), LedgerError> {
    let file = open_new(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, RESERVED)
        .map_err(|errno| io_error("take room for", &new_path(path))(errno.into()))
}

#[cfg(test)]
mod tests;
