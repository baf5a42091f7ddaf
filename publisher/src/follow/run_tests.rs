use hoist_protocol::{Goal, KnownOrders, Machine, Order, Provenance, RollbackTo, Target, Text};

use super::*;
use crate::follow::{ATTEMPTS, NEWER_GRACE};
use crate::plan::{Orders, Wish};
use crate::signer::Signer;
use crate::testing::{block_on, id, key, machine, status};

const NOW: Duration = Duration::from_secs(1);
const WALL: Timestamp = Timestamp::from_ms(1_000_000);

fn signed_by(key_name: &str, machine: Machine, ms: u64, n: u128) -> Signed {
    let orders = Orders {
        signers: &[Signer::Key(key(key_name))],
        provenance: &Provenance::default(),
        valid_for: Duration::from_secs(3600),
        raise_epoch: false,
        now: Timestamp::from_ms(ms),
    };
    let target = Target::new(Goal::Rollback(RollbackTo::Deployment(id(1))));
    let wish = Wish::of(target);
    block_on(orders.sign(machine, wish, KnownOrders::default(), id(n))).unwrap()
}

fn deployments(agents: &[&str]) -> Vec<Signed> {
    agents
        .iter()
        .enumerate()
        .map(|(n, agent)| signed_by("ci", machine(agent), 1_000_000, n as u128 + 100))
        .collect()
}

fn trusted() -> TrustedKeys {
    TrustedKeys::new(vec![key("ci").public(), key("other").public()]).unwrap()
}

fn run(agents: &[&str], wait: Option<Wait>) -> Run {
    Run::new(deployments(agents), trusted(), wait)
}

fn topic(agent: &str, channel: Channel) -> Topic {
    machine(agent).topic(channel)
}

impl Run {
    fn publish_all(&mut self) -> Vec<usize> {
        self.actions(NOW)
            .into_iter()
            .map(|action| match action {
                Action::Publish(n) => n,
                Action::ReadBack(_) => panic!("read back before all was acknowledged"),
            })
            .collect()
    }

    fn stand(&mut self, agent: &str) {
        let number = self.numbers[&machine(agent).agent];
        let envelope = self.deployment(number).envelope.clone();
        self.saw(&topic(agent, Channel::Deploy), &envelope, true, NOW);
    }

    fn publish_and_read_back(&mut self) {
        for number in self.publish_all() {
            self.acknowledged(number);
        }
        let [Action::ReadBack(agents)] = &self.actions(NOW)[..] else {
            panic!("nothing is read back");
        };
        self.granted(NOW);
        for agent in agents {
            self.stand(agent.as_str());
        }
    }

    fn outcomes(&self, now: Duration) -> Vec<Outcome> {
        self.ends(now, WALL)
            .map(|(_, end, _)| end.outcome)
            .collect()
    }

    fn reports(&mut self, agent: &str, order: Order, state: State) {
        let mut status = status(order, state);
        status.agent = machine(agent).agent;
        self.saw(
            &topic(agent, Channel::Status),
            &status.to_json(),
            false,
            NOW,
        );
    }
}

#[test]
fn a_run_that_does_not_wait_is_over_once_everything_is_read_back() {
    let mut run = run(&["web-1", "web-2"], None);
    assert_eq!(run.publish_all(), [0, 1]);
    assert_eq!(run.actions(NOW), []);
    run.acknowledged(0);
    run.acknowledged(1);
    let read_back = run.actions(NOW);
    assert!(matches!(&read_back[..], [Action::ReadBack(agents)] if agents.len() == 2));
    run.granted(NOW);
    run.stand("web-1");
    assert!(!run.is_over(NOW, WALL));
    run.stand("web-2");
    assert!(run.is_over(NOW, WALL));
    assert_eq!(run.outcomes(NOW), [Outcome::Published; 2]);
    let published = Phase::Ended(Outcome::Published);
    assert!(
        run.outlook(NOW, WALL)
            .all(|outlook| outlook.phase == published)
    );
}

#[test]
fn a_run_that_waits_is_over_when_every_machine_has_ended() {
    let mut run = run(&["web-1", "web-2"], Some(Wait::Online));
    run.publish_and_read_back();
    for agent in ["web-1", "web-2"] {
        run.saw(&topic(agent, Channel::Presence), b"online", true, NOW);
    }
    let orders: Vec<Order> = (0..2).map(|n| run.deployment(n).order).collect();
    run.reports("web-1", orders[0], State::Succeeded);
    assert!(!run.is_over(NOW, WALL));
    run.reports("web-2", orders[1], State::RolledBack);
    assert!(run.is_over(NOW, WALL));
    assert_eq!(run.outcomes(NOW), [Outcome::Succeeded, Outcome::RolledBack]);
}

#[test]
fn a_broker_that_acknowledges_and_drops_is_found_out() {
    let mut run = run(&["web-1"], Some(Wait::Online));
    let mut now = NOW;
    let mut published = 0;
    while !run.is_over(now, WALL) {
        for action in run.actions(now) {
            match action {
                Action::Publish(number) => {
                    published += 1;
                    run.acknowledged(number);
                }
                Action::ReadBack(_) => run.granted(now),
            }
        }
        now += Duration::from_secs(1);
        assert!(now < Duration::from_secs(100), "it never ends");
    }
    assert_eq!(published, ATTEMPTS);
    assert_eq!(run.outcomes(now), [Outcome::NotPublished]);
}

#[test]
fn a_machine_that_answers_has_it_whatever_the_broker_shows() {
    let mut run = run(&["web-1"], Some(Wait::Online));
    for number in run.publish_all() {
        run.acknowledged(number);
    }
    let order = run.deployment(0).order;
    run.reports("web-1", order, State::Succeeded);
    assert!(run.is_over(NOW, WALL));
    assert_eq!(run.outcomes(NOW), [Outcome::Succeeded]);
}

/// A broker that closes the connection when the deployment of one of `refused` is published.
fn against_a_broker_that_refuses(run: &mut Run, refused: &[usize]) -> usize {
    let mut connections = 1;
    let mut now = NOW;
    while !run.is_over(now, WALL) {
        now += HOLD;
        let actions = run.actions(now);
        assert!(!actions.is_empty() || run.is_over(now, WALL), "it is stuck");
        for action in actions {
            match action {
                Action::Publish(number) if refused.contains(&number) => {
                    run.disconnected();
                    run.connected(now);
                    connections += 1;
                    break;
                }
                Action::Publish(number) => run.acknowledged(number),
                Action::ReadBack(agents) => {
                    run.granted(now);
                    for agent in agents {
                        run.stand(agent.as_str());
                    }
                }
            }
        }
        assert!(connections < 1_000, "it never ends");
    }
    connections
}

#[test]
fn one_refused_deployment_does_not_keep_the_others_from_being_published() {
    let agents: Vec<String> = (0..200).map(|n| format!("web-{n}")).collect();
    let agents: Vec<&str> = agents.iter().map(String::as_str).collect();
    let mut run = run(&agents, None);
    against_a_broker_that_refuses(&mut run, &[0, 70, 199]);
    let outcomes = run.outcomes(NOW);
    for (number, outcome) in outcomes.iter().enumerate() {
        let expected = if [0, 70, 199].contains(&number) {
            Outcome::NotPublished
        } else {
            Outcome::Published
        };
        assert_eq!(*outcome, expected, "machine {number}");
    }
}

#[test]
fn a_broker_that_refuses_everything_is_given_up_soon() {
    let agents: Vec<String> = (0..200).map(|n| format!("web-{n}")).collect();
    let agents: Vec<&str> = agents.iter().map(String::as_str).collect();
    let mut run = run(&agents, None);
    let all: Vec<usize> = (0..200).collect();
    let connections = against_a_broker_that_refuses(&mut run, &all);
    assert!(connections < 20, "{connections} connections");
    assert!(
        run.outcomes(NOW)
            .iter()
            .all(|end| *end == Outcome::NotPublished)
    );
}

#[test]
fn of_two_publishers_at_once_exactly_one_wins() {
    let newer = signed_by("other", machine("web-1"), 1_000_500, 500);
    let older = signed_by("ci", machine("web-1"), 1_000_000, 100);
    let run =
        |deployment: &Signed| Run::new(vec![deployment.clone()], trusted(), Some(Wait::Online));
    let (mut winner, mut loser) = (run(&newer), run(&older));
    winner.publish_and_read_back();
    loser.publish_all();
    // The loser's message came last: the winner puts its own back.
    winner.saw(
        &topic("web-1", Channel::Deploy),
        &older.envelope,
        false,
        NOW,
    );
    assert_eq!(winner.actions(NOW), [Action::Publish(0)]);
    loser.saw(
        &topic("web-1", Channel::Deploy),
        &newer.envelope,
        false,
        NOW,
    );
    assert_eq!(loser.actions(NOW), []);
    let later = NOW + NEWER_GRACE;
    assert!(loser.is_over(later, WALL));
    let (_, end, _) = loser.ends(later, WALL).next().unwrap();
    assert_eq!(
        (end.outcome, end.superseded_by),
        (Outcome::Superseded, Some(newer.order.id))
    );
    winner.reports("web-1", newer.order, State::Succeeded);
    assert_eq!(winner.outcomes(NOW), [Outcome::Succeeded]);
}

#[test]
fn what_no_known_key_signed_is_published_over() {
    let mut run = run(&["web-1"], Some(Wait::Online));
    run.publish_and_read_back();
    let stranger = signed_by("stranger", machine("web-1"), 9_000_000, 900);
    run.saw(
        &topic("web-1", Channel::Deploy),
        &stranger.envelope,
        false,
        NOW,
    );
    assert_eq!(run.actions(NOW), [Action::Publish(0)]);
}

#[test]
fn after_a_lost_connection_only_what_was_not_acknowledged_is_published_again() {
    let mut run = run(&["web-1", "web-2", "web-3"], None);
    run.publish_all();
    run.acknowledged(1);
    run.disconnected();
    assert_eq!(run.actions(NOW), []);
    run.connected(NOW);
    assert_eq!(run.actions(NOW), []);
    let later = NOW + HOLD;
    assert_eq!(run.actions(later), [Action::Publish(0)]);
    run.acknowledged(0);
    assert_eq!(run.actions(later), [Action::Publish(2)]);
}

#[test]
fn a_newer_deployment_that_the_broker_shows_after_it_closed_is_not_published_over() {
    let newer = signed_by("other", machine("web-1"), 1_000_500, 500);
    let mut run = run(&["web-1"], Some(Wait::Online));
    run.publish_all();
    run.disconnected();
    run.connected(NOW);
    run.saw(&topic("web-1", Channel::Deploy), &newer.envelope, true, NOW);
    assert_eq!(run.actions(NOW + HOLD), []);
}

#[test]
fn only_lines_of_this_deployment_are_shown() {
    let mut run = run(&["web-1"], Some(Wait::Online));
    let line = |id| LogLine {
        id,
        line: 1,
        ts: Timestamp::default(),
        stream: hoist_protocol::Stream::Stdout,
        text: Text::lossy("hello"),
    };
    let ours = line(run.deployment(0).order.id).to_json();
    let other = line(id(7)).to_json();
    let log = topic("web-1", Channel::Log);
    assert!(matches!(
        run.saw(&log, &ours, false, NOW),
        Some(Heard::Line(_))
    ));
    assert!(run.saw(&log, &other, false, NOW).is_none());
}

#[test]
fn a_report_that_cannot_be_read_is_named_once() {
    let mut run = run(&["web-1"], Some(Wait::Online));
    let status = topic("web-1", Channel::Status);
    let heard = run.saw(&status, b"{\"state\": \"dancing\"}", true, NOW);
    assert!(matches!(heard, Some(Heard::Unreadable(Channel::Status, _))));
    assert!(run.saw(&status, b"{", true, NOW).is_none());
}

#[test]
fn what_is_on_another_fleets_topic_is_ignored() {
    let mut run = run(&["web-1"], Some(Wait::Online));
    let mut topic = topic("web-1", Channel::Presence);
    topic.machine.fleet = hoist_protocol::FleetName::new("test").unwrap();
    run.saw(&topic, b"online", true, NOW);
    let outlook = run.outlook(NOW, WALL).next().unwrap();
    assert_eq!(outlook.phase, Phase::Publishing);
    assert_eq!(run.members[0].watch.presence(), None);
}

/// The broker closes the connection on each attempt, and shows `held` to whoever comes back.
fn refused_by_a_broker_that_holds(run: &mut Run, held: &[u8]) {
    for _ in 0..ATTEMPTS {
        assert_eq!(run.actions(NOW), [Action::Publish(0)]);
        run.disconnected();
        run.connected(NOW);
        run.saw(&topic("web-1", Channel::Deploy), held, true, NOW);
        // The window that is held open for what is retained.
        run.hold_until = NOW;
    }
    assert_eq!(run.actions(NOW), []);
}

#[test]
fn losing_a_race_to_a_publisher_that_is_not_known_is_superseded() {
    let winner = signed_by("stranger", machine("web-1"), 2_000_000, 999).envelope;
    for wait in [None, Some(Wait::Online)] {
        let mut run = run(&["web-1"], wait);
        refused_by_a_broker_that_holds(&mut run, &winner);
        let later = NOW + NEWER_GRACE;
        assert!(run.is_over(later, WALL), "{wait:?}");
        let (_, end, _) = run.ends(later, WALL).next().unwrap();
        assert_eq!(end.outcome, Outcome::Superseded);
        assert!(
            end.message.as_str().contains("--trusted-key"),
            "{}",
            end.message
        );
    }
}

#[test]
fn what_lay_there_before_has_won_no_race() {
    let stranger = signed_by("stranger", machine("web-1"), 900_000, 999).envelope;
    let mut run = run(&["web-1"], Some(Wait::Online));
    let seen = Seen {
        deploy: Some(stranger.clone()),
        ..Seen::default()
    };
    run.knows(&machine("web-1").agent, &seen);
    refused_by_a_broker_that_holds(&mut run, &stranger);
    assert!(run.is_over(NOW, WALL));
    assert_eq!(run.outcomes(NOW), [Outcome::NotPublished]);
}

#[test]
fn a_machine_that_took_a_newer_one_settles_a_race_that_the_broker_refused() {
    let mut run = run(&["web-1"], Some(Wait::Online));
    run.saw(&topic("web-1", Channel::Presence), b"online", true, NOW);
    for _ in 0..ATTEMPTS {
        run.publish_all();
        run.disconnected();
        run.connected(NOW);
        run.hold_until = NOW;
    }
    let order = Order {
        sequence: 2_000_000,
        ..run.deployment(0).order
    };
    run.reports(
        "web-1",
        Order {
            id: id(999),
            ..order
        },
        State::Succeeded,
    );
    let later = NOW + NEWER_GRACE;
    assert!(run.is_over(later, WALL));
    assert_eq!(run.outcomes(later), [Outcome::Superseded]);
}

/// A deployment for `agent` that is ordered after those of [`deployments`], of the rollout `rollout`.
fn newer(agent: &str, rollout: Option<u128>) -> Vec<u8> {
    let orders = Orders {
        signers: &[Signer::Key(key("other"))],
        provenance: &Provenance {
            actor: Some(Text::lossy("alice")),
            ..Provenance::default()
        },
        valid_for: Duration::from_secs(3600),
        raise_epoch: false,
        now: Timestamp::from_ms(1_000_001),
    };
    let wish = Wish {
        rollout: rollout.map(|n| hoist_protocol::Rollout {
            id: Uuid::from_u128(n),
            batch: 1,
            batches: 2,
        }),
        ..Wish::of(Target::new(Goal::Stay))
    };
    block_on(orders.sign(machine(agent), wish, KnownOrders::default(), id(999)))
        .unwrap()
        .envelope
}

/// Two machines, one in each batch of the rollout 7.
fn rollout() -> Run {
    let mut run = run(&["web-1", "web-2"], Some(Wait::Online)).of_rollout(Some(Uuid::from_u128(7)));
    run.put_off(1, 1);
    run.publish_all();
    run
}

#[test]
fn a_deployment_of_the_rollout_that_is_not_its_own_cancels_it() {
    let mut run = rollout();
    for other in [None, Some(8)] {
        run.saw(
            &topic("web-1", Channel::Deploy),
            &newer("web-1", other),
            false,
            NOW,
        );
        assert_eq!(run.cancelled(), None, "somebody else's is no cancellation");
    }
    run.saw(
        &topic("web-1", Channel::Deploy),
        &newer("web-1", Some(7)),
        false,
        NOW,
    );
    let said = run.cancelled().map(Cancelled::said);
    assert_eq!(said.unwrap(), "by alice, with deployment 000003e7 of web-1");
    run.halt();
    run.release(1, NOW);
    assert!(
        run.actions(NOW).is_empty(),
        "what was not published is not any more"
    );
    let not_begun = run.ends(NOW, WALL).nth(1).unwrap().1;
    assert_eq!(not_begun.outcome, Outcome::NotBegun);
    assert!(not_begun.message.as_str().contains("was cancelled"));
}

#[test]
fn a_machine_that_says_cancelled_is_waited_with_for_the_deployment_that_did_it() {
    let mut run = rollout();
    run.stand("web-1");
    let order = run.deployment(0).order;
    let said = status(order, State::Cancelled).to_json();
    run.saw(&topic("web-1", Channel::Status), &said, false, NOW);
    assert_eq!(run.tally(NOW, WALL).open, 1);
    assert_eq!(
        run.tally(NOW + NEWER_GRACE, WALL).neither,
        1,
        "it may never come"
    );
    run.saw(
        &topic("web-1", Channel::Deploy),
        &newer("web-1", None),
        false,
        NOW,
    );
    assert_eq!(run.tally(NOW, WALL).neither, 1);
}
