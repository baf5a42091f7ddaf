//! The retained messages on disk: what a key and a value of the log mean, and when the log is written anew.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{Text, Topic};
use tracing::warn;

use super::Publication;
use super::log::{self, Batch, Contents, Folder, FolderError, Log, ReadError};
use crate::message::{Author, Extras, Message, Qos};

/// The bit in a value's first byte that says that extras follow.
const WITH_EXTRAS: u8 = 0x80;

/// How many bytes may be out of date before the file is written anew; more where more is stored, so that it is
/// never more than half of the file.
const STALE_LEN: u64 = 16 * 1024 * 1024;

/// What is wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be made.
    #[error("cannot create the state folder `{path}`")]
    Folder {
        /// The folder.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it open.
    #[error(
        "another broker is running on the state folder `{0}`; stop it, or give this one another folder"
    )]
    InUse(Utf8PathBuf),
    /// It cannot be opened or read.
    #[error("cannot read the store `{path}`; check the disk")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no store, or one of another format.
    #[error(
        "`{0}` is no store of this broker's format; use the broker that has written it, restore a backup with \
         `hoist-broker restore`, or move the file away: agents report again by themselves, deployments have \
         to be published again"
    )]
    NoStore(Utf8PathBuf),
    /// What was durable is no longer as it was written.
    #[error(
        "the store `{path}` is damaged at byte {at}: the disk has changed what was written. Restore a backup \
         with `hoist-broker restore`, or move the file away: agents report again by themselves, deployments \
         have to be published again. `hoist-broker check` tells what can still be read"
    )]
    Damaged {
        /// The file.
        path: Utf8PathBuf,
        /// The position, in bytes.
        at: u64,
    },
    /// It holds something that no broker has written.
    #[error(
        "the store `{path}` holds at byte {at} what is no retained message: `{key}`; restore a backup with \
         `hoist-broker restore`, or move the file away"
    )]
    Foreign {
        /// The file.
        path: Utf8PathBuf,
        /// The position, in bytes.
        at: u64,
        /// The key.
        key: Text<128>,
    },
    /// It cannot be written.
    #[error("cannot write to the store `{path}`; check the disk's space and health")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The writer's thread cannot be started.
    #[error("cannot start the store's writer thread")]
    Thread(#[source] io::Error),
    /// The writer's thread has panicked.
    #[error("the store's writer thread has panicked")]
    Panicked,
    /// The router has ended: what is committed can no longer be told to those who watch.
    #[error("the router has ended")]
    Router(#[source] crate::router::RouterError),
}

/// What a store holds.
pub(crate) struct Stored {
    /// The retained messages, in the order of their topics.
    pub(crate) publications: Vec<Publication>,
    pub(super) contents: Contents,
}

impl Stored {
    /// The file's size, in bytes.
    pub(crate) const fn len(&self) -> u64 {
        self.contents.len + self.contents.torn
    }

    /// How many bytes of that are out of date.
    pub(crate) const fn stale(&self) -> u64 {
        self.contents.stale
    }

    /// How many bytes at the end are of a batch that was never complete.
    pub(crate) const fn torn(&self) -> u64 {
        self.contents.torn
    }

    /// Whether the file was closed in order.
    pub(crate) const fn is_closed(&self) -> bool {
        self.contents.closed
    }
}

/// The open store.
pub(super) struct Disk {
    log: Log,
    /// After a crash: written anew when there is room, since a failed sync may have been the cause.
    unclean: bool,
}

/// Makes the folder of a store, for its owner alone, and takes it.
pub(crate) fn take(path: &Utf8Path) -> Result<Folder, StoreError> {
    let failed = |source| StoreError::Folder {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    Folder::lock(path).map_err(|error| match error {
        FolderError::InUse => StoreError::InUse(path.to_owned()),
        FolderError::Io(source) => failed(source),
    })
}

/// Reads the store in a file from its first byte to its last. None when there is no file.
///
/// # Errors
/// [`StoreError`]
pub(crate) fn read(file: &Utf8Path) -> Result<Option<Stored>, StoreError> {
    let mut all: BTreeMap<String, Publication> = BTreeMap::new();
    let mut foreign = None;
    let mut live = 0;
    let contents = log::read(file, |key, value| {
        let size = |payload: &[u8]| u64::try_from(key.len() + payload.len()).unwrap_or(u64::MAX);
        let before = if value.is_empty() {
            all.remove(key)
        } else {
            let Some(publication) = decode(key, value) else {
                foreign = Some(Text::lossy(key));
                return false;
            };
            live += size(&publication.payload);
            all.insert(key.to_owned(), publication)
        };
        if let Some(before) = before {
            live -= size(&before.payload);
        }
        true
    });
    let path = || file.to_owned();
    match contents {
        Ok(mut contents) => {
            contents.stale = contents.len.saturating_sub(live);
            Ok(Some(Stored {
                publications: all.into_values().collect(),
                contents,
            }))
        }
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(ReadError::Io(source)) => Err(StoreError::Read {
            path: path(),
            source,
        }),
        Err(ReadError::NoLog) => Err(StoreError::NoStore(path())),
        Err(ReadError::Damaged(at)) => Err(StoreError::Damaged { path: path(), at }),
        Err(ReadError::Foreign(at)) => Err(StoreError::Foreign {
            path: path(),
            at,
            key: foreign.unwrap_or_default(),
        }),
    }
}

impl Disk {
    /// Opens the store in the folder `path`, or makes one, and reads all that it holds.
    pub(super) fn open(path: &Utf8Path) -> Result<(Self, Vec<Publication>), StoreError> {
        let folder = take(path)?;
        let file = folder.file();
        let failed = |source| StoreError::Write {
            path: file.clone(),
            source,
        };
        let Some(stored) = read(&file)? else {
            let log = Log::create(folder, std::iter::empty::<fn(&mut Batch)>()).map_err(failed)?;
            let unclean = false;
            return Ok((Self { log, unclean }, Vec::new()));
        };
        if stored.torn() > 0 {
            warn!(
                %file, bytes = stored.torn(),
                "the end of the store is of a batch that was being written when the broker ended; it was never \
                 acknowledged and is cut off"
            );
        }
        let unclean = !stored.is_closed();
        let log = Log::resume(folder, &stored.contents).map_err(failed)?;
        Ok((Self { log, unclean }, stored.publications))
    }

    /// Writes all of `changes` or none of them; they are durable when this returns. An empty payload removes.
    pub(super) fn write<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Publication>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for change in changes {
            put(
                &mut batch,
                &change.topic,
                change.qos,
                &change.payload,
                change.extras.as_deref(),
            );
        }
        self.log.append(&mut batch).map_err(|e| self.failed(e))
    }

    /// Whether nothing can be written before the file is written anew.
    pub(super) const fn is_suspect(&self) -> bool {
        self.log.is_suspect()
    }

    /// Whether it is worth to write the file anew.
    pub(super) fn is_stale(&self) -> bool {
        self.unclean || self.log.grown() > STALE_LEN.max(self.log.fresh_len())
    }

    /// Writes the file anew, with `all` and nothing else. When that fails the old one is as it was, and it is
    /// worth another try when it has grown as much again.
    pub(super) fn rewrite(&mut self, all: &[Arc<Message>]) -> Result<(), StoreError> {
        self.unclean = false;
        let result = self.log.rewrite(changes(all));
        result.map_err(|error| self.failed(error))
    }

    /// Finds out whether the disk has room again.
    pub(super) fn probe(&mut self) -> Result<(), StoreError> {
        self.log.probe().map_err(|error| self.failed(error))
    }

    /// Says in the file that it is complete.
    pub(super) fn close(self) -> Result<(), StoreError> {
        let path = self.log.path();
        let failed = |source| StoreError::Write { path, source };
        self.log.close().map_err(failed)
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Write {
            path: self.log.path(),
            source,
        }
    }
}

/// How many changes can be read before the end, or before what is damaged.
pub(crate) fn count(file: &Utf8Path) -> Result<u64, StoreError> {
    let mut changes = 0;
    let result = log::read(file, |_, _| {
        changes += 1;
        true
    });
    match result {
        Err(ReadError::Io(source)) => Err(StoreError::Read {
            path: file.to_owned(),
            source,
        }),
        Ok(_) | Err(_) => Ok(changes),
    }
}

/// Puts a store that holds `publications` in the place of the one in the folder, which is kept beside it.
pub(crate) fn replace(folder: Folder, publications: &[Publication]) -> Result<(), StoreError> {
    let path = folder.file();
    let failed = |source| StoreError::Write {
        path: path.clone(),
        source,
    };
    folder.set_aside().map_err(failed)?;
    let log = Log::create(folder, of_publications(publications)).map_err(failed)?;
    log.close().map_err(failed)
}

/// Writes publications as a whole and closed store.
pub(crate) fn write_closed(publications: &[Publication], out: impl io::Write) -> io::Result<()> {
    log::write_all(out, of_publications(publications), true).map(|_| ())
}

/// Writes all messages as a whole and closed store, for a backup.
pub(crate) fn write_backup(all: &[Arc<Message>], out: impl io::Write) -> io::Result<()> {
    log::write_all(out, changes(all), true).map(|_| ())
}

fn of_publications(publications: &[Publication]) -> impl Iterator<Item = impl FnOnce(&mut Batch)> {
    publications.iter().map(|publication| {
        |batch: &mut Batch| {
            let extras = publication.extras.as_deref();
            let (topic, payload) = (&publication.topic, &publication.payload);
            put(batch, topic, publication.qos, payload, extras);
        }
    })
}

fn changes(all: &[Arc<Message>]) -> impl Iterator<Item = impl FnOnce(&mut Batch)> {
    all.iter().map(|message| {
        |batch: &mut Batch| {
            let extras = message.extras.as_deref();
            put(batch, &message.topic, message.qos, &message.payload, extras);
        }
    })
}

/// A value: a byte for the QoS (0 to 2) and whether there are extras, the extras when there are, the payload.
fn put(batch: &mut Batch, topic: &Topic, qos: Qos, payload: &[u8], extras: Option<&Extras>) {
    batch.put(&topic.to_string(), |value| {
        if payload.is_empty() {
            return;
        }
        let flag = if extras.is_some() { WITH_EXTRAS } else { 0 };
        value.push(qos.number() | flag);
        if let Some(extras) = extras {
            extras.encode(value);
        }
        value.extend_from_slice(payload);
    });
}

fn decode(key: &str, value: &[u8]) -> Option<Publication> {
    let topic = Topic::parse(key).ok()?;
    let (first, mut payload) = value.split_first()?;
    let qos = Qos::from_number(first & !WITH_EXTRAS)?;
    let mut extras = None;
    if first & WITH_EXTRAS != 0 {
        let decoded = Extras::decode(payload)?;
        (extras, payload) = (Some(Arc::new(decoded.0)), decoded.1);
    }
    let sound = topic.channel.is_retained() && !payload.is_empty();
    sound.then(|| Publication {
        topic,
        qos,
        payload: Arc::from(payload),
        author: Author::default(),
        extras,
        proof: None,
    })
}
