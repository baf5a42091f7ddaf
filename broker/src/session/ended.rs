//! Why a session ends.

use std::net::SocketAddr;
use std::time::Duration;

use hoist_certs::trust::Refusal;
use hoist_protocol::{Channel, Text};

use super::subscribing::NotGranted;
use crate::deploys::DeployRefusal;
use crate::edge::certificate_reason;
use crate::frame::FrameError;
use crate::guard::{ClientIdError, FilterError, PublishRefusal};
use crate::observe::Reason;
use crate::store::{Outcome, Unavailable};

/// Why a session has ended, or was not opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Ended {
    /// The client said goodbye: its will is discarded.
    #[error("disconnected")]
    Disconnected,
    /// The client said goodbye and wants its will published all the same.
    #[error("disconnected, with its will")]
    Parted,
    /// The connection broke off.
    #[error("the connection broke off ({0})")]
    Lost(String),
    /// Nothing came within one and a half times the keep-alive.
    #[error("nothing came for {} s, one and a half times the keep-alive", .0.as_secs())]
    KeepAlive(Duration),
    /// No CONNECT came in time.
    #[error("no CONNECT came within {} s", .0.as_secs())]
    NoConnect(Duration),
    /// A packet has begun and not ended.
    #[error("a packet was not complete within {} s", .0.as_secs())]
    SlowPacket(Duration),
    /// The certificate counts no more.
    #[error("{0}")]
    Certificate(Box<Refusal>),
    /// Two clients take each other's session over in a loop.
    #[error(
        "it takes its own session over again and again; two machines with one certificate do: give each its own"
    )]
    TakeoverLoop,
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
    #[error("breach of MQTT: {0}")]
    Protocol(#[from] FrameError),
    /// The client id is not the certificate's.
    #[error("{0}")]
    ClientId(#[from] ClientIdError),
    /// An empty client id needs a clean session (MQTT 3.1.1, section 3.1.3.1).
    #[error("an empty client id with clean session 0")]
    NoClientId,
    /// The client wants to prove who it is in another way than by its certificate.
    #[error("enhanced authentication is not served; the certificate says who somebody is")]
    Authentication,
    /// Too many sessions outlive their connections.
    #[error(
        "too many sessions are kept for clients that are away; use a clean session, or raise `{0}`"
    )]
    TooManySessions(&'static str),
    /// The will is not allowed.
    #[error("the will is refused: {0}")]
    Will(#[source] PublishRefusal),
    /// A publish is not allowed.
    #[error("{0}")]
    Publish(#[from] PublishRefusal),
    /// A deployment is not accepted.
    #[error("{}", describe(.0))]
    Deploy(#[from] DeployRefusal),
    /// Nothing can be stored now.
    #[error("{0}")]
    Unavailable(#[from] Unavailable),
    /// A filter is none.
    #[error("{0}")]
    Filter(#[from] FilterError),
    /// A subscription is not granted; nothing ends for that.
    #[error("may not subscribe to `{filter}`: {why}")]
    Subscription {
        /// To what.
        filter: Text<128>,
        /// Why not.
        why: NotGranted,
    },
}

fn describe(refusal: &DeployRefusal) -> String {
    match std::error::Error::source(refusal) {
        Some(source) => format!("{refusal}: {source}"),
        None => refusal.to_string(),
    }
}

impl Ended {
    /// What became of a publication, as its client sees it.
    pub(crate) fn of_outcome(outcome: Outcome) -> Result<(), Self> {
        match outcome {
            Outcome::Retained | Outcome::Repeat => Ok(()),
            Outcome::Refused(refusal) => Err(refusal.into()),
            Outcome::Unavailable(why) => Err(why.into()),
        }
    }

    /// Whether the will is discarded.
    pub(crate) const fn discards_will(&self) -> bool {
        matches!(self, Self::Disconnected)
    }

    /// Whether the session is thrown away, also when it was to outlive its connection.
    pub(crate) const fn discards_session(&self) -> bool {
        matches!(self, Self::Certificate(_) | Self::BrokerFailed)
    }

    /// Whether the client has ended it, or is gone: there is nobody to say goodbye to.
    pub(crate) const fn is_the_clients(&self) -> bool {
        matches!(self, Self::Disconnected | Self::Parted | Self::Lost(_))
    }

    /// What the client is refused for, when it did something that an operator should look at.
    pub(crate) const fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Disconnected
            | Self::Parted
            | Self::Lost(_)
            | Self::KeepAlive(_)
            | Self::TakenOver(_)
            | Self::Stopping
            | Self::BrokerFailed => return None,
            Self::NoConnect(_) => Reason::ConnectTimeout,
            Self::SlowPacket(_) | Self::Stalled(_) => Reason::Stalled,
            Self::Certificate(refusal) => certificate_reason(refusal),
            Self::TakeoverLoop => Reason::TakeoverLoop,
            Self::Protocol(FrameError::TooLarge(_)) => Reason::PacketSize,
            Self::Protocol(_) => Reason::Protocol,
            Self::ClientId(_) | Self::NoClientId => Reason::ClientId,
            Self::Authentication => Reason::Protocol,
            Self::TooManySessions(_) => Reason::Quota,
            Self::Will(_) => Reason::Will,
            Self::Publish(_) => Reason::Publish,
            Self::Deploy(refusal) => refusal.reason(),
            Self::Unavailable(why) => why.reason(),
            Self::Filter(_) => Reason::Subscribe,
            Self::Subscription { why, .. } => why.reason(),
        })
    }

    /// What was asked for, a topic or a filter, where a refusal has one.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::Will(refusal) | Self::Publish(refusal) => refusal.topic().to_owned(),
            Self::Deploy(
                DeployRefusal::Unverified { machine, .. }
                | DeployRefusal::Order { machine, .. }
                | DeployRefusal::Epoch { machine, .. },
            ) => machine.topic(Channel::Deploy).to_string(),
            Self::Subscription { filter, .. } => filter.as_str().to_owned(),
            _ => String::new(),
        }
    }

    /// Whether nothing that the client has left to say is believed, but that it is gone.
    pub(crate) const fn silences(&self) -> bool {
        matches!(self, Self::Certificate(_))
    }
}
