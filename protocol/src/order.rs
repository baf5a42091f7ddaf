//! Which deployment is newer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::SEQUENCE_AHEAD_MS;
use crate::time::Timestamp;

/// What a deployment is called: a UUID, version 7 as Hoist makes them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct DeploymentId(Uuid);

impl DeploymentId {
    /// The deployment called `uuid`.
    #[must_use]
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }

    /// The last 8 hexadecimal digits, enough for a person to tell deployments apart.
    #[must_use]
    pub fn short(self) -> String {
        let text = self.0.simple().to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.hyphenated().to_string())
    }
}

/// A text that is no deployment id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no deployment id; an id is a UUID such as 0196f3a0-7c3e-7b5a-9d5e-0123456789ab")]
pub struct DeploymentIdError(String);

impl FromStr for DeploymentId {
    type Err = DeploymentIdError;

    fn from_str(text: &str) -> Result<Self, DeploymentIdError> {
        text.parse().map(Self).map_err(|_| {
            DeploymentIdError(text.chars().take(60).flat_map(char::escape_debug).collect())
        })
    }
}

/// Where a deployment stands among all deployments of a machine; compared as (epoch, sequence, id).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Order {
    /// Raised only by keys that have the right to, to get out of a sequence that went too far.
    pub epoch: u32,
    /// Milliseconds since 1970 when nothing forced it higher.
    pub sequence: u64,
    /// Decides between two publishers that chose the same sequence.
    pub id: DeploymentId,
}

/// Why no order can be chosen above what is known: what is known cannot be right.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SequenceError {
    /// A known sequence lies so far ahead that following it would leave no room.
    #[error(
        "the {origin} holds sequence {sequence}, more than 24 h ahead of this clock; \
         check the clock, or raise the epoch with a key that may"
    )]
    TooFarAhead {
        /// Where the sequence was found.
        origin: &'static str,
        /// The sequence found.
        sequence: u64,
    },
    /// A status, which nobody signs, states an epoch that no signed deployment on the broker comes near.
    #[error(
        "the machine's status states epoch {stated}, but the newest signed deployment has epoch {signed}; \
         if the broker has lost what was newer, raise the epoch with a key that may"
    )]
    EpochUnsupported {
        /// The epoch that the status states.
        stated: u32,
        /// The epoch of the retained deployment, 0 when there is none.
        signed: u32,
    },
}

/// What a publisher has read of a machine's orders, both from places that may lie.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownOrders {
    /// (epoch, sequence) of the deployment that is retained now, when its signature held.
    pub retained: Option<(u32, u64)>,
    /// (epoch, sequence) of the floor that the machine's status states.
    pub floor: Option<(u32, u64)>,
}

impl Order {
    /// The order of the next deployment: above everything known, and the time if that is higher.
    ///
    /// # Errors
    /// [`SequenceError`] when a known sequence lies more than 24 h ahead of `now`, since agents with a
    /// synchronised clock would refuse what comes after it; and when the floor's epoch is more than one above
    /// the signed one: whoever can fake a status could otherwise use up the epochs with one message.
    pub fn next(
        now: Timestamp,
        known: KnownOrders,
        id: DeploymentId,
    ) -> Result<Self, SequenceError> {
        let signed = known.retained.map_or(0, |(epoch, _)| epoch);
        let stated = known.floor.map_or(0, |(epoch, _)| epoch);
        if stated > signed.saturating_add(1) {
            return Err(SequenceError::EpochUnsupported { stated, signed });
        }
        let epoch = signed.max(stated);
        let mut sequence = now.as_ms();
        for (origin, order) in [
            ("retained deployment", known.retained),
            ("machine's status", known.floor),
        ] {
            let Some((_, seen)) = order.filter(|(of, _)| *of == epoch) else {
                continue;
            };
            if seen >= now.as_ms().saturating_add(SEQUENCE_AHEAD_MS) {
                return Err(SequenceError::TooFarAhead {
                    origin,
                    sequence: seen,
                });
            }
            sequence = sequence.max(seen + 1);
        }
        Ok(Self {
            epoch,
            sequence,
            id,
        })
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} ({})", self.epoch, self.sequence, self.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_000);
    const ID: DeploymentId = DeploymentId::new(Uuid::from_u128(7));

    #[test]
    fn a_clock_that_is_behind_still_makes_a_newer_order() {
        let known = KnownOrders {
            retained: Some((0, NOW.as_ms() + 50)),
            floor: Some((0, NOW.as_ms() + 99)),
        };
        assert_eq!(
            Order::next(NOW, known, ID).unwrap().sequence,
            NOW.as_ms() + 100
        );
    }

    #[test]
    fn a_status_that_lies_cannot_exhaust_the_sequence() {
        let known = KnownOrders {
            retained: None,
            floor: Some((0, u64::MAX)),
        };
        assert!(Order::next(NOW, known, ID).is_err());
    }

    #[test]
    fn a_status_that_lies_cannot_exhaust_the_epochs() {
        let known = KnownOrders {
            retained: Some((1, 5)),
            floor: Some((u32::MAX, 0)),
        };
        let error = Order::next(NOW, known, ID).unwrap_err();
        assert_eq!(
            error,
            SequenceError::EpochUnsupported {
                stated: u32::MAX,
                signed: 1
            }
        );
    }

    proptest! {
        #[test]
        fn the_next_order_is_above_all_that_is_known(
            retained in proptest::option::of((0..3_u32, 0..NOW.as_ms() + SEQUENCE_AHEAD_MS)),
            floor in proptest::option::of((0..2_u32, 0..NOW.as_ms() + SEQUENCE_AHEAD_MS)),
        ) {
            let next = Order::next(NOW, KnownOrders { retained, floor }, ID).unwrap();
            for (epoch, sequence) in retained.into_iter().chain(floor) {
                prop_assert!((next.epoch, next.sequence) > (epoch, sequence));
            }
        }
    }
}
