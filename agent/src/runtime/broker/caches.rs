//! The binary caches that Nix uses on this machine: hosts that are known to be there besides the broker.

use super::outage::Host;
use crate::nix::Settings;

/// Most caches that are taken for witnesses.
const MAX_CACHES: usize = 8;

/// The hosts of the machine's own caches; none when Nix does not tell.
pub(super) async fn machines_caches() -> Vec<Host> {
    let settings = Settings::ask().await;
    settings.as_ref().map(hosts).unwrap_or_default()
}

/// Those that stand in Nix's settings.
fn hosts(settings: &Settings) -> Vec<Host> {
    let urls = settings.get("substituters").unwrap_or_default();
    urls.split_whitespace()
        .filter_map(Host::of_url)
        .take(MAX_CACHES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caches_are_found_in_nixs_settings() {
        let settings = Settings::of(
            "sandbox = true\n\
                        substituters = https://cache.nixos.org/ http://cache.example.org:5000 file:///tmp/cache\n\
                        trusted-substituters = https://other.example.org\n",
        );
        let expected = ["https://cache.nixos.org", "http://cache.example.org:5000"];
        let expected: Vec<_> = expected.into_iter().filter_map(Host::of_url).collect();
        assert_eq!(hosts(&settings), expected);
        assert_eq!(hosts(&Settings::of("nothing")), []);
    }
}
