//! How one closure differs from another, package by package, without a limit.
//!
//! What machines report of this is [`Changes`](crate::Changes): bounded, and without what was merely rebuilt.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::closure::{ClosureInfo, difference, package};

/// What became of a package.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PackageFate {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has other versions.
    Updated,
    /// It has the same version, or none, and is another store path.
    Rebuilt,
}

impl PackageFate {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Updated => "updated",
            Self::Rebuilt => "rebuilt",
        }
    }
}

/// A package that is not the same in two closures.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PackageDifference {
    /// Its name; of a store path without a version the whole name.
    pub name: String,
    /// What became of it.
    pub change: PackageFate,
    /// Its versions before, sorted as text.
    pub from: Vec<String>,
    /// Its versions after.
    pub to: Vec<String>,
    /// How much more room it takes in the store, in bytes.
    pub size_difference: i64,
}

/// How one closure differs from another.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClosureDifference {
    /// What is different, by name.
    pub packages: Vec<PackageDifference>,
    /// The size of the closure before, in bytes.
    pub size_before: u64,
    /// The size of the closure after, in bytes.
    pub size_after: u64,
}

impl ClosureDifference {
    /// How much larger the closure has become, in bytes.
    #[must_use]
    pub fn size_difference(&self) -> i64 {
        difference(self.size_after, self.size_before)
    }

    /// How many packages have this fate.
    #[must_use]
    pub fn count(&self, fate: PackageFate) -> usize {
        let packages = self.packages.iter();
        packages.filter(|package| package.change == fate).count()
    }
}

/// The store paths of one package.
#[derive(Default)]
struct Package<'a> {
    paths: BTreeSet<&'a str>,
    versions: BTreeSet<&'a str>,
    size: u64,
}

impl Package<'_> {
    fn versions(&self) -> Vec<String> {
        self.versions.iter().map(ToString::to_string).collect()
    }
}

impl ClosureInfo {
    /// All that is different in it from `before`.
    #[must_use]
    pub fn difference_from(&self, before: &Self) -> ClosureDifference {
        let (old, new) = (by_package(before), by_package(self));
        let none = Package::default();
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        let packages = names.into_iter().filter_map(|name| {
            let (from, to) = (old.get(name), new.get(name));
            let change = match (from, to) {
                (None, _) => PackageFate::Added,
                (_, None) => PackageFate::Removed,
                (Some(from), Some(to)) if from.versions != to.versions => PackageFate::Updated,
                (Some(from), Some(to)) if from.paths != to.paths => PackageFate::Rebuilt,
                (Some(_), Some(_)) => return None,
            };
            let (from, to) = (from.unwrap_or(&none), to.unwrap_or(&none));
            Some(PackageDifference {
                name: name.to_owned(),
                change,
                from: from.versions(),
                to: to.versions(),
                size_difference: difference(to.size, from.size),
            })
        });
        ClosureDifference {
            packages: packages.collect(),
            size_before: before.size(),
            size_after: self.size(),
        }
    }
}

fn by_package(closure: &ClosureInfo) -> BTreeMap<&str, Package<'_>> {
    let mut packages: BTreeMap<&str, Package<'_>> = BTreeMap::new();
    for (path, size) in closure.paths() {
        let whole = path.get(crate::STORE.len() + 33..).unwrap_or(path);
        let (name, version) = match package(path) {
            Some((name, version)) => (name, Some(version)),
            None => (whole, None),
        };
        let package = packages.entry(name).or_default();
        package.paths.insert(path);
        package.versions.extend(version);
        package.size = package.size.saturating_add(size);
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each with the digit that its hash consists of, its name and its size.
    fn closure(paths: &[(char, &str, u64)]) -> ClosureInfo {
        let json: Vec<_> = paths
            .iter()
            .map(|(digit, name, size)| {
                let hash = digit.to_string().repeat(32);
                serde_json::json!({
                    "path": format!("/nix/store/{hash}-{name}"),
                    "narHash": "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
                    "narSize": size,
                })
            })
            .collect();
        ClosureInfo::from_path_info(&serde_json::to_vec(&json).unwrap()).unwrap()
    }

    #[test]
    fn what_came_went_moved_on_and_was_rebuilt_is_told_apart() {
        let before = closure(&[
            ('0', "openssl-3.0.1", 10),
            ('0', "openssl-3.0.1-bin", 1),
            ('0', "vim-9.0", 5),
            ('0', "glibc-2.40", 30),
            ('0', "etc", 1),
            ('0', "zlib-1.3", 2),
        ]);
        let after = closure(&[
            ('1', "openssl-3.0.2", 14),
            ('1', "openssl-3.0.2-bin", 1),
            ('1', "git-2.44", 7),
            ('1', "glibc-2.40", 29),
            ('1', "etc", 3),
            ('0', "zlib-1.3", 2),
        ]);
        let difference = after.difference_from(&before);
        let lines: Vec<_> = difference
            .packages
            .iter()
            .map(|p| {
                let (from, to) = (p.from.join(" "), p.to.join(" "));
                (
                    p.name.as_str(),
                    p.change.as_str(),
                    from,
                    to,
                    p.size_difference,
                )
            })
            .collect();
        let line = |name, change, from: &str, to: &str, size| {
            (name, change, from.to_owned(), to.to_owned(), size)
        };
        assert_eq!(
            lines,
            [
                line("etc", "rebuilt", "", "", 2),
                line("git", "added", "", "2.44", 7),
                line("glibc", "rebuilt", "2.40", "2.40", -1),
                line("openssl", "updated", "3.0.1", "3.0.2", 4),
                line("vim", "removed", "9.0", "", -5),
            ]
        );
        assert_eq!(difference.size_difference(), 7);
        assert_eq!(difference.count(PackageFate::Rebuilt), 2);
        assert_eq!(after.difference_from(&after).packages, []);
    }
}
