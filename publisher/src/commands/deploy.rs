//! `hoist deploy`: what a spec says, signed, published and followed.

use std::collections::{BTreeMap, BTreeSet};

use hoist_certs::Role;
use hoist_protocol::{AgentName, ClosureDigest, Goal, StorePath, Target};

use super::send::{Sending, Task};
use super::{CommandError, dry_run};
use crate::digests::{self, DigestError};
use crate::flags::options;
use crate::outcome::Exit;
use crate::select::Selection;
use crate::settings::{Flags, Settings, process_environment};
use crate::spec::Spec;
use crate::{CheckArgs, DeployArgs, DigestArgs, WaitFor};

/// Runs the command. Everything is checked before anything is sent.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &DeployArgs, flags: Flags) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let selection = Selection {
        selectors: args.agents.clone(),
        conditions: args.selection.conditions.clone(),
        heard_within: args.stale,
    };
    let spec = Spec::read(&args.spec)?.only(&selection)?;
    let rollout = args.rollout.rollout();
    if rollout.is_some() && (args.follow.is_async || args.follow.wait == WaitFor::None) {
        return Err(CommandError::RolloutWithoutWaiting);
    }
    if args.dry_run {
        return dry_run::run(args, &settings, &spec, &selection).await;
    }
    let caller = settings.caller("deploy", &[Role::Publisher])?;
    let keys = settings.keys(&args.signing)?;
    let mut targets = targets(args, &spec, &settings)?;
    let told = add_digests(args.digest, &spec, &mut targets).await?;
    let mut sending = Sending::new("deploy", &args.deployment, &args.follow, caller, keys)?;
    match told {
        Told::Nothing => {}
        Told::Note(note) => sending.notes.push(note),
        Told::Warning(warning) => sending.warnings.push(warning),
    }
    sending.rollout = rollout;
    sending.way_back = options(&args.activation, &CheckArgs::default()).of_a_way_back();
    sending.run(Task::Targets(targets, selection)).await
}

fn targets(
    args: &DeployArgs,
    spec: &Spec,
    settings: &Settings<'_>,
) -> Result<BTreeMap<AgentName, Target>, CommandError> {
    let (substituters, substituter_keys) =
        settings.caches(&args.substituters, &args.substituter_keys)?;
    let flags = options(&args.activation, &args.checks);
    let mut targets = BTreeMap::new();
    for (agent, wanted) in spec.agents() {
        let mut options = wanted.options.clone();
        options.checks.extend(spec.health_check().cloned());
        let goal = Goal::Closure(wanted.path.clone());
        let target = Target {
            substituters: substituters.clone(),
            substituter_keys: substituter_keys.clone(),
            ..flags.target_with(agent, &options, goal)?
        };
        targets.insert(agent.clone(), target);
    }
    Ok(targets)
}

/// What somebody should know about the digests.
#[derive(Debug, Eq, PartialEq)]
enum Told {
    Nothing,
    Note(String),
    Warning(String),
}

/// Says in each target what its closure holds, as far as the spec or Nix knows.
async fn add_digests(
    args: DigestArgs,
    spec: &Spec,
    targets: &mut BTreeMap<AgentName, Target>,
) -> Result<Told, CommandError> {
    if args.no_digest {
        return Ok(Told::Nothing);
    }
    let asked: BTreeSet<StorePath> = spec
        .agents()
        .values()
        .filter(|wanted| wanted.digest.is_none())
        .map(|wanted| wanted.path.clone())
        .collect();
    let of_nix = match digests::of(&asked).await {
        Err(error) if args.require_digest => return Err(CommandError::Digests(error)),
        answer => answer,
    };
    let none = BTreeMap::new();
    let known = of_nix.as_ref().unwrap_or(&none);
    for (agent, target) in &mut *targets {
        let wanted = &spec.agents()[agent];
        target.closure_digest = wanted.digest.or_else(|| known.get(&wanted.path).copied());
        if args.require_digest && target.closure_digest.is_none() {
            return Err(CommandError::NoDigest {
                agent: agent.clone(),
                path: wanted.path.clone(),
            });
        }
    }
    Ok(tell(&asked, &of_nix))
}

fn tell(
    asked: &BTreeSet<StorePath>,
    of_nix: &Result<BTreeMap<StorePath, ClosureDigest>, DigestError>,
) -> Told {
    match of_nix {
        Ok(known) if known.len() == asked.len() => Told::Nothing,
        Ok(known) => {
            let (missing, all) = (asked.len() - known.len(), asked.len());
            Told::Note(format!(
                "{missing} of {all} closures are not in the store of this computer: what they hold is not signed, \
                 and the keys of the binary caches alone vouch for it"
            ))
        }
        // Somebody who has no Nix here has made up their mind; --require-digest is for those who have not.
        Err(DigestError::NotInstalled(program)) => {
            tracing::debug!(
                program,
                "not installed, so there are no digests of closures"
            );
            Told::Nothing
        }
        Err(error) => {
            let why = match std::error::Error::source(error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            Told::Warning(format!(
                "what the closures hold is not signed, since Nix did not tell ({why}); the keys of the binary \
                 caches alone vouch for it"
            ))
        }
    }
}
