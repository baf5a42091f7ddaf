//! What an operator tells machines from afar about what they have already: hold, release, cancel, retry, renew, go back.

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::{AgentName, Channel, FleetName, KeyName, Machine as Topics, State, StorePath};
use hoist_protocol::{Held, SigningKey, TrustedKeys, VerifiedDeployment};
use hoist_tests::closure::System;
use hoist_tests::machine::Machine;
use hoist_tests::process::Finished;
use hoist_tests::server::Mode;
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, World, scenario};
use serde_json::Value;

/// What the JSON document of a run says of its only machine.
fn only(done: &Finished) -> Result<Value> {
    let document: Value = serde_json::from_str(&done.stdout)
        .with_context(|| format!("no JSON: {}{}", done.stdout, done.stderr))?;
    let machines = document["machines"].as_array().context("no machines")?;
    ensure!(machines.len() == 1, "{document}");
    Ok(machines[0].clone())
}

/// Runs `hoist … --json` and sees to its exit code and to how it ended for its only machine.
fn ends(world: &World, args: &[&str], code: i32, outcome: &str) -> Result<Value> {
    let done = world
        .hoist(&[args, &["--json"]].concat())?
        .expect_code(code)?;
    let machine = only(&done)?;
    ensure!(machine["outcome"] == outcome, "{args:?}: {machine}");
    Ok(machine)
}

/// What lies on the topic of a machine, which has to be signed with the fleet's key.
fn retained(world: &World, name: &AgentName) -> Result<VerifiedDeployment> {
    let machine = Topics::new(FleetName::new(FLEET)?, name.clone());
    let reader = world.client(
        world.authority.identity("publisher", "watcher"),
        "watcher.read",
    );
    let bytes = reader.retained(&machine.topic(Channel::Deploy).to_string())?;
    let trusted = TrustedKeys::new(vec![world.signing_key.public.clone()])?;
    Ok(trusted.verify(&bytes.context("nothing is retained")?, &machine)?)
}

/// A machine that runs version 1, and version 2 of its system.
fn with_v1(world: &World, name: &str) -> Result<(Machine, StorePath, StorePath)> {
    let machine = world.running(name)?;
    let v1 = world.system(&System::new(name, "1"))?;
    let v2 = world.system(&System::new(name, "2"))?;
    world.deploy(&machine, &v1, &[])?.expect_code(0)?;
    Ok((machine, v1, v2))
}

#[test]
fn a_machine_that_is_held_keeps_its_target_and_runs_it_still_when_it_is_released() {
    scenario(Options::default(), |world| {
        let (machine, v1, _) = with_v1(world, "web-1")?;
        let before = machine.activations()?;
        ends(world, &["hold", "web-1"], 0, "held")?;
        let held = retained(world, machine.name())?;
        ensure!(held.deployment().parts().held == Held::UntilReleased);
        ends(world, &["hold", "web-1"], 0, "skipped")?;
        let status = world.hoist(&["status", "web-1"])?.success()?;
        ensure!(status.contains("held"), "{status}");

        // Renewed, it is held still.
        ends(world, &["refresh", "web-1"], 0, "held")?;
        ends(world, &["release", "web-1"], 0, "unchanged")?;
        ensure!(retained(world, machine.name())?.deployment().parts().held == Held::No);
        ends(world, &["release", "web-1"], 0, "skipped")?;
        ensure!(machine.current_system()? == Some(v1));
        ensure!(machine.activations()? == before, "nothing was activated");
        Ok(())
    });
}

#[test]
fn a_hold_from_afar_outlasts_what_is_deployed_until_it_is_released() {
    scenario(Options::default(), |world| {
        let (machine, v1, v2) = with_v1(world, "web-1")?;
        let spec = world.spec(&[(machine.name(), &v2)], None)?;
        let deploy = ["deploy", spec.as_str()];
        let before = machine.activations()?;
        ends(world, &["hold", "web-1"], 0, "held")?;
        let would = world.hoist(&[&deploy[..], &["--dry-run"]].concat())?;
        ensure!(would.success()?.contains("held: it begins when"));
        let held = ends(world, &deploy, 8, "deferred")?;
        ensure!(held["stays_held"] == true, "{held}");
        ensure!(held["message"].to_string().contains("on release"), "{held}");
        let there = retained(world, machine.name())?;
        ensure!(there.deployment().parts().held == Held::UntilReleased);
        // Neither does going back let it go, nor what nobody waits for.
        ends(world, &["rollback", "web-1"], 8, "deferred")?;
        ends(world, &[&deploy[..], &["--async"]].concat(), 0, "published")?;
        ensure!(machine.activations()? == before, "nothing was activated");
        ensure!(machine.current_system()? == Some(v1.clone()));
        ends(world, &["release", "web-1"], 0, "succeeded")?;
        ensure!(machine.current_system()? == Some(v2.clone()));

        // What was to come is cancelled, and the machine is held all the same.
        ends(world, &["hold", "web-1"], 0, "held")?;
        let back = world.spec(&[(machine.name(), &v1)], None)?;
        ends(world, &["deploy", back.as_str()], 8, "deferred")?;
        ends(world, &["cancel", "web-1"], 8, "deferred")?;
        ends(world, &["cancel", "web-1"], 0, "skipped")?;
        ends(world, &["release", "web-1"], 0, "unchanged")?;
        ensure!(machine.current_system()? == Some(v2.clone()));

        // Whoever deploys may let it go.
        ends(world, &["hold", "web-1"], 0, "held")?;
        ends(
            world,
            &["deploy", back.as_str(), "--release"],
            0,
            "succeeded",
        )?;
        ends(world, &["hold", "web-1", "--for", "8h"], 0, "held")?;
        let until = retained(world, machine.name())?.deployment().parts().held;
        ends(world, &deploy, 8, "deferred")?;
        let there = retained(world, machine.name())?;
        ensure!(there.deployment().parts().held == until, "its end is kept");
        ends(world, &["rollback", "web-1", "--release"], 0, "succeeded")?;
        ensure!(machine.current_system()? == Some(v2));
        Ok(())
    });
}

#[test]
fn what_is_held_while_it_is_fetched_goes_on_when_it_is_released() {
    scenario(Options::default(), |world| {
        let (machine, v1, v2) = with_v1(world, "web-1")?;
        world.cache.server.set(Mode::Holding);
        world.deploy(&machine, &v2, &["--async"])?.expect_code(0)?;
        wait::until_true("version 2 is being fetched", || {
            Ok(world.cache.server.held() > 0)
        })?;
        ends(world, &["hold", "web-1"], 0, "held")?;
        world.cache.server.set(Mode::Serving);
        ensure!(machine.current_system()? == Some(v1));
        ends(world, &["release", "web-1"], 0, "succeeded")?;
        ensure!(machine.current_system()? == Some(v2));
        Ok(())
    });
}

#[test]
fn a_machine_that_was_away_while_it_was_held_and_released_gets_the_newest() {
    scenario(Options::default(), |world| {
        let (mut machine, _, v2) = with_v1(world, "web-1")?;
        machine.stop_agent()?;
        world.watch().wait_presence(machine.name(), "offline")?;
        world.deploy(&machine, &v2, &["--async"])?.expect_code(0)?;
        ends(world, &["hold", "web-1"], 8, "offline")?;
        ends(world, &["release", "web-1", "--async"], 0, "published")?;
        machine.start_agent()?;
        world
            .watch()
            .wait_status(machine.name(), "it runs version 2", |status| {
                status.state == State::Succeeded && status.current_path.as_ref() == Some(&v2)
            })?;
        Ok(())
    });
}

#[test]
fn what_is_cancelled_before_it_is_activated_never_is_and_what_runs_stays() {
    scenario(Options::default(), |world| {
        let (mut machine, v1, v2) = with_v1(world, "web-1")?;
        ends(world, &["cancel", "web-1"], 0, "skipped")?;
        world.cache.server.set(Mode::Holding);
        let spec = world.spec(&[(machine.name(), &v2)], None)?;
        let deploy = world.start_hoist("cancelled", &["deploy", spec.as_str()])?;
        wait::until_true("version 2 is being fetched", || {
            Ok(world.cache.server.held() > 0)
        })?;
        ends(world, &["cancel", "web-1"], 0, "unchanged")?;
        Finished::wait(deploy)?.expect_code(7)?;
        world.cache.server.set(Mode::Serving);

        // One that never saw what was cancelled stays as well.
        machine.stop_agent()?;
        world.watch().wait_presence(machine.name(), "offline")?;
        world.deploy(&machine, &v2, &["--async"])?.expect_code(0)?;
        ends(world, &["cancel", "web-1", "--async"], 0, "published")?;
        let id = retained(world, machine.name())?.deployment().id();
        machine.start_agent()?;
        world.reaches(&machine, id, State::Unchanged)?;
        ensure!(machine.current_system()? == Some(v1));
        ensure!(!machine.has(&v2), "version 2 was not even fetched");
        Ok(())
    });
}

#[test]
fn what_failed_is_tried_again_by_retry_and_not_by_renewing_it() {
    scenario(Options::default(), |world| {
        let (machine, v1, _) = with_v1(world, "web-1")?;
        let bad = world.system(&System::new("web-1", "bad").failing())?;
        ends(world, &["retry", "web-1"], 0, "skipped")?;
        ends(
            world,
            &["refresh", "web-1", "--expires", "2d"],
            0,
            "unchanged",
        )?;
        world.deploy(&machine, &bad, &[])?.expect_code(3)?;
        let tried = machine.activations()?;
        ends(world, &["refresh", "web-1"], 3, "failed")?;
        ends(world, &["hold", "web-1"], 0, "held")?;
        let said = ends(world, &["release", "web-1"], 3, "failed")?;
        ensure!(
            said["message"].to_string().contains("hoist retry"),
            "{said}"
        );
        ensure!(machine.activations()? == tried, "it was not tried again");
        ends(world, &["retry", "web-1"], 3, "failed")?;
        ensure!(
            machine.activations()?.len() > tried.len(),
            "it was tried again"
        );
        ensure!(machine.current_system()? == Some(v1));
        Ok(())
    });
}

#[test]
fn a_target_that_no_known_key_signed_is_not_signed_again() {
    let open = Options {
        broker_without_keys: true,
        ..Options::default()
    };
    scenario(open, |world| {
        let (machine, v1, v2) = with_v1(world, "web-1")?;
        let stranger = SigningKey::from_seed(KeyName::new("stranger")?, &[9; 32].into());
        let bytes = world.forge(&machine, &v2)?.sign(stranger)?;
        let topic = format!("hoist/v1/{FLEET}/web-1/deploy");
        world
            .client(world.publisher.clone(), "ci.x")
            .publish(&topic, &bytes, true)?
            .success()?;
        world
            .watch()
            .wait_status(machine.name(), "it refused that", |status| {
                status.refused.is_some()
            })?;
        for command in ["hold", "release", "refresh"] {
            let refused = ends(world, &[command, "web-1"], 1, "not_published")?;
            ensure!(
                refused["message"].to_string().contains("not signed again"),
                "{refused}"
            );
        }
        let watcher = world.authority.identity("publisher", "watcher");
        let there = world.client(watcher, "watcher.read").retained(&topic)?;
        ensure!(there == Some(bytes), "nothing was published");
        // Where it is superseded by a deployment everything is well again.
        world.deploy(&machine, &v2, &[])?.expect_code(0)?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        Ok(())
    });
}

#[test]
fn several_machines_go_back_each_to_what_it_ran_itself() {
    scenario(Options::default(), |world| {
        let (one, one_v1, one_v2) = with_v1(world, "web-1")?;
        let (two, two_v1, two_v2) = with_v1(world, "web-2")?;
        let spec = world.spec(&[(one.name(), &one_v2), (two.name(), &two_v2)], None)?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(0)?;
        let preview = world
            .hoist(&["rollback", "web-*", "--dry-run"])?
            .success()?;
        ensure!(preview.contains("2 to publish"), "{preview}");
        ensure!(one.current_system()? == Some(one_v2), "it was only shown");
        world.hoist(&["rollback", "web-*"])?.expect_code(0)?;
        ensure!(one.current_system()? == Some(one_v1));
        ensure!(two.current_system()? == Some(two_v1));
        // An id of one machine is none of the other.
        let id = retained(world, one.name())?.deployment().id().to_string();
        let done = world.hoist(&["rollback", "web-1", "web-2", "--to", &id, "--json"])?;
        let done = done.expect_code(1)?;
        let document: Value = serde_json::from_str(&done.stdout)?;
        ensure!(
            document["machines"][0]["outcome"] == "unchanged",
            "{document}"
        );
        ensure!(
            document["machines"][1]["outcome"] == "not_published",
            "{document}"
        );
        Ok(())
    });
}
