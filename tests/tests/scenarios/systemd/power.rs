//! Power cuts and shutdowns in the middle of a deployment: the machine ends on one of the two systems, and says how.

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::{DeploymentId, HealthCheck, Probe, Reason, State, StorePath, System};
use hoist_tests::closure::Closure;
use hoist_tests::machine::{Gate, SYSTEM_PROFILE};
use hoist_tests::nspawn::{Booted, booted_scenario};
use hoist_tests::server::Mode;
use hoist_tests::wait;
use hoist_tests::world::World;

/// Where a deployment stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Moment {
    /// Nix waits for the cache.
    Fetching,
    /// `switch-to-configuration test` of the new system runs.
    Activating,
    /// The health check runs.
    Checking,
    /// The new system cannot reach the broker, and waits for it.
    Confirming,
    /// Confirmed; `switch-to-configuration boot` of the new system runs.
    Committing,
    /// The health check has failed; `switch-to-configuration test` of the old system runs.
    RollingBack,
}

/// Brings `machine`, which runs version `old`, to `moment` of the deployment of version `new`. It stands there until
/// the gate, if there is one, is dropped.
fn bring_to(
    world: &World,
    machine: &Booted,
    moment: Moment,
    old: &str,
    new: &str,
) -> Result<(DeploymentId, StorePath, Option<Gate>)> {
    let mut system = machine.system(new);
    let mut check = None;
    let gate = match moment {
        Moment::Fetching => {
            world.cache.server.set(Mode::Holding);
            None
        }
        Moment::Activating => Some(machine.gate(new, "test")?),
        Moment::Checking => {
            check = Some(format!(
                "notes=/nix/var/hoist-test; : > $notes/reached/{new}.check
                while [ -e $notes/gates/{new}.check ]; do sleep 0.02; done"
            ));
            Some(machine.gate(new, "check")?)
        }
        Moment::Confirming => {
            system = system.without_network();
            None
        }
        Moment::Committing => Some(machine.gate(new, "boot")?),
        Moment::RollingBack => {
            check = Some(format!("exit 1 # {new}"));
            Some(machine.gate(old, "test")?)
        }
    };
    let path = machine.push(world, &system)?;
    let mut forge = world.forge(machine, &path)?;
    if let Some(script) = check {
        let program = world.push(&Closure::health_check(&script))?;
        let probe = Probe::Program([(System::current()?, program)].into());
        forge.target.health_checks = vec![HealthCheck::new(probe)];
    }
    let id = world.publish(&forge)?;
    match (&gate, moment) {
        (Some(gate), _) => gate.wait_reached()?,
        (None, Moment::Fetching) => wait::until_true("Nix waits for the cache", || {
            Ok(world.cache.server.held() > 0)
        })?,
        (None, _) => wait::until_true("the new system is cut off", || {
            let activated = machine.activations()?.contains(&format!("{new} test"));
            Ok(activated && machine.proxy().connections() == 0)
        })?,
    }
    Ok((id, path, gate))
}

/// Cuts the power at `moment`, boots, and checks that everything that can be asked gives the same answer.
fn cut_power_at(
    world: &World,
    machine: &mut Booted,
    moment: Moment,
    old: &str,
    new: &str,
) -> Result<()> {
    let before = machine.current_system()?;
    let (id, path, gate) = bring_to(world, machine, moment, old, new)?;
    let boot = machine.boot_id()?;
    machine.cut_power()?;
    drop(gate);
    world.cache.server.set(Mode::Serving);
    machine.boot()?;
    machine.wait_up()?;
    ensure!(machine.boot_id()? != boot, "it was booted");
    assert_eq!(
        machine.booted_system()?,
        before,
        "an unfinished system is never booted"
    );

    let status = world.settled(machine, id)?;
    let forward = matches!(moment, Moment::Fetching | Moment::Committing);
    let expected = if forward { Some(path) } else { before };
    assert_eq!(
        status.state.is_good(),
        forward,
        "{}: {}",
        status.state,
        status.message
    );
    let reason = match moment {
        _ if forward => None,
        Moment::RollingBack => Some(Reason::HealthCheckFailed),
        _ => Some(Reason::Interrupted),
    };
    assert_eq!(status.reason, reason, "{}", status.message);
    assert_eq!(machine.current_system()?, expected);
    assert_eq!(machine.profile(SYSTEM_PROFILE)?, expected);
    assert_eq!(machine.boot_default()?, expected);
    let runs = if forward { new } else { old };
    assert_eq!(
        machine.property("web.service", "Environment")?,
        format!("VERSION={runs}")
    );
    Ok(())
}

#[test]
fn power_cuts_before_the_confirmation_boot_the_old_system() {
    booted_scenario(|world| {
        let mut machine = Booted::running(world, "web-1")?;
        for (moment, new) in [
            (Moment::Activating, "1"),
            (Moment::Checking, "2"),
            (Moment::Confirming, "3"),
            (Moment::RollingBack, "4"),
        ] {
            cut_power_at(world, &mut machine, moment, "0", new)
                .with_context(|| format!("while {moment:?}"))?;
        }
        let v5 = machine.push(world, &machine.system("5"))?;
        assert_eq!(
            world.carry_out(&machine, &v5)?.state,
            State::Succeeded,
            "it takes the next"
        );
        Ok(())
    });
}

#[test]
fn power_cuts_while_fetching_and_after_the_confirmation_end_on_the_new_system() {
    booted_scenario(|world| {
        let mut machine = Booted::running(world, "web-1")?;
        for (moment, old, new) in [(Moment::Fetching, "0", "1"), (Moment::Committing, "1", "2")] {
            cut_power_at(world, &mut machine, moment, old, new)
                .with_context(|| format!("while {moment:?}"))?;
        }
        let v2 = machine.current_system()?;
        machine.reboot()?;
        assert_eq!(machine.booted_system()?, v2);
        Ok(())
    });
}

#[test]
fn a_shutdown_in_the_middle_of_an_activation_ends_on_the_old_system() {
    booted_scenario(|world| {
        let mut machine = Booted::running(world, "web-1")?;
        let v0 = machine.current_system()?;
        let (id, _, gate) = bring_to(world, &machine, Moment::Activating, "0", "1")?;
        machine.shut_down()?;
        drop(gate);
        machine.boot()?;
        machine.wait_up()?;
        let status = world.settled(&machine, id)?;
        assert!(
            matches!(status.state, State::Failed | State::RolledBack),
            "{}: {}",
            status.state,
            status.message
        );
        assert_eq!(
            status.reason,
            Some(Reason::Interrupted),
            "{}",
            status.message
        );
        assert_eq!(machine.current_system()?, v0);
        assert_eq!(machine.booted_system()?, v0);
        assert_eq!(machine.boot_default()?, v0);
        Ok(())
    });
}
