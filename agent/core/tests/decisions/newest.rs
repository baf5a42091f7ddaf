//! What becomes of a deployment when a newer one comes.

use crate::support::*;

#[test]
fn a_newer_deployment_cancels_the_fetch_of_the_older_one() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let effects = agent.input(deployment(2));
    assert_eq!(
        deeds(&effects),
        ["persist", "cancel fetch", "forget", "fetch"]
    );
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    // The cancelled fetch may still answer.
    assert!(agent.fetched(1).is_empty());
    assert_eq!(agent.status().id, Some(id(2)));
}

#[test]
fn a_newer_deployment_waits_for_the_end_of_an_activation() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let effects = agent.input(deployment(2));
    assert_eq!(deeds(&effects), ["persist"]);
    assert_eq!(reported(&effects), [(State::Waiting, Some(id(2)))]);
    // Of those that wait, only the newest is taken.
    agent.input(deployment(3));
    assert_eq!(agent.outcome(2), Some(State::Superseded));
    let effects = agent.ended(1, State::RolledBack);
    assert_eq!(deeds(&effects), ["persist", "forget", "fetch"]);
    assert_eq!(agent.outcome(1), Some(State::RolledBack));
    assert_eq!(agent.status().id, Some(id(3)));
}

#[test]
fn a_newer_deployment_that_expired_still_supersedes_the_older_one() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let mut expired = parts(2);
    expired.expires = Timestamp::from_ms(NOW + 1);
    assert_eq!(
        deeds(&agent.input(signed(expired))),
        ["persist", "cancel fetch", "forget"]
    );
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    assert_eq!(agent.outcome(2), Some(State::Expired));
    assert_eq!(agent.status().id, Some(id(2)));
}

fn cancel(n: u64, of: u64) -> Input {
    let mut parts = parts(n);
    parts.cancels = Some(id(of));
    signed(parts)
}

#[test]
fn what_is_fetched_can_be_cancelled() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let effects = agent.input(cancel(2, 1));
    assert_eq!(
        deeds(&effects),
        ["persist", "cancel fetch", "forget", "fetch"]
    );
    assert_eq!(agent.outcome(1), Some(State::Cancelled));
}

#[test]
fn what_waits_can_be_cancelled_and_what_stands_instead_is_taken() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    agent.input(deployment(2));
    agent.input(cancel(3, 2));
    assert_eq!(agent.outcome(2), Some(State::Cancelled));
    agent.moment.facts = running("v3");
    agent.ended(1, State::RolledBack);
    agent.fetched(3);
    assert_eq!(agent.outcome(3), Some(State::Unchanged));
}

#[test]
fn what_is_activated_already_is_not_cancelled() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    assert_eq!(deeds(&agent.input(cancel(2, 1))), ["persist"]);
    assert_eq!(agent.outcome(1), None);
    assert_eq!(
        deeds(&agent.ended(1, State::Succeeded)),
        ["persist", "forget", "fetch"]
    );
    assert_eq!(agent.outcome(1), Some(State::Succeeded));
}

#[test]
fn a_cancel_that_comes_while_the_agent_is_down_counts() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    // The crash came after the ledger had both and before the outcome of the first.
    let mut disk = agent.disk.clone();
    agent.input(cancel(2, 1));
    disk.next = agent.disk.current.clone();
    disk.floor = agent.disk.floor.clone();
    let (agent, _) = TestAgent::from(disk, trusted(), Vec::new());
    assert_eq!(agent.outcome(1), Some(State::Cancelled));
}
