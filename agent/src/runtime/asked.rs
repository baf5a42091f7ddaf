//! What somebody at the machine asks for over the control socket.

use hoist_agent_core::{Input, LocalDone, LocalOrder, LocalWhat};
use hoist_protocol::{DeploymentId, Status, Text};
use uuid::Uuid;

use super::Shell;
use crate::control::{Answer, Ask, Asked, Reply};
use crate::error::Error;

impl Shell {
    /// Takes a request; what the core has to decide is answered when it has.
    pub(super) async fn on_asked(&mut self, asked: Asked) -> Result<(), Error> {
        let Asked { ask, reply } = asked;
        let what = match ask {
            Ask::Status => {
                self.tell_status(&reply);
                return Ok(());
            }
            Ask::Follow { id } => {
                self.follow(id, reply);
                return Ok(());
            }
            Ask::Hold { until, reason } => LocalWhat::Hold { until, reason },
            Ask::Release => LocalWhat::Release,
            Ask::Rollback { to } => LocalWhat::Rollback(to),
            Ask::Activate { target } => LocalWhat::Activate(target),
        };
        tracing::info!(?what, "ordered at the machine");
        let order = LocalOrder {
            request: self.desk.wait(reply),
            id: DeploymentId::new(Uuid::now_v7()),
            what,
        };
        self.handle(Input::Local(order)).await
    }

    fn tell_status(&self, reply: &Reply) {
        let status = Box::new(self.agent.status(&self.moment()));
        let connection = self.broker.connection();
        if !reply.say(Answer::Status { status, connection }) {
            tracing::debug!("who asked for the status is gone");
        }
    }

    /// Tells how it goes on with something that is under way.
    fn follow(&mut self, id: DeploymentId, reply: Reply) {
        let status = self.agent.status(&self.moment());
        if status.id != Some(id) {
            let known = self.agent.ledger().has_ended(id);
            let message = if known {
                format!("{id} has ended; see `hoist-agent history`")
            } else {
                format!("{id} is not under way")
            };
            if !reply.refuse(&message) {
                tracing::debug!(%id, "who asked to follow is gone");
            }
            return;
        }
        self.desk.follow(id, reply);
        self.desk.reported(&status);
    }

    /// What the core has answered.
    pub(super) fn answer(&mut self, request: u64, result: Result<LocalDone, Text<1024>>) {
        let Some(reply) = self.desk.answered(request) else {
            tracing::debug!(request, "who asked is gone");
            return;
        };
        let is_there = match result {
            Ok(LocalDone::Held | LocalDone::Released) => reply.say(Answer::Done),
            Ok(LocalDone::Begun { id, path }) => {
                tracing::info!(%id, %path, "begins what was ordered at the machine");
                self.desk.follow(id, reply);
                true
            }
            Err(message) => {
                tracing::info!(%message, "refused what was ordered at the machine");
                reply.say(Answer::Refused { message })
            }
        };
        if !is_there {
            tracing::debug!(request, "who asked is gone");
        }
    }

    /// A status was reported: whoever follows the deployment hears of it.
    pub(super) fn tell_followers(&mut self, status: &Status) {
        self.desk.reported(status);
    }
}
