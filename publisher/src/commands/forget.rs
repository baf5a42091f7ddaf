//! `hoist forget`: clears all that the broker retains about a machine that is no more.
//!
//! What is cleared is looked at once more afterwards: an acknowledgement is no proof.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use clap::Args;
use hoist_certs::Role;
use hoist_protocol::{AgentName, Channel, FleetName, Machine, Presence, Text, TextError};
use tokio::time::{Instant, timeout_at};

use super::asking::{agrees, somebody_is_there};
use super::{CommandError, look, unknown_machine};
use crate::console::{print, to_stderr};
use crate::drive::Interrupts;
use crate::link::{Event, Link};
use crate::outcome::Exit;
use crate::report::{SCHEMA, document};
use crate::settings::{Caller, Flags, Settings, process_environment};
use crate::snapshot::Seen;

pub(crate) const FORGET_EXAMPLES: &str = "\
Examples:
  hoist forget laptop                       asks, then clears all its topics
  hoist forget laptop --yes                 asks nobody
  hoist forget web-9 --yes --force 'its disk is gone, and another machine has its name'

It takes an admin's certificate: `hoist-certs issue admin NAME`. The machine's own certificate works until it is revoked
with `hoist-certs revoke NAME`; until then it may connect, report itself, and be there again.";

/// What is retained about a machine.
const CHANNELS: [Channel; 4] = [
    Channel::Deploy,
    Channel::Status,
    Channel::History,
    Channel::Presence,
];

/// How long the broker may take to acknowledge what is cleared.
const PATIENCE: Duration = Duration::from_secs(30);

/// `hoist forget`
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The machine
    pub agent: AgentName,
    /// Ask nobody whether that is meant
    #[arg(short, long)]
    pub yes: bool,
    /// Forget it though it is online, for this reason, which stands in the result. It reports itself again within
    /// minutes; a deployment that waits for it is lost
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub force: Option<Text<256>>,
    /// Write JSON: {"schema": 1, "command": "forget", "fleet", "agent", "was_online", "reason", "cleared": [channels],
    /// "left": [channels that hold something again]}
    #[arg(long)]
    pub json: bool,
}

fn reason(text: &str) -> Result<Text<256>, TextError> {
    Text::new(text.trim())
}

/// Why a machine was not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// It is connected.
    #[error(
        "`{0}` is online, so it would report itself again; stop its agent or revoke its certificate first \
         (`hoist-certs revoke {0}`), or give --force and a reason"
    )]
    Online(AgentName),
    /// Nobody can be asked.
    #[error("there is no terminal to ask whether `{0}` is to be forgotten; --yes says so")]
    NobodyToAsk(AgentName),
    /// Somebody was asked.
    #[error("nothing was cleared")]
    Declined,
    /// The answer cannot be read.
    #[error("cannot read the answer")]
    Answer(#[source] io::Error),
    /// The broker does not take it.
    #[error(
        "the broker did not acknowledge within {seconds} s that the {channel} of the machine is cleared; the certificate's role \
         may not do that, or the broker is stuck; its log says which",
        seconds = PATIENCE.as_secs()
    )]
    NotCleared {
        /// Which topic of the machine.
        channel: Channel,
    },
}

impl ForgetError {
    pub(super) const fn exit(&self) -> Exit {
        match self {
            Self::NobodyToAsk(_) => Exit::Usage,
            Self::Online(_) | Self::Declined | Self::Answer(_) | Self::NotCleared { .. } => {
                Exit::Error
            }
        }
    }
}

/// What was done.
struct Forgotten {
    was_online: bool,
    cleared: Vec<Channel>,
    /// What holds something again.
    left: Vec<Channel>,
}

/// Runs the command: [`Exit::Error`] when something is there again afterwards.
///
/// # Errors
/// [`CommandError`]
pub async fn run(args: &ForgetArgs, flags: Flags) -> Result<Exit, CommandError> {
    let caller =
        Settings::load(flags, &process_environment)?.caller("forget machines", &[Role::Admin])?;
    if !args.yes && !somebody_is_there() {
        return Err(ForgetError::NobodyToAsk(args.agent.clone()).into());
    }
    let mut interrupts = Interrupts::listen().map_err(CommandError::Runtime)?;
    let forgotten = tokio::select! {
        forgotten = forget(args, &caller) => forgotten?,
        () = interrupts.next() => return Ok(Exit::Interrupted),
    };
    let text = if args.json {
        json(args, &caller.fleet, &forgotten)
    } else {
        text(&args.agent, &forgotten)
    };
    print(&text).map_err(CommandError::Output)?;
    Ok(match forgotten.left.is_empty() {
        true => Exit::Ok,
        false => Exit::Error,
    })
}

async fn forget(args: &ForgetArgs, caller: &Caller) -> Result<Forgotten, CommandError> {
    let agents = std::slice::from_ref(&args.agent);
    let mut link = Link::open(caller).await?;
    let snapshot = look(&mut link, &caller.fleet, agents, &CHANNELS).await?;
    let Some(seen) = snapshot.machine(&args.agent).filter(|seen| holds_any(seen)) else {
        return Err(unknown_machine(&mut link, &caller.fleet, &args.agent).await);
    };
    let mut was_online = is_online(args, seen)?;
    if !args.yes {
        link.close().await;
        let question = question(&args.agent, seen);
        if !agrees(&question).await.map_err(ForgetError::Answer)? {
            return Err(ForgetError::Declined.into());
        }
        // Somebody may have thought about it for long, and the machine have come back meanwhile.
        link = Link::open(caller).await?;
        let now = look(&mut link, &caller.fleet, agents, &[Channel::Presence]).await?;
        was_online = (now.machine(&args.agent)).map_or(Ok(false), |seen| is_online(args, seen))?;
    }
    // Presence last: it is what a machine that is online writes first.
    let machine = Machine::new(caller.fleet.clone(), args.agent.clone());
    clear(&mut link, &machine).await?;
    let after = look(&mut link, &caller.fleet, agents, &CHANNELS).await?;
    let left = after.machine(&args.agent).map(held).unwrap_or_default();
    link.close().await;
    Ok(Forgotten {
        was_online,
        cleared: held(seen),
        left,
    })
}

/// Whether it is connected, where that is no obstacle.
fn is_online(args: &ForgetArgs, seen: &Seen) -> Result<bool, ForgetError> {
    let is_online = seen.presence == Some(Presence::Online);
    if is_online && args.force.is_none() {
        return Err(ForgetError::Online(args.agent.clone()));
    }
    Ok(is_online)
}

/// The channels on which something is retained.
fn held(seen: &Seen) -> Vec<Channel> {
    let is_unreadable = |channel| {
        seen.unreadable
            .as_ref()
            .is_some_and(|(found, _)| *found == channel)
    };
    let holds = |channel: &Channel| match channel {
        Channel::Deploy => seen.deploy.is_some(),
        Channel::Status => seen.status.is_some() || is_unreadable(Channel::Status),
        Channel::Presence => seen.presence.is_some(),
        Channel::History => seen.history.is_some() || is_unreadable(Channel::History),
        Channel::Log | Channel::Echo => false,
    };
    CHANNELS.into_iter().filter(holds).collect()
}

fn holds_any(seen: &Seen) -> bool {
    !held(seen).is_empty()
}

fn question(agent: &AgentName, seen: &Seen) -> String {
    let mut question = format!("The broker retains of `{agent}`: {}.\n", names(&held(seen)));
    if seen.deploy.is_some() {
        question += "A deployment that waits for it is among that.\n";
    }
    question + "Forget it?"
}

/// Clears every channel, again on each new connection, until the broker has acknowledged all.
async fn clear(link: &mut Link, machine: &Machine) -> Result<(), CommandError> {
    let until = Instant::now() + PATIENCE;
    let mut open: BTreeSet<usize> = (0..CHANNELS.len()).collect();
    let publish = |link: &mut Link, open: &BTreeSet<usize>| {
        for number in open {
            link.publish(*number, &machine.topic(CHANNELS[*number]), Vec::new());
        }
    };
    publish(link, &open);
    while let Some(first) = open.first() {
        let Ok(event) = timeout_at(until, link.next()).await else {
            let channel = CHANNELS[*first];
            return Err(ForgetError::NotCleared { channel }.into());
        };
        match event? {
            Event::Acknowledged(number) => {
                open.remove(&number);
            }
            Event::Connected => publish(link, &open),
            Event::Disconnected(failure) => {
                to_stderr(&format!("{failure}; connecting again"));
            }
            Event::Granted(..) | Event::Message { .. } => {}
        }
    }
    Ok(())
}

fn names(channels: &[Channel]) -> String {
    let names: Vec<String> = channels.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn text(agent: &AgentName, forgotten: &Forgotten) -> String {
    let mut text = format!("{agent}: cleared {}\n", names(&forgotten.cleared));
    if !forgotten.left.is_empty() {
        text += &format!(
            "{agent}: {} {} there again: somebody writes it, the machine itself perhaps; `hoist-certs revoke {agent}` \
             ends that\n",
            names(&forgotten.left),
            if forgotten.left.len() == 1 {
                "is"
            } else {
                "are"
            }
        );
    }
    text
}

fn json(args: &ForgetArgs, fleet: &FleetName, forgotten: &Forgotten) -> String {
    let names = |channels: &[Channel]| -> Vec<String> {
        channels.iter().map(ToString::to_string).collect()
    };
    document(&serde_json::json!({
        "schema": SCHEMA,
        "command": "forget",
        "fleet": fleet,
        "agent": args.agent,
        "was_online": forgotten.was_online,
        "reason": args.force,
        "cleared": names(&forgotten.cleared),
        "left": names(&forgotten.left),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    fn forgotten(left: &[Channel]) -> Forgotten {
        Forgotten {
            was_online: false,
            cleared: vec![Channel::Deploy, Channel::Status],
            left: left.to_vec(),
        }
    }

    #[test]
    fn what_is_there_again_is_said_with_what_to_do() {
        let agent = machine("web-1").agent;
        assert_eq!(
            text(&agent, &forgotten(&[])),
            "web-1: cleared deploy, status\n"
        );
        let again = text(&agent, &forgotten(&[Channel::Presence]));
        assert!(again.contains("presence is there again"), "{again}");
        assert!(again.contains("`hoist-certs revoke web-1`"), "{again}");
    }

    #[test]
    fn what_waits_for_the_machine_is_named_before_it_is_lost() {
        let seen = Seen {
            deploy: Some(vec![1]),
            presence: Some(Presence::Offline),
            ..Seen::default()
        };
        let asked = question(&machine("web-1").agent, &seen);
        assert_eq!(
            asked,
            "The broker retains of `web-1`: deploy, presence.\nA deployment that waits for it is among that.\n\
             Forget it?"
        );
    }

    #[test]
    fn the_json_has_the_fields_that_the_manual_names() {
        let machine = machine("web-1");
        let args = ForgetArgs {
            agent: machine.agent,
            yes: true,
            force: None,
            json: true,
        };
        let json = json(&args, &machine.fleet, &forgotten(&[]));
        crate::manual::assert_names("forget", &serde_json::from_str(&json).unwrap());
    }
}
