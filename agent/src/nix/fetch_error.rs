//! Why Nix could not fetch.

use std::collections::{BTreeSet, VecDeque};

use hoist_protocol::{Reason, SubstituterUrl, Text};

/// A closure could not be had.
///
/// Only [`Reason::FetchFailed`] is worth another try: the network, a cache or Nix's daemon may come back.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// [`Reason::MissingPath`], [`Reason::UntrustedPath`], [`Reason::DiskFull`], [`Reason::DigestMismatch`],
    /// [`Reason::FetchFailed`] or [`Reason::Internal`].
    pub reason: Reason,
    /// What failed and what to do, and the last that Nix said.
    pub message: Text<1024>,
}

impl FetchError {
    /// A fetch that failed for a reason which may pass.
    pub(super) fn other(message: impl AsRef<str>) -> Self {
        Self {
            reason: Reason::FetchFailed,
            message: Text::lossy(message.as_ref()),
        }
    }

    /// A fetch that cannot work on this machine as it is.
    pub(super) fn internal(message: impl AsRef<str>) -> Self {
        Self {
            reason: Reason::Internal,
            message: Text::lossy(message.as_ref()),
        }
    }
}

/// How many of Nix's last complaints a message quotes.
const QUOTED: usize = 2;

/// The longest complaint that is quoted, in characters: a cache may answer with a whole page.
const QUOTED_LEN: usize = 200;

/// How many paths or caches are remembered; more would not go into a message.
const REMEMBERED: usize = 16;

/// Collects what Nix complains about, and says in the end what it was.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    /// Caches that Nix has asked about paths.
    asked: BTreeSet<String>,
    /// Caches that did not answer, or not well.
    unreachable: BTreeSet<String>,
    /// Caches that do not let this machine read.
    refusing: BTreeSet<String>,
    /// Paths that no cache has.
    missing: Vec<String>,
    /// The lines after this one name what is missing.
    lists_missing: bool,
    /// What a cache said it had, and has not.
    gone: Option<String>,
    /// A path without a signature that is trusted, and its cache where Nix tells.
    untrusted: Option<(String, Option<String>)>,
    /// Content that is not what the cache signed.
    corrupt: Option<String>,
    /// The daemon does not let this user add caches or keys.
    not_trusted_user: bool,
    daemon_gone: bool,
    disk_full: bool,
    last: VecDeque<String>,
}

impl Complaints {
    /// Nix asks this cache.
    pub(super) fn asks(&mut self, cache: &str) {
        remember(&mut self.asked, cache);
    }

    /// Whether all caches that Nix has asked are asked over HTTP.
    pub(super) fn asks_over_http_alone(&self) -> bool {
        self.asked
            .iter()
            .all(|cache| cache.starts_with("http://") || cache.starts_with("https://"))
    }

    /// Hears a message of Nix; `level` is 0 for an error, 1 for a warning, more for what is no complaint.
    pub(super) fn hear(&mut self, level: u64, text: &str) {
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if self.lists_missing
            && let Some(path) = text.strip_prefix("  /")
        {
            if self.missing.len() < REMEMBERED {
                self.missing.push(format!("/{path}"));
            }
            return;
        }
        self.lists_missing = has(&["don't know how to build these paths"]);
        self.hear_of_caches(text);
        // Nix 2.8 warns with the first words, newer ones with the second; the daemon, and what checks again
        // while it is copied, use the others.
        if has(&[
            "is not signed by any of the keys",
            "it's not signed by any of the keys",
            "lacks a valid signature",
            "lacks a signature by a trusted key",
        ]) {
            let mut quoted = quoted(text);
            let path = quoted.next().unwrap_or_default().to_owned();
            let cache = quoted.next().filter(|cache| cache.contains("://"));
            self.untrusted = Some((path, cache.map(str::to_owned)));
        }
        if has(&["no substituter that can build it"])
            && let Some(path) = quoted(text).next()
            && self.missing.len() < REMEMBERED
        {
            self.missing.push(path.to_owned());
        }
        if has(&[
            "hash mismatch importing path",
            "size mismatch importing path",
            "input compression not recognized",
            "error while decompressing",
            "bad archive",
            "NAR info file",
        ]) && level == 0
        {
            self.corrupt = Some(short(text));
        }
        self.disk_full |= has(&[
            "No space left on device",
            "disk is full",
            "Disk quota exceeded",
        ]);
        self.daemon_gone |= has(&[
            "cannot connect to socket",
            "cannot connect to daemon",
            "Nix daemon disconnected unexpectedly",
        ]);
        self.not_trusted_user |= has(&["ignoring untrusted substituter"])
            || (has(&["you are not a trusted user"])
                && has(&["substituters'", "trusted-public-keys'"]));
        // An untrusted user is told so about every setting, those that do not matter too.
        if level <= 1 && !has(&["ignoring the client-specified setting"]) {
            self.quote(text);
        }
    }

    fn hear_of_caches(&mut self, text: &str) {
        if text.contains("unable to download")
            && let Some(url) = quoted(text).next()
        {
            let refuses = ["HTTP error 401", "HTTP error 403", "HTTP error 407"];
            if refuses.iter().any(|error| text.contains(error)) {
                remember(&mut self.refusing, cache_of(url));
            } else {
                remember(&mut self.unreachable, cache_of(url));
            }
        }
        if text.contains("does not appear to be a binary cache")
            && let Some(url) = quoted(text).next()
        {
            remember(&mut self.refusing, url);
        }
        if text.contains("does not exist in binary cache") {
            self.gone = Some(short(text));
        }
    }

    fn quote(&mut self, text: &str) {
        // A download that is tried again says the same several times.
        let text = text.split("; retrying in").next().unwrap_or(text).trim();
        let text = short(text);
        if !text.is_empty() && self.last.back() != Some(&text) {
            if self.last.len() == QUOTED {
                self.last.pop_front();
            }
            self.last.push_back(text);
        }
    }

    /// What it was, for a fetch of `what` for which `caches` were named.
    pub(super) fn verdict(&self, what: &str, caches: &[SubstituterUrl]) -> FetchError {
        let (reason, found) = self.finding(what, caches);
        let mut message = format!("cannot fetch {what}: {found}");
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

    fn finding(&self, what: &str, caches: &[SubstituterUrl]) -> (Reason, String) {
        if self.disk_full {
            let advice = "the disk is full; make room, for example with `nix-collect-garbage --delete-older-than 14d`";
            return (Reason::DiskFull, advice.to_owned());
        }
        if self.daemon_gone {
            let advice = "Nix's daemon does not answer; check `systemctl status nix-daemon`";
            return (Reason::FetchFailed, advice.to_owned());
        }
        if let Some(corrupt) = &self.corrupt {
            let advice = format!(
                "a cache serves content that is not what it signed ({corrupt}); push it again, and check what \
                 lies between the cache and this machine"
            );
            return (Reason::FetchFailed, advice);
        }
        if let Some((path, cache)) = &self.untrusted {
            return (
                Reason::UntrustedPath,
                self.untrusted(path, cache.as_deref()),
            );
        }
        if self.missing.is_empty() && self.gone.is_none() {
            return (Reason::FetchFailed, self.network());
        }
        // A cache that the deployment names is where its closure should be: when each of these has answered, one
        // of the machine's own that is out of reach would only be waited for in vain.
        let answered = |cache: &SubstituterUrl| {
            let out = self.unreachable.iter().chain(&self.refusing);
            !out.into_iter().any(|out| same_cache(out, cache.as_str()))
        };
        let is_final = if caches.is_empty() || self.not_trusted_user {
            self.unreachable.is_empty() && self.refusing.is_empty()
        } else {
            caches.iter().all(answered)
        };
        if is_final {
            (Reason::MissingPath, self.missing(what))
        } else {
            (Reason::FetchFailed, self.network())
        }
    }

    fn untrusted(&self, path: &str, cache: Option<&str>) -> String {
        let cache = cache.map_or("a cache".to_owned(), |cache| format!("the cache {cache}"));
        let advice = if self.not_trusted_user {
            "Nix's daemon ignores the deployment's keys, since this agent's user is not trusted: add the user \
             to `trusted-users` in nix.conf, or the cache's key to `trusted-public-keys`"
        } else {
            "sign it with a trusted key (`nix store sign`), or add the cache's key to `trusted-public-keys` of \
             the machine or to the deployment's substituter keys"
        };
        format!("{cache} has {path}, which no key trusted here signed; {advice}")
    }

    fn missing(&self, what: &str) -> String {
        if let Some(gone) = &self.gone {
            return format!(
                "a cache has lost what it says it has ({gone}); push it again before it is deployed"
            );
        }
        let asked = if self.asked.is_empty() {
            "no binary cache was asked, since none is set".to_owned()
        } else {
            format!("asked: {}", list(&self.asked))
        };
        let first = self.missing.first().map_or(what, String::as_str);
        let parts = if first == what {
            String::new()
        } else {
            format!(" {first}, which it needs,")
        };
        let parts = if parts.is_empty() { " it" } else { &parts };
        let mut message = format!("no binary cache has{parts} ({asked})");
        for (caches, why) in [
            (&self.unreachable, "does not answer"),
            (&self.refusing, "does not let this machine read"),
        ] {
            if !caches.is_empty() {
                message.push_str(&format!("; {} {why}", list(caches)));
            }
        }
        message.push_str(if self.not_trusted_user {
            "; Nix's daemon ignores the deployment's caches, since this agent's user is not trusted: add the \
             user to `trusted-users` in nix.conf, or the cache to `trusted-substituters`"
        } else {
            "; push the whole closure before it is deployed, and check the machine's `substituters`"
        });
        message
    }

    fn network(&self) -> String {
        if !self.unreachable.is_empty() {
            return format!(
                "{} does not answer; check the network, name resolution, and the cache",
                list(&self.unreachable)
            );
        }
        if !self.refusing.is_empty() {
            return format!(
                "{} does not let this machine read; check its URL and the machine's `netrc-file`",
                list(&self.refusing)
            );
        }
        "Nix failed".to_owned()
    }
}

fn remember(set: &mut BTreeSet<String>, what: &str) {
    if set.len() < REMEMBERED {
        set.insert(what.trim_end_matches('/').to_owned());
    }
}

fn list(set: &BTreeSet<String>) -> String {
    let parts: Vec<_> = set.iter().map(String::as_str).collect();
    parts.join(", ")
}

/// What stands in single quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('\'').skip(1).step_by(2)
}

/// Its first line, without what would not go into a message.
fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    line.chars().take(QUOTED_LEN).collect()
}

/// The cache that a file of it belongs to.
fn cache_of(url: &str) -> &str {
    let file = ["/nix-cache-info", "/nar/"];
    if let Some(end) = file.iter().find_map(|file| url.find(file)) {
        return &url[..end];
    }
    match url.rsplit_once('/') {
        Some((cache, file)) if file.ends_with(".narinfo") => cache,
        _ => url,
    }
}

/// Whether Nix means the cache that was named so: it leaves out the parameters.
fn same_cache(said: &str, named: &str) -> bool {
    let named = named.split('?').next().unwrap_or(named);
    named.trim_end_matches('/') == said
}

#[cfg(test)]
#[path = "fetch_error_tests.rs"]
mod tests;
