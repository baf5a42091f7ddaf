//! The desired state of one machine: what a deployment says.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::order::{DeploymentId, Order};
use crate::store_path::{StorePath, System};
use crate::text::Text;
use crate::time::Timestamp;
use crate::topic::Machine;

/// The one format of a deployment's bytes so far; an agent's status lists those that it reads.
pub const FORMAT: u8 = 1;

/// What a machine shall run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Goal {
    /// This closure.
    Closure(StorePath),
    /// What the machine itself once verified and ran, by name: never a path that came over the wire.
    Rollback(RollbackTo),
}

/// Which of its former systems a machine goes back to; it resolves this in its own ledger.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RollbackTo {
    /// The one that this deployment brought.
    Deployment(DeploymentId),
    /// The one that ran before this deployment was activated.
    Before(DeploymentId),
}

/// How a closure is activated.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The machine finds out by the markers in the closure.
    #[default]
    Auto,
    /// A NixOS system.
    Nixos,
    /// A plain profile: it is set to the closure, and nothing runs.
    Profile,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Nixos => "nixos",
            Self::Profile => "profile",
        })
    }
}

/// What must hold on the machine after the activation; if it does not, the machine rolls back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum HealthCheck {
    /// An executable file of the store for each system; any exit code but 0 fails.
    ///
    /// A machine whose system is not in the map has no such check.
    Program(BTreeMap<System, StorePath>),
}

/// A text that is no binary cache a machine could be told to add.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SubstituterError {
    /// The URL has another scheme or holds white space.
    #[error(
        "`{0}` is no binary cache URL; it must start with https://, http://, s3:// or file:// and hold no white space"
    )]
    Url(String),
    /// The key is not a Nix cache key.
    #[error(
        "`{0}` is no cache key; it is written `NAME:base64`, as `nix-store --generate-binary-cache-key` writes it"
    )]
    Key(String),
    /// The key is a Hoist signing key.
    #[error("`{0}` is a Hoist signing key, not the key of a binary cache")]
    SigningKey(String),
}

/// The URL of a binary cache, 512 bytes at most, without white space.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubstituterUrl(String);

/// The public key of a binary cache in Nix's form, `NAME:base64`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheKey(String);

fn shown(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

impl SubstituterUrl {
    /// Checks and takes `text`. Nix splits lists at white space, so none may be in it.
    ///
    /// # Errors
    /// [`SubstituterError::Url`]
    pub fn new(text: impl Into<String>) -> Result<Self, SubstituterError> {
        let text = text.into();
        let known = ["https://", "http://", "s3://", "file://"]
            .iter()
            .any(|s| text.starts_with(s));
        if !known || text.len() > 512 || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(SubstituterError::Url(shown(&text)));
        }
        Ok(Self(text))
    }

    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CacheKey {
    /// Checks and takes `text`: a name, a colon, and the base64 of 32 bytes.
    ///
    /// # Errors
    /// [`SubstituterError::Key`] or [`SubstituterError::SigningKey`]
    pub fn new(text: impl Into<String>) -> Result<Self, SubstituterError> {
        use base64::Engine as _;
        let text = text.into();
        if text.starts_with(crate::key::PREFIX) {
            return Err(SubstituterError::SigningKey(shown(&text)));
        }
        let decoded = |base64: &str| {
            base64::engine::general_purpose::STANDARD
                .decode(base64)
                .ok()
        };
        match text.split_once(':') {
            Some((name, key))
                if !name.is_empty()
                    && text.len() <= 256
                    && name.chars().all(|c| c.is_ascii_graphic())
                    && decoded(key).is_some_and(|key| key.len() == 32) =>
            {
                Ok(Self(text))
            }
            _ => Err(SubstituterError::Key(shown(&text))),
        }
    }

    /// The key as Nix writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_conversions {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = SubstituterError;

            fn try_from(text: String) -> Result<Self, SubstituterError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = SubstituterError;

            fn from_str(text: &str) -> Result<Self, SubstituterError> {
                Self::new(text)
            }
        }
    )*};
}
text_conversions!(SubstituterUrl, CacheKey);

/// What to run, and how to get there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Target {
    /// What the machine shall run.
    pub goal: Goal,
    /// How it is activated.
    pub kind: Kind,
    /// What must hold afterwards.
    pub health_checks: Vec<HealthCheck>,
    /// How long the activation itself may take, in milliseconds.
    pub activation_timeout_ms: u64,
    /// How long health checks and the way back to the broker may take, in milliseconds.
    pub confirm_timeout_ms: u64,
    /// Binary caches to use besides the machine's own.
    pub substituters: Vec<SubstituterUrl>,
    /// Keys of binary caches to trust besides the machine's own.
    pub substituter_keys: Vec<CacheKey>,
}

impl Target {
    /// `goal` with everything else as it is by default.
    #[must_use]
    pub const fn new(goal: Goal) -> Self {
        Self {
            goal,
            kind: Kind::Auto,
            health_checks: Vec::new(),
            activation_timeout_ms: limits::DEFAULT_ACTIVATION_TIMEOUT_MS,
            confirm_timeout_ms: limits::DEFAULT_CONFIRM_TIMEOUT_MS,
            substituters: Vec::new(),
            substituter_keys: Vec::new(),
        }
    }

    /// How long the activation itself may take.
    #[must_use]
    pub const fn activation_timeout(&self) -> Duration {
        Duration::from_millis(self.activation_timeout_ms)
    }

    /// How long health checks and the way back to the broker may take.
    #[must_use]
    pub const fn confirm_timeout(&self) -> Duration {
        Duration::from_millis(self.confirm_timeout_ms)
    }
}

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
    /// There is too much of something.
    #[error("the deployment has {found} {what}; at most {max} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A time limit lies outside of what is allowed.
    #[error("the {what} timeout of {found} ms is outside of {min} to {max} ms")]
    Timeout {
        /// Which timeout.
        what: &'static str,
        /// Its length in ms.
        found: u64,
        /// The shortest allowed, in ms.
        min: u64,
        /// The longest allowed, in ms.
        max: u64,
    },
    /// A rollback that needs a binary cache is none: the machine has what it ran.
    #[error("a rollback takes no substituters: the machine has what it ran")]
    RollbackSubstituters,
}

/// The whole desired state of one machine.
///
/// A value that exists holds together: it expires after it was issued, and its lists and times are
/// within [`limits`]. Whether anybody trusted said so is another question: see
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
        for (what, found, max) in [
            (
                "health checks",
                target.health_checks.len(),
                limits::HEALTH_CHECKS,
            ),
            (
                "substituters",
                target.substituters.len(),
                limits::SUBSTITUTERS,
            ),
            (
                "substituter keys",
                target.substituter_keys.len(),
                limits::SUBSTITUTERS,
            ),
        ] {
            if found > max {
                return Err(DeploymentError::TooMany { what, found, max });
            }
        }
        for (what, found, range) in [
            (
                "activation",
                target.activation_timeout_ms,
                limits::ACTIVATION_TIMEOUT_MS,
            ),
            (
                "confirm",
                target.confirm_timeout_ms,
                limits::CONFIRM_TIMEOUT_MS,
            ),
        ] {
            if !range.contains(&found) {
                let (min, max) = (*range.start(), *range.end());
                return Err(DeploymentError::Timeout {
                    what,
                    found,
                    min,
                    max,
                });
            }
        }
        let has_substituters =
            !(target.substituters.is_empty() && target.substituter_keys.is_empty());
        if matches!(target.goal, Goal::Rollback(_)) && has_substituters {
            return Err(DeploymentError::RollbackSubstituters);
        }
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

    /// Reads the signed bytes. Only [`TrustedKeys::verify`](crate::TrustedKeys::verify) calls this, after
    /// the signatures held.
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
