//! What an operator can ask for with a deployment, through `hoist` to the machine and back.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use hoist_protocol::State;
use hoist_tests::closure::System;
use hoist_tests::process::Finished;
use hoist_tests::world::{Options, World, scenario};
use serde_json::{Value, json};

/// Writes a spec that says more of `web-1` than its path.
fn spec(world: &World, agent: &Value) -> Result<Utf8PathBuf> {
    let path = world.site().dir().join("orders.json");
    let spec = json!({ "agents": { "web-1": agent } });
    fs::write(&path, spec.to_string())?;
    Ok(path)
}

/// What the JSON document of a run says of its only machine.
fn machine_in(done: &Finished) -> Result<Value> {
    let document: Value = serde_json::from_str(&done.stdout)?;
    let machines = document["machines"].as_array().context("no machines")?;
    assert_eq!(machines.len(), 1, "{document}");
    Ok(machines[0].clone())
}

/// The digest that `hoist deploy` signs of `path`, as its JSON has it.
fn signed_digest(done: &Finished) -> Result<Option<String>> {
    Ok(machine_in(done)?["digest"].as_str().map(str::to_owned))
}

#[test]
fn what_a_closure_holds_is_signed_where_the_store_of_the_publisher_has_it() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let by_path = spec(world, &json!(v1))?;
        let deploy = ["deploy", by_path.as_str(), "--json"];
        let done = world.hoist_in_ci(&[&deploy[..], &["--require-digest"]].concat())?;
        let digest = signed_digest(&done.expect_code(0)?)?.context("no digest")?;
        assert_eq!(digest.len(), 64, "{digest}");
        assert_eq!(machine.current_system()?, Some(v1.clone()));

        let done = world.hoist_in_ci(&[&deploy[..], &["--no-digest"]].concat())?;
        assert_eq!(signed_digest(&done.expect_code(0)?)?, None);

        // On an operator's computer the store does not have it.
        let refused = world.hoist(&["deploy", by_path.as_str(), "--require-digest"])?;
        let refused = refused.expect_code(1)?;
        assert!(
            refused
                .stderr
                .contains("is not in the store of this computer"),
            "{}",
            refused.stderr
        );
        // There the digest may come with the spec.
        let with_digest = spec(world, &json!({ "path": v1, "digest": digest }))?;
        let args = ["deploy", with_digest.as_str(), "--require-digest", "--json"];
        let done = world.hoist(&args)?.expect_code(0)?;
        assert_eq!(signed_digest(&done)?, Some(digest));
        Ok(())
    });
}

#[test]
fn a_deployment_that_is_spread_over_a_day_waits_and_a_newer_one_does_not_wait_for_it() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world
            .deploy(&machine, &v1, &["--spread", "24h", "--async"])?
            .expect_code(0)?;
        world
            .watch()
            .wait_status(machine.name(), "it waits for its moment", |status| {
                status.state == State::Waiting
            })?;
        assert_eq!(machine.activations()?, [""; 0]);
        world.deploy(&machine, &v2, &[])?.expect_code(0)?;
        assert_eq!(machine.current_system()?, Some(v2));
        Ok(())
    });
}

#[test]
fn a_closure_that_does_not_hold_what_was_signed_is_not_activated() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let signed = spec(world, &json!({ "path": v1, "digest": "0".repeat(64) }))?;
        let done = world.hoist(&["deploy", signed.as_str(), "--json"])?;
        let report = machine_in(&done.expect_code(3)?)?;
        assert_eq!(report["outcome"], "failed");
        assert_eq!(report["reason"], "digest_mismatch");
        assert_eq!(machine.activations()?, [""; 0]);
        // People are told what to make of it.
        let said = world.hoist(&["deploy", signed.as_str()])?.expect_code(3)?;
        assert!(
            said.stdout
                .contains("find out why before you deploy with --no-digest"),
            "{}",
            said.stdout
        );
        Ok(())
    });
}

#[test]
fn a_dry_activation_changes_nothing_and_says_what_it_would() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        let before = machine.activations()?;
        let done = world
            .deploy(&machine, &v2, &["--action", "dry-activate"])?
            .expect_code(0)?;
        assert!(done.stdout.contains("dry activated"), "{}", done.stdout);
        assert_eq!(machine.current_system()?, Some(v1.clone()));
        let after = machine.activations()?;
        assert_eq!(after[before.len()..], ["2 dry-activate"]);

        let log = world.hoist(&["logs", "web-1"])?.success()?;
        assert!(log.contains("would activate the configuration"), "{log}");
        let status = world.hoist(&["status", "web-1"])?.success()?;
        assert!(status.contains("nixos, dry-activate"), "{status}");
        assert!(status.contains(v1.as_str()), "{status}");
        Ok(())
    });
}

#[test]
fn a_port_that_answers_no_more_after_the_activation_takes_it_back() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        // An address that nobody else takes a port of once this one is free again.
        let listener = TcpListener::bind("127.83.7.41:0")?;
        let address = listener.local_addr()?.to_string();
        let check = ["--check-tcp", address.as_str(), "--check-retries", "1"];
        world.deploy(&machine, &v1, &check)?.expect_code(0)?;
        assert_eq!(machine.current_system()?, Some(v1.clone()));

        drop(listener);
        let done = world.deploy(&machine, &v2, &check)?.expect_code(4)?;
        assert!(
            done.stdout.contains("health_check_failed"),
            "{}",
            done.stdout
        );
        assert_eq!(machine.current_system()?, Some(v1));
        Ok(())
    });
}

#[test]
fn a_page_that_is_not_there_takes_the_activation_back() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let url = world.cache.server.url()?;
        let check = |page: &str| json!([{ "http": format!("{url}/{page}"), "timeout": "5s" }]);
        let there = spec(
            world,
            &json!({ "path": v1, "checks": check("nix-cache-info") }),
        )?;
        world.hoist(&["deploy", there.as_str()])?.expect_code(0)?;
        assert_eq!(machine.current_system()?, Some(v1.clone()));

        let gone = spec(
            world,
            &json!({ "path": v2, "checks": check("no-such-page") }),
        )?;
        let done = world.hoist(&["deploy", gone.as_str()])?.expect_code(4)?;
        assert!(
            done.stdout.contains("health_check_failed"),
            "{}",
            done.stdout
        );
        assert_eq!(machine.current_system()?, Some(v1));
        Ok(())
    });
}
