//! Whoever sits at the machine: `hoist-agent status`, `history`, `hold`, `release`, `rollback`, `activate`, `doctor`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::{State, StorePath};
use hoist_tests::closure::{Closure, System};
use hoist_tests::machine::Machine;
use hoist_tests::process::{Finished, Process};
use hoist_tests::server::Mode;
use hoist_tests::wait;
use hoist_tests::world::{Options, World, scenario};
use rustix::process::Signal;
use serde_json::Value;

/// Runs `hoist-agent` on the machine, with the machine's configuration.
fn local(world: &World, machine: &Machine, args: &[&str]) -> Result<Finished> {
    let program = &world.site().programs().agent;
    let config = ["--config", machine.config().as_str()];
    machine.run(program.as_str(), &[args, &config].concat())
}

/// The same, and goes on while it runs.
fn begin(world: &World, machine: &Machine, name: &str, args: &[&str]) -> Result<Process> {
    let mut command = machine.command(world.site().programs().agent.as_str());
    command
        .args(args)
        .args(["--config", machine.config().as_str()]);
    Process::start(name, command, world.site().logs())
}

fn json(world: &World, machine: &Machine, command: &str) -> Result<Value> {
    let text = local(world, machine, &[command, "--json"])?.stdout;
    serde_json::from_str(&text).with_context(|| format!("{command} --json printed {text:?}"))
}

fn version(world: &World, version: &str) -> Result<StorePath> {
    world.system(&System::new("web-1", version))
}

#[test]
fn a_held_machine_takes_the_newest_when_it_is_released() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let held = local(world, &machine, &["hold", "--reason", "a demo"])?.success()?;
        assert!(held.contains("hoist-agent release"), "{held}");
        let [first, second] = [version(world, "1")?, version(world, "2")?];
        let early = world.publish(&world.forge(&machine, &first)?)?;
        world.reaches(&machine, early, State::Held)?;
        let late = world.publish(&world.forge(&machine, &second)?)?;
        world.reaches(&machine, late, State::Held)?;
        assert_eq!(machine.current_system()?, None);
        let status = local(world, &machine, &["status"])?.success()?;
        assert!(
            status.contains("held") && status.contains("a demo"),
            "{status}"
        );

        local(world, &machine, &["release"])?.success()?;
        assert_eq!(world.settled(&machine, late)?.state, State::Succeeded);
        assert_eq!(
            machine
                .activations()?
                .iter()
                .filter(|a| a.starts_with("1 "))
                .count(),
            0
        );
        Ok(())
    });
}

#[test]
fn a_hold_with_a_length_ends_by_itself() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        local(world, &machine, &["hold", "--for", "3s"])?.success()?;
        let id = world.publish(&world.forge(&machine, &version(world, "1")?)?)?;
        world.reaches(&machine, id, State::Held)?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        Ok(())
    });
}

#[test]
fn a_hold_is_kept_without_an_agent_and_by_the_next_one() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        machine.stop_agent()?;
        local(world, &machine, &["hold"])?.success()?;
        assert_eq!(json(world, &machine, "status")?["held"], true);
        let id = world.publish(&world.forge(&machine, &version(world, "1")?)?)?;
        machine.start_agent()?;
        world.reaches(&machine, id, State::Held)?;
        machine.kill_agent()?;
        local(world, &machine, &["release"])?.success()?;
        machine.start_agent()?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        Ok(())
    });
}

#[test]
fn a_rollback_brings_what_ran_before_and_what_a_deployment_brought() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let [first, second] = [version(world, "1")?, version(world, "2")?];
        for path in [&first, &second] {
            assert_eq!(world.carry_out(&machine, path)?.state, State::Succeeded);
        }
        let said = local(world, &machine, &["rollback"])?.success()?;
        assert!(
            said.contains("succeeded") && said.contains(first.as_str()),
            "{said}"
        );
        assert_eq!(machine.current_system()?, Some(first.clone()));

        let history = json(world, &machine, "history")?;
        let entries = history["entries"].as_array().context("a list")?;
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0]["local"], true);
        assert_eq!(entries[1]["path"], second.as_str());
        let id = entries[1]["id"].as_str().context("an id")?;
        local(world, &machine, &["rollback", id])?.success()?;
        assert_eq!(machine.current_system()?, Some(second));
        // The retained deployment was carried out before: it does not come again with a new connection.
        machine.cut_network()?;
        machine.restore_network()?;
        local(world, &machine, &["rollback"])?.success()?;
        machine.never("the retained deployment undoes the rollback", |machine| {
            Ok(machine.current_system()? != Some(first.clone()))
        })
    });
}

#[test]
fn a_closure_is_activated_without_a_broker_and_without_an_agent() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        let [first, second] = [version(world, "1")?, version(world, "2")?];
        let none = local(world, &machine, &["status"])?.success()?;
        assert!(none.contains("does not run"), "{none}");
        let args = ["activate", first.as_str(), "--allow-no-agent"];
        let said = local(world, &machine, &args)?.success()?;
        assert!(said.contains("succeeded"), "{said}");
        assert_eq!(machine.current_system()?, Some(first.clone()));
        assert_eq!(machine.boot_default()?, Some(first.clone()));
        let status = json(world, &machine, "status")?;
        assert_eq!(
            (&status["state"], &status["agent_running"]),
            (&"succeeded".into(), &false.into())
        );
        assert_eq!(status["current_path"], first.as_str());

        // With an agent that reaches no broker.
        machine.cut_network()?;
        machine.start_agent()?;
        wait::until_true("the agent answers", || {
            Ok(json(world, &machine, "status")?["agent_running"] == true)
        })?;
        assert_eq!(json(world, &machine, "status")?["connected"], false);
        let args = ["activate", second.as_str(), "--allow-no-agent", "--json"];
        let outcome: Value = serde_json::from_str(&local(world, &machine, &args)?.success()?)?;
        assert_eq!(outcome["state"], "succeeded", "{outcome}");
        assert_eq!(machine.current_system()?, Some(second));

        // That brought the network back, and whoever watches the fleet hears of both.
        wait::until_true("the broker hears of what was done without it", || {
            let history = world.watch().history(machine.name())?;
            Ok(history.is_some_and(|history| {
                history.entries.iter().filter(|entry| entry.local).count() == 2
            }))
        })
    });
}

#[test]
fn what_does_not_hold_is_rolled_back_without_a_broker_too() {
    scenario(Options::default(), |world| {
        let machine = world.machine("web-1")?;
        let [first, second] = [version(world, "1")?, version(world, "2")?];
        let check = world.push(&Closure::health_check("echo port 80 is closed; exit 1"))?;
        local(
            world,
            &machine,
            &["activate", first.as_str(), "--allow-no-agent"],
        )?
        .success()?;
        let args = [
            "activate",
            second.as_str(),
            "--allow-no-agent",
            "--check",
            check.as_str(),
        ];
        let finished = local(world, &machine, &args)?.expect_code(4)?;
        assert!(
            finished.stdout.contains("health_check_failed"),
            "{}",
            finished.stdout
        );
        assert!(
            finished.stderr.contains("port 80 is closed"),
            "{}",
            finished.stderr
        );
        assert_eq!(machine.current_system()?, Some(first));
        let table = local(world, &machine, &["history"])?.success()?;
        assert!(
            table.contains("rolled back") && table.contains("succeeded"),
            "{table}"
        );
        Ok(())
    });
}

#[test]
fn two_at_once_are_one_and_a_refusal() {
    scenario(Options::default(), |world| {
        let machine = world.machine("web-1")?;
        let [first, second] = [version(world, "1")?, version(world, "2")?];
        let gate = machine.gate("1", "test")?;
        let args = ["activate", first.as_str(), "--allow-no-agent"];
        let one = begin(world, &machine, "one", &args)?;
        gate.wait_reached()?;
        let args = ["activate", second.as_str(), "--allow-no-agent"];
        let two = local(world, &machine, &args)?.expect_code(1)?;
        assert!(two.stderr.contains("is being activated"), "{}", two.stderr);
        gate.open()?;
        Finished::wait(one)?.success()?;
        assert_eq!(machine.current_system()?, Some(first));
        Ok(())
    });
}

#[test]
fn a_command_that_is_killed_leaves_an_activation_that_ends_and_is_told() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        let first = version(world, "1")?;
        let gate = machine.gate("1", "test")?;
        let args = ["activate", first.as_str(), "--allow-no-agent"];
        let mut command = begin(world, &machine, "killed", &args)?;
        gate.wait_reached()?;
        command.kill()?;
        assert_eq!(json(world, &machine, "status")?["state"], "activating");
        gate.open()?;
        wait::until_true("the activation ends without the command", || {
            Ok(json(world, &machine, "status")?["state"] == "succeeded")
        })?;
        assert_eq!(machine.current_system()?, Some(first));
        machine.start_agent()?;
        wait::until_true("the broker hears of it", || {
            let history = world.watch().history(machine.name())?;
            Ok(history.is_some_and(|history| {
                history.entries.len() == 1 && history.entries[0].state == State::Succeeded
            }))
        })
    });
}

#[test]
fn a_command_that_is_interrupted_says_that_the_activation_goes_on() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        for (n, with_agent) in [("1", false), ("2", true)] {
            if with_agent {
                machine.start_agent()?;
                wait::until_true("the agent answers", || {
                    Ok(json(world, &machine, "status")?["agent_running"] == true)
                })?;
            }
            let path = version(world, n)?;
            let gate = machine.gate(n, "test")?;
            let args = ["activate", path.as_str(), "--allow-no-agent"];
            let mut command = begin(world, &machine, &format!("interrupted-{n}"), &args)?;
            gate.wait_reached()?;
            command.signal(Signal::INT)?;
            let said = Finished::wait(command)?.expect_code(130)?.stderr;
            assert!(said.contains("what was begun goes on"), "{said}");
            gate.open()?;
            wait::until_true("it goes on to its end", || {
                let status = json(world, &machine, "status")?;
                Ok(status["state"] == "succeeded" && status["path"] == path.as_str())
            })?;
            assert_eq!(machine.current_system()?, Some(path));
        }
        Ok(())
    });
}

#[test]
fn a_command_outlives_its_agent() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let first = version(world, "1")?;
        let gate = machine.gate("1", "test")?;
        let args = ["activate", first.as_str(), "--allow-no-agent"];
        let command = begin(world, &machine, "waiting", &args)?;
        gate.wait_reached()?;
        machine.kill_agent()?;
        machine.start_agent()?;
        gate.open()?;
        let said = Finished::wait(command)?.success()?;
        assert!(said.contains("succeeded"), "{said}");
        assert_eq!(machine.current_system()?, Some(first));
        Ok(())
    });
}

#[test]
fn only_the_agents_user_can_reach_its_socket() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let state = machine.dir().join("state");
        let mode = |name: &str| -> Result<u32> {
            Ok(fs::metadata(state.join(name))?.permissions().mode() & 0o777)
        };
        assert_eq!((mode("")?, mode("control")?), (0o700, 0o600));
        let status = json(world, &machine, "status")?;
        assert_eq!(
            (&status["connected"], &status["agent"]),
            (&true.into(), &"web-1".into())
        );
        machine.stop_agent()?;
        assert!(!state.join("control").exists());
        // The names stay known, also where the certificate cannot be read.
        let config = fs::read_to_string(machine.config())?;
        let hidden = config
            .lines()
            .filter(|line| !line.starts_with("certificate"));
        let own = machine.dir().join("own.toml");
        fs::write(&own, hidden.collect::<Vec<_>>().join("\n"))?;
        let program = world.site().programs().agent.clone();
        let said = machine.run(program.as_str(), &["status", "--config", own.as_str()])?;
        let said = said.success()?;
        assert!(said.starts_with("web-1 of fleet prod"), "{said}");
        Ok(())
    });
}

/// How much room is left is a matter of the host that the scenario runs on.
const OF_THE_HOST: [&str; 3] = ["store disk", "state disk", "boot disk"];

/// What the doctor finds wrong, by the names of its checks.
fn wrong(world: &World, machine: &Machine) -> Result<Vec<String>> {
    let finished = local(world, machine, &["doctor", "--json"])?;
    let findings: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("{}{}", finished.stdout, finished.stderr))?;
    let findings = findings.as_array().context("a list")?;
    let mut names = Vec::new();
    for finding in findings
        .iter()
        .filter(|finding| finding["verdict"] == "wrong")
    {
        ensure!(
            finding["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{finding}"
        );
        names.push(finding["check"].as_str().context("a name")?.to_owned());
    }
    ensure!(
        finished.code == i32::from(!names.is_empty()),
        "exit code {} with {names:?}",
        finished.code
    );
    names.retain(|name| !OF_THE_HOST.contains(&name.as_str()));
    if !names.is_empty() {
        // What a failure of the scenario has to be understood by.
        println!("wrong: {}", finished.stdout);
    }
    Ok(names)
}

#[test]
fn the_doctor_finds_nothing_wrong_with_a_good_machine_and_names_what_is_wrong_with_others() {
    scenario(Options::default(), |world| {
        let nothing: [&str; 0] = [];
        // A folder becomes a binary cache with the first push.
        version(world, "1")?;
        let mut machine = world.running("web-1")?;
        assert_eq!(
            wrong(world, &machine)?,
            nothing,
            "{}",
            local(world, &machine, &["doctor"])?.stdout
        );
        let shown = local(world, &machine, &["doctor"])?.success()?;
        assert!(shown.contains("the agent is connected to"), "{shown}");
        world.cache.server.set(Mode::Broken);
        assert_eq!(wrong(world, &machine)?, ["cache"]);
        world.cache.server.set(Mode::Serving);

        // It connects itself, with subscription and echo, when no agent runs.
        machine.stop_agent()?;
        assert_eq!(wrong(world, &machine)?, ["agent"]);
        let shown = local(world, &machine, &["doctor"])?.expect_code(1)?.stdout;
        assert!(shown.contains("subscription and echo work"), "{shown}");
        machine.cut_network()?;
        assert_eq!(wrong(world, &machine)?, ["agent", "broker"]);
        machine.restore_network()?;

        let identity = world.authority.identity("agent", "web-1");
        fs::set_permissions(&identity.key, Permissions::from_mode(0o644))?;
        assert_eq!(wrong(world, &machine)?, ["agent", "key"]);
        fs::set_permissions(&identity.key, Permissions::from_mode(0o600))?;

        let config = fs::read_to_string(machine.config())?;
        let with = |from: &str, to: &str| fs::write(machine.config(), config.replace(from, to));
        with("trusted_keys", "trusted_kays")?;
        assert_eq!(wrong(world, &machine)?, ["configuration"]);
        with(identity.key.as_str(), "/no/such.key")?;
        assert_eq!(wrong(world, &machine)?, ["agent", "key"]);
        with(identity.ca.as_str(), identity.certificate.as_str())?;
        assert_eq!(wrong(world, &machine)?, ["agent", "ca"]);
        let other = world.site().dir().join("other");
        let other = hoist_tests::authority::Authority::create(
            &other,
            "prod",
            world.site().programs(),
            world.site().logs(),
        )?;
        with(
            identity.ca.as_str(),
            other.identity("agent", "web-1").ca.as_str(),
        )?;
        assert_eq!(wrong(world, &machine)?, ["agent", "credentials", "broker"]);
        fs::write(machine.config(), &config)?;

        let agent = world.site().programs().agent.as_str();
        let doctor = [agent, "doctor", "--config", machine.config().as_str()];
        let without_nix =
            machine.run("/usr/bin/env", &[&["PATH=/nowhere"], &doctor[..]].concat())?;
        let said = without_nix.expect_code(1)?.stdout;
        assert!(
            said.contains("WRONG  nix") && said.contains("install Nix"),
            "{said}"
        );
        Ok(())
    });
}
