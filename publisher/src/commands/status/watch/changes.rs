//! The fleet as it changes, a line for each change.

use std::collections::HashMap;

use hoist_protocol::{AgentName, Presence};

use super::super::{entry, message, short_path};
use crate::report::SCHEMA;
use crate::snapshot::Seen;

/// A machine's percentage is said again when it has risen by so much.
const STEP: u8 = 10;

/// Remembers what was said.
pub(super) struct Changes {
    json: bool,
    said: HashMap<AgentName, String>,
}

impl Changes {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            said: HashMap::new(),
        }
    }

    /// What is new of a machine, as a line; nothing when nothing is. One that was meant and is not any more is told
    /// once more.
    pub(super) fn of(&mut self, agent: &AgentName, seen: &Seen, is_meant: bool) -> String {
        if !is_meant && !self.said.contains_key(agent) {
            return String::new();
        }
        let said = said(seen);
        if self.said.get(agent) == Some(&said) {
            return String::new();
        }
        if is_meant {
            self.said.insert(agent.clone(), said.clone());
        } else {
            self.said.remove(agent);
        }
        if !self.json {
            return format!("{agent} | {said}\n");
        }
        let mut line = entry(agent, seen);
        line["schema"] = SCHEMA.into();
        line["command"] = "status".into();
        format!("{line}\n")
    }
}

fn said(seen: &Seen) -> String {
    let online = seen.presence.map_or("never connected", Presence::as_str);
    let Some(status) = &seen.status else {
        return match &seen.unreadable {
            Some((channel, error)) => format!("{online}, its {channel} cannot be read: {error}"),
            None if seen.presence.is_none() => "forgotten".to_owned(),
            None => format!("{online}, not reported yet"),
        };
    };
    let state = status.state.as_str().replace('_', " ");
    let percent = match status.progress {
        Some(percent) if !status.state.is_final() => format!(" {} %", percent / STEP * STEP),
        _ => String::new(),
    };
    let runs = (status.current_path.as_ref())
        .map_or_else(String::new, |path| format!(", runs {}", short_path(path)));
    // How much has come changes all the time.
    let mut quiet = status.clone();
    quiet.fetch = None;
    let message = match message(&quiet) {
        message if message.is_empty() => message,
        message => format!(": {message}"),
    };
    format!("{online}, {state}{percent}{runs}{message}")
}

#[cfg(test)]
mod tests {
    use hoist_protocol::State;

    use super::*;
    use crate::testing::{machine, order, path, status};

    fn seen(state: State, percent: Option<u8>) -> Seen {
        let mut report = status(order(1), state);
        report.progress = percent;
        report.current_path = Some(path("v1"));
        Seen {
            status: Some(report),
            presence: Some(Presence::Online),
            ..Seen::default()
        }
    }

    #[test]
    fn a_change_is_a_line_and_the_same_again_is_none() {
        let agent = machine("web-1").agent;
        let mut changes = Changes::new(false);
        let mut of = |seen: &Seen, is_meant| changes.of(&agent, seen, is_meant);
        assert_eq!(
            of(&seen(State::Fetching, Some(41)), true),
            "web-1 | online, fetching 40 %, runs 0c5b8w3-v1\n"
        );
        assert_eq!(of(&seen(State::Fetching, Some(49)), true), "");
        assert_eq!(
            of(&seen(State::Succeeded, None), false),
            "web-1 | online, succeeded, runs 0c5b8w3-v1\n"
        );
        assert_eq!(of(&seen(State::Fetching, None), false), "");
    }

    #[test]
    fn as_json_a_change_is_one_line_with_all_that_the_machine_says() {
        let mut changes = Changes::new(true);
        let line = changes.of(&machine("web-1").agent, &seen(State::Failed, None), true);
        assert_eq!(line.matches('\n').count(), 1);
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["schema"], &line["agent"]),
            (&1.into(), &"web-1".into())
        );
        assert_eq!(line["status"]["state"], "failed");
    }
}
