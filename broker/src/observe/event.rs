//! What the audit log tells: who, from where, what, when, and what was decided.

use std::net::SocketAddr;
use std::sync::Arc;

use hoist_protocol::{Machine, Order, Text};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::metrics::Label;
use super::reason::Reason;
use crate::guard::Peer;

/// Who did something, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The other end of the connection.
    pub(crate) address: SocketAddr,
    /// From the certificate; none before the handshake is done.
    pub(crate) peer: Option<Arc<Peer>>,
    /// None before the CONNECT is accepted.
    pub(crate) client_id: Option<Text<64>>,
}

impl Origin {
    /// Somebody before the handshake is done.
    pub(crate) const fn unknown(address: SocketAddr) -> Self {
        Self {
            address,
            peer: None,
            client_id: None,
        }
    }

    /// The holder of a certificate.
    pub(crate) const fn of(address: SocketAddr, peer: Arc<Peer>) -> Self {
        Self {
            address,
            peer: Some(peer),
            client_id: None,
        }
    }

    /// The same with the client id of its session.
    pub(crate) fn client_id(self, client_id: &str) -> Self {
        Self {
            client_id: Some(Text::lossy(client_id)),
            ..self
        }
    }
}

/// What became of a deploy publish.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Decision {
    /// It is retained, and the acknowledgement follows once it is durable. In the log before that: a crash
    /// between leaves a line without a retained message, never the other way.
    Accepted,
    /// The very same was retained already.
    Repeat,
    /// An admin has cleared what was retained.
    Cleared,
    /// It may not take the place of what is retained.
    Refused(Reason),
    /// It was accepted, and could then not be made durable; its publisher is not acknowledged.
    Failed,
}

impl Label for Decision {
    const KEY: &'static str = "decision";
    const ALL: &'static [Self] = &[
        Self::Accepted,
        Self::Repeat,
        Self::Cleared,
        // One series, whatever the reason: those are counted as refusals.
        Self::Refused(Reason::DeployOrder),
        Self::Failed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Repeat => "repeat",
            Self::Cleared => "cleared",
            Self::Refused(_) => "refused",
            Self::Failed => "failed",
        }
    }

    fn is(self, other: Self) -> bool {
        self.as_str() == other.as_str()
    }
}

/// A deploy publish that has reached the store.
#[derive(Clone, Debug)]
pub(crate) struct Deploy {
    pub(crate) machine: Machine,
    /// None when nobody is known.
    pub(crate) origin: Option<Arc<Origin>>,
    /// Of a verified deployment.
    pub(crate) order: Option<Order>,
    /// Of the payload.
    pub(crate) sha256: [u8; 32],
    pub(crate) len: usize,
    pub(crate) decision: Decision,
}

impl Deploy {
    pub(crate) fn digest(payload: &[u8]) -> [u8; 32] {
        Sha256::digest(payload).into()
    }
}

/// A refusal, ready to be written.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) origin: Origin,
    time: Timestamp,
    reason: Reason,
    what: Text<256>,
    why: Text<512>,
}

impl Refusal {
    pub(super) fn new(origin: &Origin, reason: Reason, what: &str, why: &str) -> Self {
        Self {
            origin: origin.clone(),
            time: Timestamp::now(),
            reason,
            what: Text::lossy(what),
            why: Text::lossy(why),
        }
    }
}

/// A line of the log. What is not known is left out.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    #[serde(serialize_with = "millis")]
    time: Timestamp,
    event: &'static str,
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deployment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

impl<'a> Line<'a> {
    fn new(event: &'static str, decision: &'static str, time: Timestamp) -> Self {
        Self {
            time,
            event,
            decision,
            reason: None,
            address: None,
            role: None,
            fleet: None,
            name: None,
            client_id: None,
            machine: None,
            deployment: None,
            epoch: None,
            sequence: None,
            sha256: None,
            bytes: None,
            what: None,
            message: None,
            count: None,
        }
    }

    fn by(mut self, origin: &'a Origin) -> Self {
        self.address = Some(origin.address);
        if let Some(peer) = &origin.peer {
            self.role = Some(peer.role.as_str());
            self.fleet = Some(peer.fleet.as_str());
            self.name = Some(peer.name.as_str());
        }
        self.client_id = origin.client_id.as_ref().map(Text::as_str);
        self
    }

    /// That a deployment was published.
    pub(super) fn of_deploy(deploy: &'a Deploy, time: Timestamp) -> Self {
        let mut line = Self::new("deploy", deploy.decision.as_str(), time);
        if let Some(origin) = &deploy.origin {
            line = line.by(origin);
        }
        if let Decision::Refused(reason) = deploy.decision {
            line.reason = Some(reason.as_str());
        }
        line.machine = Some(deploy.machine.to_string());
        if let Some(order) = &deploy.order {
            line.deployment = Some(order.id.to_string());
            line.epoch = Some(order.epoch);
            line.sequence = Some(order.sequence);
        }
        if deploy.len > 0 {
            let hex = deploy.sha256.iter().map(|byte| format!("{byte:02x}"));
            line.sha256 = Some(hex.collect());
        }
        line.bytes = Some(deploy.len);
        line
    }

    /// That something was refused.
    pub(super) fn of_refusal(refusal: &'a Refusal) -> Self {
        let said = |text: &'a str| (!text.is_empty()).then_some(text);
        let mut line = Self::new("refusal", "refused", refusal.time).by(&refusal.origin);
        line.reason = Some(refusal.reason.as_str());
        line.what = said(refusal.what.as_str());
        line.message = said(refusal.why.as_str());
        line
    }

    /// That refusals were too many to be told one by one.
    pub(super) fn of_suppressed(count: u64, time: Timestamp) -> Self {
        let mut line = Self::new("suppressed", "refused", time);
        line.count = Some(count);
        line
    }

    /// Appends it, with its line feed.
    pub(super) fn write(&self, lines: &mut Vec<u8>) {
        // Strings and numbers only, into memory: there is nothing that could fail.
        serde_json::to_writer(&mut *lines, self).expect("a line is JSON");
        lines.push(b'\n');
    }
}

/// RFC 3339 in UTC with milliseconds, always of the same width.
fn millis<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}
