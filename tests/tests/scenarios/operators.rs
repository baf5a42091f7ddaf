//! What people and CI meet at the command line: clear words, exit codes, and nothing half done.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context as _, Result};
use hoist_protocol::{AgentName, State};
use hoist_tests::authority::Authority;
use hoist_tests::closure::System;
use hoist_tests::machine::SYSTEM_PROFILE;
use hoist_tests::process::{self, Finished};
use hoist_tests::world::{FLEET, Options, World, scenario};
use rustix::process::Signal;

const NO_PATH: &str = "/nix/store/00000000000000000000000000000000-system";

/// Runs `hoist` with another configuration file.
fn with_config(world: &World, config: &str, args: &[&str]) -> Result<Finished> {
    let path = world
        .site()
        .dir()
        .join(format!("other-{}.toml", uuid::Uuid::now_v7()));
    fs::write(&path, config)?;
    let mut command = process::command(&world.site().programs().publisher);
    command.args(["--config", path.as_str()]).args(args);
    process::run("hoist", command, world.site().logs())
}

/// Runs `hoist deploy` of `spec`, which must be refused as wrong usage before anything is sent.
fn refused_spec(world: &World, spec: &str, args: &[&str]) -> Result<String> {
    let path = world.site().dir().join("bad.json");
    fs::write(&path, spec)?;
    let finished = world
        .hoist(&[&["deploy", path.as_str()], args].concat())?
        .expect_code(2)?;
    let reader = world.client(
        world.authority.identity("publisher", "watcher"),
        "watcher.read",
    );
    assert_eq!(
        reader.retained(&format!("hoist/v1/{FLEET}/web-1/deploy"))?,
        None,
        "nothing was sent"
    );
    Ok(finished.stderr)
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn a_spec_that_is_not_valid_is_refused_with_the_agent_and_the_field() {
    scenario(Options::default(), |world| {
        let cases = [
            ("{", vec!["no JSON"]),
            (
                r#"{"agents": {"web-1": "/home/me/result"}}"#,
                vec!["web-1", "/home/me/result", "/nix/store/"],
            ),
            (r#"{"agents": {"web-1": 7}}"#, vec!["web-1"]),
            (
                r#"{"agents": {"Web 1": "/nix/store/x"}}"#,
                vec!["Web 1", "a-z"],
            ),
            (
                r#"{"agent": {"web-1": "/nix/store/x"}}"#,
                vec!["`agent`", "agents"],
            ),
            (r#"{"agents": {}}"#, vec!["no machine"]),
        ];
        for (spec, words) in cases {
            assert_says(&refused_spec(world, spec, &[])?, &words);
        }
        let drv = format!(r#"{{"agents": {{"web-1": "{NO_PATH}.drv"}}}}"#);
        assert_says(
            &refused_spec(world, &drv, &[])?,
            &["web-1", "derivation", "output"],
        );
        Ok(())
    });
}

#[test]
fn a_name_that_the_spec_does_not_have_is_answered_with_the_nearest() {
    scenario(Options::default(), |world| {
        let spec = format!(r#"{{"agents": {{"web-1": "{NO_PATH}"}}}}"#);
        let said = refused_spec(world, &spec, &["--agent", "wbe-1"])?;
        assert_says(&said, &["wbe-1", "did you mean `web-1`"]);
        Ok(())
    });
}

#[test]
fn a_machine_that_never_reported_gets_its_deployment_and_a_warning() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let done = world.deploy(&machine, &v1, &[])?.expect_code(8)?;
        let said = done.stdout + &done.stderr;
        assert_says(&said, &["warning", "web-1", "never reported"]);
        machine.start_agent()?;
        world
            .watch()
            .wait_status(machine.name(), "it succeeded", |s| {
                s.state == State::Succeeded
            })?;
        assert_eq!(machine.current_system()?, Some(v1));
        Ok(())
    });
}

#[test]
fn settings_that_are_missing_or_misspelt_are_named() {
    scenario(Options::default(), |world| {
        let good = world.publisher_settings(&world.publisher, true);
        let spec = world.spec(&[(&AgentName::new("web-1")?, &NO_PATH.parse()?)], None)?;
        let deploy = ["deploy", spec.as_str()];

        let typo = with_config(world, &good.replace("signing_key", "singing_key"), &deploy)?;
        assert_says(
            &typo.expect_code(2)?.stderr,
            &["singing_key", "signing_key"],
        );

        let unsigned = world.publisher_settings(&world.publisher, false);
        let missing = with_config(world, &unsigned, &deploy)?.expect_code(2)?;
        assert_says(&missing.stderr, &["signing key", "HOIST_SIGNING_KEY"]);

        let gone = good.replace("ci.signing-key", "gone.signing-key");
        let gone = with_config(world, &gone, &deploy)?;
        assert_ne!(gone.code, 0);
        assert_says(&gone.stderr, &["gone.signing-key", "No such file"]);

        let url = good.replace("mqtts://", "mqtt://");
        assert_says(
            &with_config(world, &url, &deploy)?.expect_code(2)?.stderr,
            &["mqtt://", "mqtts://"],
        );
        Ok(())
    });
}

#[test]
fn a_misspelt_setting_of_agent_or_broker_is_answered_with_the_nearest() {
    scenario(Options::default(), |world| {
        let machine = world.machine("web-1")?;
        let programs = world.site().programs();
        for (program, config) in [
            (&programs.agent, machine.config()),
            (&programs.broker, world.broker.config()),
        ] {
            let path = world.site().dir().join("typo.toml");
            fs::write(
                &path,
                fs::read_to_string(config)?.replace("certificate =", "certifcate ="),
            )?;
            let mut command = process::command(program);
            command.args(["run", "--config", path.as_str()]);
            let finished = process::run("typo", command, world.site().logs())?;
            assert_ne!(finished.code, 0);
            assert_says(
                &finished.stderr,
                &["certifcate", "`certificate`", "typo.toml"],
            );
        }
        Ok(())
    });
}

#[test]
fn a_certificate_that_has_expired_is_named_as_such() {
    scenario(Options::default(), |world| {
        let identity = world.authority.issue_expired("publisher", "old")?;
        let config = world.publisher_settings(&identity, true);
        let finished = with_config(world, &config, &["status"])?;
        assert_ne!(finished.code, 0);
        assert_says(&finished.stderr, &["expired", "hoist-certs"]);
        Ok(())
    });
}

#[test]
fn a_broker_of_another_authority_is_not_believed() {
    scenario(Options::default(), |world| {
        let (programs, logs) = (world.site().programs(), world.site().logs());
        let other = Authority::create(&world.site().dir().join("other"), FLEET, programs, logs)?;
        let identity = other.issue("publisher", "ci", &[])?;
        let config = world.publisher_settings(&identity, true);
        let finished = with_config(world, &config, &["status"])?.expect_code(1)?;
        assert_says(&finished.stderr, &["CA"]);
        Ok(())
    });
}

#[test]
fn a_broker_that_cannot_be_reached_is_named() {
    scenario(Options::default(), |world| {
        // Nobody listens there any more.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = world.publisher_settings(&world.publisher, true);
        let config = config.replace(&world.broker.port().to_string(), &port.to_string());
        let finished = with_config(world, &config, &["status"])?.expect_code(1)?;
        assert_says(
            &finished.stderr,
            &[&format!("127.0.0.1:{port}"), "nothing listens"],
        );
        Ok(())
    });
}

#[test]
fn an_agents_certificate_is_not_enough_to_deploy() {
    scenario(Options::default(), |world| {
        let identity = world.authority.issue("agent", "web-9", &[])?;
        let config = world.publisher_settings(&identity, true);
        let spec = world.spec(&[(&AgentName::new("web-1")?, &NO_PATH.parse()?)], None)?;
        let finished = with_config(world, &config, &["deploy", spec.as_str()])?;
        assert_ne!(finished.code, 0);
        assert_says(&finished.stderr, &["agent", "web-9", "publisher"]);
        Ok(())
    });
}

#[test]
fn a_key_that_nobody_trusts_deploys_nothing() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let stranger = world.authority.signing_key("stranger")?;
        let done = world
            .deploy(&machine, &v1, &["--signing-key", stranger.path.as_str()])?
            .expect_code(1)?;
        assert_says(&done.stdout, &["web-1", "not published", "signing key"]);
        assert!(!machine.has(&v1));
        Ok(())
    });
}

#[test]
fn secrets_can_come_from_the_environment_and_go_nowhere() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let spec = world.spec(&[(machine.name(), &v1)], None)?;
        let read = |path: &camino::Utf8Path| fs::read_to_string(path);
        let mut command = process::command(&world.site().programs().publisher);
        command
            .args(["-vvv", "deploy", spec.as_str()])
            .current_dir(world.site().logs())
            .env("HOIST_BROKER", world.broker.url())
            .env("HOIST_CA", read(&world.publisher.ca)?)
            .env("HOIST_CERTIFICATE", read(&world.publisher.certificate)?)
            .env("HOIST_KEY", read(&world.publisher.key)?)
            .env("HOIST_SIGNING_KEY", read(&world.signing_key.path)?);
        process::run("hoist-env", command, world.site().logs())?.expect_code(0)?;
        assert_eq!(machine.current_system()?, Some(v1));
        // That no log holds a secret is looked at after every scenario.
        Ok(())
    });
}

#[test]
fn a_key_given_as_a_flag_is_refused_since_everybody_could_read_it() {
    scenario(Options::default(), |world| {
        let spec = world.spec(&[(&AgentName::new("web-1")?, &NO_PATH.parse()?)], None)?;
        let key = hoist_protocol::SigningKey::from_seed(
            hoist_protocol::KeyName::new("x")?,
            &[3; 32].into(),
        );
        let text = key.to_text();
        let done = world
            .hoist(&["deploy", spec.as_str(), "--signing-key", text.as_str()])?
            .expect_code(2)?;
        assert_says(&done.stderr, &["HOIST_SIGNING_KEY"]);
        assert!(
            !done.stderr.contains(&text[10..40]),
            "the error quotes the key"
        );
        Ok(())
    });
}

#[test]
fn ctrl_c_leaves_the_machine_alone_and_says_how_to_go_on_watching() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let gate = machine.gate("1", "test")?;
        let spec = world.spec(&[(machine.name(), &v1)], None)?;
        let mut hoist = world.start_hoist("hoist-interrupted", &["deploy", spec.as_str()])?;
        gate.wait_reached()?;
        // Now that everything runs: no command line, environment or log holds a secret.
        world.check_logs()?;
        hoist.signal(Signal::INT)?;
        let done = Finished::wait(hoist)?.expect_code(130)?;
        assert_says(&(done.stdout + &done.stderr), &["hoist status", "go on"]);
        gate.open()?;
        world
            .watch()
            .wait_status(machine.name(), "it succeeded", |s| {
                s.state == State::Succeeded
            })?;
        assert_eq!(machine.current_system()?, Some(v1));
        Ok(())
    });
}

#[test]
fn a_rollback_goes_to_what_the_machine_ran_before() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let v3 = world.system(&System::new("web-1", "3"))?;
        let first = world.carry_out(&machine, &v1)?.id.context("it has an id")?;
        for path in [&v2, &v3] {
            assert_eq!(world.carry_out(&machine, path)?.state, State::Succeeded);
        }
        world.hoist(&["rollback", "web-1"])?.expect_code(0)?;
        assert_eq!(machine.current_system()?.as_ref(), Some(&v2));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v2));

        world
            .hoist(&["rollback", "web-1", "--to", &first.short()])?
            .expect_code(0)?;
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v1));
        Ok(())
    });
}

#[test]
fn a_rollback_to_a_deployment_that_the_machine_does_not_know_is_refused() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        let unknown = uuid::Uuid::now_v7().to_string();
        let done = world
            .hoist(&["rollback", "web-1", "--to", &unknown])?
            .expect_code(5)?;
        assert_says(&done.stdout, &["rejected", "unknown_deployment"]);
        assert_eq!(machine.current_system()?, Some(v1));
        Ok(())
    });
}

#[test]
fn status_and_logs_show_what_machines_report() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        let table = world.hoist(&["status"])?.success()?;
        assert_says(&table, &["web-1", "succeeded", "online"]);

        let json: serde_json::Value =
            serde_json::from_str(&world.hoist(&["status", "--json"])?.success()?)?;
        let entry = &json["machines"][0];
        assert_eq!(entry["agent"], "web-1");
        assert_eq!(entry["presence"], "online");
        assert_eq!(entry["status"]["current_path"], v1.as_str());

        let log = world.hoist(&["logs", "web-1"])?.success()?;
        assert_says(&log, &["boot loader"]);
        Ok(())
    });
}

#[test]
fn deploying_in_json_gives_one_document_that_names_every_machine() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let away = world.machine("web-2")?;
        let v1 = world.system(&System::new("web", "1"))?;
        let spec = world.spec(&[(machine.name(), &v1), (away.name(), &v1)], None)?;
        let done = world
            .hoist(&["deploy", spec.as_str(), "--json"])?
            .expect_code(0)?;
        let json: serde_json::Value = serde_json::from_str(&done.stdout)?;
        let text = json.to_string();
        assert_says(
            &text,
            &["web-1", "web-2", "succeeded", "offline", v1.as_str()],
        );
        Ok(())
    });
}

#[test]
fn a_deployment_that_a_newer_one_replaced_is_called_superseded() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.cache.server.set(hoist_tests::server::Mode::Holding);
        let spec = world.spec(&[(machine.name(), &v1)], None)?;
        let first = world.start_hoist("hoist-first", &["deploy", spec.as_str()])?;
        hoist_tests::wait::until_true("the first is being fetched", || {
            Ok(world.cache.server.held() > 0)
        })?;
        world.deploy(&machine, &v2, &["--async"])?.expect_code(0)?;
        let first = Finished::wait(first)?.expect_code(7)?;
        assert_says(&first.stdout, &["superseded"]);
        world.cache.server.set(hoist_tests::server::Mode::Serving);
        Ok(())
    });
}

#[test]
fn waiting_for_all_ends_with_a_code_of_its_own_when_one_stays_away() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let away = world.machine("web-2")?;
        let v1 = world.system(&System::new("web", "1"))?;
        let spec = world.spec(&[(machine.name(), &v1), (away.name(), &v1)], None)?;
        let done = world
            .hoist(&["deploy", spec.as_str(), "--wait", "all", "--timeout", "10s"])?
            .expect_code(8)?;
        assert_says(&done.stdout, &["web-2"]);
        assert_eq!(machine.current_system()?, Some(v1));
        Ok(())
    });
}
