//! Nix's programs as children: started with a clean environment, killed with all that they started.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::fetch_error::FetchError;

/// Longest line of Nix that is read; the rest of a longer one is skipped, in bytes.
pub(super) const LINE_MAX: usize = 64 * 1024;

/// What Nix needs of the environment beside what every program gets: the way to caches, and the user's own
/// settings of Nix. What is activated does not get it.
const FOR_NIX: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
];

/// And what the variables begin with that hold the credentials for caches on S3.
const CREDENTIALS: &str = "AWS_";

/// A program of Nix, with nothing to read and nowhere to write until it is told otherwise.
pub(super) fn nix(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(super::clean_environment())
        .envs(environment_for_nix())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

fn environment_for_nix() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_for_nix))
}

fn is_for_nix(name: &str) -> bool {
    FOR_NIX.contains(&name) || name.starts_with(CREDENTIALS)
}

/// A program with all that it started, killed when this is dropped before it has ended.
pub(super) struct Group {
    child: Child,
    leader: Option<Pid>,
    name: &'static str,
}

impl Group {
    /// Starts `name`, which `command` runs.
    pub(super) fn spawn(command: &mut Command, name: &'static str) -> Result<Self, FetchError> {
        let child = command.process_group(0).spawn().map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                FetchError::internal(format!(
                    "cannot find `{name}`: install Nix, or add it to the PATH of the agent"
                ))
            } else {
                FetchError::other(format!("cannot start `{name}`: {error}"))
            }
        })?;
        let leader = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        Ok(Self {
            child,
            leader,
            name,
        })
    }

    pub(super) fn stderr(&mut self) -> Result<ChildStderr, FetchError> {
        let stderr = self.child.stderr.take();
        stderr.ok_or_else(|| self.unreadable())
    }

    pub(super) fn stdout(&mut self) -> Result<ChildStdout, FetchError> {
        let stdout = self.child.stdout.take();
        stdout.ok_or_else(|| self.unreadable())
    }

    fn unreadable(&self) -> FetchError {
        FetchError::other(format!("cannot read what {} says", self.name))
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> Result<ExitStatus, FetchError> {
        let status = self.child.wait().await;
        // From here on the number may belong to another process.
        self.leader = None;
        status.map_err(|error| FetchError::other(format!("cannot wait for {}: {error}", self.name)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader
            && let Err(error) = kill_process_group(leader, Signal::KILL)
        {
            tracing::debug!(name = self.name, %error, "it had ended when it was cancelled");
        }
    }
}

/// Reads a line of at most [`LINE_MAX`] bytes without its end, and skips what is longer; false at the end.
pub(super) async fn read_line(
    from: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        line.extend(&part[..part.len().min(LINE_MAX - line.len())]);
        let used = part.len() + usize::from(end.is_some());
        from.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    #[test]
    fn nix_gets_the_way_to_caches_and_nothing_else_of_the_environment() {
        for name in ["https_proxy", "NO_PROXY", "AWS_ACCESS_KEY_ID"] {
            assert!(is_for_nix(name), "{name}");
        }
        for name in ["LD_PRELOAD", "CREDENTIALS_DIRECTORY", "HOIST_KEY", "AWS"] {
            assert!(!is_for_nix(name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_takes_bounded_memory() {
        let mut bytes = vec![b'x'; 3 * LINE_MAX];
        bytes.extend(b"\nnext\nlast");
        let mut from = BufReader::new(bytes.as_slice());
        let mut line = Vec::new();
        assert!(read_line(&mut from, &mut line).await.unwrap());
        assert_eq!(line.len(), LINE_MAX);
        assert!(read_line(&mut from, &mut line).await.unwrap());
        assert_eq!(line, b"next");
        assert!(read_line(&mut from, &mut line).await.unwrap());
        assert_eq!(line, b"last");
        assert!(!read_line(&mut from, &mut line).await.unwrap());
    }
}
