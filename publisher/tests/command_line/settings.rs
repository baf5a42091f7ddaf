//! Settings, specs and the command line as such.

use std::fs;
use std::process::Stdio;

use hoist_protocol::{KeyName, SigningKey};

use crate::folder::{Folder, PATH, text};

#[test]
fn the_doctor_names_every_key_that_cannot_be_used() {
    let folder = Folder::new();
    folder.write("junk.signing-key", "junk");
    let settings = fs::read_to_string(folder.path().join("hoist.toml")).unwrap();
    let settings = settings.replace(
        "signing_key = 'ci.signing-key'\n",
        "signing_key = ['gone.signing-key', 'junk.signing-key', 'ci.signing-key']\ntrusted_keys = ['ci2:junk']\n\
         cache = 's3://user:secret@bucket?secret-key=/run/key'\n",
    );
    folder.write("hoist.toml", &settings);
    let output = folder.hoist(&["doctor", "--ca", "missing.pem"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    for (verdict, what) in [
        ("WRONG", "cannot read `missing.pem`"),
        ("WRONG", "gone.signing-key"),
        (
            "WRONG",
            "the signing key of `signing_key` in hoist.toml cannot be used",
        ),
        ("ok", "which the machines have to trust"),
        ("WRONG", "`trusted_keys` in hoist.toml is not valid"),
        ("ok", "s3://bucket, from `cache` in hoist.toml"),
    ] {
        let is_said = |line: &str| line.starts_with(verdict) && line.contains(what);
        assert!(said.lines().any(is_said), "{verdict}, {what}: {said}");
    }
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn a_malformed_spec_names_the_machine_and_the_field() {
    let folder = Folder::new();
    let drv = format!(r#"{{"agents": {{"web-1": "{PATH}.drv"}}}}"#);
    for (spec, said) in [
        (
            r#"{"agents": {"web-1": "/etc/passwd"}}"#,
            "error: the spec `bad.json` is not valid: agent `web-1`: what it shall run is no store path: \
             `/etc/passwd` is no store path: it does not start with `/nix/store/`\n"
                .to_owned(),
        ),
        (
            r#"{"agents": {"web-1": null}}"#,
            "error: the spec `bad.json` is not valid: `agents.web-1` is null, where a store path, or an object \
             with one, belongs\n"
                .to_owned(),
        ),
        (
            r#"{"agnets": {}}"#,
            "error: the spec `bad.json` is not valid: unknown key `agnets` (did you mean `agents`?); a spec has \
             the keys `agents`, `aliases` and `rollbackScript`\n"
                .to_owned(),
        ),
        (
            &drv,
            format!(
                "error: the spec `bad.json` is not valid: agent `web-1`: what it shall run is no store path: \
                 `{PATH}.drv` is a derivation, which a machine would have to build; give its output\n"
            ),
        ),
        (
            "{",
            "error: the spec `bad.json` is no JSON: EOF while parsing an object at line 1 column 1\n"
                .to_owned(),
        ),
    ] {
        folder.write("bad.json", spec);
        assert_eq!(folder.refused(&["deploy", "bad.json"], 2), said);
    }
}

#[test]
fn a_spec_is_read_from_standard_input() {
    let folder = Folder::new();
    folder.write("empty.json", "{}");
    let file = fs::File::open(folder.path().join("empty.json")).unwrap();
    let output = folder
        .command(&["deploy", "-"])
        .stdin(file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stderr),
        "error: the spec on standard input is not valid: it names no machine: `agents` is missing or empty\n"
    );
}

#[test]
fn a_machine_that_the_spec_does_not_have_is_answered_with_the_nearest() {
    let folder = Folder::new();
    assert_eq!(
        folder.refused(&["deploy", "spec.json", "--agent", "wbe-1"], 2),
        "error: agent `wbe-1` is not in the spec (did you mean `web-1`?)\n"
    );
}

#[test]
fn a_missing_setting_names_its_flag_its_variable_and_its_key() {
    let folder = Folder::new();
    folder.write("hoist.toml", "");
    assert_eq!(
        folder.refused(&["deploy", "spec.json"], 2),
        "error: no broker is given; use --broker, the environment variable HOIST_BROKER, or `broker` in \
         hoist.toml\n"
    );
}

#[test]
fn a_bad_value_is_named_with_the_variable_it_came_from() {
    let folder = Folder::new();
    let output = folder
        .command(&["status"])
        .env("HOIST_BROKER", "localhost")
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stderr),
        "error: the environment variable HOIST_BROKER is not valid: `localhost` is no broker URL; it is written \
         `mqtts://HOST[:PORT]`, with port 8883 when none is given\n"
    );
}

#[test]
fn a_misspelt_key_of_the_configuration_is_answered_with_the_nearest() {
    let folder = Folder::new();
    folder.write("hoist.toml", "singing_key = 'x'\n");
    let said = folder.refused(&["status"], 2);
    assert!(
        said.starts_with(
            "error: the configuration cannot be used: hoist.toml:1: unknown key `singing_key` (did you mean \
             `signing_key`?)"
        ),
        "{said}"
    );
}

#[test]
fn the_public_half_of_a_key_does_not_sign() {
    let folder = Folder::new();
    let key = SigningKey::from_seed(KeyName::new("ci").unwrap(), &[7; 32].into());
    folder.write("ci.signing-key", &key.public().to_string());
    let said = folder.refused(&["deploy", "spec.json"], 2);
    assert!(said.contains("this is the public half of a key"), "{said}");
}

#[test]
fn what_cannot_be_deployed_is_refused_before_there_is_a_connection() {
    let folder = Folder::new();
    let said = folder.refused(&["deploy", "spec.json", "--confirm-timeout", "2h"], 2);
    assert!(
        said.starts_with(
            "error: invalid value '2h' for '--confirm-timeout <DURATION>': `2h` is outside of what is allowed, 1s \
             to 1h"
        ),
        "{said}"
    );
    let said = folder.refused(&["deploy", "spec.json", "--timeout", "soon"], 2);
    assert!(
        said.contains("`soon` is no duration; it is written like `30s`, `5m`, `2h` or `90d`"),
        "{said}"
    );
}

#[test]
fn a_broker_that_is_not_there_is_named_and_nothing_was_published() {
    let folder = Folder::new();
    let said = folder.refused(&["deploy", "spec.json"], 1);
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("error: cannot connect to the broker (5 attempts): mqtts://127.0.0.1:"),
        "{said}"
    );
    assert!(last.ends_with("is the broker running?"), "{said}");
}

#[test]
fn with_json_an_error_is_a_document_too() {
    let folder = Folder::new();
    let output = folder.hoist(&["deploy", "spec.json", "--json", "--agent", "x"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["exit_code"], 2);
    assert_eq!(json["error"], "agent `x` is not in the spec");
}

#[test]
fn a_key_on_the_command_line_is_refused_and_not_repeated() {
    let folder = Folder::new();
    let key = fs::read_to_string(folder.path().join("ci.signing-key")).unwrap();
    let said = folder.refused(&["deploy", "spec.json", "--signing-key", &key], 2);
    assert_eq!(
        said,
        "error: --signing-key takes a file: on a command line every user of this computer could read the key; \
         put the text into the environment variable HOIST_SIGNING_KEY instead\n"
    );
}

#[test]
fn help_lists_the_exit_codes_and_a_closed_reader_is_no_panic() {
    let folder = Folder::new();
    let help = text(&folder.hoist(&["deploy", "--help"]).stdout);
    assert!(help.contains("\n  130  interrupted"), "{help}");
    let mut child = folder
        .command(&["deploy", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_wrong_command_line_is_usage() {
    let folder = Folder::new();
    for args in [
        &["deploy"][..],
        &["deploy", "spec.json", "--agent", "Web"],
        &["deploy", "spec.json", "--async", "--wait", "all"],
        &["rollback"],
        &["hoist"],
    ] {
        assert_eq!(folder.hoist(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn the_doctor_says_once_that_others_can_read_a_key() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = Folder::new();
    for name in ["ci.key", "ci.signing-key"] {
        let readable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(folder.path().join(name), readable).unwrap();
    }
    let output = folder.hoist(&["doctor"]);
    assert_eq!(text(&output.stderr), "");
    let said = text(&output.stdout);
    for name in ["ci.key", "ci.signing-key"] {
        let advice = format!("`chmod 600 {name}`");
        assert_eq!(said.matches(&advice).count(), 1, "{name}: {said}");
    }
}
