//! Many closures at once: asked for one by one, those of a fleet would take minutes.

use std::collections::{BTreeMap, HashMap};

use crate::closure::{
    ClosureDigest, ClosureInfo, ClosureInfoError, NarHash, digest_over, valid_paths,
};
use crate::store_path::StorePath;

/// Paths of a store with all that they refer to; the closure of each is found in it without asking Nix again.
#[derive(Clone, Debug, Default)]
pub struct Closures {
    /// Sorted by path.
    nodes: Vec<Node>,
    numbers: HashMap<String, usize>,
}

#[derive(Clone, Debug)]
struct Node {
    path: String,
    hash: NarHash,
    size: u64,
    references: Vec<usize>,
}

impl Closures {
    /// Reads what `nix path-info --json --recursive PATH…` printed, of any version of Nix; what was asked in
    /// several calls is put together.
    ///
    /// # Errors
    /// [`ClosureInfoError`]; also [`ClosureInfoError::Missing`] for a path that another one refers to and that
    /// Nix told nothing about.
    pub fn from_path_info<'a>(
        outputs: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, ClosureInfoError> {
        let mut paths = BTreeMap::new();
        for output in outputs {
            for info in valid_paths(output)? {
                paths.insert(info.path.clone(), info);
            }
        }
        let numbers: HashMap<String, usize> = paths
            .keys()
            .enumerate()
            .map(|(number, path)| (path.clone(), number))
            .collect();
        let mut nodes = Vec::with_capacity(paths.len());
        for (path, info) in paths {
            let references = info
                .references
                .into_iter()
                .map(|other| match numbers.get(&other) {
                    Some(number) => Ok(*number),
                    None => Err(ClosureInfoError::Missing(other)),
                })
                .collect::<Result<_, _>>()?;
            nodes.push(Node {
                path,
                hash: info.hash,
                size: info.size,
                references,
            });
        }
        Ok(Self { nodes, numbers })
    }

    /// The digest of the closure of `top`; none when Nix told nothing about it.
    #[must_use]
    pub fn digest(&self, top: &StorePath) -> Option<ClosureDigest> {
        let closure = self.closure(top)?;
        let digest = digest_over(closure.map(|node| (node.path.as_str(), &node.hash)));
        Some(digest)
    }

    /// All about the closure of `top`; none when Nix told nothing about it.
    #[must_use]
    pub fn info(&self, top: &StorePath) -> Option<ClosureInfo> {
        let paths = self.closure(top)?;
        Some(ClosureInfo::of(
            paths.map(|node| (node.path.clone(), node.hash, node.size)),
        ))
    }

    /// The closure of `top`, sorted by path.
    fn closure(&self, top: &StorePath) -> Option<impl Iterator<Item = &Node>> {
        let mut found = vec![false; self.nodes.len()];
        let mut open = vec![*self.numbers.get(top.as_str())?];
        while let Some(number) = open.pop() {
            if !std::mem::replace(&mut found[number], true) {
                open.extend(&self.nodes[number].references);
            }
        }
        let nodes = self.nodes.iter().zip(found);
        Some(nodes.filter_map(|(node, found)| found.then_some(node)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRI: &str = "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=";

    fn path(name: &str) -> String {
        format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")
    }

    /// Each with its references, as Nix 2.8 prints them.
    fn path_info(paths: &[(&str, &[&str])]) -> Vec<u8> {
        let infos: Vec<_> = paths
            .iter()
            .map(|(name, references)| {
                let references: Vec<String> = references.iter().map(|name| path(name)).collect();
                serde_json::json!({
                    "path": path(name), "narHash": SRI, "narSize": 10, "references": references,
                })
            })
            .collect();
        serde_json::to_vec(&infos).unwrap()
    }

    fn digest(closures: &Closures, name: &str) -> Option<ClosureDigest> {
        closures.digest(&StorePath::new(path(name)).unwrap())
    }

    #[test]
    fn the_closure_of_one_among_many_is_the_one_that_nix_tells_alone() {
        // `b` refers to itself, and `d` belongs to nobody.
        let all = path_info(&[("a", &["b"]), ("b", &["b", "c"]), ("c", &[]), ("d", &["c"])]);
        let closures = Closures::from_path_info([all.as_slice()]).unwrap();
        for (top, own) in [("a", &["a", "b", "c"][..]), ("d", &["c", "d"])] {
            let own: Vec<_> = own.iter().map(|name| (*name, &[][..])).collect();
            let alone = ClosureInfo::from_path_info(&path_info(&own)).unwrap();
            assert_eq!(digest(&closures, top), Some(alone.digest()), "{top}");
            let info = closures.info(&StorePath::new(path(top)).unwrap());
            assert_eq!(info, Some(alone), "{top}");
        }
        assert_eq!(digest(&closures, "e"), None);
    }

    #[test]
    fn what_several_calls_told_is_put_together() {
        let (one, two) = (
            path_info(&[("a", &["c"]), ("c", &[])]),
            path_info(&[("b", &["c"]), ("c", &[])]),
        );
        let apart = Closures::from_path_info([one.as_slice()]).unwrap();
        let together = Closures::from_path_info([one.as_slice(), two.as_slice()]).unwrap();
        assert_eq!(digest(&together, "a"), digest(&apart, "a"));
        assert!(digest(&together, "b").is_some());
    }

    #[test]
    fn a_closure_with_a_hole_is_none() {
        let error = Closures::from_path_info([path_info(&[("a", &["b"])]).as_slice()]).unwrap_err();
        assert!(
            error.to_string().contains("-b` is not in the store"),
            "{error}"
        );
    }
}
