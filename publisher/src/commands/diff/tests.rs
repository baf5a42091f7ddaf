use expect_test::expect;
use hoist_protocol::{History, PackageChange, State};

use super::*;
use crate::snapshot::Seen;
use crate::testing::{entry, id, machine, order, path, status};

fn package(
    name: &str,
    change: hoist_protocol::PackageFate,
    from: &[&str],
    to: &[&str],
    size: i64,
) -> hoist_protocol::PackageDifference {
    let versions = |versions: &[&str]| versions.iter().map(ToString::to_string).collect();
    hoist_protocol::PackageDifference {
        name: name.to_owned(),
        change,
        from: versions(from),
        to: versions(to),
        size_difference: size,
    }
}

/// Two closures in the store.
fn all() -> Compared {
    use hoist_protocol::PackageFate::{Added, Rebuilt, Removed, Updated};
    let difference = ClosureDifference {
        packages: vec![
            package("etc", Rebuilt, &[], &[], 0),
            package("git", Added, &[], &["2.44"], 41 << 20),
            package(
                "linux",
                Updated,
                &["6.6.10", "6.6.10-modules"],
                &["6.6.12", "6.6.12-modules"],
                3 << 10,
            ),
            package("vim", Removed, &["9.0"], &[], -(5 << 20)),
        ],
        size_before: 1_200 << 20,
        size_after: 1_236 << 20,
    };
    let side = |name, n, size| Side {
        path: Some(path(name)),
        id: Some(id(n)),
        size: Some(size),
    };
    Compared {
        agent: Some(machine("web-1").agent),
        from: side("nixos-system-web-1-v1", 1, 1_200 << 20),
        to: side("nixos-system-web-1-v2", 2, 1_236 << 20),
        found: Found::All(difference),
    }
}

/// What `web-1` says: the second was brought after the first, and the third after that.
fn seen() -> Seen {
    let machine = machine("web-1");
    let mut entries = vec![
        entry(3, State::Succeeded, "v3"),
        entry(2, State::Succeeded, "v2"),
        entry(1, State::Succeeded, "v1"),
    ];
    for n in 0..2 {
        entries[n].previous_path = entries[n + 1].path.clone();
        entries[n].changes = Some(Changes {
            packages_changed: 2,
            size_difference: 1 << 20,
            ..Changes::default()
        });
    }
    entries[1].closure_size = Some(101 << 20);
    entries[2].closure_size = Some(100 << 20);
    let mut report = status(order(3), State::Succeeded);
    report.changes = Some(Changes {
        packages_changed: 2,
        size_difference: 1 << 20,
        packages: vec![PackageChange {
            name: Text::lossy("openssl"),
            from: Some(Text::lossy("3.0.1")),
            to: Some(Text::lossy("3.0.2")),
        }],
        ..Changes::default()
    });
    Seen {
        status: Some(report),
        history: Some(History {
            agent: machine.agent,
            fleet: machine.fleet,
            entries,
        }),
        ..Seen::default()
    }
}

fn compare(ids: &[u128]) -> Compared {
    let ids: Vec<IdEnd> = (ids.iter().map(|n| id(*n).short().parse().unwrap())).collect();
    Known::of(&seen())
        .compare(&machine("web-1").agent, &ids)
        .unwrap()
}

#[test]
fn all_that_is_different_is_a_table() {
    expect![[r#"
        from  /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-v1  deployment 00000001  1.2 GiB
        to    /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-v2  deployment 00000002  1.2 GiB

        PACKAGE  CHANGE   FROM                    TO                      SIZE
        etc      rebuilt  -                       -                       -
        git      added    -                       2.44                    +41 MiB
        linux    updated  6.6.10, 6.6.10-modules  6.6.12, 6.6.12-modules  +3.0 KiB
        vim      removed  9.0                     -                       -5.0 MiB

        1 updated, 1 added, 1 removed, 1 rebuilt, +36 MiB
    "#]].assert_eq(&show::text(&all(), Page::plain(None)));
    expect![[r#"
        from  /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-v1  deployment 00000001  1.2 GiB
        to    /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-v2  deployment 00000002  1.2 GiB

        PACKAGE  CHANGE   FROM                    TO                      SIZE
        etc      rebuilt  -                       -                       -
        git      added    -                       2.44                    +41 MiB
        linux    updated  6.6.10, 6.6.10-modules  6.6.12, 6.6.12-modules  +3.0 KiB
        vim      removed  9.0                     -                       -5.0 MiB

        1 updated, 1 added, 1 removed, 1 rebuilt, +36 MiB
    "#]].assert_eq(&show::text(&all(), Page::plain(Some(80))));
    assert_eq!(show::remark(&all()), None);
}

#[test]
fn of_the_newest_deployment_the_machine_names_packages() {
    let compared = compare(&[]);
    assert_eq!(
        (compared.from.id, compared.to.id),
        (Some(id(2)), Some(id(3)))
    );
    expect![[r#"
        from  /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-v2  deployment 00000002  101 MiB
        to    /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-v3  deployment 00000003

        2 packages changed, +1.0 MiB
          openssl 3.0.1 → 3.0.2
          and 1 more: a machine names 40 at most
    "#]]
    .assert_eq(&show::text(&compared, Page::plain(None)));
    assert!(
        show::remark(&compared)
            .unwrap()
            .starts_with("by the word of web-1")
    );
}

#[test]
fn of_an_older_one_it_counts_them() {
    expect![[r#"
        from  /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-v1  deployment 00000001  100 MiB
        to    /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-v2  deployment 00000002  101 MiB

        2 packages changed, +1.0 MiB
          2 that it does not name
    "#]]
    .assert_eq(&show::text(&compare(&[2]), Page::plain(None)));
}

#[test]
fn of_two_that_do_not_follow_each_other_only_sizes_are_known() {
    let compared = compare(&[1, 3]);
    assert_eq!(compared.found, Found::Sizes);
    let backwards = compare(&[2, 1]);
    assert_eq!(backwards.found, Found::Sizes);
    assert!(show::text(&backwards, Page::plain(None)).ends_with("\n-1.0 MiB in all\n"));
    assert!(
        show::text(&compared, Page::plain(None))
            .ends_with("nothing is known of what is different\n")
    );
    // Somebody who asks for what followed gets what the machine said of it.
    assert!(matches!(compare(&[2, 3]).found, Found::Said(_)));
    assert_eq!(compare(&[2, 2]).found, Found::Same);
}

#[test]
fn an_id_that_the_history_does_not_have_is_an_error_that_says_where_to_look() {
    let ids = ["ffffffff".parse().unwrap()];
    let error = Known::of(&seen())
        .compare(&machine("web-1").agent, &ids)
        .unwrap_err();
    assert!(
        error.to_string().contains("`hoist history web-1`"),
        "{error}"
    );
    let nothing = Known::of(&Seen::default()).compare(&machine("web-1").agent, &[]);
    assert!(
        nothing
            .unwrap_err()
            .to_string()
            .contains("nothing was deployed")
    );
}

#[test]
fn paths_and_names_are_told_apart() {
    let ask = |what: &[&str]| {
        let what: Vec<String> = what.iter().map(ToString::to_string).collect();
        asked(&what)
    };
    let (one, two) = (path("v1"), path("v2"));
    let inside = format!("{two}/bin");
    assert!(matches!(
        ask(&[one.as_str(), &inside]).unwrap(),
        Asked::Paths(from, to) if from == one && to == two
    ));
    assert!(matches!(ask(&["web-1"]).unwrap(), Asked::Machine(_, ids) if ids.is_empty()));
    for (bad, says) in [
        (&["/nix/store/x"][..], "1 paths were given"),
        (&["web-1", one.as_str()], "1 paths were given"),
        (&["Web 1"], "neither a name nor a path"),
        (&["/", "/"], "`/` leads to no store path"),
        (
            &["/nowhere/at/all", one.as_str()],
            "cannot follow `/nowhere/at/all`",
        ),
    ] {
        let error = ask(bad).unwrap_err().to_string();
        assert!(error.contains(says), "{bad:?}: {error}");
    }
}

#[test]
fn a_link_is_followed_into_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("result");
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    let error = followed(link.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, DiffError::NotInStore { .. }), "{error}");
}

#[test]
fn the_json_has_the_fields_that_the_manual_names() {
    let json = |compared: &Compared| serde_json::from_str(&show::json(compared)).unwrap();
    crate::manual::assert_names("diff", &json(&all()));
    // The fields are the same, whoever knows.
    crate::manual::assert_names("diff", &json(&compare(&[])));
    let unknown: serde_json::Value = json(&compare(&[1, 3]));
    assert_eq!(
        (&unknown["known_from"], &unknown["changes"]),
        (&"nothing".into(), &serde_json::Value::Null)
    );
}
