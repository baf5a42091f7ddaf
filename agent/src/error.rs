//! Why the agent ends.

use crate::config::SettingsError;
use crate::job::JobError;
use crate::ledger::LedgerError;
use crate::runtime::StartError;

/// What ends the agent. Everything else is reported, and the agent goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The machine is not as it has to be.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The ledger cannot be read or written: without it nothing may be begun.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The job directories cannot be read.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The operating system refuses something that cannot be done without.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
