//! What the publisher reads and shows, over real machines: history, differences, waiting, forgetting, the doctor.

use anyhow::{Context as _, Result};
use hoist_protocol::{Channel, State};
use hoist_tests::authority::Identity;
use hoist_tests::closure::System;
use hoist_tests::process::{self, Finished};
use hoist_tests::world::{FLEET, Options, World, scenario};
use serde_json::Value;

/// Runs `hoist` with the certificate of somebody else.
fn as_other(world: &World, identity: &Identity, args: &[&str]) -> Result<Finished> {
    let path = world
        .site()
        .dir()
        .join(format!("{}.toml", uuid::Uuid::now_v7()));
    std::fs::write(&path, world.publisher_settings(identity, false))?;
    let mut command = process::command(&world.site().programs().publisher);
    command.args(["--config", path.as_str()]).args(args);
    process::run("hoist", command, world.site().logs())
}

fn json(finished: &Finished) -> Result<Value> {
    Ok(serde_json::from_str(&finished.stdout)?)
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn history_and_diff_show_what_was_deployed_and_what_it_changed() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let first = world.carry_out(&machine, &v1)?.id.context("it has an id")?;
        let second = world.carry_out(&machine, &v2)?.id.context("it has an id")?;
        hoist_tests::wait::until_true("the history has both", || {
            let history = world.watch().history(machine.name())?;
            Ok(history.is_some_and(|history| history.entries.len() == 2))
        })?;

        let table = world.hoist(&["history", "web-1"])?.success()?;
        assert_says(
            &table,
            &["DEPLOYMENT", &first.short(), &second.short(), "succeeded"],
        );
        let history = json(
            &world
                .hoist(&["history", "web-1", "--json"])?
                .expect_code(0)?,
        )?;
        assert_eq!(history["entries"][0]["path"], v2.as_str());
        assert_eq!(history["entries"][1]["id"], first.to_string());
        assert_eq!(history["under_way"], Value::Null);

        let diff = json(&world.hoist(&["diff", "web-1", "--json"])?.expect_code(0)?)?;
        assert_eq!(
            (&diff["from"]["path"], &diff["to"]["path"]),
            (&v1.as_str().into(), &v2.as_str().into())
        );
        let ids = [second.short(), first.short()];
        let back = world
            .hoist(&["diff", "web-1", &ids[0], &ids[1]])?
            .success()?;
        assert_says(&back, &[&format!("from  {v2}"), &format!("to    {v1}")]);
        let unknown = world
            .hoist(&["diff", "web-1", "00000000"])?
            .expect_code(1)?;
        assert_says(&unknown.stderr, &["00000000", "hoist history web-1"]);
        let nobody = world.hoist(&["history", "wbe-1"])?.expect_code(1)?;
        assert_says(&nobody.stderr, &["wbe-1", "did you mean `web-1`"]);
        Ok(())
    });
}

#[test]
fn what_was_published_and_left_alone_is_picked_up_again() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let other = world.running("web-2")?;
        let away = world.machine("web-3")?;
        let v1 = world.system(&System::new("web", "1"))?;
        let gate = machine.gate("1", "test")?;
        let names = [machine.name(), other.name(), away.name()];
        let spec = world.spec(&names.map(|name| (name, &v1)), None)?;
        let done = world
            .hoist(&["deploy", spec.as_str(), "--async", "--json"])?
            .expect_code(0)?;
        let rollout = json(&done)?["rollout"]["id"]
            .as_str()
            .context("it has an id")?
            .to_owned();
        gate.wait_reached()?;

        let all =
            world.start_hoist("hoist-wait-all", &["wait", "--rollout", &rollout, "--json"])?;
        let stopped = world
            .hoist(&["wait", "web-1", "--timeout", "1s", "--quiet"])?
            .expect_code(6)?;
        assert_says(&stopped.stdout, &["web-1", "timed out"]);
        gate.open()?;
        let report = json(&Finished::wait(all)?.expect_code(0)?)?;
        let outcomes: Vec<_> = report["machines"]
            .as_array()
            .context("a list")?
            .iter()
            .map(|machine| machine["outcome"].as_str().unwrap_or_default())
            .collect();
        assert_eq!(outcomes, ["succeeded", "succeeded", "offline"]);

        // What has ended is told at once, also to who comes later.
        let id = report["machines"][0]["id"]
            .as_str()
            .context("it has an id")?
            .to_owned();
        let late = world.hoist(&["wait", "--id", &id])?.expect_code(0)?;
        assert_says(&late.stdout, &["web-1", "succeeded"]);
        let none = world
            .hoist(&["wait", "--rollout", "00000000"])?
            .expect_code(1)?;
        assert_says(&none.stderr, &["rollout `00000000`"]);
        Ok(())
    });
}

#[test]
fn a_machine_that_is_no_more_is_forgotten_and_one_that_is_online_is_not() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        let admin = world.authority.issue("admin", "root", &[])?;

        let online = as_other(world, &admin, &["forget", "web-1", "--yes"])?.expect_code(1)?;
        assert_says(
            &online.stderr,
            &["`web-1` is online", "hoist-certs revoke web-1"],
        );
        machine.stop_agent()?;
        world.watch().wait_presence(machine.name(), "offline")?;
        // Nobody is there to be asked, and a publisher may not.
        as_other(world, &admin, &["forget", "web-1"])?.expect_code(2)?;
        let publisher = world.hoist(&["forget", "web-1", "--yes"])?.expect_code(2)?;
        assert_says(&publisher.stderr, &["publisher", "hoist-certs issue admin"]);

        let done =
            as_other(world, &admin, &["forget", "web-1", "--yes", "--json"])?.expect_code(0)?;
        let report = json(&done)?;
        assert_eq!(report["left"], serde_json::json!([]));
        assert!(report["cleared"].to_string().contains("deploy"), "{report}");
        let reader = world.client(admin, "root.read");
        for channel in [Channel::Deploy, Channel::Status, Channel::History] {
            let topic = format!("hoist/v1/{FLEET}/web-1/{channel}");
            assert_eq!(reader.retained(&topic)?, None, "{topic}");
        }
        let status = world.hoist(&["status"])?.success()?;
        assert_says(&status, &["no machine"]);
        Ok(())
    });
}

#[test]
fn the_doctor_and_whoami_say_who_we_are_and_what_is_wrong() {
    scenario(Options::default(), |world| {
        let _machine = world.running("web-1")?;
        let who = json(&world.hoist(&["whoami", "--json"])?.expect_code(0)?)?;
        assert_eq!(
            (&who["role"], &who["reached"]),
            (&"publisher".into(), &true.into())
        );
        assert_eq!(who["signs_with"][0], world.signing_key.public.to_string());

        let well = world.hoist(&["doctor"])?.expect_code(0)?.stdout;
        assert_says(
            &well,
            &[
                "ok     broker",
                "1 machines, 1 of them online",
                "signing key",
            ],
        );
        assert!(!well.contains("WRONG"), "{well}");

        let identity = world.authority.issue("monitor", "grafana", &[])?;
        let monitor = as_other(world, &identity, &["doctor"])?.expect_code(0)?;
        assert_says(&monitor.stdout, &["grafana"]);
        let agent = world.authority.issue("agent", "web-9", &[])?;
        let findings = json(&as_other(world, &agent, &["doctor", "--json"])?.expect_code(1)?)?;
        assert_eq!(findings["good"], false);
        assert_says(
            &findings.to_string(),
            &["web-9", "hoist-certs issue publisher"],
        );
        Ok(())
    });
}
