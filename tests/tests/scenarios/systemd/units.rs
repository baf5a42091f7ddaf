//! Units that fail, and health checks.

use hoist_protocol::{HealthCheck, Probe, Reason, State, System, UnitName, UnitsFailed};
use hoist_tests::closure::Closure;
use hoist_tests::nspawn::{Booted, booted_scenario};

/// A unit that fails as soon as it is started.
const FAILING: &str = "[Service]\nType=oneshot\nExecStart=/bin/false\n";

#[test]
fn units_that_fail_are_judged_by_the_deployments_policy() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let v0 = machine.current_system()?;
        let v1 = machine.push(world, &machine.system("1").unit("job.service", FAILING))?;

        let status = world.carry_out(&machine, &v1)?;
        assert!(!status.state.is_good(), "{}", status.state);
        assert_eq!(
            status.reason,
            Some(Reason::UnitsFailed),
            "{}",
            status.message
        );
        assert_eq!(machine.current_system()?, v0);
        assert_eq!(machine.property("web.service", "Environment")?, "VERSION=0");

        let mut forge = world.forge(&machine, &v1)?;
        forge.target.units_failed = UnitsFailed::Keep;
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(machine.property("job.service", "ActiveState")?, "failed");

        // The same unit has failed before: it is not this deployment's doing. Another one is.
        let v2 = machine.push(world, &machine.system("2").unit("job.service", FAILING))?;
        let mut forge = world.forge(&machine, &v2)?;
        forge.target.units_failed = UnitsFailed::KeepIfFailedBefore;
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        let v3 = machine
            .system("3")
            .unit("job.service", FAILING)
            .unit("more.service", FAILING);
        let mut forge = world.forge(&machine, &machine.push(world, &v3)?)?;
        forge.target.units_failed = UnitsFailed::KeepIfFailedBefore;
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(
            status.reason,
            Some(Reason::UnitsFailed),
            "{}",
            status.message
        );
        assert_eq!(machine.current_system()?, Some(v2));
        Ok(())
    });
}

#[test]
fn health_checks_see_the_machines_services() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let v0 = machine.current_system()?;
        let program = world.push(&Closure::health_check(
            "systemctl show --property=Environment web.service | grep -x 'Environment=VERSION=1'",
        ))?;
        let checks = vec![
            HealthCheck::new(Probe::Program([(System::current()?, program)].into())),
            HealthCheck::new(Probe::Unit(UnitName::new("web.service")?)),
        ];
        let v1 = machine.push(world, &machine.system("1"))?;
        let mut forge = world.forge(&machine, &v1)?;
        forge.target.health_checks.clone_from(&checks);
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);

        // Other versions, whose server ends soon after its start without a failure, once or again and again. At
        // most moments that one is active.
        let ends = "ExecStart=/bin/true";
        let loops = "ExecStart=/bin/sh -c 'sleep 0.5'\nRestart=always\nRestartSec=10ms";
        for (version, server) in [("2", ends), ("3", loops)] {
            let unit = format!(
                "[Unit]\nStartLimitIntervalSec=0\n[Service]\nEnvironment=VERSION=1\n{server}\n"
            );
            let v2 = machine.push(world, &machine.system(version).unit("web.service", &unit))?;
            let mut forge = world.forge(&machine, &v2)?;
            forge.target.health_checks.clone_from(&checks);
            let id = world.publish(&forge)?;
            let status = world.settled(&machine, id)?;
            assert_eq!(status.state, State::RolledBack, "{}", status.message);
            assert_eq!(status.reason, Some(Reason::HealthCheckFailed));
            assert!(
                status.message.as_str().contains("web.service"),
                "{}",
                status.message
            );
            assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        }
        assert_ne!(machine.current_system()?, v0);
        assert_eq!(machine.property("web.service", "ActiveState")?, "active");
        Ok(())
    });
}
