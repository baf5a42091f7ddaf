//! The spec: which machine shall run which closure, in the JSON that Cachix Deploy reads.
//!
//! ```json
//! { "agents": { "web-1": "/nix/store/…" }, "rollbackScript": { "x86_64-linux": "/nix/store/…" } }
//! ```
//!
//! The script is run as a health check: a machine on which it exits with another code than 0 rolls back.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{
    AgentName, HealthCheck, NameError, Probe, StorePath, StorePathError, System, SystemError, Text,
    nearest,
};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Largest spec that is read, in bytes: room for some 100,000 machines.
pub const MAX_LEN: u64 = 16 * 1024 * 1024;

/// The keys that a spec may have.
const KEYS: [&str; 2] = ["agents", "rollbackScript"];

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
        source: FieldError,
    },
}

/// What is wrong with a spec, and where.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
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
    /// A key that no spec has.
    #[error("unknown key `{key}`{}; a spec has the keys `agents` and `rollbackScript`", did_you_mean(.nearest.as_deref()))]
    UnknownKey {
        /// The key.
        key: String,
        /// The known key it resembles.
        nearest: Option<String>,
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
    #[error("agent {name}: not a valid name")]
    Agent {
        /// What stands there, quoted.
        name: String,
        /// Which rule it breaks.
        #[source]
        source: NameError,
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
    /// A system in `rollbackScript` is none.
    #[error("`rollbackScript`: a key of it is no system")]
    System(#[source] SystemError),
    /// The script for a system is no store path.
    #[error("`rollbackScript.{system}`: the health check is no store path")]
    ScriptPath {
        /// The system.
        system: System,
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

/// Which machine shall run what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Spec {
    agents: BTreeMap<AgentName, StorePath>,
    health_check: Option<HealthCheck>,
}

impl Spec {
    /// Reads the spec from the file `path`, or from standard input when `path` is `-`.
    ///
    /// # Errors
    /// [`SpecError`] names the machine and the field.
    pub fn read(path: &Utf8Path) -> Result<Self, SpecError> {
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
        if bytes.len() as u64 > MAX_LEN {
            return Err(SpecError::TooLong(origin));
        }
        let json = match serde_json::from_slice::<Json>(&bytes) {
            Ok(json) => json,
            Err(source) => return Err(SpecError::Json { origin, source }),
        };
        Self::from_json(json).map_err(|source| SpecError::Invalid { origin, source })
    }

    /// The machines and what each shall run; never empty.
    #[must_use]
    pub const fn agents(&self) -> &BTreeMap<AgentName, StorePath> {
        &self.agents
    }

    /// What must hold on every machine after its activation.
    #[must_use]
    pub const fn health_check(&self) -> Option<&HealthCheck> {
        self.health_check.as_ref()
    }

    /// The spec of only the machines in `chosen`, or of all when nothing is chosen.
    ///
    /// # Errors
    /// [`UnknownAgent`] when a chosen name is not in the spec.
    pub fn only(mut self, chosen: &[AgentName]) -> Result<Self, UnknownAgent> {
        if let Some(name) = chosen.iter().find(|name| !self.agents.contains_key(*name)) {
            let known = self.agents.keys().map(AgentName::as_str);
            return Err(UnknownAgent {
                nearest: nearest(name.as_str(), known).map(str::to_owned),
                name: name.clone(),
            });
        }
        if !chosen.is_empty() {
            self.agents.retain(|name, _| chosen.contains(name));
        }
        Ok(self)
    }

    fn from_json(json: Json) -> Result<Self, FieldError> {
        let mut agents = BTreeMap::new();
        let mut health_check = None;
        let mut seen = Vec::new();
        for (key, value) in json.object("the spec", "an object with the key `agents`")? {
            match key.as_str() {
                "agents" => agents = read_agents(value)?,
                "rollbackScript" => health_check = read_health_check(value)?,
                _ => {
                    return Err(FieldError::UnknownKey {
                        nearest: nearest(&key, KEYS).map(str::to_owned),
                        key: shown(&key),
                    });
                }
            }
            if seen.contains(&key) {
                return Err(FieldError::Twice {
                    field: format!("`{key}`"),
                });
            }
            seen.push(key);
        }
        if agents.is_empty() {
            return Err(FieldError::NoAgents);
        }
        Ok(Self {
            agents,
            health_check,
        })
    }
}

/// A machine that was chosen by name but is not in the spec.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("agent `{name}` is not in the spec{}", did_you_mean(.nearest.as_deref()))]
pub struct UnknownAgent {
    /// The name.
    pub name: AgentName,
    /// The machine of the spec whose name it resembles.
    pub nearest: Option<String>,
}

fn read_file(path: &Utf8Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(Utf8PathBuf::from(path))?
        .take(MAX_LEN + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_agents(json: Json) -> Result<BTreeMap<AgentName, StorePath>, FieldError> {
    let mut agents = BTreeMap::new();
    for (name, value) in json.object("`agents`", "an object of names and store paths")? {
        let agent = AgentName::new(name.as_str()).map_err(|source| FieldError::Agent {
            name: format!("{:?}", shown(&name)),
            source,
        })?;
        let field = format!("`agents.{agent}`");
        let path = StorePath::new(value.text(&field, "a store path")?).map_err(|source| {
            FieldError::AgentPath {
                agent: agent.clone(),
                source,
            }
        })?;
        if agents.insert(agent, path).is_some() {
            return Err(FieldError::Twice { field });
        }
    }
    Ok(agents)
}

/// A health check of no system at all is none: Cachix Deploy's library writes `{}` or `null` for "no script".
fn read_health_check(json: Json) -> Result<Option<HealthCheck>, FieldError> {
    if matches!(json, Json::Other("null")) {
        return Ok(None);
    }
    let mut programs = BTreeMap::new();
    for (name, value) in json.object("`rollbackScript`", "an object of systems and store paths")? {
        let system = System::new(name).map_err(FieldError::System)?;
        let field = format!("`rollbackScript.{system}`");
        let path = StorePath::new(value.text(&field, "a store path")?).map_err(|source| {
            FieldError::ScriptPath {
                system: system.clone(),
                source,
            }
        })?;
        if programs.insert(system, path).is_some() {
            return Err(FieldError::Twice { field });
        }
    }
    Ok((!programs.is_empty()).then(|| HealthCheck::new(Probe::Program(programs))))
}

fn shown(text: &str) -> String {
    Text::<80>::lossy(text).to_string()
}

/// JSON as far as a spec needs it. Objects keep repeated keys, which must not be lost silently: the last of
/// two lines for one machine would win otherwise.
enum Json {
    Object(Vec<(String, Json)>),
    Text(String),
    Other(&'static str),
}

impl Json {
    fn kind(&self) -> &'static str {
        match self {
            Self::Object(_) => "an object",
            Self::Text(_) => "a string",
            Self::Other(kind) => kind,
        }
    }

    fn object(
        self,
        field: &str,
        expected: &'static str,
    ) -> Result<Vec<(String, Self)>, FieldError> {
        match self {
            Self::Object(entries) => Ok(entries),
            other => Err(other.mismatch(field, expected)),
        }
    }

    fn text(self, field: &str, expected: &'static str) -> Result<String, FieldError> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(other.mismatch(field, expected)),
        }
    }

    fn mismatch(&self, field: &str, expected: &'static str) -> FieldError {
        FieldError::Type {
            field: field.to_owned(),
            found: self.kind(),
            expected,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Json::Object(entries))
            }

            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(Json::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Json::Other("a list"))
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Other("null"))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
                Ok(Json::Other("true or false"))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
                Ok(Json::Other("a number"))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
                Ok(Json::Other("a number"))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
                Ok(Json::Other("a number"))
            }
        }
        from.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-web";
    const B: &str = "/nix/store/1c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-db";

    fn parse(text: &str) -> Result<Spec, String> {
        let json = serde_json::from_str::<Json>(text).map_err(|error| error.to_string())?;
        Spec::from_json(json).map_err(|error| chain(&error))
    }

    fn chain(error: &dyn std::error::Error) -> String {
        match error.source() {
            Some(source) => format!("{error}: {}", chain(source)),
            None => error.to_string(),
        }
    }

    #[test]
    fn a_spec_of_cachix_deploy_is_read() {
        let spec = parse(&format!(
            r#"{{"agents": {{"web-1": "{A}", "db-1": "{B}"}}, "rollbackScript": {{"x86_64-linux": "{A}"}}}}"#
        ))
        .unwrap();
        let web = AgentName::new("web-1").unwrap();
        assert_eq!(spec.agents()[&web].as_str(), A);
        assert_eq!(spec.agents().len(), 2);
        let Some(Probe::Program(programs)) = spec.health_check().map(|check| &check.probe) else {
            panic!("no health check");
        };
        assert_eq!(programs.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_machine_and_field() {
        for (text, expected) in [
            (
                "[]",
                "the spec is a list, where an object with the key `agents` belongs",
            ),
            ("{}", "it names no machine: `agents` is missing or empty"),
            (
                r#"{"agents": {}}"#,
                "it names no machine: `agents` is missing or empty",
            ),
            (
                r#"{"agents": {"web-1": 5}}"#,
                "`agents.web-1` is a number, where a store path belongs",
            ),
            (
                r#"{"agents": {"web-1": "/etc/passwd"}}"#,
                "agent `web-1`: what it shall run is no store path: `/etc/passwd` is no store path: it does not start with `/nix/store/`",
            ),
            (
                r#"{"agents": {"Web": "x"}}"#,
                "agent \"Web\": not a valid name: `Web` holds 'W'; a name is made of `a-z`, `0-9`, `-` and `_`",
            ),
            (
                r#"{"agent": {}}"#,
                "unknown key `agent` (did you mean `agents`?); a spec has the keys `agents` and `rollbackScript`",
            ),
            (r#"{"agents": {}, "agents": {}}"#, "`agents` is there twice"),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn a_machine_that_is_there_twice_is_refused() {
        let text = format!(r#"{{"agents": {{"web-1": "{A}", "web-1": "{B}"}}}}"#);
        assert_eq!(parse(&text).unwrap_err(), "`agents.web-1` is there twice");
    }

    #[test]
    fn a_rollback_script_is_named_by_its_system() {
        let text = format!(
            r#"{{"agents": {{"a": "{A}"}}, "rollbackScript": {{"x86_64-linux": "{A}/bin/x"}}}}"#
        );
        let error = parse(&text).unwrap_err();
        assert!(
            error.starts_with("`rollbackScript.x86_64-linux`: "),
            "{error}"
        );
        let text = format!(r#"{{"agents": {{"a": "{A}"}}, "rollbackScript": null}}"#);
        assert_eq!(parse(&text).unwrap().health_check(), None);
    }

    #[test]
    fn a_chosen_machine_that_is_not_there_is_answered_with_the_nearest() {
        let spec = parse(&format!(
            r#"{{"agents": {{"web-1": "{A}", "db-1": "{B}"}}}}"#
        ))
        .unwrap();
        let name = |name: &str| AgentName::new(name).unwrap();
        let error = spec.clone().only(&[name("wbe-1")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "agent `wbe-1` is not in the spec (did you mean `web-1`?)"
        );
        assert_eq!(spec.clone().only(&[]).unwrap().agents().len(), 2);
        assert_eq!(spec.only(&[name("db-1")]).unwrap().agents().len(), 1);
    }

    proptest! {
        #[test]
        fn hostile_json_is_refused_and_never_echoed_raw(text in r#"[{}\[\]":,a-z0-9\\u\x1b\n/é-]{0,60}"#) {
            if let Err(error) = parse(&text) {
                prop_assert!(!error.contains('\u{1b}'), "{error:?}");
            }
        }

        #[test]
        fn whatever_names_and_paths_it_holds_nothing_invalid_gets_through(
            name in ".{0,70}", path in ".{0,300}"
        ) {
            let text = serde_json::json!({ "agents": { name: path } }).to_string();
            match parse(&text) {
                Ok(spec) => {
                    let (name, path) = spec.agents().first_key_value().unwrap();
                    prop_assert!(AgentName::new(name.as_str()).is_ok());
                    prop_assert!(StorePath::new(path.as_str()).is_ok());
                }
                Err(error) => prop_assert!(!error.chars().any(char::is_control), "{error:?}"),
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused_without_exhausting_the_stack() {
        let text = format!("{{\"agents\": {}", "[".repeat(100_000));
        assert!(parse(&text).is_err());
    }
}
