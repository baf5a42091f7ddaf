//! Why Nix could not fetch.

use std::collections::VecDeque;

use hoist_protocol::{Reason, Text};

/// A closure could not be had.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// [`Reason::MissingPath`], [`Reason::UntrustedPath`], [`Reason::DiskFull`] or [`Reason::FetchFailed`].
    pub reason: Reason,
    /// What failed and what to do, and the last that Nix said.
    pub message: Text<1024>,
}

impl FetchError {
    /// A fetch that failed for another reason than those that Nix names.
    pub(super) fn other(message: &str) -> Self {
        Self {
            reason: Reason::FetchFailed,
            message: Text::lossy(message),
        }
    }
}

/// How many of Nix's last complaints a message quotes.
const QUOTED: usize = 3;

/// Collects what Nix complains about, and says in the end what it was.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    untrusted: bool,
    disk_full: bool,
    unreachable: bool,
    missing: bool,
    last: VecDeque<String>,
}

impl Complaints {
    /// Hears a message of Nix; `level` is 0 for an error, 1 for a warning, more for what is no complaint.
    pub(super) fn hear(&mut self, level: u64, text: &str) {
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        // Nix 2.8 warns in the first words and builds the path next; newer ones and the daemon use the others.
        self.untrusted |= has(&[
            "is not signed by any of the keys",
            "lacks a valid signature",
            "lacks a signature by a trusted key",
        ]);
        self.disk_full |= has(&["No space left on device", "disk is full"]);
        self.unreachable |= has(&["unable to download", "cannot connect", "Could not connect"]);
        self.missing |= has(&[
            "don't know how to build these paths",
            "no substituter that can build it",
            "does not exist in binary cache",
            "is not valid",
        ]);
        if level <= 1 {
            // A download that is tried again says the same several times.
            let text = text.split("; retrying in").next().unwrap_or(text).trim();
            if !text.is_empty() && self.last.back().map(String::as_str) != Some(text) {
                if self.last.len() == QUOTED {
                    self.last.pop_front();
                }
                self.last.push_back(text.to_owned());
            }
        }
    }

    /// What it was.
    pub(super) fn verdict(&self, what: &str) -> FetchError {
        let (reason, advice) = if self.disk_full {
            (
                Reason::DiskFull,
                "the disk is full; make room, for example with `nix-collect-garbage`",
            )
        } else if self.untrusted {
            (
                Reason::UntrustedPath,
                "a cache has a path that no key trusted here signed; sign the cache with a trusted key, \
                 or add its key to `trusted-public-keys` of the machine or to the deployment's substituter keys",
            )
        } else if self.missing && !self.unreachable {
            (
                Reason::MissingPath,
                "no binary cache has it, or not all of its closure; push it before it is deployed, \
                 and check the machine's `substituters`",
            )
        } else {
            (Reason::FetchFailed, "Nix failed")
        };
        let mut message = format!("cannot fetch {what}: {advice}");
        if !self.last.is_empty() {
            message.push_str(". Nix said: ");
            let last: Vec<_> = self.last.iter().map(String::as_str).collect();
            message.push_str(&last.join("; "));
        }
        FetchError {
            reason,
            message: Text::lossy(&message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(heard: &[(u64, &str)]) -> FetchError {
        let mut complaints = Complaints::default();
        for (level, text) in heard {
            complaints.hear(*level, text);
        }
        complaints.verdict("/nix/store/x")
    }

    #[test]
    fn what_nix_says_tells_the_reasons_apart() {
        let failed = (0, "error: build of '/nix/store/x' failed");
        let unsigned = "warning: the substitute for '/nix/store/x' from 'file:///c' is not signed by any of the keys in 'trusted-public-keys'";
        assert_eq!(
            verdict(&[(1, unsigned), failed]).reason,
            Reason::UntrustedPath
        );
        assert_eq!(
            verdict(&[(3, "don't know how to build these paths:"), failed]).reason,
            Reason::MissingPath
        );
        assert_eq!(
            verdict(&[(0, "error: writing to file: No space left on device")]).reason,
            Reason::DiskFull
        );
        let unreachable =
            "error: unable to download 'http://c/nix-cache-info': Couldn't connect to server (7)";
        let error = verdict(&[
            (1, &format!("{unreachable}; retrying in 300 ms")),
            (1, &format!("{unreachable}; retrying in 600 ms")),
            (3, "don't know how to build these paths:"),
            failed,
        ]);
        assert_eq!(error.reason, Reason::FetchFailed);
        assert_eq!(
            error.message.as_str().matches("unable to download").count(),
            1
        );
    }
}
