//! `--dry-run` of the commands that make something of what machines have: what would be published for whom.

use hoist_certs::program::now;
use hoist_protocol::{AgentName, Held, Machine, Presence, StorePath, Text};
use serde::Serialize;

use super::choosing::{Chosen, check_names};
use super::ending::leave;
use super::send::{Sending, Task};
use super::standing::hold_there;
use super::status::short_path;
use super::{CommandError, unless_interrupted};
use crate::ci::summary;
use crate::console::Console;
use crate::console::table::{Page, Tone, render};
use crate::outcome::{Exit, Outcome};
use crate::plan::Hold;
use crate::report::{SCHEMA, document};
use crate::snapshot::Seen;

/// What would become of a machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Would {
    /// A deployment would be published for it.
    Publish,
    /// There is nothing to do for it.
    Skip,
    /// It cannot be done for it.
    Refuse,
}

impl Would {
    const fn said(self) -> (&'static str, Tone) {
        match self {
            Self::Publish => ("publish", Tone::Good),
            Self::Skip => ("skip", Tone::Plain),
            Self::Refuse => ("refuse", Tone::Bad),
        }
    }
}

/// What is said of a machine that is held already.
const STAYS_HELD: &str = "; held, and stays so until it is released";

#[derive(Debug, Serialize)]
struct Row {
    agent: AgentName,
    would: Would,
    presence: Option<&'static str>,
    current_path: Option<StorePath>,
    detail: Text<1024>,
}

/// Runs the command up to where it would sign.
pub(super) async fn run(sending: &Sending<'_>, task: &Task) -> Result<Exit, CommandError> {
    let Some(rows) = unless_interrupted(rows(sending, task)).await? else {
        return Ok(Exit::Interrupted);
    };
    let exit = match rows.iter().any(|row| row.would == Would::Refuse) {
        true => Exit::Error,
        false => Exit::Ok,
    };
    let json = || {
        document(&serde_json::json!({
            "schema": SCHEMA,
            "command": sending.command(),
            "fleet": sending.fleet(),
            "dry_run": true,
            "exit_code": exit.code(),
            "machines": rows,
        }))
    };
    let console = Console::new(sending.follow().quiet);
    leave(sending.follow(), &console, json, || {
        markdown(sending, &rows)
    });
    let printed = if sending.follow().json {
        sending.log().json(&json())
    } else {
        sending.log().table(&shown(&rows))
    };
    printed.map_err(CommandError::Output)?;
    Ok(exit)
}

fn shown(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no machine is meant by that\n".to_owned();
    }
    table(rows, Page::stdout())
}

fn markdown(sending: &Sending<'_>, rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = (rows.iter())
        .map(|row| {
            let runs = row.current_path.as_ref();
            vec![
                row.agent.to_string(),
                runs.map_or_else(|| "-".to_owned(), short_path),
                row.would.said().0.to_owned(),
                row.detail.to_string(),
            ]
        })
        .collect();
    let heading = format!(
        "hoist {} --dry-run: fleet `{}`; nothing was published",
        sending.command(),
        sending.fleet()
    );
    summary::of_table(&heading, &["Machine", "Runs", "Would", "What"], &cells)
}

async fn rows(sending: &Sending<'_>, task: &Task) -> Result<Vec<Row>, CommandError> {
    let Task::Chosen(selection, choose) = task else {
        return Ok(Vec::new());
    };
    let (mut link, snapshot) = sending.look(task).await?;
    check_names(&mut link, sending.fleet(), selection, &snapshot).await?;
    link.close().await;
    let chosen = Chosen::new(&snapshot, selection, &**choose, &sending.keys().trusted)?;
    let row = |agent: &AgentName, would, detail: &str| {
        let seen = snapshot.machine(agent);
        let status = seen.and_then(|seen: &Seen| seen.status.as_ref());
        Row {
            agent: agent.clone(),
            would,
            presence: seen.and_then(|seen| seen.presence).map(Presence::as_str),
            current_path: status.and_then(|status| status.current_path.clone()),
            detail: Text::lossy(detail),
        }
    };
    let at = now();
    let stays_held = |agent: &AgentName| {
        let stays =
            (chosen.wishes.get(agent)).is_some_and(|wish| matches!(wish.hold, Hold::Stays(_)));
        let seen = snapshot.machine(agent).filter(|_| stays);
        let machine = Machine::new(sending.fleet().clone(), agent.clone());
        seen.is_some_and(|seen| hold_there(&machine, seen, &sending.keys().trusted, at) != Held::No)
    };
    let sent = (chosen.said.iter()).map(|(agent, said)| {
        let then = if stays_held(agent) { STAYS_HELD } else { "" };
        row(agent, Would::Publish, &format!("{said}{then}"))
    });
    let others = chosen.others.iter().map(|report| {
        let would = match report.outcome {
            Outcome::Skipped => Would::Skip,
            _ => Would::Refuse,
        };
        row(&report.agent, would, report.message.as_str())
    });
    let mut rows: Vec<Row> = sent.chain(others).collect();
    rows.sort_by(|a, b| a.agent.cmp(&b.agent));
    Ok(rows)
}

fn table(rows: &[Row], page: Page) -> String {
    let cells = rows.iter().map(|row| {
        let runs = row.current_path.as_ref();
        let (word, tone) = row.would.said();
        vec![
            (row.agent.to_string(), Tone::Plain),
            (runs.map_or_else(|| "-".to_owned(), short_path), Tone::Plain),
            (word.to_owned(), tone),
            (row.detail.to_string(), Tone::Plain),
        ]
    });
    let table = render(page, &["MACHINE", "RUNS", "WOULD", "WHAT"], cells.collect());
    let count = |would| rows.iter().filter(|row| row.would == would).count();
    format!(
        "{table}{} to publish, {} to skip, {} refused; nothing was published\n",
        count(Would::Publish),
        count(Would::Skip),
        count(Would::Refuse)
    )
}
