//! Whether a systemd unit is active.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hoist_protocol::UnitName;

const POLL: Duration = Duration::from_millis(5);

/// Asks systemd, for `limit` at most.
pub(super) fn probe(unit: &UnitName, limit: Duration) -> Result<(), String> {
    let cannot = |error| format!("systemctl cannot be asked: {error}");
    let begun = Instant::now();
    let mut child = Command::new("systemctl")
        .args(["is-active", "--", unit.as_str()])
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
    // A state is one word, so that the pipes cannot have held it up.
    let output = child.wait_with_output().map_err(cannot)?;
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if state == "active" {
        return Ok(());
    }
    if state.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("systemctl said: {}", said.trim()));
    }
    Err(format!("it is {state}"))
}
