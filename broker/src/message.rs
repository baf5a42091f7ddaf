//! What passes through the broker.

use std::sync::Arc;

use hoist_protocol::Topic;

/// How surely a message is delivered.
// The names are the standard's.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Qos {
    /// Perhaps (QoS 0).
    AtMostOnce,
    /// Until it is acknowledged, perhaps twice (QoS 1).
    AtLeastOnce,
    /// Until it is acknowledged, and once (QoS 2).
    ExactlyOnce,
}

impl Qos {
    /// The number that it has on the wire, on the bus and on disk.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::AtMostOnce => 0,
            Self::AtLeastOnce => 1,
            Self::ExactlyOnce => 2,
        }
    }

    /// The one with that number.
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// The session that a message comes from: no other session of this process has it. Zero is the broker itself,
/// and what was stored before it started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Author(pub(crate) u64);

/// What a publisher on MQTT 5 says beside the payload, as it is passed on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Extras {
    /// Payload format, content type, response topic, correlation data and user properties, as they stand in a
    /// PUBLISH (MQTT 5, section 2.2.2), without their length; checked, and at most [`EXTRAS_LEN`] bytes.
    pub(crate) properties: Box<[u8]>,
    /// From when on the message is no longer delivered, in milliseconds since 1970.
    pub(crate) expires_at_ms: Option<u64>,
}

/// Longest properties of one message, in bytes.
pub(crate) const EXTRAS_LEN: usize = 4096;

impl Extras {
    /// As bytes, for the bus and the disk: when it expires (0 for never) in eight bytes, the properties' length
    /// in two, the properties.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let len = u16::try_from(self.properties.len()).expect("at most EXTRAS_LEN bytes");
        out.extend_from_slice(&self.expires_at_ms.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&self.properties);
    }

    /// What was encoded, and the bytes after it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (expires, rest) = bytes.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (properties, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        let expires = u64::from_le_bytes(*expires);
        let extras = Self {
            properties: Box::from(properties),
            expires_at_ms: (expires > 0).then_some(expires),
        };
        Some((extras, rest))
    }
}

/// The number of a change of a retained message; later changes have higher ones. Starts anew with the process.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Commit(u64);

impl Commit {
    /// The commit numbered `number`.
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    /// The one after it.
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The time by which messages expire, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Before 1970, nothing that was published since has expired.
    now.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A message that the guard has let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    /// Where it was published.
    pub topic: Topic,
    /// What it says; empty when it clears a retained message.
    pub payload: Arc<[u8]>,
    /// How surely its publisher wanted it delivered.
    pub qos: Qos,
    /// Its number, when it is a retained message.
    pub commit: Option<Commit>,
    /// Whose it is.
    pub author: Author,
    /// What else its publisher said.
    pub extras: Option<Arc<Extras>>,
}

impl Message {
    /// For how long it is still of use at `now`, in seconds: zero when it has expired, none when it never does.
    pub(crate) fn expiry(&self, now_ms: u64) -> Option<u32> {
        let expires = self.extras.as_ref()?.expires_at_ms?;
        let left = expires.saturating_sub(now_ms).div_ceil(1000);
        Some(u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// Whether it says that the retained message is gone.
    pub(crate) fn is_clear(&self) -> bool {
        self.payload.is_empty()
    }
}
