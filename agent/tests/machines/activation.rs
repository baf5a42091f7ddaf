//! One activation after another: what ends well, and what goes back.

use std::fs;

use hoist_agent::job::{Jobs, Nonce, Phase};
use hoist_protocol::{Kind, Reason, State, StorePath};

use crate::machine::{
    Activator, SYSTEM, Script, assert_all_is, assert_ends, checks_with, confirm, confirmation,
    current, generations, inside, link, log, outcome, recover, result, until,
};

#[test]
fn a_confirmed_system_runs_boots_and_is_the_profile_and_was_neither_before() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let b = machine.nixos("b", Script::PLAIN);
        let job = machine.create(&machine.spec(&b));
        let activator = Activator::start_until(&job, Phase::Confirming);
        assert_eq!(current().as_ref(), Some(&b));
        assert_eq!(link(SYSTEM).as_ref(), Some(&a));
        assert_eq!(machine.boot_default().as_ref(), Some(&a));

        // A second one on the same job ends at once and changes nothing.
        Activator::start(&job).wait();
        assert!(job.view().unwrap().alive);

        confirm(&job);
        activator.wait();
        let result = result(&job);
        assert_eq!(outcome(&result), (State::Succeeded, None));
        assert_eq!(
            (result.previous, result.current),
            (Some(a), Some(b.clone()))
        );
        assert_all_is(machine, &b);
        assert_eq!(machine.notes(), ["a test", "a boot", "b test", "b boot"]);
        assert!(log(&job).contains("switching to b"));
        assert!(log(&job).contains("confirmed by /bin/hoist-agent"));
        assert!(
            result
                .log_tail
                .iter()
                .any(|line| line.as_str() == "switching to b")
        );
        job.remove().unwrap();
        assert!(
            Jobs::open(&machine.state())
                .unwrap()
                .existing()
                .unwrap()
                .iter()
                .all(|job| job.spec().closure != b)
        );
    });
}

#[test]
fn an_activation_that_fails_ends_on_the_system_before_whatever_it_exits_with() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let failed = |reason| (State::Failed, Some(reason));
        let rolled_back = |reason| (State::RolledBack, Some(reason));
        let check = failed(Reason::PreSwitchCheckFailed);
        let script = rolled_back(Reason::ActivationScriptFailed);
        let units = rolled_back(Reason::UnitsFailed);
        let other = failed(Reason::ActivationFailed);
        let scripts = [
            ("early", "exit 1", "", check, "exited with 1"),
            ("script", "", "exit 2", script, "activation script failed"),
            ("late", "", "exit 4", units, "units failed"),
            ("killed", "", "kill -9 $$", other, "killed by signal 9"),
            ("liar", "exit 0", "", other, "ended well, but"),
        ];
        for (name, before, after, ends, said) in scripts {
            let bad = machine.nixos(
                name,
                Script {
                    before,
                    after,
                    boot: "",
                },
            );
            let result = machine.carry_out(&machine.spec(&bad));
            assert_eq!(outcome(&result), ends, "{name}: {}", result.message);
            assert!(result.message.as_str().contains(said), "{}", result.message);
            assert_eq!(result.previous.as_ref(), Some(&a));
            assert_eq!(result.current.as_ref(), Some(&a));
            assert_all_is(machine, &a);
            assert_eq!(machine.notes().last().unwrap(), "a test");
        }
        assert_eq!(
            generations(SYSTEM),
            [(1, a)],
            "no failure has left a generation"
        );
    });
}

#[test]
fn an_activation_that_hangs_is_stopped_with_all_it_started_and_its_lists_are_cleared() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let hangs = Script {
            before: "mkdir -p /run/nixos; echo x.service > /run/nixos/start-list; sleep 10000 & echo $! > /nix/var/notes/pid; wait",
            ..Script::PLAIN
        };
        let mut spec = machine.spec(&machine.nixos("b", hangs));
        spec.target.activation_timeout_ms = 300;
        let result = machine.carry_out(&spec);
        assert_ends(&result, (State::Failed, Some(Reason::ActivationTimedOut)));
        assert_all_is(machine, &a);
        assert!(!fs::exists("/run/nixos/start-list").unwrap());
        let pid = fs::read_to_string("/nix/var/notes/pid").unwrap();
        until("what it started is gone", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        });
    });
}

#[test]
fn a_health_check_knows_what_it_checks_and_one_that_fails_goes_back() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let b = machine.nixos("b", Script::PLAIN);
        let good = machine.program("good", "echo $HOIST_CLOSURE after $HOIST_PREVIOUS");
        let bad = machine.program("bad", "echo no web server >&2; exit 7");
        let mut spec = machine.spec(&b);
        spec.target.health_checks = [good, bad].map(checks_with).to_vec();
        let job = machine.create(&spec);
        let result = recover(&job);
        assert_ends(
            &result,
            (State::RolledBack, Some(Reason::HealthCheckFailed)),
        );
        assert!(
            result.message.as_str().contains("exited with 7"),
            "{}",
            result.message
        );
        assert!(log(&job).contains(&format!("{b} after {a}")));
        assert!(log(&job).contains("no web server"));
        assert_all_is(machine, &a);

        let hangs = machine.program("hangs", "sleep 10000");
        let mut spec = machine.spec(&b);
        spec.target.health_checks = vec![checks_with(hangs)];
        spec.target.confirm_timeout_ms = 200;
        let result = machine.carry_out(&spec);
        assert_ends(
            &result,
            (State::RolledBack, Some(Reason::HealthCheckFailed)),
        );
        assert_all_is(machine, &a);
    });
}

#[test]
fn what_is_not_confirmed_in_time_goes_back_and_no_other_confirmation_counts() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let mut spec = machine.spec(&machine.nixos("b", Script::PLAIN));
        spec.target.confirm_timeout_ms = 300;
        let job = machine.create(&spec);
        let mut stale = confirmation(&job);
        stale.nonce = Nonce::random();
        job.confirm(&stale).unwrap();
        let result = recover(&job);
        assert_ends(&result, (State::RolledBack, Some(Reason::NotConfirmed)));
        assert!(log(&job).contains("it is for another job"));
        assert_all_is(machine, &a);
    });
}

#[test]
fn a_commit_that_fails_restores_profile_boot_default_and_system() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let full = Script {
            boot: "echo no space left on /boot >&2; exit 1",
            ..Script::PLAIN
        };
        let result = machine.carry_out(&machine.spec(&machine.nixos("b", full)));
        assert_ends(&result, (State::Failed, Some(Reason::BootLoaderFailed)));
        assert_all_is(machine, &a);
        assert_eq!(
            machine.notes()[2..],
            ["b test", "b boot", "a boot", "a test"]
        );
    });
}

#[test]
fn a_closure_of_the_wrong_kind_or_none_at_all_changes_nothing() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let notes = machine.notes();
        let mut spec = machine.spec(&machine.tool("tool"));
        spec.target.kind = Kind::Nixos;
        let wrong = machine.carry_out(&spec);
        assert_eq!(outcome(&wrong), (State::Failed, Some(Reason::WrongKind)));
        let gone = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-gone").unwrap();
        let missing = machine.carry_out(&machine.spec(&gone));
        assert_eq!(
            outcome(&missing),
            (State::Failed, Some(Reason::MissingPath))
        );
        assert_eq!(machine.notes(), notes);
        assert_all_is(machine, &a);
    });
}
