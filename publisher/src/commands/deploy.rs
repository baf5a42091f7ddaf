//! `hoist deploy`: what a spec says, signed, published and followed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::Args;
use hoist_certs::Role;
use hoist_protocol::{AgentName, ClosureDigest, Goal, StorePath, Target};

use super::flake::{CacheArgs, NixArgs, Wanted, interrupted, roles};
use super::send::{Sending, Task, check_signers};
use super::{CommandError, dry_run, provenance, signed};
use crate::ci::deployment::{Deployment, State};
use crate::console::Console;
use crate::digests::{self, DigestError};
use crate::drive::Interrupts;
use crate::duration;
use crate::flags::{
    ActivationArgs, CheckArgs, DeploymentArgs, FollowArgs, RolloutArgs, SelectionArgs, WaitFor,
    options,
};
use crate::flake::FlakeRef;
use crate::outcome::Exit;
use crate::select::{Selection, Selector};
use crate::settings::{Flags, Settings, SigningFlags, process_environment};
use crate::spec::Spec;

pub(crate) const DEPLOY_EXAMPLES: &str = "\
Examples:
  hoist deploy --flake . --cache 's3://cache?secret-key=/run/secrets/cache-key'
                                   evaluate, build, copy to the cache, deploy
  hoist deploy spec.json --action dry-activate
                                   what would change, on each machine
  hoist deploy spec.json --action boot
                                   with the next boot of each machine
  hoist deploy spec.json --check-unit nginx.service --check-http http://localhost/ --check-grace 10s
                                   machines on which that does not hold go back
  hoist deploy spec.json --spread 30m
                                   a large fleet, not all at once
  hoist deploy spec.json --require-digest
                                   nothing that a binary cache could have changed unnoticed
  hoist deploy spec.json --canary 1 --batch 20% --bake 5m --max-failed 5% --on-failure rollback
                                   one machine, then a fifth of them at a time; five minutes of being well
                                   before the next; back again when more than a twentieth has failed
  hoist deploy spec.json --agent '@web&!eu-*' --where state=failed --dry-run
                                   which of the web servers outside of eu- that would try again";

/// The heading of what is said about where closures come from.
const CLOSURES: &str = "Closures";

/// Whether what the closures hold is signed too.
///
/// By default it is where this computer's own store has them: then a binary cache that serves anything else
/// under the same path is found out by the machine, whoever's key it has.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = CLOSURES)]
pub struct DigestArgs {
    /// Do not sign what the closures hold, also where the store of this computer or the spec knows it
    #[arg(long, conflicts_with = "require_digest")]
    pub no_digest: bool,
    /// Deploy nothing unless what every closure holds is signed: each is in the store of this computer, or the
    /// spec has its digest
    #[arg(long)]
    pub require_digest: bool,
}

/// `hoist deploy`
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// The spec, as Cachix Deploy reads it: {"agents": {"web-1": "/nix/store/…"}, "rollbackScript":
    /// {"x86_64-linux": "/nix/store/…"}}; `-` is standard input. In place of a path there may be an object
    /// with a path and what the flags below say, for this machine: {"path": "/nix/store/…", "action": "boot"}
    #[arg(required_unless_present_any = ["flake", "signed"])]
    pub spec: Option<Utf8PathBuf>,
    /// Publish what `--prepare` wrote into this file and enough people have signed; no signing key is needed, and
    /// everything else about it is signed already, but for how a rollout goes (below)
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "spec", "flake", "cache", "no_skip", "agents", "conditions", "stale", "dry_run", "prepare", "raise_epoch", "message",
        "revision", "run_url", "actor", "substituters", "substituter_keys", "no_digest", "require_digest",
        "github_deployment", "ActivationArgs", "CheckArgs",
    ])]
    pub signed: Option<Utf8PathBuf>,
    /// Deploy only these machines of the spec, more than once for several: names, or a selection such as
    /// 'web-*', '@web&!@canary', 'kind:nixos,db-1' (below)
    #[arg(long = "agent", value_name = "SELECTION")]
    pub agents: Vec<Selector>,
    /// Only machines of which something holds
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Leave out machines that are offline and have not been heard of for so long
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, help_heading = "Selection")]
    pub stale: Option<Duration>,
    /// Show which machines would go from what to what, and do nothing: no signing key is needed, and a monitor's
    /// certificate is enough
    #[arg(long, conflicts_with_all = ["wait", "is_async"])]
    pub dry_run: bool,
    /// Publish a new deployment also for machines that have carried out the same one already: same closure, checks
    /// and options, signed with the same keys, and by their last report, which they renew every five minutes, nothing
    /// has changed on them since
    #[arg(long)]
    pub no_skip: bool,
    /// Let machines go that `hoist hold` holds; otherwise they stay held, and take the deployment when they are released
    #[arg(long, conflicts_with = "signed")]
    pub release: bool,
    /// Machines one after the other
    #[command(flatten)]
    pub rollout: RolloutArgs,
    /// How the closures are activated
    #[command(flatten)]
    pub activation: ActivationArgs,
    /// What must hold afterwards
    #[command(flatten)]
    pub checks: CheckArgs,
    /// What vouches for the closures
    #[command(flatten)]
    pub digest: DigestArgs,
    /// Binary cache that the machines use besides their own, more than once for several
    /// [env: HOIST_SUBSTITUTERS, separated by commas]
    #[arg(long = "substituter", value_name = "URL", help_heading = CLOSURES)]
    pub substituters: Vec<String>,
    /// Key of such a cache, NAME:base64, more than once for several
    /// [env: HOIST_SUBSTITUTER_KEYS, separated by commas]
    #[arg(long = "substituter-key", value_name = "KEY", help_heading = CLOSURES)]
    pub substituter_keys: Vec<String>,
    /// What is said in the deployment
    #[command(flatten)]
    pub deployment: DeploymentArgs,
    /// Tell GitHub that this environment is being deployed to, and how that ended, with the token in $GITHUB_TOKEN; that
    /// GitHub does not answer is a warning. With --async it stays `in_progress`, since nobody waits for the end
    #[arg(
        long,
        value_name = "ENVIRONMENT",
        conflicts_with_all = ["dry_run", "prepare"],
        help_heading = "CI"
    )]
    pub github_deployment: Option<String>,
    /// How machines are followed
    #[command(flatten)]
    pub follow: FollowArgs,
    /// Deploy the machines of this flake in place of a spec: they are built, and copied to --cache when there is one.
    /// `hoist build --help` says what a flake deploys; with --dry-run nothing is built
    #[arg(
        long,
        value_name = "FLAKE[#OUTPUT]",
        conflicts_with = "spec",
        help_heading = "Nix"
    )]
    pub flake: Option<FlakeRef>,
    /// Where the closures of --flake go
    #[command(flatten)]
    pub cache: CacheArgs,
    /// What is passed on to Nix
    #[command(flatten)]
    pub nix: NixArgs,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// Runs the command. Everything is checked before anything is sent.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &DeployArgs, flags: Flags) -> Result<Exit, CommandError> {
    let Some(environment) = &args.github_deployment else {
        return deploy(args, flags).await;
    };
    let begun = Deployment::begin(environment, &process_environment);
    let result = deploy(args, flags).await;
    let waits_for_none = args.follow.is_async || args.follow.wait == WaitFor::None;
    let (state, said) = match &result {
        // How it ends nobody here will know; GitHub shows it as under way until somebody says so.
        Ok(Exit::Ok) if waits_for_none => (
            State::InProgress,
            "published; how it ends is not waited for (`hoist wait`)",
        ),
        Ok(Exit::Ok) => (State::Success, "every machine that was waited for runs it"),
        Ok(Exit::Interrupted) => (State::Error, "interrupted"),
        Ok(_) => (
            State::Failure,
            "not every machine runs it; the log has them",
        ),
        Err(_) => (State::Error, "nothing was deployed; the log says why"),
    };
    let told = match begun {
        Ok(deployment) => deployment.end(state, said).await,
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        let why = hoist_certs::program::report(&error.into());
        Console::new(true).warn(&format!("GitHub does not show the deployment: {why}"));
    }
    result
}

async fn deploy(args: &DeployArgs, flags: Flags) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let rollout = args.rollout.rollout();
    if rollout.is_some() && (args.follow.is_async || args.follow.wait == WaitFor::None) {
        return Err(CommandError::RolloutWithoutWaiting);
    }
    if rollout.is_some() && args.deployment.prepare.is_some() {
        return Err(CommandError::PreparedRollout);
    }
    if let Some(file) = &args.signed {
        return signed::run(args, &settings, file).await;
    }
    let selection = Selection {
        selectors: args.agents.clone(),
        conditions: args.selection.conditions.clone(),
        heard_within: args.stale,
    };
    let spec = match (&args.spec, &args.flake) {
        (_, Some(flake)) => match of_flake(flake, args, &settings, &selection).await {
            Ok(Some(spec)) => spec,
            Ok(None) => return Ok(Exit::Ok),
            Err(error) => return interrupted(error, &Console::new(args.follow.quiet)),
        },
        (Some(path), None) => Spec::read(path, &settings.aliases()?)?.only(&selection)?,
        // The command line has one of them.
        (None, None) => Spec::read("-".into(), &settings.aliases()?)?.only(&selection)?,
    };
    if args.dry_run {
        return dry_run::run(args, &settings, &spec, &selection).await;
    }
    let caller = settings.caller("deploy", &[Role::Publisher])?;
    let keys = settings.keys(&args.signing)?;
    let mut targets = targets(args, &spec, &settings)?;
    let mut interrupts = Interrupts::listen().map_err(CommandError::Runtime)?;
    let told = tokio::select! {
        told = add_digests(args.digest, &spec, &mut targets) => told?,
        () = interrupts.next() => {
            Console::new(args.follow.quiet).warn("interrupted; nothing was published");
            return Ok(Exit::Interrupted);
        }
    };
    let mut sending = Sending::new("deploy", &args.deployment, &args.follow, caller, keys)?;
    match told {
        Told::Nothing => {}
        Told::Note(note) => sending.notes.push(note),
        Told::Warning(warning) => sending.warnings.push(warning),
    }
    sending.rollout = rollout;
    sending.leaves_out = !args.no_skip;
    sending.releases = args.release;
    sending.way_back = options(&args.activation, &CheckArgs::default()).of_a_way_back();
    sending.run(Task::Targets(targets, selection)).await
}

/// Builds and pushes what the machines of `flake` shall run; none when no machine is meant. What is wrong with the
/// settings shows before the work.
async fn of_flake(
    flake: &FlakeRef,
    args: &DeployArgs,
    settings: &Settings<'_>,
    selection: &Selection,
) -> Result<Option<Spec>, CommandError> {
    let caller = settings.caller("deploy", roles(args.dry_run))?;
    // What is wrong shows now, and not after an hour of building.
    if !args.dry_run {
        let keys = settings.keys(&args.signing)?;
        if args.deployment.prepare.is_none() {
            check_signers(&keys)?;
        }
        settings.caches(&args.substituters, &args.substituter_keys)?;
        provenance::gather(&args.deployment, &process_environment)?;
    }
    let wanted = Wanted {
        flake,
        selection,
        nix: &args.nix,
        only_evaluate: args.dry_run,
        cache: settings.cache(args.cache.cache.as_ref())?,
        quiet: args.follow.quiet,
    };
    wanted.spec(&caller).await
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
