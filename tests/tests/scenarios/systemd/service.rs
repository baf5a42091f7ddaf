//! The agent as a service of systemd.

use anyhow::Result;
use hoist_protocol::State;
use hoist_tests::machine::SYSTEM_PROFILE;
use hoist_tests::nspawn::{AGENT, Booted, BootedSystem, booted_scenario};
use hoist_tests::wait;
use hoist_tests::world::World;

#[test]
fn a_booted_machine_runs_what_was_deployed_and_boots_it_next_time() {
    booted_scenario(|world| {
        let mut machine = Booted::running(world, "web-1")?;
        let v0 = machine
            .current_system()?
            .expect("it runs what was installed");
        assert_eq!(machine.booted_system()?.as_ref(), Some(&v0));

        let v1 = machine.push(world, &machine.system("1"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.booted_system()?.as_ref(), Some(&v0));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v1));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v1));
        assert_eq!(machine.property("web.service", "Environment")?, "VERSION=1");
        let status = world.watch().wait_end(machine.name(), State::Succeeded)?;
        assert_eq!(status.previous_path, Some(v0));

        let boot = machine.boot_id()?;
        machine.reboot()?;
        assert_ne!(machine.boot_id()?, boot);
        assert_eq!(machine.booted_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.property("web.service", "Environment")?, "VERSION=1");
        assert_eq!(
            machine.activations()?,
            ["0 boot", "0 init", "1 test", "1 boot", "1 init"]
        );
        Ok(())
    });
}

#[test]
fn two_booted_machines_are_deployed_at_once() {
    booted_scenario(|world| {
        let mut machines = [
            Booted::install(world, "web-1")?,
            Booted::install(world, "web-2")?,
        ];
        for machine in &mut machines {
            machine.boot()?;
        }
        for machine in &mut machines {
            machine.wait_up()?;
            machine.wait_online(world)?;
        }
        let [one, two] = &machines;
        let paths = [
            one.push(world, &one.system("1"))?,
            two.push(world, &two.system("1"))?,
        ];
        let spec = world.spec(&[(one.name(), &paths[0]), (two.name(), &paths[1])], None)?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(0)?;
        for (machine, path) in machines.iter().zip(&paths) {
            assert_eq!(machine.current_system()?.as_ref(), Some(path));
            assert_eq!(machine.boot_default()?.as_ref(), Some(path));
        }
        Ok(())
    });
}

#[test]
fn the_service_is_ready_before_it_is_connected_keeps_its_secrets_and_is_revived_when_it_hangs() {
    booted_scenario(|world| {
        let mut machine = Booted::install_with(world, "web-1", BootedSystem::without_network)?;
        machine.boot()?;
        // All of the boot is done only when the agent has said that it is ready.
        machine.wait_up()?;
        assert_eq!(machine.property(AGENT, "ActiveState")?, "active");
        assert_eq!(machine.property(AGENT, "Type")?, "notify");
        assert_eq!(world.watch().presence(machine.name())?, None);
        machine.restore_network()?;
        machine.wait_online(world)?;

        secrets_stay(&machine)?;
        world.check_logs()?;
        watchdog(world, &machine)
    });
}

/// The key reaches the agent as a credential, which nobody else can read.
fn secrets_stay(machine: &Booted) -> Result<()> {
    let key = format!("/run/credentials/{AGENT}/key");
    // Not printed: what a program prints is kept, and searched for secrets.
    let read = ["grep", "--quiet", "PRIVATE KEY", &key];
    machine.run(read[0], &read[1..])?.expect_code(0)?;
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let denied = machine.run("setpriv", &[&nobody[..], &read[..]].concat())?;
    denied.expect_code(2)?;
    let everything = machine.run("systemctl", &["show", AGENT])?.success()?;
    assert!(!everything.contains("PRIVATE KEY"));
    let mode = machine
        .run("stat", &["--format=%a", "/var/lib/hoist-agent"])?
        .success()?;
    assert_eq!(mode.trim(), "700");
    Ok(())
}

/// What may stand in `NIX_CONFIG`: the access token of somebody's Git.
const TOKEN: &str = "not-for-everybody";

/// The activator gets what the agent's environment tells Nix, and nobody else learns it.
fn environment_stays(machine: &Booted) -> Result<()> {
    let activator = machine.units("hoist-activator-*")?;
    let shown = machine
        .run("systemctl", &["show", &activator[0]])?
        .success()?;
    assert!(!shown.contains(TOKEN), "{shown}");
    let unit = machine
        .run("systemctl", &["cat", &activator[0]])?
        .success()?;
    assert!(!unit.contains(TOKEN), "{unit}");
    let pid = machine.property(&activator[0], "MainPID")?;
    let environment = format!("/proc/{pid}/environ");
    machine
        .run("grep", &["--quiet", TOKEN, &environment])?
        .expect_code(0)?;
    Ok(())
}

/// systemd kills an agent that hangs, and starts another, which finishes what the first had begun.
fn watchdog(world: &World, machine: &Booted) -> Result<()> {
    assert_ne!(machine.property(AGENT, "WatchdogUSec")?, "0");
    // The module's limit is a matter of minutes. What the environment holds is for those alone who can read the file.
    let shorter = format!(
        "mkdir -p /run/systemd/system/{AGENT}.d && \
         printf '[Service]\\nWatchdogSec=3\\nEnvironmentFile=/run/nix.env\\n' \
           > /run/systemd/system/{AGENT}.d/watchdog.conf && \
         (umask 077 && printf 'NIX_CONFIG=\"# {TOKEN}\"\\n' > /run/nix.env) && \
         systemctl daemon-reload && systemctl restart {AGENT}"
    );
    machine.run("sh", &["-euc", &shorter])?.success()?;
    let hanging = machine.property(AGENT, "MainPID")?;
    let v1 = machine.push(world, &machine.system("1"))?;
    let gate = machine.gate("1", "test")?;
    let id = world.publish(&world.forge(machine, &v1)?)?;
    gate.wait_reached()?;
    environment_stays(machine)?;

    let stop = ["kill", "--signal=STOP", "--kill-whom=main", AGENT];
    machine.run("systemctl", &stop)?.success()?;
    wait::until_true("systemd has started another agent", || {
        Ok(machine.property(AGENT, "NRestarts")? == "1"
            && machine.property(AGENT, "ActiveState")? == "active")
    })?;
    assert_ne!(machine.property(AGENT, "MainPID")?, hanging);
    assert!(machine.journal()?.contains("Watchdog timeout"));
    gate.open()?;
    let status = world.settled(machine, id)?;
    assert_eq!(status.state, State::Succeeded, "{}", status.message);
    assert_eq!(machine.boot_default()?.as_ref(), Some(&v1));
    Ok(())
}
