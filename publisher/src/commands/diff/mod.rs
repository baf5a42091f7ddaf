//! `hoist diff`: what is different between two closures, as far as that can be known here.
//!
//! In full it is known of closures that are in this computer's own store. Of others there is the word of the machine
//! that was deployed: how many packages changed, some of their names, and sizes. What is shown says which it is.

mod known;
mod show;

use std::collections::BTreeSet;

use camino::Utf8Path;
use clap::Args;
use hoist_protocol::{
    AgentName, Changes, Channel, ClosureDifference, NameError, StorePath, StorePathError, Text,
};

use super::status::READERS;
use super::{CommandError, look_at_one, unless_interrupted};
use crate::console::table::Page;
use crate::console::{print, to_stderr};
use crate::digests::{self, DigestError};
use crate::id_end::{IdEnd, IdEndError};
use crate::outcome::Exit;
use crate::settings::{Flags, Settings, process_environment};
use known::Known;

pub(crate) const DIFF_EXAMPLES: &str = "\
Examples:
  hoist diff web-1                          what the newest deployment of web-1 changed, or would have
  hoist diff web-1 9b30771b                 what this one changed
  hoist diff web-1 6c4219e7 9b30771b        from what one brought to what another brought
  hoist diff ./result /run/current-system   two closures in the store of this computer";

/// `hoist diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// A machine and up to two deployments of its history, by id or by the last 8 digits; or two paths: store paths, or
    /// links to them, which have a `/` in them
    #[arg(value_names = ["AGENT|PATH", "ID|PATH"], num_args = 1..=3, required = true)]
    pub what: Vec<String>,
    /// Write JSON: {"schema": 1, "command": "diff", "known_from": "store", "machine", "sizes" or "nothing", "from" and
    /// "to": {"path", "id", "closure_size"}, "changes", "packages"}
    #[arg(long)]
    pub json: bool,
}

/// Why nothing can be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// What was given is neither of the two.
    #[error(
        "`hoist diff` takes a machine and up to two of its deployments, or two paths; `{0}` is neither a name nor a \
         path, which has a `/` in it"
    )]
    Neither(Text<128>, #[source] NameError),
    /// What should be one of its deployments is none.
    #[error(transparent)]
    Id(#[from] IdEndError),
    /// One path, or three.
    #[error("two paths are compared, or what a machine was deployed; {0} paths were given")]
    Paths(usize),
    /// A path cannot be followed.
    #[error("cannot follow `{path}`")]
    Follow {
        /// Which one.
        path: Text<256>,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A path leads elsewhere.
    #[error("`{path}` leads to no store path")]
    NotInStore {
        /// Which one.
        path: Text<256>,
        /// What it is instead.
        #[source]
        source: StorePathError,
    },
    /// Nix does not tell.
    #[error("Nix does not tell what the closures hold")]
    Nix(#[source] DigestError),
    /// The store does not have one of them.
    #[error(
        "`{0}` is not in the store of this computer, so what it holds is not known here; \
         `nix copy --from CACHE {0}` brings it"
    )]
    NotHere(StorePath),
    /// Nothing was deployed.
    #[error("nothing was deployed to `{0}` so far, so there is nothing to compare")]
    Nothing(AgentName),
}

impl DiffError {
    pub(super) const fn exit(&self) -> Exit {
        match self {
            Self::Neither(..) | Self::Id(_) | Self::Paths(_) => Exit::Usage,
            Self::Follow { .. }
            | Self::NotInStore { .. }
            | Self::Nix(_)
            | Self::NotHere(_)
            | Self::Nothing(_) => Exit::Error,
        }
    }
}

/// What is to be compared.
#[derive(Debug)]
enum Asked {
    Paths(StorePath, StorePath),
    Machine(AgentName, Vec<IdEnd>),
}

/// One of the two that are compared.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Side {
    path: Option<StorePath>,
    /// The deployment that brought it, where that was asked for.
    id: Option<hoist_protocol::DeploymentId>,
    /// In bytes, by the machine's word.
    size: Option<u64>,
}

/// What is known of the difference.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    /// All of it: both are in the store of this computer.
    All(ClosureDifference),
    /// What the machine said of it.
    Said(Changes),
    /// The sizes, where the two sides have them, and nothing else.
    Sizes,
    /// They are the same closure.
    Same,
}

/// Two sides, and what is different.
#[derive(Clone, Debug)]
struct Compared {
    /// The machine whose word it is, where it is one's.
    agent: Option<AgentName>,
    from: Side,
    to: Side,
    found: Found,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]
pub async fn run(args: &DiffArgs, flags: Flags) -> Result<Exit, CommandError> {
    let compared = match asked(&args.what)? {
        Asked::Paths(from, to) => unless_interrupted(of_paths(from, to)).await?,
        Asked::Machine(agent, ids) => unless_interrupted(of_machine(agent, &ids, flags)).await?,
    };
    let Some(compared) = compared else {
        return Ok(Exit::Interrupted);
    };
    if args.json {
        print(&show::json(&compared)).map_err(CommandError::Output)?;
        return Ok(Exit::Ok);
    }
    print(&show::text(&compared, Page::stdout())).map_err(CommandError::Output)?;
    if let Some(remark) = show::remark(&compared) {
        to_stderr(&remark);
    }
    Ok(Exit::Ok)
}

fn asked(what: &[String]) -> Result<Asked, DiffError> {
    let paths = what.iter().filter(|text| text.contains('/')).count();
    match what {
        [from, to] if paths == 2 => Ok(Asked::Paths(followed(from)?, followed(to)?)),
        [agent, ids @ ..] if paths == 0 => match AgentName::new(agent.as_str()) {
            Ok(agent) => {
                let ids = ids.iter().map(|id| id.parse());
                Ok(Asked::Machine(agent, ids.collect::<Result<_, _>>()?))
            }
            Err(error) => Err(DiffError::Neither(Text::lossy(agent), error)),
        },
        _ => Err(DiffError::Paths(paths)),
    }
}

/// The store path that `path` is, is in, or leads to by links, as Nix's own results do.
fn followed(path: &str) -> Result<StorePath, DiffError> {
    let in_store = |path: &Utf8Path| {
        let rest = path.as_str().strip_prefix(hoist_protocol::STORE)?;
        let top = rest.split('/').next()?;
        Some(StorePath::new(format!("{}{top}", hoist_protocol::STORE)))
    };
    let path = Utf8Path::new(path);
    let found = match in_store(path) {
        Some(found) => Some(found),
        None => in_store(
            &path
                .canonicalize_utf8()
                .map_err(|source| DiffError::Follow {
                    path: Text::lossy(path.as_str()),
                    source,
                })?,
        ),
    };
    // The text itself says best why it is none.
    let found = found.unwrap_or_else(|| StorePath::new(path.as_str()));
    found.map_err(|source| DiffError::NotInStore {
        path: Text::lossy(path.as_str()),
        source,
    })
}

async fn of_paths(from: StorePath, to: StorePath) -> Result<Compared, CommandError> {
    let both = BTreeSet::from([from.clone(), to.clone()]);
    let closures = digests::closures(&both).await.map_err(DiffError::Nix)?;
    let info = |path: &StorePath| {
        let info = closures.info(path);
        info.ok_or_else(|| DiffError::NotHere(path.clone()))
    };
    let (before, after) = (info(&from)?, info(&to)?);
    let side = |path: StorePath, size| Side {
        path: Some(path),
        id: None,
        size: Some(size),
    };
    Ok(Compared {
        agent: None,
        found: match from == to {
            true => Found::Same,
            false => Found::All(after.difference_from(&before)),
        },
        from: side(from, before.size()),
        to: side(to, after.size()),
    })
}

async fn of_machine(
    agent: AgentName,
    ids: &[IdEnd],
    flags: Flags,
) -> Result<Compared, CommandError> {
    let caller = Settings::load(flags, &process_environment)?
        .caller("read the history of machines", &READERS)?;
    let channels = [Channel::Status, Channel::Presence, Channel::History];
    let seen = look_at_one(&caller, &agent, &channels).await?;
    let mut compared = Known::of(&seen).compare(&agent, ids)?;
    if compared.found != Found::Same
        && let Some(all) = from_store(&compared.from, &compared.to).await
    {
        compared.found = Found::All(all);
    }
    Ok(compared)
}

/// All of the difference, when both closures are in the store of this computer and Nix tells.
async fn from_store(from: &Side, to: &Side) -> Option<ClosureDifference> {
    let (from, to) = (from.path.clone()?, to.path.clone()?);
    let both = BTreeSet::from([from.clone(), to.clone()]);
    match digests::closures(&both).await {
        Ok(closures) => Some(closures.info(&to)?.difference_from(&closures.info(&from)?)),
        // What the machine says has to do.
        Err(error) => {
            tracing::debug!(%error, "Nix does not tell about the closures");
            None
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
