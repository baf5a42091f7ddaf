//! What can go wrong with a job directory.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

/// Why a job cannot be made, read or started.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A file or directory of the job could not be used.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was to be done with it.
        action: &'static str,
        /// Which one.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("`{path}` is damaged")]
    Malformed {
        /// Which one.
        path: Utf8PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file was written by a version of Hoist that this one does not know.
    #[error(
        "`{path}` has format {found}, and this version reads {known}; start the version that wrote it"
    )]
    Format {
        /// Which one.
        path: Utf8PathBuf,
        /// The format found.
        found: u32,
        /// The format known.
        known: u32,
    },
    /// The id has a job with another spec.
    #[error("`{dir}` is there already, for something else")]
    Exists {
        /// Where it is.
        dir: Utf8PathBuf,
    },
    /// The activator could not be started.
    #[error("cannot start the activator of `{dir}`")]
    Start {
        /// The job it is for.
        dir: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl JobError {
    pub(crate) fn io(action: &'static str, path: &Utf8Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
