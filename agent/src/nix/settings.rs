//! The settings of this machine's Nix.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long Nix may take to say its settings.
const ANSWER: Duration = Duration::from_secs(5);

/// What Nix says of itself: lines such as `substituters = https://a https://b`.
#[derive(Clone, Debug)]
pub(crate) struct Settings(String);

impl Settings {
    /// Asks Nix; none when it does not tell.
    pub(crate) async fn ask() -> Option<Self> {
        // The former is how newer versions of Nix call it, and the latter how those before 2.20 do.
        for arguments in [&["config", "show"][..], &["show-config"]] {
            if let Some(text) = ask(arguments).await {
                return Some(Self(text));
            }
        }
        tracing::debug!("Nix does not tell its settings");
        None
    }

    /// The value of a setting as Nix writes it; none when this Nix has no such setting.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let lines = self.0.lines().filter_map(|line| line.split_once(" ="));
        let mut found = lines.filter(|(key, _)| *key == name);
        found.next().map(|(_, value)| value.trim())
    }

    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

async fn ask(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("nix");
    command
        .args(["--extra-experimental-features", "nix-command"])
        .args(arguments)
        .env_clear()
        .envs(super::clean_environment())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER, command.output()).await;
    let output = output.ok()?.ok()?;
    let succeeded = output.status.success();
    succeeded.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_found_by_its_whole_name() {
        let settings =
            Settings::of("extra-min-free = 7\nmin-free = 1024\nsubstituters =\nsandbox = true\n");
        assert_eq!(settings.get("min-free"), Some("1024"));
        assert_eq!(settings.get("substituters"), Some(""));
        assert_eq!(settings.get("free"), None);
    }
}
