//! `hoist status --watch`: the fleet as it changes; on a terminal a view that is drawn again in place, elsewhere a line
//! for each change.

mod changes;
mod screen;
mod view;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use hoist_certs::program::now;
use hoist_protocol::{AgentName, Channel};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{StatusArgs, has_failed};
use crate::commands::{CommandError, look};
use crate::console::{is_dumb, print, reader_gone, stdout_has_colours, terminal_size, to_stderr};
use crate::drive::Interrupts;
use crate::link::{Event, Filter, Link, Ticket, filters};
use crate::outcome::Exit;
use crate::select::Selection;
use crate::settings::Caller;
use crate::snapshot::{Seen, Snapshot};
use changes::Changes;
use screen::{Key, Screen};
use view::View;

/// The view is drawn again after so long, since ages grow.
const TICK: Duration = Duration::from_secs(1);

/// The view is drawn no more often than that: a fleet that is deployed says thousands of things a second.
const SHORTEST: Duration = Duration::from_millis(100);

/// Most messages that are taken before the view is drawn again.
const BATCH: usize = 4_096;

/// Watches until somebody ends it.
pub(super) async fn run(
    args: &StatusArgs,
    caller: &Caller,
    selection: &Selection,
) -> Result<Exit, CommandError> {
    let mut interrupts = Interrupts::listen().map_err(CommandError::Runtime)?;
    let channels = [Channel::Status, Channel::Presence];
    let named = selection.only_names().unwrap_or_default();
    let begin = async {
        let mut link = Link::open(caller).await?;
        let snapshot = look(&mut link, &caller.fleet, &named, &channels).await?;
        Ok::<_, CommandError>((link, snapshot))
    };
    let (link, snapshot) = tokio::select! {
        begun = begin => begun?,
        () = interrupts.next() => return Ok(Exit::Interrupted),
    };
    let mut watch = Watch {
        args,
        selection,
        filters: filters(&caller.fleet, &named, &channels),
        link,
        snapshot,
        trouble: None,
    };
    let is_terminal = io::stdout().is_terminal() && !is_dumb();
    let exit = if is_terminal && !args.json {
        watch.draw(&mut interrupts).await
    } else {
        watch.tell(&mut interrupts).await
    };
    watch.link.close().await;
    exit
}

struct Watch<'a> {
    args: &'a StatusArgs,
    selection: &'a Selection,
    filters: Vec<Filter>,
    link: Link,
    snapshot: Snapshot,
    /// Why there is no connection at the moment.
    trouble: Option<String>,
}

impl Watch<'_> {
    /// The view, drawn in place.
    async fn draw(&mut self, interrupts: &mut Interrupts) -> Result<Exit, CommandError> {
        let (mut screen, mut keys) = Screen::open().map_err(CommandError::Output)?;
        let mut view = View::new(self.snapshot.fleet().clone(), stdout_has_colours());
        loop {
            let size = terminal_size();
            let (args, selection, at) = (self.args, self.selection, now());
            let is_meant = |agent: &_, seen: &Seen| {
                seen.has_reported()
                    && selection.means(agent, Some(seen), at)
                    && (!args.failed || has_failed(seen))
            };
            let trouble = self.trouble.as_deref();
            let lines = view.lines(&self.snapshot, is_meant, trouble, at, size);
            screen.draw(&lines).map_err(CommandError::Output)?;
            let drawn = Instant::now();
            tokio::select! {
                changed = self.changed() => drop(changed?),
                key = next(&mut keys) => match key {
                    Key::Quit => return Ok(Exit::Ok),
                    Key::Interrupt => return Ok(Exit::Interrupted),
                    Key::Scroll(by) => view.scroll(by),
                    Key::Redraw => {}
                },
                () = sleep_until(drawn + TICK) => {}
                () = interrupts.next() => return Ok(Exit::Interrupted),
            }
            // Keys are answered at once; what machines say may wait for the next picture.
            tokio::select! {
                () = sleep_until(drawn + SHORTEST) => {}
                key = next(&mut keys) => match key {
                    Key::Quit => return Ok(Exit::Ok),
                    Key::Interrupt => return Ok(Exit::Interrupted),
                    Key::Scroll(by) => view.scroll(by),
                    Key::Redraw => {}
                },
                () = interrupts.next() => return Ok(Exit::Interrupted),
            }
        }
    }

    /// A line for each change, where nothing can be drawn.
    async fn tell(&mut self, interrupts: &mut Interrupts) -> Result<Exit, CommandError> {
        let mut changes = Changes::new(self.args.json);
        let mut trouble = None;
        let gone = reader_gone();
        tokio::pin!(gone);
        // Of all machines only those are looked at of which something came.
        let mut heard: BTreeSet<AgentName> = self.snapshot.machines().keys().cloned().collect();
        loop {
            let at = now();
            let mut text = String::new();
            let machines = heard
                .iter()
                .filter_map(|agent| self.snapshot.machines().get_key_value(agent));
            for (agent, seen) in machines {
                let is_meant = self.selection.means(agent, Some(seen), at)
                    && (!self.args.failed || has_failed(seen));
                text += &changes.of(agent, seen, is_meant);
            }
            print(&text).map_err(CommandError::Output)?;
            if self.trouble != trouble {
                trouble.clone_from(&self.trouble);
                to_stderr(
                    trouble
                        .as_deref()
                        .unwrap_or("connected to the broker again"),
                );
            }
            heard = tokio::select! {
                changed = self.changed() => changed?,
                gone = &mut gone => return gone.map(|()| Exit::Ok).map_err(CommandError::Runtime),
                () = interrupts.next() => return Ok(Exit::Interrupted),
            };
        }
    }

    /// Takes what comes, until something has and no more is there: of whom it was.
    async fn changed(&mut self) -> Result<BTreeSet<AgentName>, CommandError> {
        let mut heard = BTreeSet::new();
        let mut next = Some(self.link.next().await?);
        for _ in 0..BATCH {
            let Some(event) = next else {
                break;
            };
            match event {
                Event::Message { topic, payload, .. } => {
                    self.snapshot.saw(&topic, &payload)?;
                    heard.insert(topic.machine.agent);
                }
                Event::Connected => self.link.subscribe(Ticket::Everything, &self.filters),
                Event::Granted(..) => self.trouble = None,
                Event::Disconnected(failure) => {
                    self.trouble = Some(format!("{failure}; connecting again"));
                }
                Event::Acknowledged(_) => {}
            }
            next = self.link.try_next()?;
        }
        Ok(heard)
    }
}

/// The next key; never, where nobody can press one.
async fn next(keys: &mut mpsc::UnboundedReceiver<Key>) -> Key {
    match keys.recv().await {
        Some(key) => key,
        None => std::future::pending().await,
    }
}
