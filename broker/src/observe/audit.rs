//! The audit log: a file that is only ever appended to, a JSON object a line.
//!
//! A deployment's line is written before it is retained. Refusals are written by a thread of their own, at a
//! bounded rate for each address, or /64 of IPv6: what is above it is counted, and the number is written instead.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tracing::{error, info};

use super::event::{Deploy, Line, Refusal};
use super::metrics::Metrics;
use crate::edge::network;
use crate::thread::Thread;

/// Most refusals that wait for the log's thread; more are counted only.
const QUEUE_LEN: usize = 4096;

/// How many refusals of one address are written at once, and how long it takes until one more may be.
const BURST: u32 = 100;
const REFILL: Duration = Duration::from_millis(100);

/// How many addresses are told apart; when there are more at a time they share what one has.
const ADDRESSES: usize = 4096;

/// How often the number of refusals that were not written is.
const SUMMARY: Duration = Duration::from_secs(10);

/// Why the audit log cannot be kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error("cannot open the audit log `{path}`")]
    Open {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// It cannot be written.
    #[error(
        "cannot write the audit log `{path}`; make room, or let deployments go on without it with \
         `audit_failure = \"continue\"`"
    )]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// Its thread cannot be started.
    #[error("cannot start the audit log's thread")]
    Thread(#[source] Arc<io::Error>),
}

/// What happens to deployments while the audit log cannot be written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AuditFailure {
    /// They are refused: none is retained without its line, which is synced to the disk.
    #[default]
    Refuse,
    /// They go on, and the broker's own log says what is missing.
    Continue,
}

/// Where the audit log is, and how much depends on it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditSettings {
    /// The file; made when it is missing, readable by its owner alone.
    pub path: Utf8PathBuf,
    /// What happens when it cannot be written.
    pub on_failure: AuditFailure,
}

/// The open log.
pub(super) struct Audit {
    sink: Arc<Sink>,
    queue: SyncSender<Told>,
    on_failure: AuditFailure,
}

/// What the log's thread is told.
enum Told {
    Refusal(Refusal),
    /// All that was told before is to be written; who waits for it hears when it is.
    Flush(SyncSender<()>),
}

/// What deployments and the thread of refusals write to.
struct Sink {
    path: Utf8PathBuf,
    file: Mutex<Option<File>>,
    /// Said once, not for every line.
    failing: AtomicBool,
    failures: Counter,
    /// Refusals that were not written and are not told as a number yet.
    suppressed: AtomicU64,
    suppressed_total: Counter,
}

impl Audit {
    pub(super) fn open(
        settings: AuditSettings,
        metrics: &Metrics,
    ) -> Result<(Self, Thread), AuditError> {
        let sink = Arc::new(Sink {
            file: Mutex::new(None),
            failing: AtomicBool::new(false),
            failures: metrics.audit_failures.clone(),
            suppressed: AtomicU64::new(0),
            suppressed_total: metrics.audit_suppressed.clone(),
            path: settings.path,
        });
        let opened = sink.open().map_err(|source| AuditError::Open {
            path: sink.path.clone(),
            source: Arc::new(source),
        })?;
        *sink.lock() = Some(opened);
        let (queue, refusals) = sync_channel(QUEUE_LEN);
        let of_thread = Arc::clone(&sink);
        let thread = Thread::start("audit", move || of_thread.run(&refusals))
            .map_err(|source| AuditError::Thread(Arc::new(source)))?;
        let audit = Self {
            sink,
            queue,
            on_failure: settings.on_failure,
        };
        Ok((audit, thread))
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        if self.queue.try_send(Told::Refusal(refusal)).is_err() {
            self.sink.suppress();
        }
    }

    /// Waits until the refusals so far are written, but not for long. False when they are not.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let (done, flushed) = sync_channel(1);
        // A thread that has ended has written all.
        let asked = self.queue.send(Told::Flush(done));
        asked.is_err() || flushed.recv_timeout(patience).is_ok()
    }

    pub(super) fn deploys(&self, deploys: &[Deploy]) -> Result<(), AuditError> {
        let time = Timestamp::now();
        let mut lines = Vec::new();
        for deploy in deploys {
            Line::of_deploy(deploy, time).write(&mut lines);
        }
        let refuse = self.on_failure == AuditFailure::Refuse;
        match self.sink.append(&lines, refuse) {
            Err(source) if refuse => Err(AuditError::Write {
                path: self.sink.path.clone(),
                source: Arc::new(source),
            }),
            // It is in the broker's log.
            Err(_) | Ok(()) => Ok(()),
        }
    }

    /// What is wrong with it, when deployments are refused for it.
    pub(super) fn problem(&self) -> Option<String> {
        let refuse = self.on_failure == AuditFailure::Refuse;
        (refuse && self.sink.failing.load(Ordering::Relaxed))
            .then(|| format!("the audit log `{}` cannot be written", self.sink.path))
    }

    pub(super) fn reopen(&self) {
        let opened = self.sink.open();
        match opened {
            Ok(file) => {
                *self.sink.lock() = Some(file);
                info!(path = %self.sink.path, "opened the audit log again");
            }
            // The old one is still there to be written to.
            Err(error) => {
                self.sink.failures.inc();
                error!(path = %self.sink.path, %error, "cannot open the audit log again, the old file is kept");
            }
        }
    }
}

impl Sink {
    fn lock(&self) -> MutexGuard<'_, Option<File>> {
        // Nothing here panics while the lock is held.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file. What a crash has left of a last line is ended, so that the next one stands alone.
    fn open(&self) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(file)
    }

    /// Appends whole lines; all of them, or none that stays.
    fn append(&self, lines: &[u8], sync: bool) -> io::Result<()> {
        let mut guard = self.lock();
        let written = self.append_to(&mut guard, lines, sync);
        drop(guard);
        match &written {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    info!(path = %self.path, "the audit log is written again");
                }
            }
            Err(error) => {
                self.failures.inc();
                if !self.failing.swap(true, Ordering::Relaxed) {
                    error!(path = %self.path, %error, "cannot write the audit log");
                }
            }
        }
        written
    }

    fn append_to(&self, file: &mut Option<File>, lines: &[u8], sync: bool) -> io::Result<()> {
        // A file that failed is opened anew: the disk may be another one by now.
        let open = match file.take() {
            Some(open) => open,
            None => self.open()?,
        };
        let before = open.metadata()?.len();
        let mut writing = &open;
        let result = writing
            .write_all(lines)
            .and_then(|()| if sync { open.sync_data() } else { Ok(()) });
        if result.is_err() {
            // Half a line would spoil the next one. Where that fails too, opening it anew ends the line.
            open.set_len(before).ok();
        } else {
            *file = Some(open);
        }
        result
    }

    fn suppress(&self) {
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        self.suppressed_total.inc();
    }

    /// Writes refusals until the broker has ended.
    fn run(&self, queue: &Receiver<Told>) {
        let mut rates = Rates::default();
        let mut told = Instant::now();
        loop {
            let next = queue.recv_timeout(SUMMARY);
            let (mut lines, mut one, mut number) = (Vec::new(), 0, 0);
            let now = Instant::now();
            match &next {
                Ok(Told::Refusal(refusal)) if rates.allow(refusal.origin.address.ip(), now) => {
                    Line::of_refusal(refusal).write(&mut lines);
                    one = 1;
                }
                Ok(Told::Refusal(_)) => self.suppress(),
                Ok(Told::Flush(_)) | Err(_) => {}
            }
            let ended = matches!(next, Err(RecvTimeoutError::Disconnected));
            let flush = ended || matches!(next, Ok(Told::Flush(_)));
            if flush || now.duration_since(told) >= SUMMARY {
                told = now;
                number = self.suppressed.swap(0, Ordering::Relaxed);
                if number > 0 {
                    Line::of_suppressed(number, Timestamp::now()).write(&mut lines);
                }
            }
            if !lines.is_empty() && self.append(&lines, false).is_err() {
                // Said already. What is not in the file is in the number that will be there once it can be written.
                self.suppressed.fetch_add(one + number, Ordering::Relaxed);
                self.suppressed_total.inc_by(one);
            }
            if let Ok(Told::Flush(done)) = next {
                // Who no longer waits has no need to know.
                done.send(()).ok();
            }
            if ended {
                return;
            }
        }
    }
}

/// How much each address may still have written.
#[derive(Default)]
struct Rates(HashMap<IpAddr, Bucket>);

struct Bucket {
    left: u32,
    since: Instant,
}

impl Rates {
    fn allow(&mut self, address: IpAddr, now: Instant) -> bool {
        let address = network(address);
        if self.0.len() >= ADDRESSES && !self.0.contains_key(&address) {
            // Who is back to a full bucket need not be remembered.
            self.0.retain(|_, bucket| bucket.refilled(now) < BURST);
            if self.0.len() >= ADDRESSES {
                return self.take(IpAddr::from([0, 0, 0, 0]), now);
            }
        }
        self.take(address, now)
    }

    fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        let bucket = self.0.entry(address).or_insert(Bucket {
            left: BURST,
            since: now,
        });
        let left = bucket.refilled(now);
        if left == 0 {
            return false;
        }
        if left > bucket.left {
            bucket.since = now;
        }
        bucket.left = left - 1;
        true
    }
}

impl Bucket {
    fn refilled(&self, now: Instant) -> u32 {
        let more = now.duration_since(self.since).as_millis() / REFILL.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.left.saturating_add(more).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tempfile::TempDir;

    use super::super::event::Origin;
    use super::super::reason::Reason;
    use super::*;

    fn opened(dir: &TempDir) -> (Audit, Utf8PathBuf, Thread) {
        let path = Utf8PathBuf::from_path_buf(dir.path().join("audit")).unwrap();
        let settings = AuditSettings {
            path: path.clone(),
            on_failure: AuditFailure::Refuse,
        };
        let (audit, thread) = Audit::open(settings, &Metrics::new()).unwrap();
        (audit, path, thread)
    }

    #[test]
    fn a_flood_from_one_address_is_a_number_and_others_are_told() {
        let dir = TempDir::new().unwrap();
        let (audit, path, _thread) = opened(&dir);
        let refuse = |address: [u8; 4]| {
            let origin = Origin::unknown(SocketAddr::from((address, 1)));
            audit.refused(Refusal::new(&origin, Reason::Tls, "", "no"));
        };
        for _ in 0..3000 {
            refuse([10, 0, 0, 1]);
        }
        refuse([10, 0, 0, 2]);
        let sink = Arc::clone(&audit.sink);
        // The thread ends when it has written all.
        drop(audit);
        while Arc::strong_count(&sink) > 1 {
            std::thread::yield_now();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let of = |address: &str| text.lines().filter(|line| line.contains(address)).count();
        let counts = text.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["count"].as_u64()
        });
        let (told, suppressed) = (of("10.0.0.1:1"), counts.sum::<u64>());
        assert!(
            told >= 100 && suppressed > 0,
            "{told} told, {suppressed} suppressed"
        );
        assert_eq!(told as u64 + suppressed, 3000);
        assert_eq!(of("10.0.0.2:1"), 1);
    }

    #[test]
    fn what_could_not_be_written_is_a_number_once_it_can() {
        let dir = TempDir::new().unwrap();
        let (audit, path, _thread) = opened(&dir);
        let refuse = |port| {
            let origin = Origin::unknown(SocketAddr::from(([10, 0, 0, 1], port)));
            audit.refused(Refusal::new(&origin, Reason::Tls, "", "no"));
            assert!(audit.flush(Duration::from_secs(60)));
        };
        // Its folder is gone, and then comes back.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        audit.reopen();
        (1..=3).for_each(refuse);
        std::fs::remove_file(&path).unwrap();
        audit.reopen();
        refuse(4);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[0]["address"], "10.0.0.1:4");
        assert_eq!(lines[1]["count"], 3);
    }

    #[test]
    fn an_address_earns_its_lines_back() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let address = IpAddr::from([10, 0, 0, 1]);
        let allowed =
            |rates: &mut Rates, now| (0..1000).filter(|_| rates.allow(address, now)).count();
        assert_eq!(allowed(&mut rates, start), 100);
        assert_eq!(allowed(&mut rates, start + REFILL * 7), 7);
        assert_eq!(allowed(&mut rates, start + REFILL * 100_000), 100);
    }

    #[test]
    fn whoever_has_a_network_of_ipv6_has_the_lines_of_one_address() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        let ours = (0..1000_u128).map(|n| IpAddr::from((0x2001_0db8_u128 << 96 | n).to_be_bytes()));
        assert_eq!(ours.filter(|it| rates.allow(*it, now)).count(), 100);
        assert!(rates.allow("2001:db8:0:1::1".parse().unwrap(), now));
    }

    #[test]
    fn many_addresses_take_a_bounded_memory() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        for n in 0..100_000_u32 {
            rates.allow(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(rates.0.len() <= ADDRESSES + 1);
    }
}
