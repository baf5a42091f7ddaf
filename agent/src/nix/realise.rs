//! Fetches closures into the machine's store.

use std::io;
use std::process::Stdio;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use hoist_protocol::{CacheKey, DeploymentId, StorePath, SubstituterUrl};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::fetch_error::FetchError;
use super::progress::{FetchEvent, Progress};
use super::roots::roots_of;

/// What to fetch.
#[derive(Clone, Debug)]
pub struct RealiseRequest {
    /// The deployment it is for.
    pub id: DeploymentId,
    /// The closure first, then what else is needed, such as health checks. Each with all it refers to.
    pub paths: Vec<StorePath>,
    /// Binary caches besides the machine's own.
    pub substituters: Vec<SubstituterUrl>,
    /// Keys of binary caches besides those that the machine trusts.
    pub keys: Vec<CacheKey>,
    /// Where the deployment's garbage collector roots are made: in a folder of its own in [`roots_dir`](super::roots_dir).
    pub roots: Utf8PathBuf,
    /// After this long the fetch is given up; none waits as long as Nix does.
    pub timeout: Option<Duration>,
}

/// What was fetched, or was there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Realised {
    /// The size of the first path's closure in the store, in bytes, where Nix tells.
    pub closure_size: Option<u64>,
}

/// Longest line of Nix that is read; the rest of a longer one is skipped, in bytes.
const LINE_MAX: usize = 64 * 1024;

/// Progress is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Brings `request.paths` into the store with all they refer to, and keeps them from the garbage collector.
///
/// The machine's own caches, keys and credentials are used, and those of the request besides. Nothing is
/// ever built. Events that find no room in the channel are dropped. Dropping the future cancels the fetch:
/// Nix and what it started is killed.
///
/// # Errors
/// [`FetchError`] with the reason as far as Nix tells it.
pub async fn realise(
    request: &RealiseRequest,
    events: &mpsc::Sender<FetchEvent>,
) -> Result<Realised, FetchError> {
    let Some(closure) = request.paths.first() else {
        return Err(FetchError::other("there is nothing to fetch"));
    };
    let work = async {
        // Asked for at the same time, since both take about as long when all is there; the answer from
        // before the fetch is none when something was missing.
        let (fetched, size) = tokio::join!(fetch(request, closure, events), closure_size(closure));
        fetched?;
        let closure_size = match size {
            Some(size) => Some(size),
            None => closure_size(closure).await,
        };
        Ok(Realised { closure_size })
    };
    match request.timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let seconds = limit.as_secs_f64();
            Err(FetchError::other(&format!(
                "cannot fetch {closure}: it took longer than {seconds} s"
            )))
        }),
    }
}

async fn fetch(
    request: &RealiseRequest,
    closure: &StorePath,
    events: &mpsc::Sender<FetchEvent>,
) -> Result<(), FetchError> {
    let dir = roots_of(&request.roots, request.id);
    std::fs::create_dir_all(&dir)
        .map_err(|error| FetchError::other(&format!("cannot make `{dir}`: {error}")))?;
    let mut command = nix("nix-store");
    command.arg("--realise");
    command.args(request.paths.iter().map(StorePath::as_str));
    command.args(["--add-root", dir.join("closure").as_str()]);
    add(
        &mut command,
        "extra-substituters",
        request.substituters.iter().map(SubstituterUrl::as_str),
    );
    add(
        &mut command,
        "extra-trusted-public-keys",
        request.keys.iter().map(CacheKey::as_str),
    );
    // A path that was asked for before it was pushed counts as missing for an hour otherwise.
    command.args(["--option", "narinfo-cache-negative-ttl", "0"]);
    // Never build, here or elsewhere.
    command.args(["--max-jobs", "0", "--option", "builders", ""]);
    command.args(["--log-format", "internal-json", "-v"]);
    let mut child = Group::spawn(&mut command, "nix-store")?;

    let mut progress = Progress::default();
    let mut told = (progress.now(), None::<Instant>);
    let mut stderr = BufReader::new(child.stderr()?);
    let mut line = Vec::new();
    while read_line(&mut stderr, &mut line)
        .await
        .map_err(|error| FetchError::other(&format!("cannot read what nix-store says: {error}")))?
    {
        if let Some(text) = progress.line(&String::from_utf8_lossy(&line)) {
            offer(events, FetchEvent::Line(text));
        }
        let now = progress.now();
        if now != told.0 && told.1.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
            offer(events, FetchEvent::Progress(now));
            told = (now, Some(Instant::now()));
        }
    }
    let status = child
        .wait()
        .await
        .map_err(|error| FetchError::other(&format!("cannot wait for nix-store: {error}")))?;
    if progress.now() != told.0 {
        offer(events, FetchEvent::Progress(progress.now()));
    }
    if status.success() {
        Ok(())
    } else {
        Err(progress.complaints.verdict(closure.as_str()))
    }
}

/// What nobody has room for is only shown less often.
fn offer(events: &mpsc::Sender<FetchEvent>, event: FetchEvent) {
    drop(events.try_send(event));
}

fn add<'a>(command: &mut Command, option: &str, values: impl Iterator<Item = &'a str>) {
    let values: Vec<_> = values.collect();
    if !values.is_empty() {
        command.args(["--option", option, &values.join(" ")]);
    }
}

/// The size of a closure that is in the store; none when it is not, or when Nix does not tell.
async fn closure_size(closure: &StorePath) -> Option<u64> {
    let mut command = nix("nix");
    command.args(["--extra-experimental-features", "nix-command"]);
    command.args(["path-info", "--json", "-S", closure.as_str()]);
    // The local store alone: Nix would ask the caches for a missing path too, and while another Nix asks a
    // cache for the first time, one of both fails in `~/.cache/nix` with "constraint failed".
    command.args(["--option", "substitute", "false"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let output = command.output().await.ok()?;
    size_in(&serde_json::from_slice(&output.stdout).ok()?, closure)
}

/// Older versions of Nix write an array, newer ones an object by path.
fn size_in(json: &Value, closure: &StorePath) -> Option<u64> {
    let info = match json {
        Value::Array(infos) => infos
            .iter()
            .find(|info| info.get("path").and_then(Value::as_str) == Some(closure.as_str()))?,
        Value::Object(infos) => infos
            .get(closure.as_str())
            .or_else(|| infos.get("info")?.get(closure.base_name()))?,
        _ => return None,
    };
    info.get("closureSize")?.as_u64()
}

fn nix(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(super::clean_environment())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A program with all that it started, killed when this is dropped before it has ended.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Group {
    fn spawn(command: &mut Command, name: &str) -> Result<Self, FetchError> {
        let child = command.process_group(0).spawn().map_err(|error| {
            FetchError::other(&if error.kind() == io::ErrorKind::NotFound {
                format!("cannot find `{name}`: install Nix, or add it to the PATH of the agent")
            } else {
                format!("cannot start `{name}`: {error}")
            })
        })?;
        let leader = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        Ok(Self { child, leader })
    }

    fn stderr(&mut self) -> Result<tokio::process::ChildStderr, FetchError> {
        let stderr = self.child.stderr.take();
        stderr.ok_or_else(|| FetchError::other("cannot read what nix-store says"))
    }

    async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait().await;
        // From here on the number may belong to another process.
        self.leader = None;
        status
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader
            && let Err(error) = kill_process_group(leader, Signal::KILL)
        {
            tracing::debug!(%error, "nix-store had ended when its fetch was cancelled");
        }
    }
}

/// Reads a line of at most [`LINE_MAX`] bytes without its end, and skips what is longer; false at the end.
async fn read_line(from: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
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
    use super::*;

    const PATH: &str = "/nix/store/0jjfmy3arn0dmbh43zyahz6chpw0r863-top";

    #[test]
    fn the_size_is_read_from_old_and_new_versions_of_nix() {
        let closure = StorePath::new(PATH).unwrap();
        let base = closure.base_name();
        let old = format!(r#"[{{"path":"{PATH}","narSize":688,"closureSize":1336}}]"#);
        let new = format!(r#"{{"{PATH}":{{"narSize":688,"closureSize":1336}}}}"#);
        let newest = format!(r#"{{"info":{{"{base}":{{"closureSize":1336}}}},"version":2}}"#);
        for json in [old, new, newest] {
            assert_eq!(
                size_in(&serde_json::from_str(&json).unwrap(), &closure),
                Some(1336)
            );
        }
        for json in [
            "[]",
            "{}",
            "null",
            r#"[{"path":"/nix/store/x","valid":false}]"#,
        ] {
            assert_eq!(
                size_in(&serde_json::from_str(json).unwrap(), &closure),
                None
            );
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
