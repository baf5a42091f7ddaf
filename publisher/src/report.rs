//! How a run ended, as a table for people and as JSON for programs.
//!
//! The JSON of `hoist deploy --json` and of every other command that publishes, schema 1; fields are only ever added:
//!
//! ```json
//! { "schema": 1, "command": "deploy", "fleet": "prod", "exit_code": 4, "seconds": 12.5,
//!   "interrupted": false, "warnings": ["…"],
//!   "rollout": { "id": "…", "batches": 4, "batch": 2, "stopped": true,
//!     "cancelled_by": null },
//!   "machines": [ { "agent": "web-1", "outcome": "rolled_back", "reason": "health_check_failed",
//!     "message": "…", "id": "…", "epoch": 0, "sequence": 1795000000000, "expires": "…", "path": "/nix/store/…",
//!     "digest": "a1ff…", "previous_path": "…", "current_path": "…", "superseded_by": null, "kind": "nixos",
//!     "batch": 2, "stays_held": false, "sent_back": "…",
//!     "closure_size": 1300000000, "fetched_bytes": 12000000, "needs_reboot": true, "reboot_reasons": ["kernel"],
//!     "changes": { "packages_added": 0, "packages_removed": 0, "packages_changed": 3, "size_difference": 12582912,
//!       "packages": [ { "name": "openssl", "from": "3.0.1", "to": "3.0.2" } ] },
//!     "warnings": ["…"], "log_lines": 12, "log_tail": ["…"] } ] }
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use hoist_protocol::{
    AgentName, Changes, ClosureDigest, Deployment, DeploymentId, FleetName, Goal, Reason,
    RebootReason, StorePath, Target, Text,
};
use serde::Serialize;

use crate::console::one_line;
use crate::console::table::{Page, Tone, render};
use crate::follow::{End, Said};
use crate::outcome::{Exit, Outcome};
use crate::plan::Signed;
use crate::said;

/// What is to be said of a machine that stays held, and has not said so itself.
const ON_RELEASE: &str = "held: it takes this on release";

/// The version of the JSON.
pub const SCHEMA: u32 = 1;

/// A JSON document as it is printed.
#[must_use]
pub fn document(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).expect("JSON can always be written") + "\n"
}

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
    /// The rollout, when it was one.
    pub rollout: Option<RolloutReport>,
    /// What was to be known beforehand.
    pub warnings: Vec<String>,
    /// How it ended on each machine, by name.
    pub machines: Vec<MachineReport>,
}

/// How far a rollout came.
#[derive(Debug, Serialize)]
pub struct RolloutReport {
    /// What it is called; its deployments carry that.
    pub id: uuid::Uuid,
    /// How many batches there were.
    pub batches: u16,
    /// The last one that came, counted from 1.
    pub batch: u16,
    /// Whether it stopped because too many machines had failed.
    pub stopped: bool,
    /// The deployment with which somebody cancelled it.
    pub cancelled_by: Option<DeploymentId>,
}

impl RolloutReport {
    /// One whose only batch has come.
    #[must_use]
    pub const fn of_one(id: uuid::Uuid) -> Self {
        Self {
            id,
            batches: 1,
            batch: 1,
            stopped: false,
            cancelled_by: None,
        }
    }
}

/// The closure that a machine was to run; nothing where the operator named none.
#[derive(Clone, Debug, Default)]
pub struct Closure {
    path: Option<StorePath>,
    digest: Option<ClosureDigest>,
}

impl Closure {
    /// That of a target.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        Self {
            path: match &target.goal {
                Goal::Closure(path) => Some(path.clone()),
                Goal::Rollback(_) | Goal::Stay => None,
            },
            digest: target.closure_digest,
        }
    }
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
    /// Whether nothing was published for it, since it has carried out the same deployment already, or since there was
    /// nothing to do.
    pub skipped: bool,
    /// The deployment, of one that was skipped that which it has; none when none was made.
    pub id: Option<DeploymentId>,
    /// Its epoch.
    pub epoch: Option<u32>,
    /// Its sequence.
    pub sequence: Option<u64>,
    /// When it ends, RFC 3339.
    pub expires: Option<String>,
    /// What the machine was to run, where the operator named a path.
    pub path: Option<StorePath>,
    /// What was signed of what that holds, in hexadecimal.
    pub digest: Option<String>,
    /// What ran before, as the machine says.
    pub previous_path: Option<StorePath>,
    /// What runs now, as the machine says.
    pub current_path: Option<StorePath>,
    /// The deployment that took its place.
    pub superseded_by: Option<DeploymentId>,
    /// In which batch of a rollout it came, or would have come, counted from 1.
    pub batch: Option<u16>,
    /// Whether the machine was held from afar, and stays so: it takes the deployment when it is released.
    pub stays_held: bool,
    /// Whether the machine keeps what a rollout that failed has brought, since its way back was not published.
    #[serde(skip)]
    pub keeps_it: bool,
    /// The deployment that sent the machine back because the rollout had failed.
    pub sent_back: Option<DeploymentId>,
    /// How the closure was activated, as the machine says.
    pub kind: Option<Text<16>>,
    /// The size of the closure in the store, in bytes.
    pub closure_size: Option<u64>,
    /// How many bytes came from binary caches.
    pub fetched_bytes: Option<u64>,
    /// Whether something takes effect at the machine's next boot only.
    pub needs_reboot: bool,
    /// What that is.
    pub reboot_reasons: Vec<RebootReason>,
    /// What is different from what ran before.
    pub changes: Option<Changes>,
    /// What somebody should look at on the machine.
    pub warnings: Vec<Text<256>>,
    /// How many lines it logged.
    pub log_lines: Option<u64>,
    /// The last of them.
    pub log_tail: Vec<Text<256>>,
}

impl MachineReport {
    /// From how a run ended for a machine.
    #[must_use]
    pub fn new(signed: &Signed, end: End, said: &Said, closure: Closure) -> Self {
        Self {
            agent: signed.machine.agent.clone(),
            outcome: end.outcome,
            reason: end.reason,
            message: end.message,
            skipped: false,
            id: Some(signed.order.id),
            epoch: Some(signed.order.epoch),
            sequence: Some(signed.order.sequence),
            expires: Some(signed.expires.to_string()),
            path: closure.path,
            digest: closure.digest.map(|digest| digest.to_string()),
            previous_path: said.previous_path.clone(),
            current_path: said.current_path.clone(),
            superseded_by: end.superseded_by,
            batch: None,
            stays_held: signed.hold.goes_on(),
            keeps_it: false,
            sent_back: None,
            kind: said.kind.clone(),
            closure_size: said.closure_size,
            fetched_bytes: said.fetch.map(|fetch| fetch.fetched_bytes),
            needs_reboot: end.outcome == Outcome::Staged || !said.reboot_reasons.is_empty(),
            reboot_reasons: said.reboot_reasons.clone(),
            changes: said.changes.clone(),
            warnings: said.warnings.clone(),
            log_lines: said.log_lines,
            log_tail: said.log_tail.clone(),
        }
    }

    /// For a machine for which there is nothing to do.
    #[must_use]
    pub fn nothing_to_do(agent: AgentName, why: &str) -> Self {
        Self {
            skipped: true,
            outcome: Outcome::Skipped,
            ..Self::unsigned(agent, why, Closure::default())
        }
    }

    /// For a machine whose deployment could not be made.
    #[must_use]
    pub fn unsigned(agent: AgentName, message: &str, closure: Closure) -> Self {
        Self {
            agent,
            outcome: Outcome::NotPublished,
            reason: None,
            message: Text::lossy(message),
            skipped: false,
            id: None,
            epoch: None,
            sequence: None,
            expires: None,
            path: closure.path,
            digest: closure.digest.map(|digest| digest.to_string()),
            previous_path: None,
            current_path: None,
            superseded_by: None,
            batch: None,
            stays_held: false,
            keeps_it: false,
            sent_back: None,
            kind: None,
            closure_size: None,
            fetched_bytes: None,
            needs_reboot: false,
            reboot_reasons: Vec::new(),
            changes: None,
            warnings: Vec::new(),
            log_lines: None,
            log_tail: Vec::new(),
        }
    }

    /// For a machine that has the closure by `deployment` already, so that nothing was published.
    #[must_use]
    pub fn left_out(deployment: &Deployment, closure: Closure) -> Self {
        let order = deployment.order();
        let current_path = closure.path.clone();
        Self {
            outcome: Outcome::Unchanged,
            skipped: true,
            id: Some(order.id),
            epoch: Some(order.epoch),
            sequence: Some(order.sequence),
            expires: Some(deployment.expires().to_string()),
            current_path,
            ..Self::unsigned(deployment.machine().agent.clone(), "", closure)
        }
    }

    fn row(&self) -> Vec<(String, Tone)> {
        let tone = match self.outcome {
            outcome if outcome.is_good() => Tone::Good,
            Outcome::Offline
            | Outcome::Deferred
            | Outcome::Superseded
            | Outcome::UnderWay
            | Outcome::NotBegun => Tone::Mild,
            _ => Tone::Bad,
        };
        let id = self.id.map_or_else(|| "-".to_owned(), DeploymentId::short);
        // A rollback names no path; what runs then is the machine's word.
        let path = self.path.as_ref().or(self.current_path.as_ref());
        let path = path.map_or("-", |path| path.name());
        vec![
            (self.agent.to_string(), Tone::Plain),
            (self.outcome.to_string(), tone),
            (path.to_owned(), Tone::Plain),
            (id, Tone::Plain),
            (self.detail(), Tone::Plain),
        ]
    }

    /// What is to be said of it, and what to do.
    pub(crate) fn detail(&self) -> String {
        let message = one_line(self.message.as_str());
        let reason = self
            .reason
            .map_or_else(String::new, |reason| format!("[{reason}] "));
        if self.outcome.is_good() {
            // Nothing is to be said of what went well, but for what it brought and what is left to do.
            let went = match reason.is_empty() {
                true => String::new(),
                false => format!("{reason}{message}"),
            };
            let reboot = match self.outcome {
                Outcome::Staged => String::new(),
                _ => said::reboot(&self.reboot_reasons),
            };
            let changes = self
                .changes
                .as_ref()
                .map_or_else(String::new, said::changes);
            let held = match self.outcome {
                Outcome::Published if self.stays_held => ON_RELEASE.to_owned(),
                _ => String::new(),
            };
            let parts = [
                went,
                changes,
                reboot,
                held,
                self.outcome.advice("").to_owned(),
            ];
            return joined(&parts);
        }
        let held = match self.outcome {
            Outcome::Offline | Outcome::TimedOut | Outcome::UnderWay if self.stays_held => {
                ON_RELEASE
            }
            _ => "",
        };
        let back = format!(
            "it keeps that; `hoist rollback {}` sends it back",
            self.agent
        );
        let logs = format!("see `hoist logs {}`", self.agent);
        let advice = self.reason.and_then(said::advice);
        let advice = match self.keeps_it {
            true => &back,
            false => advice.unwrap_or_else(|| self.outcome.advice(&logs)),
        };
        format!(
            "{reason}{}",
            joined(&[message, held.to_owned(), advice.to_owned()])
        )
    }
}

fn joined(parts: &[String]) -> String {
    let parts: Vec<&str> = parts
        .iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    parts.join("; ")
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
            rollout: None,
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
        self.table_on(Page::stdout())
    }

    fn table_on(&self, page: Page) -> String {
        // Those with nothing to do were named together, and would hide the others here. Of two thousand machines the last
        // lines are seen: those that somebody has to look at stand there.
        let shown = |machine: &&MachineReport| machine.outcome != Outcome::Skipped;
        let mut machines: Vec<&MachineReport> = self.machines.iter().filter(shown).collect();
        machines.sort_by_key(|machine| !machine.outcome.is_good());
        let rows: Vec<_> = machines.into_iter().map(MachineReport::row).collect();
        if rows.is_empty() {
            return String::new();
        }
        render(
            page,
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
    use expect_test::expect;

    use super::*;
    use crate::testing::machine;

    fn report(outcomes: &[Outcome]) -> Report {
        let machines = outcomes
            .iter()
            .enumerate()
            .map(|(n, outcome)| {
                let agent = machine(&format!("web-{n}")).agent;
                let mut machine =
                    MachineReport::unsigned(agent, "it\nsaid\tso", Closure::default());
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
        crate::manual::assert_names("deploy", &json);
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
    fn ended(agent: &str, outcome: Outcome) -> MachineReport {
        let agent = machine(agent).agent;
        let mut report = MachineReport::unsigned(agent, "", Closure::default());
        report.outcome = outcome;
        report
    }

    /// One of each kind that has something new to say.
    fn mixed() -> Report {
        let mut updated = ended("web-1", Outcome::Succeeded);
        updated.changes = Some(Changes {
            packages_changed: 3,
            size_difference: 12 << 20,
            ..Changes::default()
        });
        updated.reboot_reasons = vec![RebootReason::Kernel];
        let mut kept = ended("web-2", Outcome::Succeeded);
        kept.reason = Some(Reason::UnitsFailed);
        kept.message = Text::lossy("a.service failed, as before");
        let mut refused = ended("web-5", Outcome::Rejected);
        refused.reason = Some(Reason::NoAgent);
        refused.message = Text::lossy("the closure has no agent");
        let mut held = ended("web-6", Outcome::Deferred);
        held.message = Text::lossy(&said::held_at_machine(None));
        let staged = ended("web-3", Outcome::Staged);
        let dry = ended("web-4", Outcome::DryActivated);
        let fleet = machine("web-1").fleet;
        let machines = vec![updated, kept, staged, dry, refused, held];
        Report::new("deploy", fleet, machines, Vec::new(), Duration::ZERO)
    }

    #[test]
    fn what_was_brought_and_what_is_left_to_do_stands_beside_each_machine() {
        expect![[r#"
            MACHINE  OUTCOME        CLOSURE  DEPLOYMENT  DETAIL
            web-1    succeeded      -        -           3 packages changed, +12 MiB; needs a reboot (kernel)
            web-2    succeeded      -        -           [units_failed] a.service failed, as before
            web-3    staged         -        -           the next boot brings it; `hoist status` says then what was booted
            web-4    dry activated  -        -           nothing was changed; `hoist logs` shows what would be
            web-5    rejected       -        -           [no_agent] the closure has no agent
            web-6    deferred       -        -           held by somebody at the machine; `hoist-agent release` there ends that
        "#]].assert_eq(&mixed().table_on(Page::plain(Some(160))));
    }

    #[test]
    fn on_a_narrow_terminal_only_the_details_are_broken() {
        let table = mixed().table_on(Page::plain(Some(80)));
        assert!(table.lines().all(|line| line.chars().count() <= 80));
        expect![[r#"
            MACHINE  OUTCOME        CLOSURE  DEPLOYMENT  DETAIL
            web-1    succeeded      -        -           3 packages changed, +12 MiB;
                                                         needs a reboot (kernel)
            web-2    succeeded      -        -           [units_failed] a.service failed,
                                                         as before
            web-3    staged         -        -           the next boot brings it; `hoist
                                                         status` says then what was booted
            web-4    dry activated  -        -           nothing was changed; `hoist logs`
                                                         shows what would be
            web-5    rejected       -        -           [no_agent] the closure has no
                                                         agent
            web-6    deferred       -        -           held by somebody at the machine;
                                                         `hoist-agent release` there ends
                                                         that
        "#]]
        .assert_eq(&table);
    }
}
