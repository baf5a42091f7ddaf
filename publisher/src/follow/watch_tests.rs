use hoist_protocol::Refused;
use proptest::prelude::*;

use super::*;
use crate::testing::{entry, id, machine, order, status};

const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(3600);
const WALL: Timestamp = Timestamp::from_ms(1_000);

fn watch() -> Watch {
    Watch::new(order(5), Text::lossy("d1"), Timestamp::from_ms(2_000))
}

fn online() -> Watch {
    let mut watch = watch();
    watch.saw_presence(Presence::Online, Duration::ZERO);
    watch
}

fn history(entries: &[(u64, State)]) -> History {
    let machine = machine("web-1");
    History {
        agent: machine.agent,
        fleet: machine.fleet,
        entries: entries
            .iter()
            .map(|(n, state)| entry(*n, *state, "system"))
            .collect(),
    }
}

fn refusal(digest: &str, reason: Reason) -> Refused {
    Refused {
        refused_digest: Text::lossy(digest),
        refused_reason: reason,
        refused_message: Text::lossy("why"),
        refused_at: Timestamp::default(),
    }
}

fn outcome(watch: &Watch, now: Duration) -> Option<Outcome> {
    match watch.verdict(Wait::Online, now, WALL) {
        Verdict::Ended(end) => Some(end.outcome),
        Verdict::Pending | Verdict::Away | Verdict::Held => None,
    }
}

#[test]
fn an_outcome_counts_in_the_status_and_in_the_history_alike() {
    let mut by_status = online();
    by_status.saw_status(&status(order(5), State::RolledBack), SOON);
    let mut by_history = online();
    by_history.saw_history(&history(&[(7, State::Succeeded), (5, State::RolledBack)]));
    for watch in [by_status, by_history] {
        assert_eq!(outcome(&watch, SOON), Some(Outcome::RolledBack));
    }
}

#[test]
fn what_is_about_another_deployment_is_no_answer() {
    let mut watch = online();
    watch.saw_status(&status(order(4), State::Failed), SOON);
    watch.saw_history(&history(&[(4, State::Failed)]));
    assert_eq!(outcome(&watch, LATE), None);
}

#[test]
fn a_machine_that_is_offline_is_not_waited_for_unless_all_are() {
    let mut watch = watch();
    watch.saw_presence(Presence::Offline, Duration::ZERO);
    assert_eq!(watch.verdict(Wait::Online, SETTLE, WALL), Verdict::Away);
    assert_eq!(watch.verdict(Wait::All, LATE, WALL), Verdict::Pending);
    assert_eq!(watch.given_up().outcome, Outcome::Offline);
}

#[test]
fn a_machine_that_comes_online_meanwhile_is_waited_for() {
    let mut watch = watch();
    watch.saw_presence(Presence::Offline, Duration::ZERO);
    watch.saw_presence(Presence::Online, SETTLE);
    assert_eq!(watch.verdict(Wait::Online, LATE, WALL), Verdict::Pending);
}

#[test]
fn an_answer_counts_although_the_presence_says_offline() {
    let mut watch = watch();
    watch.saw_presence(Presence::Offline, Duration::ZERO);
    watch.saw_status(&status(order(5), State::Fetching), LATE);
    assert_eq!(
        watch.verdict(Wait::Online, LATE + SOON, WALL),
        Verdict::Pending
    );
    watch.saw_status(&status(order(5), State::Succeeded), LATE + SOON);
    assert_eq!(outcome(&watch, LATE + SOON), Some(Outcome::Succeeded));
}

#[test]
fn the_connection_that_an_activation_cuts_is_waited_for() {
    let mut watch = online();
    watch.saw_status(&status(order(5), State::Confirming), SOON);
    watch.saw_presence(Presence::Offline, SOON);
    assert_eq!(watch.verdict(Wait::Online, LATE, WALL), Verdict::Pending);
}

#[test]
fn a_laptop_that_is_closed_while_it_fetches_is_let_go() {
    let mut watch = online();
    watch.saw_status(&status(order(5), State::Fetching), SOON);
    watch.saw_presence(Presence::Offline, SOON);
    let verdict = |watch: &Watch, now| watch.verdict(Wait::Online, now, WALL);
    assert_eq!(verdict(&watch, OFFLINE_GRACE), Verdict::Pending);
    assert_eq!(verdict(&watch, SOON + OFFLINE_GRACE), Verdict::Away);
}

#[test]
fn a_newer_deployment_supersedes_one_that_was_not_begun() {
    let mut watch = online();
    watch.overtaken(id(9), SOON);
    assert_eq!(outcome(&watch, SOON), None);
    let Verdict::Ended(end) = watch.verdict(Wait::Online, SOON + NEWER_GRACE, WALL) else {
        panic!("it is still waited for");
    };
    assert_eq!(
        (end.outcome, end.superseded_by),
        (Outcome::Superseded, Some(id(9)))
    );
    // People know it by its end, as everywhere.
    assert_eq!(
        end.message.as_str(),
        "the newer deployment 00000009 took its place"
    );
}

#[test]
fn a_machine_ends_what_it_began_although_a_newer_one_waits() {
    let mut watch = online();
    watch.saw_status(&status(order(5), State::Activating), SOON);
    watch.overtaken(id(9), SOON);
    let mut aware = status(order(5), State::Activating);
    aware.floor = 9;
    watch.saw_status(&aware, SOON);
    assert_eq!(outcome(&watch, LATE), None);
    watch.saw_status(&status(order(9), State::Waiting), SOON);
    assert_eq!(outcome(&watch, LATE), None);
    watch.saw_status(&status(order(9), State::Fetching), LATE);
    assert_eq!(outcome(&watch, LATE), None);
    watch.saw_history(&history(&[(5, State::Succeeded)]));
    assert_eq!(outcome(&watch, LATE), Some(Outcome::Succeeded));
}

#[test]
fn a_machine_that_went_on_without_it_has_superseded_it() {
    let mut watch = online();
    watch.saw_status(&status(order(9), State::Succeeded), SOON);
    assert_eq!(
        outcome(&watch, SOON + NEWER_GRACE),
        Some(Outcome::Superseded)
    );
}

#[test]
fn a_lost_race_is_superseded_rather_than_rejected() {
    let mut refused = status(order(9), State::Activating);
    refused.refused = Some(refusal("d1", Reason::Stale));
    let mut rejected = status(order(5), State::Rejected);
    rejected.reason = Some(Reason::Stale);
    for report in [refused, rejected] {
        let mut watch = online();
        watch.saw_status(&report, SOON);
        watch.overtaken(id(9), SOON);
        let Verdict::Ended(end) = watch.verdict(Wait::Online, SOON, WALL) else {
            panic!("it is still waited for");
        };
        assert_eq!(
            (end.outcome, end.superseded_by),
            (Outcome::Superseded, Some(id(9)))
        );
    }
}

#[test]
fn a_machine_that_refused_these_very_bytes_has_rejected_them() {
    let outcome_of = |digest| {
        let mut report = status(order(2), State::Succeeded);
        report.refused = Some(refusal(digest, Reason::Unverified));
        let mut watch = online();
        watch.saw_status(&report, SOON);
        outcome(&watch, SOON)
    };
    assert_eq!(outcome_of("d1"), Some(Outcome::Rejected));
    assert_eq!(outcome_of("d2"), None);
}

#[test]
fn what_nobody_answered_before_it_ended_has_expired() {
    let watch = online();
    let late = Timestamp::from_ms(2_001);
    let Verdict::Ended(end) = watch.verdict(Wait::All, SOON, late) else {
        panic!("it is still waited for");
    };
    assert_eq!(end.outcome, Outcome::Expired);
}

#[test]
fn when_the_time_is_up_a_silent_machine_and_a_busy_one_are_told_apart() {
    let silent = online().given_up();
    let mut watch = online();
    watch.saw_status(&status(order(5), State::Fetching), SOON);
    let busy = watch.given_up();
    assert_eq!(
        (silent.outcome, busy.outcome),
        (Outcome::TimedOut, Outcome::TimedOut)
    );
    assert!(silent.message.as_str().contains("did not answer"));
    assert!(busy.message.as_str().contains("`fetching`"));
}

#[derive(Clone, Debug)]
enum Seen {
    Status(u64, State),
    History(State),
    Presence(Presence),
}

fn seen() -> impl Strategy<Value = Seen> {
    let under_way = proptest::sample::select(vec![
        State::Waiting,
        State::Fetching,
        State::Activating,
        State::Confirming,
        State::RollingBack,
    ]);
    prop_oneof![
        4 => under_way.prop_map(|state| Seen::Status(5, state)),
        2 => (1..5_u64, proptest::sample::select(State::ALL)).prop_map(|(n, s)| Seen::Status(n, s)),
        1 => Just(Seen::Presence(Presence::Online)),
        1 => Just(Seen::Presence(Presence::Offline)),
    ]
}

proptest! {
    /// Whatever else is seen, however often and in whatever order: the one outcome is found, and stays.
    #[test]
    fn the_outcome_is_found_in_any_order_of_reports(
        noise in proptest::collection::vec(seen(), 0..30),
        state in proptest::sample::select(
            State::ALL.iter().copied().filter(|state| state.is_final()).collect::<Vec<_>>()
        ),
        in_history in any::<bool>(),
        at in any::<prop::sample::Index>(),
        repeat in any::<prop::sample::Index>(),
    ) {
        let mut all = noise;
        let ended = if in_history { Seen::History(state) } else { Seen::Status(5, state) };
        all.insert(at.index(all.len() + 1), ended.clone());
        all.insert(repeat.index(all.len() + 1), ended);
        let mut watch = watch();
        let mut found = false;
        for (n, seen) in all.iter().enumerate() {
            let now = Duration::from_millis(n as u64);
            match seen {
                Seen::Status(n, state) => watch.saw_status(&status(order(*n), *state), now),
                Seen::History(state) => watch.saw_history(&history(&[(5, *state), (4, State::Failed)])),
                Seen::Presence(presence) => watch.saw_presence(*presence, now),
            }
            found |= matches!(seen, Seen::History(_))
                || matches!(seen, Seen::Status(5, state) if state.is_final());
            prop_assert_eq!(outcome(&watch, now), found.then(|| Outcome::of(state)).flatten());
        }
        prop_assert_eq!(outcome(&watch, LATE), Outcome::of(state));
        prop_assert_eq!(Some(watch.given_up().outcome), Outcome::of(state));
    }

    /// Nothing that is seen makes a run wait past its end: once given up there is always an outcome.
    #[test]
    fn whatever_was_seen_giving_up_names_an_outcome_that_is_not_good(noise in proptest::collection::vec(seen(), 0..30)) {
        let mut watch = watch();
        for seen in &noise {
            match seen {
                Seen::Status(n, state) => watch.saw_status(&status(order(*n), *state), SOON),
                Seen::Presence(presence) => watch.saw_presence(*presence, SOON),
                Seen::History(state) => watch.saw_history(&history(&[(5, *state)])),
            }
        }
        prop_assert!(!watch.given_up().outcome.is_good());
    }
}

#[test]
fn a_held_machine_is_waited_for_only_when_all_are() {
    let mut watch = online();
    let mut report = status(order(5), State::Held);
    report.held = true;
    watch.saw_status(&report, SOON);
    assert_eq!(watch.verdict(Wait::Online, SOON, WALL), Verdict::Held);
    assert_eq!(watch.verdict(Wait::All, LATE, WALL), Verdict::Pending);
    let end = watch.given_up();
    assert_eq!(end.outcome, Outcome::Deferred);
    assert!(
        end.message.as_str().contains("`hoist-agent release`"),
        "{}",
        end.message
    );
    // Its laptop is closed meanwhile: it is held still.
    watch.saw_presence(Presence::Offline, SOON);
    assert_eq!(watch.given_up().outcome, Outcome::Deferred);
    // Somebody released it.
    watch.saw_status(&status(order(5), State::Succeeded), LATE);
    assert_eq!(outcome(&watch, LATE), Some(Outcome::Succeeded));
}

#[test]
fn a_hold_by_the_deployment_is_told_from_one_at_the_machine() {
    let mut watch = online();
    watch.saw_status(&status(order(5), State::Held), SOON);
    let end = watch.given_up();
    assert!(
        end.message
            .as_str()
            .starts_with("held from afar; it takes this on release"),
        "{}",
        end.message
    );
}

#[test]
fn what_is_staged_or_was_tried_dry_has_ended_well() {
    for (state, expected) in [
        (State::Staged, Outcome::Staged),
        (State::DryActivated, Outcome::DryActivated),
        (State::Cancelled, Outcome::Cancelled),
    ] {
        for wait in [Wait::Online, Wait::All] {
            let mut watch = online();
            watch.saw_status(&status(order(5), state), SOON);
            let Verdict::Ended(end) = watch.verdict(wait, SOON, WALL) else {
                panic!("{state} is waited for");
            };
            assert_eq!(end.outcome, expected);
        }
    }
}

#[test]
fn the_rate_of_a_fetch_follows_from_what_the_machine_says() {
    let mut watch = online();
    let mut says = |seconds: u64, mib: u64| {
        let mut report = status(order(5), State::Fetching);
        report.ts = Timestamp::from_ms(10_000 + seconds * 1_000);
        report.fetch = Some(FetchProgress {
            fetched_bytes: mib << 20,
            fetch_bytes: 1 << 30,
            ..FetchProgress::default()
        });
        watch.saw_status(&report, SOON);
        watch.said().rate
    };
    assert_eq!(says(0, 10), None);
    assert_eq!(says(2, 30), Some(10 << 20));
    assert_eq!(says(3, 60), Some(20 << 20));
    // The same report once more, and one of another fetch that began anew.
    assert_eq!(says(3, 60), Some(20 << 20));
    assert_eq!(says(4, 5), None);
}

#[test]
fn what_a_deployment_changed_is_known_from_the_history_too() {
    let mut watch = online();
    let mut seen = history(&[(5, State::Succeeded)]);
    let changes = Changes {
        packages_changed: 3,
        ..Changes::default()
    };
    seen.entries[0].changes = Some(changes.clone());
    seen.entries[0].closure_size = Some(7);
    watch.saw_history(&seen);
    assert_eq!(watch.said().changes, Some(changes));
    assert_eq!(watch.said().closure_size, Some(7));
}
