//! What passes through the broker.

use std::sync::Arc;

use hoist_protocol::Topic;

/// How surely a message is delivered. QoS 2 is not served: a publish with it is refused, a subscription with it
/// is granted as QoS 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Qos {
    /// Perhaps (QoS 0).
    AtMostOnce,
    /// Until it is acknowledged (QoS 1).
    AtLeastOnce,
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
}

impl Message {
    /// Whether it says that the retained message is gone.
    pub(crate) fn is_clear(&self) -> bool {
        self.payload.is_empty()
    }
}
