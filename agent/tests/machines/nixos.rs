//! What only NixOS systems do: boots, tests, specialisations, switch inhibitors, failed units, the lock.

use std::fs;

use hoist_agent::job::Phase;
use hoist_protocol::{
    Action, HealthCheck, Probe, Reason, Specialisation, State, StorePath, UnitName, UnitsFailed,
};

use crate::machine::{
    Activator, Machine, SYSTEM, Script, assert_all_is, assert_ends, checks_with, confirm, current,
    generations, inside, link, log, outcome, recover, result, run, until,
};

/// Makes the machine one with a systemd, as far as is needed: units fail that `failed` names.
fn with_systemd(machine: &Machine) {
    fs::create_dir_all("/run/systemd/system").unwrap();
    let failed = machine.dir().join("failed");
    fs::write(&failed, "").unwrap();
    machine.fake(
        "systemctl",
        &format!(
            r#"case $1 in
list-units) while read -r unit; do echo "$unit loaded failed failed Something"; done < {failed} ;;
show) case $* in *ActiveState*)
    echo LoadState=loaded
    for unit; do :; done
    if grep -qx "$unit" {failed}; then echo ActiveState=failed; else echo ActiveState=active; fi
    echo ActiveEnterTimestampMonotonic=1 ;;
  esac ;;
is-system-running) echo running ;;
*) exit 0 ;;
esac"#
        ),
    );
    machine.fake(
        "systemd-run",
        r#"while [ "$1" != -- ]; do shift; done; shift; exec "$@""#,
    );
    machine.fake("systemd-inhibit", r#"exec cat"#);
}

fn fail_units(machine: &Machine, units: &str) {
    fs::write(machine.dir().join("failed"), units).unwrap();
}

/// What every order for the next boot has to leave.
fn assert_is_staged(machine: &Machine, runs: &StorePath, boots: &StorePath) {
    assert_eq!(current().as_ref(), Some(runs));
    assert_eq!(link(SYSTEM).as_ref(), Some(boots));
    assert_eq!(machine.boot_default().as_ref(), Some(boots));
}

#[test]
fn an_order_for_the_next_boot_activates_nothing() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let b = machine.nixos("b", Script::PLAIN);
        let mut spec = machine.spec(&b);
        spec.target.action = Action::Boot;
        let staged = machine.carry_out(&spec);
        assert_ends(&staged, (State::Staged, None));
        assert_is_staged(machine, &a, &b);
        assert_eq!(machine.notes()[2..], ["b boot"]);
    });
}

#[test]
fn an_order_for_the_next_boot_that_cannot_be_staged_changes_nothing() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let full = Script {
            boot: "echo no space left >&2; exit 1",
            ..Script::PLAIN
        };
        let mut spec = machine.spec(&machine.nixos("b", full));
        spec.target.action = Action::Boot;
        let failed = machine.carry_out(&spec);
        assert_ends(&failed, (State::Failed, Some(Reason::BootLoaderFailed)));
        assert_all_is(machine, &a);
        assert_eq!(
            machine.notes()[2..],
            ["b boot", "a boot"],
            "nothing was activated"
        );
    });
}

#[test]
fn a_staging_that_is_interrupted_is_completed() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let b = machine.nixos("b", Script::PLAIN);
        for cut in [false, true] {
            machine.close("b.boot");
            let mut spec = machine.spec(&b);
            spec.target.action = Action::Boot;
            let job = machine.create(&spec);
            let count = machine.notes().len();
            let activator = Activator::start(&job);
            until("the boot loader is set", || machine.notes().len() > count);
            if cut {
                machine.power_cut(&job, activator);
            } else {
                activator.kill();
            }
            machine.open("b.boot");
            Activator::start(&job).wait();
            let staged = result(&job);
            assert_ends(&staged, (State::Staged, None));
            assert_eq!(machine.boot_default().as_ref(), Some(&b));
        }
    });
}

#[test]
fn what_only_a_boot_can_bring_is_staged_and_not_tried_again_and_again() {
    inside(|machine| {
        let kernel = |version: u8| {
            format!(
                r#"echo '{{"kernel": "{version}", "only-{version}": "x"}}' > $out/switch-inhibitors"#
            )
        };
        let a = machine.nixos_with("a", Script::PLAIN, &kernel(1));
        machine.running(&a);
        let new_init = Script {
            before: "exit 100",
            ..Script::PLAIN
        };
        let b = machine.nixos_with("b", new_init, &kernel(1));
        let staged = machine.carry_out(&machine.spec(&b));
        assert_ends(&staged, (State::Staged, None));
        assert!(
            staged.message.as_str().contains("init"),
            "{}",
            staged.message
        );
        assert_is_staged(machine, &a, &b);
        assert_eq!(machine.notes()[2..], ["b test", "b boot"]);

        let c = machine.nixos_with("c", Script::PLAIN, &kernel(2));
        let staged = machine.carry_out(&machine.spec(&c));
        assert_ends(&staged, (State::Staged, None));
        assert!(
            staged.message.as_str().contains("kernel"),
            "{}",
            staged.message
        );
        assert_is_staged(machine, &a, &c);
        assert_eq!(machine.notes()[4..], ["c boot"]);

        for system in [b, c.clone()] {
            let mut spec = machine.spec(&system);
            spec.target.action = Action::Test;
            let refused = machine.carry_out(&spec);
            assert_ends(&refused, (State::Failed, Some(Reason::NeedsReboot)));
            assert_is_staged(machine, &a, &c);
        }
    });
}

#[test]
fn a_test_that_is_confirmed_leaves_profile_and_boot_default() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let b = machine.nixos("b", Script::PLAIN);
        let mut spec = machine.spec(&b);
        spec.target.action = Action::Test;
        let tested = machine.carry_out(&spec);
        assert_ends(&tested, (State::Succeeded, None));
        assert_is_staged(machine, &b, &a);
        assert_eq!(generations(SYSTEM).len(), 1);

        spec.id = crate::machine::new_id();
        spec.target.health_checks = vec![checks_with(machine.program("no", "exit 1"))];
        let bad = machine.carry_out(&spec);
        assert_eq!(bad.state, State::RolledBack, "{}", bad.message);
        assert_is_staged(machine, &b, &a);
    });
}

#[test]
fn a_dry_activation_of_a_system_changes_nothing() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let mut spec = machine.spec(&machine.nixos("b", Script::PLAIN));
        spec.target.action = Action::DryActivate;
        let job = machine.create(&spec);
        machine.close("b.dry-activate");
        let activator = Activator::start(&job);
        until("it runs", || {
            machine.notes().last().unwrap() == "b dry-activate"
        });
        activator.kill();
        machine.open("b.dry-activate");
        Activator::start(&job).wait();
        assert_eq!(outcome(&result(&job)), (State::DryActivated, None));
        assert!(log(&job).contains("would restart x.service"));
        assert_all_is(machine, &a);
        assert_eq!(machine.notes()[2..], ["b dry-activate", "b dry-activate"]);
    });
}

#[test]
fn a_specialisation_runs_while_the_profile_stays_on_the_whole_system() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let special = machine.nixos("special", Script::PLAIN);
        let more = format!("mkdir $out/specialisation; ln -s {special} $out/specialisation/night");
        let b = machine.nixos_with("b", Script::PLAIN, &more);
        let mut spec = machine.spec(&b);
        spec.target.specialisation = Some(Specialisation::new("night").unwrap());
        let job = machine.create(&spec);
        let activator = Activator::start_until(&job, Phase::Confirming);
        confirm(&job);
        activator.wait();
        let night = result(&job);
        assert_ends(&night, (State::Succeeded, None));
        assert_is_staged(machine, &special, &b);
        assert_eq!(machine.notes()[2..], ["special test", "b boot"]);

        // What ran before is a specialisation now, and is gone back to as such.
        let bad = machine.nixos("bad", Script::PLAIN);
        let mut spec = machine.spec(&bad);
        spec.target.health_checks = vec![checks_with(machine.program("no", "exit 1"))];
        assert_eq!(machine.carry_out(&spec).state, State::RolledBack);
        assert_is_staged(machine, &special, &b);

        let mut spec = machine.spec(&b);
        spec.target.specialisation = Some(Specialisation::new("day").unwrap());
        let missing = machine.carry_out(&spec);
        assert_eq!(outcome(&missing), (State::Failed, Some(Reason::WrongKind)));
    });
}

#[test]
fn failed_units_are_judged_by_the_orders_policy_and_by_what_had_failed_before() {
    inside(|machine| {
        with_systemd(machine);
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let flaky = Script {
            after: "echo 'warning: the following units failed: new.service, old.service' >&2; exit 4",
            ..Script::PLAIN
        };
        let known = Script {
            after: "echo 'warning: the following units failed: old.service' >&2; exit 4",
            ..Script::PLAIN
        };
        let (flaky, known) = (machine.nixos("flaky", flaky), machine.nixos("known", known));
        fail_units(machine, "old.service\n");
        let with = |closure: &StorePath, policy: UnitsFailed| {
            let mut spec = machine.spec(closure);
            spec.target.units_failed = policy;
            machine.carry_out(&spec)
        };
        let back = (State::RolledBack, Some(Reason::UnitsFailed));

        let rolled_back = with(&known, UnitsFailed::RollBack);
        assert_ends(&rolled_back, back);
        let new = with(&flaky, UnitsFailed::KeepIfFailedBefore);
        assert_ends(&new, back);
        let said = new.message.as_str();
        assert!(
            said.contains("new.service") && !said.contains("old.service"),
            "{said}"
        );
        assert_all_is(machine, &a);

        let kept = with(&known, UnitsFailed::KeepIfFailedBefore);
        assert_ends(&kept, (State::Succeeded, None));
        assert!(
            kept.message.as_str().contains("old.service"),
            "{}",
            kept.message
        );
        let kept = with(&flaky, UnitsFailed::Keep);
        assert_ends(&kept, (State::Succeeded, None));
        assert!(
            kept.message.as_str().contains("new.service"),
            "{}",
            kept.message
        );
        assert_all_is(machine, &flaky);
    });
}

#[test]
fn a_check_that_had_failed_before_counts_only_where_the_order_says_so() {
    inside(|machine| {
        with_systemd(machine);
        machine.running(&machine.nixos("a", Script::PLAIN));
        fail_units(machine, "web.service\n");
        let web = Probe::Unit(UnitName::new("web.service").unwrap());
        let mut spec = machine.spec(&machine.nixos("b", Script::PLAIN));
        spec.target.health_checks = vec![HealthCheck::new(web.clone())];
        let failed = machine.carry_out(&spec);
        assert_ends(
            &failed,
            (State::RolledBack, Some(Reason::HealthCheckFailed)),
        );
        assert!(
            failed.message.as_str().contains("web.service"),
            "{}",
            failed.message
        );

        spec.id = crate::machine::new_id();
        spec.target.health_checks[0].only_if_held_before = true;
        let kept = machine.carry_out(&spec);
        assert_ends(&kept, (State::Succeeded, None));

        // It holds now: from here on it has to.
        fail_units(machine, "");
        let breaks = Script {
            after: "echo web.service > $(dirname $(dirname $(command -v systemctl)))/failed",
            ..Script::PLAIN
        };
        let mut spec = machine.spec(&machine.nixos("c", breaks));
        spec.target.health_checks = vec![HealthCheck {
            only_if_held_before: true,
            ..HealthCheck::new(web)
        }];
        let failed = machine.carry_out(&spec);
        assert_ends(
            &failed,
            (State::RolledBack, Some(Reason::HealthCheckFailed)),
        );
    });
}

#[test]
fn a_check_has_time_to_hold_and_a_number_of_tries() {
    inside(|machine| {
        machine.running(&machine.nixos("a", Script::PLAIN));
        let third = machine.program(
            "third",
            "echo x >> /nix/var/notes/tries; [ $(wc -l < /nix/var/notes/tries) -ge 3 ]",
        );
        let mut check = checks_with(third);
        check.interval_ms = 10;
        check.retries = 1;
        let b = machine.nixos("b", Script::PLAIN);
        let mut spec = machine.spec(&b);
        spec.target.health_checks = vec![check.clone()];
        let too_few = machine.carry_out(&spec);
        assert_eq!(too_few.state, State::RolledBack, "{}", too_few.message);

        fs::remove_file("/nix/var/notes/tries").unwrap();
        check.retries = 2;
        let mut spec = machine.spec(&b);
        spec.target.health_checks = vec![check.clone()];
        let enough = machine.carry_out(&spec);
        assert_eq!(enough.state, State::Succeeded, "{}", enough.message);

        fs::remove_file("/nix/var/notes/tries").unwrap();
        check.retries = 0;
        check.grace_ms = 60_000;
        let mut spec = machine.spec(&machine.nixos("c", Script::PLAIN));
        spec.target.health_checks = vec![check];
        let grace = machine.carry_out(&spec);
        assert_eq!(grace.state, State::Succeeded, "{}", grace.message);
    });
}

#[test]
fn another_switch_is_waited_for_and_not_for_ever() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        fs::create_dir_all("/run/nixos").unwrap();
        let lock = fs::File::create("/run/nixos/switch-to-configuration.lock").unwrap();
        lock.lock().unwrap();
        let b = machine.nixos("b", Script::PLAIN);
        let mut spec = machine.spec(&b);
        spec.target.activation_timeout_ms = 300;
        let busy = machine.carry_out(&spec);
        assert_ends(&busy, (State::Failed, Some(Reason::Busy)));
        assert_eq!(
            machine.notes(),
            ["a test", "a boot"],
            "nothing was activated"
        );

        let job = machine.create(&machine.spec(&b));
        let activator = Activator::start(&job);
        until("it waits", || log(&job).contains("waiting for its end"));
        drop(lock);
        until("it is activated", || {
            job.view().unwrap().phase == Some(Phase::Confirming)
        });
        confirm(&job);
        activator.wait();
        assert_eq!(result(&job).state, State::Succeeded);

        // One that begins in between is met by the switch itself.
        let late = Script {
            before: "if [ ! -e /nix/var/notes/met ]; then touch /nix/var/notes/met; echo Could not acquire lock >&2; exit 1; fi",
            ..Script::PLAIN
        };
        let c = machine.nixos("c", late);
        assert_eq!(machine.carry_out(&machine.spec(&c)).state, State::Succeeded);
        assert_all_is(machine, &c);
    });
}

#[test]
fn a_boot_loader_that_boots_something_else_is_noticed() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        // A GRUB menu, as nixpkgs writes it, that nothing updates any more.
        run("mount", &["-t", "tmpfs", "none", "/boot"]);
        fs::create_dir("/boot/grub").unwrap();
        let menu = format!(
            "set default=0\nmenuentry \"NixOS\" {{\n  linux /kernels/k init={a}/init\n}}\n"
        );
        fs::write("/boot/grub/grub.cfg", menu).unwrap();
        let b = machine.nixos("b", Script::PLAIN);
        let stuck = machine.carry_out(&machine.spec(&b));
        assert_ends(&stuck, (State::Failed, Some(Reason::BootLoaderFailed)));
        assert!(
            stuck.message.as_str().contains("still boots"),
            "{}",
            stuck.message
        );
        assert_eq!(current().as_ref(), Some(&a));
        assert_eq!(link(SYSTEM).as_ref(), Some(&a));
    });
}

#[test]
fn a_boot_partition_without_room_is_found_out_before_anything_is_activated() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        run("mount", &["-t", "tmpfs", "-o", "size=64k", "none", "/boot"]);
        fs::create_dir("/boot/kernels").unwrap();
        let kernel = machine.program("kernel", &"#".repeat(100_000));
        let b = machine.nixos_with("b", Script::PLAIN, &format!("ln -s {kernel} $out/kernel"));
        let refused = machine.carry_out(&machine.spec(&b));
        assert_ends(&refused, (State::Failed, Some(Reason::DiskFull)));
        assert_eq!(machine.notes(), ["a test", "a boot"]);
        let name = kernel.as_str().trim_start_matches("/nix/store/");
        fs::write(format!("/boot/kernels/{name}"), "").unwrap();
        let there = machine.carry_out(&machine.spec(&b));
        assert_eq!(there.state, State::Succeeded, "{}", there.message);
    });
}

#[test]
fn a_machine_that_shuts_down_is_left_to_its_next_boot() {
    inside(|machine| {
        with_systemd(machine);
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let cut = Script {
            after: "kill -9 $$",
            ..Script::PLAIN
        };
        let b = machine.nixos("b", cut);
        let job = machine.create(&machine.spec(&b));
        machine.fake("systemctl", "[ $1 = is-system-running ] && echo stopping");
        Activator::start(&job).wait();
        assert!(job.view().unwrap().result.is_none(), "nothing is decided");
        assert_eq!(current().as_ref(), Some(&b), "nothing went back");
        assert_eq!(machine.notes().last().unwrap(), "b test");

        with_systemd(machine);
        let nothing = Activator::start(&job);
        machine.power_cut(&job, nothing);
        fs::create_dir_all("/run/systemd/system").unwrap();
        let result = recover(&job);
        assert_eq!(
            result.reason,
            Some(Reason::Interrupted),
            "{}",
            result.message
        );
        assert_all_is(machine, &a);
    });
}
