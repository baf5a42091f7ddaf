//! The flags that several commands share.

mod sending;

use std::time::Duration;

use clap::{ArgGroup, Args};
use hoist_protocol::{
    ClosureFile, Endpoint, HealthCheck, HttpUrl, Probe, ProfileName, Specialisation, UnitName,
    limits,
};

use crate::duration;
use crate::options::{ActionArg, KindArg, Options, UnitsFailedArg};
use crate::rollout::{Division, OnFailure, Policy, Rollout, Share};
use crate::select::Condition;

pub use sending::{DeploymentArgs, FollowArgs, WaitFor};

/// How the closures are activated.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Activation (for all machines; before what the spec says)")]
pub struct ActivationArgs {
    /// How the closures are activated [default: auto]
    #[arg(long, value_enum, value_name = "KIND")]
    pub kind: Option<KindArg>,
    /// Program in the closure that activates it, such as bin/activate; makes the kind `custom`
    #[arg(long, value_name = "PROGRAM")]
    pub custom_activator: Option<ClosureFile>,
    /// Which profile is set, by its name; the machine's own choice without it. Not for NixOS, nix-darwin and
    /// home-manager, which have their own
    #[arg(long, value_name = "NAME")]
    pub profile: Option<ProfileName>,
    /// What is done with the closures [default: switch]
    #[arg(long, value_enum, value_name = "ACTION")]
    pub action: Option<ActionArg>,
    /// Which specialisation of the NixOS system runs
    #[arg(long, value_name = "NAME")]
    pub specialisation: Option<Specialisation>,
    /// What happens when a NixOS system was activated, but some of its units failed [default: roll-back]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub units_failed: Option<UnitsFailedArg>,
    /// Take a closure without an agent: nothing can deploy the machine afterwards
    #[arg(long)]
    pub allow_no_agent: bool,
    /// How long the activation itself may take [default: 15m]
    #[arg(long, value_name = "DURATION", value_parser = duration::activation_timeout)]
    pub activation_timeout: Option<Duration>,
    /// How long health checks and the way back to the broker may take before a machine rolls back [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration::confirm_timeout)]
    pub confirm_timeout: Option<Duration>,
    /// Each machine begins at a random moment within this time, so that a fleet does not fetch at once
    #[arg(long, value_name = "DURATION", value_parser = duration::spread)]
    pub spread: Option<Duration>,
}

/// What must hold on a machine after the activation.
#[derive(Debug, Default, Args)]
#[command(
    next_help_heading = "Health checks (a machine on which one fails goes back)",
    group(ArgGroup::new("check").args(["check_unit", "check_tcp", "check_http"]).multiple(true))
)]
pub struct CheckArgs {
    /// This systemd unit is active, more than once for several
    #[arg(long, value_name = "UNIT")]
    pub check_unit: Vec<UnitName>,
    /// A TCP connection to this address is accepted, more than once for several
    #[arg(long, value_name = "HOST:PORT")]
    pub check_tcp: Vec<Endpoint>,
    /// A GET request to this URL is answered with 200 to 299, more than once for several
    #[arg(long, value_name = "URL")]
    pub check_http: Vec<HttpUrl>,
    /// Failures within this time after the activation do not count [default: 0s]
    #[arg(long, value_name = "DURATION", requires = "check", value_parser = duration::check_grace)]
    pub check_grace: Option<Duration>,
    /// How often a check is tried again after a failure that counts [default: 0]
    #[arg(long, value_name = "NUMBER", requires = "check", value_parser = retries)]
    pub check_retries: Option<u16>,
    /// The wait between two tries [default: 1s]
    #[arg(long, value_name = "DURATION", requires = "check", value_parser = duration::check_interval)]
    pub check_interval: Option<Duration>,
    /// How long one try may take [default: 1m]
    #[arg(long, value_name = "DURATION", requires = "check", value_parser = duration::check_timeout)]
    pub check_timeout: Option<Duration>,
    /// A check that had failed before the activation too does not count
    #[arg(long, requires = "check")]
    pub check_only_if_held_before: bool,
}

/// Which machines are meant, of those that the spec or the fleet has.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Selection")]
pub struct SelectionArgs {
    /// Only machines of which this holds by their own word, more than once for several that all have to hold: such as
    /// state=failed, kind=nixos, tag=web, version!=0.2.* (all fields below)
    #[arg(long = "where", value_name = "FIELD=VALUE")]
    pub conditions: Vec<Condition>,
}

/// How a deployment reaches its machines one after the other.
#[derive(Debug, Default, Args)]
#[command(
    next_help_heading = "Rollout (any of these makes the deployment one)",
    group(ArgGroup::new("divided").args(["canary", "batch"]).multiple(true))
)]
pub struct RolloutArgs {
    /// So many of the machines that are online come first, alone: a number, or a part such as 10%
    #[arg(long, value_name = "N|P%")]
    pub canary: Option<Share>,
    /// So many come at a time after that; those that are offline come last of all
    #[arg(long, value_name = "N|P%")]
    pub batch: Option<Share>,
    /// How long a batch must stay well before the next one comes: a machine that is lost meanwhile has failed
    /// [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "divided")]
    pub bake: Option<Duration>,
    /// How many machines may fail before the rollout stops. Those that are offline or held, or that somebody else
    /// deploys to meanwhile, neither fail nor succeed [default: 0]
    #[arg(long, value_name = "N|P%", requires = "divided")]
    pub max_failed: Option<Share>,
    /// How many machines have to have ended before a part of them in --max-failed is reckoned with, unless the
    /// whole batch has [default: 5]
    #[arg(long, value_name = "N", requires = "max_failed")]
    pub min_sample: Option<usize>,
    /// What is done when more have failed [default: stop]
    #[arg(long, value_enum, value_name = "WHAT", requires = "divided")]
    pub on_failure: Option<OnFailure>,
}

impl RolloutArgs {
    /// The rollout that they ask for, if any.
    #[must_use]
    pub(crate) fn rollout(&self) -> Option<Rollout> {
        let is_rollout = self.canary.is_some() || self.batch.is_some();
        is_rollout.then(|| Rollout {
            division: Division {
                canary: self.canary,
                batch: self.batch,
            },
            policy: Policy {
                bake: self.bake.unwrap_or_default(),
                max_failed: self.max_failed.unwrap_or(Share::Count(0)),
                min_sample: self.min_sample.unwrap_or(5),
            },
            on_failure: self.on_failure.unwrap_or_default(),
        })
    }
}

/// A number of retries that is none, or too high.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is a whole number from 0 to {}", limits::CHECK_RETRIES)]
struct RetriesError;

fn retries(text: &str) -> Result<u16, RetriesError> {
    let retries = text.parse().map_err(|_| RetriesError)?;
    if usize::from(retries) > limits::CHECK_RETRIES {
        return Err(RetriesError);
    }
    Ok(retries)
}

impl CheckArgs {
    fn checks(&self) -> Vec<HealthCheck> {
        let units = self.check_unit.iter().cloned().map(Probe::Unit);
        let tcp = self.check_tcp.iter().cloned().map(Probe::Tcp);
        let http = self.check_http.iter().cloned().map(Probe::Http);
        let check = |probe| {
            let default = HealthCheck::new(probe);
            HealthCheck {
                grace_ms: self.check_grace.map_or(default.grace_ms, duration::ms),
                retries: self.check_retries.unwrap_or(default.retries),
                interval_ms: self
                    .check_interval
                    .map_or(default.interval_ms, duration::ms),
                timeout_ms: self.check_timeout.map_or(default.timeout_ms, duration::ms),
                only_if_held_before: self.check_only_if_held_before,
                ..default
            }
        };
        units.chain(tcp).chain(http).map(check).collect()
    }
}

/// What these flags ask for.
#[must_use]
pub(crate) fn options(activation: &ActivationArgs, checks: &CheckArgs) -> Options {
    Options {
        kind: activation.kind,
        custom_activator: activation.custom_activator.clone(),
        profile: activation.profile.clone(),
        action: activation.action,
        specialisation: activation.specialisation.clone(),
        units_failed: activation.units_failed,
        allow_no_agent: activation.allow_no_agent,
        activation_timeout: activation.activation_timeout,
        confirm_timeout: activation.confirm_timeout,
        spread: activation.spread,
        checks: checks.checks(),
    }
}
