//! What goes wrong outside of the machines: clocks, lost messages, a broker that starts from nothing. The fleet goes
//! on, and whoever deploys is told what was done.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::State;
use hoist_tests::closure::System;
use hoist_tests::process::{self, Finished};
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, World, scenario};

/// Runs `hoist` on a computer whose clock is off by so much, as faketime reads it.
fn hoist_at(world: &World, offset: &str, args: &[&str]) -> Result<Finished> {
    let mut command = process::command("faketime");
    command
        .args(["-m", "-f", offset])
        .arg(&world.site().programs().publisher)
        .args(args)
        .env("HOIST_CONFIG", world.publisher_config())
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    process::run("hoist-elsewhen", command, world.site().logs())
}

#[test]
fn a_publisher_whose_clock_is_almost_a_day_ahead_does_not_lock_out_the_others() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let spec = world.spec(&[(machine.name(), &v1)], None)?;
        let ahead = hoist_at(world, "+23h", &["deploy", spec.as_str()])?.expect_code(0)?;
        ensure!(machine.current_system()? == Some(v1));
        ensure!(
            ahead.stderr.contains("differ by 2"),
            "it is told of the clocks: {}",
            ahead.stderr
        );
        let done = world.deploy(&machine, &v2, &[])?.expect_code(0)?;
        ensure!(!done.stderr.contains("differ by"), "{}", done.stderr);
        ensure!(machine.current_system()? == Some(v2));
        Ok(())
    });
}

#[test]
fn a_publisher_whose_clock_is_more_than_a_day_ahead_leaves_others_with_an_error_that_says_what_to_do()
 {
    let open = Options {
        broker_without_keys: true,
        ..Options::default()
    };
    scenario(open, |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        let spec = world.spec(&[(machine.name(), &v2)], None)?;
        let args = ["deploy", spec.as_str(), "--async"];
        hoist_at(world, "+3d", &args)?.expect_code(0)?;
        let refused = world.deploy(&machine, &v2, &[])?.expect_code(1)?;
        for words in ["24 h ahead of this clock", "raise the epoch"] {
            ensure!(refused.stdout.contains(words), "{}", refused.stdout);
        }
        Ok(())
    });
}

#[test]
fn a_publisher_whose_clock_is_a_day_behind_is_told_so_and_publishes_nothing() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let spec = world.spec(&[(machine.name(), &v1)], None)?;
        let behind = hoist_at(world, "-25h", &["deploy", spec.as_str()])?.expect_code(2)?;
        ensure!(
            behind.stderr.contains("check the clock"),
            "{}",
            behind.stderr
        );
        ensure!(machine.activations()?.is_empty());
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        Ok(())
    });
}

#[test]
fn a_retained_message_that_was_lost_is_said_and_the_next_deployment_is_well() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        let topic = format!("hoist/v1/{FLEET}/web-1/deploy");
        let admin = world.foreigner("admin", "root")?;
        admin.publish(&topic, b"", true)?.success()?;
        for command in ["hold", "refresh"] {
            let lost = world.hoist(&[command, "web-1"])?.expect_code(1)?;
            ensure!(
                lost.stderr.contains("the broker has lost it"),
                "{}",
                lost.stderr
            );
        }
        world.deploy(&machine, &v2, &[])?.expect_code(0)?;
        world.hoist(&["refresh", "web-1"])?.expect_code(0)?;
        ensure!(machine.current_system()? == Some(v2));
        Ok(())
    });
}

#[test]
fn a_broker_that_was_wiped_hears_of_the_fleet_again_and_deploys_to_it() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        world.broker.kill()?;
        let folder = world.broker.config().parent().context("it has a folder")?;
        fs::remove_dir_all(folder.join("state"))?;
        world.broker.restart()?;
        // The machine says again where it stands, without being asked.
        wait::until_true("the machine is known again", || {
            let status = world.hoist(&["status", "--json"])?;
            Ok(status.code == 0
                && status.stdout.contains(v1.as_str())
                && status.stdout.contains("\"presence\": \"online\""))
        })?;
        let lost = world.hoist(&["refresh", "web-1"])?.expect_code(1)?;
        ensure!(
            lost.stderr.contains("the broker has lost it"),
            "{}",
            lost.stderr
        );
        world.deploy(&machine, &v2, &[])?.expect_code(0)?;
        ensure!(machine.current_system()? == Some(v2));
        // Its past is there as well.
        world.hoist(&["rollback", "web-1"])?.expect_code(0)?;
        ensure!(machine.current_system()? == Some(v1));
        Ok(())
    });
}

#[test]
fn of_two_publishers_the_later_wins_on_every_machine_and_the_earlier_is_told() {
    scenario(Options::default(), |world| {
        let machines = [world.running("web-1")?, world.running("web-2")?];
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for machine in &machines {
            let name = machine.name().as_str();
            first.push((machine.name(), world.system(&System::new(name, "1"))?));
            second.push((machine.name(), world.system(&System::new(name, "2"))?));
        }
        let spec = |of: &[(_, _)]| {
            let agents: Vec<_> = of.iter().map(|(name, path)| (*name, path)).collect();
            world.spec(&agents, None)
        };
        let (one, two) = (spec(&first)?, spec(&second)?);
        world.cache.server.set(hoist_tests::server::Mode::Holding);
        let earlier = world.start_hoist("earlier", &["deploy", one.as_str(), "--json"])?;
        for machine in &machines {
            world
                .watch()
                .wait_status(machine.name(), "it fetches", |status| {
                    status.state == State::Fetching
                })?;
        }
        let later = world.start_hoist("later", &["deploy", two.as_str(), "--json"])?;
        let earlier = Finished::wait(earlier)?.expect_code(7)?;
        world.cache.server.set(hoist_tests::server::Mode::Serving);
        let later = Finished::wait(later)?.expect_code(0)?;
        let read = |done: &Finished| serde_json::from_str::<serde_json::Value>(&done.stdout);
        let (earlier, later) = (read(&earlier)?, read(&later)?);
        for (n, machine) in machines.iter().enumerate() {
            let (lost, won) = (&earlier["machines"][n], &later["machines"][n]);
            ensure!(lost["outcome"] == "superseded", "{lost}");
            // By which one, it may have ended before it heard.
            let by = &lost["superseded_by"];
            ensure!(by.is_null() || *by == won["id"], "{lost}, {won}");
            ensure!(
                won["sequence"].as_u64() > lost["sequence"].as_u64(),
                "{lost}, {won}"
            );
            ensure!(machine.current_system()?.as_ref() == Some(&second[n].1));
        }
        Ok(())
    });
}
