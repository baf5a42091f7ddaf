//! Which deployments are let in.

use crate::support::*;

#[test]
fn a_replayed_deployment_is_refused() {
    let mut agent = TestAgent::new();
    agent.succeed(8);
    let effects = agent.input(deployment(7));
    assert!(deeds(&effects).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
    assert_eq!(reported(&effects), [(State::Succeeded, Some(id(8)))]);
}

#[test]
fn the_same_deployment_again_does_nothing() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    assert!(agent.input(deployment(1)).is_empty());
    agent.fetch_failed(1, Reason::MissingPath);
    // Not even when it failed: a path that failed is not tried in a loop.
    assert!(agent.input(deployment(1)).is_empty());
}

#[test]
fn another_deployment_with_the_same_order_is_refused() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let mut twin = parts(1);
    twin.target = Target::new(Goal::Closure(path("evil")));
    assert!(deeds(&agent.input(signed(twin))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
}

#[test]
fn an_id_is_never_used_twice() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let mut again = parts(2);
    again.order.id = id(1);
    assert!(deeds(&agent.input(signed(again))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
}

#[test]
fn an_expired_deployment_raises_the_floor_and_is_not_carried_out() {
    let mut agent = TestAgent::new();
    agent.moment.now = Timestamp::from_ms(NOW + 24 * HOUR);
    assert_eq!(deeds(&agent.input(deployment(5))), ["persist"]);
    assert_eq!(agent.outcome(5), Some(State::Expired));
    agent.moment.now = Timestamp::from_ms(NOW + HOUR);
    assert!(deeds(&agent.input(deployment(4))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
}

#[test]
fn a_sequence_far_ahead_is_refused_and_leaves_the_floor_alone() {
    let mut agent = TestAgent::new();
    let ahead = || {
        let mut parts = parts(1);
        parts.order.sequence = NOW + HOUR + SEQUENCE_AHEAD_MS + 1;
        signed(parts)
    };
    assert!(deeds(&agent.input(ahead())).is_empty());
    assert_eq!(refused(&agent), Some(Reason::TooFarAhead));
    assert_eq!(agent.status().floor, 0);
    // A clock that nobody keeps right proves nothing.
    agent.moment.synchronised = false;
    assert_eq!(deeds(&agent.input(ahead())), ["persist", "fetch"]);
}

#[test]
fn only_a_key_that_may_raises_the_epoch() {
    let mut agent = TestAgent::new();
    let raised = || {
        let mut parts = parts(1);
        parts.order.epoch = 1;
        parts
    };
    assert!(deeds(&agent.input(signed(raised()))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::EpochNotAllowed));
    let allowed = signed_by(raised(), key("admin", 2));
    assert_eq!(deeds(&agent.input(allowed)), ["persist", "fetch"]);
    assert_eq!(agent.status().floor_epoch, 1);
}

#[test]
fn what_nobody_trusted_signed_changes_nothing_but_the_report() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let error = trusted().verify(b"junk", &machine()).unwrap_err();
    let unverified = || Input::Unverified {
        error: error.clone(),
        digest: digest(b"junk"),
    };
    let before = agent.disk.clone();
    let effects = agent.input(unverified());
    assert!(deeds(&effects).is_empty());
    assert_eq!(reported(&effects), [(State::Succeeded, Some(id(1)))]);
    assert_eq!(refused(&agent), Some(Reason::Unverified));
    // It comes again at every connection, and is old news then.
    assert!(agent.input(unverified()).is_empty());
    assert_eq!(agent.disk, before);
}

#[test]
fn a_key_that_was_withdrawn_while_the_agent_was_down_counts_no_more() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let other = TrustedKeys::new(vec![key("new", 9).public()]).unwrap();
    let (agent, effects) = TestAgent::from(agent.disk, other, Vec::new());
    assert_eq!(deeds(&effects), ["persist"]);
    assert_eq!(agent.outcome(1), Some(State::Rejected));
    assert_eq!(agent.status().reason, Some(Reason::Unverified));
}

#[test]
fn a_rollback_to_what_did_not_end_well_is_rejected() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    agent.ended(1, State::RolledBack);
    for (n, of) in [(2, 1), (3, 77)] {
        let mut rollback = parts(n);
        rollback.target = Target::new(Goal::Rollback(RollbackTo::Deployment(id(of))));
        assert_eq!(deeds(&agent.input(signed(rollback))), ["persist"]);
        assert_eq!(agent.outcome(n), Some(State::Rejected));
        assert_eq!(agent.status().reason, Some(Reason::UnknownDeployment));
    }
}

#[test]
fn a_rollback_goes_to_what_the_machine_itself_ran() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.succeed(2);
    for (n, to, expected) in [
        (3, RollbackTo::Deployment(id(1)), path("v1")),
        (4, RollbackTo::Before(id(2)), path("v0")),
    ] {
        let mut rollback = parts(n);
        rollback.target = Target::new(Goal::Rollback(to));
        let effects = agent.input(signed(rollback));
        let fetch = effects.iter().find_map(|effect| match effect {
            Effect::Fetch(fetch) => Some(fetch.path.clone()),
            _ => None,
        });
        assert_eq!(fetch, Some(expected));
        agent.fetch_failed(n, Reason::MissingPath);
    }
}
