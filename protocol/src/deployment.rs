//! The desired state of one machine: what a deployment says.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::order::{DeploymentId, Order};
use crate::target::{Target, TargetError};
use crate::text::Text;
use crate::time::Timestamp;
use crate::topic::Machine;

/// The one format of a deployment's bytes so far; an agent's status lists those that it reads.
pub const FORMAT: u8 = 1;

/// Where a deployment comes from, for people; nothing is decided by it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Provenance {
    /// The revision of the source.
    pub revision: Option<Text<128>>,
    /// Where the CI run can be seen.
    pub run_url: Option<Text<512>>,
    /// Who started it.
    pub actor: Option<Text<128>>,
    /// What it is for.
    pub message: Option<Text<512>>,
    /// The rollout that it is part of.
    pub rollout: Option<Rollout>,
}

/// Where a deployment stands in a rollout, which brings machine after machine to the same.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rollout {
    /// What the rollout is called: a UUID, version 7 as Hoist makes them.
    pub id: Uuid,
    /// In which batch, counted from 1.
    pub batch: u16,
    /// Of how many.
    pub batches: u16,
}

/// Whether a deployment holds its machine: then it leaves everything as it is, also what it was about to begin.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Held {
    /// It does not.
    #[default]
    No,
    /// Until a deployment comes that does not.
    UntilReleased,
    /// Until then, by the machine's clock; afterwards its target is carried out.
    Until(Timestamp),
}

/// The parts of a [`Deployment`], not yet checked against each other.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeploymentParts {
    /// Whom it is for.
    pub machine: Machine,
    /// Where it stands among the machine's deployments.
    pub order: Order,
    /// When it was signed.
    pub issued: Timestamp,
    /// When it ends: a machine that returns later does not carry it out.
    pub expires: Timestamp,
    /// What to run.
    pub target: Target,
    /// Whether the machine leaves everything as it is.
    pub held: Held,
    /// A deployment that ends as cancelled when it was not activated yet; the target is what stands instead.
    pub cancels: Option<DeploymentId>,
    /// A deployment whose target this one only says again, with another expiry or hold. Where that one has failed,
    /// this one is not tried; where it is unknown, or did not come to its end, this one is carried out.
    pub renews: Option<DeploymentId>,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// Why parts make no deployment.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeploymentError {
    /// It would be over before it starts.
    #[error("the deployment expires at {expires}, not after it was issued at {issued}")]
    Expiry {
        /// When it was issued.
        issued: Timestamp,
        /// When it would end.
        expires: Timestamp,
    },
    /// What it says to run cannot be followed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// It would cancel itself.
    #[error("the deployment cancels itself")]
    CancelsItself,
    /// It would say itself again.
    #[error("the deployment renews itself")]
    RenewsItself,
    /// It would be over before the machine is let go.
    #[error(
        "the deployment holds the machine until {until}, and expires at {expires}, before that"
    )]
    Held {
        /// How long it holds.
        until: Timestamp,
        /// When it would end.
        expires: Timestamp,
    },
    /// Its batch is none of its rollout's.
    #[error("the deployment is in batch {batch} of a rollout of {batches}")]
    Batch {
        /// The batch, counted from 1.
        batch: u16,
        /// How many there are.
        batches: u16,
    },
}

/// The whole desired state of one machine.
///
/// A value that exists holds together: it expires after it was issued, and its lists and times are
/// within [`limits`](crate::limits). Whether anybody trusted said so is another question: see
/// [`VerifiedDeployment`](crate::VerifiedDeployment).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "DeploymentParts", into = "DeploymentParts")]
pub struct Deployment(DeploymentParts);

impl Deployment {
    /// Checks the parts against each other.
    ///
    /// # Errors
    /// [`DeploymentError`] says what does not hold.
    pub fn new(parts: DeploymentParts) -> Result<Self, DeploymentError> {
        let DeploymentParts {
            issued,
            expires,
            target,
            ..
        } = &parts;
        if expires <= issued {
            return Err(DeploymentError::Expiry {
                issued: *issued,
                expires: *expires,
            });
        }
        if parts.cancels == Some(parts.order.id) {
            return Err(DeploymentError::CancelsItself);
        }
        if parts.renews == Some(parts.order.id) {
            return Err(DeploymentError::RenewsItself);
        }
        if let Held::Until(until) = parts.held
            && until >= *expires
        {
            return Err(DeploymentError::Held {
                until,
                expires: *expires,
            });
        }
        if let Some(Rollout { batch, batches, .. }) = parts.provenance.rollout
            && !(1..=batches).contains(&batch)
        {
            return Err(DeploymentError::Batch { batch, batches });
        }
        target.check()?;
        Ok(Self(parts))
    }

    /// Everything it says.
    #[must_use]
    pub const fn parts(&self) -> &DeploymentParts {
        &self.0
    }

    /// Whom it is for.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.0.machine
    }

    /// What it is called.
    #[must_use]
    pub const fn id(&self) -> DeploymentId {
        self.0.order.id
    }

    /// Where it stands among the machine's deployments.
    #[must_use]
    pub const fn order(&self) -> Order {
        self.0.order
    }

    /// What to run.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.0.target
    }

    /// When it ends.
    #[must_use]
    pub const fn expires(&self) -> Timestamp {
        self.0.expires
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.0).expect("plain data always has a postcard form")
    }

    /// Reads the signed bytes. [`TrustedKeys::verify`](crate::TrustedKeys::verify) calls this after the
    /// signatures held, and [`Draft::open`](crate::Draft::open) to show somebody what is to be signed.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (deployment, rest) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|_| DecodeError::Malformed)?;
        if !rest.is_empty() {
            return Err(DecodeError::TrailingBytes(rest.len()));
        }
        Ok(deployment)
    }
}

impl TryFrom<DeploymentParts> for Deployment {
    type Error = DeploymentError;

    fn try_from(parts: DeploymentParts) -> Result<Self, DeploymentError> {
        Self::new(parts)
    }
}

impl From<Deployment> for DeploymentParts {
    fn from(deployment: Deployment) -> Self {
        deployment.0
    }
}

/// Why bytes are no deployment or envelope.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// They are something else, or values in them are not valid.
    #[error("the bytes are malformed, or of a format this version does not read")]
    Malformed,
    /// There is more after the end.
    #[error("{0} bytes follow after the end")]
    TrailingBytes(usize),
    /// The format version is unknown.
    #[error("format version {0} is unknown here; this program reads version {FORMAT}")]
    Format(u8),
    /// There is more than any message may have.
    #[error("{found} bytes are more than the {max} allowed")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
}
