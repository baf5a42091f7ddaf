//! The library's TLS over real handshakes, and the program as it is run.

#![allow(clippy::unwrap_used, reason = "a test that panics fails, as it should")]

mod cli;
mod credentials;
mod diagnosis;
mod handshake;
mod revocation;

use camino::Utf8PathBuf;
use hoist_protocol::{AgentName, FleetName};
use tempfile::TempDir;

/// A folder that is gone when the test is over.
struct Folder {
    path: Utf8PathBuf,
    _guard: TempDir,
}

impl Folder {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        Self {
            path: Utf8PathBuf::try_from(guard.path().to_owned()).unwrap(),
            _guard: guard,
        }
    }
}

fn name(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn fleet(name: &str) -> FleetName {
    name.parse().unwrap()
}
