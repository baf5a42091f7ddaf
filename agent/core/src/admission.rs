//! Which signed deployments are let in: newer ones, within what their keys may do.

use std::cmp::Ordering;

use hoist_protocol::limits::SEQUENCE_AHEAD_MS;
use hoist_protocol::{Order, Reason, VerifiedDeployment, digest};

use crate::input::Moment;
use crate::ledger::Floor;

/// What a verified deployment is to a machine that holds a floor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    /// Newer than everything before.
    New(Floor),
    /// What the floor is already: QoS 1 and retained messages make this normal.
    Repeat,
    /// Not to be followed, nor to raise the floor.
    Refused { reason: Reason, message: String },
}

/// Compares a verified deployment with the floor.
pub(crate) fn admit(
    floor: Option<&Floor>,
    offered: &VerifiedDeployment,
    moment: &Moment,
) -> Admission {
    let deployment = offered.deployment();
    let order = deployment.order();
    let content = digest(&deployment.encode());
    match floor.map(|floor| order.cmp(&floor.order)) {
        Some(Ordering::Less) => return stale(order, floor),
        Some(Ordering::Equal) => {
            let held = floor.and_then(|floor| floor.content.as_ref());
            if held.is_none_or(|held| *held == content) {
                return Admission::Repeat;
            }
            return Admission::Refused {
                reason: Reason::Stale,
                message: format!(
                    "another deployment with the same order {order} came first; deploy again"
                ),
            };
        }
        Some(Ordering::Greater) | None => {}
    }
    let epoch = floor.map_or(0, |floor| floor.order.epoch);
    if order.epoch > epoch && !offered.may_raise_epoch() {
        return Admission::Refused {
            reason: Reason::EpochNotAllowed,
            message: format!(
                "it raises the epoch from {epoch} to {}, and none of its keys may (`epoch_keys` in agent.toml)",
                order.epoch
            ),
        };
    }
    let highest = moment.now.as_ms().saturating_add(SEQUENCE_AHEAD_MS);
    if moment.synchronised && order.sequence > highest {
        return Admission::Refused {
            reason: Reason::TooFarAhead,
            message: format!(
                "its sequence {} lies more than 24 h ahead of this machine's synchronised clock ({}); \
                 check the publisher's clock",
                order.sequence, moment.now
            ),
        };
    }
    Admission::New(Floor {
        order,
        content: Some(content),
    })
}

fn stale(order: Order, floor: Option<&Floor>) -> Admission {
    let held = floor
        .map(|floor| floor.order.to_string())
        .unwrap_or_default();
    Admission::Refused {
        reason: Reason::Stale,
        message: format!(
            "its order {order} is before {held}, which this machine has seen: a replay, or a deployment that \
             lost a race"
        ),
    }
}
