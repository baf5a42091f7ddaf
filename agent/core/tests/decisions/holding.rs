//! What keeps a deployment waiting: holds from both sides, and the time that a fleet is spread over.

use crate::support::*;

fn held_until(until: Timestamp) -> LocalWhat {
    LocalWhat::Hold {
        until: Some(until),
        reason: Text::default(),
    }
}

#[test]
fn a_held_machine_takes_the_newest_when_it_is_released() {
    let mut agent = TestAgent::new();
    let effects = agent.hold();
    assert_eq!(deeds(&effects), ["persist", "answer"]);
    assert_eq!(answer(&effects), Ok(LocalDone::Held));
    let effects = agent.input(deployment(1));
    assert_eq!(deeds(&effects), ["persist"]);
    assert_eq!(reported(&effects), [(State::Held, Some(id(1)))]);
    agent.input(deployment(2));
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    let status = agent.status();
    assert_eq!((status.state, status.id), (State::Held, Some(id(2))));
    assert!(status.held);
    assert_eq!(
        status.message.as_str(),
        "held at the machine until it is released: maintenance"
    );
    let effects = agent.release();
    assert_eq!(deeds(&effects), ["persist", "answer", "fetch"]);
    let status = agent.status();
    assert_eq!(
        (status.state, status.id, status.held),
        (State::Fetching, Some(id(2)), false)
    );
}

#[test]
fn a_hold_stops_a_fetch_and_does_not_end_the_deployment() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    assert_eq!(deeds(&agent.hold()), ["persist", "cancel fetch", "answer"]);
    assert!(
        agent.fetched(1).is_empty(),
        "the cancelled fetch may still answer"
    );
    assert_eq!(agent.outcome(1), None);
    assert_eq!(agent.status().state, State::Held);
    agent.release();
    let status = agent.status();
    assert_eq!((status.state, status.attempts), (State::Fetching, 1));
}

#[test]
fn a_hold_lets_an_activation_come_to_its_end() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    assert_eq!(deeds(&agent.hold()), ["persist", "answer"]);
    let phase = JobPhase::Confirming;
    assert_eq!(
        deeds(&agent.input(Input::JobPhase { id: id(1), phase })),
        ["reach broker"]
    );
    agent.input(deployment(2));
    assert_eq!(
        deeds(&agent.ended(1, State::Succeeded)),
        ["persist", "forget"]
    );
    let status = agent.status();
    assert_eq!((status.state, status.id), (State::Held, Some(id(2))));
}

#[test]
fn a_hold_ends_by_itself_and_outlives_a_restart() {
    let mut agent = TestAgent::new();
    let until = agent.moment.now.plus(Duration::from_secs(60));
    agent.locally(900, held_until(until));
    agent.input(deployment(1));
    assert_eq!(agent.status().held_until, Some(until));
    assert!(deeds(&agent.restart()).is_empty());
    assert_eq!(agent.agent.wake_at(), Some(Duration::from_secs(60)));
    agent.moment.now = until;
    assert_eq!(deeds(&agent.input(Input::Tick)), ["persist", "fetch"]);
    assert_eq!(agent.disk.hold, None);
}

#[test]
fn a_hold_without_a_deployment_that_waits_leaves_the_last_outcome_in_the_status() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.hold();
    let status = agent.status();
    assert_eq!(
        (status.state, status.id, status.held),
        (State::Succeeded, Some(id(1)), true)
    );
}

#[test]
fn a_hold_that_is_over_before_it_begins_is_refused() {
    let mut agent = TestAgent::new();
    let now = agent.moment.now;
    let effects = agent.locally(900, held_until(now));
    assert_eq!(deeds(&effects), ["answer"]);
    assert!(answer(&effects).is_err());
}

#[test]
fn a_deployment_that_holds_the_machine_waits_until_a_newer_one_releases_it() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let mut hold = parts(2);
    hold.held = Held::UntilReleased;
    assert_eq!(deeds(&agent.input(signed(hold))), ["persist"]);
    // That is for a publisher to end, not for somebody at the machine, nor for a restart.
    assert_eq!(answer(&agent.release()), Ok(LocalDone::Released));
    agent.restart();
    let status = agent.status();
    assert_eq!(
        (status.state, status.id, status.held),
        (State::Held, Some(id(2)), false)
    );
    let mut release = parts(3);
    release.target = parts(2).target;
    assert_eq!(deeds(&agent.input(signed(release))), ["persist", "fetch"]);
    assert_eq!(agent.outcome(2), Some(State::Superseded));
}

#[test]
fn a_hold_from_afar_with_a_time_ends_by_itself_and_outlives_a_restart() {
    let mut agent = TestAgent::new();
    let until = agent.moment.now.plus(Duration::from_secs(60));
    let mut hold = parts(1);
    hold.held = Held::Until(until);
    assert_eq!(deeds(&agent.input(signed(hold))), ["persist"]);
    agent.restart();
    assert_eq!(agent.agent.wake_at(), Some(Duration::from_secs(60)));
    let message = agent.status().message;
    assert!(message.as_str().contains(&until.to_string()), "{message}");
    agent.moment.now = until;
    assert_eq!(deeds(&agent.input(Input::Tick)), ["persist", "fetch"]);
}

#[test]
fn a_deployment_that_holds_stops_what_is_fetched() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let mut hold = parts(2);
    hold.held = Held::UntilReleased;
    assert_eq!(
        deeds(&agent.input(signed(hold))),
        ["persist", "cancel fetch", "forget"]
    );
    assert_eq!(agent.outcome(1), Some(State::Superseded));
}

#[test]
fn what_expires_while_it_is_held_is_not_carried_out() {
    let mut agent = TestAgent::new();
    agent.hold();
    agent.input(deployment(1));
    agent.moment.now = Timestamp::from_ms(NOW + 25 * HOUR);
    assert_eq!(deeds(&agent.input(Input::Refresh)), ["persist"]);
    assert_eq!(agent.outcome(1), Some(State::Expired));
}

#[test]
fn a_withdrawn_key_ends_what_is_held_too() {
    let mut agent = TestAgent::new();
    agent.hold();
    agent.input(deployment(1));
    let other = TrustedKeys::new(vec![key("new", 9).public()]).unwrap();
    let (agent, _) = TestAgent::from(agent.disk, other, Vec::new());
    assert_eq!(agent.outcome(1), Some(State::Rejected));
}

fn spread(n: u64) -> Input {
    let mut parts = parts(n);
    parts.target.spread_ms = 600_000;
    signed(parts)
}

/// How long the agent wants to wait, in milliseconds.
fn wait(agent: &TestAgent) -> u64 {
    let at = agent.agent.wake_at().expect("it waits");
    u64::try_from((at - agent.moment.uptime).as_millis()).unwrap()
}

#[test]
fn a_spread_deployment_begins_within_its_time() {
    let mut waits = Vec::new();
    for n in 1..=40 {
        let mut agent = TestAgent::new();
        let effects = agent.input(spread(n));
        assert_eq!(deeds(&effects), ["persist"]);
        assert_eq!(reported(&effects), [(State::Waiting, Some(id(n)))]);
        let begins = agent.moment.now.plus(Duration::from_millis(wait(&agent)));
        let message = agent.status().message;
        assert!(message.as_str().contains(&begins.to_string()), "{message}");
        waits.push(wait(&agent));
        // The same after a restart.
        agent.restart();
        assert_eq!(waits.last(), Some(&wait(&agent)));
        agent.moment.now = begins;
        assert_eq!(deeds(&agent.input(Input::Tick)), ["persist", "fetch"]);
    }
    assert!(waits.iter().all(|wait| *wait <= 600_000));
    // As random as 40 throws of the dice: some in each quarter.
    for quarter in 0..4 {
        let range = quarter * 150_000..(quarter + 1) * 150_000;
        assert!(waits.iter().any(|wait| range.contains(wait)), "{waits:?}");
    }
}

#[test]
fn a_newer_deployment_ends_the_wait_of_a_spread_one() {
    let mut agent = TestAgent::new();
    agent.input(spread(1));
    assert_eq!(deeds(&agent.input(deployment(2))), ["persist", "fetch"]);
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    assert_eq!(agent.agent.wake_at(), None);
}

#[test]
fn a_clock_that_is_set_back_makes_no_wait_longer_than_the_spread() {
    let mut agent = TestAgent::new();
    agent.input(spread(1));
    agent.moment.now = Timestamp::from_ms(NOW - 1000 * HOUR);
    agent.input(Input::Refresh);
    let left = wait(&agent);
    assert!(left <= 600_000);
    agent.moment.now = agent.moment.now.plus(Duration::from_millis(left));
    assert_eq!(deeds(&agent.input(Input::Tick)), ["persist", "fetch"]);
}
