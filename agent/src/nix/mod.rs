//! Everything that asks Nix: fetching closures, profiles, what runs, and what the garbage collector keeps.
//!
//! Nix is a program found by `PATH`, and started with a clean environment. What can be read from links in
//! the file system is read there: a start of Nix costs 10 to 30 ms.

mod boot_default;
mod closure;
mod facts;
mod fetch_error;
mod process;
mod progress;
mod realise;
mod reboot;
mod room;
mod roots;
mod settings;
mod store;

use std::ffi::OsString;

pub(crate) use facts::Generation;
pub use facts::{BOOTED_SYSTEM, CURRENT_SYSTEM, SYSTEM_PROFILE, facts_of_nixos, facts_of_profile};
pub use fetch_error::FetchError;
pub use progress::FetchEvent;
pub use realise::{RealiseRequest, Realised, realise};
pub(crate) use roots::{keep, replace_link, roots_of};
pub use roots::{release_roots, roots_dir};
pub(crate) use settings::Settings;
pub(crate) use store::store_path_behind;

/// The variables that programs started by the agent and the activator get, if they are set: what they need
/// to find Nix, its configuration, its certificates and their locale, and nothing else.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "TZ",
    "LANG",
    "LOCALE_ARCHIVE",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
];

/// The prefixes of further such variables.
const KEPT_PREFIXES: &[&str] = &["NIX_", "NIXOS_"];

/// The part of this process's environment that its children get.
pub(crate) fn clean_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| {
            name.to_str().is_some_and(|name| {
                KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|p| name.starts_with(p))
            })
        })
        .collect()
}
