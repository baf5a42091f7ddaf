//! What else is at work on a machine, and has to be respected: another switch, and who wants to send it to sleep.

use anyhow::Result;
use hoist_protocol::{Reason, State};
use hoist_tests::nspawn::{Booted, booted_scenario};
use hoist_tests::wait;
use hoist_tests::world::World;

/// Another switch, as far as its lock goes: `flock` holds it until the unit is stopped.
fn hold_lock(machine: &Booted, how: &str) -> Result<()> {
    const LOCK: &str = "/run/nixos/switch-to-configuration.lock";
    let hold = format!("exec flock {how} {LOCK} sh -c 'touch /run/held; exec sleep infinity'");
    machine
        .run(
            "systemd-run",
            &["--quiet", "--unit=other-switch", "sh", "-c", &hold],
        )?
        .success()?;
    wait::until_true("the other switch holds the lock", || {
        Ok(machine.run("test", &["-e", "/run/held"])?.code == 0)
    })
}

fn release_lock(machine: &Booted) -> Result<()> {
    machine
        .run("systemctl", &["stop", "other-switch.service"])?
        .success()?;
    machine.run("rm", &["/run/held"])?.success()?;
    Ok(())
}

fn wait_for_log(world: &World, machine: &Booted, text: &str) -> Result<()> {
    wait::until_true(&format!("the log says `{text}`"), || {
        let log = world.watch().log(machine.name())?;
        Ok(log.iter().any(|line| line.text.as_str().contains(text)))
    })
}

#[test]
fn a_switch_waits_for_another_one_and_gives_up_when_that_does_not_end() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let v0 = machine.current_system()?;
        let v1 = machine.push(world, &machine.system("1"))?;

        // One that does not end in the time that the order gives.
        hold_lock(&machine, "--exclusive")?;
        let mut forge = world.forge(&machine, &v1)?;
        forge.target.activation_timeout_ms = 2000;
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Failed, "{}", status.message);
        assert_eq!(status.reason, Some(Reason::Busy), "{}", status.message);
        assert_eq!(machine.current_system()?, v0);
        assert_eq!(machine.boot_default()?, v0);
        assert_eq!(machine.activations()?, ["0 boot", "0 init"]);
        release_lock(&machine)?;

        // One that ends, and is seen before the switch begins.
        hold_lock(&machine, "--exclusive")?;
        let id = world.publish(&world.forge(&machine, &v1)?)?;
        wait_for_log(world, &machine, "waiting for its end")?;
        release_lock(&machine)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);

        // One that begins a moment before the switch takes the lock itself, which a shared lock makes look so.
        hold_lock(&machine, "--shared")?;
        let v2 = machine.push(world, &machine.system("2"))?;
        let id = world.publish(&world.forge(&machine, &v2)?)?;
        wait_for_log(world, &machine, "trying again")?;
        release_lock(&machine)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v2));
        Ok(())
    });
}

#[test]
fn a_machine_does_not_go_to_sleep_in_the_middle_of_an_activation() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let inhibitors = || {
            let list = ["--list", "--no-pager", "--no-legend"];
            machine.run("systemd-inhibit", &list)?.success()
        };
        assert_eq!(inhibitors()?.trim(), "");
        let v1 = machine.push(world, &machine.system("1"))?;
        let gate = machine.gate("1", "test")?;
        let id = world.publish(&world.forge(&machine, &v1)?)?;
        gate.wait_reached()?;
        let held = inhibitors()?;
        let is_held = held.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first() == Some(&"Hoist") && words.contains(&"sleep") && words.contains(&"block")
        });
        assert!(is_held, "{held}");

        // Its death gives it up, and who recovers takes it again.
        let activator = machine.units("hoist-activator-*")?;
        machine
            .run(
                "systemctl",
                &["kill", "--signal=KILL", "--kill-whom=main", &activator[0]],
            )?
            .success()?;
        drop(gate);
        let status = world.settled(&machine, id)?;
        assert_eq!(
            status.reason,
            Some(Reason::Interrupted),
            "{}",
            status.message
        );
        wait::until_true("the machine may sleep again", || {
            Ok(inhibitors()?.trim().is_empty())
        })
    });
}
