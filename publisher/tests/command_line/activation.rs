//! The flags that say how closures are activated, and what contradicts them.

use crate::folder::{Folder, PATH, text};

#[test]
fn a_bad_value_is_named_with_its_flag_and_the_rule_it_breaks() {
    let folder = Folder::new();
    for (args, said) in [
        (
            &["--kind", "nixso"][..],
            "invalid value 'nixso' for '--kind <KIND>'",
        ),
        (&["--kind", "nixso"], "a similar value exists: 'nixos'"),
        (
            &["--custom-activator", "../x"],
            "invalid value '../x' for '--custom-activator <PROGRAM>': `../x` is no file of a closure",
        ),
        (
            &["--action", "reboot"],
            "invalid value 'reboot' for '--action <ACTION>'",
        ),
        (
            &["--specialisation", "a/b"],
            "invalid value 'a/b' for '--specialisation <NAME>': `a/b` is no specialisation",
        ),
        (
            &["--profile", "system"],
            "invalid value 'system' for '--profile <NAME>': `system` is no profile",
        ),
        (
            &["--units-failed", "ignore"],
            "invalid value 'ignore' for '--units-failed <WHAT>'",
        ),
        (
            &["--spread", "2d"],
            "invalid value '2d' for '--spread <DURATION>': `2d` is outside of what is allowed, 0s to 1d",
        ),
        (
            &["--activation-timeout", "7h"],
            "invalid value '7h' for '--activation-timeout <DURATION>': `7h` is outside of what is allowed, 1s to 6h",
        ),
        (
            &["--check-unit", "nginx"],
            "invalid value 'nginx' for '--check-unit <UNIT>': `nginx` is no systemd unit",
        ),
        (
            &["--check-tcp", "localhost"],
            "invalid value 'localhost' for '--check-tcp <HOST:PORT>': `localhost` is no address",
        ),
        (
            &["--check-http", "localhost/x"],
            "invalid value 'localhost/x' for '--check-http <URL>': `localhost/x` is no URL to check",
        ),
        (
            &["--check-unit", "a.service", "--check-retries", "101"],
            "invalid value '101' for '--check-retries <NUMBER>': it is a whole number from 0 to 100",
        ),
        (
            &["--check-unit", "a.service", "--check-grace", "soon"],
            "invalid value 'soon' for '--check-grace <DURATION>': `soon` is no duration",
        ),
        (
            &["--check-unit", "a.service", "--check-interval", "0s"],
            "invalid value '0s' for '--check-interval <DURATION>': `0s` is outside of what is allowed, 10ms to 10m",
        ),
        (
            &["--check-unit", "a.service", "--check-timeout", "2h"],
            "invalid value '2h' for '--check-timeout <DURATION>': `2h` is outside of what is allowed, 10ms to 1h",
        ),
    ] {
        let args = [&["deploy", "spec.json"], args].concat();
        let answer = folder.refused(&args, 2);
        assert!(answer.contains(said), "{args:?}: {answer}");
    }
}

#[test]
fn what_is_said_of_health_checks_needs_one() {
    let folder = Folder::new();
    for flags in [
        &["--check-grace", "10s"][..],
        &["--check-retries", "3"],
        &["--check-interval", "1s"],
        &["--check-timeout", "1s"],
        &["--check-only-if-held-before"],
    ] {
        let answer = folder.refused(&[&["deploy", "spec.json"], flags].concat(), 2);
        for flag in ["--check-unit", "--check-tcp", "--check-http"] {
            assert!(answer.contains(flag), "{flags:?}: {answer}");
        }
    }
}

#[test]
fn flags_that_contradict_each_other_are_named() {
    let folder = Folder::new();
    for (args, said) in [
        (
            &["--kind", "home-manager", "--action", "boot"][..],
            "error: --action and --kind do not go together: the action `boot` is not for closures of kind \
             `home-manager`\n",
        ),
        (
            &["--specialisation", "blue", "--action", "boot"],
            "error: --specialisation and --action do not go together: a specialisation can only be switched to or \
             tested, and only NixOS systems have any\n",
        ),
        (
            &["--kind", "custom"],
            "error: --kind cannot be deployed: a closure of kind `custom` is activated by a program in it; name it \
             with --custom-activator\n",
        ),
        (
            &["--kind", "nixos", "--profile", "web"],
            "error: --profile and --kind do not go together: a closure of kind `nixos` has a profile of its own; \
             leave `profile` out\n",
        ),
    ] {
        assert_eq!(
            folder.refused(&[&["deploy", "spec.json"], args].concat(), 2),
            said
        );
    }
}

#[test]
fn a_flag_that_contradicts_the_spec_is_named_with_the_machine() {
    let folder = Folder::new();
    folder.write(
        "spec.json",
        &format!(
            r#"{{"agents": {{"db-1": "{PATH}", "web-1": {{"path": "{PATH}", "kind": "profile", "profile": "web"}}}}}}"#
        ),
    );
    assert_eq!(
        folder.refused(&["deploy", "spec.json", "--action", "test"], 2),
        "error: agent `web-1`: --action and `kind` in the spec do not go together: the action `test` is not for \
         closures of kind `profile`\n"
    );
}

#[test]
fn help_groups_what_can_be_asked_for_and_gives_examples() {
    let folder = Folder::new();
    let help = text(&folder.hoist(&["deploy", "--help"]).stdout);
    let headings = [
        "Activation (",
        "Health checks (",
        "Closures:",
        "Deployment:",
        "Following:",
        "Settings:",
    ];
    let mut rest = help.as_str();
    for heading in headings {
        let at = rest.find(&format!("\n{heading}"));
        rest =
            &rest[at.unwrap_or_else(|| panic!("`{heading}` is not where it belongs in {help}"))..];
    }
    for shown in ["--action dry-activate", "--check-http http://localhost/"] {
        assert!(help.contains(shown), "{help}");
    }
}
