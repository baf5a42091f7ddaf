//! Where a publisher's signing key is found.

use std::fmt;
use std::str::FromStr;

use camino::Utf8PathBuf;
use hoist_protocol::{KeyError, SigningKey};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::files::{self, FileError};
use crate::pem::{in_store, warn_if_readable_by_others};

/// Largest file that a signing key is read from, in bytes.
const MAX_LEN: usize = 4096;

/// A signing key in a file, or the key itself, as CI systems give their secrets.
#[derive(Clone, Deserialize, Eq, PartialEq)]
#[serde(from = "String")]
pub enum SigningKeySource {
    /// In this file.
    File(Utf8PathBuf),
    /// This is the key, never printed.
    Inline(Zeroizing<String>),
}

impl From<String> for SigningKeySource {
    fn from(text: String) -> Self {
        let trimmed = text.trim();
        // A path can start with `hoist-` too, but hardly holds a colon, and no slash is in `hoist-NAME:`.
        match trimmed.split_once(':') {
            Some((name, _)) if name.starts_with("hoist-") && !name.contains('/') => {
                Self::Inline(Zeroizing::new(text))
            }
            _ => Self::File(text.into()),
        }
    }
}

impl FromStr for SigningKeySource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.to_owned().into())
    }
}

impl fmt::Display for SigningKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "`{path}`"),
            Self::Inline(_) => f.write_str("the text given"),
        }
    }
}

impl fmt::Debug for SigningKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The file cannot be read.
    #[error("cannot read the signing key")]
    Read(#[source] FileError),
    /// The key lies where everybody can read it.
    #[error(
        "the signing key `{0}` lies in the Nix store, which everybody on this machine can read; \
         keep it outside and make a new one, since this one is known"
    )]
    InStore(Utf8PathBuf),
    /// What is there is no key.
    #[error("the signing key from {origin} cannot be used")]
    Key {
        /// Where it comes from.
        origin: SigningKeySource,
        /// Why not.
        #[source]
        source: KeyError,
    },
}

impl SigningKeySource {
    pub(crate) fn read(&self) -> Result<SigningKey, SigningKeyError> {
        let text = match self {
            Self::Inline(text) => text.clone(),
            Self::File(path) => {
                if let Some(path) = in_store(path) {
                    return Err(SigningKeyError::InStore(path));
                }
                warn_if_readable_by_others(path);
                let bytes = files::read_limited(path, MAX_LEN).map_err(SigningKeyError::Read)?;
                // What is no UTF-8 is no key either, and the key's parser says what a key looks like.
                Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
            }
        };
        SigningKey::parse(&text).map_err(|source| SigningKeyError::Key {
            origin: self.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::KeyName;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(KeyName::new("ci").unwrap(), &Zeroizing::new([9; 32]))
    }

    #[test]
    fn a_key_is_taken_from_a_file_or_as_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().join("ci.signing-key")).unwrap();
        std::fs::write(&path, format!("{}\n", *key().to_text())).unwrap();
        for text in [path.as_str(), &key().to_text()] {
            let source: SigningKeySource = text.parse().unwrap();
            assert_eq!(source.read().unwrap().public(), key().public());
        }
    }

    #[test]
    fn a_key_given_as_text_is_never_shown() {
        let text = key().to_text();
        let secret = &text.split_once(':').unwrap().1[..16];
        let source: SigningKeySource = format!("{}damaged", *text).parse().unwrap();
        let error = source.read().unwrap_err();
        for shown in [format!("{source:?} {source}"), format!("{error:?} {error}")] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn the_public_half_does_not_sign() {
        let source: SigningKeySource = key().public().to_string().parse().unwrap();
        let error = source.read().unwrap_err();
        assert!(
            matches!(
                error,
                SigningKeyError::Key {
                    source: KeyError::IsPublic,
                    ..
                }
            ),
            "{error}"
        );
    }
}
