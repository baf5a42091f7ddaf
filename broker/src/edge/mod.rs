//! The edge: accepts connections, does the TLS handshake of each in a task of its own, finds out who came, and
//! counts.
//!
//! Nothing that a stranger does takes anything from those who are in: a handshake has its own places, its own
//! threads, a time and a number of bytes; only what comes out of it with a good certificate takes one of the
//! places of connections.

mod certificates;
mod counts;
mod guest;
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

use certificates::{Listed, Roster};
use counts::{Counted, Counts, Origin, Visits};
pub(crate) use guest::Guest;
pub(crate) use members::Members;
use members::{Full, Seat};
use pool::Pool;
pub use reload::Reload;
use reload::{Doors, Keeper};
pub(crate) use reload::{Look, look};
use socket::Metered;
pub(crate) use socket::listen;

/// How much may wait in a connection's TLS layer, in bytes; the rest waits with its session.
const TLS_BUFFER_LEN: usize = 16 * 1024;

/// How long to wait when there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a connection gets no session.
#[derive(Debug, thiserror::Error)]
enum Turned {
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
    /// After its handshake: it is known who.
    #[error("{1}")]
    Known(Arc<Peer>, Box<Turned>),
}

impl Turned {
    fn reason(&self) -> Reason {
        match self {
            Self::Known(_, turned) => turned.reason(),
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

    /// Who it is, or claims to be.
    fn peer(&self) -> Option<Arc<Peer>> {
        match self {
            Self::Known(peer, _) => Some(Arc::clone(peer)),
            Self::Refused(refused) => refused.identity.as_ref().map(|id| Arc::new(Peer::from(id))),
            _ => None,
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
    gate: Arc<Gate>,
    pool: Pool,
    /// Every connection holds one, so that the broker can wait for the last.
    alive: mpsc::Sender<()>,
}

/// What every handshake asks.
struct Gate {
    limits: Limits,
    shared: Arc<Shared>,
    doors: Arc<Doors>,
    roster: Arc<Roster>,
    members: Arc<Members>,
    visits: Visits,
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
struct Waiting {
    _handshake: OwnedSemaphorePermit,
    _of_origin: Counted<Origin>,
}

/// A client that is let in.
enum Arrived {
    Plain(Box<Connection<TlsStream<Metered>>>),
    Web(Box<Connection<WebSocket<TlsStream<Metered>>>>),
}

/// What a connection holds for as long as it lives.
struct Held {
    _origin: Counted<Origin>,
    _place: OwnedSemaphorePermit,
    _seat: Seat,
    _listed: Listed,
}

impl Edge {
    /// An edge that looks after the files of `sources`, which were read as `tls` after they looked like `seen`. The
    /// thread does that: without it nobody is taken back.
    pub(crate) fn new(
        (listener, web): (TcpListener, Option<(TcpListener, Origins)>),
        limits: Limits,
        members: Arc<Members>,
        (sources, seen, tls): (ServerSources, Vec<Look>, ServerTls),
        shared: Arc<Shared>,
        alive: mpsc::Sender<()>,
    ) -> io::Result<(Self, Reload, Thread)> {
        let doors = Doors::new(tls);
        let roster = Roster::new(shared.observer.clone());
        let gate = Arc::new(Gate {
            limits,
            doors: Arc::clone(&doors),
            roster: Arc::clone(&roster),
            members,
            visits: Visits::default(),
            origins: Arc::default(),
            handshaking: Arc::default(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            connections: Arc::new(Semaphore::new(limits.connections)),
            numbers: AtomicU64::new(1),
            stopping: Semaphore::new(0),
            shared,
        });
        let tidied = Arc::downgrade(&gate);
        let keeper = Keeper {
            doors,
            sources,
            seen,
            roster,
            observer: gate.shared.observer.clone(),
            quiet: Arc::clone(&gate.shared.quiet),
            tidy: Box::new(move || {
                if let Some(gate) = tidied.upgrade() {
                    gate.visits.forget(Instant::now());
                    gate.members.forget(Instant::now());
                    gate.shared.hub.forget(Instant::now());
                }
            }),
        };
        let (reload, keeper) = keeper.start()?;
        let pool = Pool::start()?;
        let edge = Self {
            listener,
            web: web.map(|(listener, origins)| (listener, Arc::new(origins))),
            gate,
            pool,
            alive,
        };
        Ok((edge, reload, keeper))
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
        self.gate.stopping.close();
    }

    fn take(&self, stream: TcpStream, address: SocketAddr, web: Option<Arc<Origins>>) {
        let (waiting, origin) = match self.gate.admit(address) {
            Ok(admitted) => admitted,
            Err(turned) => return self.gate.turn_away(address, &turned),
        };
        let Some(handshakes) = self.pool.handle() else {
            return;
        };
        let gate = Arc::clone(&self.gate);
        let alive = self.alive.clone();
        let sessions = Handle::current();
        handshakes.spawn(async move {
            match gate.receive(stream, address, web, origin).await {
                Ok((arrived, held)) => {
                    drop(waiting);
                    let held = (held, alive);
                    match arrived {
                        Arrived::Plain(connection) => sessions.spawn(async move {
                            connection.serve().await;
                            drop(held);
                        }),
                        Arrived::Web(connection) => sessions.spawn(async move {
                            connection.serve().await;
                            drop(held);
                        }),
                    };
                }
                Err(turned) => gate.turn_away(address, &turned),
            }
        });
    }
}

impl Gate {
    /// Lets a stranger begin its handshake.
    fn admit(&self, address: SocketAddr) -> Result<(Waiting, Counted<Origin>), Turned> {
        let limits = &self.limits;
        let origin = Origin::from(address.ip());
        if !self
            .visits
            .allow(origin, limits.connect_rate, Instant::now())
        {
            return Err(Turned::Rate);
        }
        let handshake = Arc::clone(&self.handshakes)
            .try_acquire_owned()
            .map_err(|_| Turned::Handshakes(limits.handshakes))?;
        let limit = limits.connections_per_address;
        let counted = Counts::take(&self.origins, origin, limit).ok_or(Turned::Address(limit))?;
        let limit = limits.handshakes_per_address;
        let of_origin = Counts::take(&self.handshaking, origin, limit)
            .ok_or(Turned::AddressHandshakes(limit))?;
        let waiting = Waiting {
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
    ) -> Result<(Arrived, Held), Turned> {
        let metrics = self.shared.observer.metrics();
        let begun = Instant::now();
        metrics.handshaking.inc();
        let shaken = tokio::select! {
            shaken = self.shake_hands(stream) => shaken,
            // There are no permits: this ends when the semaphore is closed.
            _ = self.stopping.acquire() => Err(Turned::Stopping),
        };
        metrics.handshaking.dec();
        metrics
            .handshake_seconds
            .observe(begun.elapsed().as_secs_f64());
        metrics.handshakes.of(outcome(&shaken)).inc();
        let (stream, admitted) = shaken?;
        let peer = Arc::new(Peer::from(admitted.identity()));
        let seated = self.seat(stream, address, web, origin, (Arc::clone(&peer), admitted));
        let seated = seated.await;
        seated.map_err(|turned| Turned::Known(peer, Box::new(turned)))
    }

    /// Gives a known client its places.
    async fn seat(
        &self,
        stream: TlsStream<Metered>,
        address: SocketAddr,
        web: Option<Arc<Origins>>,
        origin: Counted<Origin>,
        (peer, admitted): (Arc<Peer>, Admitted),
    ) -> Result<(Arrived, Held), Turned> {
        let place = Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_| Turned::Connections(self.limits.connections))?;
        let (seat, policy, meter) = Members::seat(&self.members, &peer)?;
        self.shared.observer.serve(&peer.fleet);
        let (guest, listed) = self.list(address, peer, policy, meter, admitted)?;
        let held = Held {
            _origin: origin,
            _place: place,
            _seat: seat,
            _listed: listed,
        };
        let shared = Arc::clone(&self.shared);
        let arrived = match web {
            None => Arrived::Plain(Connection::new(stream, guest, shared)),
            Some(origins) => {
                let socket = self.upgrade(stream, &origins).await?;
                Arrived::Web(Connection::new(socket, guest, shared))
            }
        };
        Ok((arrived, held))
    }

    async fn upgrade(
        &self,
        stream: TlsStream<Metered>,
        origins: &Origins,
    ) -> Result<WebSocket<TlsStream<Metered>>, Turned> {
        let limit = self.shared.timeouts.handshake;
        tokio::select! {
            upgraded = timeout(limit, websocket::accept(stream, origins)) => {
                Ok(upgraded.map_err(|_| Turned::Slow(limit))??)
            }
            // There are no permits: this ends when the semaphore is closed.
            _ = self.stopping.acquire() => Err(Turned::Stopping),
        }
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<Metered>, Admitted), Turned> {
        let limit = self.shared.timeouts.handshake;
        let open = self.doors.tls().door().open();
        let (config, visitor) = open.map_err(|error| Turned::Tls(io::Error::other(error)))?;
        let stream = Metered::new(stream, self.limits.handshake_bytes);
        let accepted = timeout(limit, TlsAcceptor::from(config).accept(stream)).await;
        let accepted = accepted.map_err(|_| Turned::Slow(limit))?;
        // Who came is known before TLS is done, and also when it fails.
        if let Some(Err(refused)) = visitor.judged() {
            return Err(refused.clone().into());
        }
        let mut stream = accepted.map_err(Turned::Tls)?;
        let Some(Ok(admitted)) = visitor.judged() else {
            return Err(Turned::NotJudged);
        };
        let (tcp, tls) = stream.get_mut();
        tcp.trust();
        tls.set_buffer_limit(Some(TLS_BUFFER_LEN));
        Ok((stream, admitted.clone()))
    }

    /// Puts a connection on the roster, and asks then once more whether its certificate counts: a file may have
    /// changed since the handshake began.
    fn list(
        &self,
        address: SocketAddr,
        peer: Arc<Peer>,
        policy: Arc<Policy>,
        meter: Arc<Meter>,
        admitted: Admitted,
    ) -> Result<(Guest, Listed), Turned> {
        let control = Control::new();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (roster, now) = (&self.roster, now());
        let known = admitted.clone();
        let listed = Roster::enter(roster, number, address, admitted, Arc::clone(&control), now);
        let judged = self.doors.tls().door().trust().check(&known, now);
        judged.map_err(|refusal| Refused {
            identity: Some(known.identity().clone()),
            serial: Some(known.serial().clone()),
            refusal,
        })?;
        let guest = Guest {
            peer,
            address,
            number,
            control,
            policy,
            meter,
        };
        Ok((guest, listed))
    }

    fn turn_away(&self, address: SocketAddr, turned: &Turned) {
        let stopping = |turned: &Turned| matches!(turned, Turned::Stopping);
        if stopping(turned) || matches!(turned, Turned::Known(_, turned) if stopping(turned)) {
            return debug!(%address, "turned away: the broker stops");
        }
        let reason = turned.reason();
        let (observer, why) = (&self.shared.observer, turned.to_string());
        let peer = turned.peer();
        let origin = match peer.clone() {
            Some(peer) => observe::Origin::of(address, peer),
            None => observe::Origin::unknown(address),
        };
        observer.refused(&origin, reason, "", &why);
        if !self.shared.quiet.says(reason, std::time::Instant::now()) {
            return;
        }
        match (turned, peer) {
            // Port scans and clients of other CAs are everyday things.
            (Turned::Tls(_) | Turned::Slow(_), _) => info!(%address, "turned away: {why}"),
            (_, Some(identity)) => warn!(%address, %identity, "turned away: {why}"),
            (_, None) => warn!(%address, "turned away: {why}"),
        }
    }
}

fn outcome<T>(shaken: &Result<T, Turned>) -> Handshake {
    match shaken {
        Ok(_) => Handshake::Done,
        Err(Turned::Slow(_)) => Handshake::Slow,
        Err(_) => Handshake::Failed,
    }
}
