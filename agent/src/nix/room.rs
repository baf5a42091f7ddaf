//! Whether the disk has room for what has to come.

use std::io;

use camino::Utf8Path;
use hoist_protocol::{Reason, Text};

use super::fetch_error::FetchError;

/// Where closures go.
const STORE: &str = "/nix/store";

/// What is to stay free, in bytes: Nix's database, the profile, the ledger and the machine's own programs need
/// room too, and files take more of it than their bytes.
const RESERVE_MAX: u64 = 256 << 20;

/// On small file systems as much as this part of them is to stay free, in percent.
const RESERVE_PERCENT: u64 = 5;

/// The room of a file system at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// What this process may still write, in bytes.
    free: u64,
    /// What is to stay of that, in bytes.
    reserve: u64,
}

impl Room {
    /// That of the store.
    pub(super) fn of_store() -> io::Result<Self> {
        Self::of(STORE.into())
    }

    fn of(path: &Utf8Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path.as_std_path())?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self::new(bytes(stat.f_bavail), bytes(stat.f_blocks)))
    }

    const fn new(free: u64, size: u64) -> Self {
        let part = size / 100 * RESERVE_PERCENT;
        Self {
            free,
            reserve: if part < RESERVE_MAX {
                part
            } else {
                RESERVE_MAX
            },
        }
    }

    /// Whether `bytes` more go in.
    ///
    /// # Errors
    /// [`Reason::DiskFull`] with the numbers and what to do.
    pub(super) fn check(self, what: &str, bytes: u64) -> Result<(), FetchError> {
        let Self { free, reserve } = self;
        if bytes.saturating_add(reserve) <= free {
            return Ok(());
        }
        let missing = bytes.saturating_add(reserve) - free;
        Err(FetchError {
            reason: Reason::DiskFull,
            message: Text::lossy(&format!(
                "cannot fetch {what}: it needs {} in {STORE}, where {} are free and {} have to stay free; \
                 make room for {} more, for example with `nix-collect-garbage --delete-older-than 14d`",
                mib(bytes),
                mib(free),
                mib(reserve),
                mib(missing)
            )),
        })
    }
}

/// A size for people, rounded up.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_does_not_go_in_is_refused_with_numbers() {
        let room = Room::new(2 * GIB, 100 * GIB);
        room.check("x", GIB).unwrap();
        room.check("x", 2 * GIB - RESERVE_MAX).unwrap();
        let error = room.check("x", 2 * GIB).unwrap_err();
        assert_eq!(error.reason, Reason::DiskFull);
        let message = error.message.as_str();
        assert!(
            message.contains("it needs 2048 MiB")
                && message.contains("2048 MiB are free")
                && message.contains("room for 256 MiB more"),
            "{message}"
        );
        assert!(room.check("x", u64::MAX).is_err());
    }

    #[test]
    fn a_small_disk_keeps_a_small_reserve() {
        let room = Room::new(10 << 20, 100 << 20);
        room.check("x", 5 << 20).unwrap();
        assert!(room.check("x", 6 << 20).is_err());
    }

    #[test]
    fn the_file_system_of_the_store_tells_its_room() {
        let room = Room::of("/".into()).unwrap();
        assert!(room.free > 0);
        assert!(Room::of("/missing".into()).is_err());
    }
}
