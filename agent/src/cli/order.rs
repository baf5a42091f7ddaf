//! Handing an order to the agent, or to one in this process when none runs, and following what comes of it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use hoist_certs::program::now;
use hoist_protocol::{DeploymentId, State, Status, StorePath, Text, Timestamp};
use tokio::time::{Instant, sleep};

use super::exit::{Exit, exit_of};
use super::show::{Screen, Tone, bytes, duration, one_line, print, remark, words};
use crate::config::Place;
use crate::control::{Answer, Ask, Client, ClientError, Conversation};
use crate::runtime::{self, Alone};
use crate::{control, ledger};

/// How often an agent that is gone is looked for, and what it left looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long nothing may be at work on what was begun before it is left to the next start of the agent.
const PATIENCE: Duration = Duration::from_secs(15);

/// Has `ask` done by the machine's agent; without one, by one of this process's own, for as long as that takes.
///
/// # Errors
/// Nothing was begun.
pub(super) async fn carry_out(place: &Place, ask: Ask, json: bool) -> anyhow::Result<Exit> {
    let client = Client::new(&place.state);
    let work = async |ask: Ask| -> anyhow::Result<Exit> {
        let conversation = client.converse(ask).await?;
        Follower::new(place, json).run(conversation).await
    };
    let work = async {
        match work(ask.clone()).await {
            Err(error) if is_no_agent(&error) => {
                if ledger::is_locked(&place.state)? {
                    bail!(
                        "a hoist-agent runs with the state folder `{}`, but not with the socket `{}`: it just starts \
                         or ends, or could not open it, which its log says then; try again",
                        place.state,
                        control::socket_path(&place.state)
                    );
                }
                let mut alone = Alone::start(place).await?;
                remark("no agent runs: this is done without one");
                tokio::select! {
                    ended = alone.run() => {
                        ended.context("this cannot go on")?;
                        // It was told to end, as this process was.
                        Ok(interrupted())
                    }
                    done = work(ask) => done,
                }
            }
            done => done,
        }
    };
    tokio::select! {
        done = work => done,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            Ok(interrupted())
        }
    }
}

fn interrupted() -> Exit {
    remark("interrupted: what was begun goes on; `hoist-agent status` tells how");
    Exit::Interrupted
}

fn is_no_agent(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::NoAgent { .. }))
}

/// Follows what was begun to its end, also over the death and the rebirth of the agent.
struct Follower<'a> {
    place: &'a Place,
    json: bool,
    screen: Screen,
    began: Timestamp,
    said: String,
}

impl<'a> Follower<'a> {
    fn new(place: &'a Place, json: bool) -> Self {
        Self {
            place,
            json,
            screen: Screen::stderr(),
            began: now(),
            said: String::new(),
        }
    }

    async fn run(mut self, mut conversation: Conversation) -> anyhow::Result<Exit> {
        let id = match conversation.next().await? {
            Some(Answer::Begun { id }) => id,
            Some(Answer::Done) => return Ok(Exit::Ok),
            Some(_) => bail!("the agent answers something else than what was asked"),
            None => bail!(
                "the agent has ended before it answered, so it is not known whether it was begun: see \
                 `hoist-agent status`"
            ),
        };
        loop {
            let ended = match self.listen(&mut conversation).await? {
                Some(ended) => ended,
                None => match self.bridge(id).await? {
                    Bridge::Ended(ended) => ended,
                    Bridge::Back(again) => {
                        conversation = again;
                        continue;
                    }
                },
            };
            return self.ended(&ended);
        }
    }

    /// Until the outcome, or until the agent is gone.
    async fn listen(
        &mut self,
        conversation: &mut Conversation,
    ) -> anyhow::Result<Option<Box<Status>>> {
        loop {
            match conversation.next().await {
                Ok(Some(Answer::Update { status })) if status.state.is_final() => {
                    return Ok(Some(status));
                }
                Ok(Some(Answer::Update { status })) => self.tell(&status),
                Ok(Some(Answer::Log { line })) => {
                    remark(&format!("  | {}", one_line(line.text.as_str())));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(ClientError::Gone { .. } | ClientError::Io { .. }) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The agent is gone: the activator works on, and another agent may come.
    async fn bridge(&mut self, id: DeploymentId) -> anyhow::Result<Bridge> {
        let client = Client::new(&self.place.state);
        let mut idle_since = Instant::now();
        loop {
            match client.converse(Ask::Follow { id }).await {
                Ok(mut again) => {
                    // Otherwise it ends again, or the outcome is in the ledger alone.
                    if let Ok(Some(_)) = again.next().await {
                        return Ok(Bridge::Back(again));
                    }
                }
                Err(
                    ClientError::NoAgent { .. } | ClientError::Gone { .. } | ClientError::Io { .. },
                ) => {}
                Err(error) => return Err(error.into()),
            }
            let preview = runtime::preview(self.place)?;
            if preview.status.id == Some(id) {
                if preview.status.state.is_final() {
                    return Ok(Bridge::Ended(Box::new(preview.status)));
                }
                self.tell(&preview.status);
            }
            if preview.is_at_work {
                idle_since = Instant::now();
            } else if idle_since.elapsed() > PATIENCE {
                bail!(
                    "the agent has ended, and so has the activator of {id}: it is finished when the agent starts \
                     again; `hoist-agent status` tells how"
                );
            }
            sleep(LOOK).await;
        }
    }

    /// Says what is new.
    fn tell(&mut self, status: &Status) {
        let text = progress(status);
        if self.said != text {
            remark(&self.screen.paint(Tone::of(status.state), &text));
            self.said = text;
        }
    }

    fn ended(&self, status: &Status) -> anyhow::Result<Exit> {
        let text = if self.json {
            let value: serde_json::Value = serde_json::from_slice(&status.to_json())?;
            serde_json::to_string_pretty(&value)? + "\n"
        } else {
            let took = duration(now().since(self.began));
            outcome(status, &took, Screen::stdout())
        };
        print(&text)?;
        Ok(exit_of(status.state))
    }
}

enum Bridge {
    Ended(Box<Status>),
    Back(Conversation),
}

/// Where something stands, in a line. Of a fetch only every tenth percent is news.
fn progress(status: &Status) -> String {
    let mut text = words(status.state);
    if let Some(percent) = status.progress {
        text += &format!(" {} %", percent / 10 * 10);
        if let Some(fetch) = &status.fetch {
            text += &format!(" of {}", bytes(fetch.fetch_bytes));
        }
    }
    if !status.message.is_empty() {
        text += &format!(": {}", one_line(status.message.as_str()));
    }
    text
}

/// How it ended, in a few lines.
fn outcome(status: &Status, took: &str, screen: Screen) -> String {
    let path = |path: &Option<StorePath>| path.as_ref().map(StorePath::to_string);
    let mut head = screen.paint(Tone::of(status.state), &words(status.state));
    if let Some(reason) = status.reason {
        head += &format!(" [{reason}]");
    }
    let mut text = format!("{head} after {took}\n");
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            text += &format!("  {name:<10}  {value}\n");
        }
    };
    line("why", Some(one_line(status.message.as_str())));
    if status.path != status.current_path {
        line("closure", path(&status.path));
    }
    line("runs", path(&status.current_path));
    line("ran before", path(&status.previous_path));
    line("deployment", status.id.map(|id| id.to_string()));
    if status.state == State::Staged {
        line("next", Some("the next boot brings it".to_owned()));
    }
    if !status.state.is_good() {
        for printed in &status.log_tail {
            line(
                "log",
                Some(Text::<300>::lossy(&one_line(printed.as_str())).to_string()),
            );
        }
    }
    text
}
