//! Waiting for a condition, never for a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(15);

/// How long anything that ought to happen may take before a scenario fails. Generous: a busy machine must
/// never fail a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets every wait of this process fail from now on, so that whoever waits cleans up and ends.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Looks until `probe` finds something.
///
/// # Errors
/// Names `what` was waited for when [`PATIENCE`] ends, or passes on the error of `probe`.
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(PATIENCE, what, || {
        if is_interrupted() {
            bail!("interrupted while waiting: {what}");
        }
        probe()
    })
}

/// The same with a patience of its own, and not to be interrupted: for cleaning up.
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
