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

#[cfg(test)]
mod tests {
    use hoist_protocol::{AgentName, FleetName, State, Stream, System, Text, Timestamp};
    use tokio::sync::mpsc::Receiver;
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> DeploymentId {
        DeploymentId::new(Uuid::from_u128(n))
    }

    fn line(n: u128) -> LogLine {
        LogLine {
            id: id(n),
            line: 1,
            ts: Timestamp::from_ms(1),
            stream: Stream::Stdout,
            text: Text::lossy("starting"),
        }
    }

    fn status(n: u128, state: State) -> Status {
        let minimal = serde_json::json!({
            "agent": AgentName::new("web-1").unwrap(),
            "fleet": FleetName::new("prod").unwrap(),
            "state": state,
            "ts": 1,
            "id": id(n),
            "agent_version": "1",
            "system": System::new("x86_64-linux").unwrap(),
            "formats": [1],
            "session": "s",
        });
        serde_json::from_value(minimal).unwrap()
    }

    /// The states that a caller was told of, and how many lines.
    fn heard(answers: &mut Receiver<Answer>) -> (Vec<State>, usize) {
        let (mut states, mut lines) = (Vec::new(), 0);
        while let Ok(answer) = answers.try_recv() {
            match answer {
                Answer::Update { status } => states.push(status.state),
                Answer::Log { .. } => lines += 1,
                Answer::Begun { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        (states, lines)
    }

    #[test]
    fn who_follows_hears_of_that_deployment_alone_until_its_end() {
        let mut desk = Desk::default();
        let (reply, mut answers) = Reply::for_tests();
        desk.follow(id(1), reply);
        assert!(desk.is_followed(id(1)) && !desk.is_followed(id(2)));
        desk.reported(&status(2, State::Succeeded));
        desk.reported(&status(1, State::Activating));
        desk.logged(&line(2));
        desk.logged(&line(1));
        desk.reported(&status(1, State::RolledBack));
        assert_eq!(
            heard(&mut answers),
            (vec![State::Activating, State::RolledBack], 1)
        );
        assert!(answers.is_closed(), "nothing more will come");
    }

    #[test]
    fn who_has_hung_up_is_forgotten() {
        let mut desk = Desk::default();
        let (reply, answers) = Reply::for_tests();
        desk.follow(id(1), reply);
        drop(answers);
        desk.reported(&status(2, State::Activating));
        assert!(!desk.is_followed(id(1)));
    }

    #[test]
    fn each_order_is_answered_to_who_gave_it_and_once() {
        let mut desk = Desk::default();
        let (first, mut answers) = Reply::for_tests();
        let (second, _other) = Reply::for_tests();
        let (one, two) = (desk.wait(first), desk.wait(second));
        assert_ne!(one, two);
        assert!(desk.answered(one).unwrap().say(Answer::Done));
        assert!(matches!(answers.try_recv(), Ok(Answer::Done)));
        assert!(desk.answered(one).is_none());
        assert!(desk.answered(two).is_some());
    }
}
