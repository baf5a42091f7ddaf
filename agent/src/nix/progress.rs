//! What Nix tells of its progress: the lines of `--log-format internal-json`.
//!
//! The numbers are those of `ActivityType` and `ResultType` in Nix's `src/libutil/logging.hh`.

use std::collections::HashMap;

use hoist_protocol::{FetchProgress, Text};
use serde::Deserialize;
use serde_json::Value;

use super::fetch_error::Complaints;

/// What a fetch tells while it goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FetchEvent {
    /// It got further. What is expected grows while Nix finds out about it.
    Progress(FetchProgress),
    /// Nix said this, for the log.
    Line(Text<2048>),
}

const COPY_PATH: u64 = 100;
const FILE_TRANSFER: u64 = 101;
const COPY_PATHS: u64 = 103;
const QUERY_PATH_INFO: u64 = 109;
const RESULT_PROGRESS: u64 = 105;
const RESULT_EXPECTED: u64 = 106;
/// Levels up to this one (`lvlInfo`) are what Nix shows without `-v`.
const INFO: u64 = 3;
/// More activities than Nix ever has at a time; what is beyond is not counted.
const MOST_ACTIVITIES: usize = 10_000;

#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Message {
    Start {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        #[serde(default)]
        level: u64,
        #[serde(default)]
        text: String,
        #[serde(default)]
        fields: Vec<Value>,
    },
    Stop {
        id: u64,
    },
    Result {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        #[serde(default)]
        fields: Vec<Value>,
    },
    Msg {
        #[serde(default)]
        level: u64,
        msg: String,
    },
    #[serde(other)]
    Other,
}

/// Bytes of all activities of one type, of those under way and of those that have ended.
#[derive(Debug, Default)]
struct Bytes {
    under_way: HashMap<u64, u64>,
    ended: u64,
    expected: u64,
}

impl Bytes {
    fn start(&mut self, id: u64) {
        if self.under_way.len() < MOST_ACTIVITIES {
            self.under_way.insert(id, 0);
        }
    }

    fn progress(&mut self, id: u64, done: u64) {
        if let Some(bytes) = self.under_way.get_mut(&id) {
            *bytes = done;
        }
    }

    fn stop(&mut self, id: u64) {
        let bytes = self.under_way.remove(&id).unwrap_or_default();
        self.ended = self.ended.saturating_add(bytes);
    }

    fn done(&self) -> u64 {
        let under_way = self.under_way.values();
        under_way.fold(self.ended, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Reads Nix's lines.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Contents, as they are in the store.
    copies: Bytes,
    /// Files of caches that are asked over the network, as they travel.
    transfers: Bytes,
    paths: Option<u64>,
    paths_done: u64,
    paths_expected: u64,
    /// What has to come in all, in bytes in the store, once Nix knows.
    announced: u64,
    pub(super) complaints: Complaints,
}

impl Progress {
    /// How far it is.
    ///
    /// Bytes are those that travel, compressed, when all caches are asked over HTTP and tell how many these are,
    /// and those in the store otherwise: of other caches Nix does not tell what it has read.
    pub(super) fn now(&self) -> FetchProgress {
        let bytes = if self.transfers.expected > 0 && self.complaints.asks_over_http_alone() {
            &self.transfers
        } else {
            &self.copies
        };
        // Nix does not tell of the last bytes of small paths.
        let is_complete = self.paths_expected > 0 && self.paths_done >= self.paths_expected;
        let done = if is_complete {
            bytes.expected
        } else {
            bytes.done().min(bytes.expected)
        };
        FetchProgress {
            fetched_bytes: done,
            fetch_bytes: bytes.expected,
            fetched_paths: self.paths_done,
            fetch_paths: self.paths_expected,
        }
    }

    /// How many bytes the store has to take in all, as far as Nix knows yet.
    pub(super) fn needed(&self) -> u64 {
        self.announced.max(self.copies.expected)
    }

    /// Takes a line; what it says for the log comes back.
    pub(super) fn line(&mut self, line: &str) -> Option<Text<2048>> {
        let Some(json) = line.strip_prefix("@nix ") else {
            // What other programs print, such as ssh.
            let text = without_colours(line);
            self.complaints.hear(1, &text);
            return shown(&text);
        };
        // A message of a newer Nix that is not understood is progress that is not shown.
        match serde_json::from_str(json).unwrap_or(Message::Other) {
            Message::Start {
                id,
                kind,
                level,
                text,
                fields,
            } => {
                self.start(id, kind, &fields);
                (level <= INFO).then(|| shown(&without_colours(&text)))?
            }
            Message::Stop { id } => {
                self.copies.stop(id);
                self.transfers.stop(id);
                if self.paths == Some(id) {
                    self.paths = None;
                }
                None
            }
            Message::Result { id, kind, fields } => {
                let fields: Vec<_> = fields.iter().filter_map(Value::as_u64).collect();
                self.result(id, kind, &fields);
                None
            }
            Message::Msg { level, msg } => {
                let text = without_colours(&msg);
                self.complaints.hear(level, &text);
                if let Some(bytes) = announced(&text) {
                    self.announced = bytes;
                }
                (level <= INFO).then(|| shown(&text))?
            }
            Message::Other => None,
        }
    }

    fn start(&mut self, id: u64, kind: u64, fields: &[Value]) {
        let field = |at: usize| fields.get(at).and_then(Value::as_str);
        match kind {
            COPY_PATH => self.copies.start(id),
            COPY_PATHS => self.paths = Some(id),
            // What caches tell about paths is no part of these.
            FILE_TRANSFER if field(0).is_some_and(|url| !url.ends_with("info")) => {
                self.transfers.start(id);
            }
            QUERY_PATH_INFO => {
                if let Some(cache) = field(1) {
                    self.complaints.asks(cache);
                }
            }
            _ => {}
        }
    }

    fn result(&mut self, id: u64, kind: u64, fields: &[u64]) {
        match (kind, fields) {
            (RESULT_PROGRESS, [done, expected, ..]) if self.paths == Some(id) => {
                self.paths_done = *done;
                self.paths_expected = *expected;
            }
            (RESULT_PROGRESS, [done, ..]) => {
                self.copies.progress(id, *done);
                self.transfers.progress(id, *done);
            }
            (RESULT_EXPECTED, [COPY_PATH, expected]) => self.copies.expected = *expected,
            (RESULT_EXPECTED, [FILE_TRANSFER, expected]) => self.transfers.expected = *expected,
            _ => {}
        }
    }
}

/// The bytes in the store that Nix says it needs before it begins: `these 3 paths will be fetched
/// (3.15 MiB download, 3.15 MiB unpacked):`, rounded (`printMissing` in Nix's `src/libmain/shared.cc`).
fn announced(text: &str) -> Option<u64> {
    let (_, sizes) = text.split_once(" will be fetched (")?;
    let (size, _) = sizes.split_once(" unpacked)")?;
    let size = size.rsplit(", ").next()?;
    let (number, unit) = size.split_once(' ')?;
    let unit = match unit {
        "B" | "bytes" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    // Exact: digits before and behind the point, the latter two at the most.
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let part = part.get(..2).unwrap_or(part);
    let scale = 10_u64.pow(u32::try_from(part.len()).ok()?);
    let bytes = whole.parse::<u64>().ok()?.checked_shl(unit)?;
    let part = part.parse::<u64>().ok()?.checked_shl(unit)? / scale;
    bytes.checked_add(part)
}

fn shown(text: &str) -> Option<Text<2048>> {
    (!text.trim().is_empty()).then(|| Text::lossy(text))
}

/// The text without terminal sequences, which Nix writes into its JSON too.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            plain.push(c);
        } else if chars.next() == Some('[') {
            // A control sequence ends at its first byte from `@` to `~` (ECMA-48, 5.4).
            chars.find(|c| ('@'..='~').contains(c));
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Nix 2.8 prints them.
    const LINES: &str = r#"@nix {"action":"start","fields":["/nix/store/b-top","file:///c"],"id":4,"level":4,"text":"querying info about '/nix/store/b-top' on 'file:///c'","type":109}
@nix {"action":"start","id":5,"level":0,"text":"","type":102}
@nix {"action":"start","id":7,"level":0,"text":"","type":103}
@nix {"action":"result","fields":[0,2,0,0],"id":7,"type":105}
@nix {"action":"result","fields":[101,424],"id":5,"type":106}
@nix {"action":"result","fields":[100,1336],"id":5,"type":106}
@nix {"action":"start","fields":["/nix/store/a-dep","file:///c","local"],"id":40,"level":3,"text":"copying path '/nix/store/a-dep' from 'file:///c'","type":100}
@nix {"action":"result","fields":[300,648,0,0],"id":40,"type":105}
@nix {"action":"result","fields":[648,648,0,0],"id":40,"type":105}
@nix {"action":"stop","id":40}
@nix {"action":"result","fields":[1,2,0,0],"id":7,"type":105}
@nix {"action":"start","fields":["/nix/store/b-top","file:///c","local"],"id":41,"level":3,"text":"","type":100}
@nix {"action":"result","fields":[20,688,0,0],"id":41,"type":105}"#;

    #[test]
    fn paths_and_bytes_are_counted_over_all_copies() {
        let mut progress = Progress::default();
        assert_eq!(progress.now(), FetchProgress::default());
        let said: Vec<_> = LINES.lines().filter_map(|l| progress.line(l)).collect();
        assert_eq!(
            progress.now(),
            FetchProgress {
                fetched_paths: 1,
                fetch_paths: 2,
                fetched_bytes: 668,
                fetch_bytes: 1336
            }
        );
        assert_eq!(progress.needed(), 1336);
        assert_eq!(said.len(), 1);
        assert_eq!(
            said[0].as_str(),
            "copying path '/nix/store/a-dep' from 'file:///c'"
        );
    }

    /// All that the Nix of this version printed for a fetch of three paths over HTTP, compressed.
    fn recorded(log: &str) -> (Progress, Vec<FetchProgress>) {
        let mut progress = Progress::default();
        let mut seen = vec![progress.now()];
        for line in log.lines() {
            progress.line(line);
            if seen.last() != Some(&progress.now()) {
                seen.push(progress.now());
            }
        }
        (progress, seen)
    }

    #[test]
    fn what_travels_is_counted_where_caches_tell_how_much_it_is() {
        for log in [
            include_str!("logs/fetch-2.8.log"),
            include_str!("logs/fetch-2.26.log"),
        ] {
            let (progress, seen) = recorded(log);
            let all = FetchProgress {
                fetched_paths: 3,
                fetch_paths: 3,
                fetched_bytes: 3_301_868,
                fetch_bytes: 3_301_868,
            };
            assert_eq!(progress.now(), all);
            // Nix says 3.15 MiB before it begins, and the exact number later.
            assert_eq!(progress.needed(), 3_303_014);
            let partly = |now: &&FetchProgress| {
                (1..now.fetch_bytes).contains(&now.fetched_bytes)
                    && now.fetch_bytes == all.fetch_bytes
            };
            assert!(seen.iter().filter(partly).count() >= 2, "{seen:?}");
            let bytes: Vec<_> = seen.iter().map(|now| now.fetched_bytes).collect();
            assert!(bytes.is_sorted(), "it never goes back: {bytes:?}");
        }
    }

    #[test]
    fn what_has_to_come_is_known_before_it_begins() {
        for (text, bytes) in [
            (
                "these 3 paths will be fetched (3.15 MiB download, 3.15 MiB unpacked):",
                Some(3_303_014),
            ),
            (
                "this path will be fetched (0.00 MiB download, 0.50 MiB unpacked):",
                Some(512 << 10),
            ),
            (
                "these 812 paths will be fetched (1.4 GiB download, 5.2 GiB unpacked):",
                Some((5 << 30) + (2 << 30) / 10),
            ),
            (
                "this path will be fetched (1.0 KiB download, 2 KiB unpacked):",
                Some(2048),
            ),
            ("these paths will be fetched (a lot unpacked):", None),
            (
                "this path will be fetched (1 MiB download, 99999999999999999999 TiB unpacked):",
                None,
            ),
            (
                "this path will be fetched (1 MiB download, 1 XiB unpacked):",
                None,
            ),
            ("copying", None),
        ] {
            assert_eq!(announced(text), bytes, "{text}");
        }
    }

    #[test]
    fn messages_lose_their_colours_and_damaged_lines_do_no_harm() {
        let mut progress = Progress::default();
        let line = r#"@nix {"action":"msg","level":0,"msg":"\u001b[31;1merror:\u001b[0m no"}"#;
        assert_eq!(progress.line(line).unwrap().as_str(), "error: no");
        for line in ["@nix {", "@nix []", r#"@nix {"action":"new"}"#, ""] {
            assert_eq!(progress.line(line), None, "{line}");
        }
        let huge = r#"@nix {"action":"result","fields":[1,"x",-1],"id":1,"type":105}"#;
        assert_eq!(progress.line(huge), None);
    }
}
