//! The retained messages on disk, in a fjall database.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use hoist_protocol::{Text, Topic};

use super::Publication;
use crate::message::{Author, Extras, Qos};

/// The layout of keys and values: key = topic, value = a byte for the QoS (0 to 2) and whether there are extras,
/// the extras when there are, then the payload.
const FORMAT: &[u8] = b"1";

/// The bit in a value's first byte that says that extras follow.
const WITH_EXTRAS: u8 = 0x80;

/// The memory that fjall may use, in bytes. Everything is read once and never again, so it needs no cache.
const CACHE_LEN: u64 = 1024 * 1024;
const MEMTABLE_LEN: u64 = 8 * 1024 * 1024;

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
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error(
        "another broker is running on the state folder `{0}`; stop it, or give this one another folder"
    )]
    InUse(Utf8PathBuf),
    /// It cannot be opened or read.
    #[error(
        "cannot read the store in `{path}`; if it is damaged, restore it from a backup, or move it away: \
         agents report again by themselves, deployments have to be published again"
    )]
    Read {
        /// The folder.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: fjall::Error,
    },
    /// A newer broker has written it.
    #[error(
        "the store in `{path}` has format `{found}`, this broker reads format 1; use a newer broker"
    )]
    Format {
        /// The folder.
        path: Utf8PathBuf,
        /// The format found.
        found: Text<32>,
    },
    /// It holds something that no broker has written.
    #[error(
        "the store in `{path}` is damaged: `{key}` is no retained message; restore it or move it away"
    )]
    Damaged {
        /// The folder.
        path: Utf8PathBuf,
        /// The key.
        key: Text<128>,
    },
    /// A batch could not be made durable.
    #[error("cannot write to the store in `{path}`; check the disk's space and health")]
    Write {
        /// The folder.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: fjall::Error,
    },
    /// The writer's thread cannot be started.
    #[error("cannot start the store's writer thread")]
    Thread(#[source] std::io::Error),
    /// The router has ended: what is committed can no longer be told to those who watch.
    #[error("the router has ended")]
    Router(#[source] crate::router::RouterError),
}

/// The open database.
pub(super) struct Disk {
    path: Utf8PathBuf,
    database: Database,
    retained: Keyspace,
}

impl Disk {
    /// Opens the database in `path`, or makes one. Recovers what a killed process has left.
    pub(super) fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StoreError::Folder {
                path: path.to_owned(),
                source,
            })?;
        let unreadable = |source| match source {
            fjall::Error::Locked => StoreError::InUse(path.to_owned()),
            source => StoreError::Read {
                path: path.to_owned(),
                source,
            },
        };
        let database = Database::builder(path)
            .cache_size(CACHE_LEN)
            .worker_threads(1)
            .open()
            .map_err(unreadable)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_LEN);
        let meta = database.keyspace("meta", options).map_err(unreadable)?;
        let retained = database.keyspace("retained", options).map_err(unreadable)?;
        match meta.get("format").map_err(unreadable)? {
            Some(found) if &*found == FORMAT => {}
            Some(found) => {
                return Err(StoreError::Format {
                    path: path.to_owned(),
                    found: Text::lossy(&String::from_utf8_lossy(&found)),
                });
            }
            None => {
                meta.insert("format", FORMAT).map_err(unreadable)?;
                database.persist(PersistMode::SyncAll).map_err(unreadable)?;
            }
        }
        Ok(Self {
            path: path.to_owned(),
            database,
            retained,
        })
    }

    /// Everything that is stored, in the order of the topics.
    pub(super) fn load(&self) -> Result<Vec<Publication>, StoreError> {
        let mut all = Vec::new();
        for entry in self.retained.iter() {
            let (key, value) = entry.into_inner().map_err(|source| StoreError::Read {
                path: self.path.clone(),
                source,
            })?;
            all.push(decode(&key, &value).ok_or_else(|| StoreError::Damaged {
                path: self.path.clone(),
                key: Text::lossy(&String::from_utf8_lossy(&key)),
            })?);
        }
        Ok(all)
    }

    /// Writes all of `changes` or none of them; they are durable when this returns. An empty payload removes.
    pub(super) fn write<'a>(
        &self,
        changes: impl Iterator<Item = &'a Publication>,
    ) -> Result<(), StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for change in changes {
            let key = change.topic.to_string();
            if change.payload.is_empty() {
                batch.remove(&self.retained, key);
            } else {
                batch.insert(&self.retained, key, encode(change));
            }
        }
        batch.commit().map_err(|source| StoreError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

fn encode(publication: &Publication) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + publication.payload.len());
    value.push(publication.qos.number());
    if let Some(extras) = &publication.extras {
        value[0] |= WITH_EXTRAS;
        extras.encode(&mut value);
    }
    value.extend_from_slice(&publication.payload);
    value
}

fn decode(key: &[u8], value: &[u8]) -> Option<Publication> {
    let topic = Topic::parse(std::str::from_utf8(key).ok()?).ok()?;
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
