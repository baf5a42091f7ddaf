//! Configuration files: TOML, where a key that nobody knows is an error.

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{Text, nearest};
use serde::de::DeserializeOwned;

use crate::files::{self, FileError};

/// Largest configuration file, in bytes.
const MAX_LEN: usize = 1024 * 1024;

/// Why a configuration file cannot be used. Never quotes the file: it may hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(FileError),
    /// It is no UTF-8.
    #[error("`{0}` is no text in UTF-8")]
    NotText(Utf8PathBuf),
    /// It is no TOML, or not what the program expects.
    #[error("{path}:{line}: {message}")]
    Content {
        /// The file.
        path: Utf8PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and the nearest known key when it is an unknown one.
        message: String,
    },
}

/// Reads a TOML file. `T` needs `#[serde(deny_unknown_fields)]` for unknown keys to be refused.
///
/// # Errors
/// [`ConfigError`]
pub fn read_toml<T: DeserializeOwned>(path: &Utf8Path) -> Result<T, ConfigError> {
    let bytes = files::read_limited(path, MAX_LEN).map_err(ConfigError::Read)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| ConfigError::NotText(path.to_owned()))?;
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.as_bytes().get(..start).unwrap_or_default();
        ConfigError::Content {
            path: path.to_owned(),
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            message: Text::<1024>::lossy(&explain(error.message())).to_string(),
        }
    })
}

/// Makes serde's message one that helps, and that repeats no value.
fn explain(message: &str) -> String {
    if let Some((unknown, known)) = unknown_key(message) {
        let hint = nearest(unknown, known.iter().copied())
            .map_or_else(String::new, |key| format!(" (did you mean `{key}`?)"));
        return format!(
            "unknown key `{unknown}`{hint}; known are: {}",
            known.join(", ")
        );
    }
    // serde quotes the value that has the wrong type: a signing key, perhaps.
    for kind in ["invalid type: string ", "invalid value: string "] {
        if message.starts_with(kind)
            && let Some((_, expected)) = message.rsplit_once(", expected ")
        {
            return format!("a string stands where {expected} is expected");
        }
    }
    message.to_owned()
}

/// The key and the known ones from serde's message (`serde_core::de::Error::unknown_field`).
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    // Every second piece between backticks is a key.
    let known = rest.split('`').skip(1).step_by(2).collect();
    Some((unknown, known))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        listen: String,
        #[serde(default)]
        keys: Vec<String>,
        #[serde(default)]
        limits: Limits,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        connections: u32,
    }

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = Utf8Path::from_path(file.path()).unwrap();
        read_toml(path).map_err(|error| error.to_string().replace(path.as_str(), "FILE"))
    }

    #[test]
    fn a_good_file_is_read() {
        let config = read("listen = 'x'\nkeys = ['a']\n[limits]\nconnections = 7\n").unwrap();
        assert_eq!(
            (
                config.listen.as_str(),
                config.keys.len(),
                config.limits.connections
            ),
            ("x", 1, 7)
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_one() {
        assert_eq!(
            read("listen = 'x'\nlimts = 3\n").unwrap_err(),
            "FILE:2: unknown key `limts` (did you mean `limits`?); known are: listen, keys, limits"
        );
        assert_eq!(
            read("listen = 'x'\n\n[limits]\nconections = 3\n").unwrap_err(),
            "FILE:4: unknown key `conections` (did you mean `connections`?); known are: connections"
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = read("keys = []\n").unwrap_err();
        assert!(error.contains("`listen`"), "{error}");
    }

    #[test]
    fn a_secret_under_the_wrong_key_is_not_repeated() {
        let error = read("listen = 'x'\nkeys = 'hoist-ci:c2VjcmV0'\n").unwrap_err();
        assert_eq!(
            error,
            "FILE:2: a string stands where a sequence is expected"
        );
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        let error = read("listen = 'x'\nkeys = [\n").unwrap_err();
        assert!(
            error.starts_with("FILE:2: ") || error.starts_with("FILE:3: "),
            "{error}"
        );
    }
}
