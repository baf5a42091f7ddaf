//! `hoist-agent activate` and `rollback`: deployments by whoever sits at the machine.

use std::time::Duration;

use clap::ValueEnum;
use hoist_protocol::{
    Action, ClosureFile, DeploymentId, Goal, HealthCheck, Kind, Probe, ProfileName, Specialisation,
    StorePath, System, Target, UnitsFailed,
};

use super::exit::Exit;
use super::order::carry_out;
use crate::config::{Period, PlaceFlags};
use crate::control::Ask;

/// The arguments of `rollback`.
#[derive(clap::Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    place: PlaceFlags,
    /// To what this deployment brought; `history` lists them [default: what ran before what runs now]
    #[arg(value_name = "ID")]
    id: Option<DeploymentId>,
    /// Print the outcome as a status report in JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `activate`.
#[derive(clap::Args)]
pub(super) struct ActivateArgs {
    #[command(flatten)]
    place: PlaceFlags,
    /// The closure; a link that leads to one, such as `result`, will do
    #[arg(value_name = "PATH", value_parser = closure)]
    path: StorePath,
    /// What it is: auto, nixos, darwin, home-manager, deploy-rs, profile, or custom:PROGRAM with a program in it
    #[arg(long, default_value = "auto", value_parser = kind)]
    kind: Kind,
    /// What is done with it
    #[arg(long, value_enum, default_value_t, value_name = "ACTION")]
    action: ActionArg,
    /// The specialisation of a NixOS system to run
    #[arg(long, value_name = "NAME")]
    specialisation: Option<Specialisation>,
    /// The profile of a closure that is no system [default: the agent's own]
    #[arg(long, value_name = "NAME")]
    profile: Option<ProfileName>,
    /// A program that must exit with 0 afterwards; can be given several times
    #[arg(long = "check", value_name = "PATH", value_parser = closure)]
    checks: Vec<StorePath>,
    /// What happens when units of a NixOS system fail
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    units_failed: UnitsFailedArg,
    /// Activate it also when it holds no agent: then nothing can deploy this machine afterwards
    #[arg(long)]
    allow_no_agent: bool,
    /// How long the activation may take [default: 15m]
    #[arg(long, value_name = "TIME")]
    activation_timeout: Option<Period>,
    /// How long the health checks may take [default: 1m]
    #[arg(long, value_name = "TIME")]
    confirm_timeout: Option<Period>,
    /// Print the outcome as a status report in JSON
    #[arg(long)]
    json: bool,
}

/// [`Action`] on a command line.
#[derive(Clone, Copy, Default, ValueEnum)]
enum ActionArg {
    /// It runs now, and after the next boot
    #[default]
    Switch,
    /// The next boot brings it; NixOS only
    Boot,
    /// It runs until the next boot; NixOS only
    Test,
    /// Only say what would be done
    DryActivate,
}

/// [`UnitsFailed`] on a command line.
#[derive(Clone, Copy, Default, ValueEnum)]
enum UnitsFailedArg {
    /// The machine goes back
    #[default]
    RollBack,
    /// It stays
    Keep,
    /// It stays when no unit has failed that had not failed before
    KeepIfFailedBefore,
}

/// Runs `rollback`.
///
/// # Errors
/// Nothing was begun.
pub(super) async fn rollback(args: RollbackArgs) -> anyhow::Result<Exit> {
    let place = args.place.place()?;
    carry_out(&place, Ask::Rollback { to: args.id }, args.json).await
}

/// Runs `activate`.
///
/// # Errors
/// Nothing was begun.
pub(super) async fn activate(args: ActivateArgs) -> anyhow::Result<Exit> {
    let place = args.place.place()?;
    let json = args.json;
    let target = Box::new(args.target()?);
    carry_out(&place, Ask::Activate { target }, json).await
}

impl ActivateArgs {
    fn target(self) -> anyhow::Result<Target> {
        let mut target = Target::new(Goal::Closure(self.path));
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if let Some(time) = self.activation_timeout {
            target.activation_timeout_ms = milliseconds(time.get());
        }
        if let Some(time) = self.confirm_timeout {
            target.confirm_timeout_ms = milliseconds(time.get());
        }
        let system = System::current()?;
        let check = |path| HealthCheck::new(Probe::Program([(system.clone(), path)].into()));
        target.health_checks = self.checks.into_iter().map(check).collect();
        target.kind = self.kind;
        target.specialisation = self.specialisation;
        target.profile = self.profile;
        target.allow_no_agent = self.allow_no_agent;
        target.action = match self.action {
            ActionArg::Switch => Action::Switch,
            ActionArg::Boot => Action::Boot,
            ActionArg::Test => Action::Test,
            ActionArg::DryActivate => Action::DryActivate,
        };
        target.units_failed = match self.units_failed {
            UnitsFailedArg::RollBack => UnitsFailed::RollBack,
            UnitsFailedArg::Keep => UnitsFailed::Keep,
            UnitsFailedArg::KeepIfFailedBefore => UnitsFailed::KeepIfFailedBefore,
        };
        target.check()?;
        Ok(target)
    }
}

/// A store path, or what a link leads to one.
fn closure(text: &str) -> Result<StorePath, String> {
    StorePath::new(text).or_else(|error| {
        let behind = crate::nix::store_path_behind(text.into());
        match behind {
            Ok(Some(path)) => Ok(path),
            Ok(None) => Err(error.to_string()),
            Err(source) => Err(format!("cannot read the link `{text}`: {source}")),
        }
    })
}

fn kind(text: &str) -> Result<Kind, String> {
    if let Some(program) = text.strip_prefix("custom:") {
        let program = ClosureFile::new(program).map_err(|error| error.to_string())?;
        return Ok(Kind::Custom(program));
    }
    let plain = [
        Kind::Auto,
        Kind::Nixos,
        Kind::Darwin,
        Kind::HomeManager,
        Kind::DeployRs,
        Kind::Profile,
    ];
    let found = plain.into_iter().find(|kind| kind.as_str() == text);
    found.ok_or_else(|| {
        "it is one of auto, nixos, darwin, home-manager, deploy-rs, profile and custom:PROGRAM"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ActivateArgs,
    }

    const PATH: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web";

    fn target(more: &[&str]) -> Result<Target, String> {
        let args = ["activate", PATH].iter().chain(more);
        let command = Command::try_parse_from(args).map_err(|error| error.to_string())?;
        command.args.target().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_is_as_in_a_deployment() {
        let path = StorePath::new(PATH).unwrap();
        assert_eq!(target(&[]).unwrap(), Target::new(Goal::Closure(path)));
    }

    #[test]
    fn flags_become_what_a_deployment_would_say() {
        let target = target(&[
            "--kind",
            "custom:bin/activate",
            "--profile",
            "web",
            "--check",
            PATH,
            "--confirm-timeout",
            "5s",
            "--allow-no-agent",
        ])
        .unwrap();
        assert_eq!(target.kind.as_str(), "custom");
        assert_eq!(target.confirm_timeout_ms, 5_000);
        assert_eq!(target.programs(&System::current().unwrap()).count(), 1);
        assert!(target.allow_no_agent);
    }

    #[test]
    fn what_no_machine_could_follow_is_refused_here() {
        for bad in [
            &["--kind", "windows"][..],
            &["--kind", "custom:../x"],
            &["--kind", "profile", "--action", "boot"],
            &["--action", "boot", "--specialisation", "x"],
            &["--profile", "system"],
            &["--confirm-timeout", "2d"],
        ] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_link_to_a_closure_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("result");
        std::os::unix::fs::symlink(PATH, &link).unwrap();
        assert_eq!(closure(link.to_str().unwrap()).unwrap().as_str(), PATH);
        assert!(closure("/etc").is_err());
        assert!(closure(dir.path().join("no").to_str().unwrap()).is_err());
    }
}
