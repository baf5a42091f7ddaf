//! How a run ended, as a table for people and as JSON for programs.
//!
//! The JSON of `hoist deploy --json` and `hoist rollback --json`, schema 1; fields are only ever added:
//!
//! ```json
//! { "schema": 1, "command": "deploy", "fleet": "prod", "exit_code": 4, "seconds": 12.5,
//!   "interrupted": false, "warnings": ["…"],
//!   "machines": [ { "agent": "web-1", "outcome": "rolled_back", "reason": "health_check_failed",
//!     "message": "…", "id": "…", "epoch": 0, "sequence": 1795000000000, "expires": "…", "path": "/nix/store/…",
//!     "previous_path": "…", "current_path": "…", "superseded_by": null, "log_lines": 12, "log_tail": ["…"] } ] }
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use hoist_protocol::{AgentName, DeploymentId, FleetName, Reason, StorePath, Text};
use serde::Serialize;

use crate::console::one_line;
use crate::console::table::{Tone, render};
use crate::follow::{End, Said};
use crate::outcome::{Exit, Outcome};
use crate::plan::Signed;

/// The version of the JSON.
pub const SCHEMA: u32 = 1;

/// Everything that is said at the end.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`]
    pub schema: u32,
    /// Which command it was.
    pub command: &'static str,
    /// The fleet.
    pub fleet: FleetName,
    /// What the program exits with.
    pub exit_code: u8,
    /// How long it took.
    pub seconds: f64,
    /// Whether a signal ended it.
    pub interrupted: bool,
    /// What was to be known beforehand.
    pub warnings: Vec<String>,
    /// How it ended on each machine, by name.
    pub machines: Vec<MachineReport>,
}

/// How it ended on one machine.
#[derive(Debug, Serialize)]
pub struct MachineReport {
    /// Which one.
    pub agent: AgentName,
    /// In one word.
    pub outcome: Outcome,
    /// Why, as a word for programs.
    pub reason: Option<Reason>,
    /// Why, for people.
    pub message: Text<1024>,
    /// The deployment; none when none was made.
    pub id: Option<DeploymentId>,
    /// Its epoch.
    pub epoch: Option<u32>,
    /// Its sequence.
    pub sequence: Option<u64>,
    /// When it ends, RFC 3339.
    pub expires: Option<String>,
    /// What the machine was to run, where the operator named a path.
    pub path: Option<StorePath>,
    /// What ran before, as the machine says.
    pub previous_path: Option<StorePath>,
    /// What runs now, as the machine says.
    pub current_path: Option<StorePath>,
    /// The deployment that took its place.
    pub superseded_by: Option<DeploymentId>,
    /// How many lines it logged.
    pub log_lines: Option<u64>,
    /// The last of them.
    pub log_tail: Vec<Text<256>>,
}

impl MachineReport {
    /// From how a run ended for a machine.
    #[must_use]
    pub fn new(signed: &Signed, end: End, said: &Said, path: Option<StorePath>) -> Self {
        Self {
            agent: signed.machine.agent.clone(),
            outcome: end.outcome,
            reason: end.reason,
            message: end.message,
            id: Some(signed.order.id),
            epoch: Some(signed.order.epoch),
            sequence: Some(signed.order.sequence),
            expires: Some(signed.expires.to_string()),
            path,
            previous_path: said.previous_path.clone(),
            current_path: said.current_path.clone(),
            superseded_by: end.superseded_by,
            log_lines: said.log_lines,
            log_tail: said.log_tail.clone(),
        }
    }

    /// For a machine whose deployment could not be made.
    #[must_use]
    pub fn unsigned(agent: AgentName, message: &str, path: Option<StorePath>) -> Self {
        Self {
            agent,
            outcome: Outcome::NotPublished,
            reason: None,
            message: Text::lossy(message),
            id: None,
            epoch: None,
            sequence: None,
            expires: None,
            path,
            previous_path: None,
            current_path: None,
            superseded_by: None,
            log_lines: None,
            log_tail: Vec::new(),
        }
    }

    fn row(&self) -> Vec<(String, Tone)> {
        let tone = match self.outcome {
            outcome if outcome.is_good() => Tone::Good,
            Outcome::Offline | Outcome::Superseded | Outcome::UnderWay => Tone::Mild,
            _ => Tone::Bad,
        };
        let id = self.id.map_or_else(|| "-".to_owned(), DeploymentId::short);
        let path = self.path.as_ref().map_or("-", |path| path.name());
        vec![
            (self.agent.to_string(), Tone::Plain),
            (self.outcome.to_string(), tone),
            (path.to_owned(), Tone::Plain),
            (id, Tone::Plain),
            (self.detail(), Tone::Plain),
        ]
    }

    fn detail(&self) -> String {
        if self.outcome.is_good() {
            return String::new();
        }
        let logs = format!("see `hoist logs {}`", self.agent);
        let advice = self.outcome.advice(&logs);
        let message = one_line(self.message.as_str());
        let reason = self
            .reason
            .map_or_else(String::new, |reason| format!("[{reason}] "));
        match (message.is_empty(), advice.is_empty()) {
            (false, false) => format!("{reason}{message}; {advice}"),
            (false, true) => format!("{reason}{message}"),
            (true, _) => format!("{reason}{advice}"),
        }
    }
}

impl Report {
    /// Makes one; the exit code is chosen from the outcomes.
    #[must_use]
    pub fn new(
        command: &'static str,
        fleet: FleetName,
        mut machines: Vec<MachineReport>,
        warnings: Vec<String>,
        took: Duration,
    ) -> Self {
        machines.sort_by(|a, b| a.agent.cmp(&b.agent));
        Self {
            schema: SCHEMA,
            command,
            fleet,
            exit_code: Exit::Ok.code(),
            seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
            interrupted: false,
            warnings,
            machines,
        }
    }

    /// The run ended for another reason than the time: what was under way is still.
    pub fn time_was_not_up(&mut self) {
        for machine in &mut self.machines {
            if machine.outcome == Outcome::TimedOut {
                machine.outcome = Outcome::UnderWay;
            }
        }
    }

    /// How each machine ended.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.machines
            .iter()
            .map(|machine| machine.outcome)
            .collect()
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let rows = self.machines.iter().map(MachineReport::row).collect();
        render(
            &["MACHINE", "OUTCOME", "CLOSURE", "DEPLOYMENT", "DETAIL"],
            rows,
        )
    }

    /// How many machines ended how, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, (usize, Outcome)> = BTreeMap::new();
        for machine in &self.machines {
            let entry = counts
                .entry(machine.outcome.as_str())
                .or_insert((0, machine.outcome));
            entry.0 += 1;
        }
        let mut counts: Vec<(usize, Outcome)> = counts.into_values().collect();
        counts.sort_by_key(|(count, outcome)| (!outcome.is_good(), std::cmp::Reverse(*count)));
        let counts: Vec<String> = counts
            .iter()
            .map(|(count, outcome)| format!("{count} {outcome}"))
            .collect();
        counts.join(", ")
    }

    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self);
        json.expect("plain data always has a JSON form") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    fn report(outcomes: &[Outcome]) -> Report {
        let machines = outcomes
            .iter()
            .enumerate()
            .map(|(n, outcome)| {
                let agent = machine(&format!("web-{n}")).agent;
                let mut machine = MachineReport::unsigned(agent, "it\nsaid\tso", None);
                machine.outcome = *outcome;
                machine
            })
            .collect();
        let fleet = machine("web-1").fleet;
        Report::new(
            "deploy",
            fleet,
            machines,
            Vec::new(),
            Duration::from_millis(1500),
        )
    }

    #[test]
    fn the_json_keeps_to_its_schema() {
        let json: serde_json::Value =
            serde_json::from_str(&report(&[Outcome::RolledBack]).to_json()).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["seconds"], 1.5);
        assert_eq!(json["machines"][0]["agent"], "web-0");
        assert_eq!(json["machines"][0]["outcome"], "rolled_back");
    }

    #[test]
    fn the_table_has_a_line_for_each_machine_and_says_what_to_do() {
        let table = report(&[Outcome::Succeeded, Outcome::Failed]).table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(
            lines[2].contains("it said so; see `hoist logs web-1`"),
            "{table}"
        );
    }

    #[test]
    fn the_summary_counts_what_is_good_first() {
        let report = report(&[Outcome::Failed, Outcome::Succeeded, Outcome::Failed]);
        assert_eq!(report.summary(), "1 succeeded, 2 failed");
    }
}
