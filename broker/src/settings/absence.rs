//! What sessions that outlive their connections may cost, and how long a client may be silent.

use std::time::Duration;

/// How long sessions live without a connection, and how many of what is kept for them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Absence {
    /// Longest life of a session without a connection, whatever its client asks for; on MQTT 3.1.1 the life of
    /// every session that is not a clean one.
    pub expiry: Duration,
    /// Messages that wait for a client that is away; a session that misses more ends.
    pub queued: usize,
    /// Sessions that may outlive their connections, in all.
    pub kept: usize,
    /// And of one identity.
    pub kept_per_identity: usize,
    /// Longest keep-alive of a client of MQTT 5, which is told; none is not granted either. At most 65,535 s.
    pub keep_alive: Duration,
}

impl Default for Absence {
    fn default() -> Self {
        Self {
            expiry: Duration::from_secs(24 * 3600),
            queued: 10_000,
            kept: 10_000,
            kept_per_identity: 64,
            keep_alive: Duration::from_secs(20 * 60),
        }
    }
}
