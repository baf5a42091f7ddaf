//! The configuration of another engine for the same fleet: NATS JetStream or mosquitto in place of `hoist-broker`.
//!
//! Who may do what comes from the rules that the broker itself goes by, asked for each certificate: the engine is
//! told nothing that is written down twice.

mod issued;
mod mosquitto;
mod nats;
mod path;
mod rights;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::directory::DirectoryError;
use hoist_certs::files::{self, FileError, Overwrite};

pub use issued::IssuedClients;
pub use mosquitto::{Mosquitto, Seconds};
pub use nats::{Nats, Node, NodeError, Nodes, NodesError};
pub use path::{EnginePath, EnginePathError};

/// Why there is no configuration to write.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// What was issued cannot be read.
    #[error("cannot tell who has a certificate")]
    Issued(#[from] DirectoryError),
    /// A file of the configuration cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no client at all.
    #[error(
        "nobody has a certificate of the CA in `{0}` that holds; issue one with `hoist-certs issue`"
    )]
    Nobody(Utf8PathBuf),
}

/// A file of an engine's configuration, not written yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigFile {
    /// Its name.
    pub name: String,
    /// What it holds. No secret.
    pub text: String,
}

/// Writes `configuration` into the folder `dir`, replacing what an earlier export wrote; gives the paths.
///
/// Each file is complete or not there, so that an engine may read it at any moment.
///
/// # Errors
/// [`ExportError::File`]
pub fn write(
    dir: &Utf8Path,
    configuration: &[ConfigFile],
) -> Result<Vec<Utf8PathBuf>, ExportError> {
    let mut written = Vec::new();
    for file in configuration {
        let path = dir.join(&file.name);
        files::write_public(&path, file.text.as_bytes(), Overwrite::Yes)?;
        written.push(path);
    }
    Ok(written)
}
