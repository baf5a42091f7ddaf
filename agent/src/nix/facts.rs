//! What runs, what the profile names, and what was booted: facts that can differ.

use std::io;

use camino::Utf8Path;
use hoist_agent_core::Facts;
use hoist_protocol::StorePath;
use serde::{Deserialize, Serialize};

use super::boot_default::boot_default;
use super::reboot::reboot_reasons;
use super::store::{read_link, store_path_behind};

/// The profile of a NixOS system: what it boots, once the boot loader is set.
pub const SYSTEM_PROFILE: &str = "/nix/var/nix/profiles/system";

/// What a NixOS system runs.
pub const CURRENT_SYSTEM: &str = "/run/current-system";

/// What a NixOS system was booted with.
pub const BOOTED_SYSTEM: &str = "/run/booted-system";

/// Of a NixOS system.
///
/// # Errors
/// A link cannot be read.
pub fn facts_of_nixos() -> io::Result<Facts> {
    nixos_below("/".into())
}

/// Of the NixOS system whose files lie in `root`.
fn nixos_below(root: &Utf8Path) -> io::Result<Facts> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    let (current, booted) = (at(CURRENT_SYSTEM), at(BOOTED_SYSTEM));
    Ok(Facts {
        current: store_path_behind(&current)?,
        profile: store_path_behind(&at(SYSTEM_PROFILE))?,
        boot_default: boot_default(root),
        booted: store_path_behind(&booted)?,
        reboot_reasons: reboot_reasons(&booted, &current)?,
    })
}

/// Of a plain profile. What boots and takes a reboot is the machine's own, whatever the profile holds.
///
/// # Errors
/// A link cannot be read.
pub fn facts_of_profile(profile: &Utf8Path) -> io::Result<Facts> {
    let named = store_path_behind(profile)?;
    Ok(Facts {
        current: named.clone(),
        profile: named,
        boot_default: None,
        booted: store_path_behind(BOOTED_SYSTEM.into())?,
        reboot_reasons: Vec::new(),
    })
}

/// What a profile names.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Generation {
    /// Its number; none when the profile is a link of somebody's own.
    pub(crate) number: Option<u64>,
    /// What it holds.
    pub(crate) path: StorePath,
}

impl Generation {
    /// What `profile` names; none when it does not exist or does not lead into the store.
    pub(crate) fn of(profile: &Utf8Path) -> io::Result<Option<Self>> {
        let Some(path) = store_path_behind(profile)? else {
            return Ok(None);
        };
        let number = read_link(profile)?
            .as_deref()
            .and_then(|link| number(profile, link));
        Ok(Some(Self { number, path }))
    }

    /// Whether the generation is still there and holds what it held.
    pub(crate) fn exists(&self, profile: &Utf8Path) -> io::Result<bool> {
        let Some(number) = self.number else {
            return Ok(false);
        };
        let link = format!("{profile}-{number}-link");
        Ok(store_path_behind(link.as_str().into())?.as_ref() == Some(&self.path))
    }
}

/// `7` for the link `system-7-link` of the profile `system` beside it.
fn number(profile: &Utf8Path, link: &Utf8Path) -> Option<u64> {
    link.as_str()
        .strip_prefix(profile.as_str())?
        .strip_prefix('-')?
        .strip_suffix("-link")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_nixos_system_tells_facts_that_can_differ() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let path = |number: u32| format!("/nix/store/{number:032}-nixos-system-web-24.05");
        for (link, number) in [(CURRENT_SYSTEM, 1), (SYSTEM_PROFILE, 2), (BOOTED_SYSTEM, 4)] {
            let link = root.join(link.trim_start_matches('/'));
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(path(number), link).unwrap();
        }
        std::fs::create_dir_all(root.join("boot/extlinux")).unwrap();
        let menu = format!("LABEL nixos-default\n  APPEND init={}/init\n", path(3));
        std::fs::write(root.join("boot/extlinux/extlinux.conf"), menu).unwrap();
        let system = |number| Some(StorePath::new(path(number)).unwrap());
        let facts = nixos_below(root).unwrap();
        assert_eq!(
            facts,
            Facts {
                current: system(1),
                profile: system(2),
                boot_default: system(3),
                booted: system(4),
                reboot_reasons: Vec::new(),
            }
        );
    }

    #[test]
    fn a_profile_names_a_path_and_a_generation() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let path = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web").unwrap();
        let profile = dir.join("hoist");
        assert_eq!(Generation::of(&profile).unwrap(), None);

        symlink(path.as_str(), dir.join("hoist-12-link")).unwrap();
        symlink("hoist-12-link", &profile).unwrap();
        let generation = Generation::of(&profile).unwrap().unwrap();
        assert_eq!((generation.number, &generation.path), (Some(12), &path));
        assert!(generation.exists(&profile).unwrap());
        std::fs::remove_file(dir.join("hoist-12-link")).unwrap();
        assert!(!generation.exists(&profile).unwrap());

        let own = dir.join("own");
        symlink(path.as_str(), &own).unwrap();
        let generation = Generation::of(&own).unwrap().unwrap();
        assert_eq!((generation.number, generation.path), (None, path));
    }
}
