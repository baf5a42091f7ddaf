//! `hoist logs`: what a machine's newest deployment said, and with `--follow` what it says.

use clap::Args;
use hoist_certs::program::now;
use hoist_protocol::{AgentName, Channel, LogLine, State, Status, Topic};

use super::status::READERS;
use super::{CommandError, unknown_machine, unless_interrupted};
use crate::console::{Console, log_line, print, reader_gone};
use crate::lines_shown::LinesShown;
use crate::link::{Event, Filter, Link, Ticket, filters};
use crate::outcome::Exit;
use crate::report::SCHEMA;
use crate::said;
use crate::settings::{Caller, Flags, Settings, process_environment};
use crate::snapshot::{self, Wanted};

/// `hoist logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The machine
    pub agent: AgentName,
    /// Go on with the lines that come, until interrupted. Lines are not kept on the broker: without this, and for
    /// those that came before, there is only the end of the log that the machine's status carries
    #[arg(short, long)]
    pub follow: bool,
    /// Write JSON: one document, or with --follow one line for each line of the log
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]
pub async fn run(args: &LogsArgs, flags: Flags) -> Result<Exit, CommandError> {
    let caller = Settings::load(flags, &process_environment)?
        .caller("read the logs of machines", &READERS)?;
    let shown = unless_interrupted(show(args, &caller)).await?;
    Ok(shown.unwrap_or(Exit::Interrupted))
}

async fn show(args: &LogsArgs, caller: &Caller) -> Result<Exit, CommandError> {
    let console = Console::new(false);
    let mut link = Link::open(caller).await?;
    let agents = std::slice::from_ref(&args.agent);
    let channels = [Channel::Status, Channel::Presence, Channel::Log];
    let filters = filters(&caller.fleet, agents, &channels);
    let wanted = Wanted {
        fleet: &caller.fleet,
        agents,
        channels: &channels,
        filters: &filters,
    };
    let snapshot = snapshot::take(&mut link, &wanted).await?;
    let Some(seen) = snapshot
        .machine(&args.agent)
        .filter(|seen| seen.has_reported())
    else {
        return Err(unknown_machine(&mut link, &caller.fleet, &args.agent).await);
    };
    if let Some((channel, error)) = &seen.unreadable {
        console.warn(&format!("its {channel} cannot be read: {error}"));
    }
    match (&seen.status, args.json) {
        (Some(status), true) if !args.follow => write(&document(status))?,
        (Some(status), false) => {
            console.note(&headline(status));
            for line in would_change(status) {
                write(&format!("{} | {line}\n", args.agent))?;
            }
            for line in &status.log_tail {
                write(&format!(
                    "{} |   {}\n",
                    args.agent,
                    line.as_str().replace('\n', " ")
                ))?;
            }
        }
        (None, false) => console.note(&format!("{} has not reported a deployment", args.agent)),
        (None | Some(_), true) => {}
    }
    if !args.follow {
        link.close().await;
        return Ok(Exit::Ok);
    }
    let mut shown = LinesShown::default();
    if let Some(status) = &seen.status
        && let (Some(id), Some(lines)) = (status.id, status.log_lines)
    {
        shown.note(&args.agent, id, lines);
    }
    let follower = Follower {
        args,
        console,
        filters: &filters,
        said: seen.status.as_ref().map(headline),
        shown,
    };
    follower.follow(&mut link).await
}

struct Follower<'a> {
    args: &'a LogsArgs,
    console: Console,
    filters: &'a [Filter],
    /// What was said of the machine last.
    said: Option<String>,
    shown: LinesShown,
}

impl Follower<'_> {
    /// Shows what comes, as long as somebody reads it.
    async fn follow(mut self, link: &mut Link) -> Result<Exit, CommandError> {
        let gone = reader_gone();
        tokio::pin!(gone);
        loop {
            let event = tokio::select! {
                event = link.next() => event?,
                gone = &mut gone => return gone.map(|()| Exit::Ok).map_err(CommandError::Runtime),
            };
            match event {
                Event::Message { topic, payload, .. } => self.message(&topic, &payload)?,
                Event::Disconnected(failure) => {
                    self.console.note(&format!("{failure}; connecting again"));
                }
                Event::Connected => link.subscribe(Ticket::Everything, self.filters),
                Event::Granted(..) | Event::Acknowledged(_) => {}
            }
        }
    }

    fn message(&mut self, topic: &Topic, payload: &[u8]) -> Result<(), CommandError> {
        match topic.channel {
            Channel::Log => match LogLine::from_json(payload) {
                Ok(line) => self.line(&topic.machine.agent, &line),
                Err(error) => {
                    self.console
                        .warn(&format!("a line cannot be read: {error}"));
                    Ok(())
                }
            },
            Channel::Status => {
                // What cannot be read was said when it was found first, or is said by `hoist status`.
                if let Ok(status) = Status::from_json(payload, &topic.machine) {
                    let said = headline(&status);
                    if self.said.as_ref() != Some(&said) {
                        self.console.note(&said);
                        self.said = Some(said);
                    }
                }
                Ok(())
            }
            Channel::Deploy | Channel::Presence | Channel::History | Channel::Echo => Ok(()),
        }
    }

    fn line(&mut self, agent: &AgentName, line: &LogLine) -> Result<(), CommandError> {
        if !self.shown.is_new(agent, line) {
            return Ok(());
        }
        if self.args.json {
            let json = serde_json::to_string(line).expect("plain data always has a JSON form");
            return write(&format!("{json}\n"));
        }
        write(&format!("{}\n", log_line(agent, line)))
    }
}

/// The machine, its deployment and how that stands, in one line.
fn headline(status: &Status) -> String {
    let Some(id) = status.id else {
        return format!("{} has not been deployed to yet", status.agent);
    };
    let lines = match (status.log_lines, status.log_tail.len() as u64) {
        (Some(all), tail) if all > tail => format!("; the last {tail} of {all} lines of its log"),
        (Some(all), _) => format!("; {all} lines of log"),
        (None, _) => String::new(),
    };
    let state = status.state.as_str().replace('_', " ");
    format!("{}: deployment {} {state}{lines}", status.agent, id.short())
}

/// Of a deployment that was tried dry, what would be different.
fn would_change(status: &Status) -> Vec<String> {
    let (State::DryActivated, Some(changes)) = (status.state, &status.changes) else {
        return Vec::new();
    };
    let summary = match said::changes(changes) {
        same if same.is_empty() => "no package would change".to_owned(),
        summary => format!("would change: {summary}"),
    };
    let packages = changes.packages.iter();
    let packages = packages.map(|package| format!("  {}", said::package(package)));
    let more = match said::unnamed_packages(changes) {
        0 => None,
        more => Some(format!("  and {more} more")),
    };
    std::iter::once(summary)
        .chain(packages)
        .chain(more)
        .collect()
}

fn document(status: &Status) -> String {
    let document = serde_json::json!({
        "schema": SCHEMA,
        "agent": status.agent,
        "id": status.id,
        "state": status.state,
        "reason": status.reason,
        "action": status.action,
        "changes": status.changes,
        "read_at": now().to_string(),
        "log_lines": status.log_lines,
        "log_tail": status.log_tail,
    });
    serde_json::to_string_pretty(&document).expect("JSON can always be written") + "\n"
}

fn write(text: &str) -> Result<(), CommandError> {
    print(text).map_err(CommandError::Output)
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Changes, PackageChange, Text};

    use super::*;
    use crate::testing::{order, status};

    #[test]
    fn the_json_has_the_fields_that_the_manual_names() {
        let mut report = status(order(1), State::Succeeded);
        report.changes = Some(Changes::default());
        let json = serde_json::from_str(&document(&report)).unwrap();
        crate::manual::assert_names("logs", &json);
    }

    #[test]
    fn what_a_dry_activation_would_change_is_said_and_of_no_other() {
        let mut report = status(order(1), State::DryActivated);
        report.changes = Some(Changes {
            packages_changed: 1,
            packages_added: 1,
            size_difference: 1 << 20,
            packages: vec![PackageChange {
                name: Text::lossy("git"),
                from: None,
                to: Some(Text::lossy("2.44")),
            }],
            ..Changes::default()
        });
        assert_eq!(
            would_change(&report),
            [
                "would change: 1 package changed, 1 added, +1.0 MiB",
                "  git 2.44 added",
                "  and 1 more",
            ]
        );
        report.changes = Some(Changes::default());
        assert_eq!(would_change(&report), ["no package would change"]);
        report.state = State::Succeeded;
        assert_eq!(would_change(&report), [""; 0]);
    }
}
