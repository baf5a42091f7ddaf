//! Names of machines, fleets and keys.

use serde::{Deserialize, Serialize};

use crate::conversions::text_conversions;
use crate::limits::NAME_LEN;

/// Why a text is no name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than [`NAME_LEN`].
    #[error("`{0}` is longer than {NAME_LEN} characters")]
    TooLong(String),
    /// The text starts with something else than a letter or digit.
    #[error("`{0}` must start with a lower-case letter or a digit")]
    Start(String),
    /// The text holds a character that no name may hold.
    #[error("`{name}` holds {found:?}; a name is made of `a-z`, `0-9`, `-` and `_`")]
    Character {
        /// The text, with what a terminal would interpret escaped.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
}

fn check(text: &str) -> Result<(), NameError> {
    // Hostile text ends up in error messages: never let a control character through.
    let shown = || {
        text.chars()
            .take(NAME_LEN + 1)
            .flat_map(char::escape_debug)
            .collect::<String>()
    };
    let Some(first) = text.chars().next() else {
        return Err(NameError::Empty);
    };
    if text.len() > NAME_LEN {
        return Err(NameError::TooLong(shown()));
    }
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_');
    if let Some(found) = text.chars().find(|c| !allowed(*c)) {
        return Err(NameError::Character {
            name: shown(),
            found,
        });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::Start(shown()));
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 1 to 63 of `a-z`, `0-9`, `-`, `_`, starting with a letter or digit. Never holds `/`, `+`, `#`
        /// or `.`, so it is always exactly one level of a topic on every broker.
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and takes `text` as a name.
            ///
            /// # Errors
            /// [`NameError`] says which rule it breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_conversions!(NameError => $name);

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// What a machine is addressed by.
    AgentName
}

name! {
    /// What a fleet is called: the machines that one set of publishers and keys drives.
    FleetName
}

name! {
    /// What a signing key is called; written `hoist-NAME` in a key's text.
    KeyName
}

/// The known name nearest to `given`, for a "did you mean"; none when all are far off.
#[must_use]
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&given, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, name)| *distance <= (name.len().max(given.len()) / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_topic_level() {
        for good in ["a", "0", "web-1", "a_b", &"x".repeat(63)] {
            assert_eq!(AgentName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "_renew",
            "-a",
            "a/b",
            "a+",
            "#",
            "a.b",
            "Web",
            "ä",
            "a b",
            "a\u{1b}[2J",
            &"x".repeat(64),
        ] {
            assert!(AgentName::new(bad).is_err(), "{bad:?} was taken as a name");
        }
    }

    #[test]
    fn an_error_never_carries_a_control_character() {
        let message = AgentName::new("a\u{1b}[2J\n").unwrap_err().to_string();
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        let known = ["web-1", "web-2", "db-1"];
        assert_eq!(nearest("wbe-1", known), Some("web-1"));
        assert_eq!(nearest("laptop", known), None);
    }
}
