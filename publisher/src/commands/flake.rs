//! From a flake to a spec whose closures are built and pushed: what `build`, `push` and `deploy --flake` share.

use camino::Utf8PathBuf;
use clap::Args;
use hoist_certs::Role;
use hoist_certs::program::now;
use hoist_protocol::Channel;

use super::CommandError;
use super::look;
use crate::ci::Log;
use crate::console::{Console, print};
use crate::drive::Interrupts;
use crate::flake::{
    CacheUrl, Evaluated, FlakeError, FlakeRef, Machines, Nix, NixError, Roots, push,
};
use crate::link::Link;
use crate::outcome::Exit;
use crate::select::{Selection, Selector};
use crate::settings::{Caller, Flags, Settings, process_environment};
use crate::spec::Spec;

pub(crate) const BUILD_EXAMPLES: &str = "\
Examples:
  hoist build > spec.json                   all machines of the flake here
  hoist build github:me/fleet --agent 'web-*' --out spec.json
  hoist build .#staging                     the spec in the output `staging`
  hoist build .#homeConfigurations          the homes, each named like a machine

What a flake deploys is its output `hoist`, which has the attributes of a spec:
  hoist = hoist.lib.spec { agents = self.nixosConfigurations; };
Without one it is all of `nixosConfigurations` and `darwinConfigurations`.";

pub(crate) const PUSH_EXAMPLES: &str = "\
Examples:
  hoist push spec.json --cache 's3://cache?secret-key=/run/secrets/cache-key'
  hoist push spec.json --cache file:///srv/cache
  HOIST_CACHE=ssh-ng://cache hoist push spec.json

The cache's signing key is Nix's own setting `secret-key` in the URL; ssh-ng stores sign for themselves.";

/// The heading of what is said to Nix.
const NIX: &str = "Nix";

/// What is passed on to Nix.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = NIX)]
pub struct NixArgs {
    /// Option of Nix's own for evaluating and building, more than once for several: --nix-arg=--impure
    #[arg(long = "nix-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub nix_args: Vec<String>,
}

/// Where closures go.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = NIX)]
pub struct CacheArgs {
    /// Store that the closures are copied to, as Nix writes it: s3://BUCKET?secret-key=FILE [env: HOIST_CACHE]
    #[arg(long, value_name = "URL")]
    pub cache: Option<String>,
}

/// `hoist build`
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The flake, and the output that is meant
    #[arg(value_name = "FLAKE[#OUTPUT]", default_value = ".")]
    pub flake: FlakeRef,
    /// Build only for these machines, more than once for several: names, or a selection such as 'web-*'
    #[arg(long = "agent", value_name = "SELECTION")]
    pub agents: Vec<Selector>,
    /// Write the spec to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    /// Only evaluate: the closures of the spec are not built
    #[arg(long)]
    pub no_build: bool,
    /// Do not show what Nix does
    #[arg(short, long)]
    pub quiet: bool,
    /// What is passed on to Nix
    #[command(flatten)]
    pub nix: NixArgs,
}

/// `hoist push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The spec, as `hoist build` writes it; `-` is standard input
    pub spec: Utf8PathBuf,
    /// Push only for these machines, more than once for several: names, or a selection such as 'web-*'
    #[arg(long = "agent", value_name = "SELECTION")]
    pub agents: Vec<Selector>,
    /// Do not show what Nix does
    #[arg(short, long)]
    pub quiet: bool,
    /// Where they go
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Runs `hoist build`.
///
/// # Errors
/// [`CommandError`]
pub async fn build(args: &BuildArgs) -> Result<Exit, CommandError> {
    let selection = by_names("build", &args.agents)?;
    let console = Console::new(args.quiet);
    let work = async {
        let nix = nix(&args.nix, args.quiet)?;
        let mut machines = found(&nix, &args.flake, &console).await?;
        machines.narrow(&selection)?;
        let evaluated = evaluate(&nix, &machines, &console).await?;
        let roots = match args.no_build {
            true => None,
            false => Some(built(&nix, &evaluated, &console).await?),
        };
        Ok((evaluated, roots))
    };
    let (evaluated, _roots) = match work.await {
        Ok(done) => done,
        Err(error) => return interrupted(error, &console),
    };
    match &args.out {
        None => print(&evaluated.json).map_err(CommandError::Output)?,
        Some(path) => std::fs::write(path, &evaluated.json)
            .map_err(|source| CommandError::Write(path.clone(), source))?,
    }
    Ok(Exit::Ok)
}

/// Runs `hoist push`.
///
/// # Errors
/// [`CommandError`]
pub async fn run_push(args: &PushArgs, flags: Flags) -> Result<Exit, CommandError> {
    let selection = by_names("push", &args.agents)?;
    let settings = Settings::load(flags, &process_environment)?;
    let cache = settings.needed_cache(args.cache.cache.as_ref())?;
    let spec = Spec::read(&args.spec, &settings.aliases()?)?.only(&selection)?;
    let console = Console::new(args.quiet);
    let work = async {
        let nix = nix(&NixArgs::default(), args.quiet)?;
        pushed(&nix, &spec, &cache, &console).await
    };
    match work.await {
        Ok(()) => Ok(Exit::Ok),
        Err(error) => interrupted(error, &console),
    }
}

/// What `hoist deploy --flake` is to deploy.
pub(super) struct Wanted<'a> {
    pub(super) flake: &'a FlakeRef,
    pub(super) selection: &'a Selection,
    pub(super) nix: &'a NixArgs,
    /// Whether nothing is built or pushed.
    pub(super) only_evaluate: bool,
    pub(super) cache: Option<CacheUrl>,
    pub(super) quiet: bool,
}

impl Wanted<'_> {
    /// Evaluates, builds and pushes it, for the machines that are meant: where that depends on what they say of
    /// themselves, `caller` asks the broker. None when no machine is meant.
    pub(super) async fn spec(&self, caller: &Caller) -> Result<Option<Spec>, CommandError> {
        let log = Log::begin(&process_environment);
        let console = Console::new(self.quiet);
        let nix = nix(self.nix, self.quiet)?;
        let mut machines = found(&nix, self.flake, &console).await?;
        machines.narrow(self.selection)?;
        if self.selection.asks_machines() {
            tokio::select! {
                meant = meant(caller, self.selection, &mut machines) => meant?,
                () = nix.interrupted() => return Err(FlakeError::Nix(NixError::Interrupted).into()),
            }
        }
        if machines.names().next().is_none() {
            console.note("no machine of the flake is meant by that: nothing was built");
            return Ok(None);
        }
        log.section("Evaluating");
        let evaluated = evaluate(&nix, &machines, &console).await?;
        if !self.only_evaluate {
            log.section("Building");
            let _until_pushed = built(&nix, &evaluated, &console).await?;
            if let Some(cache) = &self.cache {
                log.section("Copying to the cache");
                pushed(&nix, &evaluated.spec, cache, &console).await?;
            }
        }
        Ok(Some(evaluated.spec))
    }
}

/// That somebody interrupted is no error of its own.
pub(super) fn interrupted(error: CommandError, console: &Console) -> Result<Exit, CommandError> {
    match error {
        CommandError::Flake(error) if error.is_interrupt() => {
            console.warn("interrupted; nothing was published");
            Ok(Exit::Interrupted)
        }
        error => Err(error),
    }
}

fn nix(args: &NixArgs, quiet: bool) -> Result<Nix, CommandError> {
    let interrupts = Interrupts::listen().map_err(CommandError::Runtime)?;
    Ok(Nix::new(args.nix_args.clone(), quiet, interrupts))
}

/// A selection that can be told without asking the broker.
fn by_names(command: &'static str, selectors: &[Selector]) -> Result<Selection, CommandError> {
    if let Some(selector) = selectors.iter().find(|selector| selector.asks_machines()) {
        return Err(CommandError::AsksMachines {
            command,
            selector: selector.to_string(),
        });
    }
    Ok(Selection {
        selectors: selectors.to_vec(),
        ..Selection::default()
    })
}

async fn found(nix: &Nix, flake: &FlakeRef, console: &Console) -> Result<Machines, CommandError> {
    console.note(&format!("looking for the machines of {flake}"));
    Ok(Machines::find(nix, flake).await?)
}

async fn evaluate(
    nix: &Nix,
    machines: &Machines,
    console: &Console,
) -> Result<Evaluated, CommandError> {
    let count = machines.names().count();
    console.note(&format!("evaluating {}", counted(count, "machine")));
    Ok(machines.evaluate(nix).await?)
}

async fn built(nix: &Nix, evaluated: &Evaluated, console: &Console) -> Result<Roots, CommandError> {
    let count = evaluated.spec.agents().len();
    console.note(&format!("building for {}", counted(count, "machine")));
    Ok(evaluated.build(nix).await?)
}

async fn pushed(
    nix: &Nix,
    spec: &Spec,
    cache: &CacheUrl,
    console: &Console,
) -> Result<(), CommandError> {
    let count = spec.agents().len();
    console.note(&format!(
        "copying the closures of {} to {cache}",
        counted(count, "machine")
    ));
    push(nix, spec, cache).await?;
    Ok(())
}

fn counted(count: usize, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// Leaves the machines that are meant by their own word.
async fn meant(
    caller: &Caller,
    selection: &Selection,
    machines: &mut Machines,
) -> Result<(), CommandError> {
    let agents: Vec<_> = machines.names().cloned().collect();
    let mut link = Link::open(caller).await?;
    let channels = [Channel::Status, Channel::Presence];
    let snapshot = look(&mut link, &caller.fleet, &agents, &channels).await?;
    link.close().await;
    let at = now();
    machines.keep(|agent| selection.means(agent, snapshot.machine(agent), at));
    Ok(())
}

/// Who may ask for what [`Wanted::spec`] needs, in a dry run and otherwise.
pub(super) const fn roles(dry_run: bool) -> &'static [Role] {
    match dry_run {
        true => &super::status::READERS,
        false => &[Role::Publisher],
    }
}

impl From<FlakeError> for CommandError {
    fn from(error: FlakeError) -> Self {
        Self::Flake(error)
    }
}
