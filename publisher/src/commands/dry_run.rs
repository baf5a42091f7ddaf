//! `hoist deploy --dry-run`: whom a deployment would move, from what to what. Nothing is published.

use std::collections::BTreeMap;

use hoist_certs::program::now;
use hoist_protocol::{AgentName, FleetName, Presence, State, StorePath};
use serde::Serialize;

use super::deploy::DeployArgs;
use super::ending::leave;
use super::status::{READERS, short_path};
use super::{CommandError, look, unless_interrupted};
use crate::ci::summary;
use crate::console::table::{Page, Tone, render};
use crate::console::{Console, print};
use crate::link::Link;
use crate::outcome::Exit;
use crate::report::{SCHEMA, document};
use crate::rollout::{Known, divide};
use crate::select::Selection;
use crate::settings::Settings;
use crate::snapshot::{Seen, Snapshot};
use crate::spec::Spec;

/// What would become of a machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Would {
    /// It would go from what it runs to the closure.
    Change,
    /// It runs the closure already.
    BeUnchanged,
    /// It would get the deployment when it returns.
    Wait,
    /// It would begin when it is released.
    BeDeferred,
    /// The machine has never reported.
    BeUnknown,
}

impl Would {
    /// `stays_held` is one that a deployment holds, by its own word.
    fn of(seen: Option<&Seen>, path: &StorePath, stays_held: bool) -> Self {
        let Some(seen) = seen.filter(|seen| seen.has_reported()) else {
            return Self::BeUnknown;
        };
        let status = seen.status.as_ref();
        if status.and_then(|status| status.current_path.as_ref()) == Some(path) {
            return Self::BeUnchanged;
        }
        if stays_held || status.is_some_and(|status| status.held) {
            return Self::BeDeferred;
        }
        match seen.presence {
            Some(Presence::Online) => Self::Change,
            Some(Presence::Offline) | None => Self::Wait,
        }
    }

    const fn said(self) -> (&'static str, Tone) {
        match self {
            Self::Change => ("to change", Tone::Good),
            Self::BeUnchanged => ("unchanged: it runs that already", Tone::Plain),
            Self::Wait => ("offline: it gets it when it returns", Tone::Mild),
            Self::BeDeferred => ("held: it begins when it is released", Tone::Mild),
            Self::BeUnknown => ("never reported: is the name right?", Tone::Bad),
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    agent: AgentName,
    would: Would,
    presence: Option<&'static str>,
    current_path: Option<StorePath>,
    path: StorePath,
    /// In which batch of the rollout, counted from 1.
    batch: Option<u16>,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]
pub(super) async fn run(
    args: &DeployArgs,
    settings: &Settings<'_>,
    spec: &Spec,
    selection: &Selection,
) -> Result<Exit, CommandError> {
    let caller = settings.caller("look at what a deployment would change", &READERS)?;
    let agents: Vec<AgentName> = spec.agents().keys().cloned().collect();
    let gather = async {
        use hoist_protocol::Channel::{Presence, Status};
        let mut link = Link::open(&caller).await?;
        let snapshot = look(&mut link, &caller.fleet, &agents, &[Status, Presence]).await?;
        link.close().await;
        Ok(snapshot)
    };
    let Some(snapshot) = unless_interrupted(gather).await? else {
        return Ok(Exit::Interrupted);
    };
    let rows = rows(args, spec, selection, &snapshot);
    let document = || json(&caller.fleet, &rows);
    let markdown = || markdown(&caller.fleet, &rows);
    leave(
        &args.follow,
        &Console::new(args.follow.quiet),
        document,
        markdown,
    );
    let text = if args.follow.json {
        document()
    } else if rows.is_empty() {
        format!("no machine of the spec is meant by {}\n", selection.shown())
    } else {
        table(&rows, Page::stdout())
    };
    print(&text).map_err(CommandError::Output)?;
    Ok(Exit::Ok)
}

fn json(fleet: &FleetName, rows: &[Row]) -> String {
    document(&serde_json::json!({
        "schema": SCHEMA,
        "command": "deploy",
        "fleet": fleet,
        "dry_run": true,
        "machines": rows,
    }))
}

fn markdown(fleet: &FleetName, rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = (rows.iter())
        .map(|row| {
            let runs = row.current_path.as_ref();
            vec![
                row.batch
                    .map_or_else(|| "-".to_owned(), |batch| batch.to_string()),
                row.agent.to_string(),
                runs.map_or_else(|| "-".to_owned(), short_path),
                short_path(&row.path),
                row.would.said().0.to_owned(),
            ]
        })
        .collect();
    let heading = format!("hoist deploy --dry-run: fleet `{fleet}`; nothing was published");
    let header = ["Batch", "Machine", "Runs", "Would run", "Then"];
    summary::of_table(&heading, &header, &cells)
}

fn rows(args: &DeployArgs, spec: &Spec, selection: &Selection, snapshot: &Snapshot) -> Vec<Row> {
    let at = now();
    let mut rows: Vec<Row> = spec
        .agents()
        .iter()
        .filter(|(agent, _)| selection.means(agent, snapshot.machine(agent), at))
        .map(|(agent, wanted)| {
            let seen = snapshot.machine(agent);
            let status = seen.and_then(|seen| seen.status.as_ref());
            Row {
                agent: agent.clone(),
                would: Would::of(seen, &wanted.path, stays_held(args, seen)),
                presence: seen.and_then(|seen| seen.presence).map(Presence::as_str),
                current_path: status.and_then(|status| status.current_path.clone()),
                path: wanted.path.clone(),
                batch: None,
            }
        })
        .collect();
    if let Some(rollout) = args.rollout.rollout() {
        let known: Vec<Known> = rows
            .iter()
            .map(|row| {
                let seen = snapshot.machine(&row.agent);
                Known::of(seen, Some(&row.path), stays_held(args, seen))
            })
            .collect();
        let (batches, _) = divide(rollout.division, &known);
        for (row, batch) in rows.iter_mut().zip(batches) {
            row.batch = Some(batch.saturating_add(1));
        }
        rows.sort_by_key(|row| row.batch);
    }
    rows
}

/// Whether a machine says that a deployment holds it, and is not to be let go.
fn stays_held(args: &DeployArgs, seen: Option<&Seen>) -> bool {
    let status = seen.and_then(|seen| seen.status.as_ref());
    !args.release && status.is_some_and(|status| status.state == State::Held && !status.held)
}

fn table(rows: &[Row], page: Page) -> String {
    let is_rollout = rows.iter().any(|row| row.batch.is_some());
    let mut header = vec!["MACHINE", "RUNS", "WOULD RUN", "THEN"];
    if is_rollout {
        header.insert(0, "BATCH");
    }
    let cells = rows.iter().map(|row| {
        let plain = |text: String| (text, Tone::Plain);
        let runs = row.current_path.as_ref();
        let (said, tone) = row.would.said();
        let mut cells = vec![
            plain(row.agent.to_string()),
            plain(runs.map_or_else(|| "-".to_owned(), short_path)),
            plain(short_path(&row.path)),
            (said.to_owned(), tone),
        ];
        if let Some(batch) = row.batch {
            cells.insert(0, plain(batch.to_string()));
        }
        cells
    });
    let table = render(page, &header, cells.collect());
    format!("{table}{}\n", counted(rows))
}

fn counted(rows: &[Row]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        let said = row.would.said().0;
        let word = said.split(':').next().unwrap_or(said);
        *counts.entry(word).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    format!("{}; nothing was published", counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{machine, path};

    #[test]
    fn the_json_has_the_fields_that_the_manual_names() {
        let machine = machine("web-1");
        let row = Row {
            agent: machine.agent,
            would: Would::Change,
            presence: None,
            current_path: None,
            path: path("v1"),
            batch: None,
        };
        let json = serde_json::from_str(&json(&machine.fleet, &[row])).unwrap();
        crate::manual::assert_names("deploy --dry-run", &json);
    }
}
