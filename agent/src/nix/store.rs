//! Links into the store.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{STORE, StorePath};

/// More links than any profile has one after another.
const MOST_LINKS: usize = 16;

/// Follows the links from `path` to the store path that they lead to; none when nothing is there, or when
/// they lead elsewhere.
///
/// It stops at the store: a store path may itself be a link to another one, and is what was meant.
///
/// # Errors
/// A link cannot be read for another reason than that it is not there.
pub(crate) fn store_path_behind(path: &Utf8Path) -> io::Result<Option<StorePath>> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        if let Some(inside) = path.as_str().strip_prefix(STORE) {
            let base = inside.split('/').next().unwrap_or_default();
            return Ok(StorePath::new(format!("{STORE}{base}")).ok());
        }
        match read_link(&path)? {
            Some(target) => path = target,
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// Where a link leads, seen from the root; none when there is no link.
pub(super) fn read_link(path: &Utf8Path) -> io::Result<Option<Utf8PathBuf>> {
    match path.read_link_utf8() {
        Ok(target) => Ok(Some(match path.parent() {
            Some(dir) => dir.join(target),
            None => target,
        })),
        // EINVAL: it is no link.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PATH: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web";

    #[test]
    fn links_are_followed_to_the_store_and_not_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        symlink(PATH, dir.join("system-3-link")).unwrap();
        symlink("system-3-link", dir.join("system")).unwrap();
        symlink(format!("{PATH}/bin"), dir.join("inside")).unwrap();
        symlink("round", dir.join("round")).unwrap();
        symlink("/etc", dir.join("elsewhere")).unwrap();
        let behind = |name: &str| store_path_behind(&dir.join(name)).unwrap();
        assert_eq!(behind("system").unwrap().as_str(), PATH);
        assert_eq!(behind("inside").unwrap().as_str(), PATH);
        for nothing in ["round", "elsewhere", "missing", "missing/too"] {
            assert_eq!(behind(nothing), None, "{nothing}");
        }
    }
}
