//! Fetches closures into the machine's store.

use std::process::Stdio;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{
    CacheKey, Changes, ClosureDigest, DeploymentId, FetchProgress, StorePath, SubstituterUrl,
};
use tokio::io::BufReader;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::closure::{self, Closure};
use super::fetch_error::FetchError;
use super::process::{Group, nix, read_line};
use super::progress::{FetchEvent, Progress};
use super::room::Room;
use super::roots::{self, roots_of};

/// What to fetch.
#[derive(Clone, Debug)]
pub struct RealiseRequest {
    /// The deployment it is for.
    pub id: DeploymentId,
    /// The closure.
    pub path: StorePath,
    /// What else is needed, such as the programs of health checks. Each with all it refers to.
    pub programs: Vec<StorePath>,
    /// What the closure has to hold, to the byte.
    pub digest: Option<ClosureDigest>,
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
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Realised {
    /// The size of the closure in the store, in bytes, where Nix tells.
    pub closure_size: Option<u64>,
    /// What had to come: nothing when all was there.
    pub fetched: FetchProgress,
    /// What it changes against what runs, where Nix tells about both.
    pub changes: Option<Changes>,
}

/// Progress is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How long a cache may take to accept a connection, in seconds: a lost packet is sent again after 1, 3 and 7 s.
/// Nix 2.8 waits for minutes unless told otherwise.
const CONNECT_SECONDS: &str = "15";

/// After how many seconds without a byte a download is given up: minutes, since on a slow line one of many
/// downloads may have to wait for the others. Nix's own limit is 300.
const STALLED_SECONDS: &str = "120";

/// How often Nix tries a download before it gives up: the whole fetch is tried again later, and goes on where
/// it stopped.
const ATTEMPTS: &str = "3";

/// Brings the closure and the programs into the store with all they refer to, keeps them from the garbage
/// collector, and checks what the closure holds.
///
/// What `running` returns once the closure is there is what it is compared with, to tell what it changes.
///
/// The machine's own caches, keys and credentials are used, and those of the request besides. Nothing is
/// ever built. Where the disk has no room for all of it, the fetch ends as soon as Nix tells how much that is,
/// which is when it begins to copy. Events that find no room in the channel are dropped. Dropping the future
/// cancels the fetch: Nix and what it started is killed.
///
/// The digest is made of the hashes in Nix's database, which Nix compares with the content when it comes into
/// the store: a cache cannot lie. What somebody changes on the machine's disk afterwards is not found; that
/// takes reading all of it again, which `nix-store --verify --check-contents` does.
///
/// # Errors
/// [`FetchError`] with the reason as far as Nix tells it.
pub async fn realise(
    request: &RealiseRequest,
    running: impl Fn() -> Option<StorePath>,
    events: &mpsc::Sender<FetchEvent>,
) -> Result<Realised, FetchError> {
    let work = fetch_and_check(request, running, events);
    match request.timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let seconds = limit.as_secs_f64();
            Err(FetchError::other(format!(
                "cannot fetch {}: it took longer than {seconds} s",
                request.path
            )))
        }),
    }
}

async fn fetch_and_check(
    request: &RealiseRequest,
    running: impl Fn() -> Option<StorePath>,
    events: &mpsc::Sender<FetchEvent>,
) -> Result<Realised, FetchError> {
    let paths: Vec<_> = [&request.path]
        .into_iter()
        .chain(&request.programs)
        .collect();
    let place = Place::of(request);
    let has_roots = place.prepare(&paths)?;
    let ask = || async { closure::ask(&request.path, &request.programs, running().as_ref()).await };
    // Nix takes its start alone about as long as its answer: where all is kept and is there, one answer will do.
    let there = if has_roots && paths.iter().all(|path| is_there(path)) && roots::are_seen() {
        ask().await
    } else {
        None
    };
    let (fetched, closure) = match there {
        Some(closure) => (FetchProgress::default(), Some(closure)),
        None => {
            let fetched = fetch(request, &place, has_roots, events).await;
            place.clear();
            (fetched?, ask().await)
        }
    };
    if let Some(digest) = request.digest {
        closure::check(&request.path, closure.as_ref(), digest)?;
    }
    let (closure_size, changes) = match closure {
        Some(Closure { info, changes }) => (Some(info.size()), changes),
        None => (None, None),
    };
    Ok(Realised {
        closure_size,
        fetched,
        changes,
    })
}

fn is_there(path: &StorePath) -> bool {
    Utf8Path::new(path.as_str()).symlink_metadata().is_ok()
}

async fn fetch(
    request: &RealiseRequest,
    place: &Place,
    has_roots: bool,
    events: &mpsc::Sender<FetchEvent>,
) -> Result<FetchProgress, FetchError> {
    let closure = &request.path;
    let paths = [closure].into_iter().chain(&request.programs);
    let mut command = nix("nix-store");
    command.arg("--realise").args(paths.map(StorePath::as_str));
    if !has_roots {
        command.args(["--add-root", place.roots.join(roots::CLOSURE).as_str()]);
    }
    add_options(&mut command, request);
    command.env("XDG_CACHE_HOME", &place.cache);
    command.env("NIX_CACHE_HOME", &place.cache);
    command.stderr(Stdio::piped());

    let mut room = Room::of_store().ok();
    let mut child = Group::spawn(&mut command, "nix-store")?;
    let mut progress = Progress::default();
    let mut told = (progress.now(), None::<Instant>);
    let mut stderr = BufReader::new(child.stderr()?);
    let mut line = Vec::new();
    while read_line(&mut stderr, &mut line)
        .await
        .map_err(|error| FetchError::other(format!("cannot read what nix-store says: {error}")))?
    {
        let needed = progress.needed();
        if let Some(text) = progress.line(&String::from_utf8_lossy(&line)) {
            offer(events, FetchEvent::Line(text));
        }
        if let Some(room) = room.as_mut().filter(|_| progress.needed() > needed) {
            // Nix is killed when this returns an error.
            let told = room.admit(closure.as_str(), progress.needed()).await?;
            if let Some(text) = told {
                offer(events, FetchEvent::Line(text));
            }
        }
        let now = progress.now();
        if now != told.0 && told.1.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
            offer(events, FetchEvent::Progress(now));
            told = (now, Some(Instant::now()));
        }
    }
    let status = child.wait().await?;
    if progress.now() != told.0 {
        offer(events, FetchEvent::Progress(progress.now()));
    }
    if status.success() {
        Ok(progress.now())
    } else {
        let complaints = &progress.complaints;
        Err(complaints.verdict(closure.as_str(), &request.substituters))
    }
}

/// Where a deployment keeps what it needs.
struct Place {
    /// Its garbage collector roots.
    roots: Utf8PathBuf,
    /// What caches told is remembered for this fetch alone: Nix would take a cache that it once reached for one
    /// that it must reach, and a path that was not there a moment ago for missing.
    cache: Utf8PathBuf,
}

impl Place {
    fn of(request: &RealiseRequest) -> Self {
        let roots = roots_of(&request.roots, request.id);
        Self {
            cache: roots.join("cache"),
            roots,
        }
    }

    /// Makes the folder and, where this user may, the roots; says whether it did.
    fn prepare(&self, paths: &[&StorePath]) -> Result<bool, FetchError> {
        self.clear();
        self.link(paths).map_err(|error| {
            FetchError::other(format!(
                "cannot write to `{}`: {error}; check the disk",
                self.roots
            ))
        })
    }

    fn link(&self, paths: &[&StorePath]) -> std::io::Result<bool> {
        std::fs::create_dir_all(&self.roots)?;
        for (number, path) in paths.iter().enumerate() {
            let name = match number {
                0 => roots::CLOSURE.to_owned(),
                _ => format!("program-{number}"),
            };
            // A root may be there before the path: it then keeps it from the first moment.
            if !roots::link(&self.roots, &name, path)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes what Nix remembered about caches; what cannot be removed goes with the roots of its deployment.
    fn clear(&self) {
        match std::fs::remove_dir_all(&self.cache) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(cache = %self.cache, %error, "cannot remove what Nix remembered about caches");
            }
            _ => {}
        }
    }
}

fn add_options(command: &mut Command, request: &RealiseRequest) {
    let RealiseRequest {
        substituters, keys, ..
    } = request;
    let substituters: Vec<_> = substituters.iter().map(SubstituterUrl::as_str).collect();
    let keys: Vec<_> = keys.iter().map(CacheKey::as_str).collect();
    // Those of the machine stay in use.
    for (option, values) in [
        ("extra-substituters", substituters),
        ("extra-trusted-public-keys", keys),
    ] {
        if !values.is_empty() {
            command.args(["--option", option, &values.join(" ")]);
        }
    }
    for (option, value) in [
        // A path that was asked for before it was pushed counts as missing for an hour otherwise.
        ("narinfo-cache-negative-ttl", "0"),
        ("connect-timeout", CONNECT_SECONDS),
        ("stalled-download-timeout", STALLED_SECONDS),
        ("download-attempts", ATTEMPTS),
        // Never build, here or elsewhere.
        ("builders", ""),
    ] {
        command.args(["--option", option, value]);
    }
    command.args(["--max-jobs", "0", "--log-format", "internal-json", "-v"]);
}

/// What nobody has room for is only shown less often.
fn offer(events: &mpsc::Sender<FetchEvent>, event: FetchEvent) {
    drop(events.try_send(event));
}
