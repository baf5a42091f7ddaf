//! The broker as a whole: its parts put together, run, and stopped in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hoist_certs::TlsError;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::connection::Shared;
use crate::deploys::Deploys;
use crate::edge::{Edge, listen};
use crate::hub::Hub;
use crate::message::Message;
use crate::router::{Router, RouterError};
use crate::session::{Ended, Policy};
use crate::settings::{Limits, Settings};
use crate::store::{Running, Store, StoreError};

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
    /// The router has ended.
    #[error("the router failed")]
    Router(#[from] RouterError),
    /// A thread of the broker has panicked.
    #[error("a thread of the broker has panicked")]
    Panicked,
}

/// A broker that listens; [`Server::run`] makes it answer.
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    tls: TlsAcceptor,
    limits: Limits,
    shared: Arc<Shared>,
    store: Running,
    router_down: mpsc::UnboundedReceiver<RouterError>,
}

impl Server {
    /// Opens the store and the listening socket. Clients can connect from here on; they are answered when
    /// [`Server::run`] is called.
    ///
    /// # Errors
    /// [`ServerError`]
    pub async fn bind(settings: Settings) -> Result<Self, ServerError> {
        let tls = settings.credentials.server()?;
        if settings.trusted_keys.is_none() {
            warn!(
                "no trusted_keys: every publisher's word is taken, deployments are verified by the agents \
                 alone, and replays and lost races reach the retained message"
            );
        }
        let deploys = Arc::new(Deploys::new(settings.trusted_keys));
        let (down, router_down) = mpsc::unbounded_channel();
        let (router, mut bus, relay) = tokio::task::spawn_blocking(move || Router::start(down))
            .await
            .map_err(|_| ServerError::Panicked)??;
        let hub = Arc::new(Hub::default());
        let tell = {
            let hub = Arc::clone(&hub);
            move |message: &Arc<Message>| {
                hub.tell(message);
                bus.publish(message)
            }
        };
        let (state, for_store) = (settings.state, Arc::clone(&deploys));
        let opened = move || Store::open(&state.join("store"), for_store, tell);
        let (store, running) = tokio::task::spawn_blocking(opened)
            .await
            .map_err(|_| ServerError::Panicked)??;
        let unheard = |source| ServerError::Listen {
            address: settings.listen,
            source,
        };
        let listener = listen(settings.listen).map_err(unheard)?;
        let address = listener.local_addr().map_err(unheard)?;
        let shared = Arc::new(Shared {
            hub,
            store,
            router: Arc::new(router),
            relay,
            policy: Arc::new(Policy {
                rules: settings.rules,
                deploys,
            }),
            timeouts: settings.timeouts,
        });
        info!(%address, identity = %tls.identity(), not_after = %tls.not_after(), "listening");
        Ok(Self {
            address,
            listener,
            tls: TlsAcceptor::from(tls.config()),
            limits: settings.limits,
            shared,
            store: running,
            router_down,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves clients until `shutdown` is done, then stops in order: no new connections, all sessions end and
    /// leave their wills, everything is durable, the store is closed.
    ///
    /// # Errors
    /// [`ServerError`] when the store or the router fails: what was not durable was not acknowledged.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let Self {
            listener,
            tls,
            limits,
            shared,
            mut store,
            mut router_down,
            ..
        } = self;
        let (alive, mut last) = mpsc::channel(1);
        let hub = Arc::clone(&shared.hub);
        let stop_timeout = shared.timeouts.stop;
        let edge = Edge::new(listener, tls, limits, shared, alive);
        let failed = tokio::select! {
            () = edge.run() => None,
            () = shutdown => None,
            result = store.ended() => Some(result.err().map_or(ServerError::Panicked, Into::into)),
            Some(error) = router_down.recv() => Some(error.into()),
        };
        edge.stop();
        // The listening socket closes here: nobody connects to a broker that stops.
        drop(edge);
        if let Some(error) = failed {
            hub.stop(&Ended::BrokerFailed);
            return Err(error);
        }
        info!("stopping");
        hub.stop(&Ended::Stopping);
        if timeout(stop_timeout, last.recv()).await.is_err() {
            warn!(?stop_timeout, "some connections did not end in time");
            // They hold the store open; what they were acknowledged is durable all the same.
            return Ok(());
        }
        store.ended().await?;
        info!("stopped");
        Ok(())
    }
}
