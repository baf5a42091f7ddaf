//! `hoist history`: what was deployed to a machine, and how it ended, by its own word.

use clap::Args;
use hoist_certs::program::{now, show_size};
use hoist_protocol::{AgentName, Changes, Channel, FleetName, HistoryEntry, Status, Timestamp};

use super::status::{READERS, short_path};
use super::{CommandError, look_at_one, unless_interrupted};
use crate::console::table::{Page, Tone, render};
use crate::console::{one_line, print, to_stderr};
use crate::duration;
use crate::outcome::Exit;
use crate::report::{SCHEMA, document};
use crate::said;
use crate::settings::{Flags, Settings, process_environment};
use crate::snapshot::Seen;

pub(crate) const HISTORY_EXAMPLES: &str = "\
Examples:
  hoist history web-1                       what was deployed to web-1, newest first
  hoist diff web-1 9b30771b                 what one of these brought
  hoist rollback web-1 --to 9b30771b        back to what it brought";

/// `hoist history`
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The machine
    pub agent: AgentName,
    /// Write JSON: {"schema": 1, "command": "history", "fleet", "agent", "under_way": the deployment that has not
    /// ended, if any, "entries": [what the machine says of each, as it is on its `history` topic]}
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]
pub async fn run(args: &HistoryArgs, flags: Flags) -> Result<Exit, CommandError> {
    let caller = Settings::load(flags, &process_environment)?
        .caller("read the history of machines", &READERS)?;
    let channels = [Channel::Status, Channel::Presence, Channel::History];
    let looked = look_at_one(&caller, &args.agent, &channels);
    let Some(seen) = unless_interrupted(looked).await? else {
        return Ok(Exit::Interrupted);
    };
    if let Some((channel, error)) = &seen.unreadable {
        to_stderr(&format!("warning: its {channel} cannot be read: {error}"));
    }
    let text = if args.json {
        json(&caller.fleet, &args.agent, &seen)
    } else {
        text(&args.agent, &seen, now(), Page::stdout())
    };
    print(&text).map_err(CommandError::Output)?;
    Ok(Exit::Ok)
}

/// The deployment that the machine speaks of and whose end its history does not tell.
fn under_way(seen: &Seen) -> Option<&Status> {
    let status = seen.status.as_ref()?;
    let id = status.id?;
    let mut entries = seen.history.iter().flat_map(|history| &history.entries);
    (entries.all(|entry| entry.id != id)).then_some(status)
}

fn text(agent: &AgentName, seen: &Seen, now: Timestamp, page: Page) -> String {
    let mut rows: Vec<Vec<(String, Tone)>> = Vec::new();
    rows.extend(under_way(seen).map(row_under_way));
    let entries = seen.history.iter().flat_map(|history| &history.entries);
    rows.extend(entries.map(|entry| row(entry, now)));
    if rows.is_empty() {
        return format!("nothing was deployed to {agent} so far\n");
    }
    let header = [
        "DEPLOYMENT",
        "ENDED",
        "TOOK",
        "OUTCOME",
        "CLOSURE",
        "SIZE",
        "CHANGES",
        "MESSAGE",
    ];
    render(page, &header, rows)
}

fn row_under_way(status: &Status) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    vec![
        plain(
            status
                .id
                .map_or_else(String::new, hoist_protocol::DeploymentId::short),
        ),
        plain("-".to_owned()),
        plain("-".to_owned()),
        (
            status.state.as_str().replace('_', " "),
            Tone::of(status.state),
        ),
        plain(status.path.as_ref().map_or_else(dash, short_path)),
        plain(status.closure_size.map_or_else(dash, show_size)),
        plain(status.changes.as_ref().map_or_else(dash, counts)),
        plain(one_line(status.message.as_str())),
    ]
}

fn row(entry: &HistoryEntry, now: Timestamp) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    let message = one_line(entry.message.as_str());
    let whose = if entry.local {
        "(ordered at the machine) "
    } else {
        ""
    };
    let reason = (entry.reason).map_or_else(String::new, |reason| format!("[{reason}] "));
    vec![
        plain(entry.id.short()),
        plain(said::ago(entry.ended_at, now)),
        plain(duration::show(entry.ended_at.since(entry.started_at))),
        (
            entry.state.as_str().replace('_', " "),
            Tone::of(entry.state),
        ),
        plain(entry.path.as_ref().map_or_else(dash, short_path)),
        plain(entry.closure_size.map_or_else(dash, show_size)),
        plain(entry.changes.as_ref().map_or_else(dash, counts)),
        plain(format!("{whose}{reason}{message}").trim_end().to_owned()),
    ]
}

fn dash() -> String {
    "-".to_owned()
}

/// How many packages are new, gone and in another version, and what that takes: `+2 -1 ~3, +12 MiB`.
fn counts(changes: &Changes) -> String {
    let counts = [
        ('+', changes.packages_added),
        ('-', changes.packages_removed),
        ('~', changes.packages_changed),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(sign, count)| format!("{sign}{count}"))
        .collect();
    let size = match changes.size_difference {
        0 => String::new(),
        bytes => hoist_certs::program::show_size_difference(bytes),
    };
    match (counts.is_empty(), size.is_empty()) {
        (true, true) => "none".to_owned(),
        (true, false) => size,
        (false, true) => counts.join(" "),
        (false, false) => format!("{}, {size}", counts.join(" ")),
    }
}

fn json(fleet: &FleetName, agent: &AgentName, seen: &Seen) -> String {
    let entries = seen.history.as_ref().map(|history| &history.entries);
    let under_way = under_way(seen).map(|status| {
        serde_json::json!({
            "id": status.id,
            "state": status.state,
            "path": status.path,
            "progress": status.progress,
        })
    });
    document(&serde_json::json!({
        "schema": SCHEMA,
        "command": "history",
        "fleet": fleet,
        "agent": agent,
        "under_way": under_way,
        "entries": entries.map_or(&[][..], Vec::as_slice),
    }))
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
