//! `kill -9` and power cuts, in every phase. Whatever dies and whenever: the machine ends on the new system,
//! confirmed, or on the one before, and says so exactly once.

use anyhow::Result;
use hoist_protocol::{DeploymentId, HealthCheck, Probe, Reason, State};
use hoist_tests::closure::{Closure, System};
use hoist_tests::machine::{Gate, Machine, SYSTEM_PROFILE};
use hoist_tests::server::Mode;
use hoist_tests::wait;
use hoist_tests::world::{Options, World, scenario};

/// Where the machine stands with version 2 when something dies.
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

/// What dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Victim {
    Agent,
    Activator,
    /// The activator first, the agent right after it.
    Both,
    /// Every process at once, and what was in memory.
    Machine,
}

/// What holds the machine at a moment, until it is let go.
enum Hold {
    Gate(Gate),
    Cache,
    Network,
}

impl Hold {
    fn release(self, world: &World, machine: &Machine) -> Result<()> {
        match self {
            Self::Gate(gate) => gate.open(),
            Self::Cache => {
                world.cache.server.set(Mode::Serving);
                Ok(())
            }
            // After a boot the file is gone, as everything in /run is.
            Self::Network => machine.restore_network().or(Ok(())),
        }
    }
}

/// Brings `machine` to `moment` of the deployment of version 2, and holds it there.
fn bring_to(world: &World, machine: &Machine, moment: Moment) -> Result<(DeploymentId, Hold)> {
    let mut v2 = System::new("web-1", "2");
    let mut check = None;
    let mut gate = None;
    match moment {
        Moment::Fetching => world.cache.server.set(Mode::Holding),
        Moment::Activating => gate = Some(machine.gate("2", "test")?),
        Moment::Checking => {
            gate = Some(machine.gate("2", "check")?);
            check = Some(HELD_CHECK);
        }
        Moment::Confirming => v2 = v2.without_network(),
        Moment::Committing => gate = Some(machine.gate("2", "boot")?),
        Moment::RollingBack => {
            gate = Some(machine.gate("1", "test")?);
            check = Some("exit 1");
        }
    }
    let mut forge = world.forge(machine, &world.system(&v2)?)?;
    if let Some(script) = check {
        let program = world.push(&Closure::health_check(script))?;
        let system = hoist_protocol::System::current()?;
        let probe = Probe::Program([(system, program)].into());
        forge.target.health_checks = vec![HealthCheck::new(probe)];
    }
    let id = world.publish(&forge)?;
    let hold = match gate {
        Some(gate) => {
            gate.wait_reached()?;
            Hold::Gate(gate)
        }
        None if moment == Moment::Fetching => {
            wait::until_true("Nix waits for the cache", || {
                Ok(world.cache.server.held() > 0)
            })?;
            Hold::Cache
        }
        None => {
            wait::until_true("the new system is cut off", || {
                Ok(machine.activations()?.contains(&"2 test".to_owned())
                    && machine.proxy().connections() == 0)
            })?;
            Hold::Network
        }
    };
    Ok((id, hold))
}

/// A health check that stands at a gate as a system's script does.
const HELD_CHECK: &str = "notes=/nix/var/hoist-test
: > $notes/reached/2.check
while [ -e $notes/gates/2.check ]; do sleep 0.02; done";

fn crash(victim: Victim, moment: Moment) {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        let before = machine.activations()?.len();

        let (id, hold) = bring_to(world, &machine, moment)?;
        match victim {
            Victim::Agent => {
                machine.kill_agent()?;
                machine.start_agent()?;
                hold.release(world, &machine)?;
            }
            Victim::Activator => {
                machine.kill_activator()?;
                hold.release(world, &machine)?;
            }
            Victim::Both => {
                machine.kill_activator()?;
                machine.kill_agent()?;
                machine.start_agent()?;
                hold.release(world, &machine)?;
            }
            Victim::Machine => {
                machine.cut_power()?;
                hold.release(world, &machine)?;
                machine.boot()?;
            }
        }

        let status = world.settled(&machine, id)?;
        // Only an activator knows what it has begun: without it the machine goes back, unless it was confirmed.
        // While fetching there is none, and the agent begins again.
        let forward = match moment {
            Moment::RollingBack => false,
            Moment::Fetching | Moment::Committing => true,
            Moment::Activating | Moment::Checking | Moment::Confirming => victim == Victim::Agent,
        };
        let path = status
            .path
            .clone()
            .expect("the deployment names its closure");
        let expected = if forward { path } else { v1 };
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
        assert_eq!(machine.current_system()?.as_ref(), Some(&expected));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&expected));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&expected));
        if victim == Victim::Agent {
            let after = machine.activations()?.split_off(before);
            let expected: &[&str] = match moment {
                Moment::RollingBack => &["2 test", "1 test"],
                _ => &["2 test", "2 boot"],
            };
            assert_eq!(after, expected, "the activator went on alone");
        }

        let v3 = world.system(&System::new("web-1", "3"))?;
        assert_eq!(
            world.carry_out(&machine, &v3)?.state,
            State::Succeeded,
            "the machine takes the next"
        );
        Ok(())
    });
}

macro_rules! crashes {
    ($($name:ident: $victim:ident, $moment:ident;)*) => {$(
        #[test]
        fn $name() {
            crash(Victim::$victim, Moment::$moment);
        }
    )*};
}

crashes! {
    an_agent_killed_while_fetching_fetches_again: Agent, Fetching;
    an_agent_killed_while_activating_still_confirms: Agent, Activating;
    an_agent_killed_while_checking_still_confirms: Agent, Checking;
    an_agent_killed_while_confirming_still_confirms: Agent, Confirming;
    an_agent_killed_while_committing_still_reports: Agent, Committing;
    an_agent_killed_while_rolling_back_still_reports: Agent, RollingBack;

    an_activator_killed_while_activating_goes_back: Activator, Activating;
    an_activator_killed_while_checking_goes_back: Activator, Checking;
    an_activator_killed_while_confirming_goes_back: Activator, Confirming;
    an_activator_killed_while_committing_goes_forward: Activator, Committing;
    an_activator_killed_while_rolling_back_goes_on_back: Activator, RollingBack;

    both_killed_while_activating_go_back: Both, Activating;
    both_killed_while_checking_go_back: Both, Checking;
    both_killed_while_confirming_go_back: Both, Confirming;
    both_killed_while_committing_go_forward: Both, Committing;
    both_killed_while_rolling_back_go_on_back: Both, RollingBack;

    a_power_cut_while_fetching_fetches_again: Machine, Fetching;
    a_power_cut_while_activating_boots_the_old_system: Machine, Activating;
    a_power_cut_while_checking_boots_the_old_system: Machine, Checking;
    a_power_cut_while_confirming_boots_the_old_system: Machine, Confirming;
    a_power_cut_while_committing_goes_forward: Machine, Committing;
    a_power_cut_while_rolling_back_boots_the_old_system: Machine, RollingBack;
}

#[test]
fn an_outcome_that_could_not_be_reported_is_reported_later() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        // The broker dies while the machine commits, and the agent dies before it is back.
        let (id, hold) = bring_to(world, &machine, Moment::Committing)?;
        world.broker.kill()?;
        hold.release(world, &machine)?;
        wait::until_true("the activator has ended", || {
            Ok(machine.activators()?.is_empty())
        })?;
        machine.kill_agent()?;
        world.broker.restart()?;
        machine.start_agent()?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        Ok(())
    });
}

#[test]
fn an_agent_that_is_stopped_while_activating_ends_at_once_and_confirms_when_it_is_back() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let (id, hold) = bring_to(world, &machine, Moment::Activating)?;
        machine.stop_agent()?;
        assert_eq!(machine.activators()?.len(), 1, "the activator lives on");
        hold.release(world, &machine)?;
        machine.start_agent()?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        assert_eq!(machine.activations()?, ["2 test", "2 boot"]);
        Ok(())
    });
}
