//! Whatever is killed, and whenever: the machine ends on one system or the other.

use std::fs;

use hoist_agent::job::Phase;
use hoist_protocol::{Reason, State};
use rustix::process::Signal;

use crate::machine::{
    Activator, SYSTEM, Script, assert_all_is, assert_ends, checks_with, confirm, generations,
    inside, log, outcome, recover, result, run, until,
};

#[test]
fn an_activator_killed_before_the_confirmation_goes_back_when_it_is_started_again() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let check = machine.program(
            "check",
            "while [ -e /nix/var/notes/gates/check ]; do sleep 0.01; done",
        );
        let b = machine.nixos("b", Script::PLAIN);
        machine.close("check");
        for (phase, state, gate) in [
            (Phase::Activating, State::Failed, Some("b.test")),
            (Phase::Checking, State::RolledBack, None),
            (Phase::Confirming, State::RolledBack, None),
        ] {
            let mut spec = machine.spec(&b);
            if phase == Phase::Checking {
                spec.target.health_checks = vec![checks_with(check.clone())];
            }
            if let Some(gate) = gate {
                machine.close(gate);
            }
            let job = machine.create(&spec);
            let activator = Activator::start_until(&job, phase);
            if gate.is_some() {
                until("the switch runs", || {
                    machine.notes().last().unwrap() == "b test"
                });
            }
            activator.kill();
            let result = recover(&job);
            assert_eq!(
                outcome(&result),
                (state, Some(Reason::Interrupted)),
                "{phase:?}: {}",
                result.message
            );
            if let Some(gate) = gate {
                // Had the switch lived on, it would now take the machine.
                machine.open(gate);
                assert!(log(&job).contains("stopped what the last activator had started"));
            }
            assert_all_is(machine, &a);
            assert_eq!(machine.notes().last().unwrap(), "a test");
        }
    });
}

#[test]
fn an_activator_killed_while_it_goes_back_still_goes_back_for_the_first_reason() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let bad = machine.nixos(
            "b",
            Script {
                after: "exit 2",
                ..Script::PLAIN
            },
        );
        let job = machine.create(&machine.spec(&bad));
        machine.close("a.test");
        for _ in 0..3 {
            let count = machine.notes().len();
            let activator = Activator::start_until(&job, Phase::RollingBack);
            until("a is activated again", || {
                let notes = machine.notes();
                notes.len() > count && notes.last().unwrap() == "a test"
            });
            activator.kill();
        }
        machine.open("a.test");
        let result = recover(&job);
        assert_ends(
            &result,
            (State::RolledBack, Some(Reason::ActivationScriptFailed)),
        );
        assert_all_is(machine, &a);
    });
}

#[test]
fn an_activator_killed_after_the_confirmation_goes_forward() {
    inside(|machine| {
        machine.running(&machine.nixos("a", Script::PLAIN));
        let b = machine.nixos("b", Script::PLAIN);
        machine.close("b.boot");
        let job = machine.create(&machine.spec(&b));
        let activator = Activator::start_until(&job, Phase::Confirming);
        confirm(&job);
        until("the boot loader is set", || {
            machine.notes().last().unwrap() == "b boot"
        });
        activator.kill();
        machine.open("b.boot");
        let result = recover(&job);
        assert_ends(&result, (State::Succeeded, None));
        assert_all_is(machine, &b);
        assert_eq!(generations(SYSTEM).len(), 2);
    });
}

#[test]
fn a_power_cut_before_the_confirmation_ends_on_what_the_machine_booted() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let job = machine.create(&machine.spec(&machine.nixos("b", Script::PLAIN)));
        let activator = Activator::start_until(&job, Phase::Confirming);
        machine.power_cut(&job, activator);
        let notes = machine.notes();
        let result = recover(&job);
        assert_ends(&result, (State::RolledBack, Some(Reason::Interrupted)));
        assert!(
            result.message.as_str().contains("booted"),
            "{}",
            result.message
        );
        assert_eq!(machine.notes(), notes, "there was nothing to activate");
        assert_all_is(machine, &a);
    });
}

#[test]
fn a_power_cut_after_the_confirmation_goes_forward_even_when_the_activator_is_killed_again() {
    inside(|machine| {
        machine.running(&machine.nixos("a", Script::PLAIN));
        let b = machine.nixos("b", Script::PLAIN);
        machine.close("b.boot");
        let job = machine.create(&machine.spec(&b));
        let activator = Activator::start_until(&job, Phase::Confirming);
        confirm(&job);
        until("the boot loader is set", || {
            machine.notes().last().unwrap() == "b boot"
        });
        machine.power_cut(&job, activator);
        machine.open("b.boot");
        machine.close("b.test");
        let count = machine.notes().len();
        let activator = Activator::start(&job);
        until("b is activated", || {
            machine.notes().len() > count && machine.notes().last().unwrap() == "b test"
        });
        activator.kill();
        machine.open("b.test");
        let result = recover(&job);
        assert_ends(&result, (State::Succeeded, None));
        assert_all_is(machine, &b);
    });
}

#[test]
fn an_activator_that_is_asked_to_end_goes_on() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        let job = machine.create(&machine.spec(&a));
        let activator = Activator::start_until(&job, Phase::Confirming);
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            activator.signal(signal);
        }
        confirm(&job);
        activator.wait();
        assert_eq!(result(&job).state, State::Succeeded);
    });
}

#[test]
fn a_disk_that_the_activation_fills_does_not_keep_the_machine_from_going_back() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                "size=1m",
                "none",
                machine.state().as_str(),
            ],
        );
        // The script finds the disk by its job, which it has no business with otherwise.
        let fill = machine.state().join("fill");
        fs::create_dir_all("/nix/var/notes").unwrap();
        std::os::unix::fs::symlink(&fill, "/nix/var/notes/fill").unwrap();
        let script = Script {
            after: "cat /dev/zero > /nix/var/notes/fill || echo it is full; exit 3",
            ..Script::PLAIN
        };
        let job = machine.create(&machine.spec(&machine.nixos("b", script)));
        let result = recover(&job);
        assert_ends(&result, (State::Failed, Some(Reason::ActivationFailed)));
        assert!(
            result
                .log_tail
                .iter()
                .any(|line| line.as_str() == "it is full")
        );
        assert_all_is(machine, &a);
    });
}
