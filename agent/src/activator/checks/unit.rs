//! Whether a systemd unit is active, and not only for a moment.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hoist_protocol::UnitName;
use rustix::time::{ClockId, clock_gettime};

use crate::activator::system::Manager;

/// How often it is looked whether systemctl has answered.
const POLL: Duration = Duration::from_millis(5);

/// How often a unit that was just started is looked at again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a unit has to have been active. systemd calls most services active from the moment their process
/// exists, so that one that ends at once, or again and again, is active whenever it is looked at early enough.
const SETTLED: Duration = Duration::from_secs(2);

/// Waits until the unit has been active for a while, for `limit` at most.
pub(super) fn probe(manager: Manager, unit: &UnitName, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    // A try that is short gets an answer too.
    let enough = SETTLED.min(limit / 2);
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let active = Shown::of(manager, unit, left)?.active_for()?;
        if active >= enough {
            return Ok(());
        }
        if begun.elapsed() + AGAIN >= limit {
            return Err(format!(
                "it was started again {:.1} s ago",
                active.as_secs_f64()
            ));
        }
        std::thread::sleep(AGAIN);
    }
}

/// What systemd shows of a unit.
struct Shown(String);

impl Shown {
    fn of(manager: Manager, unit: &UnitName, limit: Duration) -> Result<Self, String> {
        let cannot = |error| format!("systemctl cannot be asked: {error}");
        let begun = Instant::now();
        let mut child = Command::new("systemctl")
            .args(manager.flags())
            .args(["show", "--property=LoadState,ActiveState"])
            .args(["--property=ActiveEnterTimestampMonotonic", "--"])
            .arg(unit.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot)?;
        while child.try_wait().map_err(cannot)?.is_none() {
            if begun.elapsed() >= limit {
                let killed = child.kill().and_then(|()| child.wait());
                return Err(match killed {
                    Ok(_) => "systemd did not answer in time".to_owned(),
                    Err(error) => cannot(error),
                });
            }
            std::thread::sleep(POLL);
        }
        // Three lines, so that the pipes cannot have held it up.
        let output = child.wait_with_output().map_err(cannot)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("systemctl said: {}", said.trim()));
        }
        Ok(Self(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    fn property(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }

    /// How long it has been active; an error when it is not.
    fn active_for(&self) -> Result<Duration, String> {
        if self.property("LoadState") == Some("not-found") {
            return Err("there is no such unit".to_owned());
        }
        match self.property("ActiveState") {
            // Of a unit that is reloaded the time is that of its start.
            Some("active" | "reloading" | "refreshing") => {}
            Some(state) => return Err(format!("it is {state}")),
            None => return Err("systemctl did not say what state it is in".to_owned()),
        }
        let since = self
            .property("ActiveEnterTimestampMonotonic")
            .and_then(|since| since.parse().ok())
            .map(Duration::from_micros)
            .ok_or("systemctl did not say since when it is active")?;
        Ok(monotonic().saturating_sub(since))
    }
}

/// The clock by which systemd notes when units became active.
fn monotonic() -> Duration {
    // Never negative, and never fails.
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Shown, monotonic};

    fn shown(load: &str, active: &str, since: &str) -> Shown {
        Shown(format!(
            "LoadState={load}\nActiveState={active}\nActiveEnterTimestampMonotonic={since}\n"
        ))
    }

    #[test]
    fn how_long_a_unit_has_been_active_is_read() {
        let since = monotonic().as_micros();
        let active = shown("loaded", "active", &since.to_string());
        assert!(active.active_for().unwrap() < std::time::Duration::from_secs(60));
        let old = shown("loaded", "reloading", "0");
        assert!(old.active_for().unwrap() <= monotonic());
        // A clock that cannot be: not an overflow.
        let ahead = shown("loaded", "active", &u64::MAX.to_string());
        assert!(ahead.active_for().unwrap().is_zero());
    }

    #[test]
    fn a_unit_that_is_not_active_says_what_it_is() {
        let failed = shown("loaded", "failed", "5").active_for();
        assert_eq!(failed.unwrap_err(), "it is failed");
        let absent = shown("not-found", "inactive", "0").active_for();
        assert_eq!(absent.unwrap_err(), "there is no such unit");
        assert!(shown("loaded", "active", "").active_for().is_err());
        assert!(Shown(String::new()).active_for().is_err());
    }
}
