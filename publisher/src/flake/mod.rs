//! From a flake to a spec: which machines it has, what they shall run, built and pushed to a binary cache.
//!
//! Nix is asked three times: for the names, which costs little; for what each machine that is meant shall run, one by
//! one, so that an error has the machine's name and the memory of one evaluation is enough; and to build all of it
//! at once.

mod nix;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use hoist_protocol::{AgentName, NameError, Probe, StorePath, Text};
use serde::Deserialize;
use serde_json::Value;

use crate::spec::{Aliases, NotInSpec, Spec, SpecError, narrow};
use nix::{Need, Says};
pub use nix::{Nix, NixError};

/// Where a flake says for itself what Hoist deploys.
const OUTPUT: &str = "hoist";

/// The outputs whose attributes are taken for machines where it does not.
const CONFIGURATIONS: [&str; 2] = ["nixosConfigurations", "darwinConfigurations"];

/// Outputs whose attributes are machines themselves.
const MACHINES: [&str; 3] = [
    "nixosConfigurations",
    "darwinConfigurations",
    "homeConfigurations",
];

/// The function that turns what stands in a flake into what stands in a spec.
const ENTRY: &str = include_str!("entry.nix");

/// Most machines that are named in an error.
const NAMED: usize = 8;

/// Why there is no spec of a flake. Nothing has been published when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum FlakeError {
    /// Nix does not do it.
    #[error(transparent)]
    Nix(#[from] NixError),
    /// It has nothing to deploy.
    #[error(
        "the flake `{flake}` has no `{attribute}`; a spec is an attribute set with `agents`, such as \
         `hoist.lib.spec {{ agents = self.nixosConfigurations; }}` makes one"
    )]
    NoAttribute {
        /// Which flake.
        flake: String,
        /// What it lacks.
        attribute: String,
    },
    /// It has nothing that could be deployed.
    #[error(
        "the flake `{0}` has nothing to deploy: neither an output `hoist` with `agents`, nor `nixosConfigurations` or \
         `darwinConfigurations`"
    )]
    Nothing(String),
    /// A machine's name is none.
    #[error(
        "`{name}` in `{attribute}` cannot be the name of a machine; an output `hoist` can give it another one, or \
         --agent choose others"
    )]
    Name {
        /// What stands there.
        name: Text<80>,
        /// Where.
        attribute: String,
        /// Which rule it breaks.
        #[source]
        source: NameError,
    },
    /// A name stands for two machines.
    #[error("`{0}` is both in `nixosConfigurations` and in `darwinConfigurations`")]
    Twice(AgentName),
    /// Machines were chosen that the flake does not have.
    #[error(transparent)]
    NotInSpec(#[from] NotInSpec),
    /// What a machine shall run cannot be evaluated.
    #[error("what `{agent}` shall run cannot be evaluated (`{attribute}`)")]
    Evaluate {
        /// Whose.
        agent: AgentName,
        /// Where it stands.
        attribute: String,
        /// What Nix says.
        #[source]
        source: NixError,
    },
    /// Closures cannot be built.
    #[error("what {} shall run could not be built", named(.agents))]
    Build {
        /// Whose.
        agents: Vec<AgentName>,
        /// What Nix says.
        #[source]
        source: NixError,
    },
    /// Nothing can keep what is built from the garbage collector.
    #[error("no folder can be made for the roots of what is built")]
    Roots(#[source] std::io::Error),
    /// The cache does not take the closures.
    #[error("the closures could not be copied to `{cache}`")]
    Push {
        /// The cache, without what may be secret in its address.
        cache: String,
        /// What Nix says.
        #[source]
        source: NixError,
    },
    /// What the flake says makes no spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl FlakeError {
    /// Whether somebody stopped it.
    #[must_use]
    pub const fn is_interrupt(&self) -> bool {
        matches!(
            self,
            Self::Nix(NixError::Interrupted)
                | Self::Evaluate {
                    source: NixError::Interrupted,
                    ..
                }
                | Self::Build {
                    source: NixError::Interrupted,
                    ..
                }
                | Self::Push {
                    source: NixError::Interrupted,
                    ..
                }
        )
    }
}

fn named(agents: &[AgentName]) -> String {
    let names: Vec<String> = (agents.iter().take(NAMED))
        .map(|agent| format!("`{agent}`"))
        .collect();
    let more = match agents.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", names.join(", "))
}

/// Where a flake is, and what of it is deployed: `.`, `github:me/fleet`, `.#staging`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlakeRef {
    flake: String,
    attribute: Option<String>,
}

/// A text that is no reference to a flake.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a flake is a path or URL, and perhaps `#` and an output of it, such as `.` or `github:me/fleet#staging`"
)]
pub struct FlakeRefError;

impl FromStr for FlakeRef {
    type Err = FlakeRefError;

    fn from_str(text: &str) -> Result<Self, FlakeRefError> {
        let (flake, attribute) = match text.split_once('#') {
            Some((flake, attribute)) => (flake, Some(attribute)),
            None => (text, None),
        };
        let attribute = attribute.filter(|attribute| !attribute.is_empty());
        let is_hidden = |text: &str| text.starts_with('-') || text.chars().any(char::is_control);
        if is_hidden(flake) || attribute.is_some_and(|text| is_hidden(text) || text.contains('#')) {
            return Err(FlakeRefError);
        }
        // What stands before `#` may be left out, as with Nix.
        let flake = if flake.is_empty() { "." } else { flake };
        Ok(Self {
            flake: flake.to_owned(),
            attribute: attribute.map(str::to_owned),
        })
    }
}

impl fmt::Display for FlakeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.flake)?;
        match &self.attribute {
            Some(attribute) => write!(f, "#{attribute}"),
            None => Ok(()),
        }
    }
}

/// The machines of a flake, and where each stands in it.
#[derive(Debug)]
pub struct Machines {
    flake: String,
    /// Where the spec stands, when the flake has one.
    spec: Option<String>,
    attributes: BTreeMap<AgentName, String>,
    /// Names that are none, and where they stand.
    unfit: Vec<(String, String, NameError)>,
}

/// What the machines shall run, not built yet.
#[derive(Debug)]
pub struct Evaluated {
    /// As it would stand in a file.
    pub json: String,
    /// The same.
    pub spec: Spec,
    needs: BTreeMap<String, Need>,
}

#[derive(Deserialize)]
struct Entry {
    json: String,
    needs: BTreeMap<String, Need>,
}

const NAMES: &str = "builtins.attrNames";

impl Machines {
    /// Finds them: in the output that is asked for, else in `hoist`, else in the configurations.
    ///
    /// # Errors
    /// [`FlakeError`]
    pub async fn find(nix: &Nix, of: &FlakeRef) -> Result<Self, FlakeError> {
        let mut found = Self {
            flake: nix.at_revision(&of.flake).await?,
            spec: None,
            attributes: BTreeMap::new(),
            unfit: Vec::new(),
        };
        let outputs: &[&str] = match of.attribute.as_deref() {
            Some(asked) if MACHINES.contains(&asked) => &[asked],
            Some(asked) => {
                return match found.take_spec(nix, asked).await? {
                    true => Ok(found),
                    false => Err(FlakeError::NoAttribute {
                        flake: of.flake.clone(),
                        attribute: format!("{asked}.agents"),
                    }),
                };
            }
            None if found.take_spec(nix, OUTPUT).await? => return Ok(found),
            None => &CONFIGURATIONS,
        };
        let mut has_any = false;
        for output in outputs {
            has_any |= found.take(nix, output).await?;
        }
        match (has_any, of.attribute.as_deref()) {
            (true, _) => Ok(found),
            (false, Some(asked)) => Err(FlakeError::NoAttribute {
                flake: of.flake.clone(),
                attribute: asked.to_owned(),
            }),
            (false, None) => Err(FlakeError::Nothing(of.flake.clone())),
        }
    }

    async fn take_spec(&mut self, nix: &Nix, output: &str) -> Result<bool, FlakeError> {
        self.spec = Some(output.to_owned());
        self.take(nix, &format!("{output}.agents")).await
    }

    /// Takes the attributes of `attribute` for machines, if the flake has it.
    async fn take(&mut self, nix: &Nix, attribute: &str) -> Result<bool, FlakeError> {
        let names: Option<Vec<String>> = nix
            .eval(&self.flake, attribute, NAMES, Says::Nothing)
            .await?;
        let Some(names) = names else {
            return Ok(false);
        };
        for name in names {
            match AgentName::new(name.as_str()) {
                Ok(agent) => {
                    let at = format!("{attribute}.\"{agent}\"");
                    if self.attributes.insert(agent.clone(), at).is_some() {
                        return Err(FlakeError::Twice(agent));
                    }
                }
                Err(error) => self.unfit.push((name, attribute.to_owned(), error)),
            }
        }
        Ok(true)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &AgentName> {
        self.attributes.keys()
    }

    /// Leaves only those that `selection` may mean, by their names.
    ///
    /// # Errors
    /// [`FlakeError::NotInSpec`], and [`FlakeError::Name`] when all are meant and one has a name that is none.
    pub fn narrow(&mut self, selection: &crate::select::Selection) -> Result<(), FlakeError> {
        if selection.selectors.is_empty()
            && let Some((name, attribute, source)) = self.unfit.first()
        {
            return Err(FlakeError::Name {
                name: Text::lossy(name),
                attribute: attribute.clone(),
                source: source.clone(),
            });
        }
        narrow(&mut self.attributes, selection)?;
        Ok(())
    }

    /// Leaves only those of which `means` holds.
    pub fn keep(&mut self, means: impl Fn(&AgentName) -> bool) {
        self.attributes.retain(|agent, _| means(agent));
    }

    /// Evaluates what they shall run.
    ///
    /// # Errors
    /// [`FlakeError::Evaluate`] names the machine.
    pub async fn evaluate(&self, nix: &Nix) -> Result<Evaluated, FlakeError> {
        let mut agents = serde_json::Map::new();
        let mut needs = BTreeMap::new();
        for (agent, attribute) in &self.attributes {
            let says = Says::After(agent.to_string());
            let entry = nix
                .eval::<Entry>(&self.flake, attribute, ENTRY, says)
                .await
                .and_then(|entry| entry.ok_or(NixError::Failed("eval")))
                .and_then(|entry| Ok((json(&entry.json)?, entry.needs)));
            let (value, needed) = entry.map_err(|source| FlakeError::Evaluate {
                agent: agent.clone(),
                attribute: format!("{}#{attribute}", self.flake),
                source,
            })?;
            agents.insert(agent.to_string(), value);
            needs.extend(needed);
        }
        let mut document = serde_json::Map::from_iter([("agents".to_owned(), agents.into())]);
        if let Some(spec) = &self.spec {
            let attribute = format!("{spec}.rollbackScript");
            let script: Option<Entry> = nix
                .eval(&self.flake, &attribute, ENTRY, Says::Nothing)
                .await?;
            if let Some(script) = script {
                document.insert("rollbackScript".to_owned(), json(&script.json)?);
                needs.extend(script.needs);
            }
        }
        let json = format!("{:#}\n", Value::Object(document));
        let spec = Spec::parse(
            format!("of the flake `{}`", self.flake),
            json.as_bytes(),
            &Aliases::default(),
        )?;
        Ok(Evaluated { json, spec, needs })
    }
}

fn json(text: &str) -> Result<Value, NixError> {
    serde_json::from_str(text).map_err(|error| NixError::Output("eval", error))
}

/// Keeps what was built from the garbage collector for as long as it lives: no cache may have it yet.
#[must_use]
#[derive(Debug)]
pub struct Roots {
    _folder: tempfile::TempDir,
}

impl Evaluated {
    /// Builds all of it, or gets it from binary caches; what comes back keeps it from the garbage collector.
    ///
    /// # Errors
    /// [`FlakeError::Build`] names the machines whose closures are not there.
    pub async fn build(&self, nix: &Nix) -> Result<Roots, FlakeError> {
        let roots = tempfile::Builder::new()
            .prefix("hoist-roots-")
            .tempdir()
            .map_err(FlakeError::Roots)?;
        let Err(source) = nix.build(&self.needs, roots.path()).await else {
            return Ok(Roots { _folder: roots });
        };
        if matches!(source, NixError::Interrupted | NixError::NotInstalled) {
            return Err(source.into());
        }
        let missing = nix.missing(&paths(&self.spec)).await?;
        let agents: Vec<AgentName> = (self.spec.agents().iter())
            .filter(|(_, wanted)| missing.contains(&wanted.path))
            .map(|(agent, _)| agent.clone())
            .collect();
        match agents.is_empty() {
            true => Err(source.into()),
            false => Err(FlakeError::Build { agents, source }),
        }
    }
}

/// All store paths that machines fetch for `spec`, each once.
fn paths(spec: &Spec) -> Vec<&StorePath> {
    let agents = spec.agents().values();
    let checks = agents.clone().flat_map(|wanted| &wanted.options.checks);
    let programs = (checks.chain(spec.health_check())).filter_map(|check| match &check.probe {
        Probe::Program(programs) => Some(programs.values()),
        _ => None,
    });
    let all: BTreeSet<&StorePath> = agents
        .map(|wanted| &wanted.path)
        .chain(programs.flatten())
        .collect();
    all.into_iter().collect()
}

/// A store that closures are copied to, as Nix writes it: `s3://bucket?secret-key=/path`, `ssh-ng://cache`.
#[derive(Clone, Eq, PartialEq)]
pub struct CacheUrl(String);

/// A text that is no address of a store.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a cache is the URL of a store, such as s3://bucket?secret-key=/path/of/key, file:///srv/cache or ssh-ng://host"
)]
pub struct CacheUrlError;

impl FromStr for CacheUrl {
    type Err = CacheUrlError;

    fn from_str(text: &str) -> Result<Self, CacheUrlError> {
        let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty()
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !scheme.starts_with('-')
                && !rest.is_empty()
        });
        if !is_url || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(CacheUrlError);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Without what may be secret: a password, and Nix's own settings.
impl fmt::Display for CacheUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let rest = rest.split('?').next().unwrap_or(rest);
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        write!(f, "{scheme}://{host}")
    }
}

impl fmt::Debug for CacheUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheUrl({self})")
    }
}

/// Copies everything that machines fetch for `spec` to `cache`, and says how many closures that are.
///
/// # Errors
/// [`FlakeError::Push`]
pub async fn push(nix: &Nix, spec: &Spec, cache: &CacheUrl) -> Result<(), FlakeError> {
    nix.copy(&paths(spec), &cache.0)
        .await
        .map_err(|source| FlakeError::Push {
            cache: cache.to_string(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_flake_and_perhaps_an_output() {
        let parsed = |text: &str| {
            let FlakeRef { flake, attribute } = text.parse().unwrap();
            (flake, attribute)
        };
        assert_eq!(parsed("."), (".".to_owned(), None));
        assert_eq!(
            parsed("github:me/fleet?ref=main#staging"),
            (
                "github:me/fleet?ref=main".to_owned(),
                Some("staging".to_owned())
            )
        );
        assert_eq!(parsed("#a.b"), (".".to_owned(), Some("a.b".to_owned())));
        assert_eq!(parsed(".#"), (".".to_owned(), None));
        for text in ["--impure", ".#-x", ".#a#b", ".\n"] {
            assert!(text.parse::<FlakeRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_address_of_a_cache_is_shown_without_what_may_be_secret() {
        for (text, shown) in [
            ("s3://cache?secret-key=/k&region=x", "s3://cache"),
            ("https://me:word@cache.example/a", "https://cache.example/a"),
            ("file:///srv/cache?secret-key=/k", "file:///srv/cache"),
        ] {
            let url: CacheUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("secret"));
        }
        for text in ["", "cache", "--to", "-x://a", "://a", "s3://", "s3://a b"] {
            assert!(text.parse::<CacheUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_names_no_more_machines_than_somebody_reads() {
        let agents: Vec<AgentName> = (0..10)
            .map(|n| AgentName::new(format!("web-{n}")).unwrap())
            .collect();
        assert_eq!(named(&agents[..1]), "`web-0`");
        assert!(named(&agents).ends_with("`web-7` and 2 more"));
    }
}
