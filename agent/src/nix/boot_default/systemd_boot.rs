//! systemd-boot: `loader.conf` or an EFI variable names the entry by a pattern, `loader/entries` has the entries
//! (`loader.conf(5)`, the UAPI Group's Boot Loader Specification, and NixOS's `systemd-boot-builder.py`).

use std::cmp::{Ordering, Reverse};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::StorePath;

use super::{Loader, below, init, names, read, read_bytes};

/// Where the EFI system partition or XBOOTLDR, which holds entries too, may be mounted.
const PARTITIONS: &[&str] = &["/boot", "/efi", "/boot/efi", "/boot/EFI"];

const VARIABLES: &str = "/sys/firmware/efi/efivars";

/// The vendor of systemd-boot's variables.
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

pub(super) fn find(root: &Utf8Path) -> Loader {
    let partitions = PARTITIONS.iter().map(|path| below(root, path));
    let partitions: Vec<_> = partitions.filter(|path| path.is_dir()).collect();
    let mut configurations = partitions
        .iter()
        .map(|partition| partition.join("loader/loader.conf"));
    let Some(configuration) = configurations.find(|path| path.symlink_metadata().is_ok()) else {
        return Loader::Absent;
    };
    let Some(configuration) = read(&configuration) else {
        return Loader::Present(None);
    };
    let choice = Choice {
        preferred: variable(root, "LoaderEntryPreferred")
            .or_else(|| setting(&configuration, "preferred")),
        default: variable(root, "LoaderEntryDefault")
            .or_else(|| setting(&configuration, "default")),
        last_booted: variable(root, "LoaderEntryLastBooted"),
    };
    Loader::Present(Entries::find(&partitions).and_then(|entries| entries.chosen(&choice)))
}

/// A setting of `loader.conf`; the last one holds.
fn setting(configuration: &str, key: &str) -> Option<String> {
    configuration.lines().rev().find_map(|line| {
        let value = line.trim().strip_prefix(key)?;
        let value = value.strip_prefix(char::is_whitespace)?;
        Some(value.trim().to_owned())
    })
}

/// An EFI variable of systemd-boot: four bytes of attributes, then UTF-16 that a zero ends.
fn variable(root: &Utf8Path, name: &str) -> Option<String> {
    let path = below(root, VARIABLES).join(format!("{name}-{VENDOR}"));
    let bytes = read_bytes(&path)?;
    let units = bytes
        .get(4..)?
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0);
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    (!text.is_empty()).then_some(text)
}

/// Which entry was chosen, by patterns.
#[derive(Debug, Default)]
struct Choice {
    /// Taken unless it has failed to boot too often.
    preferred: Option<String>,
    default: Option<String>,
    /// What `@saved` stands for.
    last_booted: Option<String>,
}

#[derive(Debug)]
struct Entry {
    path: Utf8PathBuf,
    /// The name of its file in lower case, without the count of boots that were tried.
    id: String,
    /// It failed to boot as often as it was allowed to.
    is_bad: bool,
}

/// All entries; those that are images have names alone.
#[derive(Debug, Default)]
struct Entries {
    files: Vec<Entry>,
    images: Vec<String>,
}

impl Entries {
    fn find(partitions: &[Utf8PathBuf]) -> Option<Self> {
        let mut entries = Self::default();
        for partition in partitions {
            let dir = partition.join("loader/entries");
            for name in names(&dir)? {
                let lower = name.to_ascii_lowercase();
                if let Some(stem) = lower.strip_suffix(".conf") {
                    let (stem, is_bad) = without_count(stem);
                    entries.files.push(Entry {
                        path: dir.join(&name),
                        id: format!("{stem}.conf"),
                        is_bad,
                    });
                }
            }
            for name in names(&partition.join("EFI/Linux"))? {
                let lower = name.to_ascii_lowercase();
                if let Some(stem) = lower.strip_suffix(".efi") {
                    entries
                        .images
                        .push(format!("{}.efi", without_count(stem).0));
                }
            }
        }
        Some(entries)
    }

    fn chosen(&self, choice: &Choice) -> Option<StorePath> {
        let Choice {
            preferred,
            default,
            last_booted,
        } = choice;
        for (pattern, takes_bad) in [(preferred, false), (default, true)] {
            let pattern = match pattern.as_deref() {
                None => continue,
                // It is not known what was booted last before there was such a variable.
                Some("@saved") => last_booted.as_deref()?,
                Some(pattern) => pattern,
            };
            let pattern = pattern.to_ascii_lowercase();
            // What these stand for is not for us to say.
            if pattern.contains(['[', '\\', '@']) {
                return None;
            }
            let is_meant = |id: &str| {
                // Systems of before 2020 left out the end.
                matches(&pattern, id)
                    || id
                        .strip_suffix(".conf")
                        .is_some_and(|id| matches(&pattern, id))
            };
            if self.images.iter().any(|image| is_meant(image)) {
                return None;
            }
            let meant = self.files.iter().filter(|entry| is_meant(&entry.id));
            let meant: Vec<_> = meant.filter(|entry| takes_bad || !entry.is_bad).collect();
            if !meant.is_empty() {
                return first(&meant);
            }
        }
        // Nothing that is there was chosen: the first of the menu.
        if self.images.is_empty() {
            first(&self.files.iter().collect::<Vec<_>>())
        } else {
            None
        }
    }
}

/// The system of the entry that comes first in the menu.
fn first(entries: &[&Entry]) -> Option<StorePath> {
    let [entry] = entries else {
        let texts = entries
            .iter()
            .map(|entry| Some((*entry, read(&entry.path)?)))
            .collect::<Option<Vec<_>>>()?;
        let (_, text) = texts.iter().min_by(|a, b| compare(a, b))?;
        return system(text);
    };
    system(&read(&entry.path)?)
}

fn system(text: &str) -> Option<StorePath> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("options"))
        .find_map(init)
}

/// The order of the menu (Boot Loader Specification, "Sorting"): bad ones last, those with a sort key first, the
/// newest version first.
fn compare((a, a_text): &(&Entry, String), (b, b_text): &(&Entry, String)) -> Ordering {
    let key = |text: &str, key| setting(text, key);
    let (a_key, b_key) = (key(a_text, "sort-key"), key(b_text, "sort-key"));
    let version = |text: &str| Reverse(Version(key(text, "version").unwrap_or_default()));
    a.is_bad
        .cmp(&b.is_bad)
        .then_with(|| match (&a_key, &b_key) {
            (Some(a_key), Some(b_key)) => a_key
                .cmp(b_key)
                .then_with(|| key(a_text, "machine-id").cmp(&key(b_text, "machine-id")))
                .then_with(|| version(a_text).cmp(&version(b_text))),
            (a_key, b_key) => b_key.is_some().cmp(&a_key.is_some()),
        })
        .then_with(|| Reverse(Version(a.id.clone())).cmp(&Reverse(Version(b.id.clone()))))
}

/// A version, ordered by its numbers: 9 before 10.
#[derive(Debug, Eq, PartialEq)]
struct Version(String);

impl Version {
    /// Its parts: numbers as their length without zeros in front and their digits, and what lies between.
    fn parts(&self) -> Vec<(bool, usize, &str)> {
        let mut parts = Vec::new();
        let mut rest = self.0.as_str();
        while let Some(first) = rest.chars().next() {
            let is_number = first.is_ascii_digit();
            let end = rest
                .find(|c: char| c.is_ascii_digit() != is_number)
                .unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            if is_number {
                let digits = part.trim_start_matches('0');
                parts.push((true, digits.len(), digits));
            } else {
                parts.push((false, 0, part));
            }
            rest = after;
        }
        parts
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The name without the count of boots that are left and were tried, `+3-1`, and whether none is left.
fn without_count(stem: &str) -> (&str, bool) {
    let Some((name, count)) = stem.rsplit_once('+') else {
        return (stem, false);
    };
    let (left, tried) = count.split_once('-').unwrap_or((count, "0"));
    match (left.parse::<u32>(), tried.parse::<u32>()) {
        (Ok(left), Ok(_)) => (name, left == 0),
        _ => (stem, false),
    }
}

/// Whether `*` and `?` in the pattern can stand for parts of the name such that both are the same.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star is, and up to where it stands for the name.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), star) {
            (Some('*'), _) => {
                star = Some((p, n));
                p += 1;
            }
            (Some(c), _) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            (_, Some((at, up_to))) => {
                star = Some((at, up_to + 1));
                p = at + 1;
                n = up_to + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}
