//! Deployments that bring nothing of their own: cancelling ones, and those that renew another.

use crate::support::*;

/// The `n`th deployment, which cancels the one before it and leaves the machine as it is.
fn cancelling(n: u64) -> Input {
    let mut parts = parts(n);
    parts.target = Target::new(Goal::Stay);
    parts.cancels = Some(id(n - 1));
    signed(parts)
}

/// The `n`th deployment, which says again what the one numbered `of` said.
fn renewing(n: u64, of: u64) -> Input {
    let mut renewal = parts(n);
    renewal.target = parts(of).target;
    renewal.renews = Some(id(of));
    signed(renewal)
}

fn reason(agent: &TestAgent, n: u64) -> Option<Reason> {
    let mut history = agent.disk.history.iter().map(|record| &record.entry);
    history.find(|entry| entry.id == id(n))?.reason
}

#[test]
fn what_is_cancelled_while_it_is_fetched_is_not_activated() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.input(deployment(2));
    assert_eq!(
        deeds(&agent.input(cancelling(3))),
        ["persist", "cancel fetch", "forget"]
    );
    assert_eq!(agent.outcome(2), Some(State::Cancelled));
    assert_eq!(agent.outcome(3), Some(State::Unchanged));
    assert_eq!(
        agent.disk.known[0].id,
        id(1),
        "there is nothing new to go back to"
    );
}

#[test]
fn a_machine_that_never_saw_what_was_cancelled_stays_as_it_is() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    assert_eq!(deeds(&agent.input(cancelling(3))), ["persist"]);
    assert_eq!(agent.outcome(3), Some(State::Unchanged));
    assert_eq!(agent.status().current_path, Some(path("v0")));
}

#[test]
fn what_is_being_activated_ends_before_it_is_judged_whether_it_was_cancelled() {
    for (end, then) in [
        (State::Succeeded, State::Rejected),
        (State::RolledBack, State::Unchanged),
    ] {
        let mut agent = TestAgent::new();
        agent.input(deployment(1));
        agent.fetched(1);
        agent.input(cancelling(2));
        assert_eq!(agent.outcome(2), None);
        agent.ended(1, end);
        assert_eq!(agent.outcome(1), Some(end));
        assert_eq!(agent.outcome(2), Some(then), "after {end}");
    }
}

#[test]
fn what_has_been_carried_out_is_not_taken_back_by_a_cancellation() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    assert_eq!(deeds(&agent.input(cancelling(2))), ["persist"]);
    assert_eq!(agent.outcome(2), Some(State::Rejected));
    assert_eq!(reason(&agent, 2), Some(Reason::TooLate));
}

#[test]
fn a_renewal_of_what_failed_does_not_try_it_again() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    agent.ended(1, State::RolledBack);
    assert_eq!(deeds(&agent.input(renewing(2, 1))), ["persist"]);
    assert_eq!(agent.outcome(2), Some(State::Failed));
    // Nor does the renewal of that; what is no renewal does.
    assert_eq!(deeds(&agent.input(renewing(3, 2))), ["persist"]);
    let mut again = parts(4);
    again.target = parts(1).target;
    assert_eq!(deeds(&agent.input(signed(again))), ["persist", "fetch"]);
}

#[test]
fn a_renewal_of_what_is_unknown_or_did_not_come_to_its_end_is_carried_out() {
    let mut agent = TestAgent::new();
    assert_eq!(deeds(&agent.input(renewing(2, 1))), ["persist", "fetch"]);
    let effects = agent.input(renewing(3, 2));
    assert_eq!(
        deeds(&effects),
        ["persist", "cancel fetch", "forget", "fetch"]
    );
    assert_eq!(agent.outcome(2), Some(State::Superseded));
}

#[test]
fn a_renewal_of_what_runs_changes_nothing() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.moment.facts = running("v1");
    agent.input(renewing(2, 1));
    agent.fetched(2);
    assert_eq!(agent.outcome(2), Some(State::Unchanged));
}
