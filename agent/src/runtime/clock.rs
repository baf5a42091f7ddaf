//! What time it is, and whether that can be relied on.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long systemd may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether something such as NTP keeps the wall clock right, as far as systemd can tell: timedated asks the
/// kernel, whoever it is that disciplines the clock. False where there is no systemd.
pub(super) async fn is_synchronised() -> bool {
    // systemd-timesyncd's own mark, without starting a program.
    if std::path::Path::new("/run/systemd/timesync/synchronized").exists() {
        return true;
    }
    if !std::path::Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    let mut command = Command::new("timedatectl");
    command
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(ANSWER, command.output()).await {
        Ok(Ok(output)) => output.stdout.starts_with(b"yes"),
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot ask timedatectl whether the clock is synchronised");
            false
        }
        Err(_) => false,
    }
}
