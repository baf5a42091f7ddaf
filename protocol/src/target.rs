//! What a machine shall run, and how it gets there.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::check::HealthCheck;
use crate::closure::ClosureDigest;
use crate::limits;
use crate::order::DeploymentId;
use crate::store_path::{StorePath, System};
use crate::substituter::{CacheKey, SubstituterUrl};
use crate::word::{ClosureFile, ProfileName, Specialisation};

/// What a machine shall run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Goal {
    /// This closure.
    Closure(StorePath),
    /// What the machine itself once verified and ran, by name: never a path that came over the wire.
    Rollback(RollbackTo),
    /// What it runs at that moment: nothing is fetched or activated.
    Stay,
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
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The machine finds out by the markers in the closure.
    #[default]
    Auto,
    /// A NixOS system.
    Nixos,
    /// A nix-darwin system.
    Darwin,
    /// A home-manager generation.
    HomeManager,
    /// A closure made by deploy-rs's `activate.custom`, which brings `deploy-rs-activate`.
    DeployRs,
    /// A closure that brings its own activator: this program, called with `activate`.
    Custom(ClosureFile),
    /// A plain profile: it is set to the closure, and nothing runs.
    Profile,
}

impl Kind {
    /// The kind as it is written; of a custom one, without its program.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nixos => "nixos",
            Self::Darwin => "darwin",
            Self::HomeManager => "home-manager",
            Self::DeployRs => "deploy-rs",
            Self::Custom(_) => "custom",
            Self::Profile => "profile",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is done with the closure.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It runs now, and after the next boot.
    #[default]
    Switch,
    /// It runs after the next boot; now nothing changes. NixOS only.
    Boot,
    /// It runs now; the next boot brings what booted before. NixOS only.
    Test,
    /// The activation says what it would do, and does nothing.
    DryActivate,
}

impl Action {
    /// The action as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Boot => "boot",
            Self::Test => "test",
            Self::DryActivate => "dry-activate",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What happens when a NixOS system was activated, but some of its units failed: exit code 4 of
/// `switch-to-configuration`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnitsFailed {
    /// The machine goes back.
    #[default]
    RollBack,
    /// It stays, as long as it is confirmed.
    Keep,
    /// It stays when no unit has failed that had not failed before the activation.
    KeepIfFailedBefore,
}

/// What to run, and how to get there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Target {
    /// What the machine shall run.
    pub goal: Goal,
    /// How it is activated.
    pub kind: Kind,
    /// What is done with it.
    pub action: Action,
    /// Which specialisation of a NixOS system runs; the profile holds the whole system.
    pub specialisation: Option<Specialisation>,
    /// The profile of a closure that is no NixOS or nix-darwin system; the machine's own choice without one.
    pub profile: Option<ProfileName>,
    /// What must hold afterwards.
    pub health_checks: Vec<HealthCheck>,
    /// What happens when units failed.
    pub units_failed: UnitsFailed,
    /// Whether the closure may come without an agent: then nothing can deploy the machine afterwards.
    pub allow_no_agent: bool,
    /// How long the activation itself may take, in milliseconds.
    pub activation_timeout_ms: u64,
    /// How long health checks and the way back to the broker may take, in milliseconds.
    pub confirm_timeout_ms: u64,
    /// The machine begins at a random time within so many milliseconds: a fleet does not fetch at once.
    pub spread_ms: u64,
    /// What the closure holds, to the byte; without it the binary cache's keys have to be trusted.
    pub closure_digest: Option<ClosureDigest>,
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
            action: Action::Switch,
            specialisation: None,
            profile: None,
            health_checks: Vec::new(),
            units_failed: UnitsFailed::RollBack,
            allow_no_agent: false,
            activation_timeout_ms: limits::DEFAULT_ACTIVATION_TIMEOUT_MS,
            confirm_timeout_ms: limits::DEFAULT_CONFIRM_TIMEOUT_MS,
            spread_ms: 0,
            closure_digest: None,
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

    /// The programs of its health checks for machines of this system: they have to be fetched too.
    pub fn programs<'a>(&'a self, system: &'a System) -> impl Iterator<Item = &'a StorePath> {
        self.health_checks
            .iter()
            .filter_map(|check| check.program(system))
    }

    /// Within which time the machine begins.
    #[must_use]
    pub const fn spread(&self) -> Duration {
        Duration::from_millis(self.spread_ms)
    }
}

/// Why a target is none that a machine could follow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TargetError {
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
    /// A time lies outside of what is allowed.
    #[error("the {what} of {found} ms is outside of {min} to {max} ms")]
    Time {
        /// Which time.
        what: &'static str,
        /// Its length in ms.
        found: u64,
        /// The shortest allowed, in ms.
        min: u64,
        /// The longest allowed, in ms.
        max: u64,
    },
    /// A rollback, or what leaves the machine as it is, brings something that only a closure from elsewhere needs.
    #[error("only a closure takes {0}: the machine has what it ran")]
    Rollback(&'static str),
    /// The kind of closure cannot do that.
    #[error("the action `{action}` is not for closures of kind `{kind}`")]
    Action {
        /// What is asked for.
        action: Action,
        /// Of which kind of closure.
        kind: &'static str,
    },
    /// Only a NixOS system has specialisations, and they are not what boots.
    #[error("a specialisation can only be switched to or tested, and only NixOS systems have any")]
    Specialisation,
    /// The machine's own system has its own profile.
    #[error("a closure of kind `{0}` has a profile of its own; leave `profile` out")]
    Profile(&'static str),
}

impl Target {
    /// Whether it holds together.
    ///
    /// # Errors
    /// [`TargetError`] says what does not.
    pub fn check(&self) -> Result<(), TargetError> {
        self.check_limits()?;
        let brings = [
            (!self.substituters.is_empty(), "substituters"),
            (!self.substituter_keys.is_empty(), "substituter keys"),
            (self.closure_digest.is_some(), "closure digest"),
        ];
        if !matches!(self.goal, Goal::Closure(_))
            && let Some((_, what)) = brings.into_iter().find(|(brings, _)| *brings)
        {
            return Err(TargetError::Rollback(what));
        }
        let kind = self.kind.as_str();
        let is_system = matches!(self.kind, Kind::Nixos | Kind::Auto);
        let allowed = match self.action {
            Action::Switch => true,
            Action::Boot | Action::Test => is_system,
            Action::DryActivate => !matches!(self.kind, Kind::Profile | Kind::Custom(_)),
        };
        if !allowed {
            let action = self.action;
            return Err(TargetError::Action { action, kind });
        }
        let runs_now = matches!(self.action, Action::Switch | Action::Test);
        if self.specialisation.is_some() && !(is_system && runs_now) {
            return Err(TargetError::Specialisation);
        }
        if self.profile.is_some()
            && matches!(self.kind, Kind::Nixos | Kind::Darwin | Kind::HomeManager)
        {
            return Err(TargetError::Profile(kind));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), TargetError> {
        for (what, found, max) in [
            (
                "health checks",
                self.health_checks.len(),
                limits::HEALTH_CHECKS,
            ),
            (
                "substituters",
                self.substituters.len(),
                limits::SUBSTITUTERS,
            ),
            (
                "substituter keys",
                self.substituter_keys.len(),
                limits::SUBSTITUTERS,
            ),
        ] {
            if found > max {
                return Err(TargetError::TooMany { what, found, max });
            }
        }
        let mut times = vec![
            (
                "activation timeout",
                self.activation_timeout_ms,
                limits::ACTIVATION_TIMEOUT_MS,
            ),
            (
                "confirm timeout",
                self.confirm_timeout_ms,
                limits::CONFIRM_TIMEOUT_MS,
            ),
            ("spread", self.spread_ms, limits::SPREAD_MS),
        ];
        for check in &self.health_checks {
            times.extend(check.times());
        }
        for (what, found, range) in times {
            if !range.contains(&found) {
                let (min, max) = (*range.start(), *range.end());
                return Err(TargetError::Time {
                    what,
                    found,
                    min,
                    max,
                });
            }
        }
        for check in &self.health_checks {
            let found = usize::from(check.retries);
            if found > limits::CHECK_RETRIES {
                return Err(TargetError::TooMany {
                    what: "retries of a health check",
                    found,
                    max: limits::CHECK_RETRIES,
                });
            }
        }
        Ok(())
    }
}
