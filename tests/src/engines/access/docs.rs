//! The tables of docs/brokers.md: what the broker decides, and what an engine decides otherwise.

use std::fs;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use camino::Utf8Path;
use hoist_certs::Role;
use hoist_protocol::Channel;

use super::{ACTIONS, Action, Cell, DECISIONS, Decision, Decisions, ROLES, WHOSE, Whose, cells};

/// Where the tables are.
fn text() -> Result<String> {
    let path = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/brokers.md");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// The rows of the table below the heading `heading`, as their cells.
fn rows(text: &str, heading: &str) -> Result<Vec<Vec<String>>> {
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('#'));
    let rows: Vec<Vec<String>> = lines
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| {
            line.split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .skip(1)
        .collect();
    ensure!(
        !rows.is_empty(),
        "docs/brokers.md has no table below `{heading}`"
    );
    Ok(rows)
}

/// What the broker allows: the channels for each role, whose topics and action. All else is refused.
#[derive(Debug)]
pub struct Table(Vec<(Role, Whose, Action, Vec<Channel>)>);

impl Table {
    /// Reads it.
    ///
    /// # Errors
    /// When docs/brokers.md has no such table, or one with another form.
    pub fn read() -> Result<Self> {
        let actions = [
            Action::Publish,
            Action::Retain,
            Action::Clear,
            Action::Will,
            Action::Subscribe,
            Action::Wildcard,
        ];
        let mut table = Vec::new();
        for row in rows(&text()?, "## Who may do what")? {
            let [role, whose, lists @ ..] = row.as_slice() else {
                bail!("the row {row:?} is too short");
            };
            ensure!(
                lists.len() == actions.len(),
                "the row {row:?} has not all actions"
            );
            let (role, whose) = (role.parse()?, named(&WHOSE, whose)?);
            for (action, list) in actions.into_iter().zip(lists) {
                let listed = list.split_whitespace().filter(|name| *name != "–");
                let listed = listed.map(channel).collect::<Result<_>>()?;
                table.push((role, whose, action, listed));
            }
        }
        Ok(Self(table))
    }

    /// What Hoist's own broker decides.
    ///
    /// # Errors
    /// When a row is missing or there twice.
    pub fn decisions(&self) -> Result<Decisions> {
        cells()
            .into_iter()
            .map(|cell| Ok((cell, self.decide(&cell)?)))
            .collect()
    }

    fn decide(&self, cell: &Cell) -> Result<Decision> {
        let Some(channel) = cell.channel else {
            // An id that is not the certificate's.
            return Ok(match cell.whose {
                Whose::Own => Decision::Allowed,
                Whose::Other | Whose::Foreign => Decision::Refused,
            });
        };
        let mut found = self.0.iter().filter(|(role, whose, action, _)| {
            (*role, *whose, *action) == (cell.role, cell.whose, cell.action)
        });
        let (Some((_, _, _, channels)), None) = (found.next(), found.next()) else {
            bail!("docs/brokers.md has not exactly one row for {cell}");
        };
        Ok(match cell.action {
            _ if channels.contains(&channel) => Decision::Allowed,
            // All channels of a machine at once: granted for the sake of those that may be read.
            Action::Wildcard if cell.whose == Whose::Own => Decision::Silent,
            _ => Decision::Refused,
        })
    }
}

/// What an engine decides otherwise: each row says so of all cells that it names and the broker decides as it says.
#[derive(Debug)]
pub struct Differences(Vec<Row>);

#[derive(Debug)]
struct Row {
    text: String,
    roles: Vec<Role>,
    actions: Vec<Action>,
    whose: Vec<Whose>,
    channels: Vec<Channel>,
    here: Decision,
    there: Decision,
}

impl Differences {
    /// Reads those of `engine`, which is how a heading calls it.
    ///
    /// # Errors
    /// When docs/brokers.md has no such table, or one with another form.
    pub fn read(engine: &str) -> Result<Self> {
        let rows = rows(&text()?, &format!("### What {engine} decides otherwise"))?;
        rows.iter()
            .map(|row| Row::parse(row))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// What the engine decides, where the broker decides `here`.
    ///
    /// # Errors
    /// When a row names no cell that no earlier one has named.
    pub fn apply(&self, here: &Decisions) -> Result<Decisions> {
        let mut there = here.clone();
        for row in &self.0 {
            let mut names = false;
            for ((cell, before), (_, after)) in here.iter().zip(&mut there) {
                // The first row that names a cell counts.
                if row.names(cell) && *before == row.here && before == after {
                    *after = row.there;
                    names = true;
                }
            }
            ensure!(names, "a row of docs/brokers.md says nothing: {}", row.text);
        }
        Ok(there)
    }
}

impl Row {
    fn parse(row: &[String]) -> Result<Self> {
        let text = row.join(" | ");
        let parse = || {
            let [roles, actions, whose, channels, decision, reason] = row else {
                bail!("it has not six cells");
            };
            ensure!(!reason.is_empty(), "it has no reason");
            let (here, there) = decision.split_once(" → ").context("it has no arrow")?;
            Ok(Self {
                text: text.clone(),
                roles: list(roles, &ROLES, |name| Ok(Role::from_str(name)?))?,
                actions: list(actions, &ACTIONS.map(|(action, _)| action), |name| {
                    named(&ACTIONS, name)
                })?,
                whose: list(whose, &WHOSE.map(|(whose, _)| whose), |name| {
                    named(&WHOSE, name)
                })?,
                channels: list(channels, &Channel::ALL, channel)?,
                here: named(&DECISIONS, here)?,
                there: named(&DECISIONS, there)?,
            })
        };
        parse().with_context(|| format!("the row of docs/brokers.md: {text}"))
    }

    fn names(&self, cell: &Cell) -> bool {
        let is_channel = cell
            .channel
            .is_none_or(|channel| self.channels.contains(&channel));
        self.roles.contains(&cell.role)
            && self.actions.contains(&cell.action)
            && self.whose.contains(&cell.whose)
            && is_channel
    }
}

/// Words with commas between; `every` and `–` stand for all.
fn list<T: Clone>(text: &str, all: &[T], one: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    match text {
        "every" | "–" => Ok(all.to_vec()),
        _ => text.split(", ").map(one).collect(),
    }
}

fn named<T: Clone>(words: &[(T, &str)], text: &str) -> Result<T> {
    let found = words.iter().find(|(_, word)| *word == text);
    found
        .map(|(value, _)| value.clone())
        .with_context(|| format!("`{text}` is no word of the tables"))
}

fn channel(text: &str) -> Result<Channel> {
    Channel::from_level(text).with_context(|| format!("`{text}` is no channel"))
}
