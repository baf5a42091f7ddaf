//! With the activator: from the start to the result, over crashes.

use crate::support::*;

#[test]
fn a_deployment_goes_from_its_arrival_to_its_outcome() {
    let mut agent = TestAgent::new();
    assert_eq!(deeds(&agent.input(deployment(1))), ["persist", "fetch"]);
    assert_eq!(
        deeds(&agent.fetched(1)),
        ["create job", "start activator", "persist"]
    );
    let phase = |phase| Input::JobPhase { id: id(1), phase };
    assert!(deeds(&agent.input(phase(JobPhase::Checking))).is_empty());
    assert_eq!(
        deeds(&agent.input(phase(JobPhase::Confirming))),
        ["reach broker"]
    );
    assert_eq!(agent.status().state, State::Confirming);
    assert_eq!(
        deeds(&agent.input(Input::BrokerReached { id: id(1) })),
        ["confirm"]
    );
    assert_eq!(
        deeds(&agent.ended(1, State::Succeeded)),
        ["persist", "forget"]
    );
    let status = agent.status();
    assert_eq!(
        (status.state, status.path),
        (State::Succeeded, Some(path("v1")))
    );
    assert_eq!((status.log_lines, status.closure_size), (Some(2), Some(7)));
}

#[test]
fn a_job_found_after_a_crash_is_followed_or_recovered() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let confirming = Some(JobPhase::Confirming);
    for (job, expected) in [
        (found(1, None, false), vec!["start activator"]),
        (found(1, confirming, false), vec!["start activator"]),
        (found(1, confirming, true), vec!["reach broker"]),
        (found(1, Some(JobPhase::RollingBack), true), vec![]),
    ] {
        let (again, effects) = TestAgent::from(agent.disk.clone(), trusted(), vec![job]);
        assert_eq!(deeds(&effects), expected);
        assert_eq!(again.status().attempts, 1);
    }
    let mut job = found(1, Some(JobPhase::RollingBack), false);
    job.end = Some(end(State::RolledBack));
    let (again, effects) = TestAgent::from(agent.disk, trusted(), vec![job]);
    assert_eq!(deeds(&effects), ["persist", "forget"]);
    assert_eq!(again.outcome(1), Some(State::RolledBack));
}

#[test]
fn a_job_whose_outcome_is_known_is_only_removed() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let (again, effects) = TestAgent::from(agent.disk, trusted(), vec![found(1, None, false)]);
    assert_eq!(deeds(&effects), ["forget"]);
    assert_eq!(again.outcome(1), Some(State::Succeeded));
}

#[test]
fn a_job_that_a_lost_ledger_forgot_is_brought_to_its_end() {
    let job = found(5, Some(JobPhase::Confirming), true);
    let (mut agent, effects) = TestAgent::from(Ledger::default(), trusted(), vec![job]);
    assert_eq!(deeds(&effects), ["persist", "reach broker"]);
    // It raised the floor, and its own deployment is known.
    assert!(agent.input(deployment(5)).is_empty());
    assert!(deeds(&agent.input(deployment(4))).is_empty());
    agent.ended(5, State::Succeeded);
    assert_eq!(agent.outcome(5), Some(State::Succeeded));
}

#[test]
fn a_dead_activator_is_started_again_without_end_but_not_in_a_loop() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let lost = || Input::ActivatorLost {
        id: id(1),
        message: Text::lossy("gone"),
    };
    assert_eq!(deeds(&agent.input(lost())), ["start activator"]);
    let mut waits = Vec::new();
    for _ in 0..10 {
        assert!(deeds(&agent.input(lost())).is_empty());
        let at = agent.agent.wake_at().unwrap();
        waits.push((at - agent.moment.uptime).as_secs());
        agent.moment.uptime = at;
        assert_eq!(deeds(&agent.input(Input::Tick)), ["start activator"]);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
}

#[test]
fn nothing_is_confirmed_but_the_job_that_asks_for_it() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    assert!(agent.input(Input::BrokerReached { id: id(1) }).is_empty());
    let phase = JobPhase::Confirming;
    agent.input(Input::JobPhase { id: id(1), phase });
    assert!(agent.input(Input::BrokerReached { id: id(9) }).is_empty());
    let phase = JobPhase::RollingBack;
    agent.input(Input::JobPhase { id: id(1), phase });
    assert!(agent.input(Input::BrokerReached { id: id(1) }).is_empty());
}
