//! The limits, each with the number it has when nobody sets it.

use std::time::Duration;

use super::{Absence, Rate};

/// Clients that watch all machines of their fleets, all fleets together. No setting: the router has room for them from its
/// start.
pub(crate) const WATCHERS: usize = 1024;

/// How many of what may be at once, and how often.
///
/// Packet sizes are no settings: they follow from the protocol's largest payloads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Connections after their handshake.
    pub connections: usize,
    /// Connections of one identity after their handshake; of an agent 4 at most.
    pub connections_per_identity: usize,
    /// Connections from one address, handshakes among them. Of IPv6 a /64 counts as one address.
    pub connections_per_address: usize,
    /// TLS handshakes under way.
    pub handshakes: usize,
    /// TLS handshakes under way from one address.
    pub handshakes_per_address: usize,
    /// Bytes that a client may send before its handshake is done.
    pub handshake_bytes: usize,
    /// New connections from one address.
    pub connect_rate: Rate,
    /// How often one client may take over its own session.
    pub takeover_rate: Rate,
    /// Publishes of one agent, all its connections together.
    pub agent_publishes: Rate,
    /// Bytes that one agent may send, all its connections together.
    pub agent_bytes: Rate,
    /// Publishes of one publisher, monitor or admin, all its connections together.
    pub publishes: Rate,
    /// Bytes that one publisher, monitor or admin may send, all its connections together.
    pub bytes: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_identity: 64,
            connections_per_address: 20_000,
            handshakes: 8192,
            handshakes_per_address: 4096,
            handshake_bytes: 16 * 1024,
            connect_rate: Rate::a_second(500, 20_000),
            takeover_rate: Rate::a_minute(30, 60),
            agent_publishes: Rate::a_second(100, 2000),
            agent_bytes: Rate::a_second(1024 * 1024, 8 * 1024 * 1024),
            publishes: Rate::a_second(5000, 50_000),
            bytes: Rate::a_second(32 * 1024 * 1024, 512 * 1024 * 1024),
        }
    }
}

/// What one session may have open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SessionLimits {
    /// Publications that wait for the store; more are read when these are settled.
    pub unsettled: usize,
    /// Messages that the client has not acknowledged; more are sent when these are.
    pub inflight: usize,
    /// Subscriptions; more are refused.
    pub subscriptions: usize,
    /// Subscriptions with a wildcard for the machine; more are refused.
    pub wild_subscriptions: usize,
    /// What it may have open without a connection, and how long a client may be silent.
    pub absence: Absence,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            unsettled: 64,
            inflight: 256,
            subscriptions: 4096,
            wild_subscriptions: 32,
            absence: Absence::default(),
        }
    }
}

/// How long what may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// A TLS handshake.
    pub handshake: Duration,
    /// The time from there to a CONNECT.
    pub connect: Duration,
    /// The time from a packet's first byte to its last.
    pub packet: Duration,
    /// The time in which a client takes nothing of what waits for it.
    pub stalled: Duration,
    /// The end of all connections when the broker stops.
    pub stop: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            packet: Duration::from_secs(30),
            stalled: Duration::from_secs(30),
            stop: Duration::from_secs(5),
        }
    }
}
