//! What is asked for beside the closure: by flags for all machines, by the spec for one of them.
//!
//! A flag goes before what the spec says of a machine, as it goes before a configuration file. What does not go
//! together is named by where it was said.

use std::time::Duration;

use clap::ValueEnum;
use hoist_protocol::{
    Action, AgentName, ClosureFile, Goal, HealthCheck, Kind, ProfileName, Specialisation, Target,
    TargetError, UnitsFailed,
};

use crate::duration;

/// How a closure is activated.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum KindArg {
    /// The machine finds out by what is in the closure
    Auto,
    /// As a NixOS system
    Nixos,
    /// As a nix-darwin system
    Darwin,
    /// As a home-manager generation
    HomeManager,
    /// As a closure of deploy-rs, by its `deploy-rs-activate`
    DeployRs,
    /// By a program in the closure: see --custom-activator
    Custom,
    /// As a profile that is set, and nothing is run
    Profile,
}

/// What is done with a closure.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ActionArg {
    /// It runs now, and after the next boot
    Switch,
    /// It runs after the next boot; now nothing changes (NixOS)
    Boot,
    /// It runs now; the next boot brings what booted before (NixOS)
    Test,
    /// The machine says what would change, and changes nothing
    DryActivate,
}

/// What happens when a NixOS system was activated, but some of its units failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum UnitsFailedArg {
    /// The machine goes back
    RollBack,
    /// It stays, as long as it is confirmed
    Keep,
    /// It stays when no unit has failed that had not failed before
    KeepIfFailedBefore,
}

impl From<ActionArg> for Action {
    fn from(action: ActionArg) -> Self {
        match action {
            ActionArg::Switch => Self::Switch,
            ActionArg::Boot => Self::Boot,
            ActionArg::Test => Self::Test,
            ActionArg::DryActivate => Self::DryActivate,
        }
    }
}

impl From<UnitsFailedArg> for UnitsFailed {
    fn from(units_failed: UnitsFailedArg) -> Self {
        match units_failed {
            UnitsFailedArg::RollBack => Self::RollBack,
            UnitsFailedArg::Keep => Self::Keep,
            UnitsFailedArg::KeepIfFailedBefore => Self::KeepIfFailedBefore,
        }
    }
}

/// What is asked for; none is what the protocol has by default.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// How the closure is activated.
    pub kind: Option<KindArg>,
    /// The program in the closure that activates it.
    pub custom_activator: Option<ClosureFile>,
    /// Which profile is set.
    pub profile: Option<ProfileName>,
    /// What is done with it.
    pub action: Option<ActionArg>,
    /// Which specialisation runs.
    pub specialisation: Option<Specialisation>,
    /// What happens when units failed.
    pub units_failed: Option<UnitsFailedArg>,
    /// Whether the closure may come without an agent.
    pub allow_no_agent: bool,
    /// How long the activation itself may take.
    pub activation_timeout: Option<Duration>,
    /// How long the confirmation may take.
    pub confirm_timeout: Option<Duration>,
    /// Within which time the machines begin.
    pub spread: Option<Duration>,
    /// What must hold afterwards.
    pub checks: Vec<HealthCheck>,
}

impl Options {
    /// What of it holds for going back to what a machine ran before too: how long that may take.
    #[must_use]
    pub fn of_a_way_back(&self) -> Self {
        Self {
            activation_timeout: self.activation_timeout,
            confirm_timeout: self.confirm_timeout,
            ..Self::default()
        }
    }
}

/// What does not go together, by where it was said.
#[derive(Debug, thiserror::Error)]
#[error("{}{} {problem}", .agent.as_ref().map_or_else(String::new, |agent| format!("agent `{agent}`: ")), listed(.named))]
pub struct OptionsError {
    /// The machine, where it is only so for this one.
    agent: Option<AgentName>,
    /// The flags and the fields of the spec that are to blame.
    named: Vec<String>,
    problem: &'static str,
    /// Why.
    #[source]
    source: Conflict,
}

/// Why what is asked for does not go together.
#[derive(Debug, thiserror::Error)]
enum Conflict {
    /// A custom closure does not say its program.
    #[error(
        "a closure of kind `custom` is activated by a program in it; name it with --custom-activator"
    )]
    NoActivator,
    /// A program is named that is not run.
    #[error("only a closure of kind `custom` is activated by a program that is named")]
    Activator,
    /// The protocol has no such target.
    #[error(transparent)]
    Target(#[from] TargetError),
}

fn listed(named: &[String]) -> String {
    match named.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => named.concat(),
    }
}

/// Something that can be asked for, for the names of it.
#[derive(Clone, Copy)]
enum Field {
    Kind,
    CustomActivator,
    Profile,
    Action,
    Specialisation,
    Checks,
}

impl Field {
    const fn flag(self) -> &'static str {
        match self {
            Self::Kind => "--kind",
            Self::CustomActivator => "--custom-activator",
            Self::Profile => "--profile",
            Self::Action => "--action",
            Self::Specialisation => "--specialisation",
            Self::Checks => "--check-unit, --check-tcp and --check-http",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::CustomActivator => "custom_activator",
            Self::Profile => "profile",
            Self::Action => "action",
            Self::Specialisation => "specialisation",
            Self::Checks => "checks",
        }
    }

    const fn is_in(self, options: &Options) -> bool {
        match self {
            Self::Kind => options.kind.is_some(),
            Self::CustomActivator => options.custom_activator.is_some(),
            Self::Profile => options.profile.is_some(),
            Self::Action => options.action.is_some(),
            Self::Specialisation => options.specialisation.is_some(),
            Self::Checks => !options.checks.is_empty(),
        }
    }
}

impl Options {
    /// The target that these flags ask for, of all machines alike.
    ///
    /// # Errors
    /// [`OptionsError`]
    pub fn target(&self, goal: Goal) -> Result<Target, OptionsError> {
        Asked {
            flags: self,
            spec: None,
        }
        .target(goal)
    }

    /// The target that these flags ask for together with what the spec says of `agent`.
    ///
    /// # Errors
    /// [`OptionsError`]
    pub fn target_with(
        &self,
        agent: &AgentName,
        spec: &Self,
        goal: Goal,
    ) -> Result<Target, OptionsError> {
        Asked {
            flags: self,
            spec: Some((agent, spec)),
        }
        .target(goal)
    }
}

/// The flags, and what the spec says of one machine.
struct Asked<'a> {
    flags: &'a Options,
    spec: Option<(&'a AgentName, &'a Options)>,
}

impl Asked<'_> {
    fn target(&self, goal: Goal) -> Result<Target, OptionsError> {
        let checks = self.spec.iter().flat_map(|(_, spec)| &spec.checks);
        let mut target = Target {
            kind: self.kind()?,
            profile: self.one(|options| options.profile.clone()),
            action: self
                .one(|options| options.action)
                .map_or_else(Action::default, Action::from),
            specialisation: self.one(|options| options.specialisation.clone()),
            units_failed: self
                .one(|options| options.units_failed)
                .map_or_else(UnitsFailed::default, UnitsFailed::from),
            allow_no_agent: self.flags.allow_no_agent
                || self.spec.is_some_and(|(_, spec)| spec.allow_no_agent),
            health_checks: self.flags.checks.iter().chain(checks).cloned().collect(),
            ..Target::new(goal)
        };
        if let Some(timeout) = self.one(|options| options.activation_timeout) {
            target.activation_timeout_ms = duration::ms(timeout);
        }
        if let Some(timeout) = self.one(|options| options.confirm_timeout) {
            target.confirm_timeout_ms = duration::ms(timeout);
        }
        if let Some(spread) = self.one(|options| options.spread) {
            target.spread_ms = duration::ms(spread);
        }
        match target.check() {
            Ok(()) => Ok(target),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// What the flags say, else what the spec does.
    fn one<T>(&self, get: impl Fn(&Options) -> Option<T>) -> Option<T> {
        get(self.flags).or_else(|| self.spec.and_then(|(_, spec)| get(spec)))
    }

    /// The kind with its program. Where a flag says one of them, the spec says neither.
    fn kind(&self) -> Result<Kind, OptionsError> {
        let said = |options: &Options| {
            let is_said = options.kind.is_some() || options.custom_activator.is_some();
            is_said.then(|| (options.kind, options.custom_activator.clone()))
        };
        let both = [Field::Kind, Field::CustomActivator];
        match self.one(said).unwrap_or_default() {
            (None | Some(KindArg::Custom), Some(program)) => Ok(Kind::Custom(program)),
            (Some(KindArg::Custom), None) => Err(self.error(&both, Conflict::NoActivator)),
            (Some(_), Some(_)) => Err(self.error(&both, Conflict::Activator)),
            (None | Some(KindArg::Auto), None) => Ok(Kind::Auto),
            (Some(KindArg::Nixos), None) => Ok(Kind::Nixos),
            (Some(KindArg::Darwin), None) => Ok(Kind::Darwin),
            (Some(KindArg::HomeManager), None) => Ok(Kind::HomeManager),
            (Some(KindArg::DeployRs), None) => Ok(Kind::DeployRs),
            (Some(KindArg::Profile), None) => Ok(Kind::Profile),
        }
    }

    fn explain(&self, error: TargetError) -> OptionsError {
        use Field::{Action, Checks, CustomActivator, Kind, Profile, Specialisation};
        let fields: &[Field] = match &error {
            TargetError::Action { .. } => &[Action, Kind, CustomActivator],
            TargetError::Specialisation => &[Specialisation, Action, Kind, CustomActivator],
            TargetError::Profile(_) => &[Profile, Kind],
            TargetError::TooMany { .. } => &[Checks],
            // Times were read within their limits, and a rollback is given nothing that it does not take.
            TargetError::Time { .. } | TargetError::Rollback(_) => &[],
        };
        self.error(fields, Conflict::Target(error))
    }

    fn error(&self, fields: &[Field], source: Conflict) -> OptionsError {
        let mut agent = None;
        let mut named = Vec::new();
        for field in fields {
            if field.is_in(self.flags) {
                named.push(field.flag().to_owned());
            } else if let Some((name, spec)) = self.spec
                && field.is_in(spec)
            {
                named.push(format!("`{}` in the spec", field.key()));
                agent = Some(name.clone());
            }
        }
        let problem = match named.len() {
            0 => {
                named.push("what is asked for".to_owned());
                "cannot be deployed"
            }
            1 => "cannot be deployed",
            _ => "do not go together",
        };
        OptionsError {
            agent,
            named,
            problem,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{DeploymentId, Probe, RollbackTo, UnitName};

    use super::*;
    use crate::testing::{id, machine};

    fn goal() -> Goal {
        let id: DeploymentId = id(1);
        Goal::Rollback(RollbackTo::Deployment(id))
    }

    fn chain(error: &dyn std::error::Error) -> String {
        match error.source() {
            Some(source) => format!("{error}: {}", chain(source)),
            None => error.to_string(),
        }
    }

    fn refused(flags: &Options, spec: &Options) -> String {
        let agent = machine("web-1").agent;
        chain(&flags.target_with(&agent, spec, goal()).unwrap_err())
    }

    fn kind(kind: KindArg) -> Options {
        Options {
            kind: Some(kind),
            ..Options::default()
        }
    }

    fn action(action: ActionArg) -> Options {
        Options {
            action: Some(action),
            ..Options::default()
        }
    }

    fn activator(kind: Option<KindArg>, program: &str) -> Options {
        Options {
            kind,
            custom_activator: Some(ClosureFile::new(program).unwrap()),
            ..Options::default()
        }
    }

    #[test]
    fn nothing_asked_for_is_the_default() {
        let target = Options::default().target(goal()).unwrap();
        assert_eq!(target, Target::new(goal()));
    }

    #[test]
    fn a_flag_goes_before_the_spec_and_health_checks_add_up() {
        let check = |unit: &str| HealthCheck::new(Probe::Unit(UnitName::new(unit).unwrap()));
        let flags = Options {
            action: Some(ActionArg::Test),
            checks: vec![check("a.service")],
            ..Options::default()
        };
        let spec = Options {
            action: Some(ActionArg::Boot),
            units_failed: Some(UnitsFailedArg::Keep),
            spread: Some(Duration::from_secs(7)),
            checks: vec![check("b.service")],
            ..Options::default()
        };
        let agent = machine("web-1").agent;
        let target = flags.target_with(&agent, &spec, goal()).unwrap();
        assert_eq!(target.action, Action::Test);
        assert_eq!(target.units_failed, UnitsFailed::Keep);
        assert_eq!(target.spread_ms, 7_000);
        assert_eq!(
            target.health_checks,
            [check("a.service"), check("b.service")]
        );
    }

    #[test]
    fn a_program_makes_a_closure_custom_and_another_kind_takes_it_away() {
        let agent = machine("web-1").agent;
        let spec = activator(None, "bin/activate");
        let made = |flags: &Options| flags.target_with(&agent, &spec, goal()).unwrap().kind;
        let program = |name: &str| Kind::Custom(ClosureFile::new(name).unwrap());
        assert_eq!(made(&Options::default()), program("bin/activate"));
        assert_eq!(made(&activator(None, "bin/other")), program("bin/other"));
        assert_eq!(made(&kind(KindArg::Nixos)), Kind::Nixos);
    }

    #[test]
    fn what_does_not_go_together_is_named_by_where_it_was_said() {
        let nothing = Options::default();
        for (flags, spec, said) in [
            (
                activator(Some(KindArg::Nixos), "x"),
                nothing.clone(),
                "--kind and --custom-activator do not go together: only a closure of kind `custom` is activated \
                 by a program that is named",
            ),
            (
                kind(KindArg::Custom),
                nothing.clone(),
                "--kind cannot be deployed: a closure of kind `custom` is activated by a program in it; name it \
                 with --custom-activator",
            ),
            (
                action(ActionArg::Boot),
                kind(KindArg::Profile),
                "agent `web-1`: --action and `kind` in the spec do not go together: the action `boot` is not for \
                 closures of kind `profile`",
            ),
            (
                action(ActionArg::DryActivate),
                activator(None, "x"),
                "agent `web-1`: --action and `custom_activator` in the spec do not go together: the action \
                 `dry-activate` is not for closures of kind `custom`",
            ),
            (
                nothing.clone(),
                Options {
                    specialisation: Some(Specialisation::new("blue").unwrap()),
                    ..action(ActionArg::Boot)
                },
                "agent `web-1`: `specialisation` in the spec and `action` in the spec do not go together: a \
                 specialisation can only be switched to or tested, and only NixOS systems have any",
            ),
            (
                Options {
                    profile: Some(ProfileName::new("web").unwrap()),
                    ..kind(KindArg::Darwin)
                },
                nothing.clone(),
                "--profile and --kind do not go together: a closure of kind `darwin` has a profile of its own; \
                 leave `profile` out",
            ),
        ] {
            assert_eq!(refused(&flags, &spec), said);
        }
    }

    #[test]
    fn too_many_health_checks_are_refused() {
        let check = HealthCheck::new(Probe::Unit(UnitName::new("a.service").unwrap()));
        let options = Options {
            checks: vec![check; 20],
            ..Options::default()
        };
        assert_eq!(
            refused(&options, &options),
            "--check-unit, --check-tcp and --check-http cannot be deployed: the deployment has 40 health checks; \
             at most 32 are allowed"
        );
    }

    #[test]
    fn every_word_of_the_command_line_is_the_one_of_the_protocol() {
        for action in ActionArg::value_variants() {
            let word = action.to_possible_value().unwrap();
            assert_eq!(word.get_name(), Action::from(*action).as_str());
        }
        for (kind, of) in [
            (KindArg::Auto, Kind::Auto),
            (KindArg::Nixos, Kind::Nixos),
            (KindArg::Darwin, Kind::Darwin),
            (KindArg::HomeManager, Kind::HomeManager),
            (KindArg::DeployRs, Kind::DeployRs),
            (KindArg::Profile, Kind::Profile),
        ] {
            assert_eq!(kind.to_possible_value().unwrap().get_name(), of.as_str());
        }
        for units_failed in UnitsFailedArg::value_variants() {
            let word = units_failed.to_possible_value().unwrap();
            let json = serde_json::to_value(UnitsFailed::from(*units_failed)).unwrap();
            assert_eq!(json, word.get_name());
        }
    }
}
