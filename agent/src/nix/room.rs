//! Whether the disk has room for what has to come.
//!
//! Where Nix is told to remove garbage when room runs short (`min-free` in its settings), it does so while it copies.
//! How much garbage there is only a search of the whole store would tell, which takes minutes: so Nix may try, unless
//! the file system could not hold it at all. Should the garbage not be enough, Nix says that the disk is full.

use std::io;

use camino::Utf8Path;
use hoist_protocol::{Reason, Text};

use super::fetch_error::FetchError;
use super::settings::Settings;

/// Where closures go.
const STORE: &str = "/nix/store";

/// What is to stay free, in bytes: Nix's database, the profile, the ledger and the machine's own programs need
/// room too, and files take more of it than their bytes.
const RESERVE_MAX: u64 = 256 << 20;

/// On small file systems as much as this part of them is to stay free, in percent.
const RESERVE_PERCENT: u64 = 5;

/// The room of a file system at a moment.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// What the file system holds, in bytes.
    size: u64,
    /// What this process may still write, in bytes.
    free: u64,
    /// What is to stay of that, in bytes.
    reserve: u64,
    /// Whether Nix removes garbage when room runs short; asked only when it matters.
    nix_frees: Option<bool>,
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
            size,
            free,
            nix_frees: None,
            reserve: if part < RESERVE_MAX {
                part
            } else {
                RESERVE_MAX
            },
        }
    }

    /// Whether `bytes` more go in, or may when Nix removes garbage; says so when it is told of that for the first time.
    ///
    /// # Errors
    /// [`Reason::DiskFull`] with the numbers and what to do.
    pub(super) async fn admit(
        &mut self,
        what: &str,
        bytes: u64,
    ) -> Result<Option<Text<2048>>, FetchError> {
        let Err(full) = self.check(what, bytes) else {
            return Ok(None);
        };
        let asked = self.nix_frees;
        let frees = match asked {
            Some(frees) => frees,
            None => nix_frees(Settings::ask().await.as_ref()),
        };
        self.nix_frees = Some(frees);
        if !frees || bytes.saturating_add(self.reserve) > self.size {
            return Err(full);
        }
        Ok(asked.is_none().then(|| {
            Text::lossy(&format!(
                "{what} needs {} where {} are free: Nix is to remove garbage meanwhile, as its setting `min-free` says",
                mib(bytes),
                mib(self.free)
            ))
        }))
    }

    fn check(&self, what: &str, bytes: u64) -> Result<(), FetchError> {
        let &Self { free, reserve, .. } = self;
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

/// Whether Nix removes garbage when room runs short.
fn nix_frees(settings: Option<&Settings>) -> bool {
    let least = settings.and_then(|settings| settings.get("min-free")?.parse::<u64>().ok());
    least.is_some_and(|bytes| bytes > 0)
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

    #[tokio::test]
    async fn nix_may_try_where_it_removes_garbage_and_the_disk_could_hold_it() {
        let frees = |frees| Room {
            nix_frees: Some(frees),
            ..Room::new(GIB, 10 * GIB)
        };
        frees(true).admit("x", 2 * GIB).await.unwrap();
        frees(false).admit("x", 2 * GIB).await.unwrap_err();
        frees(true).admit("x", 10 * GIB).await.unwrap_err();
        frees(false).admit("x", GIB / 2).await.unwrap();
    }

    #[test]
    fn nix_removes_garbage_only_where_it_is_told_to() {
        for (settings, frees) in [("min-free = 1", true), ("min-free = 0", false), ("", false)] {
            assert_eq!(nix_frees(Some(&Settings::of(settings))), frees);
        }
        assert!(!nix_frees(None));
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
