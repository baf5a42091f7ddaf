//! Short texts with a grammar of their own: what a deployment names on a machine.

use serde::{Deserialize, Serialize};

use crate::conversions::text_conversions;

/// Why a text is not the word that it should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{shown}` is no {what}: {rule}")]
pub struct WordError {
    shown: String,
    what: &'static str,
    rule: &'static str,
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $holds:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and takes `text`.
            ///
            /// # Errors
            /// [`WordError`] says the rule that it breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, WordError> {
                let text = text.into();
                let holds: fn(&str) -> bool = $holds;
                if holds(&text) {
                    return Ok(Self(text));
                }
                let shown = text.chars().take(100).flat_map(char::escape_debug).collect();
                Err(WordError { shown, what: $what, rule: $rule })
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_conversions!(WordError => $name);
    )*};
}

/// Letters, digits and `extra`, the first no dot and no dash: fit for a file name and an argument.
fn is_plain(text: &str, max: usize, extra: &str) -> bool {
    (1..=max).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

/// Whether `text` names a generation's link beside its profile, as Nix makes them: `web-7-link`.
fn is_generation_link(text: &str) -> bool {
    text.strip_suffix("-link")
        .and_then(|rest| rest.rsplit_once('-'))
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

words! {
    /// A program inside a closure, as a path from its top: `bin/activate`. 255 bytes at most.
    ClosureFile, "file of a closure",
    "it is a relative path such as bin/activate, of `A-Za-z0-9._+-` between single slashes, without `.` and `..`",
    |text| text.len() <= 255 && text.split('/').all(|part| is_plain(part, 255, "._+-"));

    /// A specialisation of a NixOS system, as its configuration names it. 63 bytes at most.
    Specialisation, "specialisation",
    "its name has 1 to 63 of `A-Za-z0-9._-` and starts with a letter, a digit or `_`",
    |text| is_plain(text, 63, "._-");

    /// A profile of a machine, by the name of its link: which folder it lies in is the machine's to say.
    ///
    /// Never `system`, which belongs to the machine's own system, and never the link of a generation.
    ProfileName, "profile",
    "its name has 1 to 63 of `A-Za-z0-9._-`, starts with a letter, a digit or `_`, is not `system` and does not end like `-7-link`",
    |text| is_plain(text, 63, "._-") && text != "system" && !is_generation_link(text);

    /// A systemd unit with its suffix: `nginx.service`. 255 bytes at most (systemd.unit(5)).
    UnitName, "systemd unit",
    "it is a unit's whole name such as nginx.service, of `A-Za-z0-9:_.@\\-`",
    |text| is_plain(text, 255, ":_.@\\-")
        && text.rsplit_once('.').is_some_and(|(name, suffix)| {
            !name.is_empty()
                && ["service", "socket", "target", "timer", "mount", "path", "slice", "swap"].contains(&suffix)
        });

    /// A word that a machine is selected by. 64 bytes at most.
    Tag, "tag",
    "it has 1 to 64 of `a-z0-9_.:-` and starts with a letter, a digit or `_`",
    |text| is_plain(text, 64, "_.:-") && !text.chars().any(|c| c.is_ascii_uppercase());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_closure_never_leaves_it() {
        for good in ["activate", "bin/activate", "bin/a.b+c_d-e"] {
            assert_eq!(ClosureFile::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "", "/bin/x", "bin//x", "bin/", "../x", "a/../b", "./x", "-x", "a b", "a\nb",
        ] {
            assert!(ClosureFile::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_profile_is_never_the_systems_and_never_a_generation() {
        for good in ["web", "web-7", "link", "x-link", "Web_1.2"] {
            assert!(ProfileName::new(good).is_ok(), "{good:?}");
        }
        for bad in [
            "system",
            "web-7-link",
            "a/b",
            ".web",
            "-web",
            "",
            "..",
            "w\u{fc}b",
        ] {
            assert!(ProfileName::new(bad).is_err(), "{bad:?}");
        }
        let error = ProfileName::new("system\u{1b}").unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{error}");
    }

    #[test]
    fn units_specialisations_and_tags_have_their_grammar() {
        assert!(UnitName::new("getty@tty1.service").is_ok());
        assert!(UnitName::new("dev-disk-by\\x2dlabel.swap").is_ok());
        for bad in ["nginx", ".service", "--now.service", "a b.service", "x.exe"] {
            assert!(UnitName::new(bad).is_err(), "{bad:?}");
        }
        assert!(Specialisation::new("fallback").is_ok());
        assert!(Specialisation::new("a/b").is_err());
        assert!(Tag::new("rack:7").is_ok());
        assert!(Tag::new("Rack").is_err());
    }
}
