//! Ports for servers that cannot be asked which one they took.

use std::env;
use std::fs::{self, File};
use std::net::TcpListener;
use std::ops::Range;

use anyhow::{Context as _, Result, bail};
use camino::Utf8PathBuf;
use rustix::fs::{FlockOperation, flock};

/// Below what Linux hands out for port 0 and for outgoing connections, so that nobody else takes one by chance.
const RANGE: Range<u16> = 20_000..30_000;

/// A free port of 127.0.0.1, kept from every other test for as long as this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes one.
    ///
    /// # Errors
    /// When all are taken, or the folder of their locks cannot be written.
    pub fn reserve() -> Result<Self> {
        let folder = Utf8PathBuf::try_from(env::temp_dir())?;
        let folder = folder.join(format!(
            "hoist-ports-{}",
            rustix::process::geteuid().as_raw()
        ));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {folder}"))?;
        let start: u16 = rand::random_range(RANGE);
        for number in (start..RANGE.end).chain(RANGE.start..start) {
            let lock = File::create(folder.join(number.to_string()))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && TcpListener::bind(("127.0.0.1", number)).is_ok()
            {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!("no port from {} to {} is free", RANGE.start, RANGE.end);
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }
}
