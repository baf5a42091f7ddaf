//! Binary caches that a deployment tells a machine to use besides its own.

use serde::{Deserialize, Serialize};

use crate::conversions::text_conversions;

/// A text that is no binary cache a machine could be told to add.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SubstituterError {
    /// The URL has another scheme or holds white space.
    #[error(
        "`{0}` is no binary cache URL; it must start with https://, http://, s3:// or file:// and hold no white space"
    )]
    Url(String),
    /// The key is not a Nix cache key.
    #[error(
        "`{0}` is no cache key; it is written `NAME:base64`, as `nix-store --generate-binary-cache-key` writes it"
    )]
    Key(String),
    /// The key is a Hoist signing key.
    #[error("`{0}` is a Hoist signing key, not the key of a binary cache")]
    SigningKey(String),
}

/// The URL of a binary cache, 512 bytes at most, without white space.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubstituterUrl(String);

/// The public key of a binary cache in Nix's form, `NAME:base64`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheKey(String);

fn shown(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

impl SubstituterUrl {
    /// Checks and takes `text`. Nix splits lists at white space, so none may be in it.
    ///
    /// # Errors
    /// [`SubstituterError::Url`]
    pub fn new(text: impl Into<String>) -> Result<Self, SubstituterError> {
        let text = text.into();
        let known = ["https://", "http://", "s3://", "file://"]
            .iter()
            .any(|s| text.starts_with(s));
        if !known || text.len() > 512 || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(SubstituterError::Url(shown(&text)));
        }
        Ok(Self(text))
    }

    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CacheKey {
    /// Checks and takes `text`: a name, a colon, and the base64 of 32 bytes.
    ///
    /// # Errors
    /// [`SubstituterError::Key`] or [`SubstituterError::SigningKey`]
    pub fn new(text: impl Into<String>) -> Result<Self, SubstituterError> {
        use base64::Engine as _;
        let text = text.into();
        if text.starts_with(crate::key::PREFIX) {
            return Err(SubstituterError::SigningKey(shown(&text)));
        }
        let decoded = |base64: &str| {
            base64::engine::general_purpose::STANDARD
                .decode(base64)
                .ok()
        };
        match text.split_once(':') {
            Some((name, key))
                if !name.is_empty()
                    && text.len() <= 256
                    && name.chars().all(|c| c.is_ascii_graphic())
                    && decoded(key).is_some_and(|key| key.len() == 32) =>
            {
                Ok(Self(text))
            }
            _ => Err(SubstituterError::Key(shown(&text))),
        }
    }

    /// The key as Nix writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

text_conversions!(SubstituterError => SubstituterUrl, CacheKey);
