//! What waits for a reboot, and how that ends.

use hoist_protocol::Action;

use crate::support::*;

/// Deployment `n` is made what the next boot brings.
fn stage(agent: &mut TestAgent, n: u64) {
    let mut parts = parts(n);
    parts.target.action = Action::Boot;
    agent.input(signed(parts));
    agent.fetched(n);
    agent.ended(n, State::Staged);
    agent.moment.facts.profile = Some(path(&format!("v{n}")));
}

/// The machine boots into `name`.
fn boot(agent: TestAgent, name: &str) -> (TestAgent, Vec<Effect>) {
    let facts = Facts {
        booted: Some(path(name)),
        ..running(name)
    };
    TestAgent::booted("boot-2", facts, agent.disk, trusted(), Vec::new())
}

#[test]
fn what_is_staged_is_told_and_succeeds_by_being_booted() {
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    assert_eq!(agent.status().state, State::Staged);
    agent.input(Input::Delivered(vec![told(1, State::Staged)]));
    // A restart of the agent is no reboot.
    agent.moment.facts.booted = Some(path("v0"));
    assert!(deeds(&agent.restart()).is_empty());
    agent.moment.facts.booted = Some(path("v0"));
    assert!(deeds(&agent.input(Input::Refresh)).is_empty());
    let (agent, effects) = boot(agent, "v1");
    assert_eq!(deeds(&effects), ["persist"]);
    assert_eq!(reported(&effects), [(State::Succeeded, Some(id(1)))]);
    assert_eq!(agent.outcome(1), Some(State::Succeeded));
    // One outcome, told anew.
    assert_eq!(agent.disk.history.len(), 1);
    let undelivered: Vec<_> = agent.disk.undelivered().collect();
    assert_eq!(undelivered, [told(1, State::Succeeded)]);
    assert_eq!(agent.status().previous_path, Some(path("v0")));
}

#[test]
fn what_is_staged_is_rolled_back_when_something_else_was_booted() {
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    let (mut agent, effects) = boot(agent, "v0");
    assert_eq!(reported(&effects), [(State::RolledBack, Some(id(1)))]);
    let status = agent.status();
    assert_eq!(status.reason, Some(Reason::BootedOther));
    assert!(status.message.as_str().contains("v0"), "{}", status.message);
    // Never in a loop: the retained one comes again, and is old news.
    let mut parts = parts(1);
    parts.target.action = Action::Boot;
    assert!(agent.input(signed(parts)).is_empty());
}

#[test]
fn without_knowing_what_was_booted_nothing_is_decided() {
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    let facts = Facts::default();
    let (mut agent, effects) =
        TestAgent::booted("boot-2", facts, agent.disk, trusted(), Vec::new());
    assert!(deeds(&effects).is_empty());
    agent.moment.facts.booted = Some(path("v1"));
    assert_eq!(deeds(&agent.input(Input::Refresh)), ["persist"]);
    assert_eq!(agent.outcome(1), Some(State::Succeeded));
}

#[test]
fn what_a_recovery_stages_after_a_reboot_waits_for_the_next_one() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let mut job = found(1, Some(JobPhase::Committing), false);
    job.end = Some(JobEnd {
        boot_id: Some(Text::lossy("boot-2")),
        ..end(State::Staged)
    });
    let facts = Facts {
        booted: Some(path("v0")),
        ..running("v0")
    };
    let (agent, _) = TestAgent::booted("boot-2", facts, agent.disk, trusted(), vec![job]);
    assert_eq!(agent.outcome(1), Some(State::Staged));
    // Had it been staged in the boot before, this one would have decided.
    let staged = agent.disk.staged.as_ref().unwrap();
    assert_eq!(staged.boot_id.as_str(), "boot-2");
}

#[test]
fn a_result_of_the_boot_before_is_decided_by_this_one() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let mut job = found(1, Some(JobPhase::Committing), false);
    job.end = Some(end(State::Staged));
    let facts = Facts {
        booted: Some(path("v1")),
        ..running("v1")
    };
    let (agent, effects) = TestAgent::booted("boot-2", facts, agent.disk, trusted(), vec![job]);
    assert_eq!(agent.outcome(1), Some(State::Succeeded));
    let told: Vec<_> = reported(&effects)
        .into_iter()
        .map(|(state, _)| state)
        .collect();
    assert_eq!(told.last(), Some(&State::Succeeded));
}

#[test]
fn a_newer_deployment_that_sets_the_boot_supersedes_what_is_staged() {
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    agent.input(deployment(2));
    assert_eq!(
        agent.outcome(1),
        Some(State::Staged),
        "not before it has done so"
    );
    agent.fetched(2);
    agent.ended(2, State::Succeeded);
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    let (agent, effects) = boot(agent, "v1");
    assert!(deeds(&effects).is_empty());
    assert_eq!(agent.outcome(1), Some(State::Superseded));
}

#[test]
fn a_newer_deployment_that_leaves_the_boot_alone_leaves_what_is_staged() {
    for state in [State::RolledBack, State::Failed, State::DryActivated] {
        let mut agent = TestAgent::new();
        stage(&mut agent, 1);
        agent.input(deployment(2));
        agent.fetched(2);
        agent.ended(2, state);
        assert_eq!(agent.outcome(1), Some(State::Staged), "{state}");
    }
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    let mut test = parts(2);
    test.target.action = Action::Test;
    agent.input(signed(test));
    agent.fetched(2);
    agent.ended(2, State::Succeeded);
    assert_eq!(agent.outcome(1), Some(State::Staged));
    let (agent, _) = boot(agent, "v1");
    assert_eq!(agent.outcome(1), Some(State::Succeeded));
    // The status is about the newest, whatever ends later.
    assert_eq!(agent.status().id, Some(id(2)));
}

#[test]
fn what_is_staged_can_be_cancelled() {
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    let mut cancel = parts(2);
    cancel.cancels = Some(id(1));
    cancel.target = Target::new(Goal::Closure(path("v0")));
    agent.input(signed(cancel));
    // What runs is not what boots: it has to be set.
    assert_eq!(
        deeds(&agent.fetched(2)),
        ["create job", "start activator", "persist"]
    );
    agent.ended(2, State::Succeeded);
    assert_eq!(agent.outcome(1), Some(State::Cancelled));
}

#[test]
fn what_is_staged_already_is_not_activated_again() {
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    let mut again = parts(2);
    again.target = parts(1).target;
    again.target.action = Action::Boot;
    agent.input(signed(again.clone()));
    assert_eq!(deeds(&agent.fetched(2)), ["persist", "forget"]);
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    assert_eq!(agent.outcome(2), Some(State::Staged));
    let (agent, _) = boot(agent, "v1");
    assert_eq!(agent.outcome(2), Some(State::Succeeded));
}

#[test]
fn what_is_staged_is_no_goal_of_a_rollback_but_what_ran_before_it_is() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.moment.facts = running("v1");
    agent.input(signed({
        let mut parts = parts(2);
        parts.target.action = Action::Boot;
        parts
    }));
    agent.fetched(2);
    let staged = JobEnd {
        previous: Some(path("v1")),
        ..end(State::Staged)
    };
    let end = Box::new(staged);
    agent.input(Input::JobEnded { id: id(2), end });
    agent.moment.facts.profile = Some(path("v2"));
    for (n, to, state) in [
        (3, RollbackTo::Deployment(id(2)), Some(State::Rejected)),
        (4, RollbackTo::Before(id(2)), None),
    ] {
        let mut rollback = parts(n);
        rollback.target = Target::new(Goal::Rollback(to));
        agent.input(signed(rollback));
        assert_eq!(agent.outcome(n), state);
    }
    assert_eq!(agent.status().path, Some(path("v1")));
}

#[test]
fn a_rollback_at_the_machine_takes_back_what_is_staged_first() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.moment.facts = running("v1");
    stage(&mut agent, 2);
    let effects = agent.locally(50, LocalWhat::Rollback(None));
    let done = LocalDone::Begun {
        id: id(50),
        path: path("v1"),
    };
    assert_eq!(answer(&effects), Ok(done));
    assert_eq!(
        deeds(&agent.fetched(50)),
        ["create job", "start activator", "persist"]
    );
    agent.ended(50, State::Succeeded);
    assert_eq!(agent.outcome(2), Some(State::Superseded));
    let (agent, _) = boot(agent, "v1");
    assert_eq!(agent.outcome(2), Some(State::Superseded));
}

#[test]
fn an_acknowledgement_of_what_was_staged_is_none_of_how_it_ended() {
    let mut agent = TestAgent::new();
    stage(&mut agent, 1);
    agent.input(deployment(2));
    agent.fetched(2);
    agent.ended(2, State::Succeeded);
    // It was on its way when the second one ended.
    agent.input(Input::Delivered(vec![told(1, State::Staged)]));
    let mut undelivered = agent.disk.undelivered();
    assert!(undelivered.any(|outcome| outcome == told(1, State::Superseded)));
}
