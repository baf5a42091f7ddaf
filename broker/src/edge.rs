//! The edge: accepts connections, does the TLS handshake in a task of its own, and counts.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hoist_certs::{Identity, IdentityError, Role};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use crate::connection::{Connection, Shared};
use crate::guard::Peer;
use crate::settings::{Limits, Timeouts};

/// Connections that the kernel holds until they are accepted: a fleet that comes back after a restart.
const BACKLOG: u32 = 4096;

/// How much may wait in a connection's TLS layer, in bytes; the rest waits with its session.
const TLS_BUFFER_LEN: usize = 16 * 1024;

/// Most connections of one agent: the session, the one that takes it over, and room for a network that has
/// lost track of one.
const AGENT_CONNECTIONS: usize = 4;

/// How long to wait when there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a connection gets no session.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("the TLS handshake took more than {} s", .0.as_secs())]
    Slow(Duration),
    #[error("the certificate is nobody's: {0}")]
    Identity(#[from] IdentityError),
    #[error("there is no certificate")]
    NoCertificate,
    #[error("{0} is no client")]
    Broker(Arc<Peer>),
    #[error("{0} has too many connections")]
    Identities(Arc<Peer>),
    #[error("the broker stops")]
    Stopping,
}

/// Opens the listening socket. Accepted connections inherit its options.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for the old connections' ports.
    socket.set_reuseaddr(true)?;
    // A peer that has vanished and asked for no keep-alive is found by TCP.
    socket.set_keepalive(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until it is dropped.
pub(crate) struct Edge {
    listener: TcpListener,
    tls: TlsAcceptor,
    limits: Limits,
    timeouts: Timeouts,
    shared: Arc<Shared>,
    handshakes: Arc<Counts<IpAddr>>,
    identities: Arc<Counts<Arc<Peer>>>,
    connections: Arc<Semaphore>,
    numbers: AtomicU64,
    /// Closed when the broker stops.
    stopping: Arc<Semaphore>,
    /// Every connection holds one, so that the broker can wait for the last.
    alive: mpsc::Sender<()>,
}

impl Edge {
    pub(crate) fn new(
        listener: TcpListener,
        tls: TlsAcceptor,
        limits: Limits,
        shared: Arc<Shared>,
        alive: mpsc::Sender<()>,
    ) -> Self {
        Self {
            listener,
            tls,
            limits,
            timeouts: shared.timeouts,
            shared,
            handshakes: Arc::default(),
            identities: Arc::default(),
            connections: Arc::new(Semaphore::new(limits.connections)),
            numbers: AtomicU64::new(1),
            stopping: Arc::new(Semaphore::new(0)),
            alive,
        }
    }

    /// Accepts for ever.
    pub(crate) async fn run(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => self.take(stream, address),
                Err(error) => {
                    // Most often too many open files: the connections that end will make room.
                    warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Ends the handshakes that are under way.
    pub(crate) fn stop(&self) {
        self.stopping.close();
    }

    fn take(&self, stream: TcpStream, address: SocketAddr) {
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            warn!(%address, limit = self.limits.connections, "turned away: max_connections");
            return;
        };
        let limit = self.limits.handshakes_per_address;
        let Some(handshake) = Counts::take(&self.handshakes, address.ip(), limit) else {
            warn!(%address, limit, "turned away: max_handshakes_per_address");
            return;
        };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (tls, shared) = (self.tls.clone(), Arc::clone(&self.shared));
        let (stopping, limit) = (Arc::clone(&self.stopping), self.timeouts.handshake);
        let identities = Arc::clone(&self.identities);
        let per_identity = self.limits.connections_per_identity;
        let alive = self.alive.clone();
        tokio::spawn(async move {
            // In a box of its own: what a handshake needs is given back when it is done.
            let handshaken = Box::pin(async {
                let stream = tokio::select! {
                    stream = shake_hands(&tls, stream, limit) => stream?,
                    // There are no permits: this ends when the semaphore is closed.
                    _ = stopping.acquire() => return Err(Turned::Stopping),
                };
                let peer = identify(&stream)?;
                let limit = match peer.role {
                    Role::Agent => per_identity.min(AGENT_CONNECTIONS),
                    _ => per_identity,
                };
                let Some(counted) = Counts::take(&identities, Arc::clone(&peer), limit) else {
                    return Err(Turned::Identities(peer));
                };
                Ok((
                    Connection::new(stream, peer, address, number, shared),
                    counted,
                ))
            })
            .await;
            drop((handshake, identities, tls, stopping));
            match handshaken {
                Ok((connection, counted)) => {
                    connection.serve().await;
                    drop(counted);
                }
                Err(Turned::Stopping) => debug!(%address, "turned away: the broker stops"),
                Err(turned @ (Turned::Tls(_) | Turned::Slow(_))) => {
                    info!(%address, "turned away: {turned}");
                }
                Err(turned) => warn!(%address, "turned away: {turned}"),
            }
            drop((place, alive));
        });
    }
}

async fn shake_hands(
    tls: &TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, Turned> {
    let mut stream = timeout(limit, tls.accept(stream))
        .await
        .map_err(|_| Turned::Slow(limit))?
        .map_err(Turned::Tls)?;
    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_LEN));
    Ok(stream)
}

fn identify(stream: &TlsStream<TcpStream>) -> Result<Arc<Peer>, Turned> {
    let chain = stream.get_ref().1.peer_certificates();
    let certificate = chain
        .and_then(|chain| chain.first())
        .ok_or(Turned::NoCertificate)?;
    let peer = Arc::new(Peer::from(&Identity::from_certificate(certificate)?));
    if peer.role == Role::Broker {
        return Err(Turned::Broker(peer));
    }
    Ok(peer)
}

/// How many there are of each.
#[derive(Debug)]
struct Counts<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// One of them; it is counted until this is dropped.
struct Counted<K: Eq + Hash> {
    key: K,
    counts: Arc<Counts<K>>,
}

impl<K: Clone + Eq + Hash> Counts<K> {
    fn take(counts: &Arc<Self>, key: K, limit: usize) -> Option<Counted<K>> {
        let mut all = counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(key.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        drop(all);
        Some(Counted {
            key,
            counts: Arc::clone(counts),
        })
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut all = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_given_back() {
        let counts = Arc::new(Counts::default());
        let first = Counts::take(&counts, "a", 2).unwrap();
        let _second = Counts::take(&counts, "a", 2).unwrap();
        assert!(Counts::take(&counts, "a", 2).is_none());
        assert!(Counts::take(&counts, "b", 2).is_some());
        drop(first);
        assert!(Counts::take(&counts, "a", 2).is_some());
        assert_eq!(
            counts.0.lock().unwrap().len(),
            1,
            "what is not counted is not kept"
        );
    }
}
