//! The broker as a whole: its parts put together, run, and stopped in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use hoist_certs::TlsError;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::connection::Shared;
use crate::deploys::Deploys;
use crate::detached::KeptSessions;
use crate::edge::{Edge, Members, Reload, file_stamps, listen};
use crate::hub::Hub;
use crate::maintenance::Control;
use crate::message::Message;
use crate::observe::{self, AuditError, Count, Figures, FleetFigures, Observer};
use crate::router::{Router, RouterError};
use crate::session::Ended;
use crate::settings::{Quota, Settings};
use crate::store::{Running, STORE_FOLDER, Store, StoreError};
use crate::thread::Thread;
use crate::websocket::Origins;

/// Why the broker cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The credentials cannot be used.
    #[error("cannot use the broker's credentials")]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}; choose another address with --listen, or stop what is there"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store cannot be opened, or a batch cannot be made durable.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The audit log cannot be kept.
    #[error("the audit log failed")]
    Audit(#[from] AuditError),
    /// The router has ended.
    #[error("the router failed")]
    Router(#[from] RouterError),
    /// The threads of handshakes and certificates cannot be started.
    #[error("cannot start the threads of the edge")]
    Thread(#[source] io::Error),
    /// A thread that the broker cannot do without has panicked.
    #[error("the broker's thread `{0}` has panicked")]
    Panicked(&'static str),
}

/// A broker that listens; [`Server::run`] makes it answer.
pub struct Server {
    address: SocketAddr,
    websocket: Option<SocketAddr>,
    edge: Edge,
    reload: Reload,
    hub: Arc<Hub>,
    stop_timeout: Duration,
    /// Nothing comes when the last connection is gone.
    last: mpsc::Receiver<()>,
    store: Running,
    router_down: mpsc::UnboundedReceiver<RouterError>,
    observer: Observer,
    /// Those that end the broker when they panic, besides the store's and the router's.
    threads: Vec<Thread>,
    metrics: Option<(TcpListener, Count)>,
    control: Option<(Control, Store)>,
}

impl Server {
    /// Opens the store and the listening socket. Clients can connect from here on; they are answered when
    /// [`Server::run`] is called.
    ///
    /// # Errors
    /// [`ServerError`]
    pub async fn bind(settings: Settings) -> Result<Self, ServerError> {
        // What changes from here on is noticed.
        let seen = file_stamps(&settings.tls);
        let tls = settings.tls.load(None)?;
        let fleets = Arc::new(settings.fleets);
        for (fleet, _) in fleets
            .all()
            .filter(|(_, fleet)| fleet.trusted_keys.is_none())
        {
            warn!(
                fleet = fleet.map_or("(any)", |fleet| fleet.as_str()),
                "no trusted_keys: every publisher's word is taken, deployments are verified by the agents \
                 alone, and replays and lost races reach the retained message"
            );
        }
        let deploys = Arc::new(Deploys::new(Arc::clone(&fleets)));
        let served = Arc::clone(&fleets);
        let (down, router_down) = mpsc::unbounded_channel();
        let (router, mut bus, relay, lines) =
            tokio::task::spawn_blocking(move || Router::start(served, down))
                .await
                .map_err(|_| ServerError::Panicked("router"))??;
        let hub = Arc::new(Hub::new(settings.limits.takeover_rate));
        let tell = {
            let hub = Arc::clone(&hub);
            move |message: &Arc<Message>| {
                hub.tell(message);
                bus.publish(message)
            }
        };
        let (observer, audit) = Observer::start(settings.audit)?;
        for (fleet, _) in fleets.all() {
            fleet.into_iter().for_each(|fleet| observer.serve(fleet));
        }
        let (state, for_store) = (settings.state, Arc::clone(&deploys));
        let watched = observer.clone();
        let folder = state.join(STORE_FOLDER);
        let opened = move || Store::open(&folder, for_store, watched, tell);
        let (store, running) = tokio::task::spawn_blocking(opened)
            .await
            .map_err(|_| ServerError::Panicked("store"))??;
        let unheard = |source| ServerError::Listen {
            address: settings.listen,
            source,
        };
        let control = control(&state, &store);
        let listener = listen(settings.listen).map_err(unheard)?;
        let address = listener.local_addr().map_err(unheard)?;
        let web = match settings.websocket {
            Some(web) => {
                let address = web.listen;
                let unheard = |source| ServerError::Listen { address, source };
                let listener = listen(address).map_err(unheard)?;
                let address = listener.local_addr().map_err(unheard)?;
                info!(%address, "listening for WebSockets");
                Some((address, listener, Origins::new(web.origins)))
            }
            None => None,
        };
        let websocket = web.as_ref().map(|(address, ..)| *address);
        let listeners = (
            listener,
            web.map(|(_, listener, origins)| (listener, origins)),
        );
        info!(%address, identity = %tls.identity(), not_after = %tls.not_after(), "listening");
        let router = Arc::new(router);
        let kept_sessions = KeptSessions::new(&settings.session.absence);
        let limits = settings.limits;
        let members = Members::new(fleets, limits, settings.session, &deploys);
        let metrics = match settings.metrics {
            Some(address) => {
                let listener =
                    listen(address).map_err(|source| ServerError::Listen { address, source })?;
                if let Ok(address) = listener.local_addr() {
                    info!(%address, "telling metrics and health");
                }
                let count = count(&members, &store, &kept_sessions, &router);
                Some((listener, count))
            }
            None => None,
        };
        let shared = Arc::new(Shared {
            hub: Arc::clone(&hub),
            store,
            router,
            relay,
            timeouts: settings.timeouts,
            observer: observer.clone(),
            log_limit: Arc::default(),
            kept_sessions,
        });
        let (alive, last) = mpsc::channel(1);
        let tls = (settings.tls, seen, tls);
        let (edge, reload, reloader) = Edge::new(listeners, limits, members, tls, shared, alive)
            .map_err(ServerError::Thread)?;
        Ok(Self {
            address,
            websocket,
            edge,
            reload,
            hub,
            stop_timeout: settings.timeouts.stop,
            last,
            store: running,
            router_down,
            observer,
            threads: audit.into_iter().chain([reloader, lines]).collect(),
            metrics,
            control,
        })
    }

    /// Asks for certificates, CAs, revocation lists and the denylist to be read again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for WebSockets, when it does.
    #[must_use]
    pub const fn websocket_addr(&self) -> Option<SocketAddr> {
        self.websocket
    }

    /// Where metrics and health are told, when they are.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref()?.0.local_addr().ok()
    }

    /// Opens the audit log's file anew, for a log rotation.
    pub fn reopen_audit_log(&self) -> impl Fn() + Send + 'static {
        let observer = self.observer.clone();
        move || observer.reopen()
    }

    /// Serves clients until `shutdown` is done, then stops in order: no new connections, all sessions end and
    /// leave their wills, everything is durable, the store is closed.
    ///
    /// # Errors
    /// [`ServerError`] when the store, the router or a thread fails: what was not durable was not acknowledged.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let Self {
            edge,
            hub,
            stop_timeout,
            mut last,
            mut store,
            mut router_down,
            observer,
            threads,
            metrics,
            control,
            ..
        } = self;
        // Aborted when this returns.
        let (mut aside, mut maintained) = (JoinSet::new(), JoinSet::new());
        if let Some((listener, count)) = metrics {
            aside.spawn(observe::serve(listener, observer.clone(), count));
        }
        if let Some((control, store)) = control {
            maintained.spawn(control.serve(store));
        }
        let mut panicked: JoinSet<_> = threads.into_iter().map(Thread::panicked).collect();
        observer.serving(true);
        let failed = tokio::select! {
            () = edge.run() => None,
            () = shutdown => None,
            result = store.ended() => Some(result.err().map_or(ServerError::Panicked("store"), Into::into)),
            Some(error) = router_down.recv() => Some(error.into()),
            Some(Ok(thread)) = panicked.join_next() => Some(ServerError::Panicked(thread)),
        };
        observer.serving(false);
        edge.stop();
        // The listening socket closes here: nobody connects to a broker that stops.
        drop(edge);
        if let Some(error) = failed {
            hub.stop(&Ended::BrokerFailed);
            return Err(error);
        }
        info!("stopping");
        hub.stop(&Ended::Stopping);
        // It holds the store open.
        maintained.shutdown().await;
        let ended = timeout(stop_timeout, last.recv()).await;
        // The audit log's thread goes on: whoever asks for its file to be opened anew still may.
        tokio::task::spawn_blocking(move || observer.flush())
            .await
            .ok();
        if ended.is_err() {
            warn!(?stop_timeout, "some connections did not end in time");
            // They hold the store open; what they were acknowledged is durable all the same.
            return Ok(());
        }
        store.ended().await?;
        info!("stopped");
        Ok(())
    }
}

/// What is counted when somebody asks for the metrics. It holds nothing open.
fn count(
    members: &Arc<Members>,
    store: &Store,
    kept_sessions: &Arc<KeptSessions>,
    router: &Arc<Router>,
) -> Count {
    let (members, kept_sessions) = (Arc::clone(members), Arc::clone(kept_sessions));
    let (usages, router) = (store.usages(), Arc::clone(router));
    let runtime = Handle::current().metrics();
    Arc::new(move || {
        let (connections, retained) = (members.connections(), usages());
        let watchers = router.watchers();
        let served = members.fleets();
        let named = served.all().filter_map(|(name, _)| name);
        let known = named.chain(connections.keys()).chain(retained.keys());
        let figures = known.map(|fleet| {
            let retained = retained.get(fleet).copied().unwrap_or_default();
            let figures = FleetFigures {
                connections: connections.get(fleet).copied().unwrap_or_default(),
                watchers: watchers.get(fleet).copied().unwrap_or_default(),
                retained_messages: retained.messages,
                retained_bytes: retained.bytes,
                quota: served.get(fleet).map_or(Quota::NONE, |fleet| fleet.quota),
            };
            (fleet.clone(), figures)
        });
        let fleets = figures.collect();
        let (kept_sessions, kept_sessions_limit) = kept_sessions.taken();
        Figures {
            fleets,
            kept_sessions,
            kept_sessions_limit,
            watchers: watchers.values().sum(),
            tasks: runtime.num_alive_tasks(),
        }
    })
}

/// Listens for who looks after the store. A broker does without where that cannot be.
fn control(state: &Utf8Path, store: &Store) -> Option<(Control, Store)> {
    match Control::bind(state) {
        Ok(control) => Some((control, store.clone())),
        Err(error) => {
            warn!(%state, %error, "no control socket: a backup can be made only while the broker does not run");
            None
        }
    }
}
