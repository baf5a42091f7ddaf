//! Trying one cell after the other.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use hoist_certs::Role;
use hoist_protocol::{Channel, fleet_filter};
use rumqttc::{LastWill, QoS};
use tokio::task::JoinSet;

use super::stage::{Stage, machine};
use super::{Action, Cell, Decision, Decisions, ROLES, Whose};
use crate::engines::session::{Answer, Message, Session};

impl Stage {
    /// Tries every cell, and says what was decided. What is `expected` to be done is waited for; of all else it is
    /// made sure that it could have come.
    ///
    /// # Errors
    /// When somebody may not do what they need to, or something that was not allowed arrived later on.
    pub async fn try_all(self, expected: &Decisions) -> Result<Decisions> {
        let stage = Arc::new(self);
        let mut roles = JoinSet::new();
        for role in ROLES {
            let stage = Arc::clone(&stage);
            let cells = expected.iter().copied().enumerate();
            let cells: Vec<_> = cells.filter(|(_, (cell, _))| cell.role == role).collect();
            roles.spawn(async move {
                let mut seen = Vec::new();
                for (number, (cell, expected)) in cells {
                    let attempt = Attempt {
                        stage: &stage,
                        number,
                        cell,
                        expected,
                    };
                    let decision = attempt.decide().await;
                    seen.push((number, cell, decision.with_context(|| cell.to_string())?));
                }
                Ok::<_, anyhow::Error>(seen)
            });
        }
        let mut seen = Vec::new();
        while let Some(of_role) = roles.join_next().await {
            seen.extend(of_role??);
        }
        seen.sort_by_key(|(number, ..)| *number);
        for (number, cell, decision) in &seen {
            let payload = payload_of(*number);
            let arrived = |session: &Session| session.has(0, |message| message.payload == payload);
            ensure!(
                *decision == Decision::Allowed || !stage.witnesses().any(arrived),
                "{cell} was not allowed, and arrived all the same"
            );
        }
        Ok(seen
            .into_iter()
            .map(|(_, cell, decision)| (cell, decision))
            .collect())
    }
}

/// What is published in the cell with this number, where the channel takes any text.
fn payload_of(number: usize) -> String {
    format!("cell {number}")
}

/// One cell.
struct Attempt<'a> {
    stage: &'a Stage,
    number: usize,
    cell: Cell,
    expected: Decision,
}

impl Attempt<'_> {
    async fn decide(&self) -> Result<Decision> {
        match (self.cell.action, self.cell.channel) {
            (Action::Connect, _) => self.connect().await,
            (Action::Will, Some(channel)) => self.will(channel).await,
            (Action::Subscribe | Action::Wildcard, Some(channel)) => self.subscribe(channel).await,
            (Action::Publish | Action::Retain | Action::Clear, Some(channel)) => {
                self.publish(channel).await
            }
            (_, None) => anyhow::bail!("a cell without a channel"),
        }
    }

    /// A client id of whoever tries.
    fn id(&self) -> String {
        match self.cell.role {
            Role::Agent => "own-agent".to_owned(),
            role => format!("own-{role}.c{}", self.number),
        }
    }

    fn topic(&self, channel: Channel) -> Result<String> {
        Ok(machine(self.cell.role, self.cell.whose)?
            .topic(channel)
            .to_string())
    }

    /// Whether the machine is the one of whoever tries.
    fn is_own(&self) -> bool {
        self.cell.role == Role::Agent && self.cell.whose == Whose::Own
    }

    fn payload(&self, channel: Channel) -> String {
        match (self.cell.action, channel) {
            (Action::Clear, _) => String::new(),
            (Action::Will, Channel::Presence) => "offline".to_owned(),
            (_, Channel::Presence) => "online".to_owned(),
            _ => payload_of(self.number),
        }
    }

    /// Who may write on the topic: `own` when it is who tries.
    fn writer<'s>(&'s self, own: &'s Session, channel: Channel) -> Result<&'s Session> {
        match channel {
            Channel::Deploy => self.stage.publisher(&self.cell),
            _ if self.is_own() => Ok(own),
            _ => self.stage.bystander(&self.cell),
        }
    }

    /// Who sees what comes on the topic: `own` when it is who tries.
    fn witness<'s>(&'s self, own: &'s Session, channel: Channel) -> Result<&'s Session> {
        match channel {
            Channel::Echo if self.is_own() => Ok(own),
            Channel::Echo => self.stage.bystander(&self.cell),
            _ => self.stage.watcher(&self.cell),
        }
    }

    async fn connect(&self) -> Result<Decision> {
        let Cell { role, whose, .. } = self.cell;
        let id = match whose {
            Whose::Own => self.id(),
            Whose::Other | Whose::Foreign => machine(role, whose)?.agent.to_string(),
        };
        let Some(_session) = self.stage.knock(role, &id, None).await? else {
            return Ok(Decision::Refused);
        };
        if whose == Whose::Own {
            return Ok(Decision::Allowed);
        }
        // It matters only to whom the id belongs.
        let victim = self.stage.bystander(&self.cell)?;
        let topic = self.topic(Channel::Echo)?;
        match self.stage.fence_agent(victim, &topic).await {
            Ok(()) => Ok(Decision::Silent),
            Err(_) if victim.is_over() => Ok(Decision::Allowed),
            Err(error) => Err(error),
        }
    }

    async fn publish(&self, channel: Channel) -> Result<Decision> {
        let topic = self.topic(channel)?;
        let own = self.stage.enter(self.cell.role, &self.id()).await?;
        if self.is_own() && channel == Channel::Echo {
            let granted = own.subscribe(std::slice::from_ref(&topic)).await?;
            ensure!(granted, "an agent may not read its own echo");
        }
        let witness = self.witness(&own, channel)?;
        if self.cell.action == Action::Clear {
            self.retain_something(&own, witness, channel, &topic)
                .await?;
        }
        let payload = self.payload(channel);
        let retain = self.cell.action != Action::Publish;
        let mark = witness.mark();
        match own.publish(&topic, &payload, retain).await? {
            Answer::Closed => Ok(Decision::Refused),
            Answer::Acknowledged => {
                self.whether_it_came(witness, mark, channel, &topic, &payload)
                    .await
            }
        }
    }

    /// Puts something there that can be cleared.
    async fn retain_something(
        &self,
        own: &Session,
        witness: &Session,
        channel: Channel,
        topic: &str,
    ) -> Result<()> {
        let payload = match channel {
            Channel::Presence => "online".to_owned(),
            _ => format!("before {}", self.number),
        };
        let mark = witness.mark();
        let answer = self
            .writer(own, channel)?
            .publish(topic, &payload, true)
            .await?;
        ensure!(
            answer == Answer::Acknowledged,
            "{topic} is closed to who may write there"
        );
        let is_it = |message: &Message| message.topic == topic && message.payload == payload;
        witness.wait("what is to be cleared", mark, is_it).await
    }

    async fn will(&self, channel: Channel) -> Result<Decision> {
        let Cell { role, whose, .. } = self.cell;
        let (topic, payload) = (self.topic(channel)?, self.payload(channel));
        let will = LastWill::new(
            &topic,
            payload.clone(),
            QoS::AtLeastOnce,
            channel.is_retained(),
        );
        let Some(session) = self.stage.knock(role, &self.id(), Some(will)).await? else {
            return Ok(Decision::Refused);
        };
        let witness = match channel {
            Channel::Echo => self.stage.bystander(&self.cell)?,
            _ => self.stage.watcher(&self.cell)?,
        };
        let mark = witness.mark();
        drop(session);
        let is_it = |message: &Message| message.topic == topic && message.payload == payload;
        if self.expected == Decision::Allowed {
            witness.wait("the last will", mark, is_it).await?;
            return Ok(Decision::Allowed);
        }
        // Whoever comes in the place of a connection comes after its will.
        let _successor = self.stage.enter(role, &self.id()).await?;
        self.fence(witness, channel, &topic, whose).await?;
        Ok(came(witness.has(mark, is_it)))
    }

    async fn subscribe(&self, channel: Channel) -> Result<Decision> {
        let topic = self.topic(channel)?;
        let own = self.stage.enter(self.cell.role, &self.id()).await?;
        let is_agent = self.cell.role == Role::Agent;
        let echo = machine(self.cell.role, Whose::Own)?
            .topic(Channel::Echo)
            .to_string();
        let fence = match is_agent {
            true => echo.clone(),
            false => Self::fence_filter()?,
        };
        ensure!(
            own.subscribe(&[fence]).await?,
            "{} may not read the fence",
            self.cell.role
        );
        let mark = own.mark();
        if !own.subscribe(&[self.filter(channel)?]).await? {
            return Ok(Decision::Refused);
        }
        let payload = match channel {
            Channel::Presence => "online".to_owned(),
            _ => format!("read {}", self.number),
        };
        let writer = self.writer(&own, channel)?;
        let answer = writer
            .publish(&topic, &payload, channel.is_retained())
            .await?;
        ensure!(
            answer == Answer::Acknowledged,
            "{topic} is closed to who may write there"
        );
        let is_it = |message: &Message| message.topic == topic;
        if self.expected == Decision::Allowed {
            own.wait("what was subscribed to", mark, is_it).await?;
            return Ok(Decision::Allowed);
        }
        match is_agent {
            true => self.stage.fence_agent(&own, &echo).await?,
            false => self.stage.fence_reader(&own).await?,
        }
        Ok(came(own.has(mark, is_it)))
    }

    fn fence_filter() -> Result<String> {
        Stage::fence_filter()
    }

    /// The filter of the cell: the topic, all of the machine's, or all of a fleet's on this channel.
    fn filter(&self, channel: Channel) -> Result<String> {
        let machine = machine(self.cell.role, self.cell.whose)?;
        Ok(match (self.cell.action, self.cell.whose) {
            (Action::Wildcard, Whose::Own) => {
                format!(
                    "{}/{}/{}/+",
                    hoist_protocol::ROOT,
                    machine.fleet,
                    machine.agent
                )
            }
            (Action::Wildcard, _) => fleet_filter(&machine.fleet, channel),
            _ => machine.topic(channel).to_string(),
        })
    }

    /// Whether something that was acknowledged has come to its witness.
    async fn whether_it_came(
        &self,
        witness: &Session,
        mark: usize,
        channel: Channel,
        topic: &str,
        payload: &str,
    ) -> Result<Decision> {
        let is_it = |message: &Message| message.topic == topic && message.payload == payload;
        if self.expected == Decision::Allowed {
            witness.wait("what was published", mark, is_it).await?;
            return Ok(Decision::Allowed);
        }
        self.fence(witness, channel, topic, self.cell.whose).await?;
        Ok(came(witness.has(mark, is_it)))
    }

    async fn fence(
        &self,
        witness: &Session,
        channel: Channel,
        topic: &str,
        whose: Whose,
    ) -> Result<()> {
        match channel {
            Channel::Echo => self.stage.fence_agent(witness, topic).await,
            _ => {
                let fleet = machine(self.cell.role, whose)?.fleet;
                self.stage.fence_watcher(&fleet).await
            }
        }
    }
}

const fn came(has: bool) -> Decision {
    match has {
        true => Decision::Allowed,
        false => Decision::Silent,
    }
}
