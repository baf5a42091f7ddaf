//! How one closure differs from another, package by package.
//!
//! [`ClosureDifference`] is all of it, without a limit. [`Changes`] is what machines report of that: bounded, without
//! what was merely rebuilt, and without what has no version, such as generated files.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::closure::{ClosureInfo, package};
use crate::limits;
use crate::text::Text;

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

    /// What a machine reports of it.
    #[must_use]
    pub fn changes(&self) -> Changes {
        let mut changes = Changes {
            size_difference: self.size_difference(),
            ..Changes::default()
        };
        let moved = |package: &&PackageDifference| package.from != package.to;
        for package in self.packages.iter().filter(moved) {
            let count = match (&package.from[..], &package.to[..]) {
                ([], _) => &mut changes.packages_added,
                (_, []) => &mut changes.packages_removed,
                _ => &mut changes.packages_changed,
            };
            *count = count.saturating_add(1);
            if changes.packages.len() < limits::CHANGED_PACKAGES {
                let versions = |versions: &[String]| {
                    (!versions.is_empty()).then(|| Text::lossy(&versions.join(", ")))
                };
                changes.packages.push(PackageChange {
                    name: Text::lossy(&package.name),
                    from: versions(&package.from),
                    to: versions(&package.to),
                });
            }
        }
        changes
    }

    /// How many packages have this fate.
    #[must_use]
    pub fn count(&self, fate: PackageFate) -> usize {
        let packages = self.packages.iter();
        packages.filter(|package| package.change == fate).count()
    }
}

/// A package whose versions are not the same in two closures, as a machine reports it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PackageChange {
    /// Its name.
    pub name: Text<64>,
    /// Its versions before, separated by commas; none when it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Text<64>>,
    /// Its versions after, separated by commas; none when it is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Text<64>>,
}

/// What a deployment changed against what ran before it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Changes {
    /// Packages that are new.
    pub packages_added: u32,
    /// Packages that are gone.
    pub packages_removed: u32,
    /// Packages in another version.
    pub packages_changed: u32,
    /// How much larger the closure has become, in bytes.
    pub size_difference: i64,
    /// The first [`limits::CHANGED_PACKAGES`] of them by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageChange>,
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

/// How much larger `to` is than `from`.
fn difference(to: u64, from: u64) -> i64 {
    let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    signed(to).saturating_sub(signed(from))
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

    #[test]
    fn a_machine_reports_packages_with_their_versions_and_nothing_that_was_merely_rebuilt() {
        let before = closure(&[
            ('0', "openssl-3.0.1", 10),
            ('0', "openssl-3.0.1-bin", 1),
            ('0', "vim-9.0", 5),
            ('0', "etc", 1),
            ('0', "glibc-2.40", 30),
            ('0', "units", 1),
        ]);
        let after = closure(&[
            ('1', "openssl-3.0.2", 12),
            ('1', "openssl-3.0.2-bin", 1),
            ('1', "git-2.44", 7),
            ('1', "etc", 1),
            ('1', "glibc-2.40", 30),
            ('1', "users", 1),
        ]);
        let changes = after.difference_from(&before).changes();
        let lines: Vec<_> = changes
            .packages
            .iter()
            .map(|p| {
                (
                    p.name.as_str(),
                    p.from.as_ref().map(Text::as_str),
                    p.to.as_ref().map(Text::as_str),
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                ("git", None, Some("2.44")),
                ("openssl", Some("3.0.1"), Some("3.0.2")),
                ("vim", Some("9.0"), None),
            ]
        );
        let counts = (
            changes.packages_added,
            changes.packages_removed,
            changes.packages_changed,
        );
        assert_eq!(counts, (1, 1, 1));
        assert_eq!(changes.size_difference, 4);
        let none = after.difference_from(&after).changes();
        assert_eq!(none, Changes::default());
    }

    #[test]
    fn of_what_a_machine_reports_all_is_counted_and_the_first_are_named() {
        let names: Vec<String> = (0..limits::CHANGED_PACKAGES + 2)
            .map(|number| format!("package{number:03}-1.0"))
            .collect();
        let paths: Vec<_> = names.iter().map(|name| ('0', name.as_str(), 1)).collect();
        let changes = closure(&paths).difference_from(&closure(&[])).changes();
        assert_eq!(changes.packages.len(), limits::CHANGED_PACKAGES);
        assert_eq!(changes.packages[0].name.as_str(), "package000");
        assert_eq!(changes.packages_added as usize, names.len());
    }
}
