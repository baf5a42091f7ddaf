//! What the ledger is made of.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hoist_protocol::{
    Action, Changes, Deployment, DeploymentId, FetchProgress, HistoryEntry, Kind, Order,
    ProfileName, Specialisation, State, StorePath, Target, Text, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::input::{BootId, Origin};

/// A deployment's message as it was received, 16 KiB at most.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signed(Vec<u8>);

impl Signed {
    /// Keeps a received message.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<String> for Signed {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl From<Signed> for String {
    fn from(signed: Signed) -> Self {
        STANDARD.encode(signed.0)
    }
}

/// The highest order that was verified: nothing at or below it is ever begun again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Floor {
    /// The order.
    pub order: Order,
    /// The digest of the deployment that had it; none when only its job was found.
    pub content: Option<Text<64>>,
}

/// A deployment that was admitted and has not ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Task {
    /// Which one. One that was ordered at the machine has the epoch and the sequence of the floor.
    pub order: Order,
    /// Who ordered it.
    #[serde(default)]
    pub origin: Origin,
    /// Its message, verified again before it is begun after a restart; none when only its job was found, and
    /// for what was ordered at the machine.
    pub signed: Option<Signed>,
    /// What was ordered at the machine; nobody signs that, and it never came over the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Box<Deployment>>,
    /// What ends as cancelled when this one takes its place.
    #[serde(default)]
    pub cancels: Option<DeploymentId>,
    /// When it was admitted.
    pub admitted_at: Timestamp,
    /// How often it was begun.
    pub attempts: u32,
    /// Its closure, once a rollback's goal is resolved.
    pub path: Option<StorePath>,
    /// How it is activated, as far as that is known.
    #[serde(default)]
    pub how: Option<How>,
    /// What is done with it.
    #[serde(default)]
    pub action: Option<Action>,
    /// The size of its closure in bytes, once it is fetched.
    pub closure_size: Option<u64>,
    /// How much was fetched.
    #[serde(default)]
    pub fetch: Option<FetchProgress>,
    /// What it changes against what ran before.
    #[serde(default)]
    pub changes: Option<Changes>,
}

impl Task {
    /// A deployment that was admitted just now.
    pub(crate) fn admitted(deployment: &Deployment, origin: Origin, now: Timestamp) -> Self {
        let target = deployment.target();
        Self {
            cancels: deployment.parts().cancels,
            how: Some(How::of(target)),
            action: Some(target.action),
            ..Self::unknown(deployment.order(), origin, now)
        }
    }

    /// One of which nothing but the order is known.
    pub(crate) const fn unknown(order: Order, origin: Origin, now: Timestamp) -> Self {
        Self {
            order,
            origin,
            signed: None,
            local: None,
            cancels: None,
            admitted_at: now,
            attempts: 0,
            path: None,
            how: None,
            action: None,
            closure_size: None,
            fetch: None,
            changes: None,
        }
    }
}

/// A deployment that ended well: what a rollback can name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Known {
    /// Which one.
    pub id: DeploymentId,
    /// What it brought.
    pub path: StorePath,
    /// What ran before it.
    pub previous: Option<StorePath>,
    /// How it was activated.
    #[serde(default)]
    pub how: How,
}

/// What has to be known about a closure, besides its path, to activate it again in the same way.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct How {
    /// Its kind.
    #[serde(default)]
    pub kind: Kind,
    /// Its profile, where that is not the machine's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileName>,
    /// The specialisation that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specialisation: Option<Specialisation>,
}

impl How {
    /// What a target says about it.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        Self {
            kind: target.kind.clone(),
            profile: target.profile.clone(),
            specialisation: target.specialisation.clone(),
        }
    }

    /// Makes a target that says nothing about it go the same way.
    pub(crate) fn complete(&self, target: &mut Target) {
        if How::of(target) == Self::default() {
            target.kind = self.kind.clone();
            target.profile = self.profile.clone();
            target.specialisation = self.specialisation.clone();
        }
    }
}

/// How a deployment ended, and whether the broker has acknowledged that.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// How it ended.
    pub entry: HistoryEntry,
    /// Whether the broker has acknowledged a history that holds it.
    pub delivered: bool,
}

/// An outcome that a history tells. What was staged gets another one later, and that has to be told too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Told {
    /// Whose outcome.
    pub id: DeploymentId,
    /// Which one.
    pub state: State,
}

impl Record {
    /// What a history tells that holds this.
    pub(super) const fn told(&self) -> Told {
        Told {
            id: self.entry.id,
            state: self.entry.state,
        }
    }
}

/// A deployment that has ended, with all that the status says about it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ended {
    /// How it ended.
    pub entry: HistoryEntry,
    /// Why, for people.
    pub message: Text<1024>,
    /// How often it was begun.
    pub attempts: u32,
    /// How it was activated, as far as that is known.
    #[serde(default)]
    pub how: Option<How>,
    /// What was done with it.
    #[serde(default)]
    pub action: Option<Action>,
    /// How much was fetched.
    #[serde(default)]
    pub fetch: Option<FetchProgress>,
    /// What it changed against what ran before, with the packages by name.
    #[serde(default)]
    pub changes: Option<Changes>,
    /// How many lines it logged, when it came to an activation.
    pub log_lines: Option<u64>,
    /// The last [`LOG_TAIL`](super::LOG_TAIL) of them.
    pub log_tail: Vec<Text<256>>,
}

impl Ended {
    /// Which deployment it is.
    #[must_use]
    pub const fn order(&self) -> Order {
        Order {
            epoch: self.entry.epoch,
            sequence: self.entry.sequence,
            id: self.entry.id,
        }
    }

    /// Whether `newer` tells about a newer deployment than this, or anew about the same.
    pub(super) fn gives_way_to(&self, newer: &Self) -> bool {
        let place = |ended: &Self| (ended.entry.epoch, ended.entry.sequence);
        match place(self).cmp(&place(newer)) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            // What is ordered at the machine takes the place of the newest deployment, in the order in which
            // it comes; between two publishers the id decides.
            std::cmp::Ordering::Equal => {
                self.entry.local || newer.entry.local || self.entry.id <= newer.entry.id
            }
        }
    }
}

/// A deployment that the next boot brings.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Staged {
    /// What is told about it so far.
    pub ended: Ended,
    /// What is to boot.
    pub path: StorePath,
    /// The boot in which it was staged: another one decides how it ends.
    pub boot_id: BootId,
}

impl Staged {
    /// Which deployment it is.
    #[must_use]
    pub const fn id(&self) -> DeploymentId {
        self.ended.entry.id
    }
}

/// Somebody at the machine wants it left as it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hold {
    /// Since when, in milliseconds since 1970.
    pub since: Timestamp,
    /// When it ends by itself, in milliseconds since 1970.
    pub until: Option<Timestamp>,
    /// Why.
    #[serde(default)]
    pub reason: Text<256>,
}
