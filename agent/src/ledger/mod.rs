//! The core's ledger on disk, and the lock that keeps a second agent away from it.
//!
//! `<state>/ledger` is one line `hoist-ledger FORMAT SHA256`, then the ledger as JSON. It is replaced as a
//! whole: written beside, synced, renamed, and the folder synced. Room for the next one is taken in advance, so
//! that a deployment that fills the disk can still be recorded as having failed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::Ledger;
use hoist_protocol::digest;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

/// The format that this version writes; fields may be added within it.
const FORMAT: u32 = 1;

/// First word of the file.
const MAGIC: &str = "hoist-ledger";

/// Largest ledger that is read, in bytes: many times what [`Ledger`]'s own limits allow.
const MAX_LEN: u64 = 4 * 1024 * 1024;

/// Disk taken in advance for the next ledger, in bytes: more than the largest usual one.
const RESERVED: u64 = 256 * 1024;

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
}

fn io_error(what: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { what, path, source }
}

/// The ledger's file. While this exists, no other agent can open the same folder.
#[derive(Debug)]
pub struct LedgerFile {
    state: Utf8PathBuf,
    /// Held locked; the kernel lets go of it when the agent ends, however it does.
    _lock: File,
}

/// Why a ledger file is of no use.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("its first line is not that of a ledger")]
    Head,
    #[error("it is of format {0}, which only a newer version reads")]
    Newer(u32),
    #[error("its checksum does not hold")]
    Checksum,
    #[error("its content is not valid")]
    Content(#[source] serde_json::Error),
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
        let path = state.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LedgerError::Locked(state.to_owned()));
            }
            Err(errno) => return Err(io_error("lock", &path)(errno.into())),
        }
        Ok(Self {
            state: state.to_owned(),
            _lock: lock,
        })
    }

    fn path(&self) -> Utf8PathBuf {
        self.state.join("ledger")
    }

    /// Reads the ledger; an empty one when there is none yet.
    ///
    /// A damaged one is set aside and an empty one returned: a machine that nobody can deploy to helps
    /// nobody. What that means is logged as an error.
    ///
    /// # Errors
    /// [`LedgerError::Io`] when it cannot be read or set aside.
    pub fn load(&self) -> Result<Ledger, LedgerError> {
        let path = self.path();
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file
                .take(MAX_LEN)
                .read_to_end(&mut bytes)
                .map_err(io_error("read the ledger", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
            Err(error) => return Err(io_error("open the ledger", &path)(error)),
        };
        decode(&bytes).or_else(|damage| {
            let aside = self.free_name();
            fs::rename(&path, &aside).map_err(io_error("set aside the damaged ledger", &path))?;
            self.sync_folder()?;
            let damage = crate::job::chain(&damage);
            tracing::error!(
                %path, %aside, %damage,
                "the ledger is damaged and was set aside; this machine has forgotten which deployments it has \
                 seen: until the next one, an old signed deployment would be followed again; outcomes that \
                 were not published are lost, and rollbacks by id find nothing; check the disk"
            );
            Ok(Ledger::default())
        })
    }

    /// Where a damaged ledger can go without replacing an earlier one.
    fn free_name(&self) -> Utf8PathBuf {
        let name = |n: u32| self.state.join(format!("ledger.damaged-{n}"));
        (1..u32::MAX)
            .map(name)
            .find(|path| !path.exists())
            .unwrap_or_else(|| name(0))
    }

    /// Makes `ledger` durable. When this returns, a power cut brings it back or a newer one.
    ///
    /// # Errors
    /// [`LedgerError::Io`]; the ledger that was there before is untouched then.
    pub fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let path = self.path();
        let bytes = encode(ledger);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let mut file = self.open_new()?;
        let new = self.new_path();
        file.write_all(&bytes)
            .and_then(|()| file.set_len(len))
            .map_err(io_error("write the ledger", &new))?;
        file.sync_all().map_err(io_error("sync the ledger", &new))?;
        fs::rename(&new, &path).map_err(io_error("replace the ledger", &path))?;
        self.sync_folder()?;
        if let Err(error) = self.reserve() {
            // Not every file system can, and this one is saved.
            tracing::debug!(%error, "no room for the next ledger was taken");
        }
        Ok(())
    }

    fn new_path(&self) -> Utf8PathBuf {
        self.state.join("ledger.new")
    }

    /// Opens the file that becomes the next ledger, with the room that was taken for it.
    fn open_new(&self) -> Result<File, LedgerError> {
        let new = self.new_path();
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&new)
            .map_err(io_error("open", &new))
    }

    fn reserve(&self) -> Result<(), LedgerError> {
        let file = self.open_new()?;
        fallocate(&file, FallocateFlags::empty(), 0, RESERVED)
            .map_err(|errno| io_error("take room for", &self.new_path())(errno.into()))
    }

    fn sync_folder(&self) -> Result<(), LedgerError> {
        let sync = || File::open(&self.state)?.sync_all();
        sync().map_err(io_error("sync the state folder", &self.state))
    }
}

fn encode(ledger: &Ledger) -> Vec<u8> {
    let json = serde_json::to_vec(ledger).expect("plain data always has a JSON form");
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", digest(&json)).into_bytes();
    bytes.extend(json);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Ledger, Damage> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(Damage::Head)?;
    let (head, json) = (&bytes[..end], &bytes[end + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| Damage::Head)?;
    let mut words = head.split(' ');
    let (Some(MAGIC), Some(format), Some(checksum), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Damage::Head);
    };
    let format: u32 = format.parse().map_err(|_| Damage::Head)?;
    if format > FORMAT {
        return Err(Damage::Newer(format));
    }
    if digest(json).as_str() != checksum {
        return Err(Damage::Checksum);
    }
    serde_json::from_slice(json).map_err(Damage::Content)
}

#[cfg(test)]
mod tests {
    use hoist_agent_core::Floor;
    use hoist_protocol::{DeploymentId, Order};

    use super::*;

    fn state() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8PathBuf::from_path_buf(dir.path().join("state")).unwrap();
        (dir, state)
    }

    fn ledger() -> Ledger {
        let order = Order {
            epoch: 1,
            sequence: 7,
            id: DeploymentId::new(uuid::Uuid::from_u128(9)),
        };
        let floor = Floor {
            order,
            content: None,
        };
        Ledger {
            floor: Some(floor),
            ..Ledger::default()
        }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart() {
        let (_dir, state) = state();
        let file = LedgerFile::open(&state).unwrap();
        assert_eq!(file.load().unwrap(), Ledger::default());
        file.save(&ledger()).unwrap();
        drop(file);
        assert_eq!(LedgerFile::open(&state).unwrap().load().unwrap(), ledger());
    }

    #[test]
    fn a_second_agent_on_the_same_folder_is_refused() {
        let (_dir, state) = state();
        let _held = LedgerFile::open(&state).unwrap();
        let error = LedgerFile::open(&state).unwrap_err();
        assert!(
            matches!(&error, LedgerError::Locked(path) if *path == state),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_ledger_is_set_aside_and_never_overwritten() {
        let (_dir, state) = state();
        let file = LedgerFile::open(&state).unwrap();
        for n in 1..=2 {
            file.save(&ledger()).unwrap();
            let mut bytes = fs::read(file.path()).unwrap();
            let last = bytes.len() - 3;
            bytes[last] ^= 1;
            fs::write(file.path(), &bytes).unwrap();
            assert_eq!(file.load().unwrap(), Ledger::default());
            let aside = state.join(format!("ledger.damaged-{n}"));
            assert_eq!(fs::read(aside).unwrap(), bytes);
        }
    }

    #[test]
    fn every_kind_of_damage_is_noticed() {
        let good = encode(&ledger());
        assert_eq!(decode(&good).unwrap(), ledger());
        for n in 0..good.len() {
            let mut bad = good.clone();
            bad[n] ^= 0x20;
            assert!(decode(&bad).is_err(), "byte {n}");
            assert!(decode(&good[..n]).is_err(), "cut at {n}");
        }
        let newer = b"hoist-ledger 2 00\n{}";
        assert!(matches!(decode(newer), Err(Damage::Newer(2))));
    }

    #[test]
    fn room_for_the_next_ledger_is_taken_in_advance() {
        use std::os::unix::fs::MetadataExt as _;
        let (_dir, state) = state();
        let file = LedgerFile::open(&state).unwrap();
        for _ in 0..2 {
            file.save(&ledger()).unwrap();
            let taken = fs::metadata(file.new_path()).unwrap().blocks() * 512;
            assert!(taken >= RESERVED, "{taken}");
            // What is left of the room does not end up in the ledger.
            assert_eq!(file.load().unwrap(), ledger());
        }
    }

    #[test]
    fn the_folder_and_the_ledger_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, state) = state();
        let file = LedgerFile::open(&state).unwrap();
        file.save(&ledger()).unwrap();
        let mode = |path: &Utf8Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state), mode(&file.path())), (0o700, 0o600));
    }
}
