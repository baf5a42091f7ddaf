//! `hoist status`: where machines stand, by their own word.

mod details;
mod watch;

use std::time::Duration;

use clap::Args;
use hoist_certs::Role;
use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, Channel, DeploymentId, FleetName, Presence, State, Status, StorePath, Timestamp,
};

use super::{CommandError, look, unknown_machine, unless_interrupted};
use crate::console::table::{Page, Tone, render};
use crate::console::{fetched, one_line, print};
use crate::flags::SelectionArgs;
use crate::link::Link;
use crate::outcome::Exit;
use crate::report::{SCHEMA, document};
use crate::said;
use crate::select::{Condition, Selection, Selector};
use crate::settings::{Caller, Flags, Settings, process_environment};
use crate::snapshot::{Seen, Snapshot};

/// `hoist status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The machines: those that are named, with all that they say of themselves; a selection such as 'web-*' or
    /// '@web&!@canary', or the whole fleet when nothing is given, a line for each
    #[arg(value_name = "SELECTION")]
    pub agents: Vec<Selector>,
    /// Only machines of which something holds
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Only machines whose newest deployment did not end well
    #[arg(long, help_heading = "Selection")]
    pub failed: bool,
    /// Go on and show what changes, until interrupted: on a terminal in place, elsewhere a line for each change
    #[arg(short, long)]
    pub watch: bool,
    /// Write JSON: {"schema": 1, "command": "status", "fleet": …, "machines": [{"agent", "presence", "status": what the
    /// machine itself last said, as it is on its `status` topic, "unreadable"}]}; with --watch one of these machines a line
    #[arg(long)]
    pub json: bool,
}

/// A machine that is online says something every five minutes; after three times that its word is old.
const STALE: Duration = Duration::from_secs(15 * 60);

/// Roles that may look.
pub(super) const READERS: [Role; 3] = [Role::Monitor, Role::Publisher, Role::Admin];

/// Runs the command.
///
/// # Errors
/// [`CommandError`]
pub async fn run(args: &StatusArgs, flags: Flags) -> Result<Exit, CommandError> {
    let caller = Settings::load(flags, &process_environment)?
        .caller("read the state of machines", &READERS)?;
    let selection = Selection {
        selectors: args.agents.clone(),
        conditions: args.selection.conditions.clone(),
        heard_within: None,
    };
    if args.watch {
        return watch::run(args, &caller, &selection).await;
    }
    let Some(mut snapshot) = unless_interrupted(gather(&caller, &selection)).await? else {
        return Ok(Exit::Interrupted);
    };
    let has_machines = !snapshot.machines().is_empty();
    let at = now();
    snapshot.keep(|agent, seen| {
        selection.means(agent, Some(seen), at) && (!args.failed || has_failed(seen))
    });
    let text = if args.json {
        json(&caller.fleet, &snapshot)
    } else if !has_machines {
        format!(
            "no machine of the fleet `{}` has reported yet\n",
            caller.fleet
        )
    } else if snapshot.machines().is_empty() {
        "no machine is like that\n".to_owned()
    } else if selection.only_names().is_none() {
        table(&snapshot, at, Page::stdout())
    } else {
        let machines = snapshot.machines().iter();
        let machines: Vec<String> = machines
            .map(|(agent, seen)| details::details(agent, seen, at, Page::stdout()))
            .collect();
        machines.join("\n")
    };
    print(&text).map_err(CommandError::Output)?;
    Ok(Exit::Ok)
}

async fn gather(caller: &Caller, selection: &Selection) -> Result<Snapshot, CommandError> {
    let mut link = Link::open(caller).await?;
    let channels = [Channel::Status, Channel::Presence];
    let agents = selection.only_names().unwrap_or_default();
    let snapshot = look(&mut link, &caller.fleet, &agents, &channels).await?;
    for agent in selection.selectors.iter().flat_map(Selector::names) {
        if !snapshot.machine(agent).is_some_and(Seen::has_reported) {
            return Err(unknown_machine(&mut link, &caller.fleet, agent).await);
        }
    }
    link.close().await;
    Ok(snapshot)
}

fn has_failed(seen: &Seen) -> bool {
    seen.status.as_ref().is_some_and(Condition::is_failure)
}

fn table(snapshot: &Snapshot, now: Timestamp, page: Page) -> String {
    let rows = snapshot
        .machines()
        .iter()
        .map(|(agent, seen)| row(agent, seen, now))
        .collect();
    render(page, &HEADER, rows)
}

/// The columns of [`row`].
const HEADER: [&str; 7] = [
    "MACHINE",
    "STATE",
    "RUNS",
    "UPDATED",
    "ONLINE",
    "DEPLOYMENT",
    "MESSAGE",
];

fn row(agent: &AgentName, seen: &Seen, now: Timestamp) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    let online = match seen.presence {
        Some(Presence::Online) => ("online".to_owned(), Tone::Good),
        Some(Presence::Offline) => ("offline".to_owned(), Tone::Mild),
        None => ("-".to_owned(), Tone::Plain),
    };
    let Some(status) = &seen.status else {
        let message = match &seen.unreadable {
            Some((channel, error)) => format!("its {channel} cannot be read: {error}"),
            None => "it has not reported its state yet".to_owned(),
        };
        let none = || plain("-".to_owned());
        return vec![
            plain(agent.to_string()),
            none(),
            none(),
            none(),
            online,
            none(),
            plain(message),
        ];
    };
    let words = status.state.as_str().replace('_', " ");
    let state = match status.progress {
        Some(percent) if !status.state.is_final() => format!("{words} {percent} %"),
        _ => words,
    };
    vec![
        plain(agent.to_string()),
        (state, Tone::of(status.state)),
        plain(
            status
                .current_path
                .as_ref()
                .map_or_else(|| "-".to_owned(), short_path),
        ),
        age(status.ts, seen.presence, now),
        online,
        plain(
            status
                .id
                .map_or_else(|| "-".to_owned(), DeploymentId::short),
        ),
        plain(message(status)),
    ]
}

/// What there is to know, shortly: a machine that is named says all of it.
fn message(status: &Status) -> String {
    let said = one_line(status.message.as_str());
    let said = match status.reason {
        Some(reason) => format!("[{reason}] {said}").trim_end().to_owned(),
        None => said,
    };
    let fetch = status
        .fetch
        .filter(|fetch| status.state == State::Fetching && fetch.fetch_bytes > 0)
        .map_or_else(String::new, |fetch| fetched(&fetch));
    let warnings = match status.warnings.as_slice() {
        [] => String::new(),
        [one] => one_line(one.as_str()),
        several => format!("{} warnings", several.len()),
    };
    let parts = [
        said,
        fetch,
        said::held(status),
        said::reboot(&status.reboot_reasons),
        warnings,
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

/// How old the machine's word is. That of one that is offline is old for a known reason.
fn age(at: Timestamp, presence: Option<Presence>, now: Timestamp) -> (String, Tone) {
    let text = said::ago(at, now);
    if now.since(at) >= STALE && presence != Some(Presence::Offline) {
        (format!("{text} (stale)"), Tone::Bad)
    } else {
        (text, Tone::Plain)
    }
}

/// A store path by the first digits of its hash and its name.
pub(super) fn short_path(path: &StorePath) -> String {
    format!("{}-{}", &path.hash()[..7], path.name())
}

fn json(fleet: &FleetName, snapshot: &Snapshot) -> String {
    let machines = snapshot.machines().iter();
    let machines: Vec<serde_json::Value> =
        machines.map(|(agent, seen)| entry(agent, seen)).collect();
    document(&serde_json::json!({
        "schema": SCHEMA,
        "command": "status",
        "fleet": fleet,
        "machines": machines,
    }))
}

fn entry(agent: &AgentName, seen: &Seen) -> serde_json::Value {
    serde_json::json!({
        "agent": agent,
        "presence": seen.presence.map(Presence::as_str),
        "status": seen.status.as_ref().map(as_reported),
        "unreadable": seen.unreadable.as_ref().map(|(channel, error)| format!("{channel}: {error}")),
    })
}

/// The status with all that it has on its topic.
fn as_reported(status: &Status) -> serde_json::Value {
    serde_json::from_slice(&status.to_json()).expect("a report is written as JSON")
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{FetchProgress, RebootReason, Text};

    use super::*;
    use crate::testing::{machine, order, status};

    const NOW: Timestamp = Timestamp::from_ms(10_000_000);

    fn snapshot(state: State, presence: &[u8]) -> Snapshot {
        let machine = machine("web-1");
        let mut snapshot = Snapshot::new(machine.fleet.clone());
        let report = status(order(10_000_000 - 5_000), state);
        let saw = |snapshot: &mut Snapshot, channel, payload: &[u8]| {
            snapshot.saw(&machine.topic(channel), payload).unwrap();
        };
        saw(&mut snapshot, Channel::Status, &report.to_json());
        saw(&mut snapshot, Channel::Presence, presence);
        snapshot
    }

    #[test]
    fn a_machine_is_a_line() {
        let table = table(
            &snapshot(State::RolledBack, b"online"),
            NOW,
            Page::plain(None),
        );
        let line = table.lines().nth(1).unwrap();
        for part in ["web-1", "rolled back", "5s ago", "online"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("stale"), "{line}");
    }

    #[test]
    fn what_somebody_should_know_of_a_machine_stands_in_its_line() {
        let machine = machine("web-1");
        let mut report = status(order(9_995_000), State::Fetching);
        report.progress = Some(41);
        report.fetch = Some(FetchProgress {
            fetched_bytes: 510 << 20,
            fetch_bytes: 1_240 << 20,
            fetched_paths: 120,
            fetch_paths: 340,
        });
        report.held = true;
        report.reboot_reasons = vec![RebootReason::Kernel];
        report.warnings = vec![Text::lossy("a"), Text::lossy("b")];
        let mut snapshot = Snapshot::new(machine.fleet.clone());
        let topic = machine.topic(Channel::Status);
        snapshot.saw(&topic, &report.to_json()).unwrap();
        let wide = table(&snapshot, NOW, Page::plain(None));
        let line = wide.lines().nth(1).unwrap();
        assert!(line.contains("fetching 41 %"), "{line}");
        assert!(
            line.ends_with(
                "510 MiB of 1.2 GiB, 120 of 340 paths; held by somebody at the machine; `hoist-agent release` there \
                 ends that; needs a reboot (kernel); 2 warnings"
            ),
            "{line}"
        );
        for width in [80, 160] {
            let narrow = table(&snapshot, NOW, Page::plain(Some(width)));
            assert!(
                narrow
                    .lines()
                    .all(|line| line.chars().count() <= width.into()),
                "{narrow}"
            );
            // The columns before the message are whole.
            let line = narrow.lines().nth(1).unwrap();
            assert!(
                line.contains("web-1") && line.contains("fetching 41 %"),
                "{narrow}"
            );
        }
    }

    #[test]
    fn the_old_word_of_a_machine_that_should_speak_is_marked() {
        let later = Timestamp::from_ms(NOW.as_ms() + 3_600_000);
        let line = |presence: &[u8]| {
            table(
                &snapshot(State::Succeeded, presence),
                later,
                Page::plain(None),
            )
        };
        assert!(line(b"online").contains("1h ago (stale)"));
        assert!(!line(b"offline").contains("stale"));
    }

    #[test]
    fn the_json_holds_the_status_as_it_was_reported() {
        let snapshot = snapshot(State::Succeeded, b"online");
        let json: serde_json::Value =
            serde_json::from_str(&json(&machine("web-1").fleet, &snapshot)).unwrap();
        assert_eq!(json["schema"], 1);
        crate::manual::assert_names("status", &json);
        assert_eq!(json["machines"][0]["presence"], "online");
        let status = &json["machines"][0]["status"];
        assert_eq!(status["state"], "succeeded");
        // What is derived when a report is written.
        assert_eq!(
            (&status["state_code"], &status["needs_reboot"]),
            (&20.into(), &false.into())
        );
    }
}
