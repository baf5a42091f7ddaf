//! Other names for machines: those of Cachix Deploy have dots and capitals, which are none in a topic.

use std::collections::BTreeMap;

use hoist_protocol::AgentName;

use super::json::Json;
use super::{FieldError, shown};

/// Longest other name, in bytes.
pub const ALIAS_LEN: usize = 255;

/// Which machine is meant by which other name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Aliases(BTreeMap<String, AgentName>);

/// A name that cannot be another one for a machine.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("another name for a machine has 1 to {ALIAS_LEN} bytes, and no control characters")]
pub struct AliasError;

impl Aliases {
    /// Adds one.
    ///
    /// # Errors
    /// [`AliasError`]
    pub fn add(&mut self, name: String, agent: AgentName) -> Result<(), AliasError> {
        if name.is_empty() || name.len() > ALIAS_LEN || name.chars().any(char::is_control) {
            return Err(AliasError);
        }
        self.0.insert(name, agent);
        Ok(())
    }

    /// The machine that is called so.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&AgentName> {
        self.0.get(name)
    }

    /// The names of a spec, before which nothing goes.
    pub(super) fn read(json: Json) -> Result<Self, FieldError> {
        let mut aliases = Self::default();
        for (name, value) in json.object("`aliases`", "an object of names and names of machines")? {
            let field = format!("`aliases.{}`", shown(&name));
            let agent = value.text(&field, "the name of a machine")?;
            let agent = AgentName::new(agent).map_err(|source| FieldError::Value {
                field: field.clone(),
                source: Box::new(source),
            })?;
            if aliases.get(&name).is_some() {
                return Err(FieldError::Twice { field });
            }
            aliases
                .add(name, agent)
                .map_err(|source| FieldError::Value {
                    field,
                    source: Box::new(source),
                })?;
        }
        Ok(aliases)
    }

    /// One that is in none of these.
    pub(super) fn not_in(&self, names: &[String]) -> Option<&str> {
        let mut aliases = self.0.keys();
        aliases
            .find(|alias| !names.contains(alias))
            .map(String::as_str)
    }

    /// These, and for names that they do not have, those of `others`.
    pub(super) fn or(mut self, others: &Self) -> Self {
        for (name, agent) in &others.0 {
            self.0.entry(name.clone()).or_insert_with(|| agent.clone());
        }
        self
    }
}
