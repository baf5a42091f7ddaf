//! What a closure holds, as Nix tells it: its digest, its size, its packages.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::store_path::StorePath;

/// What the digest's input starts with: nothing else that is hashed with SHA-256 can be taken for it.
const DOMAIN: &[u8] = b"hoist closure v1\n";

/// Why a text is no digest of a closure.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a closure's digest is written with 64 hexadecimal digits")]
pub struct ClosureDigestError;

/// SHA-256 over the sorted store paths of a closure and the hashes of their contents.
///
/// Signed with a deployment, it makes a binary cache that serves other content under the same path useless.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct ClosureDigest([u8; 32]);

impl fmt::Display for ClosureDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ClosureDigest {
    type Err = ClosureDigestError;

    fn from_str(text: &str) -> Result<Self, ClosureDigestError> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ClosureDigestError);
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16)
                .map_err(|_| ClosureDigestError)?;
        }
        Ok(Self(bytes))
    }
}

/// SHA-256 over the contents of a store path, as Nix's archive has them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct NarHash([u8; 32]);

impl NarHash {
    /// Reads `sha256-<base64>` and the older `sha256:<Nix's base 32>` or `sha256:<hexadecimal>`.
    fn parse(text: &str) -> Option<Self> {
        use base64::Engine as _;
        if let Some(base64) = text.strip_prefix("sha256-") {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(base64)
                .ok()?;
            return bytes.try_into().ok().map(Self);
        }
        let text = text.strip_prefix("sha256:")?;
        match text.len() {
            64 => text.parse::<ClosureDigest>().ok().map(|hex| Self(hex.0)),
            52 => base32(text).map(Self),
            _ => None,
        }
    }
}

/// Nix's base 32: the last digit holds the lowest five bits (`nix/src/libutil/hash.cc`, `parseHash`).
fn base32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    for (at, digit) in text.bytes().rev().enumerate() {
        let digit = b"0123456789abcdfghijklmnpqrsvwxyz"
            .iter()
            .position(|known| *known == digit)?;
        let (byte, shift) = (at * 5 / 8, at * 5 % 8);
        let bits = u16::try_from(digit).ok()? << shift;
        bytes[byte] |= bits.to_le_bytes()[0];
        let carry = bits.to_le_bytes()[1];
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= carry,
            None if carry == 0 => {}
            None => return None,
        }
    }
    Some(bytes)
}

/// Why what Nix printed does not tell about a closure.
#[derive(Debug, thiserror::Error)]
pub enum ClosureInfoError {
    /// It is not the JSON of `nix path-info`.
    #[error("the output of `nix path-info --json` cannot be read")]
    Json(#[source] serde_json::Error),
    /// A path is not in the store.
    #[error("`{0}` is not in the store")]
    Missing(String),
    /// A path of it is none, or its hash cannot be read.
    #[error("what Nix tells about `{0}` cannot be read")]
    Path(String),
}

/// The paths of a closure, with the size and the hash of each.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClosureInfo {
    paths: BTreeMap<String, (NarHash, u64)>,
}

/// What Nix tells about one path; null for one that is not in the store (Nix 2.19 and later).
#[derive(Deserialize)]
struct PathInfo {
    path: Option<String>,
    #[serde(rename = "narHash")]
    nar_hash: Option<String>,
    #[serde(rename = "narSize", default)]
    nar_size: u64,
    #[serde(default)]
    references: Vec<String>,
    valid: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PathInfos {
    /// Before Nix 2.19.
    List(Vec<PathInfo>),
    /// Since Nix 2.19.
    Map(BTreeMap<String, Option<PathInfo>>),
}

/// What Nix tells about a path that is in the store.
pub(crate) struct ValidPath {
    pub(crate) path: String,
    pub(crate) hash: NarHash,
    pub(crate) size: u64,
    pub(crate) references: Vec<String>,
}

/// Reads what `nix path-info --json` prints, of any version of Nix.
pub(crate) fn valid_paths(json: &[u8]) -> Result<Vec<ValidPath>, ClosureInfoError> {
    let infos = serde_json::from_slice(json).map_err(ClosureInfoError::Json)?;
    let infos: Vec<(String, Option<PathInfo>)> = match infos {
        PathInfos::List(list) => list
            .into_iter()
            .map(|info| (info.path.clone().unwrap_or_default(), Some(info)))
            .collect(),
        PathInfos::Map(map) => map.into_iter().collect(),
    };
    let valid = |(path, info): (String, Option<PathInfo>)| {
        let Some(info) = info.filter(|info| info.valid != Some(false)) else {
            return Err(ClosureInfoError::Missing(path));
        };
        let hash = info.nar_hash.as_deref().and_then(NarHash::parse);
        match hash {
            // Derivations may be in the closure of what refers to them.
            Some(hash) if path.starts_with(crate::STORE) => Ok(ValidPath {
                path,
                hash,
                size: info.nar_size,
                references: info.references,
            }),
            _ => Err(ClosureInfoError::Path(path)),
        }
    };
    infos.into_iter().map(valid).collect()
}

/// The digest over these paths, which come sorted.
pub(crate) fn digest_over<'a>(
    paths: impl IntoIterator<Item = (&'a str, &'a NarHash)>,
) -> ClosureDigest {
    let mut hasher = Sha256::new_with_prefix(DOMAIN);
    for (path, hash) in paths {
        // A path holds no white space, and the hash has always the same length.
        hasher.update(path);
        hasher.update(b" ");
        hasher.update(hash.0);
        hasher.update(b"\n");
    }
    ClosureDigest(hasher.finalize().into())
}

impl ClosureInfo {
    /// Reads what `nix path-info --json --recursive PATH` prints, of any version of Nix.
    ///
    /// # Errors
    /// [`ClosureInfoError`]
    pub fn from_path_info(json: &[u8]) -> Result<Self, ClosureInfoError> {
        let paths = valid_paths(json)?.into_iter();
        Ok(Self::of(
            paths.map(|info| (info.path, info.hash, info.size)),
        ))
    }

    pub(crate) fn of(paths: impl IntoIterator<Item = (String, NarHash, u64)>) -> Self {
        let paths = paths.into_iter();
        let paths = paths.map(|(path, hash, size)| (path, (hash, size)));
        Self {
            paths: paths.collect(),
        }
    }

    /// The digest over all of it.
    #[must_use]
    pub fn digest(&self) -> ClosureDigest {
        digest_over(
            self.paths
                .iter()
                .map(|(path, (hash, _))| (path.as_str(), hash)),
        )
    }

    /// Its size in the store, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.paths
            .values()
            .fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// How many store paths it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Whether it has this path.
    #[must_use]
    pub fn contains(&self, path: &StorePath) -> bool {
        self.paths.contains_key(path.as_str())
    }

    /// The paths of this one that `other` does not have, with their sizes in bytes.
    pub fn beyond<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a str, u64)> {
        self.paths
            .iter()
            .filter(|(path, _)| !other.paths.contains_key(*path))
            .map(|(path, (_, size))| (path.as_str(), *size))
    }

    /// Its paths, with their sizes in bytes.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&str, u64)> {
        let paths = self.paths.iter();
        paths.map(|(path, (_, size))| (path.as_str(), *size))
    }
}

/// Outputs that a store path's name ends with besides `out`.
const OUTPUTS: &[&str] = &[
    "-bin", "-dev", "-lib", "-man", "-doc", "-info", "-debug", "-data",
];

/// A store path's package and version: the version starts behind the first dash that no letter follows
/// (Nix manual, `builtins.parseDrvName`). None for what has no version, such as generated files.
pub(crate) fn package(path: &str) -> Option<(&str, &str)> {
    let name = path.strip_prefix(crate::STORE)?.get(33..)?;
    let name = OUTPUTS
        .iter()
        .find_map(|output| name.strip_suffix(output))
        .unwrap_or(name);
    let dash = name
        .as_bytes()
        .windows(2)
        .position(|pair| pair[0] == b'-' && !pair[1].is_ascii_alphabetic())?;
    let (name, version) = (&name[..dash], &name[dash + 1..]);
    // A derivation in a closure is no package of it.
    (!version.ends_with(".drv") && !name.is_empty()).then_some((name, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
    const SRI: &str = "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=";

    #[test]
    fn every_version_of_nix_tells_the_same() {
        let path = format!("/nix/store/{HASH}-x-1.0");
        let old =
            format!(r#"[{{"path":"{path}","narHash":"{SRI}","narSize":120,"references":[]}}]"#);
        let new = format!(
            r#"{{"{path}":{{"narHash":"{SRI}","narSize":120,"references":[],"ultimate":true}}}}"#
        );
        let old = ClosureInfo::from_path_info(old.as_bytes()).unwrap();
        let new = ClosureInfo::from_path_info(new.as_bytes()).unwrap();
        assert_eq!(old, new);
        assert_eq!((old.size(), old.len()), (120, 1));
        // Fixed: an agent of another version has to come to the same.
        assert_eq!(
            old.digest().to_string(),
            "a1ff93f34ef22b33bf1eeae124c576dafd88ee885f49649bee8f1dcfcffa218b"
        );
        assert_eq!(old.digest().to_string().parse(), Ok(old.digest()));
    }

    #[test]
    fn all_ways_to_write_a_hash_mean_the_same() {
        // As `nix hash to-base32` and `to-base16` print the same hash.
        let base32 = "sha256:1xmr8jicvzszfzpz46g37mlpvbzjl2wpwvl2b05psipssyp1sm8h";
        let base16 = "sha256:10551daed7fa467d0b58826e7eb9a0f2af7d693de319f2ef775fffcda244b9f6";
        let sri = NarHash::parse(SRI).unwrap();
        assert_eq!(NarHash::parse(base32), Some(sri));
        assert_eq!(NarHash::parse(base16), Some(sri));
        for bad in [
            "",
            "sha256-",
            "sha256:",
            "md5:0",
            "sha256-AAAA",
            "sha1-EFUdrtf6Rn0LWIJufrmg8q99aT0=",
        ] {
            assert_eq!(NarHash::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn other_content_under_the_same_path_has_another_digest() {
        let other = SRI.replace("EFU", "EFV");
        let json = |hash: &str| {
            format!(r#"[{{"path":"/nix/store/{HASH}-x","narHash":"{hash}","narSize":1}}]"#)
        };
        let digest = |hash: &str| {
            ClosureInfo::from_path_info(json(hash).as_bytes())
                .unwrap()
                .digest()
        };
        assert_ne!(digest(SRI), digest(&other));
    }

    #[test]
    fn a_path_that_is_missing_is_named() {
        let json = format!(r#"{{"/nix/store/{HASH}-x":null}}"#);
        let error = ClosureInfo::from_path_info(json.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("is not in the store"), "{error}");
        let json = format!(r#"[{{"path":"/nix/store/{HASH}-x","valid":false}}]"#);
        assert!(ClosureInfo::from_path_info(json.as_bytes()).is_err());
    }
}
