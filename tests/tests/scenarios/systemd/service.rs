//! The agent as a service of systemd.

use hoist_protocol::State;
use hoist_tests::machine::SYSTEM_PROFILE;
use hoist_tests::nspawn::{Booted, booted_scenario};

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

        machine.reboot()?;
        assert_eq!(machine.booted_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.property("web.service", "Environment")?, "VERSION=1");
        assert_eq!(
            machine.activations()?,
            ["0 boot", "0 init", "1 test", "1 boot", "1 init"]
        );
        Ok(())
    });
}
