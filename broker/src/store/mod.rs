//! The retained messages: durable before they are acknowledged, complete when they are read.
//!
//! One thread writes. It takes whatever is queued, up to a limit, writes it as one batch with one fsync, numbers
//! the changes, and only then acknowledges them and tells the subscribers. Reads are of an index in memory and
//! never wait for the disk.

mod disk;
mod index;
mod log;
mod quota;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use camino::Utf8Path;
use hoist_protocol::{FleetName, ScreenedDeployment, Topic};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::deploys::{DeployRefusal, Deploys};
use crate::guard::Pattern;
use crate::inbox::{Inbox, Ticket};
use crate::message::{Author, Commit, Extras, Message, Qos};
use crate::observe::{Observer, Origin, Reason};

pub use disk::StoreError;
pub(crate) use disk::{Stored, write_backup};
use index::Index;
pub(crate) use index::Snapshot;
pub(crate) use log::Folder;
pub(crate) use quota::Usage;
use writer::Writer;

/// The folder of the store in the broker's state folder, and the file in it.
pub(crate) const STORE_FOLDER: &str = "store";
pub(crate) use log::FILE as LOG_FILE;

/// What is done to a store without a broker.
pub(crate) mod maintain {
    pub(crate) use super::disk::{count, read, replace, take, write_closed};
}

/// Most publications that wait for the writer, of all connections together; more make their connections wait.
const QUEUE_LEN: usize = 4096;

/// A publish to a retained channel that the guard has let in.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    pub(crate) topic: Topic,
    pub(crate) qos: Qos,
    pub(crate) payload: Arc<[u8]>,
    pub(crate) author: Author,
    pub(crate) extras: Option<Arc<Extras>>,
    /// Of a deployment, when the broker knows the trusted keys.
    pub(crate) proof: Option<ScreenedDeployment>,
}

/// What became of a publication.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It is retained, and durable where its channel is.
    Retained,
    /// The very same was retained already.
    Repeat,
    /// It may not take the place of what is retained.
    Refused(DeployRefusal),
    /// It cannot be stored now. What is retained is as it was.
    Unavailable(Unavailable),
}

/// Why nothing can be stored now.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unavailable {
    /// The disk is full, or has failed.
    #[error("the broker's disk takes nothing now")]
    Disk,
    /// The audit log cannot be written, and deployments must not go on without it.
    #[error("the broker's audit log cannot be written")]
    Audit,
    /// The fleet retains as much as it may.
    #[error(
        "the fleet's quota of retained messages is used up (max_retained_messages, max_retained_bytes)"
    )]
    Quota,
}

impl Unavailable {
    /// As a word for counters and the audit log.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Disk => Reason::Store,
            Self::Audit => Reason::Audit,
            Self::Quota => Reason::Quota,
        }
    }
}

/// Who is told what became of a publication.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A session; for a deployment with who it is, which the audit log tells.
    Session(Arc<Inbox>, Ticket, Option<Arc<Origin>>),
    /// Somebody who waits, for a client that is gone.
    Waiting(oneshot::Sender<Outcome>, Arc<Origin>),
}

/// The store has ended, and the process will.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store has ended")]
pub(crate) struct StoreEnded;

/// A handle to the store; the writer ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    index: Arc<RwLock<Index>>,
    queue: mpsc::Sender<(Publication, Reply)>,
}

/// The writer's thread, from outside.
pub(crate) struct Running {
    ended: oneshot::Receiver<Result<(), StoreError>>,
}

impl Running {
    /// Waits until the writer has ended: without an error when all handles are gone, all that was queued is
    /// durable and the file is closed.
    pub(crate) async fn ended(&mut self) -> Result<(), StoreError> {
        match (&mut self.ended).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Panicked),
        }
    }
}

impl Store {
    /// Opens the store in `path` and starts its writer. `tell` is called on the writer's thread for every change,
    /// in the order of the commits.
    pub(crate) fn open(
        path: &Utf8Path,
        deploys: Arc<Deploys>,
        observer: Observer,
        tell: impl FnMut(&Arc<Message>) -> Result<(), crate::router::RouterError> + Send + 'static,
    ) -> Result<(Self, Running), StoreError> {
        let (disk, stored) = disk::Disk::open(path)?;
        let index = Arc::new(RwLock::new(Index::of_stored(stored)));
        let (queue, publications) = mpsc::channel(QUEUE_LEN);
        let (done, ended) = oneshot::channel();
        let writer = Writer::new(disk, Arc::clone(&index), deploys, observer, tell);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                // The receiver is gone only when nobody wants to know.
                done.send(writer.run(publications)).ok();
            })
            .map_err(StoreError::Thread)?;
        Ok((Self { index, queue }, Running { ended }))
    }

    /// Hands a publication to the writer, or gives it back while the queue is full.
    pub(crate) fn offer(
        &self,
        publication: Publication,
        reply: Reply,
    ) -> Result<Option<Publication>, StoreEnded> {
        match self.queue.try_send((publication, reply)) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full((publication, _))) => Ok(Some(publication)),
            Err(TrySendError::Closed(_)) => Err(StoreEnded),
        }
    }

    /// Hands a publication to the writer; waits while its queue is full.
    pub(crate) async fn publish(
        &self,
        publication: Publication,
        reply: Reply,
    ) -> Result<(), StoreEnded> {
        let sent = self.queue.send((publication, reply)).await;
        sent.map_err(|_| StoreEnded)
    }

    /// Hands a publication of somebody who is gone to the writer and waits for its outcome.
    pub(crate) async fn publish_and_wait(
        &self,
        publication: Publication,
        origin: Arc<Origin>,
    ) -> Result<Outcome, StoreEnded> {
        let (reply, outcome) = oneshot::channel();
        self.publish(publication, Reply::Waiting(reply, origin))
            .await?;
        outcome.await.map_err(|_| StoreEnded)
    }

    /// Everything that is retained and outlives the process: what a backup holds.
    pub(crate) fn durable(&self) -> Vec<Arc<Message>> {
        self.read().all(writer::is_durable)
    }

    /// Tells what each fleet retains, also when the store has ended: it does not hold it open.
    pub(crate) fn usages(&self) -> impl Fn() -> HashMap<FleetName, Usage> + Send + Sync + 'static {
        let index = Arc::clone(&self.index);
        move || {
            let index = index.read().unwrap_or_else(PoisonError::into_inner);
            index.usages().clone()
        }
    }

    /// What is retained in `fleet`, of what `pattern` matches and `allow` lets through.
    pub(crate) fn snapshot(
        &self,
        fleet: &FleetName,
        pattern: &Pattern,
        allow: impl Fn(&Topic) -> bool,
    ) -> Snapshot {
        self.read().snapshot(fleet, pattern, allow)
    }

    /// What has changed in `fleet` after the commit `since`, of what `pattern` matches.
    pub(crate) fn changes(&self, fleet: &FleetName, pattern: &Pattern, since: Commit) -> Snapshot {
        self.read().changes(fleet, pattern, since)
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        // A panic of the writer ends the process; until then what is there is whole.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}
