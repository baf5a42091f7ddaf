use proptest::prelude::*;

use super::*;
use crate::options::{ActionArg, KindArg, UnitsFailedArg};

const A: &str = "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-web";
const B: &str = "/nix/store/1c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-db";

fn parse(text: &str) -> Result<Spec, String> {
    let json = serde_json::from_str::<Json>(text).map_err(|error| error.to_string())?;
    Spec::from_json(json, &Aliases::default()).map_err(|error| chain(&error))
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
fn names_that_are_none_here_mean_machines_by_their_aliases() {
    let spec = |aliases: &str| {
        let agents = format!(r#""agents": {{"Web.example.org": "{A}", "db-1": "{B}"}}"#);
        parse(&format!("{{{agents}{aliases}}}"))
    };
    let web = AgentName::new("web-1").unwrap();
    let named = spec(r#", "aliases": {"Web.example.org": "web-1"}"#).unwrap();
    assert_eq!(named.agents()[&web].path.as_str(), A);
    for (aliases, expected) in [
        ("", "agent \"Web.example.org\": not a valid name"),
        (
            r#", "aliases": {"Web.example.com": "web-1"}"#,
            "did you mean `Web.example.org`",
        ),
        (
            r#", "aliases": {"Web.example.org": "Web"}"#,
            "`aliases.Web.example.org` is not valid",
        ),
        (
            r#", "aliases": {"Web.example.org": "db-1"}"#,
            "`agents.db-1` is there twice",
        ),
        (r#", "aliases": {"": "web-1"}"#, "`aliases.` is not valid"),
        (r#", "aliases": ["web-1"]"#, "`aliases` is a list"),
    ] {
        let error = spec(aliases).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    // Those of a configuration file, which may name more than one spec has; the spec's own go first.
    let mut others = Aliases::default();
    others
        .add("Web.example.org".to_owned(), web.clone())
        .unwrap();
    others
        .add("Mail".to_owned(), AgentName::new("mail").unwrap())
        .unwrap();
    let read =
        |text: String| Spec::from_json(serde_json::from_str(&text).unwrap(), &others).unwrap();
    let plain = read(format!(r#"{{"agents": {{"Web.example.org": "{A}"}}}}"#));
    assert!(plain.agents().contains_key(&web));
    let own = r#""aliases": {"Web.example.org": "web-2"}"#;
    let own = read(format!(
        r#"{{"agents": {{"Web.example.org": "{A}"}}, {own}}}"#
    ));
    assert!(!own.agents().contains_key(&web));
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
            "agent \"Web\": not a valid name, and `aliases`, in the spec or in hoist.toml, has no other one for it: `Web` holds 'W'; a name is made of `a-z`, `0-9`, `-` and `_`",
        ),
        (
            r#"{"agent": {}}"#,
            "unknown key `agent` (did you mean `agents`?); a spec has the keys `agents`, `aliases` and `rollbackScript`",
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
    let only = |text: &str| {
        spec.clone().only(&Selection {
            selectors: text.split(' ').map(|text| text.parse().unwrap()).collect(),
            ..Selection::default()
        })
    };
    let error = only("wbe-1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "agent `wbe-1` is not in the spec (did you mean `web-1`?)"
    );
    let all = spec.clone().only(&Selection::default()).unwrap();
    assert_eq!(all.agents().len(), 2);
    for (text, count) in [
        ("db-1", 1),
        ("db-*", 1),
        ("*", 2),
        ("db-1 web-1", 2),
        ("@any", 2),
        ("!db-1", 1),
    ] {
        assert_eq!(only(text).unwrap().agents().len(), count, "{text}");
    }
    let error = only("eb-*").unwrap_err().to_string();
    assert!(error.contains("`eb-*`"), "{error}");
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

#[test]
fn an_object_says_all_that_flags_can_say_of_one_machine() {
    let digest = "a1ff93f34ef22b33bf1eeae124c576dafd88ee885f49649bee8f1dcfcffa218b";
    let text = format!(
        r#"{{"agents": {{"web-1": {{
            "path": "{A}", "kind": "nixos", "action": "test", "specialisation": "blue",
            "units_failed": "keep-if-failed-before", "allow_no_agent": true, "activation_timeout": "20m",
            "confirm_timeout": "2m", "spread": "1h", "digest": "{digest}",
            "checks": [
                {{"unit": "nginx.service", "grace": "10s", "retries": 3}},
                {{"tcp": "localhost:80", "interval": "2s"}},
                {{"http": "http://localhost/", "timeout": "5s", "only_if_held_before": true}},
                {{"program": {{"x86_64-linux": "{B}"}}}}
            ]}},
            "db-1": {{"path": "{B}", "custom_activator": "bin/activate", "profile": "db"}} }} }}"#
    );
    let spec = parse(&text).unwrap();
    let of = |name: &str| &spec.agents()[&AgentName::new(name).unwrap()];
    let web = of("web-1");
    assert_eq!(web.path.as_str(), A);
    assert_eq!(web.digest.unwrap().to_string(), digest);
    let options = &web.options;
    assert_eq!(options.kind, Some(KindArg::Nixos));
    assert_eq!(options.action, Some(ActionArg::Test));
    assert_eq!(options.specialisation.as_ref().unwrap().as_str(), "blue");
    assert_eq!(
        options.units_failed,
        Some(UnitsFailedArg::KeepIfFailedBefore)
    );
    assert!(options.allow_no_agent);
    let seconds = [
        options.activation_timeout,
        options.confirm_timeout,
        options.spread,
    ];
    assert_eq!(
        seconds.map(|time| time.unwrap().as_secs()),
        [1_200, 120, 3_600]
    );
    let [unit, tcp, http, program] = options.checks.as_slice() else {
        panic!("{:?}", options.checks);
    };
    assert_eq!((unit.grace_ms, unit.retries), (10_000, 3));
    assert_eq!(tcp.interval_ms, 2_000);
    assert_eq!((http.timeout_ms, http.only_if_held_before), (5_000, true));
    assert!(matches!(program.probe, Probe::Program(_)));
    let db = &of("db-1").options;
    assert_eq!(
        db.custom_activator.as_ref().unwrap().as_str(),
        "bin/activate"
    );
    assert_eq!(db.profile.as_ref().unwrap().as_str(), "db");
    assert_eq!(spec.agents()[&AgentName::new("db-1").unwrap()].digest, None);
}

#[test]
fn what_is_wrong_in_an_object_is_named_with_its_field() {
    for (object, expected) in [
        (
            r#"{"path": "PATH", "chekcs": []}"#,
            "`agents.a`: unknown key `chekcs` (did you mean `checks`?); an agent has the keys `path`, `kind`, \
             `custom_activator`, `profile`, `action`, `specialisation`, `units_failed`, `allow_no_agent`, \
             `activation_timeout`, `confirm_timeout`, `spread`, `checks` and `digest`",
        ),
        (
            r#"{"kind": "nixos"}"#,
            "`agents.a` has no `path`: the store path that it shall run",
        ),
        (
            r#"{"path": "PATH", "kind": "nixso"}"#,
            "`agents.a.kind` is `nixso` (did you mean `nixos`?), where one of auto, nixos, darwin, home-manager, \
             deploy-rs, custom, profile belongs",
        ),
        (
            r#"{"path": "PATH", "action": "explode"}"#,
            "`agents.a.action` is `explode`, where one of switch, boot, test, dry-activate belongs",
        ),
        (
            r#"{"path": "PATH", "profile": "system"}"#,
            "`agents.a.profile` is not valid: `system` is no profile: its name has 1 to 63 of `A-Za-z0-9._-`, \
             starts with a letter, a digit or `_`, is not `system` and does not end like `-7-link`",
        ),
        (
            r#"{"path": "PATH", "confirm_timeout": "2h"}"#,
            "`agents.a.confirm_timeout` is not valid: `2h` is outside of what is allowed, 1s to 1h",
        ),
        (
            r#"{"path": "PATH", "confirm_timeout": 60}"#,
            "`agents.a.confirm_timeout` is a number, where a duration such as \"30s\" belongs",
        ),
        (
            r#"{"path": "PATH", "allow_no_agent": "yes"}"#,
            "`agents.a.allow_no_agent` is a string, where true or false belongs",
        ),
        (
            r#"{"path": "PATH", "path": "PATH"}"#,
            "`agents.a.path` is there twice",
        ),
        (
            r#"{"path": "PATH", "digest": "abc"}"#,
            "`agents.a.digest` is not valid: a closure's digest is written with 64 hexadecimal digits",
        ),
        (
            r#"{"path": "PATH", "checks": {"unit": "a.service"}}"#,
            "`agents.a.checks` is an object, where a list of health checks belongs",
        ),
        (
            r#"{"path": "PATH", "checks": [{"unit": "nginx"}]}"#,
            "`agents.a.checks[0].unit` is not valid: `nginx` is no systemd unit: it is a unit's whole name such as \
             nginx.service, of `A-Za-z0-9:_.@\\-`",
        ),
        (
            r#"{"path": "PATH", "checks": [{"unit": "a.service"}, {"grace": "1s"}]}"#,
            "`agents.a.checks[1]` is no health check: it has exactly one of `unit`, `tcp`, `http` and `program`",
        ),
        (
            r#"{"path": "PATH", "checks": [{"unit": "a.service", "tcp": "a:1"}]}"#,
            "`agents.a.checks[0]` is no health check: it has exactly one of `unit`, `tcp`, `http` and `program`",
        ),
        (
            r#"{"path": "PATH", "checks": [{"unit": "a.service", "retries": 101}]}"#,
            "`agents.a.checks[0].retries` is 101; at most 100 are allowed",
        ),
        (
            r#"{"path": "PATH", "checks": [{"unit": "a.service", "retires": 1}]}"#,
            "`agents.a.checks[0]`: unknown key `retires` (did you mean `retries`?); a health check has the keys \
             `unit`, `tcp`, `http`, `program`, `grace`, `retries`, `interval`, `timeout` and `only_if_held_before`",
        ),
        (
            r#"{"path": "PATH", "checks": [{"program": {"x86_64-linux": "x"}}]}"#,
            "`agents.a.checks[0].program.x86_64-linux`: the health check is no store path: `x` is no store path: it \
             does not start with `/nix/store/`",
        ),
    ] {
        let object = object.replace("PATH", A);
        let text = format!(r#"{{"agents": {{"a": {object}}}}}"#);
        assert_eq!(parse(&text).unwrap_err(), expected, "{text}");
    }
}

/// The schema that editors and CI check a spec with.
fn schema() -> serde_json::Value {
    serde_json::from_str(include_str!("../../spec.schema.json")).unwrap()
}

fn keys(schema: &serde_json::Value) -> Vec<&str> {
    let mut keys: Vec<&str> = schema
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

fn sorted<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    keys
}

#[test]
fn the_schema_has_the_keys_and_words_that_are_read_and_no_others() {
    let schema = schema();
    let (agent, check) = (&schema["$defs"]["agent"], &schema["$defs"]["check"]);
    for (object, read) in [
        (&schema, KEYS),
        (agent, agent::AGENT_KEYS),
        (check, agent::CHECK_KEYS),
    ] {
        assert_eq!(keys(&object["properties"]), sorted(read));
        assert_eq!(object["additionalProperties"], false);
    }
    let properties = &agent["properties"];
    let of = |key: &str| -> Vec<String> {
        let words = properties[key]["enum"].as_array().unwrap();
        words
            .iter()
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(of("kind"), json::words::<KindArg>().collect::<Vec<_>>());
    assert_eq!(of("action"), json::words::<ActionArg>().collect::<Vec<_>>());
    assert_eq!(
        of("units_failed"),
        json::words::<UnitsFailedArg>().collect::<Vec<_>>()
    );
    assert_eq!(
        check["properties"]["retries"]["maximum"],
        limits::CHECK_RETRIES
    );
    let most = &agent["properties"]["checks"]["maxItems"];
    assert_eq!(*most, limits::HEALTH_CHECKS);
}

#[test]
fn every_example_of_the_schema_is_read_and_shows_every_key() {
    let schema = schema();
    let mut shown = std::collections::BTreeSet::new();
    for example in schema["examples"].as_array().unwrap() {
        parse(&example.to_string()).unwrap();
        let agents = example["agents"].as_object().unwrap().values();
        for agent in agents.filter(|agent| agent.is_object()) {
            shown.extend(keys(agent).into_iter().map(str::to_owned));
            for check in agent["checks"].as_array().into_iter().flatten() {
                shown.extend(keys(check).into_iter().map(str::to_owned));
            }
        }
    }
    for key in agent::AGENT_KEYS.iter().chain(agent::CHECK_KEYS) {
        assert!(shown.contains(*key), "no example has `{key}`");
    }
}

/// Every value of `json` by the way to it.
fn places(json: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    let mut go = |key: String, value| places(value, &format!("{at}/{key}"), found);
    match json {
        serde_json::Value::Object(entries) => {
            for (key, value) in entries {
                go(key.replace('~', "~0").replace('/', "~1"), value);
            }
        }
        serde_json::Value::Array(items) => {
            for (number, value) in items.iter().enumerate() {
                go(number.to_string(), value);
            }
        }
        _ => {}
    }
}

#[test]
fn the_schema_takes_what_is_read_and_refuses_what_has_another_type() {
    use serde_json::json;
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let others = [
        json!(null),
        json!(-1),
        json!(true),
        json!(1.5),
        json!([1]),
        json!({"x": 1}),
        json!(""),
    ];
    let mut refused = 0;
    for example in schema["examples"].as_array().unwrap() {
        assert!(validator.is_valid(example), "{example}");
        let mut all = Vec::new();
        places(example, "", &mut all);
        for place in all {
            for other in &others {
                let mut changed = example.clone();
                *changed.pointer_mut(&place).unwrap() = other.clone();
                let (read, valid) = (parse(&changed.to_string()), validator.is_valid(&changed));
                assert!(
                    valid || read.is_err(),
                    "the schema refuses {place} = {other}, which is read"
                );
                // What a text says is the parser's to judge; that it is one is not.
                if !other.is_string() {
                    assert_eq!(valid, read.is_ok(), "{place} = {other}: {read:?}");
                }
                refused += usize::from(!valid);
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
