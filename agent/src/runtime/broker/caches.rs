//! The binary caches that Nix uses on this machine: hosts that are known to be there besides the broker.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::outage::Host;

/// How long Nix may take to say its settings.
const ANSWER: Duration = Duration::from_secs(5);

/// Most caches that are taken for witnesses.
const MAX_CACHES: usize = 8;

/// The hosts of the machine's own caches; none when Nix does not tell.
pub(super) async fn machines_caches() -> Vec<Host> {
    // The former is how newer versions of Nix call it, and the latter how those before 2.20 do.
    for arguments in [&["config", "show"][..], &["show-config"]] {
        if let Some(settings) = settings(arguments).await {
            return hosts(&settings);
        }
    }
    tracing::debug!("Nix does not tell its settings, so its caches are no witnesses of an outage");
    Vec::new()
}

async fn settings(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("nix");
    command
        .args(["--extra-experimental-features", "nix-command"])
        .args(arguments)
        .env_clear()
        .envs(crate::nix::clean_environment())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER, command.output()).await;
    let output = output.ok()?.ok()?;
    let succeeded = output.status.success();
    succeeded.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Those that stand in Nix's settings, which are lines such as `substituters = https://a https://b`.
fn hosts(settings: &str) -> Vec<Host> {
    settings
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(key, _)| *key == "substituters")
        .flat_map(|(_, urls)| urls.split_whitespace())
        .filter_map(Host::of_url)
        .take(MAX_CACHES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caches_are_found_in_nixs_settings() {
        let settings = "sandbox = true\n\
                        substituters = https://cache.nixos.org/ http://cache.example.org:5000 file:///tmp/cache\n\
                        trusted-substituters = https://other.example.org\n";
        let expected = ["https://cache.nixos.org", "http://cache.example.org:5000"];
        let expected: Vec<_> = expected.into_iter().filter_map(Host::of_url).collect();
        assert_eq!(hosts(settings), expected);
        assert_eq!(hosts("nothing"), []);
    }
}
