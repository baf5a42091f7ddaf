//! `hoist-agent history`: what was deployed to this machine, and how it ended.

use hoist_certs::program::now;
use hoist_protocol::{HistoryEntry, StorePath, Timestamp};

use super::exit::Exit;
use super::show::{Screen, Tone, ago, duration, one_line, print, short_path, words};
use crate::config::PlaceFlags;
use crate::ledger;

/// The arguments.
#[derive(clap::Args)]
pub(super) struct HistoryArgs {
    #[command(flatten)]
    place: PlaceFlags,
    /// Print the entries as JSON, as they are on the `history` topic
    #[arg(long)]
    json: bool,
}

/// Runs the command. The agent writes down every outcome at once, so what is on the disk is all there is.
///
/// # Errors
/// The ledger cannot be read.
pub(super) fn run(args: &HistoryArgs) -> anyhow::Result<Exit> {
    let ledger = ledger::read(&args.place.place()?.state)?.unwrap_or_default();
    let entries: Vec<&HistoryEntry> = ledger.history.iter().map(|record| &record.entry).collect();
    let text = if args.json {
        serde_json::to_string_pretty(&serde_json::json!({ "schema": 1, "entries": entries }))?
            + "\n"
    } else if entries.is_empty() {
        "nothing was deployed to this machine so far\n".to_owned()
    } else {
        to_text(&entries, now(), Screen::stdout())
    };
    print(&text)?;
    Ok(Exit::Ok)
}

fn to_text(entries: &[&HistoryEntry], now: Timestamp, screen: Screen) -> String {
    let header = [
        "ENDED",
        "TOOK",
        "OUTCOME",
        "CLOSURE",
        "CHANGES",
        "DEPLOYMENT",
        "MESSAGE",
    ];
    screen.table(
        &header,
        entries.iter().map(|entry| row(entry, now)).collect(),
    )
}

fn row(entry: &HistoryEntry, now: Timestamp) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    let path = entry.path.as_ref();
    let mut message = one_line(entry.message.as_str());
    if let Some(reason) = entry.reason {
        message = format!("[{reason}] {message}");
    }
    if entry.local {
        message = format!("(ordered here) {message}");
    }
    let message = message.trim_end().to_owned();
    vec![
        plain(ago(entry.ended_at, now)),
        plain(duration(entry.ended_at.since(entry.started_at))),
        (words(entry.state), Tone::of(entry.state)),
        plain(path.map_or_else(|| "-".to_owned(), |path: &StorePath| short_path(path))),
        plain(changes(entry)),
        // Whole: `rollback` takes it.
        plain(entry.id.to_string()),
        plain(message),
    ]
}

/// How many packages are new, gone and in another version: `+2 -1 ~3`.
fn changes(entry: &HistoryEntry) -> String {
    let Some(changes) = &entry.changes else {
        return "-".to_owned();
    };
    let counts = [
        ('+', changes.packages_added),
        ('-', changes.packages_removed),
        ('~', changes.packages_changed),
    ];
    let shown: Vec<String> = (counts.iter())
        .filter(|(_, count)| *count > 0)
        .map(|(sign, count)| format!("{sign}{count}"))
        .collect();
    match shown.is_empty() {
        true => "none".to_owned(),
        false => shown.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Changes, DeploymentId, Reason, State, Text};

    use super::*;

    fn entry() -> HistoryEntry {
        HistoryEntry {
            id: DeploymentId::new(uuid::Uuid::from_u128(7)),
            epoch: 0,
            sequence: 7,
            state: State::RolledBack,
            reason: Some(Reason::HealthCheckFailed),
            message: Text::lossy("port 80\nis closed"),
            path: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web-1").ok(),
            previous_path: None,
            started_at: Timestamp::from_ms(1_000),
            ended_at: Timestamp::from_ms(64_000),
            local: true,
            closure_size: None,
            fetched_bytes: None,
            changes: Some(Changes {
                packages_added: 2,
                packages_changed: 3,
                ..Changes::default()
            }),
        }
    }

    #[test]
    fn a_deployment_is_a_line_with_its_whole_id() {
        let text = to_text(&[&entry()], Timestamp::from_ms(94_000), Screen::PLAIN);
        let line = text.lines().nth(1).unwrap();
        for part in [
            "30s ago",
            "1m 3s",
            "rolled back",
            "00bgd04-web-1",
            "+2 ~3",
            "00000000-0000-0000-0000-000000000007",
            "(ordered here) [health_check_failed] port 80 is closed",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(text.lines().count(), 2);
    }
}
