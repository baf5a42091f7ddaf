//! Before the activation: what is fetched, and when there is nothing to do.

use hoist_protocol::{Action, Changes, PackageChange, Specialisation};

use crate::support::*;

#[test]
fn a_deployment_that_expires_while_it_is_fetched_is_not_activated() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.moment.now = Timestamp::from_ms(NOW + 25 * HOUR);
    assert_eq!(deeds(&agent.fetched(1)), ["persist", "forget"]);
    assert_eq!(agent.outcome(1), Some(State::Expired));
}

#[test]
fn what_runs_already_is_unchanged() {
    let mut agent = TestAgent::new();
    agent.moment.facts = running("v1");
    agent.input(deployment(1));
    assert_eq!(deeds(&agent.fetched(1)), ["persist", "forget"]);
    assert_eq!(agent.outcome(1), Some(State::Unchanged));
    // What runs but is not what the profile names would be gone after the next boot.
    agent.moment.facts = running("v2");
    agent.moment.facts.profile = Some(path("v1"));
    agent.input(deployment(2));
    assert_eq!(
        deeds(&agent.fetched(2)),
        ["create job", "start activator", "persist"]
    );
}

#[test]
fn a_fetch_that_may_work_later_is_tried_four_times_after_waits_that_grow() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    for longest in [3, 6, 12] {
        assert!(deeds(&agent.fetch_failed(1, Reason::FetchFailed)).is_empty());
        let at = agent.agent.wake_at().unwrap();
        let wait = at - agent.moment.uptime;
        assert!(wait <= Duration::from_secs(longest), "{wait:?}");
        if !wait.is_zero() {
            assert!(agent.input(Input::Tick).is_empty(), "too early");
        }
        agent.moment.uptime = at;
        assert_eq!(deeds(&agent.input(Input::Tick)), ["fetch"]);
        assert_eq!(agent.agent.wake_at(), None);
    }
    assert_eq!(
        deeds(&agent.fetch_failed(1, Reason::FetchFailed)),
        ["persist", "forget"]
    );
    assert_eq!(agent.outcome(1), Some(State::Failed));
}

#[test]
fn a_fleet_does_not_try_again_in_step() {
    // What one machine does for many deployments, many machines do for one.
    let waits: Vec<u128> = (1..=200)
        .map(|n| {
            let mut agent = TestAgent::new();
            agent.input(deployment(n));
            agent.fetch_failed(n, Reason::FetchFailed);
            agent.agent.wake_at().unwrap().as_millis()
        })
        .collect();
    for half in 0..6 {
        let within = half * 500..(half + 1) * 500;
        let count = waits
            .iter()
            .copied()
            .filter(|wait| within.contains(wait))
            .count();
        assert!(count >= 10, "{count} of 200 machines wait {within:?} ms");
    }
}

fn fetched(bytes: (u64, u64), paths: (u64, u64)) -> FetchProgress {
    FetchProgress {
        fetched_bytes: bytes.0,
        fetch_bytes: bytes.1,
        fetched_paths: paths.0,
        fetch_paths: paths.1,
    }
}

#[test]
fn a_fetch_that_failed_says_how_far_it_came() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let came = fetched((30, 100), (1, 4));
    agent.fetch_failed_after(1, Reason::FetchFailed, came);
    assert_eq!(agent.status().fetch, Some(came));
    agent.moment.uptime = agent.agent.wake_at().unwrap();
    agent.input(Input::Tick);
    // Nix has kept what came before, and fetches the rest.
    agent.input(Input::FetchProgress {
        id: id(1),
        progress: fetched((20, 70), (1, 3)),
    });
    let in_all = fetched((50, 100), (2, 4));
    assert_eq!(agent.status().fetch, Some(in_all));
    agent.fetch_failed_after(1, Reason::MissingPath, fetched((20, 70), (1, 3)));
    assert_eq!(agent.status().fetch, Some(in_all));
    assert_eq!(agent.disk.history[0].entry.fetched_bytes, Some(50));
}

#[test]
fn a_fetch_that_a_newer_deployment_stops_says_how_far_it_came() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let progress = fetched((30, 100), (1, 4));
    agent.input(Input::FetchProgress {
        id: id(1),
        progress,
    });
    agent.input(deployment(2));
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    let entry = &agent.disk.history[0].entry;
    assert_eq!((entry.id, entry.fetched_bytes), (id(1), Some(30)));
}

#[test]
fn what_a_fetch_brought_counts_the_tries_before_it() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetch_failed_after(1, Reason::FetchFailed, fetched((30, 100), (1, 4)));
    agent.moment.uptime = agent.agent.wake_at().unwrap();
    agent.input(Input::Tick);
    let result = Ok(Realised {
        closure_size: Some(7),
        kind: None,
        fetched: fetched((70, 70), (3, 3)),
        changes: None,
        facts: running("v0"),
    });
    agent.input(Input::Fetched { id: id(1), result });
    assert_eq!(agent.status().fetch, Some(fetched((100, 100), (4, 4))));
}

#[test]
fn progress_is_reported_once_a_second_at_most() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let mut reports = 0;
    for n in 0..50 {
        agent.moment.uptime = Duration::from_millis(n * 100);
        let progress = FetchProgress {
            fetched_bytes: n,
            fetch_bytes: 100,
            ..FetchProgress::default()
        };
        reports += agent
            .input(Input::FetchProgress {
                id: id(1),
                progress,
            })
            .len();
    }
    assert_eq!(reports, 4);
    assert_eq!(agent.status().progress, Some(49));
}

#[test]
fn a_crash_while_fetching_fetches_again() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let (again, effects) = TestAgent::from(agent.disk, trusted(), Vec::new());
    assert_eq!(deeds(&effects), ["persist", "fetch"]);
    assert_eq!(again.status().attempts, 2);
}

#[test]
fn a_deployment_that_the_agent_never_survives_is_given_up() {
    let mut disk = {
        let mut agent = TestAgent::new();
        agent.input(deployment(1));
        agent.disk
    };
    for _ in 0..30 {
        disk = TestAgent::from(disk, trusted(), Vec::new()).0.disk;
    }
    let (agent, effects) = TestAgent::from(disk, trusted(), Vec::new());
    assert!(deeds(&effects).is_empty());
    assert_eq!(agent.outcome(1), Some(State::Failed));
}

fn targeted(n: u64, change: impl Fn(&mut Target)) -> Input {
    let mut parts = parts(n);
    change(&mut parts.target);
    signed(parts)
}

const ACTIVATED: [&str; 3] = ["create job", "start activator", "persist"];
const NOT_ACTIVATED: [&str; 2] = ["persist", "forget"];

#[test]
fn what_runs_but_does_not_boot_is_activated() {
    let mut agent = TestAgent::new();
    agent.moment.facts = running("v1");
    agent.moment.facts.boot_default = Some(path("v0"));
    agent.input(deployment(1));
    assert_eq!(deeds(&agent.fetched(1)), ACTIVATED);
    agent.ended(1, State::Succeeded);
    agent.moment.facts = running("v2");
    agent.moment.facts.boot_default = Some(path("v2"));
    agent.input(deployment(2));
    assert_eq!(deeds(&agent.fetched(2)), NOT_ACTIVATED);
}

#[test]
fn whether_there_is_something_to_do_depends_on_the_action() {
    let runs = || {
        let mut facts = running("v1");
        facts.profile = Some(path("v0"));
        facts
    };
    for (action, facts, expected) in [
        (Action::Switch, running("v1"), &NOT_ACTIVATED[..]),
        (Action::Boot, running("v1"), &NOT_ACTIVATED),
        (Action::Test, running("v1"), &NOT_ACTIVATED),
        (Action::DryActivate, running("v1"), &ACTIVATED),
        (Action::Switch, runs(), &ACTIVATED),
        (Action::Boot, runs(), &ACTIVATED),
        (Action::Test, runs(), &NOT_ACTIVATED),
    ] {
        let mut agent = TestAgent::new();
        agent.moment.facts = facts;
        agent.input(targeted(1, |target| target.action = action));
        assert_eq!(deeds(&agent.fetched(1)), expected, "{action}");
    }
}

#[test]
fn a_specialisation_is_not_taken_for_the_system_that_it_belongs_to() {
    let mut agent = TestAgent::new();
    agent.moment.facts = running("v1");
    agent.input(targeted(1, |target| {
        target.specialisation = Some(Specialisation::new("small").unwrap());
    }));
    assert_eq!(deeds(&agent.fetched(1)), ACTIVATED);
}

#[test]
fn what_cannot_pass_by_itself_is_not_tried_again() {
    for reason in [
        Reason::DigestMismatch,
        Reason::MissingPath,
        Reason::UntrustedPath,
        Reason::DiskFull,
    ] {
        let mut agent = TestAgent::new();
        agent.input(deployment(1));
        assert_eq!(deeds(&agent.fetch_failed(1, reason)), NOT_ACTIVATED);
        assert_eq!(agent.status().reason, Some(reason));
        assert_eq!(agent.agent.wake_at(), None);
    }
}

#[test]
fn a_path_that_failed_is_tried_again_when_a_new_deployment_asks_for_it() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetch_failed(1, Reason::MissingPath);
    assert!(agent.input(deployment(1)).is_empty());
    assert!(deeds(&agent.restart()).is_empty());
    assert!(agent.input(deployment(1)).is_empty());
    let again = targeted(2, |target| target.goal = parts(1).target.goal);
    assert_eq!(deeds(&agent.input(again)), ["persist", "fetch"]);
}

#[test]
fn progress_counts_bytes_where_they_are_known_and_paths_otherwise() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    for (progress, percent) in [
        ((0, 0, 0, 0), None),
        ((0, 0, 1, 4), Some(25)),
        ((30, 40, 1, 4), Some(75)),
        ((u64::MAX, 1, 1, 4), Some(100)),
    ] {
        let (fetched_bytes, fetch_bytes, fetched_paths, fetch_paths) = progress;
        let progress = FetchProgress {
            fetched_bytes,
            fetch_bytes,
            fetched_paths,
            fetch_paths,
        };
        agent.input(Input::FetchProgress {
            id: id(1),
            progress,
        });
        let status = agent.status();
        assert_eq!((status.progress, status.fetch), (percent, Some(progress)));
    }
}

#[test]
fn what_was_fetched_and_what_changed_is_told_with_the_outcome() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let fetched = FetchProgress {
        fetched_bytes: 10,
        fetch_bytes: 10,
        fetched_paths: 2,
        fetch_paths: 2,
    };
    let changes = Changes {
        packages_added: 1,
        packages: vec![PackageChange {
            name: Text::lossy("git"),
            from: None,
            to: Some(Text::lossy("2.44")),
        }],
        ..Changes::default()
    };
    let realised = Realised {
        closure_size: Some(7),
        kind: Some(hoist_protocol::Kind::Nixos),
        fetched,
        changes: Some(changes.clone()),
        facts: running("v0"),
    };
    let result = Ok(realised);
    agent.input(Input::Fetched { id: id(1), result });
    assert_eq!(agent.status().state, State::Activating);
    for _ in 0..2 {
        let status = agent.status();
        assert_eq!(status.changes.as_ref(), Some(&changes));
        assert_eq!(status.fetch, Some(fetched));
        assert_eq!(status.kind.unwrap().as_str(), "nixos");
        assert_eq!(status.action, Some(Action::Switch));
        agent.ended(1, State::Succeeded);
    }
    // The history only counts.
    let entry = &agent.disk.history[0].entry;
    assert_eq!(entry.fetched_bytes, Some(10));
    let counted = entry.changes.as_ref().unwrap();
    assert_eq!((counted.packages_added, counted.packages.len()), (1, 0));
}
