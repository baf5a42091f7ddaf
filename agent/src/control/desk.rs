//! Who waits for what: orders that the core has not answered yet, and callers that follow a deployment.

use std::collections::HashMap;

use hoist_protocol::{DeploymentId, LogLine, Status};

use super::protocol::Answer;
use super::server::Reply;

/// The callers of a running agent.
#[derive(Debug, Default)]
pub struct Desk {
    last: u64,
    /// Those whose order was handed to the core, by its number.
    waiting: HashMap<u64, Reply>,
    following: Vec<(DeploymentId, Reply)>,
}

impl Desk {
    /// Notes who waits for the answer to an order; gives the order's number.
    pub fn wait(&mut self, reply: Reply) -> u64 {
        self.waiting.retain(|_, reply| !reply.is_closed());
        self.last += 1;
        self.waiting.insert(self.last, reply);
        self.last
    }

    /// Who waits for the answer to this order.
    pub fn answered(&mut self, request: u64) -> Option<Reply> {
        self.waiting.remove(&request)
    }

    /// Tells a caller from now on how it goes with `id`, and that now `status` is how.
    pub fn follow(&mut self, id: DeploymentId, reply: Reply) {
        if reply.say(Answer::Begun { id }) {
            self.following.push((id, reply));
        }
    }

    /// Something was reported: those that follow it hear of it, for the last time when it has ended.
    pub fn reported(&mut self, status: &Status) {
        self.following.retain(|(id, reply)| {
            if status.id != Some(*id) {
                return !reply.is_closed();
            }
            let status = Box::new(status.clone());
            let goes_on = !status.state.is_final();
            reply.say(Answer::Update { status }) && goes_on
        });
    }

    /// Something was printed on the way.
    pub fn logged(&mut self, line: &LogLine) {
        self.following.retain(|(id, reply)| {
            let line = line.clone();
            line.id != *id || reply.say(Answer::Log { line })
        });
    }

    /// Whether somebody wants to know what is printed.
    #[must_use]
    pub fn is_followed(&self, id: DeploymentId) -> bool {
        self.following.iter().any(|(followed, _)| *followed == id)
    }
}
