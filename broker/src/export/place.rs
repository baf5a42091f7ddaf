//! Where a file lies on the computer that an engine runs on.

use std::fmt;
use std::str::FromStr;

/// A text that cannot stand for a path in every engine's configuration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "it has to be an absolute path without spaces, quotes, backslashes and control characters: engines disagree on \
     how those are written"
)]
pub struct PlaceError;

/// An absolute path on the engine's computer that every engine reads alike.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place(String);

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let fits = |c: char| !(c.is_whitespace() || c.is_control() || "\"'\\#$".contains(c));
        if text.starts_with('/') && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PlaceError)
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_say_more_than_a_path_is_refused() {
        assert!("/etc/hoist/ca.pem".parse::<Place>().is_ok());
        for bad in [
            "",
            "ca.pem",
            "/etc/my certs/ca.pem",
            "/etc/\"; accounts {} #",
            "/etc/$HOME",
            "/etc/ca.pem\nallow_anonymous true",
        ] {
            assert_eq!(bad.parse::<Place>(), Err(PlaceError), "{bad:?}");
        }
    }
}
