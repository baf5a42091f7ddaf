//! What somebody at the machine orders.

use hoist_protocol::{Action, Kind, Specialisation};

use crate::support::*;

fn fetch_of(effects: &[Effect]) -> Option<StorePath> {
    effects.iter().find_map(|effect| match effect {
        Effect::Fetch(fetch) => Some(fetch.path.clone()),
        _ => None,
    })
}

#[test]
fn a_local_activation_needs_no_publisher_and_no_broker() {
    let mut agent = TestAgent::new();
    let effects = agent.locally(50, activate("mine"));
    assert_eq!(deeds(&effects), ["persist", "answer", "fetch"]);
    let done = LocalDone::Begun {
        id: id(50),
        path: path("mine"),
    };
    assert_eq!(answer(&effects), Ok(done));
    let effects = agent.fetched(50);
    let origin = effects.iter().find_map(|effect| match effect {
        Effect::CreateJob(job) => Some(job.origin),
        _ => None,
    });
    assert_eq!(origin, Some(Origin::Local));
    let phase = JobPhase::Confirming;
    let effects = agent.input(Input::JobPhase { id: id(50), phase });
    assert!(deeds(&effects).is_empty(), "the broker is not asked");
    agent.ended(50, State::Succeeded);
    let status = agent.status();
    assert_eq!(
        (status.state, status.id, status.local),
        (State::Succeeded, Some(id(50)), true)
    );
    assert_eq!((status.sequence, status.floor), (None, 0));
    assert!(agent.disk.history[0].entry.local);
}

#[test]
fn a_retained_deployment_does_not_undo_what_was_done_at_the_machine_and_a_newer_one_does() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.locally(50, activate("mine"));
    agent.fetched(50);
    agent.ended(50, State::Succeeded);
    assert!(agent.input(deployment(1)).is_empty());
    agent.restart();
    assert!(agent.input(deployment(1)).is_empty());
    assert_eq!(agent.status().id, Some(id(50)));
    assert_eq!(deeds(&agent.input(deployment(2))), ["persist", "fetch"]);
}

#[test]
fn a_newer_deployment_takes_the_place_of_a_local_one_that_is_fetched() {
    let mut agent = TestAgent::new();
    agent.locally(50, activate("mine"));
    let effects = agent.input(deployment(1));
    assert_eq!(
        deeds(&effects),
        ["persist", "cancel fetch", "forget", "fetch"]
    );
    assert_eq!(agent.outcome(50), Some(State::Superseded));
}

#[test]
fn a_local_order_takes_the_place_of_what_is_fetched() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let effects = agent.locally(50, activate("mine"));
    assert_eq!(
        deeds(&effects),
        ["persist", "answer", "cancel fetch", "forget", "fetch"]
    );
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    let effects = agent.locally(51, activate("other"));
    assert_eq!(fetch_of(&effects), Some(path("other")));
    assert_eq!(agent.outcome(50), Some(State::Superseded));
}

#[test]
fn a_local_order_takes_the_place_of_what_waits_for_its_time() {
    let mut agent = TestAgent::new();
    let mut spread = parts(1);
    spread.target.spread_ms = 600_000;
    agent.input(signed(spread));
    agent.locally(50, activate("mine"));
    assert_eq!(agent.outcome(1), Some(State::Superseded));
}

#[test]
fn a_local_order_is_refused_while_something_is_activated() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let before = agent.disk.clone();
    for what in [activate("mine"), LocalWhat::Rollback(None)] {
        let effects = agent.locally(50, what);
        assert_eq!(deeds(&effects), ["answer"]);
        answer(&effects).unwrap_err();
    }
    assert_eq!(agent.disk, before);
}

#[test]
fn a_hold_does_not_keep_off_who_sits_at_the_machine() {
    let mut agent = TestAgent::new();
    agent.hold();
    agent.input(deployment(1));
    assert_eq!(
        deeds(&agent.locally(50, activate("mine"))),
        ["persist", "answer", "fetch"]
    );
    // What publishers order meanwhile does not stop it.
    let effects = agent.input(deployment(2));
    assert_eq!(deeds(&effects), ["persist"]);
    // Nor does a restart change what is under way.
    assert_eq!(deeds(&agent.restart()), ["persist", "fetch"]);
    agent.fetched(50);
    agent.ended(50, State::Succeeded);
    let status = agent.status();
    assert_eq!((status.state, status.id), (State::Held, Some(id(2))));
    assert_eq!(fetch_of(&agent.release()), Some(path("v2")));
}

#[test]
fn a_local_rollback_goes_to_what_ran_before() {
    let mut agent = TestAgent::new();
    let effects = agent.locally(50, LocalWhat::Rollback(None));
    assert!(
        answer(&effects)
            .unwrap_err()
            .contains("nothing that ran before")
    );
    agent.succeed(1);
    agent.moment.facts = running("v1");
    agent.succeed(2);
    agent.moment.facts = running("v2");
    assert_eq!(
        fetch_of(&agent.locally(51, LocalWhat::Rollback(None))),
        Some(path("v1"))
    );
    let to = LocalWhat::Rollback(Some(id(1)));
    assert_eq!(fetch_of(&agent.locally(52, to)), Some(path("v1")));
    let to = LocalWhat::Rollback(Some(id(77)));
    assert!(
        answer(&agent.locally(53, to))
            .unwrap_err()
            .contains("knows no deployment")
    );
}

#[test]
fn a_rollback_activates_a_closure_as_it_was_activated_before() {
    let mut agent = TestAgent::new();
    let mut parts = parts(1);
    parts.target.kind = Kind::Nixos;
    parts.target.specialisation = Some(Specialisation::new("small").unwrap());
    agent.input(signed(parts));
    agent.fetched(1);
    agent.ended(1, State::Succeeded);
    agent.locally(50, LocalWhat::Rollback(Some(id(1))));
    let effects = agent.fetched(50);
    let target = effects.iter().find_map(|effect| match effect {
        Effect::CreateJob(job) => Some(job.target.clone()),
        _ => None,
    });
    let target = target.expect("a specialisation is activated again");
    assert_eq!(target.kind, Kind::Nixos);
    assert_eq!(target.specialisation.unwrap().as_str(), "small");
}

#[test]
fn a_crash_while_a_local_order_is_fetched_begins_it_again() {
    let mut agent = TestAgent::new();
    agent.locally(50, activate("mine"));
    let effects = agent.restart();
    assert_eq!(deeds(&effects), ["persist", "fetch"]);
    assert_eq!(fetch_of(&effects), Some(path("mine")));
    assert_eq!(agent.status().attempts, 2);
}

#[test]
fn a_local_target_that_does_not_hold_together_is_refused() {
    let mut agent = TestAgent::new();
    let mut target = Target::new(Goal::Closure(path("mine")));
    target.kind = Kind::Profile;
    target.action = Action::Boot;
    let effects = agent.locally(50, LocalWhat::Activate(Box::new(target)));
    assert_eq!(deeds(&effects), ["answer"]);
    answer(&effects).unwrap_err();
    let target = Target::new(Goal::Rollback(RollbackTo::Before(id(1))));
    let effects = agent.locally(51, LocalWhat::Activate(Box::new(target)));
    answer(&effects).unwrap_err();
}

#[test]
fn a_local_job_that_a_lost_ledger_forgot_proves_no_more_than_what_came_before_it() {
    let job = FoundJob {
        order: Order {
            id: id(50),
            ..order(5)
        },
        origin: Origin::Local,
        ..found(5, Some(JobPhase::Checking), true)
    };
    let (mut agent, effects) = TestAgent::from(Ledger::default(), trusted(), vec![job]);
    assert_eq!(deeds(&effects), ["persist"]);
    // What was ordered before is old; the one that was retained then is not known to be.
    agent.input(deployment(4));
    assert_eq!(refused(&agent), Some(Reason::Stale));
    agent.input(deployment(5));
    agent.ended(50, State::Succeeded);
    assert!(agent.disk.history[0].entry.local);
    assert_eq!(agent.status().id, Some(id(5)));
}
