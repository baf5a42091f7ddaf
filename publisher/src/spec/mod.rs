//! The spec: which machine shall run which closure, in the JSON that Cachix Deploy reads.
//!
//! ```json
//! { "agents": { "web-1": "/nix/store/…" }, "rollbackScript": { "x86_64-linux": "/nix/store/…" } }
//! ```
//!
//! The script is run as a health check: a machine on which it exits with another code than 0 rolls back. Where
//! a machine needs more than the path there is an object in its place:
//!
//! ```json
//! { "agents": { "web-1": {
//!     "path": "/nix/store/…", "kind": "nixos", "action": "switch", "specialisation": "fallback",
//!     "units_failed": "keep-if-failed-before", "confirm_timeout": "2m",
//!     "checks": [ { "http": "http://localhost/health", "grace": "10s", "retries": 3 } ] } } }
//! ```
//!
//! Names of machines elsewhere, with dots or capitals, are said to mean machines here:
//!
//! ```json
//! { "agents": { "Web.example.org": "/nix/store/…" }, "aliases": { "Web.example.org": "web-1" } }
//! ```
//!
//! A spec that cannot be changed is read as it is with `aliases` in `hoist.toml`.
//!
//! `spec.schema.json` beside this crate's `Cargo.toml` has all of it.

mod agent;
mod aliases;
mod json;

use std::collections::BTreeMap;
use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{
    AgentName, HealthCheck, NameError, Probe, StorePath, StorePathError, System, SystemError, Text,
    limits, nearest,
};

use crate::select::{Selection, Selector};
pub use agent::AgentSpec;
pub use aliases::{ALIAS_LEN, AliasError, Aliases};
use json::{Fields, Json};

/// Largest spec that is read, in bytes: room for some 100,000 machines.
pub const MAX_LEN: u64 = 16 * 1024 * 1024;

/// The keys that a spec may have.
const KEYS: &[&str] = &["agents", "aliases", "rollbackScript"];

/// Why a spec is not taken. Nothing has been sent when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file, or standard input, cannot be read.
    #[error("cannot read the spec {origin}")]
    Read {
        /// The file's path in backticks, or `standard input`.
        origin: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is more than [`MAX_LEN`].
    #[error("the spec {0} has more than 16 MB")]
    TooLong(String),
    /// It is no JSON.
    #[error("the spec {origin} is no JSON")]
    Json {
        /// As in [`SpecError::Read`].
        origin: String,
        /// Where it stops being JSON.
        #[source]
        source: serde_json::Error,
    },
    /// It is JSON, but something in it is wrong.
    #[error("the spec {origin} is not valid")]
    Invalid {
        /// As in [`SpecError::Read`].
        origin: String,
        /// What is wrong.
        #[source]
        source: Box<FieldError>,
    },
}

/// What is wrong with a spec, and where.
#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    /// Another kind of value stands there.
    #[error("{field} is {found}, where {expected} belongs")]
    Type {
        /// Where.
        field: String,
        /// What stands there.
        found: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A key that is none of those that belong there.
    #[error(
        "{}unknown key `{key}`{}; {what} has the keys {}",
        prefix(.at), did_you_mean(.nearest.as_deref()), listed(.keys)
    )]
    UnknownKey {
        /// Where, empty for the spec itself.
        at: String,
        /// The key.
        key: String,
        /// The known key it resembles.
        nearest: Option<String>,
        /// What it is a key of.
        what: &'static str,
        /// The keys that belong there.
        keys: &'static [&'static str],
    },
    /// A word that is none of those that belong there.
    #[error("{field} is `{given}`{}, where one of {words} belongs", did_you_mean(.nearest.as_deref()))]
    Word {
        /// Where.
        field: String,
        /// What stands there.
        given: String,
        /// The known word it resembles.
        nearest: Option<String>,
        /// All of them.
        words: String,
    },
    /// A text that is not what belongs there.
    #[error("{field} is not valid")]
    Value {
        /// Where.
        field: String,
        /// Which rule it breaks.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync + 'static>,
    },
    /// An object of a machine without what it shall run.
    #[error("{at} has no `path`: the store path that it shall run")]
    NoPath {
        /// Where.
        at: String,
    },
    /// A health check that tries nothing, or more than one thing.
    #[error("{at} is no health check: it has exactly one of `unit`, `tcp`, `http` and `program`")]
    Probe {
        /// Where.
        at: String,
    },
    /// A health check is tried too often.
    #[error("{field} is {found}; at most {} are allowed", limits::CHECK_RETRIES)]
    Retries {
        /// Where.
        field: String,
        /// How often.
        found: u64,
    },
    /// A key stands there twice, and nobody can tell which one counts.
    #[error("{field} is there twice")]
    Twice {
        /// Which one.
        field: String,
    },
    /// There is no machine in it.
    #[error("it names no machine: `agents` is missing or empty")]
    NoAgents,
    /// A machine's name is none.
    #[error(
        "agent {name}: not a valid name, and `aliases`, in the spec or in hoist.toml, has no other one for it"
    )]
    Agent {
        /// What stands there, quoted.
        name: String,
        /// Which rule it breaks.
        #[source]
        source: NameError,
    },
    /// Another name for a machine that the spec does not use: it is mistyped, most likely.
    #[error("`aliases.{name}`: no agent is called so{}", did_you_mean(.nearest.as_deref()))]
    UnusedAlias {
        /// The other name.
        name: String,
        /// The name in the spec that it resembles.
        nearest: Option<String>,
    },
    /// What a machine shall run is no store path.
    #[error("agent `{agent}`: what it shall run is no store path")]
    AgentPath {
        /// Whose.
        agent: AgentName,
        /// Which rule it breaks.
        #[source]
        source: StorePathError,
    },
    /// A key of the programs for each system is none.
    #[error("{field}: a key of it is no system")]
    System {
        /// Where.
        field: String,
        /// Which rule it breaks.
        #[source]
        source: SystemError,
    },
    /// The program for a system is no store path.
    #[error("{field}: the health check is no store path")]
    ScriptPath {
        /// Where.
        field: String,
        /// Which rule it breaks.
        #[source]
        source: StorePathError,
    },
}

/// `; did you mean …?` for the end of a message.
#[must_use]
pub fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

fn prefix(at: &str) -> String {
    match at {
        "" => String::new(),
        at => format!("{at}: "),
    }
}

/// `a`, `b` and `c`.
fn listed(keys: &[&str]) -> String {
    let quoted: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Which machine shall run what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Spec {
    agents: BTreeMap<AgentName, AgentSpec>,
    health_check: Option<HealthCheck>,
}

impl Spec {
    /// Reads the spec from the file `path`, or from standard input when `path` is `-`. Names in it that are none here mean
    /// what its own `aliases` say, or else these.
    ///
    /// # Errors
    /// [`SpecError`] names the machine and the field.
    pub fn read(path: &Utf8Path, aliases: &Aliases) -> Result<Self, SpecError> {
        let (origin, bytes) = if path == "-" {
            let mut bytes = Vec::new();
            let read = std::io::stdin()
                .lock()
                .take(MAX_LEN + 1)
                .read_to_end(&mut bytes);
            ("on standard input".to_owned(), read.map(|_| bytes))
        } else {
            (format!("`{path}`"), read_file(path))
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(source) => return Err(SpecError::Read { origin, source }),
        };
        Self::parse(origin, &bytes, aliases)
    }

    /// Reads the spec `bytes`; errors say that it is the one `origin`. Names mean machines as for [`Spec::read`].
    ///
    /// # Errors
    /// [`SpecError`] names the machine and the field.
    pub fn parse(origin: String, bytes: &[u8], aliases: &Aliases) -> Result<Self, SpecError> {
        if bytes.len() as u64 > MAX_LEN {
            return Err(SpecError::TooLong(origin));
        }
        let json = match serde_json::from_slice::<Json>(bytes) {
            Ok(json) => json,
            Err(source) => return Err(SpecError::Json { origin, source }),
        };
        Self::from_json(json, aliases).map_err(|source| SpecError::Invalid {
            origin,
            source: Box::new(source),
        })
    }

    /// The machines and what each shall run; never empty.
    #[must_use]
    pub const fn agents(&self) -> &BTreeMap<AgentName, AgentSpec> {
        &self.agents
    }

    /// What must hold on every machine after its activation.
    #[must_use]
    pub const fn health_check(&self) -> Option<&HealthCheck> {
        self.health_check.as_ref()
    }

    /// The spec of only the machines that `selection` may mean: what machines say of themselves is not known yet.
    ///
    /// # Errors
    /// [`NotInSpec`] when a name, or what names are like, is not in the spec: most likely it is mistyped.
    pub fn only(mut self, selection: &Selection) -> Result<Self, NotInSpec> {
        narrow(&mut self.agents, selection)?;
        Ok(self)
    }

    fn from_json(json: Json, aliases: &Aliases) -> Result<Self, FieldError> {
        let entries = json.object("the spec", "an object with the key `agents`")?;
        let mut fields = Fields::new("", "a spec", KEYS, entries)?;
        let own = match fields.take("aliases") {
            Some((_, value)) => Aliases::read(value)?,
            None => Aliases::default(),
        };
        let agents = match fields.take("agents") {
            Some((_, value)) => read_agents(value, own, aliases)?,
            None => BTreeMap::new(),
        };
        let health_check = match fields.take("rollbackScript") {
            // Cachix Deploy's library writes `null` for "no script".
            Some((_, Json::Null)) | None => None,
            Some((field, value)) => read_health_check(&field, value)?,
        };
        if agents.is_empty() {
            return Err(FieldError::NoAgents);
        }
        Ok(Self {
            agents,
            health_check,
        })
    }
}

/// Leaves only the machines that `selection` may mean: what machines say of themselves is not known yet.
///
/// # Errors
/// [`NotInSpec`] when a name, or what names are like, is not among them: most likely it is mistyped.
pub fn narrow<T>(
    agents: &mut BTreeMap<AgentName, T>,
    selection: &Selection,
) -> Result<(), NotInSpec> {
    let mut names = selection.selectors.iter().flat_map(Selector::names);
    if let Some(name) = names.find(|name| !agents.contains_key(*name)) {
        let known = agents.keys().map(AgentName::as_str);
        return Err(NotInSpec::Agent {
            nearest: nearest(name.as_str(), known).map(str::to_owned),
            name: name.clone(),
        });
    }
    for selector in &selection.selectors {
        if !selector.asks_machines() && !agents.keys().any(|agent| selector.chooses(agent, None)) {
            return Err(NotInSpec::Nobody(selector.to_string()));
        }
    }
    if !selection.selectors.iter().any(Selector::asks_machines) {
        agents.retain(|name, _| {
            let mut selectors = selection.selectors.iter();
            selection.selectors.is_empty() || selectors.any(|one| one.chooses(name, None))
        });
    }
    Ok(())
}

/// Machines that were chosen but are not in the spec.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotInSpec {
    /// One by its name.
    #[error("agent `{name}` is not in the spec{}", did_you_mean(.nearest.as_deref()))]
    Agent {
        /// The name.
        name: AgentName,
        /// The machine of the spec whose name it resembles.
        nearest: Option<String>,
    },
    /// Some by what their names are like.
    #[error("no agent in the spec is chosen by `{0}`")]
    Nobody(String),
}

fn read_file(path: &Utf8Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(Utf8PathBuf::from(path))?
        .take(MAX_LEN + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_agents(
    json: Json,
    own: Aliases,
    others: &Aliases,
) -> Result<BTreeMap<AgentName, AgentSpec>, FieldError> {
    let entries = json.object("`agents`", "an object of names and store paths")?;
    let names: Vec<String> = entries.iter().map(|(name, _)| name.clone()).collect();
    if let Some(unused) = own.not_in(&names) {
        let similar = nearest(unused, names.iter().map(String::as_str));
        return Err(FieldError::UnusedAlias {
            name: shown(unused),
            nearest: similar.map(shown),
        });
    }
    let aliases = own.or(others);
    let mut agents = BTreeMap::new();
    for (name, value) in entries {
        let agent = match aliases.get(&name) {
            Some(agent) => agent.clone(),
            None => AgentName::new(name.as_str()).map_err(|source| FieldError::Agent {
                name: format!("{:?}", shown(&name)),
                source,
            })?,
        };
        let spec = AgentSpec::read(&agent, value)?;
        let field = format!("`agents.{agent}`");
        if agents.insert(agent, spec).is_some() {
            return Err(FieldError::Twice { field });
        }
    }
    Ok(agents)
}

/// A health check of no system at all is none: Cachix Deploy's library writes `{}` for "no script".
fn read_health_check(field: &str, json: Json) -> Result<Option<HealthCheck>, FieldError> {
    let programs = programs(field, json)?;
    Ok((!programs.is_empty()).then(|| HealthCheck::new(Probe::Program(programs))))
}

/// A program for each system.
fn programs(at: &str, json: Json) -> Result<BTreeMap<System, StorePath>, FieldError> {
    let mut programs = BTreeMap::new();
    for (name, value) in json.object(at, "an object of systems and store paths")? {
        let system = System::new(name).map_err(|source| FieldError::System {
            field: at.to_owned(),
            source,
        })?;
        let field = format!("{}.{system}`", at.trim_end_matches('`'));
        let path = match StorePath::new(value.text(&field, "a store path")?) {
            Ok(path) => path,
            Err(source) => return Err(FieldError::ScriptPath { field, source }),
        };
        if programs.insert(system, path).is_some() {
            return Err(FieldError::Twice { field });
        }
    }
    Ok(programs)
}

fn shown(text: &str) -> String {
    Text::<80>::lossy(text).to_string()
}

#[cfg(test)]
mod tests;
