//! The broker's side of TLS as it is now, read anew when its files change.
//!
//! A thread looks at the files twice a second. What has changed is taken when it has stayed the same from one look
//! to the next, so that a file is not read while it is written; SIGHUP takes it at once. What cannot be used is
//! said loudly, and everything stays as it was.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hoist_certs::program::{now, report};
use hoist_certs::{ServerSources, ServerTls, TlsError};
use tracing::{debug, error, info, warn};

use super::certificates::CertificateTable;
use crate::log_limit::LogLimit;
use crate::observe::{Certificate, Observer};
use crate::thread::Thread;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How often files that could not be used are tried again as they are: what was in the way may have been the broker's
/// own, such as a lack of file descriptors.
const RETRY: Duration = Duration::from_secs(5);

/// How often what is not urgent is counted anew.
const COUNT: Duration = Duration::from_secs(60);

/// How often what is still wrong is said again.
const REMIND: Duration = Duration::from_secs(60 * 60);

/// How often near ends of certificates are told again.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// TLS as it is now.
pub(crate) struct CurrentTls(RwLock<ServerTls>);

impl CurrentTls {
    /// With what was read at the start.
    pub(crate) fn new(tls: ServerTls) -> Arc<Self> {
        Arc::new(Self(RwLock::new(tls)))
    }

    /// What holds for the next handshake.
    pub(crate) fn tls(&self) -> ServerTls {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn replace(&self, tls: ServerTls) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }
}

/// Asks for the files to be read again, at once.
#[derive(Clone, Debug)]
pub struct Reload(SyncSender<()>);

impl Reload {
    /// Asks. What comes of it is in the log.
    pub fn now(&self) {
        // One that waits is enough, and after the end there is nothing to read.
        self.0.try_send(()).ok();
    }
}

/// Looks after the files; it ends when all handles to ask it are gone.
pub(super) struct Reloader {
    pub(super) current: Arc<CurrentTls>,
    pub(super) sources: ServerSources,
    /// What the files looked like before they were read.
    pub(super) seen: Vec<FileStamp>,
    pub(super) table: Arc<CertificateTable>,
    pub(super) observer: Observer,
    pub(super) log_limit: Arc<LogLimit>,
    /// What else is to be done from time to time.
    pub(super) tidy: Box<dyn Fn() + Send>,
}

impl Reloader {
    /// Starts the thread.
    pub(super) fn start(self) -> io::Result<(Reload, Thread)> {
        let (asks, asked) = sync_channel(1);
        let thread = Thread::start("certificates", move || self.run(&asked))?;
        Ok((Reload(asks), thread))
    }

    fn run(self, asked: &Receiver<()>) {
        let (mut taken, mut seen) = (self.seen.clone(), self.seen.clone());
        let (mut counted, mut reminded, mut told) = (None, Instant::now(), Instant::now());
        let mut failed: Option<Instant> = None;
        self.show();
        loop {
            let forced = match asked.recv_timeout(LOOK) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let found = file_stamps(&self.sources);
            if forced {
                // For a log rotation that has moved the old file away.
                self.observer.reopen();
            }
            let changed = found != taken && found == seen;
            let again = failed.is_some_and(|tried| tried.elapsed() >= RETRY);
            if forced || changed || again {
                taken.clone_from(&found);
                let read = self.reload(forced || changed);
                failed = (!read).then(Instant::now);
            }
            seen = found;
            self.table.expire(now());
            let clock = Instant::now();
            for untold in self.log_limit.close_windows(clock) {
                let (reason, count) = (untold.reason, untold.count);
                warn!(
                    ?reason,
                    count, "more were refused for the same reason than are told"
                );
            }
            if forced || counted.is_none_or(|at: Instant| clock.duration_since(at) >= COUNT) {
                counted = Some(clock);
                self.table.count_ending(now());
                (self.tidy)();
            }
            if clock.duration_since(reminded) >= REMIND {
                reminded = clock;
                self.complain();
                if failed.is_some() {
                    error!(
                        "the files of TLS still cannot be used: see above, or send SIGHUP to hear it again"
                    );
                }
            }
            if clock.duration_since(told) >= DAY {
                told = clock;
                self.table.tell_anew();
            }
        }
    }

    /// Reads everything again. False when it cannot be used, which is said once and not at every try.
    fn reload(&self, first: bool) -> bool {
        let used = self.current.tls();
        match self.sources.load(Some(used.acceptor().trust())) {
            Ok(tls) => {
                self.current.replace(tls.clone());
                // Whoever is let in from here on is judged by the new files, and who is in already is judged now.
                let ended = self.table.sweep(tls.acceptor().trust(), now());
                info!(identity = %tls.identity(), not_after = %tls.not_after(), ended, "read the files of TLS again");
                self.show();
                true
            }
            Err(error) => {
                let error = describe(error);
                if first {
                    error!(
                        "the files of TLS have changed and cannot be used, so those read before stay in use: {error}"
                    );
                    self.observer.metrics().reload_failures.inc();
                } else {
                    debug!("the files of TLS still cannot be used: {error}");
                }
                false
            }
        }
    }

    /// Shows what an operator should know of what is in use.
    fn show(&self) {
        self.complain();
        let tls = self.current.tls();
        let seconds =
            |at: hoist_protocol::Timestamp| i64::try_from(at.as_ms() / 1000).unwrap_or(i64::MAX);
        let ends = &self.observer.metrics().certificate_ends;
        ends.of(Certificate::Server).set(seconds(tls.not_after()));
        let trust = tls.acceptor().trust();
        let first = |end: Option<hoist_protocol::Timestamp>| end.map_or(0, seconds);
        ends.of(Certificate::Authority)
            .set(first(trust.first_end()));
        let lists = trust.lists().map(hoist_certs::trust::Crl::next_update);
        ends.of(Certificate::RevocationList).set(first(lists.min()));
    }

    fn complain(&self) {
        for complaint in self.current.tls().acceptor().trust().complaints(now()) {
            error!("{complaint}");
        }
    }
}

/// An error with its causes, in one line.
fn describe(error: TlsError) -> String {
    report(&anyhow::Error::new(error))
}

/// What tells that a file is another than before: device, inode, size, time of change in seconds and nanoseconds.
pub(crate) type FileStamp = Option<(u64, u64, u64, i64, i64)>;

pub(crate) fn file_stamps(sources: &ServerSources) -> Vec<FileStamp> {
    let files = sources.files().map(|path| {
        let metadata = path.metadata().ok()?;
        let (seconds, nanos) = (metadata.ctime(), metadata.ctime_nsec());
        Some((
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            seconds,
            nanos,
        ))
    });
    files.collect()
}
