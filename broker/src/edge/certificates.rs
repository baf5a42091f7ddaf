//! The certificates of those who are connected, and of those whose sessions are kept: when one ends or is taken
//! back, so do its connections and sessions.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoist_certs::trust::{Admitted, Refusal, Trust};
use hoist_certs::{ENDS_SOON, Role, Serial};
use hoist_protocol::Timestamp;
use tracing::warn;

use crate::hub::Number;
use crate::inbox::Control;
use crate::observe::Observer;
use crate::session::Ended;

/// Most certificates of which it is remembered that their near end was told.
const TOLD_LEN: usize = 100_000;

/// The certificates of all connections and kept sessions.
pub(super) struct CertificateTable {
    live: Mutex<Live>,
    observer: Observer,
}

#[derive(Default)]
struct Live {
    all: HashMap<Number, Entry>,
    /// In the order of their ends.
    ends: BTreeSet<(Timestamp, Number)>,
    /// The certificates whose near end was told today.
    told: HashSet<Serial>,
}

struct Entry {
    admitted: Admitted,
    control: Arc<Control>,
}

/// A connection in the table, and then the session that it has left; it leaves when this is dropped.
pub(crate) struct Registered {
    number: Number,
    table: Arc<CertificateTable>,
}

impl CertificateTable {
    pub(super) fn new(observer: Observer) -> Arc<Self> {
        Arc::new(Self {
            live: Mutex::default(),
            observer,
        })
    }

    /// Lists a connection. Whether its certificate counts is asked by the caller afterwards, of the trust that is
    /// in use then: between the handshake and this it may have changed.
    pub(super) fn enter(
        table: &Arc<Self>,
        number: Number,
        address: SocketAddr,
        admitted: Admitted,
        control: Arc<Control>,
        now: Timestamp,
    ) -> Registered {
        let ends = admitted.ends();
        let mut live = table.lock();
        if ends_soon(ends, now) && live.told.len() < TOLD_LEN {
            let serial = admitted.serial().clone();
            if live.told.insert(serial) {
                warn!(
                    identity = %admitted.identity(), serial = %admitted.serial(), %address, %ends,
                    "a client's certificate ends soon"
                );
            }
        }
        live.ends.insert((ends, number));
        live.all.insert(number, Entry { admitted, control });
        drop(live);
        Registered {
            number,
            table: Arc::clone(table),
        }
    }

    /// Ends the connections whose certificates are over.
    pub(super) fn expire(&self, now: Timestamp) {
        let mut live = self.lock();
        while let Some((ends, number)) = live.ends.first().copied() {
            if now <= ends {
                return;
            }
            live.ends.remove(&(ends, number));
            if let Some(entry) = live.all.get(&number) {
                let refusal = Refusal::Ended(ends);
                entry.control.end(Ended::Certificate(Box::new(refusal)));
            }
        }
    }

    /// Ends the connections whose certificates no longer count. Returns how many.
    pub(super) fn sweep(&self, trust: &Trust, now: Timestamp) -> usize {
        let live = self.lock();
        let mut ended = 0;
        for entry in live.all.values() {
            if let Err(refusal) = trust.check(&entry.admitted, now) {
                entry.control.end(Ended::Certificate(Box::new(refusal)));
                ended += 1;
            }
        }
        ended
    }

    /// Counts the clients that are connected, or may come back to their sessions, whose certificates end soon.
    pub(super) fn count_ending(&self, now: Timestamp) {
        let live = self.lock();
        for role in Role::ALL {
            let soon = live
                .ends
                .iter()
                .take_while(|(ends, _)| ends_soon(*ends, now))
                .filter_map(|(_, number)| live.all.get(number))
                .filter(|entry| entry.admitted.identity().role() == role);
            let count = i64::try_from(soon.count()).unwrap_or(i64::MAX);
            self.observer.metrics().ending_soon.of(role).set(count);
        }
    }

    /// Tells every near end once more.
    pub(super) fn tell_anew(&self) {
        self.lock().told.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // Nothing here panics while the lock is held.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ends_soon(ends: Timestamp, now: Timestamp) -> bool {
    ends.since(now) < ENDS_SOON
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut live = self.table.lock();
        if let Some(entry) = live.all.remove(&self.number) {
            live.ends.remove(&(entry.admitted.ends(), self.number));
        }
    }
}

#[cfg(test)]
impl Registered {
    /// Of nobody: nothing is looked after.
    pub(crate) fn unlisted(observer: Observer) -> Self {
        Self {
            number: 0,
            table: CertificateTable::new(observer),
        }
    }
}
