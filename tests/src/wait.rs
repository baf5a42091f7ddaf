//! Waiting for a condition, never for a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(15);

/// How long anything that ought to happen may take before a scenario fails. Generous: a busy machine must
/// never fail a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until `probe` finds something.
///
/// # Errors
/// Names `what` was waited for when [`PATIENCE`] ends, or passes on the error of `probe`.
pub fn until<T>(what: &str, probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(PATIENCE, what, probe)
}

/// The same with a patience of its own.
///
/// # Errors
/// As [`until`].
pub fn until_within<T>(
    patience: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("waited {} s in vain: {what}", patience.as_secs());
        }
        sleep(POLL);
    }
}

/// Looks until `holds`.
///
/// # Errors
/// As [`until`].
pub fn until_true(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, || Ok(holds()?.then_some(())))
}
