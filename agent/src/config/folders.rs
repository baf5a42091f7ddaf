//! Where state and profile lie unless told otherwise: those of the machine for root, those of the user for
//! everybody else.

use camino::{Utf8Path, Utf8PathBuf};

/// Where root's agent keeps its ledger and jobs.
pub const STATE: &str = "/var/lib/hoist-agent";

/// Root's configuration, unless another one is named.
pub const CONFIG: &str = "/etc/hoist/agent.toml";

/// The profile of plain closures of root's agent.
pub const PROFILE: &str = "/nix/var/nix/profiles/hoist";

/// Whose agent it is, as far as the defaults depend on it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Account {
    pub(super) is_root: bool,
    /// `HOME`
    pub(super) home: Option<Utf8PathBuf>,
    /// `XDG_STATE_HOME`
    pub(super) state_home: Option<Utf8PathBuf>,
    /// `XDG_CONFIG_HOME`
    pub(super) config_home: Option<Utf8PathBuf>,
}

impl Account {
    /// That of this process.
    pub(super) fn current() -> Self {
        // The XDG Base Directory Specification has relative ones ignored, and an empty one is unset.
        let folder = |name| {
            let path = Utf8PathBuf::from(std::env::var(name).ok()?);
            path.is_absolute().then_some(path)
        };
        Self {
            is_root: rustix::process::geteuid().is_root(),
            home: folder("HOME"),
            state_home: folder("XDG_STATE_HOME"),
            config_home: folder("XDG_CONFIG_HOME"),
        }
    }

    /// The configuration file, whether it is there or not; none for a user without a home.
    pub(super) fn config(&self) -> Option<Utf8PathBuf> {
        if self.is_root {
            return Some(CONFIG.into());
        }
        let folder = match &self.config_home {
            Some(folder) => folder.clone(),
            None => self.home.as_deref()?.join(".config"),
        };
        Some(folder.join("hoist/agent.toml"))
    }

    /// The state folder; none for a user without a home.
    pub(super) fn state(&self) -> Option<Utf8PathBuf> {
        if self.is_root {
            return Some(STATE.into());
        }
        let folder = match &self.state_home {
            Some(folder) => folder.clone(),
            None => self.home.as_deref()?.join(".local/state"),
        };
        Some(folder.join("hoist-agent"))
    }

    /// The profile; none for a user without a home.
    pub(super) fn profile(&self) -> Option<Utf8PathBuf> {
        if self.is_root {
            return Some(PROFILE.into());
        }
        // Nix keeps it there whatever XDG_STATE_HOME says, unless its `use-xdg-base-directories` is set.
        let home: &Utf8Path = self.home.as_deref()?;
        Some(home.join(".local/state/nix/profiles/hoist"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(is_root: bool, home: Option<&str>, state_home: Option<&str>) -> Account {
        Account {
            is_root,
            home: home.map(Into::into),
            state_home: state_home.map(Into::into),
            config_home: None,
        }
    }

    #[test]
    fn root_has_the_machines_folders() {
        let root = account(true, Some("/root"), Some("/elsewhere"));
        assert_eq!(root.state().unwrap(), STATE);
        assert_eq!(root.profile().unwrap(), PROFILE);
        assert_eq!(root.config().unwrap(), CONFIG);
    }

    #[test]
    fn a_user_has_folders_in_the_home() {
        let user = account(false, Some("/home/ann"), None);
        assert_eq!(user.state().unwrap(), "/home/ann/.local/state/hoist-agent");
        assert_eq!(
            user.profile().unwrap(),
            "/home/ann/.local/state/nix/profiles/hoist"
        );
        assert_eq!(user.config().unwrap(), "/home/ann/.config/hoist/agent.toml");
        let moved = account(false, Some("/home/ann"), Some("/data/ann"));
        assert_eq!(moved.state().unwrap(), "/data/ann/hoist-agent");
    }

    #[test]
    fn a_user_without_a_home_has_none() {
        let nobody = account(false, None, None);
        assert_eq!((nobody.state(), nobody.profile()), (None, None));
        assert_eq!(nobody.config(), None);
    }
}
