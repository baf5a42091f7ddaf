//! What Nix tells of its progress: the lines of `--log-format internal-json`.
//!
//! The numbers are those of `ActivityType` and `ResultType` in Nix's `src/libutil/logging.hh`.

use std::collections::HashMap;

use hoist_protocol::Text;
use serde::Deserialize;

use super::fetch_error::Complaints;

/// How far a fetch is. What is expected grows while Nix finds out about it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FetchProgress {
    /// Store paths that are there.
    pub paths_done: u64,
    /// Store paths to fetch.
    pub paths_expected: u64,
    /// Bytes unpacked.
    pub bytes_done: u64,
    /// Bytes to unpack.
    pub bytes_expected: u64,
}

impl FetchProgress {
    /// In percent, once something is expected.
    #[must_use]
    pub fn percent(&self) -> Option<u8> {
        let (done, expected) = if self.bytes_expected > 0 {
            (self.bytes_done, self.bytes_expected)
        } else {
            (self.paths_done, self.paths_expected)
        };
        let percent = u128::from(done) * 100 / u128::from(expected).max(1);
        (expected > 0).then(|| u8::try_from(percent.min(100)).unwrap_or(100))
    }
}

/// What a fetch tells while it goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FetchEvent {
    /// It got further.
    Progress(FetchProgress),
    /// Nix said this, for the log.
    Line(Text<2048>),
}

const COPY_PATH: u64 = 100;
const COPY_PATHS: u64 = 103;
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
    },
    Stop {
        id: u64,
    },
    Result {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        #[serde(default)]
        fields: Vec<serde_json::Value>,
    },
    Msg {
        #[serde(default)]
        level: u64,
        msg: String,
    },
    #[serde(other)]
    Other,
}

/// Reads Nix's lines.
#[derive(Debug, Default)]
pub(super) struct Progress {
    now: FetchProgress,
    /// Type and bytes done of the activities under way.
    activities: HashMap<u64, (u64, u64)>,
    /// Bytes of the copies that have ended.
    finished: u64,
    pub(super) complaints: Complaints,
}

impl Progress {
    /// How far it is.
    pub(super) const fn now(&self) -> FetchProgress {
        self.now
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
            } => {
                if self.activities.len() < MOST_ACTIVITIES {
                    self.activities.insert(id, (kind, 0));
                }
                (level <= INFO).then(|| shown(&without_colours(&text)))?
            }
            Message::Stop { id } => {
                if let Some((COPY_PATH, bytes)) = self.activities.remove(&id) {
                    self.finished += bytes;
                }
                None
            }
            Message::Result { id, kind, fields } => {
                let fields: Vec<_> = fields
                    .iter()
                    .filter_map(serde_json::Value::as_u64)
                    .collect();
                self.result(id, kind, &fields);
                None
            }
            Message::Msg { level, msg } => {
                let text = without_colours(&msg);
                self.complaints.hear(level, &text);
                (level <= INFO).then(|| shown(&text))?
            }
            Message::Other => None,
        }
    }

    fn result(&mut self, id: u64, kind: u64, fields: &[u64]) {
        match (kind, fields) {
            (RESULT_PROGRESS, [done, expected, ..]) => match self.activities.get_mut(&id) {
                Some((COPY_PATHS, _)) => {
                    self.now.paths_done = *done;
                    self.now.paths_expected = *expected;
                }
                Some((COPY_PATH, bytes)) => {
                    *bytes = *done;
                    let under_way = self.activities.values().filter(|(of, _)| *of == COPY_PATH);
                    let bytes =
                        under_way.fold(self.finished, |sum, (_, bytes)| sum.saturating_add(*bytes));
                    self.now.bytes_done = bytes;
                }
                _ => {}
            },
            (RESULT_EXPECTED, [COPY_PATH, expected]) => self.now.bytes_expected = *expected,
            _ => {}
        }
    }
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
    const LINES: &str = r#"@nix {"action":"start","id":5,"level":0,"text":"","type":102}
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
        assert_eq!(progress.now().percent(), None);
        let said: Vec<_> = LINES.lines().filter_map(|l| progress.line(l)).collect();
        assert_eq!(
            progress.now(),
            FetchProgress {
                paths_done: 1,
                paths_expected: 2,
                bytes_done: 668,
                bytes_expected: 1336
            }
        );
        assert_eq!(progress.now().percent(), Some(50));
        assert_eq!(said.len(), 1);
        assert_eq!(
            said[0].as_str(),
            "copying path '/nix/store/a-dep' from 'file:///c'"
        );
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
