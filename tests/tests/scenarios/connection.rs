//! The connection: brokers that die, connections that lead nowhere, two machines with one identity, certificates
//! that are renewed; and what keeps an agent from starting.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use camino::Utf8PathBuf;
use hoist_protocol::{Reason, State, Status};
use hoist_tests::broker::Broker;
use hoist_tests::closure::{NETWORK_STALLED, System};
use hoist_tests::foreign::{Client, Watch};
use hoist_tests::machine::{Machine, MachineParts};
use hoist_tests::namespace::Namespace;
use hoist_tests::process::Finished;
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, World, scenario};

/// What the log says of a connection to the preferred broker.
const CONNECTED: &str = " connected broker=";

/// A broker that is not there.
const NOBODY: &str = "mqtts://127.0.0.1:1";

/// Puts `lines` into the agent's configuration, in place of those with the same keys.
fn configure(machine: &Machine, lines: &[String]) -> Result<()> {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let text = fs::read_to_string(machine.config())?;
    let kept = text
        .lines()
        .filter(|old| !lines.iter().any(|new| key(new) == key(old)));
    let all: Vec<&str> = kept.chain(lines.iter().map(String::as_str)).collect();
    Ok(fs::write(machine.config(), all.join("\n"))?)
}

/// The machine's own way to the world's broker.
fn way(machine: &Machine) -> String {
    format!("mqtts://127.0.0.1:{}", machine.proxy().port())
}

fn warns(status: &Status, of: &str) -> bool {
    let mut warnings = status.warnings.iter();
    warnings.any(|warning| warning.as_str().contains(of))
}

/// How often the agent's log says `what`.
fn said(machine: &mut Machine, what: &str) -> Result<usize> {
    Ok(machine.agent()?.stderr()?.matches(what).count())
}

fn wait_said(machine: &mut Machine, what: &str, times: usize) -> Result<()> {
    let name = machine.name().clone();
    wait::until_true(
        &format!("the agent of {name} says {what:?} {times} times"),
        || Ok(said(machine, what)? >= times),
    )
}

#[test]
fn a_broker_that_is_down_is_passed_over_for_the_next_and_the_status_says_so() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        let brokers = format!("broker = [{NOBODY:?}, {:?}]", way(&machine));
        configure(&machine, &[brokers, "tags = [\"rack:7\"]".to_owned()])?;
        machine.start_agent()?;
        let status = world.watch().wait_status(
            machine.name(),
            "it warns that the preferred broker is down",
            |status| {
                warns(
                    status,
                    &format!("{NOBODY}, which is preferred, did not answer"),
                )
            },
        )?;
        let broker = status.broker.as_ref().map(hoist_protocol::Text::as_str);
        ensure!(broker == Some(&way(&machine)), "{broker:?}");
        let tags: Vec<_> = status.tags.iter().map(ToString::to_string).collect();
        ensure!(tags == ["rack:7"], "{tags:?}");
        Ok(())
    });
}

#[test]
fn when_its_broker_dies_the_agent_goes_to_the_next_one_and_comes_back_when_that_ends() {
    scenario(Options::default(), |world| {
        let identity = world
            .authority
            .issue("broker", "standby", &["--host", "127.0.0.1"])?;
        let site = world.site();
        let folder = site.dir().join("standby");
        let mut standby = Broker::start(&folder, &identity, "", site.programs(), site.logs())?;
        let watcher = world.authority.issue("monitor", "standby-watcher", &[])?;
        let client = Client::new(watcher, "standby-watcher.1", standby.port(), site.logs());
        let there = Watch::start(&client, FLEET)?;

        let mut machine = world.machine("web-1")?;
        let brokers = format!("broker = [{:?}, {:?}]", way(&machine), standby.url());
        configure(&machine, &[brokers])?;
        machine.start_agent()?;
        world.watch().wait_presence(machine.name(), "online")?;
        ensure!(
            there.presence(machine.name())?.is_none(),
            "one broker is enough"
        );

        world.broker.kill()?;
        there.wait_presence(machine.name(), "online")?;
        world.broker.restart()?;
        standby.kill()?;
        world.watch().wait_presence(machine.name(), "online")
    });
}

#[test]
fn a_connection_that_leads_nowhere_is_noticed_and_replaced() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        configure(&machine, &["keepalive = \"3s\"".to_owned()])?;
        machine.start_agent()?;
        world.watch().wait_presence(machine.name(), "online")?;
        // From now on every packet is taken, and none arrives: as when a router forgets a connection.
        let stalled = machine.dir().join(NETWORK_STALLED.trim_start_matches('/'));
        fs::write(&stalled, "")?;
        wait_said(&mut machine, "over a connection that seemed to exist", 1)?;
        fs::remove_file(&stalled)?;
        wait_said(&mut machine, CONNECTED, 2)
    });
}

#[test]
fn a_broker_that_dies_while_a_deployment_waits_for_its_confirmation_is_recognised_as_the_one_to_blame()
 {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        // Without anything between that takes connections for a broker that is gone.
        configure(&machine, &[format!("broker = {:?}", world.broker.url())])?;
        machine.start_agent()?;
        world.watch().wait_presence(machine.name(), "online")?;
        let system = world.system(&System::new("web-1", "1"))?;
        let gate = machine.gate("1", "test")?;
        let id = world.publish(&world.forge(&machine, &system)?)?;
        gate.wait_reached()?;
        world.broker.kill()?;
        gate.open()?;
        // The binary cache answers still.
        wait_said(&mut machine, "an outage of the broker", 1)?;
        world.broker.restart()?;
        let status = world.settled(&machine, id)?;
        ensure!(status.state == State::Succeeded, "{status:?}");
        Ok(())
    });
}

/// Another machine with the certificate of `machine`.
fn clone_of(world: &World, machine: &Machine) -> Result<Machine> {
    let site = world.site();
    let dir = site.dir().join("machines/the-clone");
    let identity = world.authority.identity("agent", machine.name().as_str());
    let keys = format!(
        "trusted_keys = [{:?}]\n",
        world.signing_key.public.to_string()
    );
    let parts = MachineParts {
        name: machine.name().clone(),
        namespace: Namespace::create(&dir, site.programs(), &world.cache.nix_conf()?)?,
        broker_port: world.broker.port(),
        config: identity.config() + &keys,
    };
    let logs = dir.join("logs");
    fs::create_dir_all(&logs)?;
    Machine::create(parts, site.programs(), &logs)
}

#[test]
fn two_machines_with_one_certificate_say_so_and_do_not_fight() {
    scenario(Options::default(), |world| {
        let mut one = world.running("web-1")?;
        let mut other = clone_of(world, &one)?;
        other.start_agent()?;
        world
            .watch()
            .wait_status(one.name(), "it warns of a second machine", |status| {
                warns(
                    status,
                    "another machine seems to use this machine's certificate",
                )
            })?;
        let gives_up = "most likely another machine uses this machine's certificate";
        wait::until_true("one of them leaves the connection to the other", || {
            Ok(said(&mut one, gives_up)? + said(&mut other, gives_up)? > 0)
        })?;
        let connections = |one: &mut Machine, other: &mut Machine| -> Result<usize> {
            Ok(said(one, CONNECTED)? + said(other, CONNECTED)?)
        };
        let made = connections(&mut one, &mut other)?;
        ensure!(made <= 20, "{made} connections before they gave up");
        // The one that has the connection keeps it; what was under way when the other gave up may still come.
        wait::until_true("the last one is connected", || {
            let last = world.watch().presence(one.name())?;
            Ok(last.as_deref() == Some("online"))
        })?;
        let made = connections(&mut one, &mut other)?;
        let machine = world.machine("web-2")?;
        machine.never("the fight goes on", |_| {
            Ok(connections(&mut one, &mut other)? > made + 1)
        })
    });
}

#[test]
fn a_broker_that_is_killed_again_and_again_is_not_taken_for_a_second_machine() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        configure(&machine, &["max_backoff = \"1s\"".to_owned()])?;
        machine.start_agent()?;
        for times in 1..=7 {
            wait_said(&mut machine, CONNECTED, times)?;
            world.broker.kill()?;
            world.broker.restart()?;
        }
        wait_said(&mut machine, CONNECTED, 8)?;
        world.watch().wait_presence(machine.name(), "online")?;
        let cloned = "another machine uses this machine's certificate";
        ensure!(said(&mut machine, cloned)? == 0, "it says so");
        let status = world
            .watch()
            .wait_status(machine.name(), "it reports", |_| true)?;
        ensure!(!warns(&status, "another machine"), "{:?}", status.warnings);
        Ok(())
    });
}

/// What systemd-timedated says of the machine's clock from now on.
fn say_synchronised(machine: &Machine, answer: &str) -> Result<()> {
    let script = format!("#!/bin/sh\necho {answer}\n");
    let program = machine.dir().join("bin/timedatectl");
    fs::create_dir_all(machine.dir().join("bin"))?;
    // At once: the agent must not find half of it.
    let new = machine.dir().join("bin/new");
    fs::write(&new, script)?;
    fs::set_permissions(&new, Permissions::from_mode(0o755))?;
    Ok(fs::rename(new, program)?)
}

#[test]
fn a_clock_that_nothing_keeps_right_is_warned_about_and_one_that_nobody_knows_of_is_not() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        let clock = "nothing keeps this machine's clock right";
        configure(&machine, &["status_interval = \"1s\"".to_owned()])?;
        machine.start_agent()?;
        // Without systemd there is nobody to ask, as in a container.
        let watch = world.watch();
        let status = watch.wait_status(machine.name(), "it reports", |_| true)?;
        ensure!(!warns(&status, clock), "{:?}", status.warnings);
        machine.stop_agent()?;

        say_synchronised(&machine, "no")?;
        fs::create_dir_all(machine.dir().join("run/systemd/system"))?;
        let path = world.site().programs().path();
        machine.set_variable("PATH", &format!("{}/bin:{path}", machine.dir()));
        machine.start_agent()?;
        watch.wait_status(machine.name(), "it warns of its clock", |status| {
            warns(status, clock)
        })?;
        say_synchronised(&machine, "yes")?;
        watch
            .wait_status(machine.name(), "it does not any more", |status| {
                !warns(status, clock)
            })
            .map(drop)
    });
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        world
            .authority
            .issue("agent", "web-1", &["--days", "5", "--force"])?;
        configure(&machine, &["status_interval = \"1s\"".to_owned()])?;
        machine.start_agent()?;
        let watch = world.watch();
        watch.wait_status(
            machine.name(),
            "it warns of the end of its certificate",
            |status| warns(status, "this machine's certificate ends on"),
        )?;
        let pid = machine.agent()?.pid();

        let identity = world.authority.issue("agent", "web-1", &["--force"])?;
        watch.wait_status(machine.name(), "there is nothing to warn of", |status| {
            status.warnings.is_empty()
        })?;
        // The broker has seen the new one.
        wait_said(&mut machine, CONNECTED, 2)?;

        let good = fs::read(&identity.certificate)?;
        fs::write(&identity.certificate, "-----BEGIN NONSENSE")?;
        watch.wait_status(machine.name(), "it warns of the broken file", |status| {
            warns(status, "certificate not renewed")
        })?;
        fs::write(&identity.certificate, good)?;
        watch.wait_status(
            machine.name(),
            "there is nothing to warn of again",
            |status| status.warnings.is_empty(),
        )?;
        ensure!(machine.agent()?.is_alive()? && machine.agent()?.pid() == pid);
        Ok(())
    });
}

#[test]
fn an_agent_whose_certificate_has_expired_brings_its_work_to_an_end_and_takes_a_new_one_by_itself()
{
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        ensure!(world.carry_out(&machine, &v1)?.state == State::Succeeded);
        let v2 = world.system(&System::new("web-1", "2"))?;
        let gate = machine.gate("2", "test")?;
        let id = world.publish(&world.forge(&machine, &v2)?)?;
        gate.wait_reached()?;
        machine.kill_agent()?;
        machine.kill_activator()?;
        gate.open()?;

        world.authority.issue_expired("agent", "web-1")?;
        configure(&machine, &["max_backoff = \"1s\"".to_owned()])?;
        machine.start_agent()?;
        // It says what to do, and brings the job to its end meanwhile.
        wait_said(&mut machine, "expired on", 1)?;
        wait_said(&mut machine, "hoist-certs issue", 1)?;
        wait_said(&mut machine, "status state=failed", 1)?;
        let pid = machine.agent()?.pid();

        world.authority.issue("agent", "web-1", &["--force"])?;
        let status = world.settled(&machine, id)?;
        ensure!(status.reason == Some(Reason::Interrupted), "{status:?}");
        ensure!(machine.agent()?.is_alive()? && machine.agent()?.pid() == pid);
        Ok(())
    });
}

/// Runs the agent inside of the machine after `prepare`, a shell script, where it must not start.
fn refused(world: &World, machine: &Machine, prepare: &str) -> Result<Finished> {
    let agent = world.site().programs().agent.clone();
    let state = machine.dir().join("state");
    let script = format!("{prepare}\nexec \"$1\" run --config \"$2\"");
    let args = [
        "-euc",
        &script,
        "sh",
        agent.as_str(),
        machine.config().as_str(),
        state.as_str(),
    ];
    machine.run("/bin/sh", &args)?.expect_code(1)
}

fn contains(finished: &Finished, expected: &[&str]) -> Result<()> {
    for text in expected {
        ensure!(
            finished.stderr.contains(text),
            "{text:?} is not in: {}",
            finished.stderr
        );
    }
    Ok(())
}

#[test]
fn a_state_folder_that_cannot_be_used_is_refused_with_what_to_do() {
    scenario(Options::default(), |world| {
        let mut machine = world.machine("web-1")?;
        let state: Utf8PathBuf = machine.dir().join("state");

        fs::create_dir(&state)?;
        let read_only = "mount --bind \"$3\" \"$3\"; mount -o remount,ro,bind \"$3\"";
        let finished = refused(world, &machine, read_only)?;
        contains(
            &finished,
            &[
                "cannot write to the state folder",
                state.as_str(),
                "as `state`",
            ],
        )?;

        fs::set_permissions(&state, Permissions::from_mode(0o777))?;
        let finished = refused(world, &machine, "")?;
        contains(
            &finished,
            &["others can write to", "mode 0777", "chmod 700"],
        )?;

        fs::set_permissions(&state, Permissions::from_mode(0o700))?;
        machine.start_agent()?;
        world.watch().wait_presence(machine.name(), "online")?;
        let finished = refused(world, &machine, "")?;
        contains(
            &finished,
            &[
                "another hoist-agent runs with the state folder",
                state.as_str(),
            ],
        )
    });
}

#[test]
fn without_nix_the_agent_says_where_it_looked_for_it() {
    scenario(Options::default(), |world| {
        let machine = world.machine("web-1")?;
        let finished = refused(world, &machine, "export PATH=/nonexistent/bin")?;
        contains(&finished, &["nix-store", "/nonexistent/bin", "install Nix"])?;
        let state = machine.dir().join("state");
        let left = state
            .read_dir_utf8()
            .context("the folder was made")?
            .count();
        ensure!(left == 0, "nothing was begun");
        Ok(())
    });
}
