//! The denylist: names and serial numbers that are let in no more, whatever a CA says.

use std::collections::HashSet;

use hoist_protocol::{AgentName, FleetName, Text};

use crate::identity::Identity;
use crate::serial::Serial;

/// A line that denies nobody.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "line {line}: `{text}` is neither a name, a FLEET/NAME nor a serial number; one a line, `#` begins a comment"
)]
pub struct DenylistError {
    line: usize,
    text: Text<64>,
}

/// Who is let in no more.
///
/// A word that could be a name as well as a serial number is taken for both: too many are denied rather than too
/// few.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Denylist {
    names: HashSet<AgentName>,
    of_fleets: HashSet<(FleetName, AgentName)>,
    serials: HashSet<Serial>,
}

impl Denylist {
    /// Reads the text of a denylist.
    ///
    /// # Errors
    /// [`DenylistError`] for the first line that denies nobody: a slip of the pen must not let somebody in.
    pub fn parse(text: &str) -> Result<Self, DenylistError> {
        let mut list = Self::default();
        for (n, line) in text.lines().enumerate() {
            let word = line.split('#').next().unwrap_or_default().trim();
            if !word.is_empty() && !list.add(word) {
                return Err(DenylistError {
                    line: n + 1,
                    text: Text::lossy(word),
                });
            }
        }
        Ok(list)
    }

    fn add(&mut self, word: &str) -> bool {
        if let Some((fleet, name)) = word.split_once('/') {
            let (Ok(fleet), Ok(name)) = (FleetName::new(fleet), AgentName::new(name)) else {
                return false;
            };
            self.of_fleets.insert((fleet, name));
            return true;
        }
        let (name, serial) = (AgentName::new(word), word.parse());
        let known = name.is_ok() || serial.is_ok();
        self.names.extend(name);
        self.serials.extend(serial);
        known
    }

    /// Whether a certificate is denied.
    #[must_use]
    pub fn holds(&self, identity: &Identity, serial: &Serial) -> bool {
        // Most brokers have none, and every reload asks for every connection.
        if self.is_empty() {
            return false;
        }
        let of_fleet = (identity.fleet().clone(), identity.name().clone());
        self.serials.contains(serial)
            || self.names.contains(identity.name())
            || self.of_fleets.contains(&of_fleet)
    }

    /// Whether nobody is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.of_fleets.is_empty() && self.serials.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use crate::role::Role;

    use super::*;

    fn identity(fleet: &str, name: &str) -> Identity {
        Identity::new(
            AgentName::new(name).unwrap(),
            Role::Agent,
            FleetName::new(fleet).unwrap(),
        )
    }

    #[test]
    fn names_and_serials_are_denied_and_comments_are_not() {
        let list = Denylist::parse("# stolen\nweb-1   # a laptop\n\n  test/db-1\n4F:00:01\nabcd\n")
            .unwrap();
        let other: Serial = "77".parse().unwrap();
        let holds = |fleet, name, serial: &Serial| list.holds(&identity(fleet, name), serial);
        assert!(holds("prod", "web-1", &other) && holds("test", "web-1", &other));
        assert!(holds("test", "db-1", &other) && !holds("prod", "db-1", &other));
        assert!(holds("prod", "web-9", &"4f0001".parse().unwrap()));
        // Both a name and a number.
        assert!(holds("prod", "abcd", &other));
        assert!(holds("prod", "web-9", &"abcd".parse().unwrap()));
        assert!(!holds("prod", "web-9", &other) && !holds("prod", "stolen", &other));
    }

    #[test]
    fn a_line_that_denies_nobody_is_an_error() {
        for (text, line) in [
            ("web-1\nWeb 2\n", 2),
            ("a/b/c", 1),
            ("prod/", 1),
            ("\u{1b}", 1),
        ] {
            let error = Denylist::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
        assert!(Denylist::parse("").unwrap().is_empty());
    }
}
