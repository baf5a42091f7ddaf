//! Store paths and systems.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::STORE_PATH_NAME_LEN;

/// The only store that Hoist deploys to.
pub const STORE: &str = "/nix/store/";

const HASH_LEN: usize = 32;

/// Nix's base 32 leaves out `e`, `o`, `t` and `u`.
const fn is_base32(c: char) -> bool {
    matches!(c, '0'..='9' | 'a'..='d' | 'f'..='n' | 'p'..='s' | 'v'..='z')
}

/// Why a text is no store path.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StorePathError {
    /// It lies elsewhere.
    #[error("`{0}` is no store path: it does not start with `{STORE}`")]
    NotInStore(String),
    /// It names a file inside a store path.
    #[error("`{0}` lies inside a store path; give the store path itself")]
    Inside(String),
    /// The hash has a wrong length or alphabet.
    #[error(
        "`{0}` is no store path: `{STORE}` must be followed by a hash of 32 characters and a `-`"
    )]
    Hash(String),
    /// The name is empty, too long or holds a character that Nix does not allow.
    #[error(
        "`{0}` is no store path: its name must have 1 to {STORE_PATH_NAME_LEN} of `A-Za-z0-9+-._?=`"
    )]
    Name(String),
    /// It is a derivation: realising it would build it on the machine.
    #[error("`{0}` is a derivation, which a machine would have to build; give its output")]
    Derivation(String),
}

/// A path like `/nix/store/<hash>-<name>`, never a derivation and never a file inside one.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(String);

impl StorePath {
    /// Checks and takes `text` as a store path. One trailing `/` is forgiven, as shells complete it.
    ///
    /// # Errors
    /// [`StorePathError`] says which rule it breaks.
    pub fn new(text: impl Into<String>) -> Result<Self, StorePathError> {
        let mut text = text.into();
        if text.ends_with('/') {
            text.pop();
        }
        let shown = || {
            text.chars()
                .take(300)
                .flat_map(char::escape_debug)
                .collect::<String>()
        };
        let Some(base) = text.strip_prefix(STORE) else {
            return Err(StorePathError::NotInStore(shown()));
        };
        if base.contains('/') {
            return Err(StorePathError::Inside(shown()));
        }
        match base.split_once('-') {
            Some((hash, name)) if hash.len() == HASH_LEN && hash.chars().all(is_base32) => {
                let allowed = |c: char| {
                    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_' | '?' | '=')
                };
                if name.is_empty()
                    || name.len() > STORE_PATH_NAME_LEN
                    || name.starts_with('.')
                    || !name.chars().all(allowed)
                {
                    return Err(StorePathError::Name(shown()));
                }
                if name.ends_with(".drv") {
                    return Err(StorePathError::Derivation(shown()));
                }
            }
            _ => return Err(StorePathError::Hash(shown())),
        }
        Ok(Self(text))
    }

    /// The whole path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after `/nix/store/`: hash and name.
    #[must_use]
    pub fn base_name(&self) -> &str {
        &self.0[STORE.len()..]
    }

    /// The part after the hash: what the package is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.base_name()[HASH_LEN + 1..]
    }

    /// The hash, 32 characters.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.base_name()[..HASH_LEN]
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        Self::new(text)
    }
}

impl TryFrom<String> for StorePath {
    type Error = StorePathError;

    fn try_from(text: String) -> Result<Self, StorePathError> {
        Self::new(text)
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.0
    }
}

/// A text that is no system.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no system; a system is written like `x86_64-linux`")]
pub struct SystemError(String);

/// A Nix system such as `x86_64-linux` or `aarch64-darwin`.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct System(String);

impl System {
    /// Checks and takes `text` as a system: two parts of `a-z`, `0-9`, `_` around one `-`, 32 bytes at most.
    ///
    /// # Errors
    /// [`SystemError`] when it has another form.
    pub fn new(text: impl Into<String>) -> Result<Self, SystemError> {
        let text = text.into();
        let part =
            |p: &str| !p.is_empty() && p.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
        match text.split_once('-') {
            Some((cpu, os)) if text.len() <= 32 && part(cpu) && part(os) => Ok(Self(text)),
            _ => Err(SystemError(
                text.chars().take(40).flat_map(char::escape_debug).collect(),
            )),
        }
    }

    /// The system that this program was built for.
    ///
    /// # Errors
    /// [`SystemError`] on a platform that Nix has no name for.
    pub fn current() -> Result<Self, SystemError> {
        let os = if cfg!(target_os = "macos") {
            "darwin"
        } else {
            std::env::consts::OS
        };
        Self::new(format!("{}-{os}", std::env::consts::ARCH))
    }

    /// The system as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for System {
    type Error = SystemError;

    fn try_from(text: String) -> Result<Self, SystemError> {
        Self::new(text)
    }
}

impl From<System> for String {
    fn from(system: System) -> Self {
        system.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

    #[test]
    fn a_store_path_has_a_hash_and_a_name() {
        let path = StorePath::new(format!("/nix/store/{HASH}-web-1.2/")).unwrap();
        assert_eq!(path.name(), "web-1.2");
        assert_eq!(path.hash(), HASH);
        assert_eq!(path.as_str(), format!("/nix/store/{HASH}-web-1.2"));
    }

    #[test]
    fn what_is_no_store_path_is_refused_with_its_reason() {
        type E = StorePathError;
        let error = |text: &str| StorePath::new(text).unwrap_err();
        assert!(matches!(error("/tmp/x"), E::NotInStore(_)));
        assert!(matches!(error(""), E::NotInStore(_)));
        assert!(matches!(
            error(&format!("/nix/store/{HASH}-a/bin/sh")),
            E::Inside(_)
        ));
        assert!(matches!(
            error(&format!("/nix/store/../../etc-{HASH}")),
            E::Inside(_)
        ));
        assert!(matches!(error("/nix/store/short-web"), E::Hash(_)));
        assert!(matches!(
            error(&format!("/nix/store/{}-web", "e".repeat(32))),
            E::Hash(_)
        ));
        assert!(matches!(error(&format!("/nix/store/{HASH}-")), E::Name(_)));
        assert!(matches!(
            error(&format!("/nix/store/{HASH}-.hidden")),
            E::Name(_)
        ));
        assert!(matches!(
            error(&format!("/nix/store/{HASH}-a b")),
            E::Name(_)
        ));
        assert!(matches!(
            error(&format!("/nix/store/{HASH}-a.drv")),
            E::Derivation(_)
        ));
    }

    #[test]
    fn this_machine_has_a_system() {
        assert!(System::current().unwrap().as_str().contains('-'));
        for bad in ["", "x86_64", "-linux", "a-b-c", "X-linux", "x86_64-lin ux"] {
            assert!(System::new(bad).is_err(), "{bad:?}");
        }
    }
}
