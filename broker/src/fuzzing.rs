//! The broker under any bytes at all, for coverage-guided fuzzing (`fuzz/`) and for the tests that replay what it
//! has found.
//!
//! An input is a client that does as it likes: its role, then steps. Most steps are bytes from the network, cut
//! anywhere; the others are what the rest of the broker does meanwhile. What must hold is asserted.

mod bytes;

use std::sync::Arc;

use hoist_certs::Role;
use hoist_protocol::{AgentName, Channel, FleetName, Machine};

use crate::deploys::{DeployRefusal, Deploys};
use crate::guard::{Access, Peer, Rules};
use crate::inbox::{Event, Ticket, Via};
use crate::message::{Author, Commit, Extras, Message, Qos};
use crate::session::{Admitted, Effect, Ended, Kept, Policy, Session};
use crate::settings::SessionLimits;
use crate::store::{Outcome, Snapshot, Unavailable};

pub use bytes::{certificates, deploys, edge, guard};

/// Steps from here on are not bytes of the network.
const ORDERS: u8 = 0xe0;

/// More than a session ever makes into bytes before these are written: what is waited for, and one large message.
const WRITTEN_LEN: usize = 512 * 1024;

/// Runs one input.
///
/// # Panics
/// When something does not hold that must hold.
pub fn session(input: &[u8]) {
    let Some((role, mut steps)) = input.split_first() else {
        return;
    };
    let mut run = Run::new(*role);
    while let Some((step, rest)) = steps.split_first() {
        steps = rest;
        if *step < ORDERS {
            let len = usize::from(*step % 64) + 1;
            let (bytes, rest) = steps.split_at(len.min(steps.len()));
            steps = rest;
            run.receive(bytes);
        } else {
            run.order(*step);
        }
        run.check();
    }
    run.reconnect();
}

struct Run {
    peer: Arc<Peer>,
    policy: Arc<Policy>,
    session: Session,
    /// What the last connection has left.
    left: Option<Box<Kept>>,
    connections: u64,
    waiting: Vec<Ticket>,
    commits: u64,
}

impl Run {
    fn new(role: u8) -> Self {
        let role =
            [Role::Agent, Role::Publisher, Role::Monitor, Role::Admin][usize::from(role % 4)];
        let peer = Arc::new(Peer {
            name: name("web-1"),
            role,
            fleet: fleet(),
        });
        let policy = Arc::new(Policy {
            rules: Rules::default(),
            deploys: Arc::new(Deploys::unsigned()),
            limits: SessionLimits::default(),
            clock: || 1_000_000,
        });
        Self {
            session: Session::new(Arc::clone(&peer), Arc::clone(&policy), 1),
            peer,
            policy,
            left: None,
            connections: 1,
            waiting: Vec::new(),
            commits: 0,
        }
    }

    fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.session.receive(bytes);
            bytes = &bytes[taken..];
            let effects = self.session.take_effects();
            if taken == 0 && effects.is_empty() {
                // It waits for the store, or has ended.
                break;
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Claim(claim) => {
                let id = &claim.client_id;
                assert!(id == "web-1" || id.starts_with("web-1."), "{id}");
                match self.left.take() {
                    Some(kept) if !claim.clean_start => self.session.resume(kept),
                    _ => self.waiting.clear(),
                }
                self.session.claimed();
            }
            Effect::Publish(admitted, ticket) => {
                let (topic, clears) = match &admitted {
                    Admitted::Store(it) => (&it.topic, it.payload.is_empty()),
                    Admitted::Relay(it) => (&it.topic, false),
                };
                let access = if clears { Access::Clear } else { Access::Write };
                assert!(
                    self.policy.rules.allow(&self.peer, access, topic),
                    "{topic}"
                );
                self.waiting.push(ticket);
            }
            Effect::Subscribe(id, requests) => {
                let granted = requests.iter().filter(|request| request.granted.is_ok());
                let snapshots = granted.map(|_| self.snapshot()).collect();
                self.session.subscribed(id, requests, snapshots);
            }
            Effect::Refresh(channel, _) => self.session.refreshed(channel, self.snapshot()),
            Effect::Refused(_) | Effect::Unwatch(_) | Effect::UnwatchAll => {}
        }
    }

    fn snapshot(&self) -> Snapshot {
        let messages = vec![Arc::new(self.message(0, Channel::Status))];
        let as_of = Commit::new(self.commits);
        Snapshot { messages, as_of }
    }

    fn message(&self, step: u8, channel: Channel) -> Message {
        Message {
            topic: Machine::new(fleet(), name("web-1")).topic(channel),
            payload: Arc::from(vec![step; usize::from(step) * 8]),
            qos: Qos::from_number(step % 3).unwrap_or(Qos::AtMostOnce),
            commit: channel.is_retained().then(|| Commit::new(self.commits)),
            author: Author(u64::from(step % 2)),
            extras: (step % 4 == 1).then(|| {
                Arc::new(Extras {
                    properties: Box::from([1, 1]),
                    expires_at_ms: Some(999_999 + u64::from(step % 8)),
                })
            }),
        }
    }

    fn order(&mut self, step: u8) {
        match step - ORDERS {
            0..=11 => {
                self.commits += 1;
                let channel = Channel::ALL[usize::from(step) % Channel::ALL.len()];
                let via = if step.is_multiple_of(2) {
                    Via::Direct
                } else {
                    Via::Router
                };
                let message = Arc::new(self.message(step, channel));
                self.session.on(Event::Message(message, via));
            }
            12..=17 => self.settle(&Outcome::Retained),
            18 => self.settle(&Outcome::Unavailable(Unavailable::Disk)),
            19 => self.settle(&Outcome::Refused(DeployRefusal::Epoch {
                machine: Machine::new(fleet(), name("web-1")),
                given: 2,
                retained: 1,
            })),
            20 => self
                .session
                .on(Event::Gap(Channel::Status, Commit::new(self.commits / 2))),
            21 => self.reconnect(),
            _ => self.session.output().clear(),
        }
        for effect in self.session.take_effects() {
            self.carry_out(effect);
        }
    }

    fn settle(&mut self, outcome: &Outcome) {
        for ticket in std::mem::take(&mut self.waiting) {
            self.session.on(Event::Settled(ticket, outcome.clone()));
        }
    }

    /// The connection is lost, and the next one goes on with what is left.
    fn reconnect(&mut self) {
        self.connections += 1;
        let next = Session::new(
            Arc::clone(&self.peer),
            Arc::clone(&self.policy),
            self.connections,
        );
        let mut before = std::mem::replace(&mut self.session, next);
        before.end(Ended::Lost(String::new()));
        before.say_goodbye();
        let remains = before.into_remains();
        if let Some(will) = remains.will {
            let (Admitted::Store(_) | Admitted::Relay(_)) = will.publication(1_000_000);
        }
        if remains.outlives {
            let mut kept = remains.kept;
            let message = Arc::new(self.message(7, Channel::Status));
            let told = kept.on(Event::Message(message, Via::Direct));
            assert!(told.is_none(), "only a gap has to be read");
            self.left = Some(kept);
        }
    }

    fn check(&mut self) {
        if self.session.ended().is_some() {
            assert!(
                !self.session.wants_input(),
                "nothing is taken after the end"
            );
        }
        assert!(
            self.session.output().len() < WRITTEN_LEN,
            "what is written at once is bounded"
        );
    }
}

fn name(text: &str) -> AgentName {
    AgentName::new(text).expect("a name")
}

fn fleet() -> FleetName {
    FleetName::new("prod").expect("a name")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// A client that does everything once, of either version.
    fn seeds() -> Vec<Vec<u8>> {
        let step = |bytes: &[u8]| {
            let len = u8::try_from(bytes.len() - 1).unwrap();
            [&[len][..], bytes].concat()
        };
        let connects = [
            &b"\x10\x11\0\x04MQTT\x04\0\0\x3c\0\x05web-1"[..],
            b"\x10\x17\0\x04MQTT\x05\0\0\x3c\x05\x11\xff\xff\xff\xff\0\x05web-1",
        ];
        let deploy = b"hoist/v1/prod/web-1/deploy";
        let log = b"hoist/v1/prod/web-1/log";
        let all = |v5: usize| {
            let none = &[0][..v5];
            let len = |len: usize| u8::try_from(len + v5).unwrap();
            let publish = [
                &[0x34, len(2 + 23 + 2 + 1), 0, 23][..],
                log,
                &[0, 1],
                none,
                b"x",
            ]
            .concat();
            let subscribe = [
                &[0x82, len(2 + 2 + 26 + 1), 0, 1][..],
                none,
                &[0, 26],
                deploy,
                &[2],
            ]
            .concat();
            let packets = [
                step(connects[v5]),
                step(&subscribe),
                vec![0xe0, 0xe6, 0xff],
                step(&[0x50, 2, 0, 1]),
                step(&publish),
                vec![0xec, 0xf5],
                step(connects[v5]),
                step(&publish),
                step(&[0x62, 2, 0, 1]),
                step(&[0xc0, 0]),
                step(&[0xe0, 0]),
            ];
            [&[0][..], &packets.concat()].concat()
        };
        vec![all(0), all(1)]
    }

    #[test]
    fn what_a_good_client_does_is_taken() {
        for seed in seeds() {
            super::session(&seed);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn no_change_of_a_good_client_breaks_what_must_hold(
            seed in prop::sample::select(seeds()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            tail in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut input = seed;
            for (at, byte) in changes {
                let at = at.index(input.len());
                input[at] = byte;
            }
            input.truncate(cut.index(input.len()) + 1);
            input.extend(tail);
            super::session(&input);
        }
    }
}
