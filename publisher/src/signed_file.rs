//! Signed deployments in a file, on their way to further signatures and to `hoist deploy --signed`.
//!
//! Version 1 is JSON:
//!
//! ```json
//! { "format": "hoist-signed-deployments", "version": 1, "fleet": "prod",
//!   "deployments": [ { "agent": "web-1", "id": "0196f3a0-…", "envelope": "AfUD…" } ] }
//! ```
//!
//! `envelope` is the base64 of what goes to the machine's `deploy` topic, and the only thing that counts; `fleet`,
//! `agent` and `id` are for people and other tools, and have to be what the envelope says. Nothing in the file
//! is secret, and nothing in it is believed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::files::{self, FileError, Overwrite};
use hoist_protocol::{
    AgentName, DeploymentId, Draft, FleetName, SignError, TrustedKeys, VerifyError,
};
use serde::{Deserialize, Serialize};

/// What the file says that it is.
const FORMAT: &str = "hoist-signed-deployments";

/// The one version so far.
const VERSION: u32 = 1;

/// Largest file that is read, in bytes: room for the largest deployments of 10,000 machines.
pub const MAX_LEN: usize = 256 * 1024 * 1024;

/// Why a file of signed deployments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignedFileError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is something else.
    #[error("`{path}` is no file of signed deployments; `hoist deploy --prepare` makes one")]
    Json {
        /// The file.
        path: Utf8PathBuf,
        /// Where it stops being one.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another kind or version.
    #[error(
        "`{path}` says that it is `{format}`, version {version}; read here is `{FORMAT}`, version {VERSION}"
    )]
    Version {
        /// The file.
        path: Utf8PathBuf,
        /// What it says that it is.
        format: String,
        /// Its version.
        version: u32,
    },
    /// An envelope in it cannot be read.
    #[error("the deployment of `{agent}` in `{path}` cannot be read")]
    Envelope {
        /// The file.
        path: Utf8PathBuf,
        /// The machine that it names.
        agent: AgentName,
        /// Why.
        #[source]
        source: Option<VerifyError>,
    },
    /// What stands beside an envelope is not what is in it.
    #[error(
        "the deployment of `{agent}` in `{path}` is for another machine, or has another id, than stands beside it"
    )]
    Mismatch {
        /// The file.
        path: Utf8PathBuf,
        /// The machine that it names.
        agent: AgentName,
    },
    /// One machine stands there twice.
    #[error("`{path}` has two deployments of `{agent}`")]
    Twice {
        /// The file.
        path: Utf8PathBuf,
        /// The machine.
        agent: AgentName,
    },
    /// There is nothing in it.
    #[error("`{0}` has no deployment")]
    Empty(Utf8PathBuf),
    /// A deployment cannot be written.
    #[error("the deployment of `{0}` cannot be written")]
    Sign(AgentName, #[source] SignError),
}

#[derive(Deserialize, Serialize)]
struct File {
    format: String,
    version: u32,
    fleet: FleetName,
    deployments: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    agent: AgentName,
    id: DeploymentId,
    envelope: String,
}

/// Deployments of one fleet, one for each machine, with the signatures that they have so far.
#[derive(Debug)]
pub struct SignedFile {
    /// The fleet.
    pub fleet: FleetName,
    /// The deployments, in the file's order.
    pub drafts: Vec<Draft>,
}

impl SignedFile {
    /// Reads a file. Nothing in it is verified.
    ///
    /// # Errors
    /// [`SignedFileError`]
    pub fn read(path: &Utf8Path) -> Result<Self, SignedFileError> {
        let bytes = files::read_limited(path, MAX_LEN)?;
        let file: File =
            serde_json::from_slice(&bytes).map_err(|source| SignedFileError::Json {
                path: path.to_owned(),
                source,
            })?;
        if file.format != FORMAT || file.version != VERSION {
            return Err(SignedFileError::Version {
                path: path.to_owned(),
                format: file
                    .format
                    .chars()
                    .take(64)
                    .flat_map(char::escape_debug)
                    .collect(),
                version: file.version,
            });
        }
        let fleet = file.fleet;
        let mut drafts: Vec<Draft> = Vec::new();
        let mut agents = std::collections::BTreeSet::new();
        for entry in file.deployments {
            let draft = entry.open(path)?;
            let machine = draft.deployment().machine();
            let path = path.to_owned();
            if machine.fleet != fleet
                || machine.agent != entry.agent
                || draft.deployment().id() != entry.id
            {
                let agent = entry.agent;
                return Err(SignedFileError::Mismatch { path, agent });
            }
            if !agents.insert(entry.agent.clone()) {
                let agent = entry.agent;
                return Err(SignedFileError::Twice { path, agent });
            }
            drafts.push(draft);
        }
        match drafts.is_empty() {
            true => Err(SignedFileError::Empty(path.to_owned())),
            false => Ok(Self { fleet, drafts }),
        }
    }

    /// Writes it, in place of what was there.
    ///
    /// # Errors
    /// [`SignedFileError`]
    pub fn write(&self, path: &Utf8Path) -> Result<(), SignedFileError> {
        let deployments = self.drafts.iter().map(|draft| {
            let deployment = draft.deployment();
            let agent = deployment.machine().agent.clone();
            let envelope = draft.finish();
            let envelope = envelope.map_err(|error| SignedFileError::Sign(agent.clone(), error))?;
            Ok(Entry {
                agent,
                id: deployment.id(),
                envelope: STANDARD.encode(envelope),
            })
        });
        let file = File {
            format: FORMAT.to_owned(),
            version: VERSION,
            fleet: self.fleet.clone(),
            deployments: deployments.collect::<Result<_, SignedFileError>>()?,
        };
        let json = serde_json::to_string_pretty(&file).expect("plain data has a JSON form") + "\n";
        Ok(files::write_public(path, json.as_bytes(), Overwrite::Yes)?)
    }

    /// The machines whose deployments do not have enough signatures, and how that is said.
    #[must_use]
    pub fn lacking(&self, trusted: &TrustedKeys) -> Vec<(AgentName, VerifyError)> {
        let lacking = self.drafts.iter().filter_map(|draft| {
            let machine = draft.deployment().machine();
            let bytes = draft.finish().ok()?;
            let error = trusted.verify(&bytes, machine).err()?;
            Some((machine.agent.clone(), error))
        });
        lacking.collect()
    }
}

impl Entry {
    fn open(&self, path: &Utf8Path) -> Result<Draft, SignedFileError> {
        let error = |source| SignedFileError::Envelope {
            path: path.to_owned(),
            agent: self.agent.clone(),
            source,
        };
        let bytes = STANDARD.decode(&self.envelope).map_err(|_| error(None))?;
        Draft::open(&bytes).map_err(|source| error(Some(source)))
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Goal, KnownOrders, Target};

    use super::*;
    use crate::plan::Wish;
    use crate::testing::{draft, id, key, machine};

    fn file(agents: &[&str]) -> SignedFile {
        let drafts = agents.iter().zip(1..).map(|(agent, n)| {
            let wish = Wish::of(Target::new(Goal::Stay));
            let mut draft = draft(machine(agent), wish, KnownOrders::default(), id(n));
            draft.sign(&key("ci")).unwrap();
            draft
        });
        SignedFile {
            fleet: machine("web-1").fleet,
            drafts: drafts.collect(),
        }
    }

    fn read_after(change: impl FnOnce(String) -> String) -> Result<SignedFile, SignedFileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("signed.json")).unwrap();
        file(&["web-1", "web-2"]).write(&path).unwrap();
        let text = change(std::fs::read_to_string(&path).unwrap());
        std::fs::write(&path, text).unwrap();
        SignedFile::read(&path)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let read = read_after(|text| text).unwrap();
        assert_eq!(read.drafts, file(&["web-1", "web-2"]).drafts);
        let ci = TrustedKeys::new(vec![key("ci").public()]).unwrap();
        assert!(read.lacking(&ci).is_empty());
        let both = vec![key("ci").public(), key("ops").public()];
        let both = TrustedKeys::with_policy(both, 2, Vec::new()).unwrap();
        assert_eq!(read.lacking(&both).len(), 2);
    }

    #[test]
    fn what_does_not_hold_together_is_refused() {
        let changed = |from: &str, to: &str| read_after(|text| text.replacen(from, to, 1));
        assert!(matches!(
            changed("web-1", "web-9"),
            Err(SignedFileError::Mismatch { .. })
        ));
        assert!(matches!(
            changed("prod", "test"),
            Err(SignedFileError::Mismatch { .. })
        ));
        let newer = changed("\"version\": 1", "\"version\": 2");
        assert!(matches!(newer, Err(SignedFileError::Version { .. })));
        assert!(matches!(
            changed("{", "["),
            Err(SignedFileError::Json { .. })
        ));
        let envelope = changed("\"envelope\": \"", "\"envelope\": \"!");
        assert!(matches!(envelope, Err(SignedFileError::Envelope { .. })));
    }
}
