//! What the boot loader brings by default: the one of a machine's facts that neither Nix nor a link tells.
//!
//! It is read from the files that NixOS writes for systemd-boot, GRUB and extlinux. Whatever is not understood is
//! unknown, never guessed: signed images such as lanzaboote's, other boot loaders, and two that disagree.

mod extlinux;
mod grub;
mod systemd_boot;

use std::fs::File;
use std::io::{self, Read as _};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{STORE, StorePath};

/// The largest file that is read, in bytes; a GRUB menu of 500 systems has about 400,000.
const FILE_MAX: u64 = 2 << 20;

/// The most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 2_000;

/// What the machine whose files lie in `root` boots when nobody chooses; none when that is not known. Takes less
/// than a millisecond, and reads what root alone may read.
pub(crate) fn boot_default(root: &Utf8Path) -> Option<StorePath> {
    let found = [
        systemd_boot::find(root),
        grub::find(root),
        extlinux::find(root),
    ];
    let mut found = found.into_iter().filter_map(|loader| match loader {
        Loader::Absent => None,
        Loader::Present(default) => Some(default),
    });
    let first = found.next()??;
    // One was there before the other, and which of them the firmware starts is not in these files.
    found
        .all(|other| other.as_ref() == Some(&first))
        .then_some(first)
}

/// A boot loader that may be there, and what it brings, where that is known.
#[derive(Debug, Eq, PartialEq)]
enum Loader {
    Absent,
    Present(Option<StorePath>),
}

/// The system that a kernel command line names: `init=/nix/store/…-nixos-system-…/init`.
fn init(command_line: &str) -> Option<StorePath> {
    let init = command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("init="))?;
    let base = init.strip_prefix(STORE)?.split('/').next()?;
    StorePath::new(format!("{STORE}{base}")).ok()
}

/// A text file; none when it is not there, is too large, or cannot be read.
fn read(path: &Utf8Path) -> Option<String> {
    String::from_utf8(read_bytes(path)?).ok()
}

fn read_bytes(path: &Utf8Path) -> Option<Vec<u8>> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(FILE_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 <= FILE_MAX => Some(bytes),
        Ok(_) => {
            tracing::debug!(%path, "too large to be read");
            None
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(%path, %error, "cannot be read");
            }
            None
        }
    }
}

/// The names in a folder; none when it has too many.
fn names(dir: &Utf8Path) -> Option<Vec<String>> {
    let Ok(entries) = dir.read_dir_utf8() else {
        return Some(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries.flatten() {
        if names.len() == ENTRIES_MAX {
            return None;
        }
        names.push(entry.file_name().to_owned());
    }
    Some(names)
}

/// A path below `root`.
fn below(root: &Utf8Path, path: &str) -> Utf8PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests;
