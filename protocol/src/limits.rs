//! Every limit on what crosses the wire, in one place.
//!
//! Each number is part of the protocol: a writer that exceeds one produces a message that no reader
//! accepts, so writers check against the same constants.

/// Longest agent, fleet or key name, in bytes.
pub const NAME_LEN: usize = 63;

/// Largest signed deployment on a `deploy` topic, in bytes.
///
/// 16 KiB is what every MQTT broker carries without configuration, NATS among them.
pub const DEPLOY_LEN: usize = 16 * 1024;

/// Largest status report, in bytes.
pub const STATUS_LEN: usize = 16 * 1024;

/// Largest history report, in bytes.
pub const HISTORY_LEN: usize = 16 * 1024;

/// Largest log line message, in bytes of JSON.
pub const LOG_LEN: usize = 8 * 1024;

/// Largest nonce on an `echo` topic, in bytes.
pub const ECHO_LEN: usize = 64;

/// Largest payload of any Hoist message, in bytes.
pub const PAYLOAD_LEN: usize = DEPLOY_LEN;

/// Most signatures in one envelope.
pub const SIGNATURES: usize = 8;

/// Most health checks in one deployment.
pub const HEALTH_CHECKS: usize = 32;

/// Most substituters, and most of their keys, in one deployment.
pub const SUBSTITUTERS: usize = 16;

/// Longest store path name after the hash, in bytes (`nix/src/libstore/path.hh`: `MaxPathLen`).
pub const STORE_PATH_NAME_LEN: usize = 211;

/// How far ahead of a synchronised clock an order's sequence may lie, in milliseconds: 24 h.
pub const SEQUENCE_AHEAD_MS: u64 = 24 * 60 * 60 * 1000;

/// How long a deployment is valid unless the publisher says otherwise, in milliseconds: 90 days.
pub const DEFAULT_EXPIRY_MS: u64 = 90 * 24 * 60 * 60 * 1000;

/// Shortest and longest time that a deployment may allow for its confirmation, in milliseconds.
pub const CONFIRM_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1_000..=60 * 60 * 1000;

/// How long a machine waits for its confirmation unless the publisher says otherwise, in milliseconds.
pub const DEFAULT_CONFIRM_TIMEOUT_MS: u64 = 60_000;

/// Shortest and longest time that a deployment may allow for its activation, in milliseconds.
pub const ACTIVATION_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1_000..=6 * 60 * 60 * 1000;

/// How long an activation may take unless the publisher says otherwise, in milliseconds.
pub const DEFAULT_ACTIVATION_TIMEOUT_MS: u64 = 15 * 60 * 1000;

/// Longest time within which a fleet may begin, in milliseconds: 24 h.
pub const SPREAD_MS: std::ops::RangeInclusive<u64> = 0..=24 * 60 * 60 * 1000;

/// Longest time after an activation in which failures of a health check do not count, in milliseconds.
pub const CHECK_GRACE_MS: std::ops::RangeInclusive<u64> = 0..=60 * 60 * 1000;

/// Shortest and longest wait between two tries of a health check, in milliseconds.
pub const CHECK_INTERVAL_MS: std::ops::RangeInclusive<u64> = 10..=10 * 60 * 1000;

/// The wait between two tries of a health check unless the publisher says otherwise, in milliseconds.
pub const DEFAULT_CHECK_INTERVAL_MS: u64 = 1_000;

/// Shortest and longest time that one try of a health check may take, in milliseconds.
pub const CHECK_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 10..=60 * 60 * 1000;

/// How long one try of a health check may take unless the publisher says otherwise, in milliseconds.
pub const DEFAULT_CHECK_TIMEOUT_MS: u64 = 60_000;

/// Most retries of one health check.
pub const CHECK_RETRIES: usize = 100;

/// How long a machine waits at the most for a broker that is away, counted from the end of the activation, in
/// milliseconds: the cap on what an outage of the broker adds to a confirm timeout.
pub const OUTAGE_CAP_MS: u64 = 15 * 60 * 1000;

/// Most packages that a status names as changed; beyond, only their number is told.
pub const CHANGED_PACKAGES: usize = 40;

/// Most tags of a machine.
pub const TAGS: usize = 16;

/// Most warnings in a status.
pub const WARNINGS: usize = 8;
