//! Tells the service manager how the agent is (`sd_notify(3)`). Does nothing where none listens, as on macOS.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::Changes;

/// The agent's side of the service manager.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    /// `NOTIFY_SOCKET`
    socket: Option<OsString>,
    watchdog: Option<Duration>,
    status: String,
    failures: Changes,
}

impl ServiceManager {
    /// The one that started this process, as its environment says.
    pub(super) fn from_environment() -> Self {
        let number = |name| std::env::var(name).ok()?.parse().ok();
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()),
            watchdog: watchdog(
                number("WATCHDOG_USEC"),
                number("WATCHDOG_PID"),
                std::process::id(),
            ),
            ..Self::default()
        }
    }

    /// Within what time it wants to hear that the agent lives; none when it does not watch.
    pub(super) const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The agent does its work.
    pub(super) fn ready(&mut self) {
        self.send("READY=1");
    }

    /// The agent lives. To be said by what stands still when the agent does.
    pub(super) fn alive(&mut self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// The agent ends.
    pub(super) fn stopping(&mut self) {
        self.send("STOPPING=1");
    }

    /// What the agent does, one line, when that is news.
    pub(super) fn status(&mut self, status: String) {
        if status != self.status {
            self.send(&format!("STATUS={status}"));
            self.status = status;
        }
    }

    fn send(&mut self, message: &str) {
        let Some(name) = &self.socket else {
            return;
        };
        match send(name, message.as_bytes()) {
            Ok(()) => self.failures.clear(),
            Err(error) => {
                if self.failures.is_news(&error.to_string()) {
                    tracing::warn!(%error, "cannot tell the service manager how the agent is");
                }
            }
        }
    }
}

/// The watchdog's time from `WATCHDOG_USEC`, when it is meant for this process (`sd_watchdog_enabled(3)`).
fn watchdog(micros: Option<u64>, pid: Option<u64>, ours: u32) -> Option<Duration> {
    let meant = pid.is_none_or(|pid| pid == u64::from(ours));
    micros
        .filter(|micros| *micros > 0 && meant)
        .map(Duration::from_micros)
}

fn send(name: &OsString, message: &[u8]) -> io::Result<()> {
    let bytes = name.as_encoded_bytes();
    // `@` stands for the zero byte that abstract names begin with.
    let address = match bytes.strip_prefix(b"@") {
        Some(rest) => abstract_address(rest)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A service manager that does not read must not stop the agent.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message, &address)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &[u8]) -> io::Result<SocketAddr> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "only Linux has sockets with abstract names",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_hears_how_the_agent_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut manager = ServiceManager {
            socket: Some(path.into()),
            watchdog: Some(Duration::from_secs(1)),
            ..ServiceManager::default()
        };
        manager.ready();
        manager.status("idle".to_owned());
        manager.status("idle".to_owned());
        manager.alive();
        manager.stopping();
        let mut heard = Vec::new();
        let mut buffer = [0; 64];
        while let Ok(len) = socket.recv(&mut buffer) {
            heard.push(String::from_utf8(buffer[..len].to_vec()).unwrap());
        }
        assert_eq!(
            heard,
            ["READY=1", "STATUS=idle", "WATCHDOG=1", "STOPPING=1"]
        );
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some(1_000_000), None, 7), second);
        assert_eq!(watchdog(Some(1_000_000), Some(7), 7), second);
        assert_eq!(watchdog(Some(1_000_000), Some(8), 7), None);
        assert_eq!(watchdog(Some(0), None, 7), None);
        assert_eq!(watchdog(None, Some(7), 7), None);
    }
}
