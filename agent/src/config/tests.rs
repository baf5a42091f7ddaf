use clap::Parser;
use hoist_certs::authority::{Authority, days};
use hoist_certs::program::read_toml;
use hoist_protocol::{AgentName, FleetName, KeyName, SigningKey};

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: ConfigFlags,
}

fn root() -> Account {
    Account {
        is_root: true,
        home: None,
        state_home: None,
        config_home: None,
    }
}

fn public_key() -> PublicKey {
    SigningKey::from_seed(KeyName::new("ci").unwrap(), &[7; 32].into()).public()
}

/// The credentials of `name` as settings.
fn credentials(role: Role, name: &str) -> String {
    let fleet = FleetName::new("prod").unwrap();
    let authority = Authority::create(&fleet, days(2)).unwrap();
    let name = AgentName::new(name).unwrap();
    let issued = authority.issue(role, &name, &[], days(1)).unwrap();
    let (ca, certificate, key) = (
        authority.certificate_pem(),
        issued.certificate_pem,
        issued.key_pem.as_str(),
    );
    format!("ca = '''\n{ca}'''\ncertificate = '''\n{certificate}'''\nkey = '''\n{key}'''\n")
}

fn settings(toml: &str, flags: &[&str]) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, toml).unwrap();
    let start = ["agent", "--config", file.to_str().unwrap()];
    let command = Command::parse_from(start.iter().chain(flags));
    let file = read_toml(command.flags.config.as_deref().unwrap()).map_err(SettingsError::File);
    let settings = file.and_then(|file| command.flags.over(file, &root()));
    settings.map_err(|error| crate::job::chain(&error))
}

fn complete() -> String {
    let (key, rest) = (public_key(), credentials(Role::Agent, "web-1"));
    format!("broker = 'mqtts://broker'\ntrusted_keys = ['{key}']\n{rest}")
}

#[test]
fn the_certificate_says_which_machine_this_is() {
    let settings = settings(&complete(), &[]).unwrap();
    assert_eq!(settings.machine.to_string(), "prod/web-1");
    assert_eq!(settings.brokers.to_string(), "mqtts://broker:8883");
    assert_eq!(settings.state.as_str(), STATE);
    assert_eq!(settings.profile.as_str(), PROFILE);
    assert_eq!(settings.status_interval, STATUS_INTERVAL);
}

#[test]
fn a_flag_replaces_what_the_file_says() {
    let toml = format!("state = '/a'\nmax_backoff = '1m'\n{}", complete());
    let settings = settings(&toml, &["--state", "/b", "--max-backoff", "2s"]).unwrap();
    assert_eq!(settings.state.as_str(), "/b");
    assert_eq!(settings.max_backoff, Duration::from_secs(2));
}

#[test]
fn what_is_missing_is_named_with_how_to_give_it() {
    let complete = complete();
    let without = |start: &str| {
        let lines = complete.lines().filter(|line| !line.starts_with(start));
        lines.collect::<Vec<_>>().join("\n")
    };
    let before_ca = complete.split("ca =").next().unwrap().to_owned();
    for (toml, key, flag) in [
        (without("broker"), "broker", "--broker"),
        (without("trusted_keys"), "trusted_keys", "--trusted-keys"),
        (before_ca, "ca", "--ca"),
    ] {
        let error = settings(&toml, &[]).unwrap_err();
        assert!(error.contains(&format!("`{key}` is not set")), "{error}");
        assert!(error.contains(flag), "{error}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused_with_the_reason() {
    for (more, said) in [
        ("state = 'x'", "`state` is `x`; it must be an absolute path"),
        ("status_interval = '5'", "written like `30s`, `5m`"),
        ("status_interval = '-5m'", "written like `30s`, `5m`"),
        ("status_interval = '10ms'", "10ms; it must be 1s to"),
        ("keepalive = '1s'", "`keepalive` is 1s; it must be 2s to"),
        ("tags = ['Canary']", "`Canary` is no tag"),
        ("required_signatures = 2", "2 signatures are required"),
        ("stat = '/x'", "did you mean `state`?"),
    ] {
        let error = settings(&format!("{more}\n{}", complete()), &[]).unwrap_err();
        assert!(error.contains(said), "{more}: {error}");
    }
}

#[test]
fn a_publishers_certificate_makes_no_agent() {
    let (key, rest) = (public_key(), credentials(Role::Publisher, "ci"));
    let toml = format!("broker = 'mqtts://broker'\ntrusted_keys = ['{key}']\n{rest}");
    let error = settings(&toml, &[]).unwrap_err();
    assert!(error.contains("that of a publisher, `ci`"), "{error}");
}

#[test]
fn several_brokers_are_taken_in_their_order() {
    let toml = complete().replace("'mqtts://broker'", "['mqtts://b1', 'mqtts://b2:1']");
    let from_file = settings(&toml, &[]).unwrap();
    assert_eq!(
        from_file.brokers.to_string(),
        "mqtts://b1:8883, mqtts://b2:1"
    );
    let from_flag = settings(&toml, &["--broker", "mqtts://c,mqtts://d"]).unwrap();
    assert_eq!(
        from_flag.brokers.to_string(),
        "mqtts://c:8883, mqtts://d:8883"
    );
}

#[test]
fn the_number_of_systems_to_keep_has_limits() {
    let kept = |n: &str| settings(&format!("keep_generations = {n}\n{}", complete()), &[]);
    assert_eq!(settings(&complete(), &[]).unwrap().keep_generations, 3);
    for n in [1, 20] {
        assert_eq!(kept(&n.to_string()).unwrap().keep_generations, n);
    }
    for n in ["0", "21"] {
        let error = kept(n).unwrap_err();
        assert!(
            error.contains("`keep_generations`") && error.contains("1 to 20"),
            "{error}"
        );
    }
    let flag = settings(&complete(), &["--keep-generations", "7"]);
    assert_eq!(flag.unwrap().keep_generations, 7);
}

#[test]
fn tags_are_taken_once_each_and_not_without_end() {
    let tags = |list: &str| settings(&format!("tags = [{list}]\n{}", complete()), &[]);
    let found = tags("'canary', 'rack:7', 'canary'").unwrap().tags;
    let words: Vec<_> = found.iter().map(Tag::as_str).collect();
    assert_eq!(words, ["canary", "rack:7"]);
    let many: Vec<_> = (0..17).map(|n| format!("'t{n}'")).collect();
    let error = tags(&many.join(", ")).unwrap_err();
    assert!(
        error.contains("there are 17 tags, and 16 at most"),
        "{error}"
    );
}
