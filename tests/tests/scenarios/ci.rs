//! What CI does: again and again the whole fleet, of which little has changed.

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::{AgentName, Channel, FleetName, Machine as Address, StorePath};
use hoist_tests::closure::System;
use hoist_tests::machine::Machine;
use hoist_tests::process::Finished;
use hoist_tests::world::{FLEET, Options, World, scenario};
use serde_json::Value;

fn json(finished: &Finished) -> Result<Value> {
    serde_json::from_str(&finished.stdout).with_context(|| format!("no JSON: {}", finished.stdout))
}

fn deploy(world: &World, machines: &[(&Machine, &StorePath)], args: &[&str]) -> Result<Value> {
    let agents: Vec<(&AgentName, &StorePath)> = machines
        .iter()
        .map(|(machine, path)| (machine.name(), *path))
        .collect();
    let spec = world.spec(&agents, None)?;
    let args = [&["deploy", spec.as_str(), "--json"], args].concat();
    json(&world.hoist(&args)?.expect_code(0)?)
}

/// What lies on the machine's topic.
fn retained(world: &World, machine: &Machine) -> Result<Vec<u8>> {
    let address = Address::new(FleetName::new(FLEET)?, machine.name().clone());
    let reader = world.client(
        world.authority.identity("publisher", "watcher"),
        "watcher.read",
    );
    let bytes = reader.retained(&address.topic(Channel::Deploy).to_string())?;
    bytes.context("nothing is retained")
}

#[test]
fn a_run_that_changes_one_machine_touches_one_machine() {
    scenario(Options::default(), |world| {
        let (web, db) = (world.running("web-1")?, world.running("db-1")?);
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let other = world.system(&System::new("db-1", "1"))?;
        deploy(world, &[(&web, &v1), (&db, &other)], &[])?;
        let before = retained(world, &db)?;

        let document = deploy(world, &[(&web, &v2), (&db, &other)], &[])?;
        let [of_db, of_web] = [&document["machines"][0], &document["machines"][1]];
        ensure!(
            of_db["outcome"] == "unchanged" && of_db["skipped"] == true,
            "{document}"
        );
        ensure!(
            of_web["outcome"] == "succeeded" && of_web["skipped"] == false,
            "{document}"
        );
        ensure!(retained(world, &db)? == before, "db-1 got another message");
        ensure!(web.current_system()?.as_ref() == Some(&v2));

        // Another option makes it another deployment.
        let checked = deploy(world, &[(&db, &other)], &["--confirm-timeout", "2m"])?;
        ensure!(checked["machines"][0]["skipped"] == false, "{checked}");
        let asked = deploy(world, &[(&web, &v2)], &["--no-skip"])?;
        ensure!(
            asked["machines"][0]["skipped"] == false
                && asked["machines"][0]["outcome"] == "unchanged",
            "{asked}"
        );
        Ok(())
    });
}

#[test]
fn a_machine_whose_system_somebody_changed_by_hand_is_deployed_again() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        deploy(world, &[(&machine, &v1)], &[])?;
        deploy(world, &[(&machine, &v2)], &[])?;
        machine.stop_agent()?;
        let switch = format!("{v1}/bin/switch-to-configuration");
        machine.run(&switch, &["test"])?.expect_code(0)?;
        machine.start_agent()?;
        world
            .watch()
            .wait_status(machine.name(), "it noticed the change", |status| {
                status.current_path.as_ref() == Some(&v1)
            })?;
        let document = deploy(world, &[(&machine, &v2)], &[])?;
        ensure!(
            document["machines"][0]["outcome"] == "succeeded",
            "{document}"
        );
        ensure!(machine.current_system()?.as_ref() == Some(&v2));
        Ok(())
    });
}
