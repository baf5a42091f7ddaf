//! Why a session ends.

use std::net::SocketAddr;
use std::time::Duration;

use crate::deploys::DeployRefusal;
use crate::frame::FrameError;
use crate::guard::{ClientIdError, FilterError, PublishRefusal};

/// Why a session has ended, or was not opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Ended {
    /// The client said goodbye: its will is discarded.
    #[error("disconnected")]
    Disconnected,
    /// The connection broke off.
    #[error("the connection broke off ({0})")]
    Lost(String),
    /// Nothing came within one and a half times the keep-alive.
    #[error("nothing came for {} s, one and a half times the keep-alive", .0.as_secs())]
    KeepAlive(Duration),
    /// No CONNECT came in time.
    #[error("no CONNECT came within {} s", .0.as_secs())]
    NoConnect(Duration),
    /// The client stopped reading or acknowledging.
    #[error("the client took nothing for {} s", .0.as_secs())]
    Stalled(Duration),
    /// The same client has connected again.
    #[error("taken over by a new connection from {0}")]
    TakenOver(SocketAddr),
    /// The broker stops.
    #[error("the broker stops")]
    Stopping,
    /// The broker cannot go on.
    #[error("the broker cannot go on")]
    BrokerFailed,
    /// The client broke the protocol.
    #[error("breach of MQTT 3.1.1: {0}")]
    Protocol(#[from] FrameError),
    /// The client id is not the certificate's.
    #[error("{0}")]
    ClientId(#[from] ClientIdError),
    /// An empty client id needs a clean session (MQTT 3.1.1, section 3.1.3.1).
    #[error("an empty client id with clean session 0")]
    NoClientId,
    /// The will is not allowed.
    #[error("the will is refused: {0}")]
    Will(#[source] PublishRefusal),
    /// A publish is not allowed.
    #[error("{0}")]
    Publish(#[from] PublishRefusal),
    /// A deployment is not accepted.
    #[error("{}", describe(.0))]
    Deploy(#[from] DeployRefusal),
    /// A filter is none.
    #[error("{0}")]
    Filter(#[from] FilterError),
}

fn describe(refusal: &DeployRefusal) -> String {
    match std::error::Error::source(refusal) {
        Some(source) => format!("{refusal}: {source}"),
        None => refusal.to_string(),
    }
}

impl Ended {
    /// Whether the will is discarded.
    pub(crate) const fn discards_will(&self) -> bool {
        matches!(self, Self::Disconnected)
    }

    /// Whether the client did something that an operator should look at.
    pub(crate) const fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Disconnected
                | Self::Lost(_)
                | Self::KeepAlive(_)
                | Self::TakenOver(_)
                | Self::Stopping
                | Self::BrokerFailed
        )
    }
}
