use proptest::prelude::*;

use super::*;

const A: &str = "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-web";
const B: &str = "/nix/store/1c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-db";

fn parse(text: &str) -> Result<Spec, String> {
    let json = serde_json::from_str::<Json>(text).map_err(|error| error.to_string())?;
    Spec::from_json(json).map_err(|error| chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[test]
fn a_spec_of_cachix_deploy_is_read() {
    let spec = parse(&format!(
        r#"{{"agents": {{"web-1": "{A}", "db-1": "{B}"}}, "rollbackScript": {{"x86_64-linux": "{A}"}}}}"#
    ))
    .unwrap();
    let web = AgentName::new("web-1").unwrap();
    assert_eq!(spec.agents()[&web].path.as_str(), A);
    assert_eq!(spec.agents().len(), 2);
    let Some(Probe::Program(programs)) = spec.health_check().map(|check| &check.probe) else {
        panic!("no health check");
    };
    assert_eq!(programs.len(), 1);
}

#[test]
fn what_is_wrong_is_named_with_its_machine_and_field() {
    for (text, expected) in [
        (
            "[]",
            "the spec is a list, where an object with the key `agents` belongs",
        ),
        ("{}", "it names no machine: `agents` is missing or empty"),
        (
            r#"{"agents": {}}"#,
            "it names no machine: `agents` is missing or empty",
        ),
        (
            r#"{"agents": {"web-1": 5}}"#,
            "`agents.web-1` is a number, where a store path, or an object with one, belongs",
        ),
        (
            r#"{"agents": {"web-1": "/etc/passwd"}}"#,
            "agent `web-1`: what it shall run is no store path: `/etc/passwd` is no store path: it does not start with `/nix/store/`",
        ),
        (
            r#"{"agents": {"Web": "x"}}"#,
            "agent \"Web\": not a valid name: `Web` holds 'W'; a name is made of `a-z`, `0-9`, `-` and `_`",
        ),
        (
            r#"{"agent": {}}"#,
            "unknown key `agent` (did you mean `agents`?); a spec has the keys `agents` and `rollbackScript`",
        ),
        (r#"{"agents": {}, "agents": {}}"#, "`agents` is there twice"),
    ] {
        assert_eq!(parse(text).unwrap_err(), expected, "{text}");
    }
}

#[test]
fn a_machine_that_is_there_twice_is_refused() {
    let text = format!(r#"{{"agents": {{"web-1": "{A}", "web-1": "{B}"}}}}"#);
    assert_eq!(parse(&text).unwrap_err(), "`agents.web-1` is there twice");
}

#[test]
fn a_rollback_script_is_named_by_its_system() {
    let text = format!(
        r#"{{"agents": {{"a": "{A}"}}, "rollbackScript": {{"x86_64-linux": "{A}/bin/x"}}}}"#
    );
    let error = parse(&text).unwrap_err();
    assert!(
        error.starts_with("`rollbackScript.x86_64-linux`: "),
        "{error}"
    );
    let text = format!(r#"{{"agents": {{"a": "{A}"}}, "rollbackScript": null}}"#);
    assert_eq!(parse(&text).unwrap().health_check(), None);
}

#[test]
fn a_chosen_machine_that_is_not_there_is_answered_with_the_nearest() {
    let spec = parse(&format!(
        r#"{{"agents": {{"web-1": "{A}", "db-1": "{B}"}}}}"#
    ))
    .unwrap();
    let name = |name: &str| AgentName::new(name).unwrap();
    let error = spec.clone().only(&[name("wbe-1")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "agent `wbe-1` is not in the spec (did you mean `web-1`?)"
    );
    assert_eq!(spec.clone().only(&[]).unwrap().agents().len(), 2);
    assert_eq!(spec.only(&[name("db-1")]).unwrap().agents().len(), 1);
}

proptest! {
    #[test]
    fn hostile_json_is_refused_and_never_echoed_raw(text in r#"[{}\[\]":,a-z0-9\\u\x1b\n/é-]{0,60}"#) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.contains('\u{1b}'), "{error:?}");
        }
    }

    #[test]
    fn whatever_names_and_paths_it_holds_nothing_invalid_gets_through(
        name in ".{0,70}", path in ".{0,300}"
    ) {
        let text = serde_json::json!({ "agents": { name: path } }).to_string();
        match parse(&text) {
            Ok(spec) => {
                let (name, wanted) = spec.agents().first_key_value().unwrap();
                prop_assert!(AgentName::new(name.as_str()).is_ok());
                prop_assert!(StorePath::new(wanted.path.as_str()).is_ok());
            }
            Err(error) => prop_assert!(!error.chars().any(char::is_control), "{error:?}"),
        }
    }
}

#[test]
fn deep_nesting_is_refused_without_exhausting_the_stack() {
    let text = format!("{{\"agents\": {}", "[".repeat(100_000));
    assert!(parse(&text).is_err());
}
