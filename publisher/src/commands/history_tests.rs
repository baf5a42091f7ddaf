use expect_test::expect;
use hoist_protocol::{History, Reason, State, Text};

use super::*;
use crate::testing::{entry, machine, order, path, status};

const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_000);

/// One that is under way, and three that have ended.
fn seen() -> Seen {
    let machine = machine("web-1");
    let ago = |seconds: u64| Timestamp::from_ms(NOW.as_ms() - seconds * 1_000);
    let mut failed = entry(3, State::RolledBack, "nixos-system-web-1-v3");
    failed.reason = Some(Reason::HealthCheckFailed);
    failed.message = Text::lossy("port 80\nis closed\u{1b}[2J");
    (failed.started_at, failed.ended_at) = (ago(363), ago(300));
    failed.closure_size = Some(1_300_000_000);
    failed.fetched_bytes = Some(12_000_000);
    failed.changes = Some(Changes {
        packages_added: 2,
        packages_changed: 3,
        size_difference: 12 << 20,
        ..Changes::default()
    });
    let mut local = entry(2, State::Succeeded, "nixos-system-web-1-v2");
    local.local = true;
    (local.started_at, local.ended_at) = (ago(7_220), ago(7_200));
    local.changes = Some(Changes::default());
    let mut first = entry(1, State::Succeeded, "nixos-system-web-1-v1");
    first.path = None;
    (first.started_at, first.ended_at) = (ago(90_000), ago(90_000));
    let mut report = status(order(4), State::Fetching);
    report.path = Some(path("nixos-system-web-1-v4"));
    report.progress = Some(41);
    Seen {
        status: Some(report),
        history: Some(History {
            agent: machine.agent,
            fleet: machine.fleet,
            entries: vec![failed, local, first],
        }),
        ..Seen::default()
    }
}

fn shown(width: Option<u16>) -> String {
    text(&machine("web-1").agent, &seen(), NOW, Page::plain(width))
}

#[test]
fn without_a_terminal_each_deployment_is_a_line() {
    expect![[r#"
        DEPLOYMENT  ENDED      TOOK   OUTCOME      CLOSURE                        SIZE     CHANGES         MESSAGE
        00000004    -          -      fetching     0c5b8w3-nixos-system-web-1-v4  -        -
        00000003    5m ago     1m 3s  rolled back  0c5b8w3-nixos-system-web-1-v3  1.2 GiB  +2 ~3, +12 MiB  [health_check_failed] port 80 is closed�[2J
        00000002    2h ago     20s    succeeded    0c5b8w3-nixos-system-web-1-v2  -        none            (ordered at the machine)
        00000001    1d 1h ago  0ms    succeeded    -                              -        -
    "#]].assert_eq(&shown(None));
}

#[test]
fn on_a_wide_terminal_everything_has_room() {
    expect![[r#"
        DEPLOYMENT  ENDED      TOOK   OUTCOME      CLOSURE                        SIZE     CHANGES         MESSAGE
        00000004    -          -      fetching     0c5b8w3-nixos-system-web-1-v4  -        -
        00000003    5m ago     1m 3s  rolled back  0c5b8w3-nixos-system-web-1-v3  1.2 GiB  +2 ~3, +12 MiB  [health_check_failed] port 80 is closed�[2J
        00000002    2h ago     20s    succeeded    0c5b8w3-nixos-system-web-1-v2  -        none            (ordered at the machine)
        00000001    1d 1h ago  0ms    succeeded    -                              -        -
    "#]].assert_eq(&shown(Some(160)));
}

#[test]
fn on_a_narrow_terminal_lines_are_broken_where_they_can_be_read() {
    let narrow = shown(Some(80));
    assert!(
        narrow.lines().all(|line| line.chars().count() <= 80),
        "{narrow}"
    );
    expect![[r#"
        DEPLOYMENT  ENDED      TOOK   OUTCOME      CLOSURE       SIZE     CHANGES
        00000004    -          -      fetching     0c5b8w3-nix…  -        -
        00000003    5m ago     1m 3s  rolled back  0c5b8w3-nix…  1.2 GiB  +2 ~3, +12…
            [health_check_failed] port 80 is closed�[2J
        00000002    2h ago     20s    succeeded    0c5b8w3-nix…  -        none
            (ordered at the machine)
        00000001    1d 1h ago  0ms    succeeded    -             -        -
    "#]]
    .assert_eq(&narrow);
}

#[test]
fn a_machine_without_a_history_is_told_so() {
    let shown = text(
        &machine("web-1").agent,
        &Seen::default(),
        NOW,
        Page::plain(None),
    );
    assert_eq!(shown, "nothing was deployed to web-1 so far\n");
}

#[test]
fn what_is_under_way_is_said_until_its_end_is_in_the_history() {
    let mut seen = seen();
    assert_eq!(
        under_way(&seen).and_then(|status| status.id),
        Some(order(4).id)
    );
    seen.status = Some(status(order(3), State::RolledBack));
    assert!(under_way(&seen).is_none());
}

#[test]
fn the_json_has_the_fields_that_the_manual_names() {
    let machine = machine("web-1");
    crate::manual::assert_names(
        "history",
        &serde_json::from_str(&json(&machine.fleet, &machine.agent, &seen())).unwrap(),
    );
}
