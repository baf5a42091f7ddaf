//! What was known of the connection before an activation, kept for the agent that comes after it.
//!
//! An activation may replace the agent. The new one cannot tell whether what does not work now has ever worked, and
//! so the old one writes it down, in `<state>/reach`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::DeploymentId;
use serde::{Deserialize, Serialize};

use super::outage::Known;

/// Largest such file that is read, in bytes: many times what is ever written.
const MAX_LEN: u64 = 64 * 1024;

/// How things were before an activation began.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Before {
    /// Of which deployment.
    pub(super) id: DeploymentId,
    /// Whether a nonce was sent to `echo`.
    pub(super) asked: bool,
    /// Whether one came back.
    pub(super) heard: bool,
    /// What was in reach.
    pub(super) known: Known,
}

fn path(state: &Utf8Path) -> Utf8PathBuf {
    state.join("reach")
}

impl Before {
    /// Whether the broker had not let the agent hear its nonces: then nobody can ask for it afterwards.
    pub(super) const fn was_silent(&self) -> bool {
        self.asked && !self.heard
    }

    /// Writes it down. It is not synced: after a power cut nobody waits for a confirmation any more.
    pub(super) fn save(&self, state: &Utf8Path) -> io::Result<()> {
        // Always the same name: what an agent that is killed here leaves, the next one replaces.
        let new = state.join("reach.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(new, path(state))
    }

    /// What was written down for the deployment `id`.
    pub(super) fn load(state: &Utf8Path, id: DeploymentId) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        match File::open(path(state)) {
            Ok(file) => file.take(MAX_LEN).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let before: Self = serde_json::from_slice(&bytes)?;
        Ok((before.id == id).then_some(before))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_written_down_is_for_its_deployment_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(dir.path()).unwrap();
        let id = |n| DeploymentId::new(Uuid::from_u128(n));
        assert_eq!(Before::load(state, id(1)).unwrap(), None);
        let before = Before {
            id: id(1),
            asked: true,
            heard: false,
            known: Known {
                brokers: ["192.0.2.1:8883".parse().unwrap()].into(),
                witnesses: ["[2001:db8::1]:443".parse().unwrap()].into(),
            },
        };
        before.save(state).unwrap();
        assert_eq!(Before::load(state, id(1)).unwrap(), Some(before));
        assert_eq!(Before::load(state, id(2)).unwrap(), None);
        let files = state.read_dir_utf8().unwrap().count();
        assert_eq!(files, 1, "nothing else is left behind");
    }

    #[test]
    fn a_damaged_file_is_an_error_and_no_knowledge() {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(dir.path()).unwrap();
        fs::write(path(state), "{").unwrap();
        assert!(Before::load(state, DeploymentId::new(Uuid::nil())).is_err());
    }
}
