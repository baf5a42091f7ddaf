//! Where a file lies on the computer that an engine runs on.

use std::fmt;
use std::str::FromStr;

/// A text that cannot stand for a path in every engine's configuration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "it has to be an absolute path without spaces, quotes, backslashes and control characters: engines disagree on \
     how those are written"
)]
pub struct EnginePathError;

/// An absolute path on the engine's computer that every engine reads alike.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnginePath(String);

impl FromStr for EnginePath {
    type Err = EnginePathError;

    fn from_str(text: &str) -> Result<Self, EnginePathError> {
        let fits = |c: char| !(c.is_whitespace() || c.is_control() || "\"'\\#$".contains(c));
        if text.starts_with('/') && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(EnginePathError)
        }
    }
}

impl fmt::Display for EnginePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_say_more_than_a_path_is_refused() {
        assert!("/etc/hoist/ca.pem".parse::<EnginePath>().is_ok());
        for bad in [
            "",
            "ca.pem",
            "/etc/my certs/ca.pem",
            "/etc/\"; accounts {} #",
            "/etc/$HOME",
            "/etc/ca.pem\nallow_anonymous true",
        ] {
            assert_eq!(bad.parse::<EnginePath>(), Err(EnginePathError), "{bad:?}");
        }
    }
}
