//! extlinux, and U-Boot, which reads the same file: `DEFAULT` names the entry.

use camino::Utf8Path;
use hoist_protocol::StorePath;

use super::{Loader, below, init, read};

/// Written by NixOS's `extlinux-conf-builder.sh`.
const CONFIGURATION: &str = "/boot/extlinux/extlinux.conf";

pub(super) fn find(root: &Utf8Path) -> Loader {
    let path = below(root, CONFIGURATION);
    if path.symlink_metadata().is_err() {
        return Loader::Absent;
    }
    Loader::Present(read(&path).as_deref().and_then(default))
}

fn default(text: &str) -> Option<StorePath> {
    let mut default = None;
    // Each with its command line.
    let mut entries: Vec<(&str, &str)> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        if word.eq_ignore_ascii_case("default") {
            default = Some(rest);
        } else if word.eq_ignore_ascii_case("label") {
            entries.push((rest, ""));
        } else if word.eq_ignore_ascii_case("append")
            && let Some((_, append)) = entries.last_mut()
        {
            *append = rest;
        }
    }
    let (_, append) = match default {
        Some(default) => entries.iter().find(|(label, _)| *label == default)?,
        None => entries.first()?,
    };
    init(append)
}
