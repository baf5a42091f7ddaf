//! The edge: accepts connections, does the TLS handshake of each in a task of its own, finds out who came, and
//! counts.
//!
//! Nothing that a stranger does takes anything from those who are in: a handshake has its own places, its own
//! threads, a time and a number of bytes; only what comes out of it with a good certificate takes one of the
//! places of connections.

mod authenticated;
mod certificates;
mod counts;
mod members;
mod pool;
mod reload;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hoist_certs::program::now;
use hoist_certs::trust::{Admitted, Refusal, Refused};
use hoist_certs::{ServerSources, ServerTls};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use crate::connection::{Connection, Shared};
use crate::guard::{Meter, Peer};
use crate::inbox::Control;
use crate::observe::{self, Handshake, Reason};
use crate::session::Policy;
use crate::settings::Limits;
use crate::thread::Thread;
use crate::websocket::{self, Origins, UpgradeError, WebSocket};

pub(crate) use authenticated::Authenticated;
use certificates::CertificateTable;
pub(crate) use certificates::Registered;
pub(crate) use counts::network;
use counts::{ConnectRates, Counted, Counts, Origin};
pub(crate) use members::Members;
use members::{Full, Slot};
use pool::Pool;
pub use reload::Reload;
use reload::{CurrentTls, Reloader};
pub(crate) use reload::{FileStamp, file_stamps};
use socket::Metered;
pub(crate) use socket::listen;

/// How much may wait in a connection's TLS layer, in bytes; the rest waits with its session.
const TLS_BUFFER_LEN: usize = 16 * 1024;

/// How long to wait when there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a connection gets no session.
#[derive(Debug, thiserror::Error)]
enum Rejection {
    #[error("{0} connections already (max_connections)")]
    Connections(usize),
    #[error("{0} handshakes under way (max_handshakes)")]
    Handshakes(usize),
    #[error("{0} connections from this address (max_connections_per_address)")]
    Address(usize),
    #[error("{0} handshakes from this address (max_handshakes_per_address)")]
    AddressHandshakes(usize),
    #[error("the address connects too often (connect_rate)")]
    Rate,
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("the TLS handshake took more than {} s (handshake_timeout)", .0.as_secs_f64())]
    Slow(Duration),
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("the certificate was not judged: a session was resumed")]
    NotJudged,
    #[error("{0}")]
    Full(#[from] Full),
    #[error("{0}")]
    Upgrade(#[from] UpgradeError),
    #[error("the broker stops")]
    Stopping,
}

impl Rejection {
    fn reason(&self) -> Reason {
        match self {
            Self::Connections(_) | Self::Handshakes(_) | Self::Stopping => Reason::Connections,
            Self::Address(_) | Self::AddressHandshakes(_) => Reason::Address,
            Self::Rate => Reason::Rate,
            Self::Tls(_) => Reason::Tls,
            Self::Upgrade(_) => Reason::Protocol,
            Self::Slow(_) => Reason::HandshakeTimeout,
            Self::Refused(refused) => certificate_reason(&refused.refusal),
            Self::NotJudged => Reason::Certificate,
            Self::Full(Full::Identity { .. }) => Reason::Identity,
            Self::Full(Full::Fleet { .. }) => Reason::Quota,
            Self::Full(Full::Unknown(_)) => Reason::Certificate,
        }
    }
}

/// A connection that gets no session.
#[derive(Debug)]
struct Rejected {
    why: Rejection,
    /// Who it is, or claims to be, when that is known.
    peer: Option<Arc<Peer>>,
}

impl From<Rejection> for Rejected {
    fn from(why: Rejection) -> Self {
        let peer = match &why {
            Rejection::Refused(refused) => refused.identity.as_ref().map(Peer::from),
            _ => None,
        };
        Self {
            why,
            peer: peer.map(Arc::new),
        }
    }
}

/// What a certificate is refused for, as a word for counters and the audit log.
pub(crate) const fn certificate_reason(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::Revoked(_) | Refusal::Denied { .. } => Reason::Revoked,
        Refusal::Ended(_) => Reason::Expired,
        Refusal::Nobody(_)
        | Refusal::Unusable(_)
        | Refusal::Broker
        | Refusal::Fleet(_)
        | Refusal::Issuer(_)
        | Refusal::NotYet(_)
        | Refusal::CrlExpired(_)
        | Refusal::CrlMissing(_) => Reason::Certificate,
    }
}

/// Accepts connections until it is dropped.
pub(crate) struct Edge {
    listener: TcpListener,
    /// For WebSockets, with the pages that may connect.
    web: Option<(TcpListener, Arc<Origins>)>,
    admission: Arc<Admission>,
    pool: Pool,
    /// Every connection holds one, so that the broker can wait for the last.
    alive: mpsc::Sender<()>,
}

/// What every handshake asks.
struct Admission {
    limits: Limits,
    shared: Arc<Shared>,
    current: Arc<CurrentTls>,
    table: Arc<CertificateTable>,
    members: Arc<Members>,
    connect_rates: ConnectRates,
    /// Connections and handshakes from each origin, and handshakes alone.
    origins: Arc<Counts<Origin>>,
    handshaking: Arc<Counts<Origin>>,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    numbers: AtomicU64,
    /// Closed when the broker stops.
    stopping: Semaphore,
}

/// What a stranger holds until its handshake is done.
struct Handshaking {
    _handshake: OwnedSemaphorePermit,
    _of_origin: Counted<Origin>,
}

/// A client that is let in.
enum Accepted {
    Plain(Box<Connection<TlsStream<Metered>>>),
    Web(Box<Connection<WebSocket<TlsStream<Metered>>>>),
}

/// What a connection holds for as long as it lives.
struct Held {
    _origin: Counted<Origin>,
    _place: OwnedSemaphorePermit,
    _slot: Slot,
    _counted: observe::Held,
}

impl Edge {
    /// An edge that looks after the files of `sources`, which were read as `tls` after they looked like `seen`. The
    /// thread does that: without it nobody is taken back.
    pub(crate) fn new(
        (listener, web): (TcpListener, Option<(TcpListener, Origins)>),
        limits: Limits,
        members: Arc<Members>,
        (sources, seen, tls): (ServerSources, Vec<FileStamp>, ServerTls),
        shared: Arc<Shared>,
        alive: mpsc::Sender<()>,
    ) -> io::Result<(Self, Reload, Thread)> {
        let current = CurrentTls::new(tls);
        let table = CertificateTable::new(shared.observer.clone());
        let admission = Arc::new(Admission {
            limits,
            current: Arc::clone(&current),
            table: Arc::clone(&table),
            members,
            connect_rates: ConnectRates::default(),
            origins: Arc::default(),
            handshaking: Arc::default(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            connections: Arc::new(Semaphore::new(limits.connections)),
            numbers: AtomicU64::new(1),
            stopping: Semaphore::new(0),
            shared,
        });
        let tidied = Arc::downgrade(&admission);
        let reloader = Reloader {
            current,
            sources,
            seen,
            table,
            observer: admission.shared.observer.clone(),
            log_limit: Arc::clone(&admission.shared.log_limit),
            tidy: Box::new(move || {
                if let Some(admission) = tidied.upgrade() {
                    admission.connect_rates.forget(Instant::now());
                    admission.members.forget(Instant::now());
                    admission.shared.hub.forget(Instant::now());
                }
            }),
        };
        let (reload, reloader) = reloader.start()?;
        let pool = Pool::start()?;
        let edge = Self {
            listener,
            web: web.map(|(listener, origins)| (listener, Arc::new(origins))),
            admission,
            pool,
            alive,
        };
        Ok((edge, reload, reloader))
    }

    /// Accepts for ever.
    pub(crate) async fn run(&self) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted.map(|from| (from, None)),
                accepted = self.accept_web() => accepted,
            };
            match accepted {
                Ok(((stream, address), origins)) => self.take(stream, address, origins),
                Err(error) => {
                    // Most often too many open files: the connections that end will make room.
                    warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn accept_web(&self) -> io::Result<((TcpStream, SocketAddr), Option<Arc<Origins>>)> {
        let Some((listener, origins)) = &self.web else {
            return std::future::pending().await;
        };
        let accepted = listener.accept().await?;
        Ok((accepted, Some(Arc::clone(origins))))
    }

    /// Ends the handshakes that are under way.
    pub(crate) fn stop(&self) {
        self.admission.stopping.close();
    }

    fn take(&self, stream: TcpStream, address: SocketAddr, web: Option<Arc<Origins>>) {
        let (waiting, origin) = match self.admission.admit(address) {
            Ok(admitted) => admitted,
            Err(rejection) => return self.admission.reject(address, rejection.into()),
        };
        let Some(handshakes) = self.pool.handle() else {
            return;
        };
        let admission = Arc::clone(&self.admission);
        let alive = self.alive.clone();
        let sessions = Handle::current();
        handshakes.spawn(async move {
            match admission.receive(stream, address, web, origin).await {
                Ok((accepted, held)) => {
                    drop(waiting);
                    let held = (held, alive);
                    match accepted {
                        Accepted::Plain(connection) => sessions.spawn(async move {
                            connection.serve().await;
                            drop(held);
                        }),
                        Accepted::Web(connection) => sessions.spawn(async move {
                            connection.serve().await;
                            drop(held);
                        }),
                    };
                }
                Err(rejected) => admission.reject(address, rejected),
            }
        });
    }
}

impl Admission {
    /// Lets a stranger begin its handshake.
    fn admit(&self, address: SocketAddr) -> Result<(Handshaking, Counted<Origin>), Rejection> {
        let limits = &self.limits;
        let origin = Origin::from(address.ip());
        if !self
            .connect_rates
            .allow(origin, limits.connect_rate, Instant::now())
        {
            return Err(Rejection::Rate);
        }
        let handshake = Arc::clone(&self.handshakes)
            .try_acquire_owned()
            .map_err(|_| Rejection::Handshakes(limits.handshakes))?;
        let limit = limits.connections_per_address;
        let counted =
            Counts::take(&self.origins, origin, limit).ok_or(Rejection::Address(limit))?;
        let limit = limits.handshakes_per_address;
        let of_origin = Counts::take(&self.handshaking, origin, limit)
            .ok_or(Rejection::AddressHandshakes(limit))?;
        let waiting = Handshaking {
            _handshake: handshake,
            _of_origin: of_origin,
        };
        Ok((waiting, counted))
    }

    /// Does the handshake, and gives whom it lets in its places.
    async fn receive(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        web: Option<Arc<Origins>>,
        origin: Counted<Origin>,
    ) -> Result<(Accepted, Held), Rejected> {
        let metrics = self.shared.observer.metrics();
        let begun = Instant::now();
        metrics.handshaking.inc();
        let shaken = tokio::select! {
            shaken = self.shake_hands(stream) => shaken,
            // There are no permits: this ends when the semaphore is closed.
            _ = self.stopping.acquire() => Err(Rejection::Stopping),
        };
        metrics.handshaking.dec();
        metrics
            .handshake_seconds
            .observe(begun.elapsed().as_secs_f64());
        metrics.handshakes.of(outcome(&shaken)).inc();
        let (stream, admitted) = shaken?;
        let peer = Arc::new(Peer::from(admitted.identity()));
        let placed = self.place(stream, address, web, origin, (Arc::clone(&peer), admitted));
        let placed = placed.await;
        placed.map_err(|why| Rejected {
            why,
            peer: Some(peer),
        })
    }

    /// Gives a known client its places.
    async fn place(
        &self,
        mut stream: TlsStream<Metered>,
        address: SocketAddr,
        web: Option<Arc<Origins>>,
        origin: Counted<Origin>,
        (peer, admitted): (Arc<Peer>, Admitted),
    ) -> Result<(Accepted, Held), Rejection> {
        let place = Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_| Rejection::Connections(self.limits.connections))?;
        let (slot, policy, meter) = Members::reserve(&self.members, &peer)?;
        self.shared.observer.serve(&peer.fleet);
        stream.get_mut().0.charge(Arc::clone(&meter));
        let connections = &self.shared.observer.metrics().connections;
        let counted = observe::Held::new(connections.of(peer.role));
        let authenticated = self.register(address, peer, policy, meter, admitted)?;
        let held = Held {
            _origin: origin,
            _place: place,
            _slot: slot,
            _counted: counted,
        };
        let shared = Arc::clone(&self.shared);
        let accepted = match web {
            None => Accepted::Plain(Connection::new(stream, authenticated, shared)),
            Some(origins) => {
                let socket = self.upgrade(stream, &origins).await?;
                Accepted::Web(Connection::new(socket, authenticated, shared))
            }
        };
        Ok((accepted, held))
    }

    async fn upgrade(
        &self,
        stream: TlsStream<Metered>,
        origins: &Origins,
    ) -> Result<WebSocket<TlsStream<Metered>>, Rejection> {
        let limit = self.shared.timeouts.handshake;
        tokio::select! {
            upgraded = timeout(limit, websocket::accept(stream, origins)) => {
                Ok(upgraded.map_err(|_| Rejection::Slow(limit))??)
            }
            // There are no permits: this ends when the semaphore is closed.
            _ = self.stopping.acquire() => Err(Rejection::Stopping),
        }
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<Metered>, Admitted), Rejection> {
        let limit = self.shared.timeouts.handshake;
        let handshake = self.current.tls().acceptor().handshake();
        let (config, judgement) =
            handshake.map_err(|error| Rejection::Tls(io::Error::other(error)))?;
        let stream = Metered::new(stream, self.limits.handshake_bytes);
        let accepted = timeout(limit, TlsAcceptor::from(config).accept(stream)).await;
        let accepted = accepted.map_err(|_| Rejection::Slow(limit))?;
        // Who came is known before TLS is done, and also when it fails.
        if let Some(Err(refused)) = judgement.judged() {
            return Err(refused.clone().into());
        }
        let mut stream = accepted.map_err(Rejection::Tls)?;
        let Some(Ok(admitted)) = judgement.judged() else {
            return Err(Rejection::NotJudged);
        };
        let (_, tls) = stream.get_mut();
        tls.set_buffer_limit(Some(TLS_BUFFER_LEN));
        Ok((stream, admitted.clone()))
    }

    /// Enters a connection into the table, and asks then once more whether its certificate counts: a file may have
    /// changed since the handshake began.
    fn register(
        &self,
        address: SocketAddr,
        peer: Arc<Peer>,
        policy: Arc<Policy>,
        meter: Arc<Meter>,
        admitted: Admitted,
    ) -> Result<Authenticated, Rejection> {
        let control = Control::new();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (table, now) = (&self.table, now());
        let known = admitted.clone();
        let registered =
            CertificateTable::enter(table, number, address, admitted, Arc::clone(&control), now);
        let judged = self.current.tls().acceptor().trust().check(&known, now);
        judged.map_err(|refusal| Refused {
            identity: Some(known.identity().clone()),
            serial: Some(known.serial().clone()),
            refusal,
        })?;
        let authenticated = Authenticated {
            peer,
            address,
            number,
            control,
            registered,
            policy,
            meter,
        };
        Ok(authenticated)
    }

    fn reject(&self, address: SocketAddr, rejected: Rejected) {
        let Rejected {
            why: rejection,
            peer,
        } = rejected;
        if matches!(rejection, Rejection::Stopping) {
            return debug!(%address, "turned away: the broker stops");
        }
        let reason = rejection.reason();
        let (observer, why) = (&self.shared.observer, rejection.to_string());
        let origin = match peer.clone() {
            Some(peer) => observe::Origin::of(address, peer),
            None => observe::Origin::unknown(address),
        };
        observer.refused(&origin, reason, "", &why);
        if !self
            .shared
            .log_limit
            .allows(reason, std::time::Instant::now())
        {
            return;
        }
        match (rejection, peer) {
            // Port scans and clients of other CAs are everyday things.
            (Rejection::Tls(_) | Rejection::Slow(_), _) => info!(%address, "turned away: {why}"),
            (_, Some(identity)) => warn!(%address, %identity, "turned away: {why}"),
            (_, None) => warn!(%address, "turned away: {why}"),
        }
    }
}

fn outcome<T>(shaken: &Result<T, Rejection>) -> Handshake {
    match shaken {
        Ok(_) => Handshake::Done,
        Err(Rejection::Slow(_)) => Handshake::Slow,
        Err(_) => Handshake::Failed,
    }
}
